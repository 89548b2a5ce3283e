"""The module's panel and the effect's, driven by events: click, drag, toggle, undo, another segment, scene closed."""

from __future__ import annotations

import importlib
import sys
import unittest
from pathlib import Path

import host
import numpy as np
import pytest
import slicer
import vtk

pytest.importorskip("PySide6", reason="the panels run on PySide6 (pip install PySide6-Essentials)")

import qt_host
from famsam.errors import FamsamError
from FaMSAMSlicerLib import engine as engine_module
from FaMSAMSlicerLib.engine import ModelChoice
from FaMSAMSlicerLib.requirements import Requirement
from PySide6 import QtCore, QtWidgets
from region_model import RegionModel
from worlds import dice, two_balls


def test_start_makes_what_is_missing_and_says_what_to_do(app):
    app.start()
    assert app.node.GetSegmentation().GetNumberOfSegments() == 1
    assert app.effect.controller.volume_node is app.volume
    assert app.widget.ui.startButton.text == "Stop clicking"
    assert "Ready" in app.ui.statusLabel.text and not app.ui.installButton.isVisibleTo(app.effect.panel.widget)


def test_start_without_a_scan_says_so(app):
    slicer.mrmlScene.RemoveNode(app.volume)
    app.widget.ui.startButton.checked = True
    assert "Load a scan" in app.widget.ui.messageLabel.text
    assert not app.widget.ui.startButton.checked and app.widget.editor.activeEffect() is None


def test_the_button_goes_up_when_the_effect_is_left_otherwise(app):
    app.start()
    app.widget.editor.setActiveEffect(None)  # as the Esc key does
    assert not app.widget.ui.startButton.checked and app.widget.ui.startButton.text == "Start clicking"
    app.start()
    assert app.effect.controller is not None


def test_start_takes_the_volume_that_is_shown(app):
    other = host.volume(two_balls()[0], np.eye(4), "other")
    app.widget.ui.startButton.checked = True
    assert "Load a scan" in app.widget.ui.messageLabel.text, "two volumes, none shown: no guess"
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    view.SetBackgroundVolumeID(other.GetID())
    app.start()
    assert app.effect.controller.volume_node is other and not app.widget.ui.messageLabel.text


@pytest.mark.parametrize("orientation", ["Axial", "Sagittal", "Coronal", "Reformat"])
def test_click_in_every_slice_view(app, orientation):
    app.start()
    view = qt_host.SliceView("Axial" if orientation == "Reformat" else orientation, app.center(0))
    if orientation == "Reformat":
        turn = vtk.vtkTransform()
        turn.Translate(*app.center(0))
        turn.RotateWXYZ(33, 1, 2, 3)
        matrix = view.mrmlSliceNode().GetSliceToRAS()
        matrix.DeepCopy(turn.GetMatrix())
        view.mrmlSliceNode().UpdateMatrices()
    assert app.click(view, app.center(0)) is True
    assert dice(app.mask(), app.balls[0]) > 0.7
    assert app.effect.controller.state.prompts[0]["ras_mm"] == pytest.approx(app.center(0), abs=0.5)
    assert "predicted overlap" in app.ui.statusLabel.text


def test_clicks_in_a_layout_with_several_views_of_one_orientation(app):
    app.start()
    views = [qt_host.SliceView("Axial", app.center(0), name) for name in ("Red", "Red+", "Slice4")]
    low, _, zoomed = views
    low.mrmlSliceNode().JumpSliceByOffsetting(*np.subtract(app.center(0), (0, 0, 4)))
    zoomed.mrmlSliceNode().SetFieldOfView(20.0, 20.0, 1.0)
    for view in views:
        app.click(view, app.center(0))
    places = [prompt["ras_mm"] for prompt in app.effect.controller.state.prompts]
    x, y, z = app.center(0)
    np.testing.assert_allclose(places, [(x, y, z - 4), (x, y, z), (x, y, z)], atol=0.11)


def test_click_in_a_view_that_is_a_part_of_its_window(app):
    """So Slicer itself converts it: where a window is divided (light boxes of older Slicers), by its part."""
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    x, y = view.pixel(app.center(0))
    view._renderer.SetViewport(0.5, 0.0, 1.0, 1.0)
    app.send("LeftButtonPressEvent", view, (x + 150, y))
    app.settle()
    np.testing.assert_allclose(app.effect.controller.state.prompts[0]["ras_mm"], app.center(0), atol=0.5)


