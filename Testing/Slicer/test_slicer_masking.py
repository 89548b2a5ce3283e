"""Editable area, overwrite mode and intensity masking hold, voxel for voxel; what else made is refined, not wiped."""

from __future__ import annotations

import host
import numpy as np
import pytest
import slicer
import vtk
from FaMSAMSlicerLib import segments
from FaMSAMSlicerLib.watching import Watch
from worlds import dice

EDIT_EVERYWHERE = slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere
EDIT_OUTSIDE_ALL = slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments
EDIT_INSIDE_ONE = slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment


def half(world) -> np.ndarray:
    mask = np.zeros(world.size_zyx, bool)
    mask[:, : world.size_zyx[1] // 2] = True
    return mask


def unmasked_result(make_world) -> np.ndarray:
    world = make_world()
    world.click(world.centre(0))
    return world.mask()


@pytest.mark.parametrize("overwrite", ["none", "all"])
def test_overwrite_modes(make_world, overwrite):
    clicked = unmasked_result(make_world)
    world = make_world()
    other = half(world)
    host.set_segment(world.segmentation, "second", other)
    node = world.effect.node
    node.SetOverwriteMode(node.OverwriteNone if overwrite == "none" else node.OverwriteAllSegments)
    world.click(world.centre(0))
    np.testing.assert_array_equal(world.mask("first"), clicked)
    np.testing.assert_array_equal(world.mask("second"), other if overwrite == "none" else other & ~clicked)
    world.effect.undo()
    np.testing.assert_array_equal(world.mask("second"), other)
    assert not world.mask("first").any()


@pytest.mark.parametrize("area", ["outside all", "inside one"])
def test_editable_area(make_world, area):
    clicked = unmasked_result(make_world)
    world = make_world()
    other = half(world)
    host.set_segment(world.segmentation, "second", other)
    world.effect.node.SetOverwriteMode(world.effect.node.OverwriteNone)
    world.effect.node.SetMaskMode(EDIT_OUTSIDE_ALL if area == "outside all" else EDIT_INSIDE_ONE)
    world.effect.node.SetMaskSegmentID("second")
    world.click(world.centre(0))
    expected = clicked & ~other if area == "outside all" else clicked & other
    assert expected.any()
    np.testing.assert_array_equal(world.mask("first"), expected)
    np.testing.assert_array_equal(world.mask("second"), other)


AREAS = {
    "Everywhere": lambda second, third: np.ones_like(second),
    "InsideAllSegments": lambda second, third: second | third,
    "InsideVisibleSegments": lambda second, third: second,
    "OutsideAllSegments": lambda second, third: ~(second | third),
    "OutsideVisibleSegments": lambda second, third: ~second,
    "InsideSingleSegment": lambda second, third: third,
}
OVERWRITTEN = {"AllSegments": ("second", "third"), "VisibleSegments": ("second",), "None": ()}


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("overwrite", OVERWRITTEN)
def test_every_area_with_every_overwrite_mode(make_world, area, overwrite):
    """Three segments, the third of them hidden: what must not be changed is left as it is, voxel for voxel."""
    clicked = unmasked_result(make_world)
    world = make_world()
    world.segmentation.GetSegmentation().AddEmptySegment("third", "third")
    before = {"second": half(world), "third": ~half(world)}
    before["third"][world.size_zyx[0] // 2 :] = False
    for name, mask in before.items():
        host.set_segment(world.segmentation, name, mask)
    world.segmentation.GetDisplayNode().SetSegmentVisibility("third", False)
    node = world.effect.node
    node.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, f"EditAllowed{area}"))
    node.SetMaskSegmentID("third")
    node.SetOverwriteMode(getattr(node, f"Overwrite{overwrite}"))
    world.click(world.centre(0))
    expected = clicked & AREAS[area](before["second"], before["third"])
    assert expected.any()
    np.testing.assert_array_equal(world.mask("first"), expected)
    for name, mask in before.items():
        left = mask & ~expected if name in OVERWRITTEN[overwrite] else mask
        np.testing.assert_array_equal(world.mask(name), left, err_msg=name)
    world.effect.undo()
    for name, mask in {**before, "first": np.zeros_like(clicked)}.items():
        np.testing.assert_array_equal(world.mask(name), mask, err_msg=f"{name} after undo")


@pytest.mark.parametrize("area", ["OutsideAllSegments", "InsideAllSegments"])
@pytest.mark.parametrize("overwrite", OVERWRITTEN)
def test_they_hold_as_well_where_another_segment_is_selected_meanwhile(make_world, area, overwrite):
    clicked = unmasked_result(make_world)
    world = make_world()
    other = half(world)
    host.set_segment(world.segmentation, "second", other)
    node = world.effect.node
    node.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, f"EditAllowed{area}"))
    node.SetOverwriteMode(getattr(node, f"Overwrite{overwrite}"))
    world.controller.click(world.centre(0))
    world.select("second")
    told = []
    node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: told.append(event))
    world.settle()
    expected = clicked & AREAS[area](other, np.zeros_like(other))
    assert expected.any() and (expected != clicked).any()
    np.testing.assert_array_equal(world.mask("first"), expected)
    np.testing.assert_array_equal(world.mask("second"), other if overwrite == "None" else other & ~expected)
    assert node.GetSelectedSegmentID() == "second" and not told and not node.GetDisableModifiedEvent()


