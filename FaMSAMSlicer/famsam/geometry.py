"""Named coordinate spaces of an image, and the boxes in them.

Spaces:
    ras      patient coordinates in mm: right, anterior, superior (as in 3D Slicer and NIfTI)
    ijk      voxel index in the order (x, y, z), as the columns of ``ras_from_ijk`` have it
    zyx      voxel index in the order of the arrays, (z, y, x): ijk reversed
    canonical zyx
             index into the image's own array, its axes permuted and flipped so that z, y, x run closest to
             superior, anterior, right; nothing is resampled, so an oblique scan stays oblique

A voxel's centre has an integer index, so that an axis of n voxels covers the indices from -0.5 to n - 0.5.
Boxes are half-open, ``((z0, y0, x0), (z1, y1, x1))``: the voxels z0 <= z < z1 and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .errors import VolumeError

Index3 = Tuple[int, int, int]
Box = Tuple[Index3, Index3]

_SMALLEST_DETERMINANT = 1e-4  # of the unit axis directions: 1 for perpendicular axes, 0 for axes in one plane


@dataclass(frozen=True, eq=False)
class Grid:
    """Where an image's voxels lie in the patient. Oblique, left-handed and sheared (gantry tilt) grids are fine.

    Attributes:
        size_zyx: voxels along each array axis.
        ras_from_ijk: (4, 4) float64, homogeneous; (x, y, z) index -> RAS mm.

    Raises:
        VolumeError: the size is not three positive numbers, or the matrix is not finite, affine and invertible.
    """

    size_zyx: Index3
    ras_from_ijk: NDArray[np.float64]

    def __post_init__(self) -> None:
        size = tuple(int(n) for n in self.size_zyx)
        if len(size) != 3 or min(size) < 1:
            raise VolumeError(f"an image needs three axes of at least one voxel each; its size (z, y, x) is {size}")
        try:
            matrix = np.array(self.ras_from_ijk, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise VolumeError(f"ras_from_ijk is not a 4x4 matrix of numbers: {error}") from error
        if matrix.shape != (4, 4):
            raise VolumeError(f"ras_from_ijk must be a 4x4 matrix (index x, y, z -> RAS mm), got shape {matrix.shape}")
        if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise VolumeError(f"ras_from_ijk must be finite with 0 0 0 1 as its last row, got {_text(matrix)}")
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        if spacing.min() <= 0 or abs(np.linalg.det(matrix[:3, :3] / spacing)) < _SMALLEST_DETERMINANT:
            raise VolumeError(
                f"ras_from_ijk is singular: two of its axes coincide or have no length, got {_text(matrix)}; "
                "the image's header is damaged"
            )
        matrix.flags.writeable = False
        object.__setattr__(self, "size_zyx", size)
        object.__setattr__(self, "ras_from_ijk", matrix)

    @cached_property
    def ijk_from_ras(self) -> NDArray[np.float64]:
        """(4, 4) float64; RAS mm -> (x, y, z) index."""
        return np.asarray(np.linalg.inv(self.ras_from_ijk), np.float64)

    @cached_property
    def spacing_xyz_mm(self) -> NDArray[np.float64]:
        """(3,) distance of neighbouring voxel centres along x, y, z."""
        return np.asarray(np.linalg.norm(self.ras_from_ijk[:3, :3], axis=0), np.float64)

    @property
    def spacing_zyx_mm(self) -> NDArray[np.float64]:
        """(3,) the same in the order of the array's axes."""
        return self.spacing_xyz_mm[::-1]

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres; on a sheared grid less than the product of the spacings."""
        return abs(float(np.linalg.det(self.ras_from_ijk[:3, :3]))) / 1000

    @property
    def extent_mm_xyz(self) -> NDArray[np.float64]:
        """(3,) length of the image along x, y, z, from outer face to outer face."""
        return self.spacing_xyz_mm * self.size_zyx[::-1]

    @property
    def corners_ras_mm(self) -> NDArray[np.float64]:
        """(8, 3) centres of the eight corner voxels."""
        last = np.array(self.size_zyx) - 1
        return self.ras_from_zyx_points(np.array(list(np.ndindex(2, 2, 2))) * last)

    def ras_from_zyx_points(self, points_zyx: Any) -> NDArray[np.float64]:
        """(N, 3) or (3,) index (z, y, x), whole or not -> RAS mm of the same shape."""
        points = np.asarray(points_zyx, dtype=np.float64)[..., ::-1]
        return points @ self.ras_from_ijk[:3, :3].T + self.ras_from_ijk[:3, 3]

    def zyx_from_ras_points(self, points_ras_mm: Any) -> NDArray[np.float64]:
        """(N, 3) or (3,) RAS mm -> float index (z, y, x) of the same shape."""
        points = np.asarray(points_ras_mm, dtype=np.float64)
        return (points @ self.ijk_from_ras[:3, :3].T + self.ijk_from_ras[:3, 3])[..., ::-1]

    def contains_zyx(self, point_zyx: Any, margin: float = 0.5) -> bool:
        """Whether an index (z, y, x) lies at most ``margin`` voxels beyond the outer voxels' centres."""
        point = np.asarray(point_zyx, dtype=np.float64)
        return bool(np.all((point >= -margin) & (point <= np.array(self.size_zyx) - 1 + margin)))

    def matches(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both have the same size and their corner voxels lie within the tolerance of each other."""
        if self.size_zyx != other.size_zyx:
            return False
        return bool(np.abs(self.corners_ras_mm - other.corners_ras_mm).max() <= tolerance_mm)

    def __str__(self) -> str:
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing_xyz_mm)
        size = " x ".join(str(n) for n in self.size_zyx[::-1])
        return f"{size} voxels (x, y, z) of {spacing} mm, ras_from_ijk {_text(self.ras_from_ijk)}"


class CanonicalFrame:
    """An image's own axes, permuted and flipped to run closest to right, anterior and superior.

    Attributes:
        native: the grid as stored.
        grid: the canonical grid; its array axes z, y, x run closest to superior, anterior, right.
    """

    def __init__(self, native: Grid) -> None:
        self.native = native
        # Which native ijk axis serves as x, y, z, and whether backwards: the choice with the largest sum of cosines.
        cosines = native.ras_from_ijk[:3, :3] / native.spacing_xyz_mm
        rows = [0, 1, 2]
        sources_ijk = max(permutations(rows), key=lambda columns: np.abs(cosines[rows, columns]).sum())
        flips_ijk = cosines[rows, sources_ijk] < 0
        # The same for array axes: canonical axis k is native axis ``_axes[k]``, read backwards if ``_flips[k]``.
        self._axes: Tuple[int, ...] = tuple(2 - a for a in sources_ijk[::-1])
        self._flips: Tuple[bool, ...] = tuple(bool(f) for f in flips_ijk[::-1])

        size_zyx = (native.size_zyx[self._axes[0]], native.size_zyx[self._axes[1]], native.size_zyx[self._axes[2]])
        native_from_canonical = np.zeros((4, 4))
        native_from_canonical[3, 3] = 1
        for canonical, (source, flip) in enumerate(zip(sources_ijk, flips_ijk)):
            native_from_canonical[source, canonical] = -1 if flip else 1
            native_from_canonical[source, 3] = size_zyx[2 - canonical] - 1 if flip else 0
        self.grid = Grid(size_zyx, native.ras_from_ijk @ native_from_canonical)

    def to_canonical(self, array_zyx: NDArray[Any]) -> NDArray[Any]:
        """An array on the native axes (the image, or a box of it) -> a view of it on the canonical ones."""
        return _flipped(array_zyx.transpose(self._axes), self._flips)

    def from_canonical(self, array_zyx: NDArray[Any]) -> NDArray[Any]:
        """An array on the canonical axes (the image, or a box of it) -> a view of it on the native ones."""
        return _flipped(array_zyx, self._flips).transpose(np.argsort(self._axes))

    def canonical_box(self, box_zyx: Box) -> Box:
        """A half-open box of native indices -> the same voxels in canonical indices."""
        picked = [(box_zyx[0][axis], box_zyx[1][axis]) for axis in self._axes]
        return _box(self._mirror(k, *bounds) for k, bounds in enumerate(picked))

    def native_box(self, box_zyx: Box) -> Box:
        """A half-open box of canonical indices -> the same voxels in native indices."""
        mirrored = [self._mirror(k, low, high) for k, (low, high) in enumerate(zip(*box_zyx))]
        return _box(mirrored[k] for k in np.argsort(self._axes))

    def _mirror(self, axis: int, low: int, high: int) -> Tuple[int, int]:
        size = self.grid.size_zyx[axis]
        return (size - high, size - low) if self._flips[axis] else (low, high)


def bounding_box(mask_zyx: NDArray[Any]) -> Optional[Box]:
    """The smallest box around all voxels that are True (or not zero); None if there are none.

    Takes about 10 ms for 10^8 voxels, also for views with permuted or flipped axes: they are walked as memory has them.
    """
    order, flips, mask = memory_order(mask_zyx)
    slabs = _range(np.any(mask, axis=(1, 2)))
    if slabs is None:
        return None
    plane = np.any(mask[slabs[0] : slabs[1]], axis=0)
    rows, columns = _range(np.any(plane, axis=1)), _range(np.any(plane, axis=0))
    assert rows is not None and columns is not None
    ranges = [
        (size - high, size - low) if flip else (low, high)
        for (low, high), flip, size in zip((slabs, rows, columns), flips, mask.shape)
    ]
    return _box(ranges[k] for k in np.argsort(order))


def memory_order(array_zyx: NDArray[Any]) -> Tuple[Tuple[int, ...], Tuple[bool, ...], NDArray[Any]]:
    """A view of the array in the order in which memory holds it, so that its last axis runs forward and fastest.

    Returns:
        the array's axes in that order; which of them the view reads backwards (in that order as well); the view.
    """
    order = tuple(int(axis) for axis in np.argsort([-abs(stride) for stride in array_zyx.strides], kind="stable"))
    flips = tuple(array_zyx.strides[axis] < 0 for axis in order)
    return order, flips, _flipped(array_zyx.transpose(order), flips)


def union(first: Optional[Box], second: Optional[Box]) -> Optional[Box]:
    """The smallest box around both; None and empty boxes count for nothing."""
    if first is None or is_empty(first):
        return second if second is None or not is_empty(second) else None
    if second is None or is_empty(second):
        return first
    return _box((min(a, c), max(b, d)) for a, b, c, d in zip(*first, *second))


def intersect(first: Box, second: Box) -> Optional[Box]:
    """The voxels in both; None if there are none."""
    box = _box((max(a, c), min(b, d)) for a, b, c, d in zip(*first, *second))
    return None if is_empty(box) else box


def clip(box_zyx: Box, size_zyx: Sequence[int]) -> Optional[Box]:
    """What of the box lies in an image of that size; None if nothing does."""
    return intersect(box_zyx, _box((0, size) for size in size_zyx))


def is_empty(box_zyx: Box) -> bool:
    """Whether the box holds no voxel."""
    return any(high <= low for low, high in zip(*box_zyx))


def box_slices(box_zyx: Box) -> Tuple[slice, slice, slice]:
    """The box as slices: ``array_zyx[box_slices(box_zyx)]``."""
    (z0, y0, x0), (z1, y1, x1) = box_zyx
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def _box(ranges: Any) -> Box:
    (z0, z1), (y0, y1), (x0, x1) = ((int(low), int(high)) for low, high in ranges)
    return (z0, y0, x0), (z1, y1, x1)


def _flipped(array: NDArray[Any], flips: Sequence[bool]) -> NDArray[Any]:
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def _range(flags: NDArray[np.bool_]) -> Optional[Tuple[int, int]]:
    found = np.flatnonzero(flags)
    return (int(found[0]), int(found[-1]) + 1) if found.size else None


def _text(matrix: NDArray[np.float64]) -> str:
    rows = ("[" + ", ".join(f"{value:.6g}" for value in row) + "]" for row in matrix)
    return "[" + ", ".join(rows) + "]"
