"""``famsam bench``: the models, the stages around them and whole clicks, timed beside the machine's own limits."""

from __future__ import annotations

from .models import CONFIGS
from .report import BenchReport, compare, comparison_lines, read_report
from .run import BenchOptions, run_bench
from .scaling import ScalingOptions
from .timing import Timing

__all__ = [
    "CONFIGS",
    "BenchOptions",
    "BenchReport",
    "ScalingOptions",
    "Timing",
    "compare",
    "comparison_lines",
    "read_report",
    "run_bench",
]
