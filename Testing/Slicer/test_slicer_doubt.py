"""Where the model doubts: shown over the scan on request, for the state that is there, and never as the user's data."""

from __future__ import annotations

import host
import numpy as np
import pytest
import slicer
from FaMSAMSlicerLib.engine import DOUBTFUL, Engine
from FaMSAMSlicerLib.segments import image_matrix, labelmap_view
from region_model import SoftModel


@pytest.fixture
def doubted(world):
    world.engine.close()
    world.engine = world.controller.engine = Engine(lambda choice: SoftModel())
    world.controller.doubt_visible = True
    return world


def shown(world):
    """(z, y, x) labels on the scan's grid; None while nothing is shown."""
    node = world.controller._doubt.overlay.node
    if node is None or not node.GetDisplayNode().GetVisibility():
        return None
    image = node.GetSegmentation().GetSegment("outside").GetRepresentation("Binary labelmap")
    np.testing.assert_allclose(image_matrix(image), world.matrix, atol=1e-9)
    x0, x1, y0, y1, z0, z1 = image.GetExtent()
    out = np.zeros(world.size_zyx, np.uint8)
    out[z0 : z1 + 1, y0 : y1 + 1, x0 : x1 + 1] = labelmap_view(image)
    return out


def test_doubts_lie_around_the_border_on_their_own_side(doubted):
    doubted.click(doubted.centre(0))
    labels, mask = shown(doubted), doubted.mask()
    assert (labels == 1).any() and (labels == 2).any()
    assert not (mask & (labels == 1)).any(), "outside of it: may belong to it"
    assert mask[labels == 2].all(), "inside of it: may not belong to it"
    told = doubted.engine._place._session.uncertainty(1)
    part = tuple(slice(a, b) for a, b in zip(*told.box_zyx))
    wrong = np.where(mask[part], 1 - told.probability_zyx, told.probability_zyx)
    np.testing.assert_array_equal(labels[part] > 0, wrong > DOUBTFUL)
    node = doubted.controller._doubt.overlay.node
    second = node.GetSegmentation().GetSegment("inside")
    assert second.GetLabelValue() == 2 and not node.GetSaveWithScene() and node.GetHideFromEditors()


def test_switching_it_off_and_on(doubted):
    doubted.click(doubted.centre(0))
    labels = shown(doubted)
    doubted.controller.doubt_visible = False
    doubted.controller.sync()
    assert shown(doubted) is None and not doubted.controller.has_work
    doubted.click(doubted.centre(0, (1, 0, 0)))
    assert shown(doubted) is None
    doubted.effect.undo()
    doubted.controller.doubt_visible = True
    doubted.controller.sync()
    doubted.settle()
    np.testing.assert_array_equal(shown(doubted), labels)


def test_undo_redo_and_other_segments_renew_it(doubted):
    doubted.click(doubted.centre(0))
    one = shown(doubted)
    doubted.click(doubted.centre(1))
    two = shown(doubted)
    assert (one != two).any()
    for verb, expected in (("undo", one), ("redo", two), ("undo", one)):
        getattr(doubted.effect, verb)()
        doubted.controller.sync()
        assert shown(doubted) is None, "what was there is not true any more"
        doubted.settle()
        np.testing.assert_array_equal(shown(doubted), expected)
    doubted.select("second")
    doubted.settle()
    assert shown(doubted) is None, "no prompts, no doubts"
    doubted.select("first")
    doubted.settle()
    np.testing.assert_array_equal(shown(doubted), one)
    doubted.effect.undo()
    doubted.controller.sync()
    doubted.settle()
    assert shown(doubted) is None


def test_an_edit_by_another_tool_takes_it_away(doubted):
    doubted.click(doubted.centre(0))
    painted = doubted.mask()
    painted[2:5, 2:6, 2:6] = True
    host.set_segment(doubted.segmentation, "first", painted)
    doubted.controller.sync()
    doubted.settle()
    assert shown(doubted) is None and not doubted.controller.has_work


def test_it_follows_the_volumes_transform_and_leaves_no_node(doubted):
    before = [slicer.mrmlScene.GetNthNode(i).GetID() for i in range(slicer.mrmlScene.GetNumberOfNodes())]
    doubted.click(doubted.centre(0))
    moved = host.transform(np.diag([-1.0, -1.0, 1.0, 1.0]), doubted.volume)
    doubted.segmentation.SetAndObserveTransformNodeID(moved.GetID())
    doubted.click(tuple(np.multiply(doubted.centre(0, (1, 0, 0)), (-1, -1, 1))))
    assert doubted.controller._doubt.overlay.node.GetParentTransformNode() is moved
    doubted.controller.close()
    after = [slicer.mrmlScene.GetNthNode(i).GetID() for i in range(slicer.mrmlScene.GetNumberOfNodes())]
    assert set(after) - set(before) == {moved.GetID()}


def test_a_click_is_answered_before_the_doubts_are(doubted):
    controller = doubted.controller
    controller.click(doubted.centre(0))
    controller._running.future.exception(60)
    controller.poll()
    assert controller.has_work and not controller.busy and doubted.mask().any()
    controller.click(doubted.centre(1))
    doubted.settle()
    assert len(controller.state.prompts) == 2 and shown(doubted) is not None
