"""Tiles of closer views over the border of what a coarse view shows, and how they are blended into it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from famsam.geometry import Grid
from famsam.resample import CropBox
from famsam.tiling import Tiling, is_thin, tiles

GRID = Grid((200, 200, 200), np.diag([1.5, 1.0, 1.0, 1.0]))
VIEW = CropBox((90.0, 100.0, 80.0), 3.0, 128)


def ball(n, radius, centre=None):
    grid = np.stack(np.indices((n, n, n)), axis=-1)
    return ((grid - (np.full(3, (n - 1) / 2) if centre is None else centre)) ** 2).sum(-1) < radius**2


def border_voxels(mask):
    """Coarse voxels with a neighbour across the mask's border."""
    border = np.zeros_like(mask)
    for axis in range(3):
        change = np.diff(mask.astype(np.int8), axis=axis) != 0
        for part in (slice(None, -1), slice(1, None)):
            where = [slice(None)] * 3
            where[axis] = part
            border[tuple(where)] |= change
    return border


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("radius, centre", [(4, None), (20, None), (27, None), (12, (3, 30, 60))])
def test_enough_tiles_cover_the_whole_border(factor, radius, centre):
    mask = ball(64, radius, centre)
    covered = np.zeros((64 * factor,) * 3, dtype=bool)
    origins = tiles(mask, factor, most=10_000)
    for origin in origins:
        assert all(0 <= o <= 64 * factor - 64 for o in origin)
        covered[tuple(slice(o, o + 64) for o in origin)] = True
    fine_border = border_voxels(mask).repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)
    inside = mask.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)
    assert not (fine_border & inside & ~covered).any()
    assert len(set(origins)) == len(origins)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_mask_that_changes_a_little_keeps_many_of_its_tiles(factor):
    kept, total = 0, 0
    for radius, y in zip((10, 11, 13, 14, 17, 18, 20, 21, 22), range(28, 37)):
        before = set(tiles(ball(64, radius, (31, y, 33)), factor, most=10_000))
        after = set(tiles(ball(64, radius + 0.5, (31, y + 1, 33)), factor, most=10_000))
        kept, total = kept + len(before & after), total + len(after)
    assert kept >= 0.3 * total


def test_the_tiles_with_the_longest_border_come_first():
    mask = np.zeros((64, 64, 64), dtype=bool)
    mask[2:40, 2:40, 2:40] = True
    mask[60, 60, 60] = True
    every = tiles(mask, 4, most=10_000)
    few = tiles(mask, 4, most=3)
    assert few == every[:3]
    border = border_voxels(mask)
    lengths = [border[tuple(slice(o // 4, o // 4 + 16) for o in origin)].sum() for origin in every]
    assert lengths[0] > lengths[-1]


@pytest.mark.parametrize("near", [(5, 20, 60), (60, 20, 30), (31, 31, 31)])
def test_or_those_nearest_to_a_place(near):
    mask = ball(64, 30)
    every, few = tiles(mask, 4, most=10_000), tiles(mask, 4, 3, np.array(near))
    away = {origin: np.abs(np.array(origin) + 31.5 - (4 * np.array(near) + 1.5)).max() for origin in every}
    assert [away[origin] for origin in few] == sorted(away.values())[:3]
    assert set(tiles(mask, 4, 10_000, np.array(near))) == set(every)


def test_shells_sheets_and_threads_are_thin_balls_are_not():
    sheet, thread, rod = np.zeros((3, 64, 64, 64), dtype=bool)
    sheet[20:23, 5:60, 5:60] = True
    thread[:, 30:32, 30:32] = True
    rod[:, 20:44, 20:44] = True
    for mask, expected in [
        (ball(64, 25) & ~ball(64, 22), True),
        (sheet, True),
        (thread, True),
        (rod, False),
        (ball(64, 6), False),
        (ball(64, 25), False),
        (np.zeros_like(rod), False),
    ]:
        before = mask.copy()
        assert is_thin(mask, 0.4) == expected
        assert (mask == before).all()
    assert not is_thin(thread, 0.0)


def test_no_tiles_without_a_border():
    assert tiles(np.zeros((64, 64, 64), dtype=bool), 2, 12) == []
    assert tiles(np.ones((64, 64, 64), dtype=bool), 2, 12) == []


def logits_of(mask):
    return torch.from_numpy(np.where(mask, 4.0, -4.0)).float()[None, None]


@pytest.mark.parametrize("factor", [2, 4])
def test_a_tile_is_seen_where_it_lies_in_the_coarse_view(factor):
    tiling = Tiling(VIEW, logits_of(ball(64, 20)), factor, most=12)
    for origin in tiling.origins:
        tile = tiling.view_of(origin, GRID)
        assert tile.size == VIEW.size and tile.spacing_mm == VIEW.spacing_mm / factor
        corner = tile.points_from_crop([-0.5] * 3, GRID)
        expected = VIEW.points_from_crop(np.array(origin) * 2 / factor - 0.5, GRID)
        np.testing.assert_allclose(corner, expected, atol=1e-9)


def test_tiles_that_say_what_the_coarse_view_says_change_nothing():
    logits = logits_of(ball(64, 20))
    tiling = Tiling(VIEW, logits, 2, most=12)
    assert len(tiling.origins) > 1
    for origin in tiling.origins:
        tiling.add(origin, tiling.prior(origin))
    torch.testing.assert_close(tiling.blended(), F.interpolate(logits, scale_factor=2.0, mode="trilinear"))


def test_tiles_decide_where_they_see_and_nothing_beside():
    logits = logits_of(ball(64, 8, (12, 12, 12)))
    tiling = Tiling(VIEW, logits, 3, most=1)
    (origin,) = tiling.origins
    tiling.add(origin, torch.full((1, 1, 64, 64, 64), 7.0))
    blended, before = tiling.blended(), F.interpolate(logits, scale_factor=3.0, mode="trilinear")
    inside = torch.zeros(blended.shape[2:], dtype=torch.bool)
    inside[tuple(slice(o, o + 64) for o in origin)] = True
    torch.testing.assert_close(blended[0, 0][~inside], before[0, 0][~inside])
    middle = tuple(o + 32 for o in origin)
    assert abs(float(blended[0, 0][middle]) - 7.0) < 0.02


def test_without_a_border_the_coarse_logits_stay():
    logits = logits_of(np.zeros((64, 64, 64), dtype=bool))
    tiling = Tiling(VIEW, logits, 2, most=12)
    assert tiling.origins == [] and tiling.blended() is logits
