"""Keys, right clicks, double clicks and dialogs: what Slicer sends besides plain clicks, and modes that it is in."""

from __future__ import annotations

import host
import numpy as np
import pytest
import slicer

pytest.importorskip("PySide6", reason="the panels run on PySide6 (pip install PySide6-Essentials)")

import qt_host
from PySide6 import QtCore, QtWidgets
from worlds import dice


def visible(app):
    node = app.effect.controller._preview.node
    return node is not None and bool(node.GetDisplayNode().GetVisibility())


def test_a_held_key_that_repeats_keeps_the_preview(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    view.interactor.SetEventInformation(*view.pixel(app.center(0)), 0, 0, "\0", 0, "")
    app.send("KeyPressEvent", view, view.pixel(app.center(0)), key="a")
    app.settle()
    assert visible(app), "at once, without a move of the pointer"
    for _ in range(5):  # as X11 and Windows repeat a key
        app.send("KeyReleaseEvent", view, view.pixel(app.center(0)), key="a")
        app.send("KeyPressEvent", view, view.pixel(app.center(0)), key="a")
        app.settle()
        assert visible(app)
    assert app.effect._preview_key.is_down
    app.send("KeyReleaseEvent", view, key="a")
    app.let_go()
    assert not visible(app)
    app.send("MouseMoveEvent", view, view.pixel(app.center(0)))
    app.settle()
    assert not visible(app) and not app.effect.controller.state.prompts


def test_the_preview_button_still_works_after_the_effect_was_left(app):
    app.start()
    app.ui.previewButton.click()
    app.widget.ui.startButton.checked = False
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.send("MouseMoveEvent", view, view.pixel(app.center(0)))
    app.settle()
    assert visible(app), "it is pressed"
    app.ui.previewButton.click()
    assert not visible(app)


def test_a_preview_outside_of_the_scan_is_silent(app):
    app.start()
    app.ui.previewButton.click()
    view = qt_host.SliceView("Axial", app.center(0))
    app.send("MouseMoveEvent", view, view.pixel(app.center(0)))
    app.settle()
    said = app.ui.statusLabel.text
    app.send("MouseMoveEvent", view, (2, 2))
    app.settle()
    assert not visible(app) and app.ui.statusLabel.text == said
    app.click(view, (-20.0, -8.0, app.center(0)[2]))
    assert "outside" in app.ui.statusLabel.text, "a click there is told"


def test_a_view_has_the_keys_once_the_pointer_is_in_it(app, monkeypatch):
    window = QtWidgets.QWidget()
    layout = QtWidgets.QVBoxLayout(window)
    button, line, canvas = QtWidgets.QPushButton(), QtWidgets.QLineEdit(), QtWidgets.QWidget()
    for widget in (button, line, canvas):
        layout.addWidget(widget)
    window.show()
    window.activateWindow()
    monkeypatch.setattr(QtWidgets.QApplication, "widgetAt", lambda place: canvas)
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    for focused, gets_them in ((line, False), (button, True)):
        focused.setFocus()
        qt_host.APPLICATION.processEvents()
        assert qt_host.APPLICATION.focusWidget() is focused
        assert app.send("EnterEvent", view) is False
        assert (qt_host.APPLICATION.focusWidget() is canvas) == gets_them
    window.close()


def test_a_double_click_is_one_click_and_does_not_enlarge_the_view(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    pixel = view.pixel(app.center(0))
    app.click(view, app.center(0))
    assert app.send("LeftButtonDoubleClickEvent", view, pixel) is True
    app.send("LeftButtonReleaseEvent", view, pixel)
    app.settle()
    assert len(app.effect.controller.state.prompts) == 1
    app.effect.controller.points.node.GetDisplayNode().SetActiveControlPoint(0)
    assert app.send("LeftButtonDoubleClickEvent", view, pixel) is False, "that one is for the point"


def test_no_box_hangs_on_the_pointer_after_a_dialog(app, monkeypatch):
    """Slicer asks before a hidden segment is changed; by then the button of the mouse is up."""
    app.start()
    effect = app.effect.scriptedEffect
    monkeypatch.setattr(effect, "confirmCurrentSegmentVisible", lambda: effect.ConfirmedWithDialog, raising=False)
    view = qt_host.SliceView("Axial", app.center(0))
    app.ui.boxButton.click()
    app.send("LeftButtonPressEvent", view, (100, 100))
    app.send("MouseMoveEvent", view, (200, 200))
    assert not view._renderer.GetViewProps().GetNumberOfItems()
    app.ui.positiveButton.click()
    app.click(view, app.center(0))
    assert dice(app.mask(), app.balls[0]) > 0.7, "a click needs no second one"


@pytest.mark.parametrize("release", ["of a click after a dialog", "that was lost"])
def test_a_release_is_used_up_by_the_effect_only_after_its_own_press(app, monkeypatch, release):
    """Else the drag of a point, which comes next, would not end."""
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    pixel = view.pixel(app.center(0))
    effect = app.effect.scriptedEffect
    if release == "of a click after a dialog":
        monkeypatch.setattr(effect, "confirmCurrentSegmentVisible", lambda: effect.ConfirmedWithDialog, raising=False)
    assert app.send("LeftButtonPressEvent", view, pixel) is True
    app.settle()
    if release == "that was lost":
        app.effect.controller.points.node.GetDisplayNode().SetActiveControlPoint(0)
        assert app.send("LeftButtonPressEvent", view, pixel) is False, "that one is for the point"
    assert app.send("LeftButtonReleaseEvent", view, pixel) is False


def test_a_drag_needs_a_button_of_the_mouse(app, monkeypatch):
    app.start()
    app.click(qt_host.SliceView("Axial", app.center(0)), app.center(0))
    points = app.effect.controller.points
    for pressed in (QtCore.Qt.NoButton, QtCore.Qt.LeftButton, QtCore.Qt.MiddleButton):
        monkeypatch.setattr(QtWidgets.QApplication, "mouseButtons", lambda pressed=pressed: pressed)
        points.node.InvokeEvent(points.node.PointStartInteractionEvent)
        assert points.dragging == (pressed != QtCore.Qt.NoButton)


def test_a_point_is_deleted_by_its_menu(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    one = app.mask()
    app.click(view, app.center(1))
    display = app.effect.controller.points.node.GetDisplayNode()
    display.SetActiveControlPoint(1)
    display.InvokeEvent(display.MenuEvent)  # as Slicer's widget for markups does on a right click
    assert app.effect.panel._point_menu.isVisible()
    display.SetActiveComponent(display.ComponentNone, -1)  # the pointer is on the menu now
    app.effect.panel.delete_action.trigger()
    app.settle()
    assert len(app.effect.controller.state.prompts) == 1
    np.testing.assert_array_equal(app.mask(), one)
    app.effect.panel._point_menu.hide()
    app.widget.ui.startButton.checked = False
    assert not display.HasObserver(display.MenuEvent)


def test_all_points_deleted_at_once_are_forgotten_and_come_back_by_undo(app):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    for ball in (0, 1):
        app.click(view, app.center(ball))
    mask, points = app.mask(), app.effect.controller.points.node
    points.RemoveAllControlPoints()  # as Slicer's own Shift+Delete does
    app.settle()
    assert not app.effect.controller.state.prompts
    np.testing.assert_array_equal(app.mask(), mask)
    app.widget.editor.undo()
    assert points.GetNumberOfControlPoints() == len(app.effect.controller.state.prompts) == 2


def test_placing_markups_ends_the_clicking(app):
    """Else a press would place a markup and segment something, or could not place it."""
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    app.start()
    interaction.SetCurrentInteractionMode(interaction.Place)
    assert app.widget.editor.activeEffect() is None and not app.widget.ui.startButton.checked
    app.start()
    assert app.widget.ui.startButton.checked


def test_a_scene_loaded_into_this_one_leaves_the_module_usable(app, tmp_path):
    app.start()
    view = qt_host.SliceView("Axial", app.center(0))
    app.click(view, app.center(0))
    for node in (app.volume, app.node):
        node.AddDefaultStorageNode()
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    assert slicer.mrmlScene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    assert app.widget.editor.mrmlSegmentEditorNode() is app.widget.logic.editor_node()
    app.start()
    prompts = len(app.effect.controller.state.prompts)
    app.click(view, app.center(0))
    assert not app.effect.controller.status.is_error, app.effect.controller.status.message
    assert len(app.effect.controller.state.prompts) == prompts + 1
    assert host.segment_mask(app.node, app.effect.controller.segment_id, app.balls[0].shape).any()


@pytest.fixture
def scene_saved_while_clicking(app, tmp_path):
    app.start()
    for node in (app.volume, app.node):
        node.AddDefaultStorageNode()
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    assert app.widget.logic.editor_node().GetActiveEffectName() == "FaM-SAM"
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    return str(tmp_path / "scene.mrb")


@pytest.mark.parametrize("where", ["in another module", "in this one", "in this one, clicking", "before it was shown"])
def test_a_scene_saved_while_clicking_starts_nothing_when_it_is_loaded(app, scene_saved_while_clicking, where):
    editor, button = app.widget.editor, app.widget.ui.startButton
    if where != "in this one, clicking":
        button.checked = False
    if where in ("in another module", "before it was shown"):
        app.widget.exit()
        app.parent.isEntered = False
    if where == "before it was shown":
        editor.setMRMLSegmentEditorNode(None)
        app.widget.removeObservers()
    assert slicer.mrmlScene.ReadFromMRB(scene_saved_while_clicking)
    if where == "before it was shown":
        app.widget.enter()
    editor._follow_node()  # as Slicer's widget does once the scene is there
    assert editor.activeEffect() is None and not button.checked and button.text == "Start clicking"
    app.parent.isEntered = True
    app.widget.enter()
    app.start()
    assert editor.activeEffect() is not None and button.checked and button.text == "Stop clicking"


def test_a_scene_saved_without_this_effect_takes_nothing_away(app):
    app.start()
    app.ui.negativeButton.click()
    app.widget.ui.startButton.checked = False
    app.widget.logic.editor_node().RemoveAttribute("FaM-SAM.Tool")  # as loading such a scene does
    app.start()
    assert app.ui.positiveButton.checked
    app.click(qt_host.SliceView("Axial", app.center(0)), app.center(0))
    assert dice(app.mask(), app.balls[0]) > 0.7


def test_the_button_goes_up_where_the_segmentation_may_not_be_edited(app, monkeypatch):
    """Slicer asks before it converts a segmentation that is a surface; No leaves the effect off."""
    monkeypatch.setattr(app.widget.editor, "setActiveEffectByName", lambda name: None)
    app.widget.ui.startButton.checked = True
    assert not app.widget.ui.startButton.checked and app.widget.ui.startButton.text == "Start clicking"


def test_nothing_is_connected_any_more_after_cleanup(app):
    """As the Segment Editor's widget does with its effects when it is deleted."""
    app.start()
    effect, ui = app.effect, app.ui
    panel = effect.panel
    effect.cleanup()
    assert effect.controller is None and not panel._connections
    ui.negativeButton.click()
    assert effect.scriptedEffect.parameter("Tool") == "positive", "nobody listens"


def test_no_choice_is_offered_twice(app):
    app.start()
    for selector in (app.ui.deviceSelector, app.ui.precisionSelector):
        offered = [selector.itemText(i) for i in range(selector.count)]
        assert len(offered) == len(set(offered)), offered
