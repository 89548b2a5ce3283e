"""Crops in the contrast of what lies at a click."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from famsam.contrast import HALF_WIDTH, LEVELS, cut_around, intensity_at, level_step


def test_the_intensity_at_a_voxel_is_the_mean_around_it() -> None:
    voxels = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
    assert intensity_at(voxels, (2, 3, 4)) == voxels[1:4, 2:5, 3:6].mean()
    assert intensity_at(voxels, (0, 0, 6)) == voxels[:2, :2, 5:].mean()
    assert intensity_at(voxels, (-3, 9, 2)) == intensity_at(voxels, (0, 5, 2)), "beside the scan: the nearest voxel"


def test_contrasts_divide_the_range_of_a_scan() -> None:
    values = np.random.default_rng(0).permutation(np.linspace(-1000, 1000, 80**3)).reshape(80, 80, 80)
    assert level_step(values) == pytest.approx(0.96 * 2000 / LEVELS, rel=0.02)
    assert level_step((values * 30).astype(np.int16)) == pytest.approx(0.96 * 60000 / LEVELS, rel=0.02)
    background = np.zeros((40, 40, 40))
    background[20, 20] = 640
    assert level_step(background) == pytest.approx(640 / LEVELS), "where nearly all of it is one value"
    assert level_step(np.full((3, 3, 3), 7)) > 0


def test_intensities_far_from_the_middle_are_cut_off() -> None:
    shuffled = torch.randperm(64**3, generator=torch.Generator().manual_seed(0))
    crop = torch.linspace(-1000, 1000, 64**3)[shuffled].view(64, 64, 64)
    cut = cut_around(crop, torch.ones_like(crop, dtype=torch.bool), 100.0)
    half = HALF_WIDTH * 0.96 * 2000
    assert float(cut.min()) == pytest.approx(100 - half, rel=0.03)
    assert float(cut.max()) == 1000, "half of the range above the middle is more than there is"
    near = (crop - 100).abs() < 0.9 * half
    torch.testing.assert_close(cut[near], crop[near])


def test_only_what_lies_in_the_scan_counts_for_the_range() -> None:
    crop, inside = torch.zeros(16, 16, 16), torch.zeros(16, 16, 16, dtype=torch.bool)
    inside[:, :, 8:] = True
    crop[:, :, 8:] = torch.rand(16, 16, 8, generator=torch.Generator().manual_seed(1))
    padded = torch.where(inside, crop, 1e4)
    cut = cut_around(padded, inside, 0.5)
    assert float(cut.max()) < 1.1
    torch.testing.assert_close(cut[inside], cut_around(crop, inside, 0.5)[inside])


@pytest.mark.parametrize("inside", [True, False])
def test_a_crop_of_one_value_or_outside_of_the_scan_stays_as_it_is(inside: bool) -> None:
    crop = torch.full((8, 8, 8), -7.0)
    assert torch.equal(cut_around(crop, torch.full_like(crop, inside, dtype=torch.bool), 3.0), crop)
