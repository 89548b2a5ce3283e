"""The scaling curves as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict

from ..errors import MissingDependencyError
from .scaling import PER_SEGMENT


def draw_scaling(scaling: Dict[str, Any], path: Path) -> None:
    """The three curves as a PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f'The plot needs matplotlib, which is not installed: pip install "famsam[plots]" ({error})'
        ) from error
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    volumes, points, segments = figure.subplots(1, 3)
    megavoxels = [math.prod(row["volume_xyz"]) / 2**20 for row in scaling["volumes"]]
    for name in ("open", "first", "next", "preview", "mask", "undo"):
        medians = [row[name]["median_ms"] for row in scaling["volumes"]]
        volumes.plot(megavoxels, medians, marker="o", label=name)
    volumes.set(xscale="log", yscale="log", xlabel="scan, 2^20 voxels (int16)", title="size of the scan", ylabel="ms")
    points.plot([r["points"] for r in scaling["points"]], [r["click_ms"] for r in scaling["points"]], label="click")
    decode = [(row["points"], row["decode"]["median_ms"]) for row in scaling["decode_by_points"]]
    points.plot(*zip(*decode), marker="o", label="decode alone")
    points.set(xlabel="points", title="points in one segment", ylim=(0, None))
    for name in PER_SEGMENT:
        counts, values = ([r[key] for r in scaling["segments"]] for key in ("segments", f"{name}_ms"))
        segments.plot(counts, values, label={"first": "first click", "next": "next click"}.get(name, name))
    segments.set(xlabel="segments", title="segments on one scan", ylim=(0, None))
    for axes in (volumes, points, segments):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
