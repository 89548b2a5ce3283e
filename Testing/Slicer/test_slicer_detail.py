"""A segment on another grid than the scan keeps what clicks do not change, however fine it is."""

from __future__ import annotations

import host
import numpy as np
import pytest
import slicer
from FaMSAMSlicerLib.detail import part_from_dict, part_to_dict
from FaMSAMSlicerLib.scans import scan_of
from FaMSAMSlicerLib.segments import Part, dilated, resampled, segment_in_scan, with_detail, within
from region_model import RegionModel
from test_slicer_geometry import MOVE, affine, engine_mask, rotation

SPACING_MM = 2.0
GRIDS = {
    "finer": affine(np.diag([0.5, 0.5, 0.5]), (-0.75, -0.75, -0.75)),
    "finer, between": affine(np.diag([0.7, 0.7, 0.7]), (-0.61, -0.83, -0.72)),
    "finer in x, coarser in z": affine(np.diag([0.6, 2.0, 4.4]), (1.0, 0.3, 0.9)),
    "coarser": affine(np.diag([3.0, 3.1, 4.0]), (1.0, 0.3, 0.9)),
    "tilted": affine(rotation(12, 7) @ np.diag([2.0, 2.0, 2.0]), (12, -6, -8)),
    "tilted, finer": affine(rotation(-9, 4) @ np.diag([-0.9, 1.1, 0.8]), (70, 6, 3)),
}


@pytest.fixture(autouse=True)
def model_of_one_way(monkeypatch):
    """As the shipped one: a click to include takes nothing away, one to exclude adds nothing."""
    monkeypatch.setattr(RegionModel, "one_way", True)
    monkeypatch.setattr(RegionModel, "crop_size", 64)


class Painted:
    """A scan of 2 mm, a segmentation on another grid, and what is painted there: lines and specks of one voxel."""

    def __init__(self, world, grid, moved=False):
        self.world, self.grid = world, grid
        self.size_zyx = tuple(int(n) for n in (60, 72, 80) / np.linalg.norm(grid[:3, 2::-1], axis=0))
        other = host.volume(np.zeros(self.size_zyx, np.int16), grid, "other")
        if moved:  # one transform node for all, as when a patient is moved
            for node in (other, world.segmentation):
                node.SetAndObserveTransformNodeID(world.volume.GetTransformNodeID())
        world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(other)
        random = np.random.default_rng(3)
        self.mask = random.random(self.size_zyx) < 0.0005
        for z, y, x in (random.random((8, 3)) * self.size_zyx).astype(int):
            self.mask[z, y] = self.mask[:, y, x] = self.mask[z, :, x] = True
        host.set_segment(world.segmentation, "first", self.mask)
        world.effect.select(world.segmentation, world.volume, "first")

    def seen(self):
        return host.segment_mask(self.world.segmentation, "first", self.size_zyx)

    def index_xyz(self):
        """(z, y, x, 3): where in the scan each voxel lies."""
        scan_from_grid = np.linalg.inv(self.world.matrix) @ self.grid
        where = np.stack(np.indices(self.size_zyx)[::-1], axis=-1)
        return where @ scan_from_grid[:3, :3].T + scan_from_grid[:3, 3]

    def at(self, mask_zyx):
        """What of the scan each voxel lies in; False outside."""
        index = np.rint(self.index_xyz()).astype(int)
        inside = ((index >= 0) & (index < mask_zyx.shape[::-1])).all(-1)
        out = np.zeros(self.size_zyx, bool)
        out[inside] = mask_zyx[tuple(index[inside].T[::-1])]
        return out

    def beside(self, ball):
        """What lies farther from a ball than a change of it reaches."""
        centre_xyz = np.argwhere(self.world.balls[ball]).mean(0)[::-1]
        return SPACING_MM * np.linalg.norm(self.index_xyz() - centre_xyz, axis=-1) > 7 + 2 * SPACING_MM * 3**0.5


@pytest.fixture
def make_painted(make_world):
    def make(name, moved=False):
        transforms = (MOVE, None) if moved else (None, None)
        return Painted(make_world(np.diag([SPACING_MM] * 3 + [1.0]), transforms), GRIDS[name], moved)

    return make