def test_writing_into_another_segment_is_not_taken_for_selecting_it(world):
    """Else what is looked for in the selected one would end."""
    watch = Watch(world.effect.node, world.controller.sync)
    world.controller.click(world.centre(0))
    world.select("second")
    world.controller.propose()
    world.settle()
    watch.stop()
    assert world.mask("first").any()
    assert "cannot propose" in world.controller.status.message, "it was asked, and said so"


def test_intensity_range(make_world):
    clicked = unmasked_result(make_world)
    world = make_world()
    world.effect.node.SetSourceVolumeIntensityMask(True)
    world.effect.node.SetSourceVolumeIntensityMaskRange(299, 302)
    world.click(world.centre(0))
    voxels = slicer.util.arrayFromVolume(world.volume)
    expected = clicked & (voxels >= 299) & (voxels <= 302)
    assert expected.any()
    np.testing.assert_array_equal(world.mask("first"), expected)


def test_mask_settings_do_not_confuse_the_next_click(world):
    """The segment then differs from the session's mask by the settings, not because something else has edited it."""
    world.effect.node.SetSourceVolumeIntensityMask(True)
    world.effect.node.SetSourceVolumeIntensityMaskRange(299, 302)
    world.click(world.centre(0))
    world.click(world.centre(0, (1, 0, 0)))
    assert len(world.controller.state.prompts) == 2 and world.controller.state.base is None


def test_a_segment_that_something_else_made_is_refined(world):
    host.set_segment(world.segmentation, "first", world.balls[0])
    world.click(world.centre(1))
    state = world.controller.state
    assert len(state.prompts) == 1 and state.base is not None
    assert (world.mask() & world.balls[0]).sum() > 0.9 * world.balls[0].sum(), "what was there stays"
    assert dice(world.mask() & ~world.balls[0], world.balls[1]) > 0.7
    world.effect.undo()
    np.testing.assert_array_equal(world.mask(), world.balls[0])


def test_painting_between_clicks_is_kept(world):
    world.click(world.centre(0))
    painted = world.mask()
    painted[2:5, 2:6, 2:6] = True
    world.effect.saveStateForUndo()
    host.set_segment(world.segmentation, "first", painted)
    world.click(world.centre(1))
    assert world.mask()[2:5, 2:6, 2:6].mean() > 0.8
    assert len(world.controller.state.prompts) == 1, "the brush strokes are the new start"
    for _ in range(2):
        world.effect.undo()
    world.controller.sync()
    assert len(world.controller.state.prompts) == 1 and not world.mask()[2:5].any()


def test_clear_points_keeps_the_mask_and_the_next_click_refines_it(world):
    world.click(world.centre(0))
    before = world.mask()
    world.controller.clear_points()
    assert not world.controller.state.prompts
    np.testing.assert_array_equal(world.mask(), before)
    assert world.controller.points.node.GetNumberOfControlPoints() == 0
    world.click(world.centre(1))
    assert (world.mask() & before).sum() > 0.9 * before.sum()
    for count in (0, 1):
        world.effect.undo()
        world.controller.sync()
        assert len(world.controller.state.prompts) == count


def test_reset_empties_and_undo_brings_back(world):
    world.click(world.centre(0))
    before = world.mask()
    world.controller.reset_segment()
    assert not world.mask().any() and not world.controller.state.prompts
    world.effect.undo()
    world.controller.sync()
    np.testing.assert_array_equal(world.mask(), before)
    assert len(world.controller.state.prompts) == 1


def test_the_base_mask_is_restored_with_the_saved_scene(world, tmp_path):
    """Loaded prompts refine the same mask as before: the next click gives the same as without saving."""
    host.set_segment(world.segmentation, "first", world.balls[0])
    world.click(world.centre(1))
    world.engine._place._tokens = ["forgotten"]  # as a worker that has never seen this segment
    world.engine._place._at = 0
    mask = world.mask()
    world.click(world.centre(1, (2, 0, 0)))
    assert len(world.controller.state.prompts) == 2 and world.controller.state.base is not None
    assert (world.mask() & mask).sum() > 0.9 * mask.sum()


def test_the_print_of_a_mask_is_made_once_for_each_of_its_states(world, monkeypatch):
    made = []
    plain = segments._print_of
    monkeypatch.setattr(segments, "_print_of", lambda voxels: made.append(1) or plain(voxels))
    world.click(world.centre(0))
    world.click(world.centre(0, (1, 0, 0)))
    assert len(made) == 2, "after each click; not again to see whether something else has edited the segment"
    image = world.controller.segment.GetRepresentation("Binary labelmap")
    before = segments.mask_print(world.controller.segment)
    segments.labelmap_view(image)[0, 0, :] = world.controller.segment.GetLabelValue()
    image.GetPointData().GetScalars().Modified()  # in place, as some tools do
    assert segments.mask_print(world.controller.segment) != before
    for _number in range(200):
        image.Modified()
        segments.mask_print(world.controller.segment)
    assert len(segments._prints) <= segments._PRINTS_KEPT


def test_a_click_outside_of_the_editable_area_says_why_nothing_came_of_it(world):
    world.effect.node.SetMaskMode(EDIT_INSIDE_ONE)
    world.effect.node.SetMaskSegmentID("second")
    world.click(world.centre(0))
    assert not world.mask().any()
    assert world.controller.status.is_error and "Masking" in world.controller.status.message
