"""Scans as they come: changed while a session is open, very large, of any voxel type, one slice thin."""

from __future__ import annotations

import tracemalloc

import host
import numpy as np
import pytest
import slicer
from worlds import World, dice, two_balls


def test_a_scan_that_is_moved_while_a_session_is_open(world):
    """As by "Center volume": the index-to-RAS matrix changes, the voxels do not."""
    world.click(world.centre(0))
    world.matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    world.matrix[:3, 3] = 11, -4, 6
    world.volume.SetOrigin(11, -4, 6)
    world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(world.volume)
    world.controller.reset_segment()
    world.click(world.centre(1))
    assert dice(world.mask(), world.balls[1]) > 0.7
    assert world.controller.state.prompts[0]["ras_mm"] == pytest.approx(world.centre(1))


def test_a_scan_whose_voxels_are_replaced_between_two_clicks_goes_on_from_the_mask(world):
    world.click(world.centre(0))
    other = host.volume(two_balls()[0] + np.int16(7), np.eye(4), "other")
    world.volume.SetAndObserveImageData(other.GetImageData())
    world.click(world.centre(1))
    assert not world.controller.status.is_error and len(world.controller.state.prompts) == 2
    assert dice(world.mask(), world.balls[0] | world.balls[1]) > 0.7


def test_a_scan_that_changes_while_a_click_is_computed_is_not_mixed_up(world):
    world.controller.click(world.centre(0))
    world.volume.SetOrigin(500, 0, 0)
    world.settle()
    world.click((501.0, 1.0, 1.0))
    assert "outside the volume" not in world.controller.status.message
    world.click(world.centre(0))
    assert "outside" in world.controller.status.message


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.float32, np.float64])
def test_any_type_of_voxel(world, kind):
    voxels = two_balls()[0].clip(0, None) / 4
    world.effect.select(world.segmentation, host.volume(voxels.astype(kind), np.eye(4), "scan"), "first")
    world.click(world.centre(0))
    assert not world.controller.status.is_error, world.controller.status.message
    assert dice(world.mask(), world.balls[0]) > 0.7


def test_voxels_that_are_no_numbers_do_not_stop_a_click(world):
    voxels = two_balls()[0].astype(np.float32)
    voxels[:2] = np.nan
    voxels[-1] = np.inf
    world.effect.select(world.segmentation, host.volume(voxels, np.eye(4), "scan"), "first")
    world.click(world.centre(0))
    assert not world.controller.status.is_error, world.controller.status.message
    assert dice(world.mask(), world.balls[0]) > 0.7


def test_a_single_slice(world):
    voxels = np.ascontiguousarray(two_balls()[0][15:16])
    node = host.volume(voxels, np.diag([1.0, 1.0, 5.0, 1.0]), "one slice")
    world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
    world.effect.select(world.segmentation, node, "first")
    x, y, _z = world.centre(0)
    world.click((x, y, 0.0))
    assert not world.controller.status.is_error, world.controller.status.message
    mask = host.segment_mask(world.segmentation, "first", voxels.shape)
    assert dice(mask, world.balls[0][15:16]) > 0.7


def test_a_very_large_scan_is_never_copied_as_a_whole():
    size_zyx = (160, 640, 700)
    world = World(size_zyx=(4, 4, 4))
    try:
        voxels = np.zeros(size_zyx, np.uint8)
        voxels[70:90, 300:330, 340:360] = 200
        voxels[::7, ::5, ::3] += 3
        node = host.volume(voxels, np.diag([0.6, 0.6, 0.6, 1.0]), "large")
        world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
        world.effect.select(world.segmentation, node, "first")
        shared = slicer.util.arrayFromVolume(node)
        tracemalloc.start()
        world.controller.warm_up()
        world.settle()
        for place in ((350, 315, 80), (345, 305, 75), (360, 400, 80)):
            world.click(tuple(0.6 * i for i in place), positive=place[1] < 400)
            world.effect.undo()
            world.effect.redo()
            world.controller.sync()
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not world.controller.status.is_error, world.controller.status.message
        mask = host.segment_mask(world.segmentation, "first", size_zyx)
        assert dice(mask, shared > 100) > 0.7
        assert peak < shared.nbytes / 2, f"{peak >> 20} MiB for a scan of {shared.nbytes >> 20} MiB"
    finally:
        world.controller.close()
        world.engine.close()
