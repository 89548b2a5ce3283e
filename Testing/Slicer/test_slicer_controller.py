"""Never frozen, nothing lost, one message for what goes wrong, nothing left behind."""

from __future__ import annotations

import threading

import host
import numpy as np
import pytest
import slicer
import vtk
from FaMSAMSlicerLib.controller import Controller
from FaMSAMSlicerLib.engine import Engine, ModelChoice, Step
from region_model import RegionModel
from worlds import dice


class HeldModel(RegionModel):
    """Decodes only while ``gate`` is open, and counts; raises what it is told to, once."""

    def __init__(self):
        super().__init__()
        self.gate, self.decodes, self.error = threading.Event(), 0, None
        self.gate.set()

    def decode(self, *args, **kwargs):
        assert self.gate.wait(60)
        self.decodes += 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().decode(*args, **kwargs)


@pytest.fixture
def held(world):
    model = HeldModel()
    world.engine.close()
    world.engine = world.controller.engine = Engine(lambda choice: model)
    world.model = model
    return world


def test_clicks_return_at_once_and_none_is_lost(held):
    held.model.gate.clear()
    for offset in range(5):
        held.controller.click(held.centre(0, (offset, 0, 0)))
        assert held.controller.status.busy and held.controller.status.message == "Computing…"
        assert held.controller.points.node.GetNumberOfControlPoints() == offset + 1, "points are there at once"
        assert not held.mask().any()
    held.model.gate.set()
    held.settle()
    assert len(held.controller.state.prompts) == 5
    ready = [status for status in held.said if status.message == "Ready"]
    assert len(ready) == 2, "the first click, and the four that came meanwhile as one"
    assert not held.controller.status.busy


def test_only_the_newest_of_waiting_moves_is_computed(held):
    held.click(held.centre(0))
    held.model.decodes = 0
    held.model.gate.clear()
    for x in range(10):
        held.controller.points.node.SetNthControlPointPosition(0, *held.centre(0, (0, 0, x / 5)))
    held.model.gate.set()
    held.settle()
    alone = held.model.decodes // 2
    assert held.controller.state.prompts[0]["ras_mm"] == pytest.approx(held.centre(0, (0, 0, 9 / 5)))
    assert alone * 2 == held.model.decodes, "two requests: the first move, and the last"


def paint_after_a_click(held):
    """So that the next click ends that one; from here on the model waits for its gate."""
    held.click(held.centre(0))
    painted = held.mask()
    painted[2:5, 2:6, 2:6] = True
    host.set_segment(held.segmentation, "first", painted)
    held.model.gate.clear()


@pytest.mark.parametrize("moved", [0, 1])
def test_a_point_moved_while_a_click_ends_the_points_before_it_is_the_one_that_was_meant(held, moved):
    paint_after_a_click(held)
    held.controller.click(held.centre(1))  # goes on from what was painted: the first point ends
    held.controller.points.node.SetNthControlPointPosition(moved, *held.centre(1, (2, 0, 0)))
    held.model.gate.set()
    held.settle()
    (left,) = held.controller.state.prompts
    assert left["ras_mm"] == pytest.approx(held.centre(1, (2 * moved, 0, 0)))
    assert shown(held)[0] == pytest.approx(left["ras_mm"]) and not held.controller.status.is_error


def test_a_click_that_waits_with_a_drag_of_a_point_that_ends_is_not_lost(held):
    paint_after_a_click(held)
    held.select("second")
    held.controller.click(held.centre(1))
    held.select("first")
    held.controller.click(held.centre(1))  # these wait together: the first point ends with the click
    held.controller.move_point(0, held.centre(1, (2, 0, 0)))
    held.model.gate.set()
    held.settle()
    (left,) = held.controller.state.prompts
    assert left["ras_mm"] == pytest.approx(held.centre(1)) and not held.controller.status.is_error
    assert dice(held.mask() & held.balls[1], held.balls[1]) > 0.7


