"""Clicks in a real slice view and a real 3D view of Slicer, off screen; run in a Python with trame-slicer.

    python real_views.py FOLDER

Writes ``result.json`` into the folder, with how many pixels changed. The views, their interactors and
what draws in them are Slicer's own; the effect gets the interactors' events as the Segment Editor's widget hands them
on: before anything else, and nobody else gets what it has used.
"""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path

import numpy as np
import vtk
from trame_slicer.core import SlicerApp
from trame_slicer.views import DirectViewFactory, ViewDirection, ViewLayoutDefinition
from vtk.util.numpy_support import vtk_to_numpy

SIZE = (500, 450)
EVENTS = ("LeftButtonPressEvent", "LeftButtonReleaseEvent", "MouseMoveEvent", "KeyPressEvent", "KeyReleaseEvent")
LET_GO_S = 0.2  # more than a released key is waited for


class ViewWidget:
    """A view as the effect sees it."""

    def __init__(self, view, class_name):
        self.view, self._class_name = view, class_name

    def className(self):
        return self._class_name

    def mrmlSliceNode(self):
        return self.view.get_view_node()

    def sliceView(self):
        return types.SimpleNamespace(renderWindow=self.view.render_window)

    threeDView = sliceView

    def observe(self, effect):
        interactor = self.view.interactor()
        for name in EVENTS:
            event = getattr(vtk.vtkCommand, name)
            tags = []

            def call(caller, _name, event=event, tags=tags):
                if effect.processInteractionEvents(interactor, event, self):
                    interactor.GetCommand(tags[0]).SetAbortFlag(1)

            tags.append(interactor.AddObserver(event, call, 1.0))

    def click(self, x, y, control=0):
        interactor = self.view.interactor()
        interactor.SetEventInformation(x, y, control, 0)
        for event in ("EnterEvent", "MouseMoveEvent", "LeftButtonPressEvent", "LeftButtonReleaseEvent"):
            getattr(interactor, event)()
        interactor.SetEventInformation(0, 0)  # and away again, so that no point is under the pointer
        interactor.MouseMoveEvent()
        interactor.LeaveEvent()

    def move(self, x, y):
        self.view.interactor().SetEventInformation(x, y, 0, 0)
        self.view.interactor().MouseMoveEvent()

    def right_click(self, x, y):
        interactor = self.view.interactor()
        interactor.SetEventInformation(x, y, 0, 0)
        for event in ("EnterEvent", "MouseMoveEvent", "RightButtonPressEvent", "RightButtonReleaseEvent"):
            getattr(interactor, event)()

    def key(self, key, event):
        self.view.interactor().SetKeyEventInformation(0, 0, "\0", 0, key)
        self.view.interactor().InvokeEvent(event)

    def pixel_of(self, world):
        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.mrmlSliceNode().GetXYToRAS(), matrix)
        return tuple(round(v) for v in matrix.MultiplyPoint((*world, 1.0))[:2])

    def pixels(self):
        self.view.render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.view.render_window())
        grab.ReadFrontBufferOff()
        grab.Update()
        x, y, _z = grab.GetOutput().GetDimensions()
        return vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(y, x, -1)[::-1].copy()


def changed(first, second):
    return int((np.abs(first.astype(int) - second).max(2) > 8).sum())


REFORMATTED_CLICK = (30.0, 60.0, 30.0)  # in the body, beside the ball; on the slice that ``reformat`` shows


def reformat(view, volume):
    """Show the volume on an oblique slice through ``REFORMATTED_CLICK``."""
    view.view.set_background_volume_id(volume.GetID())
    view.view.fit_view_to_content()
    turn = vtk.vtkTransform()
    turn.Translate(*REFORMATTED_CLICK)
    turn.RotateWXYZ(40, 1, 2, 3)
    node = view.mrmlSliceNode()
    node.GetSliceToRAS().DeepCopy(turn.GetMatrix())
    node.UpdateMatrices()


def box_in_a_slice(effect, view, settle):
    """Dragged from the lower right corner; the rectangle is there until the button goes up."""
    effect.panel.ui.boxButton.click()
    interactor = view.view.interactor()
    low, high = view.pixel_of((26.0, 22.0, 30.0)), view.pixel_of((64.0, 58.0, 30.0))
    start, end = (max(low[0], high[0]), low[1]), (min(low[0], high[0]), high[1])
    before = view.pixels()
    for event, place in (("LeftButtonPressEvent", start), ("MouseMoveEvent", end)):
        interactor.SetEventInformation(*place, 0, 0)
        interactor.InvokeEvent(event)
    rectangle = changed(before, view.pixels())
    interactor.InvokeEvent("LeftButtonReleaseEvent")
    settle()
    effect.panel.ui.positiveButton.click()
    return {
        "box_rectangle": rectangle,
        "box": effect.controller.state.prompts[-1],
        "box_message": effect.controller.status.message,
    }


