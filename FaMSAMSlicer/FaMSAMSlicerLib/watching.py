"""What is selected in a Segment Editor changes, or something changes it: undo, redo, another tool, a transform."""

from __future__ import annotations

from typing import Any, Callable, List

import slicer
import vtk

_OF_SEGMENTATIONS = (
    slicer.vtkSegmentation.SegmentModified,
    slicer.vtkSegmentation.SegmentRemoved,
    slicer.vtkSegmentation.SourceRepresentationModified,
    slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
)


class Watch:
    """Tells of every such change, until ``stop``.

    Args:
        editor_node: the ``vtkMRMLSegmentEditorNode``.
        changed: called without arguments.
    """

    def __init__(self, editor_node: Any, changed: Callable[[], None]) -> None:
        self._editor_node, self._changed = editor_node, changed
        self._editor_tag = editor_node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._call)
        self._segmentation: Any = None
        self._tags: List[int] = []
        self._follow(editor_node.GetSegmentationNode())

    def stop(self) -> None:
        """Observe nothing any more."""
        self._editor_node.RemoveObserver(self._editor_tag)
        self._follow(None)

    def _follow(self, segmentation: Any) -> None:
        if segmentation is self._segmentation:
            return
        for tag in self._tags:
            self._segmentation.RemoveObserver(tag)
        events = () if segmentation is None else _OF_SEGMENTATIONS
        self._segmentation, self._tags = segmentation, [segmentation.AddObserver(event, self._call) for event in events]

    def _call(self, caller: Any, event: str) -> None:
        self._follow(self._editor_node.GetSegmentationNode())
        self._changed()
