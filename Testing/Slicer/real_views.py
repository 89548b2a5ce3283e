"""Clicks in a real slice view and a real 3D view of Slicer, off screen; run in a Python with trame-slicer.

    python real_views.py FOLDER

Writes pictures into the folder, and ``result.json`` with how many pixels changed. The views, their interactors and
what draws in them are Slicer's own; the effect gets the interactors' events as the Segment Editor's widget hands them
on: before anything else, and nobody else gets what it has used.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import vtk
from PIL import Image
from trame_slicer.core import SlicerApp
from trame_slicer.views import DirectViewFactory, ViewDirection, ViewLayoutDefinition
from vtk.util.numpy_support import vtk_to_numpy

SIZE = (500, 450)
EVENTS = ("LeftButtonPressEvent", "LeftButtonReleaseEvent", "MouseMoveEvent", "KeyPressEvent", "KeyReleaseEvent")


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


def main(folder: Path) -> None:
    app = SlicerApp()
    app.view_manager.register_factory(DirectViewFactory(do_render_offscreen=True))
    views = [
        ViewWidget(app.view_manager.create_view(definition), class_name)
        for definition, class_name in (
            (ViewLayoutDefinition.axial_view(), "qMRMLSliceWidget"),
            (ViewLayoutDefinition.threed_view(), "qMRMLThreeDWidget"),
        )
    ]
    slice_view, threed_view = views
    for widget in views:
        widget.view.update_size(*SIZE)

    import slicer

    slicer.mrmlScene = app.scene
    import host
    import qt_host

    host._keep[:] = [app.app_logic]
    qt_host.install()
    from FaMSAMSlicerLib.engine import Engine
    from FaMSAMSlicerLib.SegmentEditorFaMSAMEffect import SegmentEditorFaMSAMEffect
    from region_model import RegionModel

    import FaMSAMSlicer

    engine = Engine(lambda choice: RegionModel())
    sys.modules[SegmentEditorFaMSAMEffect.__module__].shared_engine = lambda: engine
    FaMSAMSlicer.register()
    assert not qt_host.slot_errors

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

    editor = qt_host.qMRMLSegmentEditorWidget()
    editor.setMRMLScene(app.scene)
    editor.setEffectNameOrder(["FaM-SAM"])
    editor.setMRMLSegmentEditorNode(app.scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    editor.setSegmentationNode(segmentation)
    editor.setSourceVolumeNode(volume)
    editor.setCurrentSegmentID("organ")
    editor.setActiveEffectByName("FaM-SAM")
    effect = editor.activeEffect().self()
    for widget in views:
        widget.observe(effect)

    def pixel_of(world):
        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(slice_view.mrmlSliceNode().GetXYToRAS(), matrix)
        return tuple(round(v) for v in matrix.MultiplyPoint((*world, 1.0))[:2])

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

    slice_view.click(*pixel_of((45.0, 60.0, 30.0)), control=1)
    effect.controller.finish(60)
    shown = slice_view.pixels()
    Image.fromarray(shown).save(folder / "slice_view.png")

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
    Image.fromarray(after_3d).save(folder / "threed_view.png")
    editor.setActiveEffect(None)
    engine.close()
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
