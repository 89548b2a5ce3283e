"""What a map of probabilities tells."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from famsam.geometry import Grid
from famsam.uncertainty_map import Uncertainty

TILTED = np.array([[1.0, 0, 0, 5], [0, 2.0, 1.5, 0], [0, 0, 2.0, 0], [0, 0, 0, 1.0]])  # a gantry tilt: 4 mm3 a voxel


def test_volume_and_doubt_on_a_tilted_grid() -> None:
    probability = np.array([[[0.0, 0.25, 0.5, 1.0]]])
    found = Uncertainty(((0, 0, 0), (1, 1, 4)), probability, grid=Grid((3, 3, 4), TILTED))
    assert found.expected_ml == pytest.approx(1.75 * 4 / 1000)
    assert found.probability_zyx.dtype == np.float32
    np.testing.assert_allclose(found.entropy_zyx[0, 0], [0, 0.8113, 1, 0], atol=1e-4)


def test_it_needs_no_torch() -> None:
    code = "import sys, famsam.uncertainty_map; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
