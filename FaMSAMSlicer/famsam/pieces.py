"""The connected pieces of a mask, and the one that a point belongs to."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import cc3d
import numpy as np
from numpy.typing import NDArray

from .compact_mask import CompactMask
from .geometry import bounding_box, box_slices


def pieces_of(mask_zyx: NDArray[np.bool_]) -> Tuple[NDArray[Any], int]:
    """The connected pieces of a mask, voxels of a piece touching by a face, an edge or a corner: the number of each
    voxel's piece, 0 for the background, and how many there are."""
    # As bytes: of bools cc3d expects too few pieces to label a mask that is one voxel thin, and raises RuntimeError.
    voxels_zyx = np.ascontiguousarray(mask_zyx).view(np.uint8)
    labels_zyx, count = cc3d.connected_components(voxels_zyx, connectivity=26, return_N=True)
    return labels_zyx, int(count)


def piece_at(
    mask: CompactMask, point_zyx: NDArray[np.float64], spacing_zyx_mm: NDArray[np.float64]
) -> Optional[Tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Bounds (canonical indices, half-open) of the piece of the mask at a point or near it; None if there is none near.

    Near means closer than half the piece's own extent, and than 30 mm.
    """
    if mask.box_zyx is None:
        return None
    size = mask.box_size_zyx
    steps = tuple(max(1, n // 48) for n in size)
    voxels = mask.voxels()[:: steps[0], :: steps[1], :: steps[2]]
    if not voxels.any():
        low, high = (np.array(corner, dtype=float) for corner in mask.box_zyx)
    else:
        origin = np.array(mask.box_zyx[0])
        low, high = bounds_of_piece_nearest(voxels, (point_zyx - origin) / steps, spacing_zyx_mm * steps)
        low, high = low * steps + origin, np.minimum(high * steps + origin, mask.box_zyx[1])
    gap_mm = float((np.maximum(np.maximum(low - point_zyx, point_zyx - (high - 1)), 0) * spacing_zyx_mm).max())
    if gap_mm > min(30.0, 0.5 * float(((high - low) * spacing_zyx_mm).max()) + 3.0):
        return None
    return low, high


def bounds_of_piece_nearest(
    foreground: NDArray[np.bool_], point: NDArray[np.float64], spacing: Optional[NDArray[np.float64]] = None
) -> Tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Half-open bounds of the connected piece that a voxel nearest to the point belongs to."""
    found = bounding_box(foreground)
    assert found is not None  # the callers looked
    low = np.array(found[0])
    pieces, _ = pieces_of(foreground[box_slices(found)])
    index = np.rint(point).astype(int) - low
    label = 0
    if (index >= 0).all() and (index < pieces.shape).all():
        label = int(pieces[tuple(index)])
    if label == 0:
        candidates = np.argwhere(pieces)
        offset = (candidates + low - point) * (1.0 if spacing is None else spacing)
        label = int(pieces[tuple(candidates[np.argmin((offset**2).sum(1))])])
    bounds = bounding_box(pieces == label)
    assert bounds is not None
    return np.array(bounds[0], dtype=float) + low, np.array(bounds[1], dtype=float) + low
