"""From a loaded scan to the first click: choose or make what is needed."""

from __future__ import annotations

from typing import Any

import slicer
from famsam.errors import VolumeError

from .scans import scan_of


def prepare(editor_node: Any, shown_volume: Any = None) -> None:
    """Give a Segment Editor a volume, a segmentation and a segment, as far as it has none.

    Args:
        editor_node: the ``vtkMRMLSegmentEditorNode``.
        shown_volume: the volume in the slice views, taken if none is chosen.

    Raises:
        VolumeError: there is no usable volume.
    """
    volume = editor_node.GetSourceVolumeNode() or shown_volume or _only_volume()
    if volume is None:
        raise VolumeError("Load a scan first (drag it into this window, or use the sample data), then start.")
    scan_of(volume)
    segmentation = editor_node.GetSegmentationNode()
    if segmentation is None:
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{volume.GetName()} segmentation")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        editor_node.SetAndObserveSegmentationNode(segmentation)
    editor_node.SetAndObserveSourceVolumeNode(volume)
    segments = segmentation.GetSegmentation()
    if segments.GetNumberOfSegments() == 0:
        editor_node.SetSelectedSegmentID(segments.AddEmptySegment())
    elif not editor_node.GetSelectedSegmentID():
        editor_node.SetSelectedSegmentID(segments.GetNthSegmentID(0))


def _only_volume() -> Any:
    volumes = slicer.mrmlScene.GetNodesByClass("vtkMRMLScalarVolumeNode")
    volumes.UnRegister(None)
    return volumes.GetItemAsObject(0) if volumes.GetNumberOfItems() == 1 else None
