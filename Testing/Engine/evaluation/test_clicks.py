from __future__ import annotations

import numpy as np
import pytest
from famsam.errors import DatasetError
from famsam.evaluation.clicks import first_click, next_click, region_centre

SPACING = (1.0, 1.0, 1.0)


def empty(shape=(20, 21, 22)):
    return np.zeros(shape, bool)


def test_first_click_is_the_centre_of_a_sphere_of_millimetres():
    spacing = np.array((3.0, 1.0, 0.5))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (12, 30, 60)), indexing="ij"), axis=-1)
    ball = (((index - (5, 14, 31)) * spacing) ** 2).sum(axis=-1) <= 9.0**2
    assert first_click(ball, tuple(spacing)) == ((5, 14, 31), True)


def test_first_click_goes_to_the_thickest_piece():
    truth = empty()
    truth[2:4, :, :] = True  # more voxels, but thin
    truth[9:16, 5:12, 6:13] = True
    assert first_click(truth, SPACING) == ((12, 8, 9), True)


def test_distances_are_millimetres_not_voxels():
    truth = empty()
    truth[3:6, 1:10, 1:10] = True  # three slices of 5 mm are thicker than five voxels of 1 mm
    truth[12:17, 12:17, 12:17] = True
    assert first_click(truth, (5.0, 1.0, 1.0)).zyx == (4, 5, 5)
    assert first_click(truth, SPACING).zyx == (14, 14, 14)


def test_the_middle_of_a_tube_is_its_centre():
    tube = empty()
    tube[2:19, 9:12, 9:12] = True
    assert region_centre(tube, SPACING) == (10, 10, 10)


def test_the_border_of_the_scan_counts_as_outside():
    half = empty((10, 9, 9))
    half[:5] = True
    assert first_click(half, SPACING) == ((2, 4, 4), True)


def test_next_click_corrects_the_larger_error_excess():
    truth, result = empty(), empty()
    truth[2:7, 2:7, 2:7] = True
    result[2:7, 2:7, 2:4] = True  # 75 voxels are missing
    result[10:15, 10:15, 10:15] = True  # 125 are in excess
    assert next_click(truth, result, SPACING) == ((12, 12, 12), False)


def test_next_click_corrects_the_larger_error_missing():
    truth, result = empty(), empty()
    truth[2:7, 2:7, 2:7] = True
    result[10:13, 10:13, 10:13] = True
    assert next_click(truth, result, SPACING) == ((4, 4, 4), True)


def test_no_click_where_nothing_is_wrong():
    truth = empty()
    truth[3:6, 3:6, 3:6] = True
    assert next_click(truth, truth.copy(), SPACING) is None
    assert next_click(empty(), empty(), SPACING) is None


def test_errors_that_touch_by_a_corner_are_one_region():
    truth, result = empty(), empty()
    for i in range(3):
        truth[5 + i, 5 + i, 5 + i] = True
    truth[15, 15, 15:17] = True
    assert next_click(truth, result, SPACING) == ((6, 6, 6), True)


def test_missing_and_excess_voxels_stay_apart():
    truth, result = empty(), empty()
    truth[5, 5, 2:6] = True  # four missing voxels touch three in excess
    result[5, 5, 6:9] = True
    truth[15, 15, 10:15] = True  # five missing voxels on their own are the largest region
    assert next_click(truth, result, SPACING) == ((15, 15, 12), True)


def test_of_equal_regions_the_first_one_is_taken():
    truth = empty()
    truth[12:15, 2:5, 2:5] = True
    truth[4:7, 12:15, 12:15] = True
    assert next_click(truth, empty(), SPACING) == ((5, 13, 13), True)


def test_an_empty_target_has_no_first_click():
    with pytest.raises(DatasetError, match="at least one voxel"):
        first_click(empty(), SPACING)


def test_an_unsteady_hand_hits_what_is_deep_enough_and_other_voxels_with_another_seed():
    truth = empty()
    truth[4:15, 5:16, 6:17] = True  # a cube of 11 voxels, the deepest 6 from the outside
    clicks = [first_click(truth, SPACING, np.random.default_rng(seed)) for seed in range(40)]
    assert all(click.positive and max(abs(a - b) for a, b in zip(click.zyx, (9, 10, 11))) <= 3 for click in clicks)
    assert len({click.zyx for click in clicks}) > 30
    assert clicks[7] == first_click(truth, SPACING, np.random.default_rng(7))
    excess = next_click(empty(), truth, SPACING, np.random.default_rng(7))
    assert excess == (clicks[7].zyx, False)


def test_an_unsteady_hand_hits_a_single_voxel():
    one = empty()
    one[3, 4, 5] = True
    assert first_click(one, SPACING, np.random.default_rng(0)).zyx == (3, 4, 5)
