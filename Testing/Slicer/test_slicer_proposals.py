"""Structures that the model proposes: shown without changing anything, and taken into a segment as a click would be."""

from __future__ import annotations

import host
import numpy as np
import pytest
import slicer
from FaMSAMSlicerLib import segments
from FaMSAMSlicerLib.engine import Engine, ModelChoice, Step
from FaMSAMSlicerLib.prompts import tag_text
from region_model import ProposingModel, RegionModel
from worlds import dice


@pytest.fixture
def proposing(world):
    model = ProposingModel()
    world.engine.close()
    world.engine = world.controller.engine = Engine(lambda choice: model)
    world.model = model
    return world


def propose(world, step=1):
    world.controller.propose(step)
    world.settle()
    return shown(world)


def shown(world):
    """The outline's mask on the scan's grid; None while none is shown."""
    node = world.controller._proposals.overlay.node
    if node is None or not node.GetDisplayNode().GetVisibility():
        return None
    image = node.GetSegmentation().GetSegment("preview").GetRepresentation("Binary labelmap")
    x0, x1, y0, y1, z0, z1 = image.GetExtent()
    out = np.zeros(world.size_zyx, bool)
    out[z0 : z1 + 1, y0 : y1 + 1, x0 : x1 + 1] = segments.labelmap_view(image)
    return out


def everything(world):
    """What must not change until a proposal is taken."""
    tags = [tag_text(world.segmentation.GetSegmentation().GetSegment(name)) for name in ("first", "second")]
    return tags, [world.mask(name).tobytes() for name in ("first", "second")], bool(world.effect.logic.CanUndo())


def test_the_best_is_shown_first_and_the_others_in_turn(proposing):
    before = everything(proposing)
    best = propose(proposing)
    assert dice(best, proposing.balls[1]) > 0.8, "the brighter one"
    status = proposing.controller.status
    assert status.message.startswith("Proposal 1 of 2, predicted overlap ") and status.proposed and not status.is_error
    assert f"{status.quality:.0%}" in status.message and 0.1 < status.quality < 0.9
    second = propose(proposing)
    assert dice(second, proposing.balls[0]) > 0.8 and "2 of 2" in proposing.controller.status.message
    assert proposing.controller.status.quality < status.quality
    np.testing.assert_array_equal(propose(proposing), best)  # round the end
    np.testing.assert_array_equal(propose(proposing, -1), second)
    np.testing.assert_array_equal(propose(proposing, -1), best)
    assert everything(proposing) == before and not proposing.controller.has_work


def test_a_taken_one_is_the_segment_and_undo_takes_it_back(proposing):
    proposing.click(proposing.centre(0))
    clicked, state = proposing.mask(), proposing.controller.state
    best = propose(proposing)
    proposing.controller.take_proposal()
    proposing.settle()
    np.testing.assert_array_equal(proposing.mask(), best)
    assert not proposing.controller.state.prompts and proposing.controller.state.base is not None
    assert 0.1 < proposing.controller.state.quality < 0.9
    assert shown(proposing) is None and not proposing.controller.status.proposed
    assert proposing.controller.status.message == "Ready"
    assert proposing.controller.points.node.GetNumberOfControlPoints() == 0
    proposing.effect.undo()
    proposing.controller.sync()
    np.testing.assert_array_equal(proposing.mask(), clicked)
    assert proposing.controller.state == state and proposing.controller.points.node.GetNumberOfControlPoints() == 1
    proposing.effect.redo()
    proposing.controller.sync()
    np.testing.assert_array_equal(proposing.mask(), best)


def test_clicks_refine_a_taken_one_and_are_undone_one_by_one(proposing):
    best = propose(proposing)
    proposing.controller.take_proposal()
    proposing.click(proposing.centre(0))
    assert (proposing.mask() & best).sum() > 0.9 * best.sum(), "what was taken stays"
    assert dice(proposing.mask() & ~best, proposing.balls[0]) > 0.7
    assert len(proposing.controller.state.prompts) == 1
    proposing.click(proposing.centre(0), positive=False)
    assert not (proposing.mask() & proposing.balls[0]).any()
    for count in (1, 0):
        proposing.effect.undo()
        proposing.controller.sync()
        assert len(proposing.controller.state.prompts) == count
    np.testing.assert_array_equal(proposing.mask(), best)
    proposing.effect.undo()
    assert not proposing.mask().any()


