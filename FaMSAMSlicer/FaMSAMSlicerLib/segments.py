"""Masks between the engine's grid and Slicer's segments."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .spaces import integer_shift, matrix_from_vtk, transformed, vtk_from_matrix

Index3 = Tuple[int, int, int]

_INSIDE = 255
_HALF = 128
_SAME_GRID = 1e-6
_TOLERANCE = 1e-2
"""Voxels by which a place may seem to be outside of a scan that it is in."""


def labelmap_view(image: Any) -> np.ndarray:
    """The voxels of an image, (z, y, x), shared with it."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def labelmap(extent: Tuple[int, int, int, int, int, int], ras_from_ijk: np.ndarray) -> Any:
    """A uint8 ``vtkOrientedImageData`` of zeros that covers a part (the extent, inclusive) of a grid."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(extent)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.SetImageToWorldMatrix(vtk_from_matrix(ras_from_ijk))
    labelmap_view(image)[:] = 0
    return image


def image_matrix(image: Any) -> np.ndarray:
    """(4, 4): index of a ``vtkOrientedImageData`` -> its coordinates."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return matrix_from_vtk(matrix)


def is_on_grid_of(reference: Any, segment: Any) -> bool:
    """Whether a segment's labelmap, if it has voxels, lies on the grid of a ``vtkOrientedImageData``."""
    image = segment.GetRepresentation("Binary labelmap")
    if image is None or image.GetNumberOfPoints() == 0:
        return True
    return bool(np.allclose(image_matrix(image), image_matrix(reference), rtol=0, atol=_SAME_GRID))


def mask_print(segment: Any) -> str:
    """A short print of the segment's voxels (where exactly the grid begins does not matter); "" if there are none."""
    return _print_and_box(segment)[0]


def mask_ends(segment: Any) -> Optional[np.ndarray]:
    """Where the first and the last voxel of the box around a segment's mask lie: (2, 3), the segmentation's own RAS mm.

    None if the mask is empty.
    """
    _text, box = _print_and_box(segment)
    if box is None:
        return None
    image = segment.GetRepresentation("Binary labelmap")
    first_xyz = np.array(image.GetExtent()[::2])
    (low, high), matrix = box, image_matrix(image)
    return np.array(
        [transformed(matrix, first_xyz + low[::-1]), transformed(matrix, first_xyz + np.array(high[::-1]) - 1)]
    )


def _print_and_box(segment: Any) -> Tuple[str, Any]:
    image = segment.GetRepresentation("Binary labelmap")
    scalars = None if image is None else image.GetPointData().GetScalars()
    if scalars is None or image.GetNumberOfPoints() == 0:
        return "", None
    # No two states of any two images have one modification time in VTK, so that a print is made once for each.
    times, label = (image.GetMTime(), scalars.GetMTime()), segment.GetLabelValue()
    if (times, label) not in _prints:
        if len(_prints) >= _PRINTS_KEPT:
            del _prints[next(iter(_prints))]
        _prints[times, label] = _print_of(labelmap_view(image) == label)
    return _prints[times, label]


_prints: Dict[Tuple[Tuple[int, int], int], Tuple[str, Any]] = {}
_PRINTS_KEPT = 64


def _print_of(voxels: np.ndarray) -> Tuple[str, Any]:
    """And the box around the mask: (z, y, x) of its first voxel and of that behind its last; None if it is empty."""
    from famsam.geometry import bounding_box, box_slices

    box = bounding_box(voxels)
    if box is None:
        return "", None
    tight = np.ascontiguousarray(voxels[box_slices(box)])
    return "{}x{}x{}-{:08x}".format(*tight.shape, zlib.crc32(np.packbits(tight).tobytes())), box


def segment_on_grid(
    segmentation_node: Any, segment_id: str, seg_from_ijk: np.ndarray, size_zyx: Index3
) -> Optional[Tuple[np.ndarray, Index3]]:
    """A segment's mask on a grid.

    Args:
        segmentation_node: where the segment is.
        segment_id: which one.
        seg_from_ijk: (4, 4) of the wanted grid, in the segmentation's own coordinates.
        size_zyx: of the wanted grid.

    Returns:
        (z, y, x) bool, a part of the grid that holds all of it, and the index of its first voxel; None if the segment
        is empty there.
    """
    from famsam.geometry import bounding_box, box_slices

    source = slicer.vtkOrientedImageData()
    if not segmentation_node.GetBinaryLabelmapRepresentation(segment_id, source):
        return None
    if source.GetPointData().GetScalars() is None or source.GetNumberOfPoints() == 0:
        return None
    voxels = labelmap_view(source) != 0
    box = bounding_box(voxels)
    if box is None:
        return None
    first_xyz = np.array(source.GetExtent()[::2])
    mask, low = resampled(voxels[box_slices(box)], image_matrix(source), first_xyz + box[0][::-1], seg_from_ijk)
    low_zyx = low[::-1]
    start = np.maximum(low_zyx, 0)
    stop = np.minimum(low_zyx + mask.shape, size_zyx)
    if (stop <= start).any():
        return None
    part = mask[tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, low_zyx))]
    z, y, x = (int(v) for v in start)
    return (part, (z, y, x)) if part.any() else None


@dataclass(frozen=True, eq=False)
class Part:
    """A mask that is a part of a grid."""

    mask_zyx: np.ndarray
    """(z, y, x) bool."""
    low_xyz: np.ndarray
    """(3,) index of its first voxel in the grid."""
    seg_from_ijk: np.ndarray
    """(4, 4) of the grid, in the segmentation's own coordinates."""


