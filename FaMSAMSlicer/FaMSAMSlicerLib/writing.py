"""Results into segments: by the Segment Editor only, so that its masking, overwrite modes and undo hold."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Sequence

import numpy as np
import slicer

from .asking import Question, grid_of, place_of
from .engine import Outcome
from .prompts import SegmentState, moved, write_state
from .segments import Part, is_on_grid_of, mask_print, modifier_labelmap, segment_beyond


def write_outcome(effect: Any, question: Question, outcome: Outcome, segment: Any) -> None:
    """The mask, and with it the prompts that made it. What of the segment lies outside of the scan stays as it is."""
    asked, scan = question.asked, question.request.scan
    seg_from_scan = np.linalg.inv(question.scan_from_seg)
    seg_from_ijk = seg_from_scan @ scan.ras_from_ijk
    beyond = segment_beyond(segment, seg_from_ijk, scan.voxels_zyx.shape)
    parts = [Part(outcome.mask_zyx, outcome.low_xyz, seg_from_ijk), *([beyond] if beyond is not None else [])]
    _write(effect, asked.node, asked.segment_id, parts)
    base = None if outcome.base is None else {**outcome.base, "image": grid_of(scan)}
    prompts = moved(outcome.prompts, seg_from_scan)
    place = place_of(segment, scan, question.scan_from_seg)
    write_state(segment, SegmentState(prompts, base, outcome.token, mask_print(segment), outcome.quality, place))


def write_nothing(effect: Any, node: Any, segment_id: str, segment: Any) -> None:
    """No mask and no prompts."""
    _write(effect, node, segment_id, [])
    write_state(segment, SegmentState())


def _write(effect: Any, node: Any, segment_id: str, parts: Sequence[Part]) -> None:
    with _selected(effect.parameterSetNode(), node, segment_id):
        reference, modes = effect.referenceGeometryImage(), slicer.qSlicerSegmentEditorAbstractEffect
        if not is_on_grid_of(reference, node.GetSegmentation().GetSegment(segment_id)):
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
