"""What is shown over the scan without being part of any segment: the preview of a click, and where the model doubts.

Each is a segmentation node of its own, so that every slice view draws it wherever the scan lies, the layers that the
user has chosen stay as they are, and nothing of the user's is touched. The nodes are neither listed nor saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
import slicer

from .scans import Scan
from .segments import labelmap, labelmap_view
from .translation import tr as _

_SURFACE, _SMOOTHING = "Closed surface", "Smoothing factor"


@dataclass(frozen=True)
class Part:
    """One label of an overlay."""

    segment_id: str
    name: str
    color: Tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """How an overlay looks."""

    name: str
    """Of the node."""
    parts: Tuple[Part, ...]
    """The first is label 1."""
    opacity: float
    """0 for outlines only; else areas only."""


PREVIEW = Look("FaM-SAM preview", (Part("preview", _("Preview"), (1.0, 0.85, 0.2)),), opacity=0.0)
DOUBT = Look(
    "FaM-SAM doubt",
    (
        Part("outside", _("May belong to it"), (1.0, 0.85, 0.2)),
        Part("inside", _("May not belong to it"), (1.0, 0.35, 0.1)),
    ),
    opacity=0.6,
)


class Overlay:
    """Labels over a scan; the node is made when it is first shown."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._node: Any = None
        self.in_3d = False
        """Whether it is shown in the 3D views as well: making a surface takes a moment."""

    @property
    def node(self) -> Any:
        """The segmentation node, if it is in the scene."""
        return self._node if self._node is not None and self._node.GetScene() is not None else None

    def show(self, labels_zyx: np.ndarray, low_xyz: np.ndarray, scan: Scan, volume_node: Any) -> None:
        """Show labels on a part of the scan's grid.

        Args:
            labels_zyx: (z, y, x), 0 for nothing, n for the n-th part of the look.
            low_xyz: (3,) index of the first voxel in the scan.
            scan: whose grid it is.
            volume_node: the scan's, whose parent transform it shares.
        """
        if labels_zyx.size == 0:
            self.hide()
            return
        node = self.node or self._create()
        parent = volume_node.GetParentTransformNode() if volume_node else None
        if node.GetParentTransformNode() is not parent:
            node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
        low, high = low_xyz, low_xyz + np.array(labels_zyx.shape[::-1]) - 1
        bounds = [int(v) for pair in zip(low, high) for v in pair]
        image = labelmap((bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]), scan.ras_from_ijk)
        labelmap_view(image)[:] = labels_zyx
        segmentation = node.GetSegmentation()
        segmentation.RemoveAllSegments()
        for number, part in enumerate(self._look.parts, start=1):
            segment = slicer.vtkSegment()
            segment.SetName(part.name)
            segment.SetColor(*part.color)
            segment.SetLabelValue(number)
            segment.AddRepresentation("Binary labelmap", image)
            segmentation.AddSegment(segment, part.segment_id)
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
        node.SetName(self._look.name)
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node.SetSelectable(False)  # else the pointer would hit it instead of what is behind it
        node.GetSegmentation().SetConversionParameter(_SMOOTHING, "0.0")  # ten times faster
        slicer.mrmlScene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetVisibility2DFill(self._look.opacity > 0)
        display.SetVisibility2DOutline(self._look.opacity == 0)
        display.SetOpacity2DFill(self._look.opacity)
        self._node = node
        return node
