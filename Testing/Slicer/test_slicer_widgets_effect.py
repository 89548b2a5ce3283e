"""What goes on around the clicks: aiming, doubts, boxes, another segmentation or volume, progress, keys, reload."""

from __future__ import annotations

import ast
import gc
import threading
import time
from pathlib import Path

import host
import numpy as np
import pytest
import slicer

pytest.importorskip("PySide6", reason="the panels run on PySide6 (pip install PySide6-Essentials)")

import qt_host
from FaMSAMSlicerLib import engine as engine_module
from region_model import RegionModel
from test_slicer_lock import TIMES, give_the_lock_away
from worlds import dice, two_balls


def see(volume, center, mapped=1):
    """A slice view that shows a volume, as Slicer sets one up."""
    view = qt_host.SliceView("Axial", center, "Red")
    view.mrmlSliceNode().SetMappedInLayout(mapped)
    layers = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    layers.SetLayoutName("Red")
    layers.SetBackgroundVolumeID(volume.GetID())
    return view


@pytest.fixture
def aimed(app, monkeypatch):
    places = []
    from FaMSAMSlicerLib.controller import Controller

    plain = Controller.aim
    monkeypatch.setattr(Controller, "aim", lambda self, place: places.append(place) or plain(self, place))
    return places


def test_where_the_pointer_rests_is_prepared(app, aimed):
    app.start()
    assert not aimed, "no view shows the scan yet"
    view = qt_host.SliceView("Axial", app.center(0))
    for ball in (1, 0):
        app.send("MouseMoveEvent", view, view.pixel(app.center(ball)))
    assert not aimed, "it still moves"
    app.rest()
    (place,) = aimed
    assert place == pytest.approx(app.center(0), abs=0.2)
    assert app.effect._pointed_at is None, "no view is held on to"
    assert "Ready" in app.ui.statusLabel.text and not app.ui.progressBar.isVisibleTo(app.effect.panel.widget)
    app.click(view, app.center(0))
    assert dice(app.mask(), app.balls[0]) > 0.7


def test_after_scrolling_the_place_on_the_new_slice_is_prepared(app, aimed):
    app.start()
    view = qt_host.SliceView("Axial", np.subtract(app.center(0), (0, 0, 5)))
    app.send("MouseWheelForwardEvent", view, view.pixel(app.center(0)))
    view.mrmlSliceNode().JumpSliceByOffsetting(*app.center(0))  # Slicer scrolls once the effect has seen the event
    app.rest()
    assert aimed[0] == pytest.approx(app.center(0), abs=0.2)


@pytest.mark.parametrize("why", ["left", "box", "preview", "on a point", "pressed"])
def test_nothing_is_prepared_while_the_pointer_does_something_else(app, aimed, why):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    pixel = view.pixel(app.center(0))
    if why == "box":
        app.ui.boxButton.click()
    elif why == "preview":
        app.send("KeyPressEvent", view, key="a")
    elif why == "on a point":
        app.click(view, app.center(0))
        app.effect.controller.points.node.GetDisplayNode().SetActiveControlPoint(0)
    app.send("MouseMoveEvent", view, pixel)
    if why == "left":
        app.send("LeaveEvent", view)
    elif why == "pressed":
        app.send("LeftButtonPressEvent", view, pixel)
    app.rest()
    assert not aimed


def test_resting_over_nothing_in_the_3d_view_is_silent(app, aimed):
    app.start()
    said = app.ui.statusLabel.text
    app.send("MouseMoveEvent", qt_host.ThreeDView(), (5, 5))
    app.rest()
    assert not aimed and app.ui.statusLabel.text == said


def test_the_middle_of_the_shown_slice_is_prepared_at_start_and_for_another_volume(app, aimed):
    see(app.volume, app.center(0))
    app.start()
    assert aimed[-1] == pytest.approx(app.center(0), abs=0.5)
    moved = np.diag([1.0, 1.0, 1.0, 1.0])
    moved[:3, 3] = 7
    other = host.volume(two_balls()[0], moved, "other")
    slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode").SetBackgroundVolumeID(other.GetID())
    app.widget.editor.setSourceVolumeNode(other)
    app.settle()
    assert len(aimed) == 2 and "Ready" in app.ui.statusLabel.text
    session = app.engine._place._session
    np.testing.assert_array_equal(session.volume.grid.ras_from_ijk, moved, "the new volume is taken in already")


