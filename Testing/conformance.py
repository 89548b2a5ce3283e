"""Finds the small published-format checkpoints with known outputs, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def conformance_folder() -> Path:
    """The folder with the checkpoints and their outputs; skips the test if there is none."""
    shared = Path(os.environ.get("FAMSAM_SHARED_DIR", REPOSITORY.parent / "shared"))
    folder = shared / "conformance"
    if not folder.is_dir():
        pytest.skip(f"no conformance data in {shared}; set FAMSAM_SHARED_DIR to the folder that holds it")
    return folder


def relative_error(found: object, expected: object) -> float:
    """Relative L2 distance; the shapes must agree."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape
    if not expected.size:
        return 0.0
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
