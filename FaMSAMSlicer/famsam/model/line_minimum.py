"""Minima over straight lines of voxels in one pass on a GPU: what geodesic and Euclidean distance maps are made of.

Every voxel is compared with every other of its line, which a GPU does in registers; running minima there take many
passes over the memory. Where there is no Triton (it comes with PyTorch on Linux), callers do without.
"""

from __future__ import annotations

import functools
from typing import Any, Optional

from torch import Tensor

PAIRS_AT_ONCE = 4096
"""So many pairs of voxels one program compares."""


def works_on(tensor: Tensor) -> bool:
    """Whether the functions below take tensors of this device."""
    return tensor.is_cuda and _kernel() is not None


def cheapest_runs(distance_VKBzyx: Tensor, cost_VBzyx: Tensor, axis: int) -> None:
    """``d_i = min_j d_j + |c_i - c_j|`` along an axis (0: z, 1: y, 2: x), in place.

    Args:
        distance_VKBzyx: contiguous float32.
        cost_VBzyx: cumulated costs along that axis, contiguous float32.
    """
    _run(distance_VKBzyx, axis, cost_VBzyx, distance_VKBzyx.shape[1])


def nearest_squared_runs(squared_Bzyx: Tensor, axis: int) -> None:
    """``d²_i = min_j d²_j + (i - j)²`` along an axis (0: z, 1: y, 2: x), in place.

    Args:
        squared_Bzyx: contiguous float32.
    """
    _run(squared_Bzyx, axis)


def _run(values: Tensor, axis: int, cost: Optional[Tensor] = None, choices: int = 1) -> None:
    if not values.is_contiguous() or (cost is not None and not cost.is_contiguous()):
        raise ValueError("Expected contiguous tensors.")
    sizes = values.shape[-3:]
    length, inner = sizes[axis], sizes[axis + 1 :].numel()
    lines = values.numel() // length
    padded = 1 << (length - 1).bit_length()
    block = max(1, PAIRS_AT_ONCE // padded**2)
    per_cost = 1 if cost is None else cost[0].numel() // (length * inner)
    kernel = _kernel()
    assert kernel is not None  # see ``works_on``
    kernel[(-(-lines // block),)](
        values, values if cost is None else cost, lines, length, inner, choices, per_cost,
        SQUARED=cost is None, PADDED=padded, BLOCK=block,
    )


@functools.cache
def _kernel() -> Any:
    try:
        from .line_kernels import line_minimum
    except ImportError:
        return None
    return line_minimum