def test_a_saved_one_goes_on_where_it_was(proposing, make_world, tmp_path):
    """The scene is loaded into a Slicer whose worker has never seen the segment."""
    propose(proposing)
    proposing.controller.take_proposal()
    proposing.settle()
    taken = proposing.mask()
    path = tmp_path / "taken.seg.nrrd"
    assert host.write(proposing.segmentation, path)
    proposing.click(proposing.centre(0))
    refined = proposing.mask()
    other = make_world()
    other.engine.close()
    other.engine = other.controller.engine = Engine(lambda choice: ProposingModel())
    loaded = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "loaded")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(loaded)
    loaded.CreateDefaultDisplayNodes()
    other.effect.select(loaded, other.volume, "first")
    assert other.controller.state.base is not None
    np.testing.assert_array_equal(host.segment_mask(loaded, "first", other.size_zyx), taken)
    other.click(other.centre(0))
    np.testing.assert_array_equal(host.segment_mask(loaded, "first", other.size_zyx), refined)
    assert len(other.controller.state.prompts) == 1


@pytest.mark.parametrize("what", ["overwritten", "kept", "intensity"])
def test_masking_and_overwrite_modes_hold(proposing, what):
    other = np.zeros(proposing.size_zyx, bool)
    other[:, : proposing.size_zyx[1] // 2] = True
    host.set_segment(proposing.segmentation, "second", other)
    node = proposing.effect.node
    node.SetOverwriteMode(node.OverwriteAllSegments if what == "overwritten" else node.OverwriteNone)
    if what == "kept":
        node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    elif what == "intensity":
        node.SetSourceVolumeIntensityMask(True)
        node.SetSourceVolumeIntensityMaskRange(499, 502)
    best = propose(proposing)
    proposing.controller.take_proposal()
    proposing.settle()
    voxels = slicer.util.arrayFromVolume(proposing.volume)
    allowed = {"overwritten": best, "kept": ~other, "intensity": (voxels >= 499) & (voxels <= 502)}[what]
    assert (best & other).any() and (best & allowed).any()
    np.testing.assert_array_equal(proposing.mask("first"), best & allowed)
    np.testing.assert_array_equal(proposing.mask("second"), other & ~best if what == "overwritten" else other)
    proposing.click(proposing.centre(1, (1, 0, 0)))
    assert len(proposing.controller.state.prompts) == 1, "the settings do not look like another tool's edit"
    for _ in range(2):
        proposing.effect.undo()
    np.testing.assert_array_equal(proposing.mask("second"), other)
    assert not proposing.mask("first").any()


def test_taking_none_changes_nothing(proposing):
    proposing.click(proposing.centre(0))
    before = everything(proposing)
    propose(proposing)
    proposing.controller.end_proposals()
    proposing.settle()
    assert everything(proposing) == before and shown(proposing) is None
    assert proposing.controller.status.message == "No proposal was taken." and not proposing.controller.status.proposed
    proposing.controller.take_proposal()
    proposing.settle()
    assert everything(proposing) == before, "there is nothing to take any more"


@pytest.mark.parametrize("when", ["shown", "looked for"])
@pytest.mark.parametrize("how", ["segment", "segmentation", "volume", "model", "voxels", "cancel", "close"])
def test_they_end_with_what_they_belong_to(proposing, how, when):
    controller = proposing.controller
    if when == "shown":
        propose(proposing)
    else:
        proposing.model.gate.clear()
        controller.propose()
        assert proposing.model.looking.wait(60) and controller.busy
    if how == "segment":
        proposing.select("second")
    elif how == "segmentation":
        proposing.effect.select(host.segmentation(proposing.volume, "other"), proposing.volume, "other")
        controller.sync()
    elif how == "volume":
        other = host.volume(slicer.util.arrayFromVolume(proposing.volume).copy(), np.eye(4), "other")
        proposing.effect.select(proposing.segmentation, other, "first")
        controller.sync()
    elif how == "model":
        controller.choice = ModelChoice("/another")
        controller.warm_up()
    elif how == "voxels":
        slicer.util.arrayFromVolumeModified(proposing.volume)
        controller.take_proposal()
    else:
        getattr(controller, how)()
    proposing.model.gate.set()
    proposing.settle()
    assert not controller.is_proposing and not controller.busy and shown(proposing) is None
    assert not proposing.mask("first").any() and not proposing.mask("second").any()
    assert not controller.status.is_error
    if how == "close":
        nodes = [slicer.mrmlScene.GetNthNode(i).GetName() for i in range(slicer.mrmlScene.GetNumberOfNodes())]
        assert "FaM-SAM preview" not in nodes


def test_a_click_made_meanwhile_comes_first(proposing):
    controller = proposing.controller
    proposing.model.gate.clear()
    controller.propose()
    assert controller.status.message == "Looking for structures…" and controller.status.busy
    controller.propose()  # an impatient second time
    assert proposing.model.looking.wait(60)
    controller.click(proposing.centre(0))
    assert not controller.is_proposing and controller.busy, "the call has returned; the worker is still at it"
    assert controller.points.node.GetNumberOfControlPoints() == 1
    proposing.model.gate.set()
    proposing.settle()
    assert shown(proposing) is None and dice(proposing.mask(), proposing.balls[0]) > 0.7
    assert controller.status.message == "Ready" and not controller.status.proposed


def test_a_click_made_before_is_not_overtaken(proposing):
    proposing.controller.click(proposing.centre(0))
    proposing.controller.click(proposing.centre(0, (1, 0, 0)))
    proposing.controller.propose()
    proposing.settle()
    assert len(proposing.controller.state.prompts) == 2 and shown(proposing) is not None
    assert proposing.controller.status.message.startswith("Proposal 1 of 2")


def test_no_preview_comes_in_between(proposing):
    proposing.controller.preview(proposing.centre(0))
    proposing.settle()
    preview = proposing.controller._preview.node.GetDisplayNode()
    assert preview.GetVisibility()
    propose(proposing)
    proposing.controller.preview(proposing.centre(0))
    proposing.settle()
    assert not preview.GetVisibility() and shown(proposing) is not None
    proposing.controller.end_preview()  # the pointer leaves the view
    assert shown(proposing) is not None


def test_they_are_looked_for_once_for_all_segments(proposing):
    best = propose(proposing)
    looks = proposing.model.looks
    proposing.controller.take_proposal()
    proposing.settle()
    proposing.select("second")
    np.testing.assert_array_equal(propose(proposing), best)
    other = propose(proposing)
    proposing.controller.take_proposal()
    proposing.settle()
    assert proposing.model.looks == looks
    np.testing.assert_array_equal(proposing.mask("second"), other)
    np.testing.assert_array_equal(proposing.mask("first"), best)
    slicer.util.arrayFromVolumeModified(proposing.volume)
    propose(proposing)
    assert proposing.model.looks > looks, "it is another scan now"


def test_a_model_that_cannot_propose_says_so(world, caplog):
    before = everything(world)
    for _ in range(2):
        assert propose(world) is None
        status = world.controller.status
        assert status.is_error and "cannot propose" in status.message and "Traceback" not in caplog.text
        assert not world.controller.is_proposing and everything(world) == before
    world.click(world.centre(0))
    assert dice(world.mask(), world.balls[0]) > 0.7 and not world.controller.status.is_error


def test_nothing_found_is_said(proposing):
    slicer.util.arrayFromVolume(proposing.volume)[:] %= 2
    slicer.util.arrayFromVolumeModified(proposing.volume)
    assert propose(proposing) is None and not proposing.controller.is_proposing
    assert "No structure was found" in proposing.controller.status.message
    assert not proposing.controller.status.is_error


def test_without_segment_or_volume_it_says_what_is_missing(proposing):
    proposing.effect.node.SetSelectedSegmentID("")
    propose(proposing)
    assert "segment" in proposing.controller.status.message
    proposing.effect.select(proposing.segmentation, None, "first")
    propose(proposing)
    assert "source volume" in proposing.controller.status.message and not proposing.controller.is_proposing


def test_an_error_is_one_message_and_the_next_time_works(proposing):
    def fail(embedding):
        del proposing.model.propose
        raise MemoryError

    proposing.model.propose = fail
    assert propose(proposing) is None
    assert "MemoryError" in proposing.controller.status.message and proposing.controller.status.is_error
    assert propose(proposing) is not None


def test_under_transforms_and_with_the_views_brought_there(make_world):
    turned = np.array([[0, -1.0, 0, 15], [1, 0, 0, -3], [0, 0, 1, 8], [0, 0, 0, 1]])
    shifted = np.eye(4) + np.array([[0, 0, 0, 4.0]] + [[0] * 4] * 3)
    world = make_world(np.diag([-1.0, -1.0, 1.0, 1.0]), transforms=(turned, shifted))
    world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(world.volume)  # where that lies by now
    world.engine.close()
    world.engine = world.controller.engine = Engine(lambda choice: ProposingModel())
    layers = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", "Red")
    layers.SetLayoutName("Red")
    layers.SetBackgroundVolumeID(world.volume.GetID())
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetLayoutName("Red")
    view.SetMappedInLayout(1)
    view.SetOrientation("Coronal")
    assert view.GetSliceToRAS().GetElement(2, 2) == 0
    for ball in (1, 0):
        outline = propose(world)
        assert dice(outline, world.balls[ball]) > 0.8
        place = view.GetSliceToRAS().GetElement(1, 3)
        assert abs(place - world.centre(ball)[1]) < 6, "its slice goes through it"
    world.controller.take_proposal()
    world.settle()
    image = world.controller.segment.GetRepresentation("Binary labelmap")
    assert segments.labelmap_view(image).sum() > 100 and not world.controller.status.is_error
    world.click(world.centre(0), positive=False)
    assert len(world.controller.state.prompts) == 1 and world.controller.state.base is not None


def test_what_a_taken_one_does_to_the_points_that_are_shown():
    point = {"type": "point", "ras_mm": [1.0, 2.0, 3.0], "positive": True}
    assert Step("take", candidate=object()).applied((point,)) == ()


def test_those_of_a_server_are_those_of_a_local_model(make_world):
    for package in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(package, reason="this test runs a famsam server: extras 'server' and 'test'")
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "Engine" / "server"))
    from famsam.server.app import create_app
    from famsam.server.security import Access
    from server_fixtures import live

    token = "correct-horse-battery"
    local, remote = make_world(), make_world()
    for world, engine in ((local, Engine(lambda choice: ProposingModel())), (remote, Engine())):
        world.engine.close()
        world.engine = world.controller.engine = engine
    masks = []
    with live(create_app(ProposingModel(), access=Access(token=token))) as server:
        remote.controller.choice = ModelChoice(server=str(server.base_url), token=token)
        for world in (local, remote):
            host.slicer.mrmlScene = world.segmentation.GetScene()
            outlines = [propose(world), propose(world)]
            world.controller.take_proposal()
            world.settle()
            np.testing.assert_array_equal(world.mask(), outlines[1])
            world.click(world.centre(1))
            masks.append((*outlines, world.mask()))
    for ours, theirs in zip(*masks):
        np.testing.assert_array_equal(ours, theirs)
    with live(create_app(RegionModel(), access=Access(token=token))) as server:
        remote.controller.choice = ModelChoice(server=str(server.base_url), token=token)
        propose(remote)
        assert "cannot propose" in remote.controller.status.message
