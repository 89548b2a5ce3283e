"""The rectangle that is drawn in a slice view while a box prompt is dragged."""

from __future__ import annotations

from typing import Any, Sequence, Tuple

import numpy as np
import vtk

from .picking import on_screen
from .spaces import Point3

Pixel = Tuple[int, int]
COLOR = (1.0, 0.85, 0.2)
SMALLEST_PIXELS = 4


class RubberBand:
    """One rectangle in one view.

    Args:
        renderer: of the view.
        start: the pixel where the drag began.
    """

    def __init__(self, renderer: Any, start: Pixel) -> None:
        self.start = self.end = start
        self._renderer = renderer
        self._points = vtk.vtkPoints()
        self._points.SetNumberOfPoints(4)
        lines = vtk.vtkCellArray()
        lines.InsertNextCell(5)
        for corner in (0, 1, 2, 3, 0):
            lines.InsertCellPoint(corner)
        self._outline = vtk.vtkPolyData()
        self._outline.SetPoints(self._points)
        self._outline.SetLines(lines)
        mapper = vtk.vtkPolyDataMapper2D()
        mapper.SetInputData(self._outline)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(mapper)
        self._actor.GetProperty().SetColor(*COLOR)
        self._actor.GetProperty().SetLineWidth(2)
        self.move(start)
        renderer.AddViewProp(self._actor)

    @property
    def corners(self) -> Sequence[Pixel]:
        """Four pixels, around."""
        (x0, y0), (x1, y1) = self.start, self.end
        return (x0, y0), (x1, y0), (x1, y1), (x0, y1)

    @property
    def is_box(self) -> bool:
        """False for what was a click rather than a drag."""
        smallest = on_screen(SMALLEST_PIXELS, self._renderer.GetRenderWindow())
        return all(abs(a - b) >= smallest for a, b in zip(self.start, self.end))

    def move(self, end: Pixel) -> None:
        """The pointer is here now."""
        self.end = end
        for index, (x, y) in enumerate(self.corners):
            self._points.SetPoint(index, x, y, 0)
        self._points.Modified()
        self._outline.Modified()

    def remove(self) -> None:
        """Take it out of the view."""
        self._renderer.RemoveViewProp(self._actor)


def box_around(corners_world: Sequence[Point3]) -> np.ndarray:
    """The box that a rectangle on a slice stands for: as deep as its shorter side, half on either side of the slice.

    Args:
        corners_world: four corners in the slice's plane, around, RAS mm.

    Returns:
        (8, 3) its corners, RAS mm.
    """
    corners = np.asarray(corners_world, dtype=float)
    width, height = corners[1] - corners[0], corners[3] - corners[0]
    normal = np.cross(width, height)
    depth = min(np.linalg.norm(width), np.linalg.norm(height)) / 2 * normal / np.linalg.norm(normal)
    return np.concatenate([corners - depth, corners + depth])