@pytest.mark.parametrize("moved", [False, True], ids=["plain", "transform"])
@pytest.mark.parametrize("name", GRIDS)
def test_clicks_leave_what_they_do_not_change(make_painted, name, moved):
    painted = make_painted(name, moved)
    world, mask = painted.world, painted.mask
    _part, start = segment_in_scan(world.controller.segment, world.matrix, world.size_zyx)
    before = within(start, np.zeros(3, int), np.array(world.size_zyx[::-1]))
    world.click(world.centre(1))
    clicked = painted.seen()
    assert not world.controller.status.is_error, world.controller.status.message
    assert (clicked & ~mask).any() and not (mask & ~clicked).any()
    same = painted.at(~dilated(before ^ engine_mask(world)))
    np.testing.assert_array_equal(clicked[same], mask[same])
    before = engine_mask(world).copy()
    world.click(world.centre(1, (1, 0, 0)), positive=False)
    assert not (painted.seen() & ~clicked).any() and (clicked & ~painted.seen()).any()
    same = painted.at(~dilated(before ^ engine_mask(world)))
    np.testing.assert_array_equal(painted.seen()[same], clicked[same])
    for _step in range(2):
        world.effect.undo()
        world.controller.sync()
    np.testing.assert_array_equal(painted.seen(), mask)
    world.click(world.centre(1))
    np.testing.assert_array_equal(painted.seen(), clicked)


@pytest.mark.parametrize("name", GRIDS)
def test_a_point_that_is_moved_or_removed_leaves_no_trace(make_painted, name):
    painted = make_painted(name)
    world = painted.world
    world.click(world.centre(1))
    world.controller.move_point(0, world.centre(0))
    world.settle()
    beside = painted.beside(0)
    assert (painted.seen() & ~painted.mask).any()
    np.testing.assert_array_equal(painted.seen()[beside], painted.mask[beside])
    world.controller.remove_point(0)
    world.settle()
    np.testing.assert_array_equal(painted.seen(), painted.mask)


