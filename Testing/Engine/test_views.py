"""The choice of views, on grids as scanners make them."""

from __future__ import annotations

import numpy as np
import pytest
from famsam.errors import ConfigError
from famsam.geometry import Grid
from famsam.resample import CropBox
from famsam.views import ViewChooser, ViewOptions, thickened
from hypothesis import given
from hypothesis import strategies as st

OPTIONS = ViewOptions()
SIZE = 128


def grid_of(size_zyx, spacing_xyz=(1.0, 1.0, 1.0)):
    return Grid(size_zyx, np.diag([*spacing_xyz, 1.0]))


def chooser_of(grid, options=OPTIONS, fixed=None, size=SIZE):
    return ViewChooser(grid, options, fixed, size)


def sees(view, grid, point_zyx, margin=0.0):
    """Whether an index lies in a view, and so many crop voxels off its faces."""
    at = view.points_to_crop(point_zyx, grid)
    rounding = 1e-6
    return bool(((at >= margin - 0.5 - rounding) & (at <= view.size - 0.5 - margin + rounding)).all())


@st.composite
def grids_with_points(draw):
    size = tuple(draw(st.sampled_from((1, 5, 30, 128, 700))) for _ in range(3))
    spacing = tuple(draw(st.sampled_from((0.3, 0.8, 1.5, 7.5))) for _ in range(3))
    point = [draw(st.floats(-0.5, n - 0.5)) for n in size]
    return grid_of(size, spacing), np.array(point)


EDGE_GRIDS = [
    grid_of((300, 512, 512), (0.7, 0.7, 1.0)),
    grid_of((30, 30, 30), (0.2, 0.2, 0.2)),
    grid_of((1, 256, 256), (1.0, 1.0, 5.0)),
    grid_of((1, 1, 2)),
    grid_of((25, 640, 640), (0.3, 0.3, 7.5)),
    grid_of((1200, 64, 64), (3.0, 3.0, 1.5)),
]


# --- what every view must do ---


@given(grids_with_points())
def test_the_first_view_sees_the_point(case):
    grid, point = case
    view = chooser_of(grid).first(point)[0]
    assert view.size == SIZE and np.isfinite(view.center_zyx).all()
    assert sees(view, grid, point)


@given(grids_with_points(), st.floats(0.05, 50), st.integers(0, 2**31))
def test_a_view_around_anything_sees_what_it_must(case, spacing_mm, seed):
    grid, must_see = case
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-50, np.array(grid.size_zyx) + 50)
    assert sees(chooser_of(grid).around(centre, spacing_mm, must_see), grid, must_see)


@given(grids_with_points(), st.integers(0, 2**31))
def test_a_view_for_an_object_that_a_view_can_show_shows_it_whole(case, seed):
    grid, _ = case
    chooser = chooser_of(grid)
    rng = np.random.default_rng(seed)
    low = rng.integers(0, grid.size_zyx)
    high = rng.integers(low, grid.size_zyx) + 1
    view = chooser.for_object(low.astype(float), high.astype(float), (low + high - 1) / 2)
    assert sees(view, grid, low) and sees(view, grid, high - 1)


@given(grids_with_points())
def test_spacings_come_from_the_ladder_between_finest_and_coarsest(case):
    grid, point = case
    chooser = chooser_of(grid)
    for wanted in (0.01, 0.4, 1.5, 2.2, 6.0, 500.0):
        spacing = chooser.around(point, wanted, point).spacing_mm
        rung = np.log(spacing / OPTIONS.first_spacing_mm) / np.log(OPTIONS.ladder_ratio)
        assert abs(rung - round(rung)) < 1e-6
        assert chooser.finest_mm * 0.999 <= spacing <= chooser.coarsest_mm * 1.001


@pytest.mark.parametrize("grid", EDGE_GRIDS, ids=str)
def test_limits_of_the_ladder(grid):
    chooser = chooser_of(grid)
    assert chooser.finest_mm >= OPTIONS.finest_voxels * np.median(grid.spacing_zyx_mm) * 0.999
    whole = chooser.around(np.zeros(3), 1e6, np.zeros(3))
    last = np.array(grid.size_zyx) - 1
    if chooser.coarsest_mm > chooser.finest_mm * 1.01:
        assert sees(whole, grid, (0, 0, 0)) and sees(whole, grid, last), "the coarsest view shows the whole scan"


