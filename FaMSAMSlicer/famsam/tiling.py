"""What a coarse view shows, refined by closer views of its border.

Shape legend: n logits along each edge of a view; Z Y X on a grid a factor as fine.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import Grid, bounding_box, box_slices
from .resample import CropBox

Index3 = Tuple[int, int, int]
Corner = Union[Sequence[int], NDArray[np.int_]]


class Tiling:
    """Logits of a coarse view on a grid ``factor`` times as fine, in which tiles of closer views take their places.

    Args:
        view, logits: the coarse view and its logits (1, 1, n, n, n), on the CPU.
        factor: how many times as fine the tiles are; each has n logits along an edge, too.
        most: at most so many tiles.
        near_zyx: those nearest to a place in the view, in voxels of its logits; None: those with the longest border.

    Attributes:
        origins: of the tiles, (Z, Y, X); none where the coarse view shows no border.
    """

    def __init__(
        self, view: CropBox, logits: Tensor, factor: int, most: int, near_zyx: Optional[NDArray[np.float64]] = None
    ) -> None:
        self._view, self._logits, self._factor, self._n = view, logits, factor, logits.shape[-1]
        self.origins = tiles((logits[0, 0] > 0).numpy(), factor, most, near_zyx, size=self._n)

    def _coarse(self, origin_ZYX: Corner, size_ZYX: Corner) -> Tensor:
        """The coarse logits, interpolated in a part of the fine grid, (1, 1, Z, Y, X)."""
        part = self._logits
        for axis, low, count in zip((2, 3, 4), origin_ZYX, size_ZYX):
            places = ((torch.arange(low, low + count) + 0.5) / self._factor - 0.5).clamp(0, self._n - 1)
            knots = torch.arange(int(places[0]), math.ceil(places[-1]) + 1)
            hats = (1 - (places[:, None] - knots).abs()).clamp_min(0)
            needed = part.narrow(axis, int(knots[0]), len(knots))
            part = (needed.movedim(axis, -1) @ hats.T).movedim(-1, axis)
        return part.contiguous()

    @cached_property
    def _low(self) -> NDArray[np.int_]:
        """The lowest corner of what the tiles cover together."""
        return np.min(self.origins, axis=0)

    @cached_property
    def _sums(self) -> Tuple[Tensor, Tensor]:
        """Of what the tiles cover together: logits times weights, and weights."""
        size = np.max(self.origins, axis=0) + self._n - self._low
        total = self._coarse(self._low, size) * 1e-3
        return total, torch.full_like(total, 1e-3)

    def view_of(self, origin_ZYX: Index3, grid: Grid) -> CropBox:
        """The view that sees a tile."""
        middle = np.array(origin_ZYX) + (self._n - 1) / 2
        in_view = (middle + 0.5) * self._view.size / (self._n * self._factor) - 0.5
        z, y, x = (float(c) for c in self._view.points_from_crop(in_view, grid))
        return CropBox((z, y, x), self._view.spacing_mm / self._factor, self._view.size)

    def prior(self, origin_ZYX: Index3) -> Tensor:
        """The coarse view's logits in a tile, (1, 1, n, n, n)."""
        return self._coarse(origin_ZYX, (self._n,) * 3).clamp(-6, 6)

    def add(self, origin_ZYX: Index3, logits: Tensor) -> None:
        """A tile's own logits."""
        where = _cube(np.array(origin_ZYX) - self._low, (self._n,) * 3)
        taper = _taper(self._n)
        for total, part in zip(self._sums, (taper * logits, taper)):
            total[where] += part

    def blended(self) -> Tensor:
        """The coarse logits with all tiles in their places, (1, 1, Z, Y, X); as they were if there are none."""
        if not self.origins:
            return self._logits
        whole = self._coarse((0, 0, 0), (self._n * self._factor,) * 3)
        total, weight = self._sums
        whole[_cube(self._low, total.shape[2:])] = total / weight
        return whole


def tiles(
    coarse_mask: NDArray[np.bool_],
    factor: int,
    most: int,
    near_zyx: Optional[NDArray[np.float64]] = None,
    size: int = 64,
    stride: int = 48,
    step: int = 8,
) -> Sequence[Index3]:
    """Origins of cubes that cover the border of a mask given on a grid ``factor`` times as coarse.

    Args:
        coarse_mask: (n, n, n) bool; the cubes lie on a grid of (n * factor) voxels an edge.
        most: at most so many, those with the longest border first,
        near_zyx: or those nearest to a place on the coarse grid.
        size, stride: of the cubes, in fine voxels.
        step: origins are multiples of it where that costs no more cubes, so that the same cubes, seen already, cover a
            mask that changes a little.
    """
    n = coarse_mask.shape[0] * factor
    found = np.argwhere(coarse_mask)
    if len(found) == 0:
        return []
    low, high = found.min(0) * factor, (found.max(0) + 1) * factor
    starts = []
    for a, b in zip(low, high):
        count = max(1, math.ceil((b - a - size) / stride) + 1)
        reach = size + (count - 1) * stride
        first = round((a + b - reach) / 2)
        on_step = round(first / step) * step
        if b - reach <= on_step <= a:
            first = on_step
        starts.append(sorted({int(np.clip(first + i * stride, 0, n - size)) for i in range(count)}))
    scored: List[Tuple[float, Index3]] = []
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                block = coarse_mask[tuple(slice(o // factor, -(-(o + size) // factor)) for o in (z, y, x))]
                border = sum(int((np.diff(block.view(np.int8), axis=a) != 0).sum()) for a in range(3))
                if not border:
                    continue
                last = -float(border)
                if near_zyx is not None:
                    last = float(np.abs(np.array((z, y, x)) + size / 2 - factor * (near_zyx + 0.5)).max())
                scored.append((last, (z, y, x)))
    return [origin for _, origin in sorted(scored)[:most]]


def is_thin(mask_zyx: NDArray[np.bool_], share: float) -> bool:
    """Whether less than a share of a mask's voxels have nothing of its outside among their 26 neighbours."""
    found = bounding_box(mask_zyx)
    if found is None:
        return False
    inner = mask_zyx[box_slices(found)].copy()
    whole = int(inner.sum())
    for axis in range(3):
        line = np.moveaxis(inner, axis, 0)
        before = line.copy()
        line[1:] &= before[:-1]
        line[:-1] &= before[1:]
        line[[0, -1]] = False
    return int(inner.sum()) < share * whole


def _taper(n: int) -> Tensor:
    """Weights (1, 1, n, n, n) that fall to nearly nothing towards a tile's faces, where its context is cut."""
    ramp = torch.arange(n, dtype=torch.float32)
    line = (torch.minimum(ramp, n - 1 - ramp) / (n / 4)).clamp(0.02, 1.0)
    return (line[:, None, None] * line[None, :, None] * line[None, None, :])[None, None]


def _cube(origin_zyx: Corner, size_zyx: Corner) -> Tuple[slice, ...]:
    """A part of a (1, 1, z, y, x) tensor."""
    return (slice(None), slice(None), *(slice(int(o), int(o) + int(n)) for o, n in zip(origin_zyx, size_zyx)))
