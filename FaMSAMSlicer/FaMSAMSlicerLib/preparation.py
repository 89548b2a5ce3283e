"""From a loaded scan to the first click: choose or make what is needed."""

from __future__ import annotations

from typing import Any, List, Optional

import slicer
from famsam.errors import VolumeError

from .scans import scan_of
from .spaces import Point3
from .translation import tr as _


def prepare(editor_node: Any) -> None:
    """Give a Segment Editor a volume, a segmentation and a segment, as far as it has none.

    Args:
        editor_node: the ``vtkMRMLSegmentEditorNode``.

    Raises:
        VolumeError: there is no usable volume.
    """
    volume = editor_node.GetSourceVolumeNode() or shown_volume()
    if volume is None:
        raise VolumeError(
            _("Load a scan first (drag it into this window, or use the sample data) and show it, then start.")
        )
    scan_of(volume)
    segmentation = editor_node.GetSegmentationNode()
    if segmentation is None:
        name = _("{volume} segmentation").format(volume=volume.GetName())
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
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


def shown_volume() -> Any:
    """The volume in the background of a slice view; else the only one there is, if there is one."""
    for view in _nodes("vtkMRMLSliceCompositeNode"):
        node = slicer.mrmlScene.GetNodeByID(view.GetBackgroundVolumeID() or "")
        if node is not None:
            return node
    volumes = _nodes("vtkMRMLVolumeNode")
    return volumes[0] if len(volumes) == 1 else None


def middle_shown(volume_node: Any) -> Optional[Point3]:
    """World RAS mm of the middle of a slice view that has a volume in its background; None if there is none."""
    for view in _views_of(volume_node):
        width, height, _depth = view.GetDimensions()
        r, a, s, _one = view.GetXYToRAS().MultiplyPoint((width / 2, height / 2, 0.0, 1.0))
        return r, a, s
    return None


def bring_into_view(volume_node: Any, world: Point3) -> None:
    """Have every slice view with a volume in its background show the slice through a place (world RAS mm)."""
    for view in _views_of(volume_node):
        view.JumpSliceByOffsetting(*world)


def _views_of(volume_node: Any) -> List[Any]:
    """The slice views of the present layout that have a volume in their background."""
    layers = [
        node for node in _nodes("vtkMRMLSliceCompositeNode") if node.GetBackgroundVolumeID() == volume_node.GetID()
    ]
    names = {node.GetLayoutName() for node in layers}
    return [v for v in _nodes("vtkMRMLSliceNode") if v.GetLayoutName() in names and v.IsMappedInLayout()]


def _nodes(class_name: str) -> List[Any]:
    return [
        slicer.mrmlScene.GetNthNodeByClass(i, class_name)
        for i in range(slicer.mrmlScene.GetNumberOfNodesByClass(class_name))
    ]