def delete_points(effect, view, settle):
    """A click, and away with it again: by the menu that a right click opens, and by Slicer's own key for it."""
    left, menus = [], []
    effect.panel.show_point_menu = lambda: menus.append(effect.controller.points.hovered_index)
    place = view.pixel_of((42.0, 36.0, 30.0))
    for delete in ("menu", "key"):
        view.click(*place)
        effect.controller.finish(60)
        if delete == "menu":
            view.right_click(*place)
            effect.panel.delete_action.trigger()
        else:
            view.move(*place)
            view.key("Delete", "KeyPressEvent")
        settle()
        left.append(len(effect.controller.state.prompts))
        view.move(0, 0)
    return {"points_left": left, "point_menus": menus}


def preview_in_3d(effect, view, settle):
    """While the key is held, a surface follows the pointer; the pointer does not hit that surface itself."""
    place = SIZE[0] // 2 - 50, SIZE[1] // 2 - 40  # on the volume rendering, away from the points that are there
    before, prompts = view.pixels(), len(effect.controller.state.prompts)
    view.key("a", "KeyPressEvent")
    picked = []
    for _ in range(3):
        view.move(*place)
        picked.append(effect.controller._running.asked.steps[0].points[0])
        settle()
        view.pixels()
    shown = view.pixels()
    view.key("a", "KeyReleaseEvent")
    time.sleep(LET_GO_S)
    settle()
    return {
        "3d_preview": changed(before, shown),
        "3d_preview_picked": picked,
        "3d_preview_prompts": len(effect.controller.state.prompts) - prompts,
        "3d_preview_gone": changed(before, view.pixels()),
    }


