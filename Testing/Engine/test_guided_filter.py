"""Masks that follow the scan's edges between the logits' voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from famsam import guided_filter
from famsam.geometry import Grid, box_slices
from famsam.resample import CropBox, extract_crop, paste_logits

SPACING = (1.0, 0.8, 0.9)
GRID = Grid((60, 70, 64), np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0]))
VIEW = CropBox((30.0, 34.5, 31.0), 0.9, 64)
"""Its 32 logits along each edge lie 1.8 mm apart."""
DICE = np.random.default_rng(0)


def away_mm(places, centre):
    """Distance of canonical places (z, y, x, 3) from one."""
    return np.linalg.norm((places - np.asarray(centre)) * np.array(SPACING), axis=-1)


def voxels():
    return np.stack(np.meshgrid(*(np.arange(n) for n in GRID.size_zyx), indexing="ij"), axis=-1)


def logits_of_ball(radius_mm, centre=(30.0, 34.5, 31.0), softness_mm=1.5):
    """Logits that fall from 6 inside to -6 outside of a ball, at 32 places along each edge of the view."""
    at = (np.arange(32) + 0.5) * VIEW.size / 32 - 0.5
    places = VIEW.points_from_crop(np.stack(np.meshgrid(at, at, at, indexing="ij"), axis=-1), GRID)
    return torch.from_numpy(np.clip((radius_mm - away_mm(places, centre)) / softness_mm, -6, 6)).float()


def paste_guided(logits, scan, grid, view):
    guide = guided_filter.guide_of(*extract_crop(scan, grid, view), len(logits))
    return guided_filter.paste_guided(logits, guide, scan, grid, view)


def whole(found):
    mask = np.zeros(GRID.size_zyx, dtype=bool)
    if found[1] is not None:
        mask[box_slices(found[1])] = found[0]
    return mask


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def scan_of(truth, noise=20.0):
    return (300 * truth + DICE.normal(0, noise, truth.shape)).astype(np.int16)


@pytest.mark.parametrize("radius_mm", [8.0, 15.0])
def test_a_border_a_little_off_goes_to_the_edge(radius_mm):
    """Logits of a ball half a logit's voxel too small and beside the right place; a dark structure and tiny numbers
    (diffusion in square metres a second) as well."""
    truth = away_mm(voxels(), (30, 34.5, 31)) < radius_mm
    logits = logits_of_ball(radius_mm - 0.9, (30.4, 34.5, 30.6))
    plain = whole(paste_logits(logits, GRID, VIEW))
    for scan in (scan_of(truth), scan_of(~truth), scan_of(truth) * np.float32(1e-12)):
        guided = whole(paste_guided(logits, scan, GRID, VIEW))
        assert 1 - dice(guided, truth) < 0.6 * (1 - dice(plain, truth))


def test_without_an_edge_the_border_is_about_that_of_interpolation():
    logits = logits_of_ball(12.0)
    plain = whole(paste_logits(logits, GRID, VIEW))
    flat = whole(paste_guided(logits, np.full(GRID.size_zyx, 7, np.uint8), GRID, VIEW))
    assert dice(flat, plain) > 0.93, "smoothed logits"


def test_what_is_decided_stays_whatever_the_scan_shows():
    truth = away_mm(voxels(), (30, 34.5, 31)) < 9  # far within the border of the logits
    logits = logits_of_ball(16.0, softness_mm=0.4)
    assert dice(whole(paste_guided(logits, scan_of(truth), GRID, VIEW)), whole(paste_logits(logits, GRID, VIEW))) > 0.95


def test_noise_makes_no_crumbs_but_small_pieces_of_positive_logits_stay():
    truth = away_mm(voxels(), (30, 34.5, 31)) < 10
    logits = logits_of_ball(10.0, softness_mm=4.0)
    spot = logits.clone()
    spot[2, 2, 2] = 4.0
    noisy = scan_of(truth, noise=250.0)
    pieces = [guided_filter.pieces_of(whole(paste_guided(each, noisy, GRID, VIEW))) for each in (logits, spot)]
    sizes = [np.bincount(labels.ravel())[1:] for labels, _ in pieces]
    assert (sizes[0] >= guided_filter.CRUMB).all()
    assert len(sizes[1]) == len(sizes[0]) + 1 and sizes[1].min() < guided_filter.CRUMB


def test_a_scan_held_as_a_tensor_gives_the_same():
    truth = away_mm(voxels(), (30, 34.5, 31)) < 12
    scan, logits = scan_of(truth), logits_of_ball(11.0)
    one, other = (whole(paste_guided(logits, each, GRID, VIEW)) for each in (scan, torch.from_numpy(scan)))
    assert dice(one, other) > 0.999


def test_nothing_positive_and_nothing_of_the_scan_give_nothing():
    scan = np.zeros(GRID.size_zyx, np.int16)
    beside = CropBox((300.0, 34.5, 31.0), 0.9, 64)
    for found in (paste_guided(torch.full((32, 32, 32), -1.0), scan, GRID, VIEW),
                  paste_guided(logits_of_ball(12.0), scan, GRID, beside)):
        assert found[1] is None and found[0].size == 0


def test_a_structure_that_fills_the_view_is_cut_at_its_faces():
    scan = scan_of(np.ones(GRID.size_zyx, dtype=bool))
    mask = whole(paste_guided(torch.full((32, 32, 32), 5.0), scan, GRID, VIEW))
    expected = np.zeros_like(mask)
    expected[box_slices(VIEW.image_box(GRID))] = True
    assert (mask == expected).all()


def test_the_guide_at_the_faces_of_the_scan_is_that_of_what_lies_inside():
    crop, inside = torch.full((8, 8, 8), -900.0), torch.ones(8, 8, 8, dtype=torch.bool)
    crop[:3], inside[:3] = 0, False
    guide = guided_filter.guide_of(crop, inside, 4)
    assert (guide[1:] == -900).all() and (guide[0] == 0).all()
    assert guided_filter.guide_of(crop, inside, 2).shape == (2, 2, 2)
