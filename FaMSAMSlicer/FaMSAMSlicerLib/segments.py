"""Masks between the engine's grid and Slicer's segments."""

from __future__ import annotations

import zlib
from typing import Any, Dict, Optional, Tuple

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .spaces import integer_shift, matrix_from_vtk, transformed, vtk_from_matrix

Index3 = Tuple[int, int, int]

_INSIDE = 255
_HALF = 128


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


def modifier_labelmap(mask_zyx: np.ndarray, low_xyz: np.ndarray, seg_from_ijk: np.ndarray, reference: Any) -> Any:
    """The labelmap to hand to ``modifySelectedSegmentByLabelmap``: on the reference grid, as small as the mask.

    A part of the full grid is described by its extent, never by another origin: Slicer's intensity masking needs that.

    Args:
        mask_zyx: (z, y, x) bool, a part of the scan's grid.
        low_xyz: (3,) index of its first voxel in that grid.
        seg_from_ijk: (4, 4) of the scan's grid, in the segmentation's own coordinates.
        reference: the Segment Editor's reference geometry image.
    """
    matrix = image_matrix(reference)
    extent = reference.GetExtent()
    limits_low, limits_high = np.array(extent[::2]), np.array(extent[1::2])
    mask, low = resampled(mask_zyx, seg_from_ijk, np.asarray(low_xyz), matrix)
    start = np.maximum(low, limits_low)
    stop = np.minimum(low + mask.shape[::-1], limits_high + 1)
    if mask.size == 0 or (stop <= start).any():
        corner = [int(v) for v in limits_low]
        return labelmap((corner[0], corner[0], corner[1], corner[1], corner[2], corner[2]), matrix)
    bounds = [int(v) for pair in zip(start, stop - 1) for v in pair]
    image = labelmap((bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]), matrix)
    inside = tuple(slice(int(a - o), int(b - o)) for a, b, o in zip(start[::-1], stop[::-1], low[::-1]))
    labelmap_view(image)[:] = mask[inside]
    return image


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