def test_a_point_is_the_one_that_was_meant_when_one_that_ends_is_removed_before_it(held):
    paint_after_a_click(held)
    held.controller.click(held.centre(1))  # the first point ends
    held.controller.remove_point(0)
    held.controller.move_point(0, held.centre(1, (2, 0, 0)))
    held.model.gate.set()
    held.settle()
    (left,) = held.controller.state.prompts
    assert left["ras_mm"] == pytest.approx(held.centre(1, (2, 0, 0))) and not held.controller.status.is_error


def test_a_drag_is_one_step_for_undo(world):
    world.click(world.centre(0))
    before = world.mask()
    node = world.controller.points.node
    node.InvokeEvent(node.PointStartInteractionEvent)
    for x in range(4):
        node.SetNthControlPointPosition(0, *world.centre(0, (0, x, 0)))
        world.settle()
    node.InvokeEvent(node.PointEndInteractionEvent)
    world.settle()
    assert world.controller.state.prompts[0]["ras_mm"] == pytest.approx(world.centre(0, (0, 3, 0)))
    world.effect.undo()
    world.controller.sync()
    np.testing.assert_array_equal(world.mask(), before)
    assert world.controller.state.prompts[0]["ras_mm"] == pytest.approx(world.centre(0))


def shown(world):
    return slicer.util.arrayFromMarkupsControlPoints(world.controller.points.node)


def test_a_point_moved_by_a_key_follows_undo(world):
    """Slicer's key S (to this slice) begins like a drag, but does not end."""
    world.click(world.centre(0))
    node = world.controller.points.node
    world.controller.points.is_button_down = lambda: False
    node.InvokeEvent(node.PointStartInteractionEvent)
    node.SetNthControlPointPosition(0, *world.centre(0, (2, 0, 0)))
    world.settle()
    assert world.controller.state.prompts[0]["ras_mm"] == pytest.approx(world.centre(0, (2, 0, 0)))
    world.effect.undo()
    world.controller.sync()
    assert shown(world)[0] == pytest.approx(world.centre(0))


def test_all_points_dragged_at_once_go_back(world):
    """As Slicer's middle button drags them: no prompt is moved."""
    world.click(world.centre(0))
    world.click(world.centre(1))
    before, mask, node = shown(world), world.mask(), world.controller.points.node
    node.InvokeEvent(node.PointStartInteractionEvent)
    there = vtk.vtkPoints()
    for place in before + 5:
        there.InsertNextPoint(place)
    node.SetControlPointPositionsWorld(there)
    np.testing.assert_allclose(shown(world), before + 5)
    node.InvokeEvent(node.PointEndInteractionEvent)
    np.testing.assert_allclose(shown(world), before)
    world.settle()
    np.testing.assert_array_equal(world.mask(), mask)


def test_a_drag_that_is_refused_goes_back_when_it_ends(world):
    world.click(world.centre(0))
    painted = world.mask()
    painted[2:5, 2:6, 2:6] = True
    host.set_segment(world.segmentation, "first", painted)
    node = world.controller.points.node
    node.InvokeEvent(node.PointStartInteractionEvent)
    node.SetNthControlPointPosition(0, *world.centre(1))
    world.settle()
    assert world.controller.status.is_error and shown(world)[0] == pytest.approx(world.centre(1)), (
        "still at the pointer"
    )
    node.InvokeEvent(node.PointEndInteractionEvent)
    assert shown(world)[0] == pytest.approx(world.centre(0))


def test_deleting_a_point_in_a_view_restores_the_mask_without_it(world):
    world.click(world.centre(0))
    one = world.mask()
    world.click(world.centre(1))
    world.controller.points.node.RemoveNthControlPoint(1)
    world.settle()
    np.testing.assert_array_equal(world.mask(), one)
    assert len(world.controller.state.prompts) == 1
    world.controller.points.node.RemoveNthControlPoint(0)
    world.settle()
    assert not world.mask().any() and not world.controller.state.prompts
    for count in (1, 2):
        world.effect.undo()
        world.controller.sync()
        assert world.controller.points.node.GetNumberOfControlPoints() == count