@pytest.mark.parametrize("grid", EDGE_GRIDS, ids=str)
def test_views_waste_nothing_outside_the_scan(grid):
    """A view lies within the scan along every axis where the scan is longer, and is centred on it elsewhere."""
    for point in (np.zeros(3), np.array(grid.size_zyx) - 1, (np.array(grid.size_zyx) - 1) / 2):
        view = chooser_of(grid).first(point)[0]
        low, high = view.points_from_crop([[-0.5] * 3, [SIZE - 0.5] * 3], grid)
        for a, b, n, step in zip(low, high, grid.size_zyx, view.spacing_mm / grid.spacing_zyx_mm):
            if n >= SIZE * step:
                assert a >= -0.5 - 1e-6 and b <= n - 0.5 + 1e-6
            else:
                assert a + b == pytest.approx(n - 1)


# --- the lattice ---


@pytest.mark.parametrize("size", [(1, 300, 300), (300, 300, 1), (2, 200, 1)])
def test_a_thin_scan_is_taken_for_a_slab(size):
    grid = grid_of(size, (0.5, 0.6, 0.7))
    thick = thickened(grid, SIZE)
    assert thick.size_zyx == size
    extent_mm = np.array(size) * thick.spacing_zyx_mm
    assert extent_mm.min() >= 4 * extent_mm.max() / SIZE * 0.999
    kept = np.array(size) > 2
    np.testing.assert_allclose(thick.spacing_zyx_mm[kept], grid.spacing_zyx_mm[kept])


def test_other_scans_keep_their_spacing():
    grid = grid_of((13, 512, 512), (0.8, 0.8, 5.0))
    np.testing.assert_allclose(thickened(grid, SIZE).ras_from_ijk, grid.ras_from_ijk)


def test_close_clicks_look_through_the_same_view():
    grid = grid_of((400, 400, 400))
    chooser = chooser_of(grid)
    lattice = OPTIONS.lattice_share * SIZE * OPTIONS.first_spacing_mm
    node = np.array([8.0, 9.0, 8.0]) * lattice
    offsets = np.random.default_rng(0).uniform(-0.49, 0.49, (20, 3)) * lattice
    views = {chooser.first(node + offset)[0] for offset in offsets}
    assert len(views) == 1
    assert chooser.first(node + np.array([lattice, 0, 0]))[0] not in views


def test_views_can_be_keys_and_are_plain_numbers():
    view = chooser_of(grid_of((100, 300, 300))).first(np.array([50.3, 20.1, 250.7]))[0]
    assert {view: 1}[CropBox(view.center_zyx, view.spacing_mm, view.size)] == 1
    assert all(type(c) is float for c in (*view.center_zyx, view.spacing_mm))


def test_a_fixed_spacing_is_kept_whatever_is_asked_for():
    grid = grid_of((400, 400, 400))
    chooser = chooser_of(grid, fixed=1.5)
    point = np.array([200.0, 100.0, 300.0])
    assert chooser.first(point)[0].spacing_mm == 1.5
    assert chooser.for_object(point, point + 3, point).spacing_mm == 1.5
    assert chooser.around(point, 20.0, point).spacing_mm == 1.5
    assert chooser.better(chooser.first(point)[0], np.zeros(3), np.ones(3), point) is None


# --- better ---


def step_until_content(chooser, view, low_zyx, high_zyx, point_zyx, looks=50):
    """Views tried for an object of known bounds, as a perfect model would see it in each."""
    views = [view]
    for _ in range(looks):
        seen = [views[-1].points_to_crop(edge, chooser.grid) for edge in (low_zyx - 0.5, high_zyx - 0.5)]
        low, high = (np.clip((edge + 0.5) / SIZE, 0, 1) for edge in seen)
        better = chooser.better(views[-1], low, high, point_zyx)
        if better is None or better in views:
            return views
        views.append(better)
    raise AssertionError(f"no end after {looks} looks")


def test_an_object_at_the_border_asks_for_a_coarser_view_shifted_to_it():
    grid = grid_of((400, 400, 400))
    chooser = chooser_of(grid)
    point = np.array([200.0, 200.0, 200.0])
    view = chooser.first(point)[0]
    better = chooser.better(view, np.array([0.4, 0.4, 0.4]), np.array([0.6, 0.6, 1.0]), point)
    assert better.spacing_mm > view.spacing_mm
    assert better.center_zyx[2] > view.center_zyx[2] and sees(better, grid, point)


