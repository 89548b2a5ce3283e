"""Proposals by the panel's buttons and by keys in the views: ask, step, take, leave."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PySide6", reason="the panels run on PySide6 (pip install PySide6-Essentials)")

import qt_host
from region_model import ProposingModel
from worlds import dice


@pytest.fixture
def proposing(app):
    model = ProposingModel()
    app.engine._load = lambda choice: model
    app.model = model
    app.start()
    app.view = qt_host.SliceView("Axial", app.center(0))
    return app


def press(app, key, view=None, shift=0):
    used = app.send("KeyPressEvent", view or app.view, shift=shift, key=key)
    app.send("KeyReleaseEvent", view or app.view, shift=shift, key=key)
    app.settle()
    return used


def shown(app):
    node = app.effect.controller._proposals.overlay.node
    return node is not None and bool(node.GetDisplayNode().GetVisibility())


def said(app):
    return app.ui.statusLabel.text


def test_ask_step_and_take_by_buttons(proposing):
    ui, panel = proposing.ui, proposing.effect.panel.widget
    assert not ui.takeButton.enabled and not ui.cancelButton.isVisibleTo(panel)
    ui.proposeButton.click()
    assert "Looking for structures" in said(proposing) and ui.progressBar.isVisibleTo(panel)
    proposing.settle()
    assert said(proposing).startswith("Proposal 1 of 2, predicted overlap ") and shown(proposing)
    assert ui.takeButton.enabled and ui.cancelButton.isVisibleTo(panel) and not ui.progressBar.isVisibleTo(panel)
    ui.proposeButton.click()
    assert said(proposing).startswith("Proposal 2 of 2") and not proposing.mask().any()
    ui.takeButton.click()
    proposing.settle()
    assert dice(proposing.mask(), proposing.balls[0]) > 0.9 and not shown(proposing)
    assert "Ready" in said(proposing) and "predicted overlap" in said(proposing) and not ui.takeButton.enabled
    proposing.widget.editor.undo()
    assert not proposing.mask().any()


def test_ask_step_and_take_by_keys(proposing):
    assert press(proposing, "p") is True and said(proposing).startswith("Proposal 1 of 2")
    assert press(proposing, "P", shift=1) is True and said(proposing).startswith("Proposal 2 of 2")
    assert press(proposing, "P", shift=1) is True and said(proposing).startswith("Proposal 1 of 2")
    assert not proposing.mask().any()
    assert press(proposing, "Return") is True
    assert dice(proposing.mask(), proposing.balls[1]) > 0.9
    taken = proposing.mask()
    proposing.click(proposing.view, proposing.center(0))
    assert len(proposing.effect.controller.state.prompts) == 1
    assert (proposing.mask() & taken).sum() > 0.9 * taken.sum(), "a click refines it"
    assert dice(proposing.mask() & ~taken, proposing.balls[0]) > 0.7
    for expected in (taken, np.zeros_like(taken)):
        proposing.widget.editor.undo()
        np.testing.assert_array_equal(proposing.mask(), expected)
    proposing.widget.editor.redo()
    np.testing.assert_array_equal(proposing.mask(), taken)


@pytest.mark.parametrize("way", ["key", "button", "effect", "segment", "click"])
def test_leaving_them_changes_nothing(proposing, way):
    proposing.click(proposing.view, proposing.center(0))
    mask, state = proposing.mask(), proposing.effect.controller.state
    press(proposing, "p")
    assert shown(proposing)
    if way == "key":
        assert press(proposing, "Escape") is True and "No proposal was taken" in said(proposing)
    elif way == "button":
        proposing.ui.cancelButton.click()
        assert "Cancelled" in said(proposing)
    elif way == "effect":  # as Esc does where the Segment Editor's own shortcut gets it
        proposing.widget.editor.setActiveEffect(None)
        proposing.start()
    elif way == "segment":
        first = proposing.effect.controller.segment_id
        proposing.widget.editor.setCurrentSegmentID(proposing.node.GetSegmentation().AddEmptySegment("second"))
        assert "No proposal was taken" in said(proposing) and not proposing.mask().any()
        proposing.widget.editor.setCurrentSegmentID(first)
    else:
        proposing.click(proposing.view, proposing.center(1))
        assert len(proposing.effect.controller.state.prompts) == 2
        proposing.widget.editor.undo()
    proposing.settle()
    assert not shown(proposing) and not proposing.ui.takeButton.enabled
    assert not proposing.ui.cancelButton.isVisibleTo(proposing.effect.panel.widget)
    np.testing.assert_array_equal(proposing.mask(), mask)
    assert proposing.effect.controller.state == state


def test_enter_and_esc_are_left_to_others_while_there_is_no_proposal(proposing):
    for key in ("Return", "KP_Enter", "Escape"):
        assert press(proposing, key) is False
    assert not proposing.mask().any()


def test_in_a_3d_view_it_is_a_surface(proposing):
    press(proposing, "p", qt_host.ThreeDView())
    node = proposing.effect.controller._proposals.overlay.node
    assert node.GetDisplayNode().GetVisibility3D()
    assert node.GetSegmentation().GetSegment("preview").GetRepresentation("Closed surface").GetNumberOfPoints() > 0
    press(proposing, "p")
    assert not node.GetDisplayNode().GetVisibility3D(), "asked for in a slice view"


def test_the_pointer_may_go_on_and_leave_the_view(proposing):
    proposing.ui.previewButton.click()
    press(proposing, "p")
    proposing.send("MouseMoveEvent", proposing.view, proposing.view.pixel(proposing.center(0)))
    proposing.settle()
    proposing.send("LeaveEvent", proposing.view)
    assert shown(proposing) and said(proposing).startswith("Proposal 1 of 2")


def test_a_hidden_segment_is_asked_about_first(proposing, monkeypatch):
    effect = proposing.effect.scriptedEffect
    monkeypatch.setattr(effect, "confirmCurrentSegmentVisible", lambda: effect.NotConfirmed, raising=False)
    press(proposing, "p")
    press(proposing, "Return")
    assert not proposing.mask().any() and shown(proposing), "the user did not want that; the proposal is still there"


def test_a_click_while_they_are_looked_for_is_not_held_up_on_the_screen(proposing):
    proposing.model.gate.clear()
    proposing.ui.proposeButton.click()
    assert proposing.model.looking.wait(60)
    pixel = proposing.view.pixel(proposing.center(0))
    assert proposing.send("LeftButtonPressEvent", proposing.view, pixel) is True
    proposing.send("LeftButtonReleaseEvent", proposing.view, pixel)
    assert proposing.effect.controller.points.node.GetNumberOfControlPoints() == 1
    proposing.model.gate.set()
    proposing.settle()
    assert dice(proposing.mask(), proposing.balls[0]) > 0.7 and not shown(proposing)


def test_another_model_or_volume_ends_them(proposing):
    press(proposing, "p")
    proposing.ui.precisionSelector.setCurrentIndex(proposing.ui.precisionSelector.findText("fp32"))
    proposing.ui.precisionSelector.activated.emit(1)
    proposing.settle()
    assert not shown(proposing) and "Ready" in said(proposing) and not proposing.ui.takeButton.enabled


def test_a_model_that_cannot_propose_says_so(app):
    app.start()
    app.ui.proposeButton.click()
    app.settle()
    assert "cannot propose" in app.ui.statusLabel.text and not app.mask().any()
    assert not app.ui.takeButton.enabled and not app.ui.progressBar.isVisibleTo(app.effect.panel.widget)
