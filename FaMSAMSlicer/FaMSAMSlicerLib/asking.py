"""From a segment as it is, and what the user did to it, to what the worker is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, Tuple

import numpy as np
from famsam.errors import PromptError

from .engine import ModelChoice, Request, Start, Step
from .prompts import Prompt, SegmentState, moved, read_state, tag_text
from .scans import Scan, scan_of
from .segments import mask_print, segment_on_grid
from .spaces import scan_from_seg, transformed
from .translation import tr as _
from .waiting import Asked


@dataclass(frozen=True, eq=False)
class Question:
    """A request, and where it came from."""

    asked: Asked
    request: Request
    scan_from_seg: np.ndarray
    """(4, 4), the segmentation's own coordinates -> the volume's own."""
    before: Tuple[str, str]
    """``fingerprint`` of the segment when it was asked: if it is another by then, ask again."""


def question(asked: Asked, segment: Any, choice: ModelChoice) -> Question:
    """Raises:
    VolumeError: the volume cannot be used.
    PromptError: a step changes a point that ended when another tool edited the segment.
    """
    scan = scan_of(asked.volume_node)
    to_scan = scan_from_seg(asked.volume_node, asked.node)
    state, before = read_state(segment), fingerprint(segment)
    start = _start(state, before[1], asked, scan, to_scan)
    ended = len(state.prompts) - len(start.prompts)
    steps = [_session_step(step, to_scan, ended) for step in asked.steps]
    return Question(asked, Request(scan, choice, start, steps), to_scan, before)


def fingerprint(segment: Any) -> Tuple[str, str]:
    """The segment's tag and its mask's print: equal as long as nothing has changed either."""
    return tag_text(segment), mask_print(segment)


def grid_of(scan: Scan) -> Dict[str, Any]:
    """The scan's grid as the segment's tag has it beside the mask that the prompts refine."""
    return {"size_zyx": list(scan.voxels_zyx.shape), "ras_from_ijk": scan.ras_from_ijk.tolist()}


def _start(state: SegmentState, printed: str, asked: Asked, scan: Scan, to_scan: np.ndarray) -> Start:
    """The prompts, if the segment is as they made it; else its mask."""
    if printed == state.mask_print and (state.base is None or state.base["image"] == grid_of(scan)):
        prompts = moved(state.prompts, to_scan)
        base = None if state.base is None else {k: v for k, v in state.base.items() if k != "image"}
        if all(_is_usable(prompt, scan) for prompt in prompts):
            return Start(state.token, prompts, base)
    if not printed:
        return Start()
    seg_from_ijk = np.linalg.inv(to_scan) @ scan.ras_from_ijk
    found = segment_on_grid(asked.node, asked.segment_id, seg_from_ijk, scan.voxels_zyx.shape)
    return Start() if found is None else Start(mask=found)


def _is_usable(prompt: Prompt, scan: Scan) -> bool:
    """Whether it is one in this scan too, which may not be the one on which it was given."""
    if prompt["type"] == "point":
        return scan.contains(prompt["ras_mm"])
    return scan.overlaps(prompt["lower_ras_mm"], prompt["upper_ras_mm"])


def _session_step(step: Step, to_scan: np.ndarray, ended: int) -> Step:
    """The step in the scan's coordinates, and numbered without the prompts that ended when the mask was edited."""
    if 0 <= step.index < ended:
        raise PromptError(
            _(
                "The segment has been edited by another tool since that point was placed, so the point cannot be "
                "changed any more. Undo the edit, or click on: new points go on from the segment as it is."
            )
        )
    points = tuple(transformed(to_scan, point) for point in step.points)
    return replace(step, points=points, index=step.index - ended if step.index >= 0 else step.index)
