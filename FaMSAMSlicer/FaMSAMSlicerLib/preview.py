"""What a click would give, shown beside the segments without touching them: an outline, and in 3D a surface."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from .engine import Outcome
from .scans import Scan
from .segments import labelmap, labelmap_view

SEGMENT_ID = "preview"
COLOR = (1.0, 0.85, 0.2)
_SURFACE, _SMOOTHING = "Closed surface", "Smoothing factor"


class Preview:
    """A segmentation node of its own, with the outline of one segment; neither listed nor saved."""

    def __init__(self) -> None:
        self._node: Any = None
        self.in_3d = False
        """Whether it is shown in the 3D views as well: making a surface takes a moment."""

    @property
    def node(self) -> Any:
        """The segmentation node, if it is in the scene."""
        return self._node if self._node is not None and self._node.GetScene() is not None else None

    def show(self, outcome: Outcome, scan: Scan, volume_node: Any) -> None:
        """Show the outcome's mask, which lies on the scan's grid."""
        if outcome.mask_zyx.size == 0:
            self.hide()
            return
        node = self.node or self._create()
        parent = volume_node.GetParentTransformNode() if volume_node else None
        if node.GetParentTransformNode() is not parent:
            node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
        low, high = outcome.low_xyz, outcome.low_xyz + np.array(outcome.mask_zyx.shape[::-1]) - 1
        bounds = [int(v) for pair in zip(low, high) for v in pair]
        image = labelmap((bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]), scan.ras_from_ijk)
        labelmap_view(image)[:] = outcome.mask_zyx
        segmentation = node.GetSegmentation()
        segmentation.RemoveAllSegments()
        segment = slicer.vtkSegment()
        segment.SetName("Preview")
        segment.SetColor(*COLOR)
        segment.AddRepresentation("Binary labelmap", image)
        segmentation.AddSegment(segment, SEGMENT_ID)
        if self.in_3d:
            segmentation.CreateRepresentation(_SURFACE, True)
        node.GetDisplayNode().SetVisibility3D(self.in_3d)
        node.GetDisplayNode().SetVisibility(True)

    def hide(self) -> None:
        """Show nothing."""
        if self.node is not None:
            self.node.GetDisplayNode().SetVisibility(False)

    def remove(self) -> None:
        """Take the node away."""
        if self.node is not None:
            display = self.node.GetDisplayNode()
            slicer.mrmlScene.RemoveNode(self.node)
            if display is not None and display.GetScene() is not None:
                slicer.mrmlScene.RemoveNode(display)
        self._node = None

    def _create(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentationNode")
        node.UnRegister(None)
        node.SetName("FaM-SAM preview")
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node.SetSelectable(False)  # else the pointer would hit the preview instead of what is behind it
        node.GetSegmentation().SetConversionParameter(_SMOOTHING, "0.0")  # ten times faster
        slicer.mrmlScene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetVisibility2DFill(False)
        display.SetVisibility2DOutline(True)
        self._node = node
        return node
