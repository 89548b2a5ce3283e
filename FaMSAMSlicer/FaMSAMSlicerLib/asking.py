"""From a segment as it is, and what the user did to it, to what the worker is asked."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional, Tuple

import numpy as np
from famsam.errors import PromptError

from .engine import ModelChoice, Request, Start
from .prompts import Place, Prompt, SegmentState, moved, read_state, tag_text
from .scans import Scan, scan_of
from .segments import Part, mask_ends, mask_print, segment_in_scan
from .spaces import integer_shift, scan_from_seg, transformed
from .translation import tr as _
from .waiting import Asked, without_ended


@dataclass(frozen=True, eq=False)
class Question:
    """A request, and where it came from."""

    asked: Asked
    request: Request
    scan_from_seg: np.ndarray
    """(4, 4), the segmentation's own coordinates -> the volume's own."""
    ended: int
    """So many of the segment's prompts, the first ones, end with it, since something else has edited the segment: what
    was done after its steps is numbered with them."""
    found: Optional[Part]
    """The mask to begin from (``Start.mask``), on the segment's own grid."""
    before: Tuple[str, str]
    """``fingerprint`` of the segment when it was asked: if it is another by then, ask again."""


def question(asked: Asked, segment: Any, choice: ModelChoice) -> Question:
    """Raises:
    VolumeError: the volume cannot be used.
    PromptError: all steps change points that ended when another tool edited the segment.
    """
    scan = scan_of(asked.volume_node)
    to_scan = scan_from_seg(asked.volume_node, asked.node)
    state, before = read_state(segment), fingerprint(segment)
    start, found = _start(state, segment, scan, to_scan)
    steps, ended = without_ended(asked.steps, len(state.prompts) - len(start.prompts))
    if not steps:
        raise PromptError(
            _(
                "The segment has been edited by another tool since that point was placed, so the point cannot be "
                "changed any more. Undo the edit, or click on: new points go on from the segment as it is."
            )
        )
    steps = tuple(replace(step, points=tuple(transformed(to_scan, p) for p in step.points)) for step in steps)
    return Question(asked, Request(scan, choice, start, steps), to_scan, ended, found, before)


def fingerprint(segment: Any) -> Tuple[str, str]:
    """The segment's tag and its mask's print: equal as long as nothing has changed either."""
    return tag_text(segment), mask_print(segment)


def grid_of(scan: Scan) -> Dict[str, Any]:
    """The scan's grid as the segment's tag has it beside the mask that the prompts refine."""
    return {"size_zyx": list(scan.voxels_zyx.shape), "ras_from_ijk": scan.ras_from_ijk.tolist()}


def _is_grid_of(scan: Scan, grid: Dict[str, Any]) -> bool:
    """Not to the last bit: files round."""
    if grid["size_zyx"] != list(scan.voxels_zyx.shape):
        return False
    shift = integer_shift(np.linalg.inv(scan.ras_from_ijk) @ grid["ras_from_ijk"], scan.voxels_zyx.shape[::-1])
    return shift is not None and not shift.any()


def place_of(segment: Any, scan: Scan, to_scan: np.ndarray) -> Optional[Place]:
    """Where a segment's mask lies by now; None if it is empty.

    Args:
        segment: which one.
        scan: in which it was found.
        to_scan: (4, 4), the segmentation's own coordinates -> the scan's.
    """
    ends = mask_ends(segment)
    if ends is None:
        return None
    scan_ends = [value for end in ends for value in transformed(to_scan, end)]
    grid = np.append(scan.ras_from_ijk.round(4).ravel() + 0.0, scan.voxels_zyx.shape)  # + 0.0: no -0.0
    return Place(tuple(ends.ravel().tolist()), tuple(scan_ends), f"{zlib.crc32(grid.tobytes()):08x}")


def _is_as_written(state: SegmentState, segment: Any, scan: Scan, to_scan: np.ndarray) -> bool:
    if mask_print(segment) != state.mask_print:
        return False
    place = place_of(segment, scan, to_scan)
    return state.place is None or place is None or state.place.is_still(place)


def _start(state: SegmentState, segment: Any, scan: Scan, to_scan: np.ndarray) -> Tuple[Start, Optional[Part]]:
    """The prompts, if the segment is as they made it; else its mask, and that on its own grid."""
    if (state.base is None or _is_grid_of(scan, state.base["image"])) and _is_as_written(state, segment, scan, to_scan):
        prompts = moved(state.prompts, to_scan)
        base = None if state.base is None else {k: v for k, v in state.base.items() if k not in ("image", "found")}
        if all(_is_usable(prompt, scan) for prompt in prompts):
            return Start(state.token, prompts, base), None
    found = segment_in_scan(segment, np.linalg.inv(to_scan) @ scan.ras_from_ijk, scan.voxels_zyx.shape)
    if found is None:
        return Start(), None
    part, inside = found
    z, y, x = (int(v) for v in inside.low_xyz[::-1])
    return Start(mask=(inside.mask_zyx, (z, y, x))), part


def _is_usable(prompt: Prompt, scan: Scan) -> bool:
    """Whether it is one in this scan too, which may not be the one on which it was given."""
    if prompt["type"] == "point":
        return scan.contains(prompt["ras_mm"])
    return scan.overlaps(prompt["lower_ras_mm"], prompt["upper_ras_mm"])
