"""Results into segments: by the Segment Editor only, so that its masking, overwrite modes and undo hold."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Sequence

import numpy as np
import slicer

from .asking import Question, grid_of, place_of
from .detail import differ, part_from_dict, part_to_dict, refined
from .engine import Outcome
from .prompts import SegmentState, moved, read_state, write_state
from .scans import Scan
from .segments import Part, image_matrix, is_on_grid_of, mask_print, modifier_labelmap, segment_beyond, with_detail


def write_outcome(effect: Any, question: Question, outcome: Outcome, segment: Any) -> None:
    """The mask, and with it the prompts that made it.

    What of the segment lies outside of the scan stays as it is; on another grid than the scan's, all of it that the
    prompts have not changed.
    """
    asked, scan = question.asked, question.request.scan
    size_zyx = scan.voxels_zyx.shape
    seg_from_scan = np.linalg.inv(question.scan_from_seg)
    seg_from_ijk = seg_from_scan @ scan.ras_from_ijk
    made = Part(outcome.mask_zyx, outcome.low_xyz, seg_from_ijk)
    with _selected(effect.parameterSetNode(), asked.node, asked.segment_id):
        reference = effect.referenceGeometryImage()
        matrix = image_matrix(reference)
        found = _found(question, segment, seg_from_ijk) if differ(seg_from_ijk, size_zyx, matrix) else None
        if found is not None:
            parts = refined(found.part, found.seen, made, size_zyx, matrix)
        else:
            beyond = segment_beyond(segment, seg_from_ijk, size_zyx)
            parts = [made, *([beyond] if beyond is not None else [])]
        _replace(effect, segment, parts, reference)
    base = None if outcome.base is None else {**outcome.base, "image": grid_of(scan)}
    if base is not None and found is not None:
        base["found"], base["image"] = found.state, found.image
    prompts = moved(outcome.prompts, seg_from_scan)
    place = place_of(segment, scan, question.scan_from_seg)
    write_state(segment, SegmentState(prompts, base, outcome.token, mask_print(segment), outcome.quality, place))


def write_nothing(effect: Any, node: Any, segment_id: str, segment: Any) -> None:
    """No mask and no prompts."""
    with _selected(effect.parameterSetNode(), node, segment_id):
        _replace(effect, segment, [], effect.referenceGeometryImage())
    write_state(segment, SegmentState())


@dataclass(frozen=True, eq=False)
class _Found:
    """A segment as its prompts have found it."""

    part: Part
    """On its own grid."""
    seen: Part
    """What of it the engine has seen, on the scan's."""
    state: Dict[str, Any]
    """``part`` as the segment's tag has it."""
    image: Dict[str, Any]
    """``grid_of`` the scan then: what a file has rounded since would not give the same ``seen``."""


def _found(question: Question, segment: Any, seg_from_ijk: np.ndarray) -> Optional[_Found]:
    """None if that was nothing in the scan, or if its prompts have begun from something else since."""
    start, scan = question.request.start, question.request.scan
    if any(step.verb == "take" for step in question.asked.steps):
        return None
    if question.found is not None and start.mask is not None:
        mask_zyx, low_zyx = start.mask
        seen = Part(mask_zyx, np.array(low_zyx[::-1]), seg_from_ijk)
        found = _Found(question.found, seen, part_to_dict(question.found), grid_of(scan))
    else:
        base = read_state(segment).base
        if start.base is None or base is None or "found" not in base:
            return None
        part, then_from_ijk = part_from_dict(base["found"]), np.array(base["image"]["ras_from_ijk"])
        seg_from_ijk = np.linalg.inv(question.scan_from_seg) @ then_from_ijk
        known = _seen.get(_key(base["found"], scan, seg_from_ijk))
        seen = known if known is not None else with_detail(part, seg_from_ijk, scan.voxels_zyx.shape)
        found = _Found(part, seen, base["found"], base["image"])
    _seen.clear()
    _seen[_key(found.state, scan, seg_from_ijk)] = found.seen
    return found


_seen: Dict[Any, Part] = {}
"""The last one, for the next click."""


def _key(state: Dict[str, Any], scan: Scan, seg_from_ijk: np.ndarray) -> Any:
    return str(state), scan.voxels_zyx.shape, seg_from_ijk.tobytes()


def _replace(effect: Any, segment: Any, parts: Sequence[Part], reference: Any) -> None:
    """Of the selected segment."""
    modes = slicer.qSlicerSegmentEditorAbstractEffect
    if not is_on_grid_of(reference, segment):
        # Slicer takes a segment that was copied from elsewhere to this grid, but fails to replace it by the way
        effect.modifySelectedSegmentByLabelmap(modifier_labelmap([], reference), modes.ModificationModeAdd)
    effect.modifySelectedSegmentByLabelmap(modifier_labelmap(parts, reference), modes.ModificationModeSet)


@contextmanager
def _selected(editor_node: Any, node: Any, segment_id: str) -> Iterator[None]:
    """Have a segment count as the selected one, without telling: geometry and editable area are those of that one.

    It may be another one, selected while this was computed.
    """
    selected = editor_node.GetSegmentationNode(), editor_node.GetSelectedSegmentID()
    if (node, segment_id) == selected:
        yield
        return
    was_silent = editor_node.GetDisableModifiedEvent()
    editor_node.SetDisableModifiedEvent(1)
    _select(editor_node, node, segment_id)
    try:
        yield
    finally:
        _select(editor_node, *selected)
        editor_node.SetDisableModifiedEvent(was_silent)


def _select(editor_node: Any, node: Any, segment_id: Any) -> None:
    editor_node.SetAndObserveSegmentationNode(node)
    editor_node.SetSelectedSegmentID(segment_id)
