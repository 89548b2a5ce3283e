"""A second contrast to look in: intensities near that of a click keep theirs, all others are cut off.

What is equalised then is the range in which the structure and its surroundings differ, whatever else the view holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import Index3

HALF_WIDTH = 0.5
"""So much of the crop's range is kept on either side of the click's intensity."""
RANGE = 0.02, 0.98
"""Between which shares of the sorted intensities it lies,"""
STRIDE = 4
"""of every so manieth voxel along each axis."""
LEVELS = 128
"""The scan's range is divided into so many contrasts: a click beside another one, in the same tissue, shares its."""
SOME = 100_000
"""About so many voxels tell the scan's range."""


def intensity_at(voxels_zyx: NDArray[Any], at_zyx: Index3) -> float:
    """Mean intensity of a voxel and those of its neighbours that lie in the scan; of the nearest one if it does not."""
    nearest = [min(max(at, 0), size - 1) for at, size in zip(at_zyx, voxels_zyx.shape)]
    return float(np.mean(voxels_zyx[tuple(slice(max(0, at - 1), at + 2) for at in nearest)], dtype=np.float64))


def level_step(voxels_zyx: NDArray[Any]) -> float:
    """How far apart the contrasts of a scan are, in its units."""
    stride = max(1, round((voxels_zyx.size / SOME) ** (1 / 3)))
    low, *within, high = np.quantile(voxels_zyx[(slice(None, None, stride),) * 3], (0, *RANGE, 1)).tolist()
    return float(within[1] - within[0] or high - low or 1.0) / LEVELS  # most of a scan may be one background


def cut_around(crop_ZYX: Tensor, inside_ZYX: Tensor, middle: float) -> Tensor:
    """A crop with all intensities far from the middle cut off; one without a range stays as it is.

    Args:
        crop_ZYX: float32 intensities.
        inside_ZYX: bool, which of them count for the range.
        middle: in the scan's units.

    Returns:
        float32, the crop's shape.
    """
    some_ZYX = (slice(None, None, STRIDE),) * 3
    values = crop_ZYX[some_ZYX][inside_ZYX[some_ZYX]]
    if values.numel() < 2:
        return crop_ZYX
    low, high = (values.kthvalue(1 + int(share * (len(values) - 1))).values for share in RANGE)
    width = HALF_WIDTH * (high - low)
    width = torch.where(width > 0, width, torch.inf)
    return crop_ZYX.clamp(middle - width, middle + width)
