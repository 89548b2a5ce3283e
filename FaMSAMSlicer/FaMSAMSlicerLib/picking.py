"""A place in a view: which place in the world it means."""

from __future__ import annotations

from typing import Any, List, Optional

import numpy as np
import slicer
import vtk

from .spaces import Point3

INWARD_MM = 1.0
"""How far behind the surface the click is taken to be: inside of what was clicked."""
_ORDINARY_DPI = 72
"""What VTK's windows in Qt have where a pixel of Qt's is one of the screen's."""
_OPACITY = 0.15
"""A volume rendering counts as hit where it gets at least this opaque."""


def on_screen(pixels: float, window: Any) -> float:
    """A length in an ordinary screen's pixels, in those of a render window, which are more on a finer screen."""
    return pixels * max(1.0, float(window.GetDPI()) / _ORDINARY_DPI)


def place_in_slice(interactor: Any, slice_node: Any, x: int, y: int) -> Point3:
    """World RAS mm under a pixel of a slice view, as Slicer's own tools have it."""
    convert = slicer.vtkMRMLAbstractSliceViewDisplayableManager
    xyz, ras = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    convert.ConvertDeviceToXYZ(interactor, slice_node, float(x), float(y), xyz)
    convert.ConvertXYZToRAS(slice_node, xyz, ras)
    return ras[0], ras[1], ras[2]


def pick(renderer: Any, x: int, y: int) -> Optional[Point3]:
    """The place on a surface or in a volume rendering under a pixel of a 3D view.

    Returns:
        world RAS mm, ``INWARD_MM`` behind what is seen; None if there is nothing under the pixel.
    """
    picker = vtk.vtkCellPicker()
    picker.SetTolerance(0.002)
    picker.SetVolumeOpacityIsovalue(_OPACITY)
    picker.PickFromListOn()
    for prop in _clickable(renderer):
        picker.AddPickList(prop)
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


def _clickable(renderer: Any) -> List[Any]:
    """Surfaces and volume renderings: neither the lines around the view nor the points and labels in it."""
    props = renderer.GetViewProps()
    return [prop for prop in map(props.GetItemAsObject, range(props.GetNumberOfItems())) if _is_clickable(prop)]


def _is_clickable(prop: Any) -> bool:
    if not (prop.GetVisibility() and prop.GetPickable()):
        return False
    if not isinstance(prop, vtk.vtkActor):
        return isinstance(prop, vtk.vtkVolume)
    mapper = prop.GetMapper()
    surface = mapper.GetInput() if isinstance(mapper, vtk.vtkPolyDataMapper) else None
    return surface is not None and surface.GetNumberOfPolys() + surface.GetNumberOfStrips() > 0
