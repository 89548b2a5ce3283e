"""A click lands where it was made, whatever the volume's and the segmentation's geometry."""

from __future__ import annotations

import itertools

import host
import numpy as np
import pytest
import slicer
import vtk
from FaMSAMSlicerLib.scans import Scan
from FaMSAMSlicerLib.segments import resampled, segment_beyond
from FaMSAMSlicerLib.spaces import transformed
from worlds import dice, two_balls


def rotation(degrees_z: float, degrees_x: float) -> np.ndarray:
    a, b = np.radians([degrees_z, degrees_x])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


def affine(linear: np.ndarray, origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = linear, origin
    return out


GRIDS = {
    "lps": affine(np.diag([-1.0, -1.0, 1.0]), (30, 20, -5)),
    "anisotropic": affine(np.diag([0.8, 0.9, 1.6]), (-100, 4, 7)),
    "oblique": affine(rotation(17, -9) @ np.diag([0.9, 0.9, 1.3]), (-40, -35, -60)),
    "permuted": affine(np.array([[0, 0, 1.1], [1.0, 0, 0], [0, -0.9, 0]]), (5, 6, 7)),
    "left-handed oblique": affine(rotation(-33, 21) @ np.diag([1.0, -1.0, 1.0])),
}
MOVE = affine(rotation(25, 12), (12.5, -30.0, 4.0))
OTHER_MOVE = affine(rotation(-8, 3), (2.0, 1.0, -3.0))


def world_voxels(world) -> np.ndarray:
    """(N, 3) of the first segment, as Slicer's own code has them."""
    image = slicer.vtkOrientedImageData()
    world.segmentation.GetBinaryLabelmapRepresentation("first", image)
    x0, x1, y0, y1, z0, z1 = image.GetExtent()
    from vtk.util.numpy_support import vtk_to_numpy

    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(z1 - z0 + 1, y1 - y0 + 1, x1 - x0 + 1)
    index = np.argwhere(voxels)[:, ::-1] + np.array([x0, y0, z0])
    matrix, to_world = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    parent = world.segmentation.GetParentTransformNode()
    if parent is not None:
        parent.GetMatrixTransformToWorld(to_world)
    vtk.vtkMatrix4x4.Multiply4x4(to_world, matrix, matrix)
    return np.array([matrix.MultiplyPoint((*place, 1.0))[:3] for place in index.tolist()])


def world_centroid(world) -> np.ndarray:
    return world_voxels(world).mean(0)


def engine_mask(world) -> np.ndarray:
    return world.engine._place._session.result.mask_zyx


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("moved", [False, True])
def test_segment_holds_exactly_the_engines_mask(make_world, name, moved):
    world = make_world(GRIDS[name], (MOVE, MOVE) if moved else (None, None))
    if moved:  # one transform node for both, as when a patient is moved
        world.segmentation.SetAndObserveTransformNodeID(world.volume.GetTransformNodeID())
    world.click(world.centre(0))
    assert not world.controller.status.is_error, world.controller.status.message
    assert dice(world.mask(), world.balls[0]) > 0.7
    np.testing.assert_array_equal(world.mask(), engine_mask(world))


@pytest.mark.parametrize("transforms", [(MOVE, None), (None, MOVE), (MOVE, OTHER_MOVE)])
def test_transforms_on_either_node_keep_the_place_in_the_world(make_world, transforms):
    world = make_world(GRIDS["anisotropic"], transforms)
    # A grid in the world, as the Segment Editor takes over a volume's; wide enough for any tilt.
    matrix = affine(np.diag([0.8, 0.8, 0.8]), np.array(world.centre(0)) - 40)
    wide = host.volume(np.zeros((100, 100, 100), np.int16), matrix, "wide")
    world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(wide)
    world.click(world.centre(0))
    expected = np.array(world.world(np.argwhere(engine_mask(world)).mean(0)))
    assert np.linalg.norm(world_centroid(world) - expected) < 0.3
    points = world.controller.points.node
    shown = [0.0, 0.0, 0.0]
    points.GetNthControlPointPositionWorld(0, shown)
    np.testing.assert_allclose(shown, world.centre(0), atol=1e-6)


@pytest.mark.parametrize("spacing", [0.5, 1.7])
def test_segmentation_with_another_spacing(make_world, spacing):
    world = make_world()
    n = int(44 / spacing)
    other = host.volume(np.zeros((n, n, n), np.int16), affine(np.diag([spacing] * 3), (-2.25, -2.25, -3.25)), "other")
    world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(other)
    world.click(world.centre(0))
    mask = host.segment_mask(world.segmentation, "first", (n, n, n))
    expected = engine_mask(world)
    assert mask.sum() * spacing**3 == pytest.approx(expected.sum(), rel=0.06)
    assert np.linalg.norm(world_centroid(world) - world.world(np.argwhere(expected).mean(0))) < 0.3 * max(1, spacing)


def test_cropped_segmentation_gets_what_lies_in_it(make_world):
    world = make_world()
    world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(
        host.volume(np.zeros((20, 30, 15), np.int16), affine(np.eye(3), (4, 3, 6)), "cropped")
    )
    world.click(world.centre(0))
    mask = host.segment_mask(world.segmentation, "first", (20, 30, 15))
    np.testing.assert_array_equal(mask, engine_mask(world)[6:26, 3:33, 4:19])


def test_a_click_outside_of_a_cropped_segmentation_says_why_nothing_came_of_it(make_world):
    world = make_world()
    world.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(
        host.volume(np.zeros((20, 30, 15), np.int16), affine(np.eye(3), (4, 3, 6)), "cropped")
    )
    world.click(world.centre(1))
    assert not host.segment_mask(world.segmentation, "first", (20, 30, 15)).any()
    assert world.controller.status.is_error and "geometry" in world.controller.status.message
    world.click(world.centre(0))
    assert world.controller.status.message == "Ready"


@pytest.mark.parametrize("name", ["lps", "anisotropic", "oblique", "permuted"])
@pytest.mark.parametrize("transforms", [(None, None), (MOVE, OTHER_MOVE)], ids=["plain", "transforms"])
def test_box_lies_along_the_scans_own_axes(make_world, name, transforms):
    """What a rectangle on one of the scan's own slices frames, and no more, however the scan is tilted."""
    world = make_world(GRIDS[name], transforms)
    index = np.argwhere(world.balls[0])
    low, high = index.min(0) - 1, index.max(0) + 1
    world.controller.box([world.world(corner) for corner in itertools.product(*zip(low, high))])
    world.settle()
    (prompt,) = world.engine._place._session.to_dict()["prompts"]
    ends = np.array([prompt["lower_ras_mm"], prompt["upper_ras_mm"]])
    seen = (np.c_[ends, [1, 1]] @ np.linalg.inv(world.matrix).T)[:, 2::-1]
    np.testing.assert_allclose(seen.min(0), low, atol=1e-6)
    np.testing.assert_allclose(seen.max(0), high, atol=1e-6)
    world.click(world.centre(0))
    assert len(world.controller.state.prompts) == 2


@pytest.mark.parametrize("size_xyz", [(8, 7, 9), (8, 1, 4), (1, 9, 5)])
@pytest.mark.parametrize("matrix", [GRIDS["left-handed oblique"], affine(rotation(45, 0)), affine(rotation(60, 40))])
def test_box_in_a_much_tilted_scan_is_no_larger_than_drawn(matrix, size_xyz):
    scan = Scan((), "tilted", np.zeros((9, 9, 9), np.int16), matrix)
    ends = scan.box_around(np.array([transformed(matrix, (0, 0, 0)), transformed(matrix, size_xyz)]))
    seen = [transformed(np.linalg.inv(matrix), end) for end in ends]
    np.testing.assert_allclose(seen, [(0, 0, 0), size_xyz], atol=1e-9)


def test_a_box_is_one_on_a_scan_that_it_overlaps():
    matrix = affine(rotation(60, 40))
    scan = Scan((), "tilted", np.zeros((9, 9, 9), np.int16), matrix)

    def overlaps(corner_ijk, opposite_ijk):
        return scan.overlaps(transformed(matrix, corner_ijk), transformed(matrix, opposite_ijk))

    assert overlaps((2, 3, 4), (5, 6, 7)) and overlaps((5, 3, 7), (2, 6, 4)) and overlaps((-9, -9, -9), (20, 20, 20))
    assert not overlaps((2, 3, 4), (5, 6, 4)), "flat"
    assert not overlaps((2, 3, 10), (5, 6, 20)) and not overlaps((-9, 3, 4), (-2, 6, 7)), "beside it"


@pytest.mark.parametrize("how", ["both hardened", "segmentation hardened", "segmentation transformed"])
def test_a_segment_that_was_moved_is_refined_where_it_is(make_world, how):
    """Not where its points were, which lie elsewhere in the scan by now."""
    world = make_world(size_zyx=(30, 70, 40))
    world.click(world.centre(0))
    before = world_centroid(world)
    move = affine(np.eye(3), (0, 20, 0))
    if how == "both hardened":
        host.transform(move, world.volume, world.segmentation)
        world.volume.HardenTransform()
        world.world_from_scan = move
    else:
        host.transform(move, world.segmentation)
    if "hardened" in how:
        world.segmentation.HardenTransform()
    there = world_voxels(world)
    assert there.mean(0) == pytest.approx(before + np.array([0, 20, 0]))
    world.click(world.centre(1))
    assert not world.controller.status.is_error, world.controller.status.message
    assert len(world.controller.state.prompts) == 1 and world.controller.state.base is not None
    places = {tuple(place) for place in world_voxels(world).round(2)}
    kept = [tuple(place) in places for place in there.round(2)]
    assert np.mean(kept) > 0.9 and len(places) < 3 * len(there)


def test_points_go_on_in_another_scan_under_another_transform(world):
    other = host.volume(two_balls()[0] + np.int16(7), affine(np.eye(3), (-3, 0, 0)), "other")
    host.transform(affine(np.eye(3), (3, 0, 0)), other)
    world.click(world.centre(0))
    world.effect.select(world.segmentation, other, "first")
    world.click(world.centre(0, (1, 0, 0)))
    assert len(world.controller.state.prompts) == 2 and world.controller.state.base is None
    assert dice(world.mask(), world.balls[0]) > 0.7


def test_non_linear_transform_is_refused_with_a_way_out(world):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    node.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    world.volume.SetAndObserveTransformNodeID(node.GetID())
    world.click(world.centre(0))
    assert world.controller.status.is_error and "harden" in world.controller.status.message
    assert not world.mask().any()


def test_resampled_copies_where_grids_differ_by_whole_voxels():
    mask = np.random.default_rng(0).random((3, 4, 5)) > 0.5
    matrix = GRIDS["oblique"]
    shifted = matrix @ affine(np.eye(3), (-4, 7, 2))
    out, low = resampled(mask, matrix, np.array([10, 11, 12]), shifted)
    np.testing.assert_array_equal(out, mask)
    np.testing.assert_array_equal(low, [14, 4, 10])


@pytest.mark.parametrize("name", GRIDS)
def test_resampled_agrees_with_asking_every_voxel(name):
    """Nearest neighbour at every voxel centre: the linear interpolation may differ from it at the border only."""
    z, y, x = np.indices((16, 16, 16))
    mask = (z - 8) ** 2 + (y - 7) ** 2 + (x - 8) ** 2 < 36
    other = affine(rotation(5, 40) @ np.diag([0.7, 0.9, 0.8]), (3, 2, 1))
    out, low = resampled(mask, GRIDS[name], np.zeros(3, int), other)
    ijk = np.indices(out.shape).reshape(3, -1)[::-1] + low[:, None]
    source = np.linalg.inv(GRIDS[name]) @ other @ np.vstack([ijk, np.ones(ijk.shape[1])])
    nearest = np.rint(source[:3]).astype(int)
    inside = ((nearest >= 0) & (nearest < 16)).all(0)
    expected = np.zeros(out.size, bool)
    expected[inside] = mask[tuple(nearest[::-1, inside])]
    assert dice(out.ravel(), expected) > 0.93


@pytest.mark.parametrize("name", GRIDS)
def test_a_mask_on_another_grid_depends_on_what_is_near_only(name):
    """Not on where the box around it ends."""
    z, y, x = np.indices((24, 24, 24))
    ball = (z - 10) ** 2 + (y - 10) ** 2 + (x - 10) ** 2 < 49
    to_matrix = GRIDS[name] @ np.diag([0.5, 0.6, 0.7, 1.0])
    alone, low = resampled(ball[4:17, 4:17, 4:17], GRIDS[name], np.array([4, 4, 4]), to_matrix)
    amid, low_amid = resampled(ball, GRIDS[name], np.zeros(3, int), to_matrix)
    np.testing.assert_array_equal(np.argwhere(alone) + low[::-1], np.argwhere(amid) + low_amid[::-1])


def part_of_the_scan(world, first_x: int, turned: bool = False):
    """A volume that holds the scan from a column on; turned by half a turn about S, or not."""
    voxels, matrix = slicer.util.arrayFromVolume(world.volume)[:, :, first_x:], affine(np.eye(3), (first_x, 0, 0))
    if turned:
        _depth, height, width = voxels.shape
        matrix = matrix @ affine(np.diag([-1.0, -1.0, 1.0]), (width - 1, height - 1, 0))
        voxels = voxels[:, ::-1, ::-1]
    return host.volume(np.ascontiguousarray(voxels), matrix, "part")


@pytest.mark.parametrize("turned", [False, True])
def test_what_of_a_segment_lies_outside_of_the_scan_stays(world, turned):
    """As where the source volume is a cropped one, or another field of view than that in which the segment was made."""
    world.segmentation.GetSegmentation().AddEmptySegment("third", "third")
    host.set_segment(world.segmentation, "third", world.balls[0])  # shares its labelmap
    host.set_segment(world.segmentation, "first", world.balls[0])
    first_x = 12  # in the middle of that ball
    world.effect.node.SetOverwriteMode(world.effect.node.OverwriteNone)
    world.effect.select(world.segmentation, part_of_the_scan(world, first_x, turned), "first")
    outside = world.balls[0].copy()
    outside[:, :, first_x:] = False
    assert outside.any()
    for ball, offset, positive in ((1, (0, 0, 0), True), (1, (1, 0, 0), True), (0, (0, 0, 4), False)):
        world.click(world.centre(ball, offset), positive)
        assert not world.controller.status.is_error, world.controller.status.message
        np.testing.assert_array_equal(world.mask()[:, :, :first_x], outside[:, :, :first_x])
    assert len(world.controller.state.prompts) == 3 and dice(world.mask() & world.balls[1], world.balls[1]) > 0.7
    np.testing.assert_array_equal(world.mask("third"), world.balls[0])
    world.controller.reset_segment()
    assert not world.mask().any()


@pytest.mark.parametrize("name", GRIDS)
def test_what_lies_outside_of_a_grid_is_what_every_voxel_says(world, name):
    mask = np.random.default_rng(2).random(world.size_zyx) > 0.5
    host.set_segment(world.segmentation, "first", mask)
    seg_from_ijk, size_zyx = affine(np.eye(3), (3, 4, 5)) @ GRIDS[name], (11, 12, 13)
    part = segment_beyond(world.controller.segment, seg_from_ijk, size_zyx)
    found = np.zeros_like(mask)
    x, y, z = part.low_xyz
    found[tuple(slice(a, a + n) for a, n in zip((z, y, x), part.mask_zyx.shape))] = part.mask_zyx
    where = np.indices(mask.shape).reshape(3, -1)[::-1]
    index = (np.linalg.inv(seg_from_ijk) @ np.vstack([where, np.ones(mask.size)]))[:3]
    beside = np.maximum(-0.5 - index, index - np.array(size_zyx[::-1])[:, None] + 0.5).max(0).reshape(mask.shape)
    is_clear = np.abs(beside) > 0.02  # voxels from the grid's faces
    np.testing.assert_array_equal(found[is_clear], (mask & (beside > 0))[is_clear])
    assert segment_beyond(world.controller.segment, affine(np.eye(3), (-1, -1, -1)), (40, 40, 45)) is None


@pytest.mark.parametrize("origin", [(-3.5, -2.25, 0), (-3, -2, 0)])
@pytest.mark.parametrize("other", [False, True])
def test_a_segment_copied_from_another_geometry_is_replaced_as_a_whole(world, origin, other):
    """Slicer's own way of replacing leaves some of it where it lies on another grid than the segmentation's."""
    size_zyx = (30, 44, 48)
    elsewhere = host.segmentation(host.volume(np.zeros(size_zyx, np.int16), affine(np.eye(3), origin), "big"), "copied")
    mask = np.zeros(size_zyx, bool)
    mask[:, 2:38, 3:43] = world.balls[0] | world.balls[1]
    host.set_segment(elsewhere, "copied", mask)
    world.segmentation.GetSegmentation().CopySegmentFromSegmentation(elsewhere.GetSegmentation(), "copied")
    if other:
        host.set_segment(world.segmentation, "second", world.balls[1])
    world.select("copied")
    world.effect.node.SetOverwriteMode(world.effect.node.OverwriteNone)
    world.click(world.centre(0), positive=False)
    np.testing.assert_array_equal(world.mask("copied"), engine_mask(world))
    assert dice(world.mask("copied"), world.balls[1]) > 0.7
    np.testing.assert_array_equal(world.mask("second"), world.balls[1] if other else np.zeros_like(world.balls[1]))
    world.effect.undo()
    assert (world.controller.segment.GetRepresentation("Binary labelmap").GetOrigin()) == pytest.approx(origin)
    world.effect.redo()
    world.controller.reset_segment()
    assert not world.mask("copied").any()
