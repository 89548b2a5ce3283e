"""Minima over straight lines of voxels, every voxel compared with every other of its line: what geodesic and Euclidean
distance maps are made of.

A GPU does that in registers, in one Triton kernel; running minima there take many passes over the memory. Without
Triton 3 (it comes with PyTorch on Linux), and on a CPU, all pairs are written out, which is meant for small tensors.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any, Optional

import torch
from torch import Tensor

OLDEST_TRITON = 3
"""Comes with PyTorch 2.4; an older one was never tried on a GPU, and its interpreter does not know enough to try it."""
PAIRS_AT_ONCE = 4096
"""So many pairs of voxels one program compares."""


def is_fast_on(tensor: Tensor) -> bool:
    """Whether there is a kernel for tensors of this device."""
    return tensor.is_cuda and _kernel() is not None


def cheapest_runs(distance_VKBzyx: Tensor, cost_VBzyx: Tensor, axis: int) -> None:
    """``d_i = min_j d_j + |c_i - c_j|`` along an axis (0: z, 1: y, 2: x), in place.

    Args:
        distance_VKBzyx: contiguous float32.
        cost_VBzyx: cumulated costs along that axis, contiguous float32.
    """
    _run(distance_VKBzyx, axis, cost_VBzyx)


def nearest_squared_runs(squared_Bzyx: Tensor, axis: int) -> None:
    """``d²_i = min_j d²_j + (i - j)²`` along an axis (0: z, 1: y, 2: x), in place.

    Args:
        squared_Bzyx: contiguous float32.
    """
    _run(squared_Bzyx, axis)


def _run(values: Tensor, axis: int, cost: Optional[Tensor] = None) -> None:
    if not values.is_contiguous() or (cost is not None and not cost.is_contiguous()):
        raise ValueError("Expected contiguous tensors.")
    if is_fast_on(values):
        _run_kernel(values, axis, cost)
        return
    lines, last = values.movedim(axis - 3, -1), values.shape[axis - 3]
    place = torch.arange(last, device=values.device, dtype=values.dtype)
    at = place if cost is None else cost[:, None].movedim(axis - 3, -1)
    apart = at[..., :, None] - at[..., None, :]
    between = apart.square() if cost is None else apart.abs()
    values.copy_((lines[..., None, :] + between).amin(-1).movedim(-1, axis - 3))


def _run_kernel(values: Tensor, axis: int, cost: Optional[Tensor]) -> None:
    length, inner = values.shape[axis - 3], values.shape[values.ndim + axis - 2 :].numel()
    lines = values.numel() // length
    padded = 1 << (length - 1).bit_length()
    block = max(1, PAIRS_AT_ONCE // padded**2)
    choices, per_cost = (1, 1) if cost is None else (values.shape[1], cost[0].numel() // (length * inner))
    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device(values.device) if values.is_cuda else nullcontext():
        _kernel()[(-(-lines // block),)](
            values, values if cost is None else cost, lines, length, inner, choices, per_cost,
            SQUARED=cost is None, PADDED=padded, BLOCK=block,
        )


@functools.cache
def _kernel() -> Any:
    try:
        import triton

        from .line_kernels import line_minimum
    except ImportError:
        return None
    return line_minimum if int(triton.__version__.split(".")[0]) >= OLDEST_TRITON else None
