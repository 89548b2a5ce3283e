from __future__ import annotations

import dataclasses
from itertools import permutations

import numpy as np
import pytest
from famsam.errors import VolumeError
from famsam.geometry import (
    CanonicalFrame,
    Grid,
    bounding_box,
    box_slices,
    clip,
    intersect,
    is_empty,
    memory_order,
    union,
)
from grids import affine, affines, masks, sizes_zyx
from hypothesis import given
from hypothesis import strategies as st

LPS_STORAGE = affine((0.5, 0.5, 2), (100, 80, -30), signs=(-1, -1, 1))
SAGITTAL_STORAGE = affine((0.9, 0.9, 4), (-20, 100, 90), permutation=(1, 2, 0), signs=(-1, -1, 1))
grids = st.builds(Grid, sizes_zyx(), affines())


def every_index(size_zyx):
    return np.array(list(np.ndindex(*size_zyx)))


def test_grid_knows_its_measures():
    grid = Grid((4, 30, 20), affine((0.3, 0.4, 7.5), angles_rad=(0.3, -0.2, 1.1)))
    np.testing.assert_allclose(grid.spacing_xyz_mm, (0.3, 0.4, 7.5))
    np.testing.assert_allclose(grid.spacing_zyx_mm, (7.5, 0.4, 0.3))
    np.testing.assert_allclose(grid.extent_mm_xyz, (6, 12, 30))
    np.testing.assert_allclose(grid.ijk_from_ras @ grid.ras_from_ijk, np.eye(4), atol=1e-12)
    assert grid.voxel_ml == pytest.approx(0.3 * 0.4 * 7.5 / 1000)
    tilted = Grid((4, 30, 20), affine((0.3, 0.4, 7.5), angles_rad=(0.3, -0.2, 1.1), shear=0.27))
    assert tilted.spacing_xyz_mm[2] == pytest.approx(7.5 * np.hypot(1, 0.27))
    assert tilted.voxel_ml == pytest.approx(0.3 * 0.4 * 7.5 / 1000), "a shear leaves the volume as it is"


def test_grid_takes_index_order_z_y_x_to_ras():
    grid = Grid((10, 20, 30), LPS_STORAGE)
    np.testing.assert_allclose(grid.ras_from_zyx_points([(3, 2, 1)]), [(99.5, 79, -24)])
    np.testing.assert_allclose(grid.zyx_from_ras_points((99.5, 79, -24)), (3, 2, 1))
    assert grid.ras_from_zyx_points(np.zeros((0, 3))).shape == (0, 3)


@given(grids, st.tuples(*[st.floats(-50, 50)] * 3))
def test_points_survive_the_way_there_and_back(grid, point_zyx):
    np.testing.assert_allclose(grid.zyx_from_ras_points(grid.ras_from_zyx_points(point_zyx)), point_zyx, atol=1e-6)


def test_grid_contains_its_voxels_up_to_their_faces():
    grid = Grid((1, 5, 9), np.eye(4))
    assert grid.contains_zyx((0.5, -0.5, 8.5))
    assert not grid.contains_zyx((0.51, 0, 0))
    assert not grid.contains_zyx((0, 0, 8.51))
    assert not grid.contains_zyx((0.4, 0, 0), margin=0)
    assert not grid.contains_zyx((np.nan, 0, 0))


def test_grid_is_frozen_and_does_not_share_the_callers_matrix():
    matrix = np.eye(4)
    grid = Grid((2, 2, 2), matrix)
    matrix[0, 3] = 7
    assert grid.ras_from_ijk[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.ras_from_ijk[0, 3] = 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.size_zyx = (1, 1, 1)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([1, 1, 0, 1]), "singular"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (np.diag([1, 1, np.nan, 1]), "finite"),
        (np.diag([1, np.inf, 1, 1]), "finite"),
        (np.diag([1, 1, 1, 2]), "last row"),
        (np.eye(3), "4x4"),
        ("no matrix", "4x4"),
    ],
)
def test_grid_rejects_unusable_matrices(matrix, message):
    with pytest.raises(VolumeError, match=message):
        Grid((2, 2, 2), matrix)


@pytest.mark.parametrize("size", [(0, 2, 2), (2, 2), (2, -1, 2)])
def test_grid_rejects_unusable_sizes(size):
    with pytest.raises(VolumeError, match="three axes"):
        Grid(size, np.eye(4))


def test_grids_match_by_size_and_corners():
    grid = Grid((5, 100, 100), LPS_STORAGE)
    nearly = LPS_STORAGE.copy()
    nearly[0, 0] *= 1 + 1e-6
    assert grid.matches(Grid((5, 100, 100), nearly))
    nearly[0, 0] *= 1 + 1e-3
    assert not grid.matches(Grid((5, 100, 100), nearly))
    assert not grid.matches(Grid((5, 100, 99), LPS_STORAGE))


