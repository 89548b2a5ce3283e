"""What one client may ask of the server, and what all of them together may."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import ConfigError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Every bound of the server, as one value.

    Raises:
        ConfigError: a limit is not above zero.
    """

    upload_bytes: int = 2048 * MIB
    """Size of an uploaded file, as it is sent."""
    volume_bytes: int = 2048 * MIB
    """Size of one scan's voxels in memory, after decompression."""
    all_volumes_bytes: int = 8192 * MIB
    """Size of all open scans' voxels together."""
    body_bytes: int = 32 * MIB
    """Size of any other request's body."""
    files_in_zip: int = 10_000
    """Files in a zipped DICOM series."""
    volumes: int = 16
    """Scans open at once."""
    sessions: int = 64
    """Sessions (one for each segment) open at once."""
    prompts: int = 500
    """Points and boxes of one session."""
    cached_embeddings: int = 16
    """Encoded views kept for one scan, about 10 MiB each; its sessions share them."""
    history_bytes: int = 256 * MIB
    """Size of one session's undo history; one that outgrew it is closed, and goes on from its prompts in a new one."""
    uploads_at_once: int = 2
    """Scans received and read at the same time; further ones wait unread."""
    waiting_per_session: int = 32
    """Requests of one session that wait for their turn."""
    waiting: int = 256
    """Requests of all sessions that wait for their turn."""
    idle_s: float = 3600.0
    """A scan or session unused for so long is closed."""
    read_timeout_s: float = 120.0
    """Longest time that reading an uploaded scan may take, and longest pause within an upload."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(f"the limit {field.name} must be above 0, got {getattr(self, field.name)}")
