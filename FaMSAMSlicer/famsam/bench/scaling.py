"""How latency grows with the size of the scan, the number of points and the number of segments."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch

from ..errors import ConfigError
from ..model.base import PromptableModel
from ..session import Session
from ..volume import Volume
from .clicks import SessionTimes, clicks_on, one_session, synthetic_ct
from .models import MIB, ModelCalls
from .timing import Call, Timing, measure, once_ms

Size = Tuple[int, int, int]
Row = Dict[str, Any]
SPARE_MIB = 1536
"""Memory that has to be free besides the scan itself."""


@dataclass(frozen=True)
class ScalingOptions:
    """What is varied."""

    volumes_xyz: Tuple[Size, ...] = (
        (64, 64, 64),
        (128, 128, 128),
        (256, 256, 256),
        (512, 512, 300),
        (512, 512, 800),
        (1024, 1024, 400),
        (1024, 1024, 800),
    )
    """Sizes of the scans, voxels, int16; those that do not fit into the free memory are left out, and named."""
    points: int = 100
    """Clicks into one segment."""
    segments: int = 50
    """Segments on one scan, two clicks each."""
    volume_xyz: Size = (512, 512, 300)
    """The scan for points and segments."""
    runs: int = 3
    """Sessions for each size of scan, and rounds of decoding."""

    def __post_init__(self) -> None:
        if not self.volumes_xyz or min(min(size) for size in (*self.volumes_xyz, self.volume_xyz)) < 8:
            raise ConfigError(f"Expected scans of at least 8 voxels along each axis, got {self.volumes_xyz}.")
        if min(self.points, self.segments, self.runs) < 1:
            raise ConfigError(
                f"Expected at least one point, segment and run, got {self.points}, {self.segments} and {self.runs}."
            )


def time_scaling(model: PromptableModel, options: ScalingOptions, progress: Callable[[str], None]) -> Dict[str, Any]:
    """All three curves, JSON-able; ``progress`` is told what is being timed."""
    volumes, left_out = by_volume(model, options, progress)
    volume = synthetic_ct(_reversed(options.volume_xyz))
    progress(f"{options.points} points")
    by_points = _by_points(model, volume, options.points)
    decode = _decode_by_points(model, volume, options)
    progress(f"{options.segments} segments")
    by_segments = _by_segments(model, volume, options.segments)
    return {
        "volumes": volumes,
        "volumes_left_out": left_out,
        "points_volume_xyz": list(options.volume_xyz),
        "points": by_points,
        "decode_by_points": decode,
        "segments": by_segments,
        "last_fifth_over_first": {
            "next click by points": _growth([row["click_ms"] for row in by_points[1:] or by_points]),
            **{f"{what} by segments": _growth([row[f"{what}_ms"] for row in by_segments]) for what in PER_SEGMENT},
        },
    }


def by_volume(
    model: PromptableModel, options: ScalingOptions, progress: Callable[[str], None]
) -> Tuple[List[Row], List[Row]]:
    """Rows by size of the scan, and those left out for want of memory, with the reason."""
    rows: List[Row] = []
    left_out: List[Row] = []
    one_session(model, synthetic_ct(_reversed(options.volumes_xyz[0])), 0, {})  # warms up
    for size_xyz in options.volumes_xyz:
        progress(" x ".join(map(str, size_xyz)))
        scan_mib, free_mib = 2 * size_xyz[0] * size_xyz[1] * size_xyz[2] / MIB, free_memory_mib()
        if scan_mib + SPARE_MIB > free_mib:
            reason = f"needs {scan_mib:.0f} MiB and {SPARE_MIB} MiB to spare, {free_mib:.0f} MiB are free"
            left_out.append({"volume_xyz": list(size_xyz), "why": reason})
            continue
        volume = synthetic_ct(_reversed(size_xyz))
        times: SessionTimes = {}
        for run in range(options.runs):
            opened = partial(Volume, volume.voxels_zyx, volume.grid.ras_from_ijk)
            times.setdefault("open", []).append(once_ms(opened, model.device))
            one_session(model, volume, run, times)
        timings = {name: Timing.of(values).to_dict() for name, values in times.items()}
        rows.append({"volume_xyz": list(size_xyz), "mib": round(scan_mib, 1), **timings})
        del volume
    return rows, left_out


def _by_points(model: PromptableModel, volume: Volume, count: int) -> List[Row]:
    """One segment, click after click."""
    session = Session(model)
    session.set_image(volume)
    rows = []
    for index, ras in enumerate(clicks_on(volume, count, 0)):
        click_ms = once_ms(partial(session.add_point, ras), model.device)
        rows.append({"points": index + 1, "click_ms": round(click_ms, 2)})
    return rows


def _decode_by_points(model: PromptableModel, volume: Volume, options: ScalingOptions) -> List[Row]:
    """The decoder alone, in rounds over the numbers of points."""
    generator = torch.Generator().manual_seed(0)
    crop = torch.randn(1, 1, *(model.crop_size,) * 3, generator=generator)
    fixed = ModelCalls(model, crop)
    calls: Dict[str, Call] = {}
    for count in [n for n in (1, 2, 5, 10, 20, 50, 100) if n <= options.points]:
        points = (torch.rand(1, count, 3, generator=generator) * (model.crop_size - 1)).to(model.device)
        labels = torch.tensor([[1 - i % 2 for i in range(count)]], device=model.device)
        calls[str(count)] = partial(fixed.decode_points, points, labels)
    timings = measure(calls, options.runs, model.device)
    return [{"points": int(count), "decode": timing.to_dict()} for count, timing in timings.items()]


PER_SEGMENT = ("first", "next", "switch")


def _by_segments(model: PromptableModel, volume: Volume, count: int) -> List[Row]:
    """A session for each segment, all kept open; and one session that is switched to each segment's prompts.

    "switch" is the way of a host with one session: it restores another segment's prompts.
    """
    sessions: List[Session] = []
    switched = Session(model)
    switched.set_image(volume)
    rows = []
    for index in range(count):
        found: Dict[str, float] = {}
        session = Session(model)
        session.set_image(volume)
        sessions.append(session)
        for name, ras in zip(("first", "next"), clicks_on(volume, 2, index)):
            found[f"{name}_ms"] = once_ms(partial(session.add_point, ras), model.device)
        switched.restore(session.to_dict())
        found["switch_ms"] = once_ms(partial(switched.restore, sessions[0].to_dict()), model.device)
        rows.append({"segments": index + 1, **{name: round(value, 2) for name, value in found.items()}})
    return rows


def _growth(values: Sequence[float]) -> float:
    """Median of the last fifth over the median of the first, at least one value each: 1 is flat."""
    n = max(1, len(values) // 5)
    return round(statistics.median(values[-n:]) / statistics.median(values[:n]), 3)


def free_memory_mib() -> float:
    """What the system can still give; infinite where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1024
    except (OSError, StopIteration):
        names = getattr(os, "sysconf_names", {})
        if "SC_AVPHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
        return float("inf")


def _reversed(size: Size) -> Size:
    return size[2], size[1], size[0]