def test_doubts_by_the_button(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.ui.doubtButton.click()
    app.settle()
    assert app.effect.controller._doubt.overlay.node is None, "nothing to doubt yet"
    app.engine._place._model.decode = soft(app.engine._place._model.decode)
    app.click(view, app.center(0))
    node = app.effect.controller._doubt.overlay.node
    assert node.GetDisplayNode().GetVisibility() and "predicted overlap" in app.ui.statusLabel.text
    app.click(view, app.center(1))
    app.widget.editor.undo()
    assert not node.GetDisplayNode().GetVisibility()
    app.settle()
    assert node.GetDisplayNode().GetVisibility(), "asked for anew by itself"
    app.ui.doubtButton.click()
    assert not node.GetDisplayNode().GetVisibility()
    app.ui.doubtButton.click()
    app.settle()
    app.widget.ui.startButton.checked = False
    assert node.GetScene() is None
    app.start()
    assert app.effect.controller._doubt.overlay.node is not None, "the button is still pressed"
    slicer.mrmlScene.Clear(False)
    names = [slicer.mrmlScene.GetNthNode(i).GetName() for i in range(slicer.mrmlScene.GetNumberOfNodes())]
    assert "FaM-SAM doubt" not in names


def soft(decode):
    def call(*args, **kwargs):
        logits, iou = decode(*args, **kwargs)
        return logits / 4, iou

    return call


@pytest.mark.parametrize("right", [-1, 1])
@pytest.mark.parametrize("up", [-1, 1])
def test_a_box_is_drawn_from_any_corner(app, right, up):
    app.start()
    app.ui.boxButton.click()
    view = qt_host.SliceView("Coronal", app.center(0))
    x, y = view.pixel(app.center(0))
    app.send("LeftButtonPressEvent", view, (x - right * 45, y - up * 45))
    app.send("MouseMoveEvent", view, (x + right * 45, y + up * 45))
    app.send("LeftButtonReleaseEvent", view, (x + right * 45, y + up * 45))
    app.settle()
    (box,) = app.effect.controller.state.prompts
    assert all(low < high for low, high in zip(box["lower_ras_mm"], box["upper_ras_mm"]))
    np.testing.assert_allclose(np.add(box["lower_ras_mm"], box["upper_ras_mm"]) / 2, app.center(0), atol=0.3)
    assert dice(app.mask(), app.balls[0]) > 0.6


def test_a_press_without_a_drag_is_no_box(app):
    app.start()
    app.ui.boxButton.click()
    view = qt_host.SliceView("Axial", app.center(0))
    view._window.SetDPI(144)
    for jitter in (0, 6):
        app.send("LeftButtonPressEvent", view, (100, 100))
        for event in ("MouseMoveEvent", "LeftButtonReleaseEvent"):
            app.send(event, view, (100 + jitter, 100 + jitter))
        app.settle()
        assert not app.effect.controller.state.prompts and not view._renderer.GetViewProps().GetNumberOfItems()


def test_a_hidden_segment_that_is_not_to_be_shown_is_not_changed(app, monkeypatch):
    app.start()
    monkeypatch.setattr(app.effect.scriptedEffect, "confirmCurrentSegmentVisible", lambda: 0, raising=False)
    view = qt_host.SliceView("Axial", app.center(0))
    assert app.click(view, app.center(0)) is False
    assert not app.mask().any() and not app.effect.controller.state.prompts


def test_progress_is_shown_and_cancelled(app):
    app.start()
    gate, plain = threading.Event(), app.engine._place._model.decode

    def held(*args, **kwargs):
        assert gate.wait(60)
        return plain(*args, **kwargs)

    app.engine._place._model.decode = held
    panel = app.effect.panel.widget
    app.effect.controller.click(app.center(0))
    assert app.ui.progressBar.isVisibleTo(panel) and "Computing" in app.ui.statusLabel.text
    app.ui.cancelButton.click()
    assert not app.ui.progressBar.isVisibleTo(panel) and "Cancelled" in app.ui.statusLabel.text
    gate.set()
    app.settle()
    assert not app.mask().any()


def test_a_click_is_computed_while_slicer_waits_for_events(app):
    app.start()
    plain, came_back = app.engine._place._model.decode, []
    app.engine._place._model.decode = lambda *a, **k: came_back.append(give_the_lock_away()) or plain(*a, **k)
    app.effect.controller.click(app.center(0))
    app.settle_as_slicer()
    assert sum(came_back) > len(came_back) * TIMES / 4
    assert dice(app.mask(), app.balls[0]) > 0.7 and not app.effect.controller.has_work


def test_what_nobody_waits_for_any_more_is_ended_too(app):
    app.start()
    begun, gate, plain = threading.Event(), threading.Event(), app.engine._place._model.decode

    def held(*args, **kwargs):
        begun.set()
        assert gate.wait(60)
        return plain(*args, **kwargs)

    app.engine._place._model.decode = held
    app.effect.controller.preview(app.center(0))
    assert begun.wait(60)
    app.effect.controller.end_preview()
    assert not app.effect.controller.has_work and app.effect._timer.isActive()
    app.widget.ui.startButton.checked = False
    assert app.engine.is_at_work and not gc.isenabled()
    gate.set()
    for _ in range(2000):
        qt_host.APPLICATION.processEvents()
        if gc.isenabled():
            break
        time.sleep(0.005)
    assert not app.engine.is_at_work and gc.isenabled()


def test_the_chosen_model_device_and_precision_are_what_is_loaded(app):
    loaded = []
    app.engine._load = lambda choice: loaded.append(choice) or RegionModel()
    app.start()
    app.ui.modelFile.currentPath = "/models/fastsam3d.pth"
    for selector, value in ((app.ui.deviceSelector, "cpu"), (app.ui.precisionSelector, "fp32")):
        selector.setCurrentIndex(selector.findText(value))
        selector.activated.emit(selector.currentIndex)
    app.settle()
    last = loaded[-1]
    assert (last.source, last.device, last.precision) == ("/models/fastsam3d.pth", "cpu", "fp32")
    assert (loaded[0].source, loaded[0].device) == ("default", "auto")


def test_a_choice_that_a_scene_brings_is_shown_and_nothing_else_is_changed(app):
    from FaMSAMSlicerLib.settings import server, set_server, settings

    set_server("http://scans.example.org:8765", "correct-horse-battery")
    chosen = settings()
    chosen.modelFile, chosen.device, chosen.precision = "/models/fastsam3d.pth", "cpu", "fp32"
    try:
        app.widget.logic.prepare()
        app.widget.editor._effect("FaM-SAM").self().updateGUIFromMRML()  # for the first time in this session
        assert server() == ("http://scans.example.org:8765", "correct-horse-battery")
        assert (chosen.modelFile, chosen.device, chosen.precision) == ("/models/fastsam3d.pth", "cpu", "fp32")
    finally:
        set_server("", "")


def test_a_device_that_is_not_there_is_one_message(app):
    app.engine._load = engine_module._load_model
    app.start()
    app.ui.deviceSelector.addItem("cuda:7")
    app.ui.deviceSelector.setCurrentIndex(app.ui.deviceSelector.findText("cuda:7"))
    app.ui.deviceSelector.activated.emit(app.ui.deviceSelector.currentIndex)
    app.settle()
    assert "cuda:7" in app.ui.statusLabel.text and "Details are in" not in app.ui.statusLabel.text


def test_another_segmentation_brings_its_own_points_and_gets_its_own_clicks(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    first, first_id, first_mask = app.node, app.effect.controller.segment_id, app.mask()
    second = host.segmentation(app.volume, "other")
    tags = list(app.effect._watch._tags)
    app.widget.editor.setSegmentationNode(second)
    app.widget.editor.setCurrentSegmentID("other")
    assert app.widget.editor.activeEffect() is None
    app.start()
    assert app.effect.controller.points.node is None
    events = (slicer.vtkSegmentation.SegmentModified, slicer.vtkSegmentation.SourceRepresentationModified)
    assert not any(first.GetCommand(tag) for tag in tags) and all(second.HasObserver(event) for event in events)
    app.click(view, app.center(1))
    assert dice(host.segment_mask(second, "other", app.balls[1].shape), app.balls[1]) > 0.7
    app.widget.editor.setSegmentationNode(first)
    app.widget.editor.setCurrentSegmentID(first_id)
    app.start()
    assert app.effect.controller.points.node.GetNumberOfControlPoints() == 1
    np.testing.assert_array_equal(app.mask(), first_mask)
    app.click(view, app.center(1))
    assert len(app.effect.controller.state.prompts) == 2


def test_a_click_under_way_is_not_lost_when_another_segmentation_is_selected(app):
    app.start()
    first, first_id = app.node, app.effect.controller.segment_id
    other = host.segmentation(app.volume, "other")
    host.set_segment(other, "other", app.balls[1])
    app.effect.controller.click(app.center(0))
    app.widget.editor.setSegmentationNode(other)
    assert app.widget.editor.activeEffect() is None and app.widget.editor.node.GetSegmentationNode() is other
    assert dice(host.segment_mask(first, first_id, app.balls[0].shape), app.balls[0]) > 0.7
    np.testing.assert_array_equal(host.segment_mask(other, "other", app.balls[1].shape), app.balls[1])
    app.widget.editor.setSegmentationNode(first)
    app.widget.editor.setCurrentSegmentID(first_id)
    app.start()
    assert app.effect.controller.points.node.GetNumberOfControlPoints() == 1


def test_another_source_volume_is_clicked_in(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    swapped = host.volume(np.ascontiguousarray(two_balls()[0][:, :, ::-1]), np.eye(4), "mirrored")
    app.widget.editor.setSourceVolumeNode(swapped)
    app.ui.clearButton.click()
    app.ui.emptyButton.click()
    mirrored = app.balls[0][:, :, ::-1]
    app.click(view, tuple(float(v) for v in np.argwhere(mirrored).mean(0).round()[::-1]))
    assert dice(app.mask(), mirrored) > 0.7


def test_the_effect_chosen_in_the_editor_itself_presses_the_button(app):
    app.start()
    app.widget.ui.startButton.checked = False
    assert app.widget.ui.startButton.text == "Start clicking"
    app.widget.editor.setActiveEffectByName("FaM-SAM")
    assert app.widget.ui.startButton.checked and app.widget.ui.startButton.text == "Stop clicking"
    app.click(qt_host.SliceView("Axial", app.center(0)), app.center(0))
    assert dice(app.mask(), app.balls[0]) > 0.7
    app.widget.ui.startButton.click()
    assert app.widget.editor.activeEffect() is None and app.widget.ui.startButton.text == "Start clicking"


def test_keys_are_not_those_of_the_segment_editor(app):
    from FaMSAMSlicerLib import SegmentEditorFaMSAMEffect as name

    effect_file = __import__(name.__module__, fromlist=["x"]) if isinstance(name, type) else name
    used = {*"0123456789zyqwi,./*<>", "escape", "space", "comma", "period"}
    assert not {effect_file.PREVIEW_KEY, effect_file.SIGN_KEY} & used
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    assert not any(app.send("KeyPressEvent", view, key=key) for key in used), "left to the Segment Editor"


def test_segments_are_written_in_one_place_only():
    """Every other way would go around the Segment Editor's masking."""
    allowed = {"modifySelectedSegmentByLabelmap"}
    around = {"SetBinaryLabelmapToSegment", "ModifySegmentByLabelmap", "updateSegmentBinaryLabelmapFromArray"}
    around.add("modifySegmentByLabelmap")  # what is editable depends on which segment is selected
    calls = {}
    folder = Path(engine_module.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in allowed | around:
                calls.setdefault(node.attr, set()).add(path.name)
    assert calls == {name: {"writing.py"} for name in allowed}


def test_the_module_reloaded_works_and_the_old_one_is_silent(app):
    import FaMSAMSlicer

    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    node, old = app.node, app.widget
    old.cleanup()
    app.widget = FaMSAMSlicer.FaMSAMSlicerWidget(app.parent)
    app.widget.setup()
    app.widget.enter()
    app.start()
    assert app.node is node and app.effect.controller.points.node.GetNumberOfControlPoints() == 1
    app.click(view, app.center(1))
    assert len(app.effect.controller.state.prompts) == 2
    assert not old.Observations, "the old widget observes nothing"
    slicer.mrmlScene.Clear(False)
    assert app.widget.editor.activeEffect() is None


def test_a_hidden_point_is_not_in_the_way_of_a_click(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    app.effect.controller.points.node.GetDisplayNode().SetActiveControlPoint(0)
    assert app.click(view, app.center(0)) is False, "that press is for the point"
    app.ui.pointsButton.click()
    assert app.click(view, app.center(0)) is True
    assert len(app.effect.controller.state.prompts) == 2