def test_box_and_points_are_numbered_apart(world):
    low, high = world.centre(0, (-8, -8, -8)), world.centre(0, (8, 8, 8))
    world.click(world.centre(0, (2, 0, 0)))
    world.controller.box([high, low])
    world.settle()
    assert [prompt["type"] for prompt in world.controller.state.prompts] == ["point", "box"]
    world.click(world.centre(0))
    assert world.controller.points.node.GetNumberOfControlPoints() == 2
    world.controller.points.node.SetNthControlPointPosition(1, *world.centre(0, (1, 0, 0)))
    world.settle()
    assert world.controller.state.prompts[2]["ras_mm"] == pytest.approx(world.centre(0, (1, 0, 0)))
    assert dice(world.mask(), world.balls[0]) > 0.6


def test_a_box_alone_finds_what_is_in_its_middle_and_is_one_step(world):
    world.controller.box([world.centre(0, (8, -8, 8)), world.centre(0, (-8, 8, -8))])
    world.settle()
    (box,) = world.controller.state.prompts
    assert box["type"] == "box" and world.controller.points.node is None, "no point that the user has not placed"
    assert dice(world.mask(), world.balls[0]) > 0.7
    world.effect.undo()
    world.controller.sync()
    assert not world.controller.state.prompts and not world.mask().any()


def test_an_empty_result_says_what_to_do(world):
    world.click(world.centre(0), positive=False)
    assert "is empty" in world.controller.status.message and not world.controller.status.is_error
    assert not world.mask().any() and len(world.controller.state.prompts) == 1
    world.click(world.centre(0))
    assert world.controller.status.message == "Ready"


def test_preview_changes_nothing_and_a_click_overtakes_it(held):
    held.click(held.centre(0))
    mask, state = held.mask(), held.controller.state
    held.controller.preview(held.centre(1))
    held.settle()
    preview = held.controller._preview.node
    assert preview.GetDisplayNode().GetVisibility() and preview.GetSegmentation().GetSegment("preview")
    np.testing.assert_array_equal(held.mask(), mask)
    assert held.controller.state == state
    held.model.gate.clear()
    for x in range(5):
        held.controller.preview(held.centre(1, (0, 0, x)))
    held.controller.click(held.centre(1))
    held.model.gate.set()
    held.settle()
    assert len(held.controller.state.prompts) == 2
    assert not preview.GetDisplayNode().GetVisibility()
    held.controller.preview(held.centre(1))
    held.controller.end_preview()
    held.settle()
    assert not preview.GetDisplayNode().GetVisibility()


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError()])
def test_an_error_in_the_worker_is_one_message_and_the_next_click_works(held, error):
    held.model.error = error
    held.click(held.centre(0))
    errors = [status for status in held.said if status.is_error]
    assert len(errors) == 1 and type(error).__name__ in errors[0].message
    assert not held.controller.state.prompts and not held.controller.busy
    held.click(held.centre(0))
    assert len(held.controller.state.prompts) == 1 and not held.controller.status.is_error


def test_a_model_that_cannot_be_loaded_says_so_each_time(world):
    world.engine.close()
    world.engine = world.controller.engine = Engine()
    world.controller.choice = ModelChoice("/nowhere/weights.pth")
    for _ in range(2):
        world.click(world.centre(0))
        assert world.controller.status.is_error and "weights.pth" in world.controller.status.message


def test_click_outside_the_scan_says_so_gently(world):
    world.click(world.world((-5, 3, 3)))
    assert world.controller.status.is_error and "outside" in world.controller.status.message
    world.click(world.centre(0))
    assert dice(world.mask(), world.balls[0]) > 0.7


def test_without_segment_or_volume_a_click_says_what_is_missing(world):
    world.effect.node.SetSelectedSegmentID("")
    world.click(world.centre(0))
    assert "segment" in world.controller.status.message
    world.effect.select(world.segmentation, None, "first")
    world.click(world.centre(0))
    assert "source volume" in world.controller.status.message