def test_the_border_of_the_scan_is_no_reason_to_zoom_out():
    grid = grid_of((100, 400, 400))
    chooser = chooser_of(grid)
    point = np.array([50.0, 200.0, 200.0])
    view = chooser.first(point)[0]  # along z the whole scan
    scale, offset = view.index_from_crop(grid)
    low = np.array([(-0.5 - offset[0]) / scale[0] / SIZE, 0.3, 0.3])
    high = np.array([(99.5 - offset[0]) / scale[0] / SIZE, 0.7, 0.7])
    assert chooser.better(view, low, high, point) is None


def test_a_tiny_object_asks_for_a_finer_view():
    grid = grid_of((400, 400, 400))
    chooser = chooser_of(grid)
    point = np.array([200.0, 200.0, 200.0])
    view = chooser.first(point)[0]
    better = chooser.better(view, np.full(3, 0.5), np.full(3, 0.52), point)
    assert better.spacing_mm < view.spacing_mm and sees(better, grid, point)
    assert better.spacing_mm >= chooser.finest_mm * 0.999


def test_never_finer_than_the_finest():
    grid = grid_of((400, 400, 400), (3.0, 3.0, 3.0))
    chooser = chooser_of(grid)
    view = chooser.around(np.full(3, 200.0), 0.1, np.full(3, 200.0))
    assert view.spacing_mm == pytest.approx(chooser.finest_mm)
    assert chooser.better(view, np.full(3, 0.5), np.full(3, 0.51), np.full(3, 200.0)) is None


def test_an_object_of_the_right_size_is_left_alone():
    grid = grid_of((400, 400, 400))
    view = chooser_of(grid).first(np.full(3, 200.0))[0]
    assert chooser_of(grid).better(view, np.full(3, 0.3), np.full(3, 0.75), np.full(3, 200.0)) is None


@given(grids_with_points(), st.integers(0, 2**31))
def test_looking_for_a_better_view_ends_with_the_object_in_it(case, seed):
    grid, _ = case
    chooser = chooser_of(grid)
    rng = np.random.default_rng(seed)
    low = rng.integers(0, grid.size_zyx)
    high = rng.integers(low, grid.size_zyx) + 1
    point = rng.integers(low, high).astype(float)
    low, high = low.astype(float), high.astype(float)
    views = step_until_content(chooser, chooser.first(point)[0], low, high, point)
    assert sees(views[-1], grid, low) and sees(views[-1], grid, high - 1)


# --- fits ---


def test_fits():
    grid = grid_of((400, 400, 400))
    chooser = chooser_of(grid)
    view = chooser.first(np.full(3, 200.0))[0]  # 192 mm wide
    low, high = (np.asarray(view.center_zyx) + side for side in (-40, 40))
    assert chooser.fits(view, low, high)
    assert not chooser.fits(view, low + 100, high + 100), "partly outside"
    assert not chooser.fits(view, low - 55, high), "too near the face"
    assert not chooser.fits(view, low + 38, high - 38), "tiny in it"
    finest = chooser.around(np.asarray(view.center_zyx), 0.0001, view.center_zyx)
    assert chooser.fits(finest, low + 38, high - 38), "there is no closer look"


def test_fits_at_the_faces_of_the_scan():
    grid = grid_of((128, 128, 128), (1.5, 1.5, 1.5))
    chooser = chooser_of(grid)
    view = chooser.first(np.full(3, 64.0))[0]
    assert chooser.fits(view, np.zeros(3), np.full(3, 128.0))
    assert chooser.fits(view, np.zeros(3), np.full(3, 50.0))


def test_with_a_fixed_spacing_a_small_object_fits():
    grid = grid_of((300, 300, 300))
    chooser = chooser_of(grid, fixed=1.5)
    view = chooser.first(np.full(3, 150.0))[0]
    centre = np.asarray(view.center_zyx)
    assert chooser.fits(view, centre, centre + 1)


@pytest.mark.parametrize(
    "change", [{"smallest_share": 0.5}, {"wanted_share": 1.0}, {"smallest_share": 0.0}, {"ladder_ratio": 1.0}]
)
def test_impossible_options_are_refused(change):
    with pytest.raises(ConfigError, match="smallest_share"):
        ViewOptions(**change)
