"""Clicks and previews in the 3D view: on a surface, on a volume rendering, and on nothing."""

from __future__ import annotations

import numpy as np
import pytest
import vtk

pytest.importorskip("PySide6", reason="the panels run on PySide6 (pip install PySide6-Essentials)")

import qt_host
from worlds import dice


def look_at(view, place):
    """Turn the camera to a place, from 200 mm behind it."""
    camera = view._renderer.GetActiveCamera()
    camera.SetFocalPoint(*place)
    camera.SetPosition(*np.add(place, (0, -200, 0)))
    camera.SetViewUp(0, 0, 1)
    view._renderer.ResetCameraClippingRange()


def test_click_in_the_3d_view(app):
    app.start()
    view = qt_host.ThreeDView()
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(*app.center(0))
    sphere.SetRadius(6)
    mapper = vtk.vtkPolyDataMapper()
    mapper.SetInputConnection(sphere.GetOutputPort())
    actor = vtk.vtkActor()
    actor.SetMapper(mapper)
    view._renderer.AddActor(actor)
    look_at(view, app.center(0))
    app.send("LeftButtonPressEvent", view, (150, 150))
    app.send("LeftButtonReleaseEvent", view, (190, 150))
    app.settle()
    assert not app.effect.controller.state.prompts, "a drag turns the camera"
    app.send("LeftButtonPressEvent", view, (5, 5))
    app.send("LeftButtonReleaseEvent", view, (5, 5))
    assert "Nothing is there" in app.ui.statusLabel.text
    for dpi in (72, 144):  # on a finer screen a hand's jitter is more pixels
        view._window.SetDPI(dpi)
        app.send("LeftButtonPressEvent", view, (146, 150))
        assert app.send("LeftButtonReleaseEvent", view, (151, 150)) is False
        app.settle()
        assert bool(app.effect.controller.state.prompts) == (dpi == 144)
    expected = np.add(app.center(0), (0, -5, 0))  # a millimetre behind the surface
    assert app.effect.controller.state.prompts[0]["ras_mm"] == pytest.approx(expected, abs=0.6)
    assert dice(app.mask(), app.balls[0]) > 0.7


def test_a_volume_rendering_is_clicked_where_it_becomes_opaque(app):
    app.start()
    view = qt_host.ThreeDView()
    opacity = vtk.vtkPiecewiseFunction()
    for value, at in ((100, 0.0), (200, 0.9)):
        opacity.AddPoint(value, at)
    mapper = vtk.vtkFixedPointVolumeRayCastMapper()
    mapper.SetInputData(app.volume.GetImageData())
    rendered = vtk.vtkVolume()
    rendered.SetMapper(mapper)
    rendered.GetProperty().SetScalarOpacity(opacity)
    view._renderer.AddVolume(rendered)
    look_at(view, app.center(1))
    for pixel in ((150, 150), (295, 295)):
        app.send("LeftButtonPressEvent", view, pixel)
        app.send("LeftButtonReleaseEvent", view, pixel)
        app.settle()
    assert "Nothing is there" in app.ui.statusLabel.text and "d9534f" not in app.ui.statusLabel.styleSheet, "gently"
    (prompt,) = app.effect.controller.state.prompts
    assert prompt["ras_mm"] == pytest.approx(np.add(app.center(1), (0, -6, 0)), abs=1.0)
    assert app.mask().any()
    view._renderer.RemoveVolume(rendered)
    lines = vtk.vtkOutlineSource()
    lines.SetBounds(0, 40, 0, 36, 0, 30)
    box = vtk.vtkActor()
    box.SetMapper(vtk.vtkPolyDataMapper())
    box.GetMapper().SetInputConnection(lines.GetOutputPort())
    box.GetMapper().Update()
    view._renderer.AddActor(box)
    x, y, z = (0.0, 0.0, 0.0)
    view._renderer.SetWorldPoint(x, y, z, 1.0)
    view._renderer.WorldToDisplay()
    corner = tuple(round(v) for v in view._renderer.GetDisplayPoint()[:2])
    app.send("LeftButtonPressEvent", view, corner)
    app.send("LeftButtonReleaseEvent", view, corner)
    assert len(app.effect.controller.state.prompts) == 1, "the lines around the view are nothing to click on"


def test_preview_in_the_3d_view_is_a_surface_that_the_pointer_does_not_hit(app):
    app.start()
    view = qt_host.ThreeDView()
    app.send("KeyPressEvent", view, key="a")
    app.effect.controller.preview(app.center(0), in_3d=True)
    app.settle()
    node = app.effect.controller._preview.node
    assert node.GetDisplayNode().GetVisibility3D() and not node.GetSelectable()
    surface = node.GetSegmentation().GetSegment("preview").GetRepresentation("Closed surface")
    assert surface.GetCenter() == pytest.approx(app.center(0), abs=1.0)
    app.send("MouseMoveEvent", view, (5, 5))
    assert not node.GetDisplayNode().GetVisibility(), "gone where there is nothing under the pointer"
    slice_view = qt_host.SliceView("Axial", app.center(0))
    app.send("MouseMoveEvent", slice_view, slice_view.pixel(app.center(0)))
    app.settle()
    assert node.GetDisplayNode().GetVisibility() and not node.GetDisplayNode().GetVisibility3D()