@pytest.mark.parametrize("name", GRIDS)
def test_a_click_takes_away_what_is_too_fine_for_the_scan(make_painted, name):
    painted = make_painted(name)
    inside = ((painted.index_xyz() > 0) & (painted.index_xyz() < painted.world.size_zyx[::-1] - np.ones(3))).all(-1)
    places = np.argwhere(painted.mask & inside)
    for where in places[:: len(places) // 6]:
        point = painted.grid @ [*where[::-1], 1.0]
        painted.world.click(tuple(point[:3]), positive=False)
        assert not painted.seen()[tuple(where)]
        painted.world.effect.undo()
        painted.world.controller.sync()
    np.testing.assert_array_equal(painted.seen(), painted.mask)


def saved_and_read(node, storage, path):
    assert host.write(node, path)
    back = slicer.mrmlScene.AddNewNodeByClass(node.GetClassName(), "back")
    back.CreateDefaultDisplayNodes()
    storage.SetFileName(str(path))
    assert storage.ReadData(back)
    return back


def go_on_from_files(world, folder):
    world.segmentation = saved_and_read(
        world.segmentation, slicer.vtkMRMLSegmentationStorageNode(), folder / "a.seg.nrrd"
    )
    world.volume = saved_and_read(world.volume, slicer.vtkMRMLVolumeArchetypeStorageNode(), folder / "a.nrrd")
    world.effect.select(world.segmentation, world.volume, "first")
    world.controller.sync()


def test_a_saved_scene_goes_on_with_the_detail(make_painted, tmp_path):
    painted = make_painted("finer")
    world = painted.world
    world.click(world.centre(1))
    clicked = painted.seen()
    go_on_from_files(world, tmp_path)
    np.testing.assert_array_equal(painted.seen(), clicked)
    world.controller.remove_point(0)
    world.settle()
    np.testing.assert_array_equal(painted.seen(), painted.mask)


def test_points_on_a_painted_segment_are_the_same_where_a_file_has_rounded_the_scans_grid(make_world, tmp_path):
    world = make_world(affine(rotation(17, -9) @ np.diag([0.93, 0.87, 1.31]), (-43.21, -35.17, -60.03)))
    painted = np.zeros(world.size_zyx, bool)
    painted[3:9, 4:10, 5:11] = True
    host.set_segment(world.segmentation, "first", painted)
    world.click(world.centre(1))
    before = scan_of(world.volume).ras_from_ijk
    go_on_from_files(world, tmp_path)
    assert (before != scan_of(world.volume).ras_from_ijk).any(), "rounded, else this tests nothing"
    world.controller.remove_point(0)
    world.settle()
    assert not world.controller.status.is_error, world.controller.status.message
    np.testing.assert_array_equal(world.mask(), painted)


def test_the_detail_is_not_lost_where_a_file_has_rounded_the_scans_grid(make_world, tmp_path):
    """Voxels of the finer grid lie on the borders between the scan's: the last bit tells where they belong."""
    scan = affine(rotation(17, -9) @ np.diag([0.93, 0.87, 1.31]), (-43.21, -35.17, -60.03))
    world = make_world(scan)
    size_zyx = tuple(2 * n for n in world.size_zyx)
    finer = host.volume(np.zeros(size_zyx, np.uint8), scan @ np.diag([0.5, 0.5, 0.5, 1]), "finer")
    world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(finer)
    painted = np.random.default_rng(6).random(size_zyx) < 0.1
    host.set_segment(world.segmentation, "first", painted)
    world.effect.select(world.segmentation, world.volume, "first")
    world.click(world.centre(0), positive=False)
    go_on_from_files(world, tmp_path)
    world.click(world.centre(1), positive=False)
    go_on_from_files(world, tmp_path)
    for _step in range(2):
        world.controller.remove_point(0)
        world.settle()
        assert not world.controller.status.is_error, world.controller.status.message
    np.testing.assert_array_equal(host.segment_mask(world.segmentation, "first", size_zyx), painted)


def test_nothing_of_a_mask_is_too_fine_for_another_grid():
    random = np.random.default_rng(4)
    for _round in range(20):
        mask = random.random((20, 21, 22)) < 0.01
        mask[:, 5, 6] = mask[3:9, 2:14, 9:15] = True
        grid = affine(rotation(*random.uniform(-40, 40, 2)) @ np.diag(random.uniform(0.2, 1.5, 3)), (3, 4, 5))
        out = with_detail(Part(mask, np.array([4, -5, 6]), grid), np.eye(4))
        there = np.rint((np.argwhere(mask)[:, ::-1] + [4, -5, 6]) @ grid[:3, :3].T + grid[:3, 3]).astype(int)
        counted = np.argwhere(out.mask_zyx)[:, ::-1] + out.low_xyz
        near = np.abs(there[:, None] - counted[None]).max(-1).min(1)
        assert near.max() <= 1, "all of it is at most a voxel from what counts"
        plain, _low = resampled(mask, grid, np.array([4, -5, 6]), np.eye(4))
        added = np.argwhere(out.mask_zyx & ~plain)[:, ::-1] + out.low_xyz
        assert len(added) and {*map(tuple, added)} <= {*map(tuple, there)}


def test_what_was_found_survives_json():
    part = Part(np.random.default_rng(5).random((4, 5, 6)) > 0.5, np.array([7, -8, 9]), GRIDS["tilted"])
    back = part_from_dict(part_to_dict(part))
    np.testing.assert_array_equal(back.mask_zyx, part.mask_zyx)
    np.testing.assert_array_equal(back.low_xyz, part.low_xyz)
    np.testing.assert_array_equal(back.seg_from_ijk, part.seg_from_ijk)


def test_a_mask_is_within_a_scan_where_that_is():
    part = Part(np.ones((3, 4, 5), bool), np.array([-2, 1, 9]), np.eye(4))
    inside = with_detail(part, np.eye(4), (10, 3, 8))
    assert inside.mask_zyx.shape == (1, 2, 3) and inside.low_xyz.tolist() == [0, 1, 9]
    assert with_detail(part, affine(np.eye(3), (20, 0, 0)), (10, 3, 8)).mask_zyx.size == 0
