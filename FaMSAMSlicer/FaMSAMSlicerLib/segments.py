"""Masks between the engine's grid and Slicer's segments."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
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
    key = _version(segment)
    if key not in _prints:
        if len(_prints) >= _PRINTS_KEPT:
            del _prints[next(iter(_prints))]
        _prints[key] = _print_of(labelmap_view(image) == segment.GetLabelValue())
    return _prints[key]


_prints: Dict[Tuple[int, ...], Tuple[str, Any]] = {}
_PRINTS_KEPT = 64


def _version(segment: Any) -> Tuple[int, ...]:
    """Of a segment's voxels: no two states of any two images have one modification time in VTK."""
    image = segment.GetRepresentation("Binary labelmap")
    return image.GetMTime(), image.GetPointData().GetScalars().GetMTime(), segment.GetLabelValue()


def _print_of(voxels: np.ndarray) -> Tuple[str, Any]:
    """And the box around the mask: (z, y, x) of its first voxel and of that behind its last; None if it is empty."""
    from famsam.geometry import bounding_box, box_slices

    box = bounding_box(voxels)
    if box is None:
        return "", None
    tight = np.ascontiguousarray(voxels[box_slices(box)])
    return "{}x{}x{}-{:08x}".format(*tight.shape, zlib.crc32(np.packbits(tight).tobytes())), box


@dataclass(frozen=True, eq=False)
class Part:
    """A mask that is a part of a grid."""

    mask_zyx: np.ndarray
    """(z, y, x) bool."""
    low_xyz: np.ndarray
    """(3,) index of its first voxel in the grid."""
    seg_from_ijk: np.ndarray
    """(4, 4) of the grid, in the segmentation's own coordinates."""

    @property
    def stop_xyz(self) -> np.ndarray:
        """(3,) index behind its last voxel."""
        return np.asarray(self.low_xyz) + self.mask_zyx.shape[::-1]


def segment_in_scan(segment: Any, seg_from_ijk: np.ndarray, size_zyx: Index3) -> Optional[Tuple[Part, Part]]:
    """A segment's mask on its own grid, as small as it is, and what of it lies in a scan, on the scan's grid.

    None if nothing of it does. See ``with_detail``.
    """
    from famsam.geometry import box_slices

    _text, box = _print_and_box(segment)
    if box is None:
        return None
    image = segment.GetRepresentation("Binary labelmap")
    low_xyz = np.array(image.GetExtent()[::2]) + box[0][::-1]
    part = Part(labelmap_view(image)[box_slices(box)] == segment.GetLabelValue(), low_xyz, image_matrix(image))
    key = _version(segment), seg_from_ijk.tobytes(), size_zyx
    inside = _in_scans.get(key)
    if inside is None:
        inside = with_detail(part, seg_from_ijk, size_zyx)
        _in_scans.clear()
        if not np.may_share_memory(inside.mask_zyx, part.mask_zyx):
            _in_scans[key] = inside
    return (part, inside) if inside.mask_zyx.any() else None


_in_scans: Dict[Any, Part] = {}
"""The last one that had to be interpolated: the click asks for what the previews before it have asked for."""


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
    mask_zyx: np.ndarray, from_matrix: np.ndarray, low_xyz: np.ndarray, to_matrix: np.ndarray, linear: bool = True
) -> Tuple[np.ndarray, np.ndarray]:
    """A mask from one grid to another: copied where the grids agree but for a shift, else interpolated.

    Args:
        mask_zyx: (z, y, x) bool, a part of the first grid.
        from_matrix: (4, 4) index of the first grid -> mm.
        low_xyz: (3,) index of the mask's first voxel.
        to_matrix: (4, 4) index of the second grid -> mm.
        linear: interpolate; otherwise each voxel is what the one of the first grid is that its centre lies in.

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
    return _sampled(mask_zyx, at_corner, low, high + 1, linear), low


def _sampled(
    mask_zyx: np.ndarray, to_from: np.ndarray, start_xyz: np.ndarray, stop_xyz: np.ndarray, linear: bool
) -> np.ndarray:
    """What a mask is in a half-open box of another grid; ``to_from`` takes the mask's indices there."""
    if not mask_zyx.any():
        return np.zeros((stop_xyz - start_xyz)[::-1].astype(int), dtype=bool)
    size_x, size_y, size_z = (int(n) for n in mask_zyx.shape[::-1])
    source = labelmap((-1, size_x, -1, size_y, -1, size_z), to_from)  # what lies around a mask counts at its border
    labelmap_view(source)[1:-1, 1:-1, 1:-1] = mask_zyx * np.uint8(_INSIDE)
    bounds = [int(v) for pair in zip(start_xyz, stop_xyz - 1) for v in pair]
    target = labelmap((bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]), np.eye(4))
    out = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(source, target, out, linear)
    return labelmap_view(out) >= _HALF