@pytest.mark.parametrize(
    ("matrix", "size_zyx", "canonical_size_zyx"),
    [
        (np.eye(4), (3, 4, 5), (3, 4, 5)),
        (LPS_STORAGE, (3, 4, 5), (3, 4, 5)),
        (SAGITTAL_STORAGE, (3, 4, 5), (4, 5, 3)),  # stored x runs to posterior, y to inferior, z to the right
        (affine(angles_rad=(0.5, 0.2, 0)), (3, 4, 5), (3, 4, 5)),
    ],
)
def test_canonical_frame_of_known_storages(matrix, size_zyx, canonical_size_zyx):
    assert CanonicalFrame(Grid(size_zyx, matrix)).grid.size_zyx == canonical_size_zyx


@given(grids, st.data())
def test_canonical_frame_keeps_every_voxel_in_its_place(native, data):
    frame = CanonicalFrame(native)
    cosines = frame.grid.ras_from_ijk[:3, :3] / frame.grid.spacing_xyz_mm
    assert np.diag(cosines).min() >= 0
    assert np.trace(cosines) >= max(np.abs(cosines[:, p]).trace() for p in permutations((0, 1, 2))) - 1e-9
    ras_mm = native.ras_from_zyx_points(every_index(native.size_zyx)).reshape(*native.size_zyx, 3)
    for k in range(3):
        canonical = frame.to_canonical(ras_mm[..., k])
        assert np.shares_memory(canonical, ras_mm)
        expected = frame.grid.ras_from_zyx_points(every_index(frame.grid.size_zyx))[:, k]
        np.testing.assert_allclose(canonical.ravel(), expected, atol=1e-9)
        back = frame.from_canonical(canonical)
        assert back.strides == ras_mm[..., k].strides
        np.testing.assert_array_equal(back, ras_mm[..., k])

    mask = data.draw(masks(native.size_zyx))
    box = bounding_box(mask)
    canonical_box = bounding_box(frame.to_canonical(mask))
    assert (box is None) == (canonical_box is None)
    if box is not None:
        assert frame.canonical_box(box) == canonical_box
        assert frame.native_box(canonical_box) == box
        part = frame.to_canonical(mask)[box_slices(canonical_box)]
        np.testing.assert_array_equal(frame.from_canonical(part), mask[box_slices(box)])


@given(st.tuples(*[st.floats(-0.7, 0.7)] * 3), st.permutations((0, 1, 2)), st.tuples(*[st.sampled_from((-1, 1))] * 3))
def test_canonical_frame_does_not_depend_on_how_the_scan_is_stored(angles_rad, permutation, signs):
    plain = CanonicalFrame(Grid((3, 4, 5), affine((0.4, 0.9, 6), (10, 20, 30), angles_rad))).grid
    stored_size_xyz = [(5, 4, 3)[k] for k in permutation]
    change = np.zeros((4, 4))
    change[permutation, (0, 1, 2)] = signs
    change[3, 3] = 1
    for k, sign in enumerate(signs):
        change[permutation[k], 3] = stored_size_xyz[k] - 1 if sign < 0 else 0
    stored = Grid(tuple(stored_size_xyz[::-1]), affine((0.4, 0.9, 6), (10, 20, 30), angles_rad) @ change)
    assert CanonicalFrame(stored).grid.matches(plain, 1e-9)


@given(st.data(), st.permutations((0, 1, 2)), st.tuples(*[st.sampled_from((-1, 1))] * 3))
def test_bounding_box_is_the_smallest(data, permutation, steps):
    mask = data.draw(masks(data.draw(sizes_zyx())))
    view = mask.transpose(permutation)[tuple(slice(None, None, step) for step in steps)]
    found = np.argwhere(view)
    expected = (tuple(found.min(axis=0)), tuple(found.max(axis=0) + 1)) if len(found) else None
    assert bounding_box(view) == expected


@given(st.permutations((0, 1, 2)), st.tuples(*[st.sampled_from((-1, 1))] * 3))
def test_memory_order_undoes_flips_and_transpositions(permutation, steps):
    array = np.arange(24).reshape(2, 3, 4)
    view = array.transpose(permutation)[tuple(slice(None, None, step) for step in steps)]
    order, flips, again = memory_order(view)
    np.testing.assert_array_equal(again, array)
    assert again.flags.c_contiguous
    np.testing.assert_array_equal(
        view.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)], array
    )


def test_boxes_combine():
    first, second, apart = ((0, 0, 0), (4, 4, 4)), ((2, 3, 1), (6, 6, 6)), ((9, 9, 9), (10, 10, 10))
    empty = ((5, 5, 5), (5, 9, 9))
    assert union(first, second) == ((0, 0, 0), (6, 6, 6))
    assert union(None, first) == union(first, None) == union(empty, first) == union(first, empty) == first
    assert union(None, None) is None
    assert union(empty, None) is None
    assert intersect(first, second) == ((2, 3, 1), (4, 4, 4))
    assert intersect(first, apart) is None
    assert intersect(first, empty) is None
    assert clip(((-3, 2, 1), (2, 99, 3)), (5, 6, 7)) == ((0, 2, 1), (2, 6, 3))
    assert clip(apart, (5, 6, 7)) is None
    assert is_empty(empty)
    assert not is_empty(first)