def test_vector_volumes_are_refused_with_a_way_out(world):
    color = host.volume(np.zeros((4, 5, 6, 3), np.uint8), np.eye(4), "photo", components=3)
    world.effect.select(world.segmentation, color, "first")
    world.click((2.0, 2.0, 2.0))
    assert world.controller.status.is_error and "Vector to Scalar" in world.controller.status.message


def test_empty_and_constant_volumes_are_refused(world):
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    world.effect.select(world.segmentation, empty, "first")
    world.click((2.0, 2.0, 2.0))
    assert "no voxels" in world.controller.status.message
    world.effect.select(world.segmentation, host.volume(np.ones((9, 9, 9), np.int16), np.eye(4)), "first")
    world.click((2.0, 2.0, 2.0))
    assert world.controller.status.is_error and "nothing to segment" in world.controller.status.message


def test_a_volume_that_changes_is_taken_anew(world):
    world.click(world.centre(0))
    voxels = slicer.util.arrayFromVolume(world.volume)
    voxels[:] = np.roll(voxels, 6, axis=1)
    slicer.util.arrayFromVolumeModified(world.volume)
    world.controller.reset_segment()
    world.click(world.centre(0, (0, 6, 0)))
    assert dice(world.mask(), np.roll(world.balls[0], 6, axis=1)) > 0.7


def test_the_next_click_goes_on_in_the_same_session(world):
    world.click(world.centre(0))
    session, history = world.engine._place._session, len(world.engine._place._session._history)
    world.click(world.centre(1))
    assert world.engine._place._session is session
    assert len(session._history) == history + 1, "nothing was replayed"


def test_two_editors_share_the_worker(world):
    """The module's and the Segment Editor's: each finds its own state again."""
    effect = host.Effect(world.segmentation, world.volume, "second")
    other = Controller(effect, world.engine, world.said.append)
    for offset in range(3):
        world.controller.click(world.centre(0, (offset, 0, 0)))
        other.click(world.centre(1, (offset, 0, 0)))
    other.finish(60)
    world.settle()
    for name, ball, controller in (("first", 0, world.controller), ("second", 1, other)):
        assert len(controller.state.prompts) == 3 and controller.state.base is None
        assert dice(world.mask(name), world.balls[ball]) > 0.7
    assert not (world.mask("first") & world.mask("second")).any()
    other.close()


def test_cancel_drops_what_is_under_way(held):
    held.model.gate.clear()
    held.controller.click(held.centre(0))
    held.controller.click(held.centre(1))
    held.controller.cancel()
    held.model.gate.set()
    held.settle()
    assert not held.controller.busy and not held.mask().any() and not held.controller.state.prompts
    assert held.controller.points.node.GetNumberOfControlPoints() == 0
    held.click(held.centre(0))
    assert dice(held.mask(), held.balls[0]) > 0.7, "the dropped click has left nothing in the session"


def test_points_can_be_cleared_while_the_first_click_is_computed(held):
    held.model.gate.clear()
    held.controller.click(held.centre(0))
    held.controller.clear_points()
    assert held.controller.points.node.GetNumberOfControlPoints() == 0
    held.model.gate.set()
    held.settle()
    assert not held.mask().any() and not held.controller.state.prompts and not held.controller.busy


@pytest.mark.parametrize("what", ["clear_points", "reset_segment"])
def test_what_is_done_to_one_segment_takes_no_click_on_another_away(held, what):
    held.select("second")
    held.click(held.centre(1))
    held.model.gate.clear()
    held.select("first")
    for offset in (0, 1):
        held.controller.click(held.centre(0, (offset, 0, 0)))
    held.select("second")
    held.controller.click(held.centre(1, (1, 0, 0)))
    getattr(held.controller, what)()
    assert held.controller.points.node.GetNumberOfControlPoints() == 0
    held.model.gate.set()
    held.settle()
    assert dice(held.mask("first"), held.balls[0]) > 0.7
    assert not held.controller.state.prompts and held.mask("second").any() == (what == "clear_points")


