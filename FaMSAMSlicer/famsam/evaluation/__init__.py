"""Evaluate methods that segment by clicks, with a simulated user, on folders of labelled scans."""

from .baselines import BASELINES
from .dataset import DatasetOptions, read_exclude_file
from .harness import EvaluationOptions, evaluate
from .report import Report
from .segmenters import ClickSegmenter, SessionSegmenter

__all__ = [
    "BASELINES",
    "ClickSegmenter",
    "DatasetOptions",
    "EvaluationOptions",
    "Report",
    "SessionSegmenter",
    "evaluate",
    "read_exclude_file",
]
