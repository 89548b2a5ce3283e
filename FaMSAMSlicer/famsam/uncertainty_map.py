"""A map of how sure a model is, apart from the model: hosts that only show one need no torch."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from .geometry import Box, Grid


class Uncertainty:
    """The probability of each voxel around a result.

    Attributes:
        box_zyx: half-open box of the image grid that the maps cover; None if the model saw nothing where it looked.
        probability_zyx: float32 of the box's size: the calibrated probability that a voxel belongs to the structure.
    """

    def __init__(self, box_zyx: Optional[Box], probability_zyx: NDArray[Any], *, grid: Grid) -> None:
        self.box_zyx = box_zyx
        self.probability_zyx = np.ascontiguousarray(probability_zyx, dtype=np.float32)
        self._voxel_ml = grid.voxel_ml

    @property
    def entropy_zyx(self) -> NDArray[np.float32]:
        """Doubt in bits, float32 of the box's size: 0 where the model is sure of yes or no, 1 where it cannot tell."""
        p = np.clip(self.probability_zyx, 1e-6, 1 - 1e-6)
        return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), dtype=np.float32)

    @property
    def expected_ml(self) -> float:
        """The structure's volume to expect: the sum of all probabilities, in millilitres."""
        return float(self.probability_zyx.sum(dtype=np.float64)) * self._voxel_ml
