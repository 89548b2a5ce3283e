"""What is done before a click, so that the click only decodes; and that no click ever waits for it."""

from __future__ import annotations

import host
import numpy as np
import pytest
import slicer
from FaMSAMSlicerLib.engine import Engine, ModelChoice
from FaMSAMSlicerLib.preparation import middle_shown
from region_model import CountingModel
from worlds import dice


@pytest.fixture
def counted(world):
    model = CountingModel()
    world.engine.close()
    world.engine = world.controller.engine = Engine(lambda choice: model)
    world.model = model
    world.controller.warm_up().result(60)
    world.settle()
    return world


def test_a_click_where_the_pointer_rested_encodes_nothing(counted):
    counted.controller.aim(counted.centre(0))
    assert counted.controller.has_work and not counted.controller.busy, "no progress is shown for it"
    counted.settle()
    assert "encode" in counted.model.done
    assert not counted.mask().any() and not counted.controller.state.prompts and not counted.effect.logic.CanUndo()
    counted.model.done.clear()
    counted.click(counted.centre(0))
    assert "encode" not in counted.model.done and dice(counted.mask(), counted.balls[0]) > 0.7
    counted.controller.aim(counted.centre(1))
    counted.settle()
    counted.model.done.clear()
    counted.click(counted.centre(1, (0, 0, 1)))
    assert counted.model.done[0] == "decode", "also beside that place"


def test_a_click_waits_for_no_more_than_the_view_in_work(counted):
    controller, model = counted.controller, counted.model
    controller.aim(counted.centre(1))
    counted.settle()
    views = len(model.done)
    assert views > 1, "else this test shows nothing"
    controller.engine._place._session.set_image(controller.engine._place._session.volume)  # forgets what it encoded
    model.done.clear()
    model.entered.clear()
    model.gate.clear()
    controller.aim(counted.centre(1))
    assert model.entered.wait(60)
    for offset in range(5):  # the pointer goes on
        controller.aim(counted.centre(1, (0, 0, offset)))
    controller.click(counted.centre(0))
    model.gate.set()
    counted.settle()
    assert model.done.index("decode") <= 2, "the view that was in work, then the first of the click's own"
    assert dice(counted.mask(), counted.balls[0]) > 0.7 and len(controller.state.prompts) == 1


def test_aiming_beside_the_scan_or_without_a_segment_says_nothing(counted):
    counted.said.clear()
    counted.controller.aim(counted.world((-9, 3, 3)))
    counted.effect.node.SetSelectedSegmentID("")
    counted.controller.aim(counted.centre(0))
    counted.effect.select(counted.segmentation, None, "first")
    counted.controller.aim(counted.centre(0))
    assert not counted.controller.has_work and not counted.said and not counted.model.done


def test_aiming_loads_no_model_and_swallows_what_the_click_will_say(counted):
    counted.controller.choice = ModelChoice("/nowhere/weights.pth")
    counted.said.clear()
    counted.controller.aim(counted.centre(0))
    counted.settle()
    assert not counted.model.done and not counted.said
    counted.controller.choice = ModelChoice()
    counted.model.error = RuntimeError("boom")
    counted.controller.aim(counted.centre(0))
    counted.settle()
    assert counted.model.done == ["encode"] and not counted.said, "tried once"
    counted.model.error = None
    counted.click(counted.centre(0))
    assert dice(counted.mask(), counted.balls[0]) > 0.7


def test_aiming_again_and_again_at_a_segment_that_something_else_made_keeps_the_history_short(counted):
    host.set_segment(counted.segmentation, "first", counted.balls[0])
    for offset in range(6):
        counted.controller.aim(counted.centre(1, (0, 0, offset / 10)))
        counted.settle()
        counted.controller.preview(counted.centre(1, (0, 0, offset / 10)))
        counted.settle()
    assert len(counted.engine._place._session._history) == 2, "the start, and that mask"
    counted.click(counted.centre(1))
    assert (counted.mask() & counted.balls[0]).sum() > 0.9 * counted.balls[0].sum()


def test_aiming_after_undo_changes_nothing_of_it(counted):
    counted.click(counted.centre(0))
    one = counted.mask()
    counted.click(counted.centre(1))
    counted.effect.undo()
    counted.controller.sync()
    counted.controller.aim(counted.centre(1))
    counted.settle()
    np.testing.assert_array_equal(counted.mask(), one)
    counted.effect.redo()
    counted.click(counted.centre(0, (1, 0, 0)))
    assert len(counted.controller.state.prompts) == 3


def test_the_middle_of_a_view_that_shows_the_scan(world):
    assert middle_shown(world.volume) is None
    for name, volume_id in (("Red", None), ("Green", world.volume.GetID())):
        layers = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", name)
        layers.SetLayoutName(name)
        layers.SetBackgroundVolumeID(volume_id)
        view = slicer.vtkMRMLSliceNode()
        view.SetName(name)
        view.SetLayoutName(name)
        view.SetMappedInLayout(1)
        slicer.mrmlScene.AddNode(view)
        view.SetOrientation("Axial")
        view.SetDimensions(200, 100, 1)
        view.SetFieldOfView(80.0, 40.0, 1.0)
        view.JumpSliceByCentering(*(11.0, 12.0, 13.0) if name == "Green" else (1.0, 2.0, 3.0))
    assert middle_shown(world.volume) == pytest.approx((11.0, 12.0, 13.0), abs=0.5)
    view.SetMappedInLayout(0)
    assert middle_shown(world.volume) is None, "not in the present layout"
