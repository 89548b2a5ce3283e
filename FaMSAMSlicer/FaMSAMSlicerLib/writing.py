"""Results into segments: by the Segment Editor only, so that its masking, overwrite modes and undo hold."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

import numpy as np
import slicer

from .asking import Question, grid_of
from .engine import Outcome
from .prompts import SegmentState, moved, write_state
from .segments import mask_print, modifier_labelmap


def write_outcome(effect: Any, question: Question, outcome: Outcome, segment: Any) -> None:
    """The mask, and with it the prompts that made it."""
    asked, scan = question.asked, question.request.scan
    seg_from_scan = np.linalg.inv(question.scan_from_seg)
    reference = effect.referenceGeometryImage()
    labelmap = modifier_labelmap(outcome.mask_zyx, outcome.low_xyz, seg_from_scan @ scan.ras_from_ijk, reference)
    _write(effect, asked.node, asked.segment_id, labelmap)
    base = None if outcome.base is None else {**outcome.base, "image": grid_of(scan)}
    prompts = moved(outcome.prompts, seg_from_scan)
    write_state(segment, SegmentState(prompts, base, outcome.token, mask_print(segment), outcome.quality))


def write_nothing(effect: Any, node: Any, segment_id: str, segment: Any) -> None:
    """No mask and no prompts."""
    reference = effect.referenceGeometryImage()
    nothing = modifier_labelmap(np.zeros((0, 0, 0), bool), np.zeros(3, int), np.eye(4), reference)
    _write(effect, node, segment_id, nothing)
    write_state(segment, SegmentState())


def _write(effect: Any, node: Any, segment_id: str, labelmap: Any) -> None:
    mode = slicer.qSlicerSegmentEditorAbstractEffect.ModificationModeSet
    if segment_id == effect.parameterSetNode().GetSelectedSegmentID():
        effect.modifySelectedSegmentByLabelmap(labelmap, mode)
    else:  # another one was selected while this was computed
        with _selected(effect.parameterSetNode(), segment_id):
            effect.modifySegmentByLabelmap(node, segment_id, labelmap, mode)


@contextmanager
def _selected(editor_node: Any, segment_id: str) -> Iterator[None]:
    """Have a segment count as the selected one, without telling: what is editable depends on which one that is."""
    selected, was_silent = editor_node.GetSelectedSegmentID(), editor_node.GetDisableModifiedEvent()
    editor_node.SetDisableModifiedEvent(1)
    editor_node.SetSelectedSegmentID(segment_id)
    try:
        yield
    finally:
        editor_node.SetSelectedSegmentID(selected)
        editor_node.SetDisableModifiedEvent(was_silent)