def test_clicks_go_on_while_another_segmentation_is_selected(held):
    other = host.segmentation(held.volume, "elsewhere")
    held.model.gate.clear()
    held.controller.click(held.centre(0))  # this one is with the worker,
    held.controller.click(held.centre(0, (1, 0, 0)))  # this one is not
    held.effect.select(other, held.volume, "elsewhere")
    held.controller.sync()
    held.model.gate.set()
    held.settle()
    assert held.controller.status.message == "Ready"
    first_mask = held.mask()
    assert dice(first_mask, held.balls[0]) > 0.7 and held.controller.points.node.GetNumberOfControlPoints() == 0
    held.click(held.centre(1))
    assert dice(host.segment_mask(other, "elsewhere", held.size_zyx), held.balls[1]) > 0.7
    held.effect.undo()
    assert not host.segment_mask(other, "elsewhere", held.size_zyx).any() and (held.mask() == first_mask).all()
    held.effect.select(held.segmentation, held.volume, "first")
    held.controller.sync()
    assert held.controller.points.node.GetNumberOfControlPoints() == 2


@pytest.mark.parametrize("gone", [False, True])
def test_a_click_that_waits_is_computed_on_the_volume_on_which_it_was_made(held, gone):
    other = host.volume(np.zeros(held.size_zyx, np.int16), held.matrix, "other")
    held.model.gate.clear()
    for offset in (0, 1):
        held.controller.click(held.centre(0, (offset, 0, 0)))
    held.effect.select(held.segmentation, other, "first")
    held.controller.sync()
    if gone:
        slicer.mrmlScene.RemoveNode(held.volume)
    held.model.gate.set()
    held.settle()
    assert len(held.controller.state.prompts) == 2 and dice(held.mask(), held.balls[0]) > 0.7


def test_what_was_asked_of_a_segment_that_is_gone_takes_no_other_along(held):
    held.model.gate.clear()
    held.controller.click(held.centre(0))
    held.select("second")
    held.controller.click(held.centre(0))
    held.select("first")
    held.controller.click(held.centre(0, (1, 0, 0)))
    held.segmentation.GetSegmentation().RemoveSegment("second")
    threading.Timer(0.2, held.model.gate.set).start()
    held.controller.finish(60)  # the effect is left
    assert len(held.controller.state.prompts) == 2


@pytest.mark.parametrize("masked", [False, True])
def test_a_result_for_another_segmentation_is_written_by_its_own_grid_and_masks(held, masked):
    """Not by those of the one that is selected by then; the next thing there can be undone as if nothing had been."""
    held.effect.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    if masked:
        host.set_segment(held.segmentation, "second", held.balls[0])
    coarse = host.volume(np.zeros((9, 9, 9), np.int16), np.diag([7.0, 7.0, 7.0, 1.0]), "coarse")
    other = host.segmentation(coarse, "elsewhere")
    host.set_segment(other, "elsewhere", np.ones((9, 9, 9), bool))
    held.model.gate.clear()
    held.controller.click(held.centre(0))
    held.effect.select(other, coarse, "elsewhere")
    held.controller.sync()
    held.model.gate.set()
    held.settle()
    assert held.effect.node.GetSegmentationNode() is other and held.effect.node.GetSelectedSegmentID() == "elsewhere"
    assert (dice(held.mask(), held.balls[0]) > 0.7) != masked and (held.mask() & held.balls[0]).any() != masked
    assert host.segment_mask(other, "elsewhere", (9, 9, 9)).all()


def test_another_segment_selected_while_computing_gets_nothing(held):
    held.model.gate.clear()
    held.controller.click(held.centre(0))
    held.select("second")
    held.model.gate.set()
    held.settle()
    assert held.mask("first").any() and not held.mask("second").any()
    assert not held.controller.state.prompts
    held.select("first")
    assert len(held.controller.state.prompts) == 1