def test_sign_by_button_key_and_modifier(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    signs = []

    def click(**keys):
        app.click(view, app.center(0), **keys)
        signs.append(app.effect.controller.state.prompts[-1]["positive"])

    click()
    click(control=1)
    app.ui.negativeButton.click()
    click()
    click(control=1)
    app.send("KeyPressEvent", view, key="x")
    assert app.ui.positiveButton.checked
    click()
    assert signs == [True, False, False, True, True]


def test_undo_and_redo_by_the_editor_move_points_and_mask(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    one = app.mask()
    app.click(view, app.center(1))
    app.widget.editor.undo()
    points = app.effect.controller.points.node
    assert points.GetNumberOfControlPoints() == 1, "the points follow without any further call"
    np.testing.assert_array_equal(app.mask(), one)
    app.widget.editor.redo()
    assert points.GetNumberOfControlPoints() == 2
    for _ in range(15):
        app.click(view, app.center(0))
    for _ in range(17):
        app.widget.editor.undo()
    assert not app.mask().any() and points.GetNumberOfControlPoints() == 0


def test_drag_of_a_point_is_left_to_the_markups(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    display = app.effect.controller.points.node.GetDisplayNode()
    display.SetActiveControlPoint(0)
    assert app.send("LeftButtonPressEvent", view, view.pixel(app.center(0))) is False
    app.effect.controller.points.node.SetNthControlPointPosition(0, *app.center(1))
    app.settle()
    assert dice(app.mask(), app.balls[1]) > 0.7, "the mask follows the point"


def test_box_is_dragged_in_a_slice_view(app):
    app.start()
    app.ui.boxButton.click()
    view = qt_host.SliceView("Axial", app.center(0))
    x, y = view.pixel(app.center(0))
    app.send("LeftButtonPressEvent", view, (x - 45, y - 45))
    assert view._renderer.GetViewProps().GetNumberOfItems() == 1
    assert app.send("MouseMoveEvent", view, (x + 45, y + 45)) is True
    app.send("LeftButtonReleaseEvent", view, (x + 45, y + 45))
    app.settle()
    assert view._renderer.GetViewProps().GetNumberOfItems() == 0
    (box,) = app.effect.controller.state.prompts
    assert box["type"] == "box"
    np.testing.assert_allclose(np.subtract(box["upper_ras_mm"], box["lower_ras_mm"]), 18, atol=0.5)
    assert dice(app.mask(), app.balls[0]) > 0.6


def test_preview_while_the_key_is_held(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.send("KeyPressEvent", view, key="a")
    assert app.send("MouseMoveEvent", view, view.pixel(app.center(0))) is False
    app.settle()
    preview = app.effect.controller._preview.node
    assert preview.GetDisplayNode().GetVisibility() and not app.mask().any()
    assert not app.effect.controller.state.prompts
    app.send("KeyReleaseEvent", view, key="a")
    app.let_go()
    assert not preview.GetDisplayNode().GetVisibility()


def test_each_segment_shows_its_own_points(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    second = app.node.GetSegmentation().AddEmptySegment("second")
    app.widget.editor.setCurrentSegmentID(second)
    points = app.effect.controller.points.node
    assert points.GetNumberOfControlPoints() == 0
    app.click(view, app.center(1))
    assert dice(app.mask(), app.balls[1]) > 0.7


def test_points_are_hidden_and_cleared_by_buttons(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    before = app.mask()
    app.ui.pointsButton.click()
    assert not app.effect.controller.points.node.GetDisplayNode().GetVisibility()
    app.ui.clearButton.click()
    assert not app.effect.controller.state.prompts
    np.testing.assert_array_equal(app.mask(), before)
    app.ui.emptyButton.click()
    assert not app.mask().any()


def test_model_choice_is_kept_and_a_bad_file_is_one_message(app, monkeypatch):
    app.start()
    from FaMSAMSlicerLib.settings import settings

    app.engine._load = engine_module._load_model
    app.ui.modelFile.currentPath = "/nowhere/weights.pth"
    app.settle()
    assert settings().modelFile == "/nowhere/weights.pth"
    assert "weights.pth" in app.ui.statusLabel.text
    app.widget.ui.startButton.checked = False
    app.start()
    assert app.ui.modelFile.currentPath == "/nowhere/weights.pth"


def test_the_devices_that_were_found_are_offered(app, monkeypatch):
    import torch
    from FaMSAMSlicerLib.settings import settings

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    settings().device = "cuda:3"
    app.start()
    selector = app.ui.deviceSelector
    offered = [selector.itemText(i) for i in range(selector.count)]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    assert offered == ["auto", "cpu", "cuda:0", *mps, "cuda:3"] and selector.currentText == "cuda:3"
    assert selector.itemData(2, QtCore.Qt.ToolTipRole) == "card 0"


def test_missing_packages_are_named_and_asked_for(app, monkeypatch):
    from FaMSAMSlicerLib import requirements

    missing = [requirements.Requirement("torch", "torch", 200)]
    monkeypatch.setattr(requirements, "missing", lambda server="": [] if server else list(missing))
    app.start()
    assert "torch" in app.ui.statusLabel.text and app.ui.installButton.isVisibleTo(app.effect.panel.widget)
    asked = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, **_: asked.append(text))
    app.ui.installButton.click()
    assert "torch: about 200 MB" in asked[0] and "internet" in asked[0]


def test_a_server_is_chosen_in_the_panel_and_kept_out_of_the_scene(app, monkeypatch, tmp_path):
    for package in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(package, reason="this test runs a famsam server: extras 'server' and 'test'")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "Engine" / "server"))
    from famsam.server.app import create_app
    from famsam.server.security import Access
    from server_fixtures import live

    token = "correct-horse-battery"
    monkeypatch.setattr(slicer.app, "_settings", QtCore.QSettings(str(tmp_path / "a.ini"), QtCore.QSettings.IniFormat))
    app.engine._load = engine_module._load_model
    monkeypatch.setattr("FaMSAMSlicerLib.requirements.REQUIREMENTS", (Requirement("no_such_module", "x", 1),))
    app.start()
    assert "Missing" in app.ui.statusLabel.text
    assert app.ui.serverToken.echoMode == QtWidgets.QLineEdit.Password and not app.ui.serverToken.enabled
    view = qt_host.SliceView("Axial", app.center(0))
    with live(create_app(RegionModel(), access=Access(token=token))) as server:
        address = str(server.base_url).rstrip("/")
        app.ui.serverAddress.text = address
        app.ui.serverAddress.editingFinished.emit()
        app.settle()
        assert "token" in app.ui.statusLabel.text, "the server asks for one, and the panel says so"
        assert not app.ui.modelFile.enabled and not app.ui.installButton.isVisibleTo(app.effect.panel.widget)
        app.ui.serverToken.text = token
        app.ui.serverToken.editingFinished.emit()
        app.settle()
        assert f"Ready on {address}" in app.ui.statusLabel.text
        app.click(view, app.center(0))
        assert dice(app.mask(), app.balls[0]) > 0.7
        slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
        assert slicer.mrmlScene.Commit()
        saved = (tmp_path / "scene.mrml").read_text()
        assert "FaMSAMSlicer" in saved and token not in saved and address not in saved
        assert token in (slicer.app.userSettings().sync() or (tmp_path / "a.ini").read_text())
        app.widget.ui.startButton.checked = False
        app.start()
        assert f"Ready on {address}" in app.ui.statusLabel.text, "kept"
    app.click(view, app.center(1))
    assert "no connection" in app.ui.statusLabel.text and app.ui.cancelButton.isVisibleTo(app.effect.panel.widget)
    app.ui.cancelButton.click()
    monkeypatch.undo()
    app.engine._load = lambda choice: RegionModel()
    app.ui.serverAddress.text = ""
    app.ui.serverAddress.editingFinished.emit()
    app.settle()
    assert "Ready on cpu" in app.ui.statusLabel.text and app.ui.modelFile.enabled


@pytest.mark.parametrize("way", ["stop", "exit", "scene", "reload"])
def test_nothing_stays_behind(app, way):
    scene = slicer.mrmlScene
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    app.effect.controller.preview(app.center(1))
    app.settle()
    effect, node = app.effect, app.node
    events = (slicer.vtkSegmentation.SegmentModified, slicer.vtkSegmentation.SourceRepresentationModified)
    assert all(node.HasObserver(event) for event in events)
    watch = effect._watch
    observed = [(watch._editor_node, watch._editor_tag), *((node, tag) for tag in watch._tags)]
    if way == "stop":
        app.widget.ui.startButton.checked = False
    elif way == "exit":
        app.widget.exit()
    elif way == "reload":
        app.widget.cleanup()
    else:
        scene.Clear(False)
    assert effect.controller is None and effect._timer is None and app.widget.editor.activeEffect() is None
    assert len(observed) == 5 and not any(caller.GetCommand(tag) for caller, tag in observed)
    names = [scene.GetNthNode(i).GetName() for i in range(scene.GetNumberOfNodes())]
    assert not [name for name in names if name and name in ("FaM-SAM points", "FaM-SAM preview")]
    if way in ("stop", "exit"):
        app.start()
        assert app.effect.controller.points.node.GetNumberOfControlPoints() == 1


def test_leaving_with_a_click_under_way_does_not_lose_it(app):
    app.start()
    node, segment_id = app.node, app.effect.controller.segment_id
    app.effect.controller.click(app.center(0))
    app.widget.ui.startButton.checked = False
    assert dice(host.segment_mask(node, segment_id, app.balls[0].shape), app.balls[0]) > 0.7


def test_effect_and_sample_data_are_registered_at_start_up(app):
    assert list(qt_host.ScriptedEffect.factory) == ["FaM-SAM"]
    source = sys.modules["SampleData"].SampleDataLogic.sources[-1]
    assert source["category"] == "FaM-SAM" and source["checksums"].startswith("SHA256:")
    effect = qt_host.ScriptedEffect.factory["FaM-SAM"].self()
    assert not effect.icon().isNull() and "include" in effect.helpText()
    assert not effect.createCursor(None).pixmap().isNull()


def test_the_engine_knows_when_the_application_ends(app, monkeypatch):
    engine = engine_module.shared_engine()
    monkeypatch.setattr(engine, "_is_over", False)
    slicer.app.aboutToQuit.emit()
    with pytest.raises(FamsamError, match="ends"):
        engine.warm_up(ModelChoice()).result(60)
    while engine.is_at_work:
        engine.wait(60)


def test_the_module_that_slicer_starts_with_can_be_started(app):
    """Its panel is made before the application has started, so before the effect is there."""
    import FaMSAMSlicer

    app.widget.cleanup()
    qt_host.ScriptedEffect.factory.clear()
    app.widget = FaMSAMSlicer.FaMSAMSlicerWidget(app.parent)
    app.widget.setup()
    app.widget.enter()
    slicer.app.startupCompleted.emit()
    app.start()
    assert app.widget.ui.startButton.checked and "Ready" in app.ui.statusLabel.text


@pytest.mark.parametrize("name", ["qMRMLWidget", "qMRMLSegmentEditorWidget", "ctkPathLineEdit", "ScriptedEffect"])
def test_stand_ins_offer_only_what_the_headers_declare(name):
    cls = getattr(qt_host, name)
    header = qt_host.HEADERS["qSlicerSegmentEditorScriptedEffect" if name == "ScriptedEffect" else name]
    declared = set(header["methods"]) | set(header["properties"]) | {s.split("(")[0] for s in header["signals"]}
    used = {n for n in vars(cls) if not n.startswith("_") and n not in ("staticMetaObject", "node", "logic", "factory")}
    assert used <= declared | {"setMRMLScene", "mrmlScene", "mrmlSceneChanged"} | {"undo", "redo"}, used - declared


def test_pictures_of_both_panels(app, tmp_path):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    for name, widget in (("module", app.parent), ("effect", app.effect.panel.widget)):
        widget.resize(380, widget.sizeHint().height())
        widget.show()
        picture = widget.grab()
        assert picture.width() > 200 and picture.save(str(tmp_path / f"{name}.png"))
        colors = {
            picture.toImage().pixel(x, y) for x in range(0, picture.width(), 5) for y in range(0, picture.height(), 5)
        }
        assert len(colors) > 3, "something is drawn"


def test_the_self_test_passes_with_the_bundled_model(app, monkeypatch, tmp_path):
    """The one for inside Slicer, with what of ``slicer.util`` needs the application put in its place."""
    from famsam.checkpoints import DEFAULT_WEIGHTS

    if not DEFAULT_WEIGHTS.is_file():
        pytest.skip("the bundled weights are not there")
    FaMSAMSlicer = importlib.import_module("FaMSAMSlicer")
    app.engine._load = engine_module._load_model

    def load(path):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "loaded")
        node.CreateDefaultDisplayNodes()
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(path)
        assert storage.ReadData(node)
        return node

    def update(volume, voxels):
        source = host.volume(voxels, np.eye(4), "source")
        volume.SetAndObserveImageData(source.GetImageData())
        slicer.mrmlScene.RemoveNode(source)

    monkeypatch.setattr(slicer.util, "loadSegmentation", load)
    monkeypatch.setattr(slicer.util, "updateVolumeFromArray", update)
    monkeypatch.setattr(slicer.util, "setSliceViewerLayers", lambda **layers: None)
    monkeypatch.setattr(slicer.util, "saveNode", lambda node, path: host.write(node, path))
    monkeypatch.setattr(slicer.util, "selectModule", lambda name: app.widget.enter())
    slicer.modules.FaMSAMSlicerWidget = app.widget  # the one there is, after a reload as well
    slicer.mrmlScene.RemoveNode(app.volume)

    said = []

    class SelfTest(FaMSAMSlicer.FaMSAMSlicerTest, unittest.TestCase):
        def delayDisplay(self, message):
            said.append(message)

        def setUp(self):
            pass

    SelfTest("test_click_undo_save_load").debug()
    absent = Requirement("no_such_module", "x", 1)
    monkeypatch.setattr("FaMSAMSlicerLib.requirements.REQUIREMENTS", (absent,))
    with pytest.raises(unittest.SkipTest, match="no_such_module missing here"):
        SelfTest("test_click_undo_save_load").debug()
    SelfTest("runTest").runTest()  # as Slicer's button does it, to which an exception is a failure
    assert "Skipped" in said[-1] and "no_such_module missing here" in said[-1]
