"""The prompts as control points in the slice and 3D views: shown, dragged and deleted there.

The node only mirrors a segment's tag. It lies under the segmentation's transform, so that its own coordinates are the
segmentation's; it is not saved, and not listed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, Tuple

import numpy as np
import slicer
import vtk

from .prompts import Prompts
from .spaces import Point3

POSITIVE_COLOR = (0.2, 0.85, 0.35)
NEGATIVE_COLOR = (0.95, 0.25, 0.2)
_SAME_MM = 1e-4


class PointsView:
    """Positive points are the "selected" ones, so that one node shows both colours in the prompts' order.

    Args:
        on_moved: called with the point's number and its new position.
        on_removed: called with the number of a point that the user deleted.
        on_cleared: called when the user deleted all of them at once.
        on_dragged: called when a drag has ended, to ``show`` where the prompts are: a move may have been refused, or
            all points dragged at once, which moves no prompt.
    """

    def __init__(
        self,
        on_moved: Callable[[int, Point3], None],
        on_removed: Callable[[int], None],
        on_cleared: Callable[[], None],
        on_dragged: Callable[[], None],
    ) -> None:
        self._on_moved, self._on_removed, self._on_cleared = on_moved, on_removed, on_cleared
        self._on_dragged = on_dragged
        self.is_button_down: Callable[[], bool] = lambda: True
        """Whether a button of the mouse is pressed; what begins without one, by a key, has no end."""
        self.on_menu: Callable[[], None] = lambda: None
        """Called when the user right-clicks a point, the hovered one; Slicer has no menu for nodes it does not list."""
        self._node: Any = None
        self._observations: List[Tuple[Any, int]] = []
        self._updating = False
        self.dragging = False
        self.drags = 0
        """Drags begun so far, so that what belongs to one of them is one step for undo."""
        self._visible = True

    @property
    def node(self) -> Any:
        """The markups node, if it is in the scene."""
        return self._node if self._node is not None and self._node.GetScene() is not None else None

    @property
    def visible(self) -> bool:
        return self._visible

    @visible.setter
    def visible(self, visible: bool) -> None:
        self._visible = visible
        if self.node is not None:
            self.node.GetDisplayNode().SetVisibility(visible)

    @property
    def hovered(self) -> bool:
        """Whether the pointer is on a point, so that a press there is for the point and no new click."""
        return self.hovered_index is not None

    @property
    def hovered_index(self) -> Optional[int]:
        """The number of the point under the pointer."""
        if self.node is None or not self._visible:
            return None
        display = self.node.GetDisplayNode()
        on_point = display.GetActiveComponentType() == slicer.vtkMRMLMarkupsDisplayNode.ComponentControlPoint
        return int(display.GetActiveComponentIndex()) if on_point else None

    def delete(self, index: int) -> None:
        """As if the user had deleted that point in a view."""
        if self.node is not None and 0 <= index < self.node.GetNumberOfControlPoints():
            self.node.RemoveNthControlPoint(index)

    def show(self, prompts: Prompts, segmentation_node: Any) -> None:
        """Mirror these prompts, which are in the segmentation's own coordinates."""
        points = [prompt for prompt in prompts if prompt["type"] == "point"]
        if self.node is None and not points:
            return
        node = self.node or self._create()
        self._updating = True
        changed = node.StartModify()
        try:
            parent = segmentation_node.GetParentTransformNode() if segmentation_node else None
            if node.GetParentTransformNode() is not parent:
                node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
            while node.GetNumberOfControlPoints() > len(points):
                node.RemoveNthControlPoint(node.GetNumberOfControlPoints() - 1)
            for index, point in enumerate(points):
                self._place(node, index, point)
        finally:
            node.EndModify(changed)
            self._updating = False

    def remove(self) -> None:
        """Take the node and its observers away."""
        for observed, tag in self._observations:
            observed.RemoveObserver(tag)
        if self.node is not None:
            display = self.node.GetDisplayNode()
            self.node.GetScene().RemoveNode(self.node)
            if display is not None and display.GetScene() is not None:
                display.GetScene().RemoveNode(display)
        self._node, self._observations, self.dragging = None, [], False

    def _create(self) -> Any:
        self.remove()
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLMarkupsFiducialNode")
        node.UnRegister(None)
        node.SetName("FaM-SAM points")
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        with _what_is_placed_kept():
            slicer.mrmlScene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetSelectedColor(*POSITIVE_COLOR)
        display.SetColor(*NEGATIVE_COLOR)
        display.SetPointLabelsVisibility(False)
        display.SetOccludedVisibility(True)
        display.SetOccludedOpacity(0.3)
        display.SetVisibility(self._visible)
        events = {
            node.PointModifiedEvent: self._moved,
            node.PointRemovedEvent: self._removed,
            node.PointStartInteractionEvent: self._drag_started,
            node.PointEndInteractionEvent: self._drag_ended,
        }
        self._observations = [(node, _observe(node, event, method)) for event, method in events.items()]
        menu_tag = display.AddObserver(display.MenuEvent, lambda caller, event: self.on_menu())
        self._observations.append((display, menu_tag))
        self._node = node
        return node

    def _place(self, node: Any, index: int, point: Any) -> None:
        position = [float(v) for v in point["ras_mm"]]
        if index >= node.GetNumberOfControlPoints():
            node.AddControlPoint(vtk.vtkVector3d(position))
        elif not self.dragging:
            there = [0.0, 0.0, 0.0]
            node.GetNthControlPointPosition(index, there)
            if np.abs(np.subtract(there, position)).max() > _SAME_MM:
                node.SetNthControlPointPosition(index, position)
        if bool(node.GetNthControlPointSelected(index)) != point["positive"]:
            node.SetNthControlPointSelected(index, point["positive"])

    def _moved(self, index: Optional[int]) -> None:
        if self._updating or index is None:
            return
        position = [0.0, 0.0, 0.0]
        self._node.GetNthControlPointPosition(index, position)
        self._on_moved(index, (position[0], position[1], position[2]))

    def _removed(self, index: Optional[int]) -> None:
        if self._updating:
            return
        if index is None:
            self._on_cleared()
        else:
            self._on_removed(index)

    def _drag_started(self, index: Optional[int]) -> None:
        self.dragging = self.is_button_down()
        self.drags += 1

    def _drag_ended(self, index: Optional[int]) -> None:
        self.dragging = False
        self._on_dragged()


@contextmanager
def _what_is_placed_kept() -> Iterator[None]:
    """Slicer makes a list of points that is added the one into which the user's next click places a point."""
    selection = slicer.mrmlScene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    if selection is None:
        yield
        return
    kind, node_id = selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()
    yield
    selection.SetReferenceActivePlaceNodeClassName(kind)
    selection.SetReferenceActivePlaceNodeID(node_id)


def _observe(node: Any, event: int, method: Callable[[Optional[int]], None]) -> int:
    @vtk.calldata_type(vtk.VTK_INT)
    def call(caller: Any, event: str, index: Optional[int] = None) -> None:
        method(index)

    return node.AddObserver(event, call)