def volume_rendering(app, effect, view, volume):
    """Only the volume rendering is there to be clicked on: of the body, a cylinder of 35 mm around (45, 40)."""
    display = app.volume_rendering.create_display_node(volume)
    opacity, colors = vtk.vtkPiecewiseFunction(), vtk.vtkColorTransferFunction()
    for value, at in ((0, 0.0), (80, 0.0), (120, 0.9), (500, 0.9)):
        opacity.AddPoint(value, at)
        colors.AddRGBPoint(value, 1.0, 0.8, 0.6)
    display.GetVolumePropertyNode().SetScalarOpacity(opacity)
    display.GetVolumePropertyNode().SetColor(colors)
    view.view.reset_focal_point()
    view.view.fit_view_to_content()
    prompts = len(effect.controller.state.prompts)
    view.pixels()
    view.click(3, 3)
    miss = effect.panel.ui.statusLabel.text
    view.click(SIZE[0] // 2 + 50, SIZE[1] // 2 + 40)
    effect.controller.finish(60)
    return {
        "vr_miss": miss,
        "vr_prompts": len(effect.controller.state.prompts) - prompts,
        "vr_place": effect.controller.state.prompts[-1]["ras_mm"],
        "vr_message": effect.controller.status.message,
    }


def open_views(*definitions):
    """The application and one view for each definition, with the class by which the effect knows it."""
    app = SlicerApp()
    app.view_manager.register_factory(DirectViewFactory(do_render_offscreen=True))
    views = [ViewWidget(app.view_manager.create_view(definition), name) for definition, name in definitions]
    for widget in views:
        widget.view.update_size(*SIZE)

    import slicer

    slicer.mrmlScene = app.scene
    import host
    import qt_host

    host._keep[:] = [app.app_logic]
    qt_host.install()
    return app, views


def open_effect(app, views, engine, segmentation, volume):
    """The Segment Editor on a segmentation's first segment, with the effect active and listening to the views."""
    import python_qt
    import qt_host
    from FaMSAMSlicerLib.SegmentEditorFaMSAMEffect import SegmentEditorFaMSAMEffect

    import FaMSAMSlicer

    sys.modules[SegmentEditorFaMSAMEffect.__module__].shared_engine = lambda: engine
    FaMSAMSlicer.register()
    assert not python_qt.slot_errors
    editor = qt_host.qMRMLSegmentEditorWidget()
    editor.setMRMLScene(app.scene)
    editor.setEffectNameOrder(["FaM-SAM"])
    editor.setMRMLSegmentEditorNode(app.scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    editor.setSegmentationNode(segmentation)
    editor.setSourceVolumeNode(volume)
    editor.setCurrentSegmentID(segmentation.GetSegmentation().GetNthSegmentID(0))
    editor.setActiveEffectByName("FaM-SAM")
    effect = editor.activeEffect().self()
    for widget in views:
        widget.observe(effect)
    return editor, effect


def main(folder: Path) -> None:
    app, views = open_views(
        (ViewLayoutDefinition.axial_view(), "qMRMLSliceWidget"),
        (ViewLayoutDefinition.coronal_view(), "qMRMLSliceWidget"),
        (ViewLayoutDefinition.threed_view(), "qMRMLThreeDWidget"),
    )
    slice_view, reformatted_view, threed_view = views
    import host
    import qt_host
    from FaMSAMSlicerLib.engine import Engine
    from region_model import RegionModel

    z, y, x = np.indices((60, 80, 90))
    ball = ((z - 30) ** 2 + (y - 40) ** 2 + (x - 45) ** 2 < 14**2) & ~((x > 45) & (y > 46))
    body = (y - 40) ** 2 + (x - 45) ** 2 < 35**2
    noise = np.random.default_rng(0).normal(0, 6, ball.shape)
    volume = host.volume((noise + 150 * body + 250 * ball).astype(np.int16), np.eye(4))
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    volume.GetDisplayNode().AutoWindowLevelOn()
    slice_view.view.set_background_volume_id(volume.GetID())
    slice_view.view.fit_view_to_content()
    segmentation = host.segmentation(volume, "organ")
    slice_view.view.set_slice_value(30.0)

    engine = Engine(lambda choice: RegionModel())
    editor, effect = open_effect(app, views, engine, segmentation, volume)

    def settle():
        qt_host.APPLICATION.processEvents()
        controller = effect.controller
        while controller.poll():
            time.sleep(0.005)

    pixel_of = slice_view.pixel_of
    result = {}
    before = slice_view.pixels()
    slice_view.click(*pixel_of((42.0, 36.0, 30.0)))
    effect.controller.finish(60)
    clicked = slice_view.pixels()
    result["slice_click"] = changed(before, clicked)
    result["message"] = effect.controller.status.message
    result["voxels"] = int(host.segment_mask(segmentation, "organ", ball.shape).sum())

    editor.undo()
    result["after_undo"] = changed(before, slice_view.pixels())
    editor.redo()
    result["after_redo"] = changed(clicked, slice_view.pixels())
    editor.undo()
    result.update(delete_points(effect, slice_view, settle))
    slice_view.click(*pixel_of((42.0, 36.0, 30.0)))
    effect.controller.finish(60)

    slice_view.click(*pixel_of((45.0, 60.0, 30.0)), control=1)
    effect.controller.finish(60)
    settle()
    before = slice_view.pixels()
    effect.panel.ui.doubtButton.click()
    settle()
    result["doubt"] = changed(before, slice_view.pixels())
    effect.panel.ui.doubtButton.click()
    result["doubt_gone"] = changed(before, slice_view.pixels())

    reformat(reformatted_view, volume)
    before = reformatted_view.pixels(), slice_view.pixels()
    reformatted_view.click(*reformatted_view.pixel_of(REFORMATTED_CLICK))
    effect.controller.finish(60)
    result["reformatted_click"] = changed(before[0], reformatted_view.pixels())
    result["reformatted_click_in_the_other_view"] = changed(before[1], slice_view.pixels())
    result["reformatted_place"] = effect.controller.state.prompts[-1]["ras_mm"]
    editor.undo()
    result.update(box_in_a_slice(effect, slice_view, settle))
    editor.undo()

    segmentation.CreateClosedSurfaceRepresentation()
    segmentation.GetDisplayNode().SetVisibility3D(True)
    threed_view.view.reset_focal_point()
    threed_view.view.rotate_to_view_direction(ViewDirection.ANTERIOR)
    threed_view.view.fit_view_to_content()
    before_3d = threed_view.pixels()
    prompts = len(effect.controller.state.prompts)
    threed_view.click(3, 3)
    result["3d_miss"] = effect.panel.ui.statusLabel.text
    threed_view.click(SIZE[0] // 2 - 70, SIZE[1] // 2)
    effect.controller.finish(60)
    after_3d = threed_view.pixels()
    result["3d_click"] = changed(before_3d, after_3d)
    result["3d_prompts"] = len(effect.controller.state.prompts) - prompts

    segmentation.GetDisplayNode().SetVisibility3D(False)
    result.update(volume_rendering(app, effect, threed_view, volume))
    result.update(preview_in_3d(effect, threed_view, settle))
    editor.setActiveEffect(None)
    engine.close()
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