def test_clicks_on_two_segments_while_computing_are_all_kept(held):
    held.model.gate.clear()
    for segment, ball in (("first", 0), ("first", 0), ("second", 1), ("first", 0)):
        held.select(segment)
        held.controller.click(held.centre(ball))
    held.model.gate.set()
    held.settle()
    assert dice(held.mask("first"), held.balls[0]) > 0.7 and dice(held.mask("second"), held.balls[1]) > 0.7
    assert len(held.controller.state.prompts) == 3
    held.select("second")
    assert len(held.controller.state.prompts) == 1


def test_undo_while_computing_is_kept(held):
    held.click(held.centre(1))
    held.model.gate.clear()
    held.controller.click(held.centre(0))
    held.effect.undo()
    held.model.gate.set()
    held.settle()
    assert len(held.controller.state.prompts) == 1
    assert dice(held.mask(), held.balls[0]) > 0.7 and not (held.mask() & held.balls[1]).any()


@pytest.mark.parametrize("what", ["segment", "segmentation", "scene"])
def test_what_is_removed_while_computing_is_let_go(held, what):
    held.model.gate.clear()
    held.controller.click(held.centre(0))
    if what == "segment":
        held.segmentation.GetSegmentation().RemoveSegment("first")
    elif what == "segmentation":
        slicer.mrmlScene.RemoveNode(held.segmentation)
    else:
        slicer.mrmlScene.Clear(False)
    held.model.gate.set()
    held.settle()
    held.controller.sync()
    assert not held.controller.busy and not [status for status in held.said if status.is_error]


def test_close_leaves_no_node_and_no_observer(world):
    scene = slicer.mrmlScene
    before = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
    for _ in range(3):
        world.click(world.centre(0))
        world.controller.preview(world.centre(1))
        world.settle()
        points = world.controller.points.node
        world.controller.close()
        for event in (points.PointModifiedEvent, points.PointRemovedEvent, points.PointStartInteractionEvent):
            assert not points.HasObserver(event)
        after = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
        assert after == before


def test_points_from_before_an_edit_by_another_tool_cannot_be_changed(world):
    world.click(world.centre(0))
    painted = world.mask()
    painted[2:5, 2:6, 2:6] = True
    host.set_segment(world.segmentation, "first", painted)
    world.controller.points.node.SetNthControlPointPosition(0, *world.centre(1))
    world.settle()
    assert "edited by another tool" in world.controller.status.message
    assert slicer.util.arrayFromMarkupsControlPoints(world.controller.points.node)[0] == pytest.approx(world.centre(0))
    np.testing.assert_array_equal(world.mask(), painted)


@pytest.mark.parametrize("kind", ["vtkMRMLMarkupsLineNode", "vtkMRMLMarkupsFiducialNode", None])
def test_what_the_user_places_markups_into_stays_the_same(world, kind):
    selection = slicer.mrmlScene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    if kind is not None:
        slicer.mrmlScene.AddNewNodeByClass(kind, "the user's")
    before = selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()
    assert kind is None or (before[0] == kind and before[1])
    world.click(world.centre(0))
    assert world.controller.points.node is not None
    assert (selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()) == before
    world.controller.close()
    assert (selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()) == before


def test_hidden_points_stay_hidden(world):
    world.click(world.centre(0))
    world.controller.points.visible = False
    world.controller.close()
    world.click(world.centre(0, (1, 0, 0)))
    assert not world.controller.points.node.GetDisplayNode().GetVisibility()


def test_steps_shown_before_they_are_computed():
    point = {"type": "point", "ras_mm": [1.0, 2.0, 3.0], "positive": True}
    assert Step("add_point", ((1.0, 2.0, 3.0),)).applied(()) == (point,)
    assert Step("remove_point", index=0).applied((point,)) == ()
    assert Step("remove_point", index=4).applied((point,)) == (point,)
    assert Step("move_point", ((0.0, 0.0, 0.0),), index=0).applied((point,))[0]["ras_mm"] == [0.0, 0.0, 0.0]
    assert Step("preview", ((0.0, 0.0, 0.0),)).applied((point,)) == (point,)
