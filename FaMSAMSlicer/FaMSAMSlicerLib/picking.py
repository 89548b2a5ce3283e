"""A click in the 3D view: which place in the world it means."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import vtk

from .spaces import Point3

INWARD_MM = 1.0
"""How far behind the surface the click is taken to be: inside of what was clicked."""
_OPACITY = 0.15
"""A volume rendering counts as hit where it gets at least this opaque."""


def pick(renderer: Any, x: int, y: int) -> Optional[Point3]:
    """The place on a surface or in a volume rendering under a pixel of a 3D view.

    Returns:
        world RAS mm, ``INWARD_MM`` behind what is seen; None if there is nothing under the pixel.
    """
    picker = vtk.vtkCellPicker()
    picker.SetTolerance(0.002)
    picker.SetVolumeOpacityIsovalue(_OPACITY)
    if not picker.Pick(float(x), float(y), 0.0, renderer) or picker.GetCellId() < 0:
        return None
    hit = np.array(picker.GetPickPosition())
    camera = renderer.GetActiveCamera()
    if camera.GetParallelProjection():
        direction = np.array(camera.GetDirectionOfProjection())
    else:
        direction = hit - camera.GetPosition()
    r, a, s = (float(v) for v in hit + INWARD_MM * direction / np.linalg.norm(direction))
    return r, a, s