def with_detail(part: Part, to_matrix: np.ndarray, size_zyx: Optional[Index3] = None) -> Part:
    """A mask on another grid, as ``resampled`` has it, and nothing of it is left out because it is too fine for that.

    Of what lies farther than a voxel from all that the interpolation leaves, such as a thin line, every voxel counts in
    which there is any.

    Args:
        part: which one.
        to_matrix: (4, 4) of the other grid, in the segmentation's own coordinates.
        size_zyx: of the other grid, where only that is wanted which lies in it.
    """
    mask_zyx, low_xyz = part.mask_zyx, part.low_xyz
    out = Part(*resampled(mask_zyx, part.seg_from_ijk, low_xyz, to_matrix), to_matrix)
    inside = out if size_zyx is None else cropped(out, np.zeros(3, dtype=int), np.array(size_zyx[::-1]))
    if out.mask_zyx is mask_zyx:
        return inside
    near = replace(out, mask_zyx=np.ones_like(out.mask_zyx))
    cropped(near, inside.low_xyz, inside.stop_xyz).mask_zyx[:] = dilated(inside.mask_zyx)
    out_from = _translation(-out.low_xyz) @ np.linalg.inv(to_matrix) @ part.seg_from_ijk @ _translation(low_xyz)
    size_xyz = np.array(mask_zyx.shape[::-1])
    near_zyx = _sampled(near.mask_zyx, np.linalg.inv(out_from), np.zeros(3), size_xyz, linear=False)
    lost_zyx = np.argwhere(mask_zyx & ~near_zyx)
    there = np.rint(lost_zyx[:, ::-1] @ out_from[:3, :3].T + out_from[:3, 3]).astype(int)
    out.mask_zyx[tuple(there.T[::-1])] = True
    return inside


def cropped(part: Part, start_xyz: np.ndarray, stop_xyz: np.ndarray) -> Part:
    """What of a mask lies in a box of its grid, half-open; its voxels are shared."""
    start = np.maximum(part.low_xyz, start_xyz)
    stop = np.maximum(np.minimum(part.stop_xyz, stop_xyz), start)
    return Part(part.mask_zyx[_slices(start - part.low_xyz, stop - part.low_xyz)], start, part.seg_from_ijk)


def within(part: Part, start_xyz: np.ndarray, stop_xyz: np.ndarray) -> np.ndarray:
    """The whole of a box of a mask's grid, half-open: (z, y, x) bool, a new array."""
    out = Part(np.zeros((stop_xyz - start_xyz)[::-1], dtype=bool), start_xyz, part.seg_from_ijk)
    cropped(out, part.low_xyz, part.stop_xyz).mask_zyx[:] = cropped(part, start_xyz, stop_xyz).mask_zyx
    return out.mask_zyx


def dilated(mask_zyx: np.ndarray) -> np.ndarray:
    """With the 26 neighbours of each voxel that is in it, as far as they lie in the array: a new array."""
    out = mask_zyx.copy()
    for axis in range(3):
        line, of = np.moveaxis(out, axis, 0), np.moveaxis(out.copy(), axis, 0)
        line[1:] |= of[:-1]
        line[:-1] |= of[1:]
    return out


def _translation(shift_xyz: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = shift_xyz
    return matrix
