"""What a click leaves of a segment that lies on another grid than the scan: all that it has not changed.

The engine sees the segment on the scan's grid. If what it makes of that were written as it is, all of the segment would
have gone there and back: where it is finer than the scan it would lose its detail, where it is tilted its thin parts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np

from .segments import Index3, Part, cropped, dilated, resampled, with_detail, within
from .spaces import integer_shift


def differ(seg_from_ijk: np.ndarray, size_zyx: Index3, matrix: np.ndarray) -> bool:
    """Whether a scan's grid differs from another one, ``matrix``, by more than whole voxels."""
    return integer_shift(np.linalg.inv(matrix) @ seg_from_ijk, size_zyx[::-1]) is None


def refined(found: Part, seen: Part, made: Part, size_zyx: Index3, matrix: np.ndarray) -> List[Part]:
    """A segment with what the engine has changed of it.

    A voxel that has changed counts as far as one voxel around it: so far reaches linear interpolation. What was added
    takes nothing away there, and what was taken away adds nothing.

    Args:
        found: the segment as it was, on its own grid.
        seen: the same as the engine has seen it, a part of the scan's grid.
        made: what the engine has made of that, a part of the scan's grid.
        size_zyx: of the scan's grid.
        matrix: (4, 4) of the wanted grid, in the segmentation's own coordinates.

    Returns:
        parts of the wanted grid, which make up the segment together.
    """
    from famsam.geometry import bounding_box

    kept = with_detail(found, matrix)
    kept = replace(kept, mask_zyx=kept.mask_zyx.copy())
    ends = [end for part in (seen, made) if part.mask_zyx.size for end in (part.low_xyz, part.stop_xyz)]
    box = _grown(np.min(ends, axis=0), np.max(ends, axis=0), size_zyx) if ends else None
    changed = bounding_box(within(seen, *box) ^ within(made, *box)) if box is not None else None
    if changed is None:
        return [kept]
    start, stop = _grown(box[0] + changed[0][::-1], box[0] + changed[1][::-1], size_zyx)
    before, after = within(seen, start, stop), within(made, start, stop)
    near_added, near_taken = (
        Part(*resampled(dilated(where), made.seg_from_ijk, start, matrix, linear=False), matrix)
        for where in (after & ~before, before & ~after)
    )
    close = cropped(made, start - 1, stop + 1)
    new = Part(*resampled(close.mask_zyx, close.seg_from_ijk, close.low_xyz, matrix), matrix)
    there = within(new, near_added.low_xyz, near_added.stop_xyz)
    away = replace(near_taken, mask_zyx=near_taken.mask_zyx & ~there)
    left = cropped(kept, away.low_xyz, away.stop_xyz).mask_zyx
    left &= ~cropped(away, kept.low_xyz, kept.stop_xyz).mask_zyx
    return [kept, replace(near_added, mask_zyx=near_added.mask_zyx & there)]


def _grown(start_xyz: np.ndarray, stop_xyz: np.ndarray, size_zyx: Index3) -> Tuple[np.ndarray, np.ndarray]:
    """A half-open box with one voxel around it, as far as that is in the scan."""
    return np.maximum(start_xyz - 1, 0), np.minimum(stop_xyz + 1, size_zyx[::-1])


def part_to_dict(part: Part) -> Dict[str, Any]:
    """JSON-able form."""
    from famsam.compact_mask import CompactMask

    ends = {"low_xyz": [int(v) for v in part.low_xyz], "seg_from_ijk": part.seg_from_ijk.tolist()}
    return {**CompactMask.of(part.mask_zyx.shape, part.mask_zyx).to_dict(), **ends}


def part_from_dict(state: Mapping[str, Any]) -> Part:
    """Inverse of ``part_to_dict``.

    Raises:
        PromptError: the state is damaged.
    """
    from famsam.compact_mask import CompactMask

    mask = CompactMask.from_dict(dict(state)).dense()
    return Part(mask, np.array(state["low_xyz"]), np.array(state["seg_from_ijk"]))