def segment_beyond(segment: Any, seg_from_ijk: np.ndarray, size_zyx: Index3) -> Optional[Part]:
    """What of a segment lies outside of a scan.

    Args:
        segment: which one.
        seg_from_ijk: (4, 4) of the scan's grid, in the segmentation's own coordinates.
        size_zyx: of the scan's grid.

    Returns:
        a part of the segment's own grid; None if there is nothing.
    """
    from famsam.geometry import box_slices

    _text, box = _print_and_box(segment)
    if box is None:
        return None
    image = segment.GetRepresentation("Binary labelmap")
    low_xyz, high_xyz = np.array(box[0][::-1]), np.array(box[1][::-1])
    first_xyz, matrix = np.array(image.GetExtent()[::2]) + low_xyz, image_matrix(image)
    scan_from_part = np.linalg.inv(seg_from_ijk) @ matrix @ _translation(first_xyz)

    def is_outside(x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        outside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
        for (by_x, by_y, by_z, start), count in zip(scan_from_part[:3], size_zyx[::-1]):
            index = by_x * x + by_y * y + (by_z * z + start)
            outside |= (index < -0.5 - _TOLERANCE) | (index > count - 0.5 + _TOLERANCE)
        return outside

    size_x, size_y, size_z = (int(n) for n in high_xyz - low_xyz)
    ends_x, ends_y = np.array([0, size_x - 1]), np.array([[0], [size_y - 1]])
    if not any(is_outside(ends_x, ends_y, z).any() for z in (0, size_z - 1)):
        return None
    mask_zyx = labelmap_view(image)[box_slices(box)] == segment.GetLabelValue()
    x, y = np.arange(size_x), np.arange(size_y)[:, None]
    for z, slice_yx in enumerate(mask_zyx):
        slice_yx &= is_outside(x, y, z)
    return Part(mask_zyx, first_xyz, matrix) if mask_zyx.any() else None


def modifier_labelmap(parts: Sequence[Part], reference: Any) -> Any:
    """The labelmap to hand to ``modifySelectedSegmentByLabelmap``: on the reference grid, as small as what is in it.

    A part of the full grid is described by its extent, never by another origin: Slicer's intensity masking needs that.

    Args:
        parts: what is in it.
        reference: the Segment Editor's reference geometry image.
    """
    matrix = image_matrix(reference)
    extent = reference.GetExtent()
    limits_low, limits_high = np.array(extent[::2]), np.array(extent[1::2])
    found = []
    for part in parts:
        mask, low = resampled(part.mask_zyx, part.seg_from_ijk, np.asarray(part.low_xyz), matrix)
        start, stop = np.maximum(low, limits_low), np.minimum(low + mask.shape[::-1], limits_high + 1)
        if mask.size and (stop > start).all():
            found.append((start, stop, mask[_slices(start - low, stop - low)]))
    low = np.min([start for start, _stop, _mask in found], axis=0) if found else limits_low
    high = np.max([stop for _start, stop, _mask in found], axis=0) - 1 if found else limits_low
    bounds = [int(v) for pair in zip(low, high) for v in pair]
    image = labelmap((bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]), matrix)
    for start, stop, mask in found:
        labelmap_view(image)[_slices(start - low, stop - low)] |= mask
    return image


def _slices(start_xyz: np.ndarray, stop_xyz: np.ndarray) -> Tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(start_xyz[::-1], stop_xyz[::-1]))


def resampled(
    mask_zyx: np.ndarray, from_matrix: np.ndarray, low_xyz: np.ndarray, to_matrix: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """A mask from one grid to another: copied where the grids agree but for a shift, else linearly interpolated.

    Args:
        mask_zyx: (z, y, x) bool, a part of the first grid.
        from_matrix: (4, 4) index of the first grid -> mm.
        low_xyz: (3,) index of the mask's first voxel.
        to_matrix: (4, 4) index of the second grid -> mm.

    Returns:
        the mask, a part of the second grid, and the index (x, y, z) of its first voxel there.
    """
    to_from = np.linalg.inv(to_matrix) @ from_matrix
    size_xyz = np.array(mask_zyx.shape[::-1])
    if mask_zyx.size == 0:
        return mask_zyx, np.zeros(3, dtype=int)
    at_corner = to_from @ _translation(low_xyz)
    shift = integer_shift(at_corner, size_xyz.tolist())
    if shift is not None:
        return mask_zyx, shift
    corners = np.array(list(np.ndindex(2, 2, 2))) * size_xyz - 0.5
    there = corners @ at_corner[:3, :3].T + at_corner[:3, 3]
    low = np.floor(there.min(0)).astype(int) - 1
    high = np.ceil(there.max(0)).astype(int) + 1
    source = labelmap((0, int(size_xyz[0]) - 1, 0, int(size_xyz[1]) - 1, 0, int(size_xyz[2]) - 1), at_corner)
    labelmap_view(source)[:] = mask_zyx * np.uint8(_INSIDE)
    bounds = [int(v) for pair in zip(low, high) for v in pair]
    target = labelmap((bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]), np.eye(4))
    out = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(source, target, out, True)
    return labelmap_view(out) >= _HALF, low


def _translation(shift_xyz: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = shift_xyz
    return matrix
