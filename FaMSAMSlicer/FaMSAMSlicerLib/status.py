"""What the panel says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """One message, and the figures of the last click."""

    message: str = ""
    is_error: bool = False
    busy: bool = False
    latency_ms: float = 0.0
    """From the interaction to the segment written."""
    quality: float = 0.0
    """Predicted IoU, 0..1."""
    engine_ms: float = 0.0
    """What of the latency the engine itself took."""
    proposed: bool = False
    """Whether a proposal is shown that can be taken."""
