from __future__ import annotations

import sys

import numpy as np
import pytest
from famsam.errors import MissingDependencyError
from famsam.evaluation.baselines import BASELINES, GrowCut, RegionGrowing
from famsam.evaluation.metrics import dice
from famsam.volume import Volume

SPACING_ZYX_MM = np.array((2.0, 1.0, 1.0))


def phantom(reach=(20, 30, 30)):
    """Two tissues with noise: a ball of 12 mm at 200 in a background of 100; voxels of 2 x 1 x 1 mm, turned to LPS."""
    index = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1)
    ball = ((index * SPACING_ZYX_MM) ** 2).sum(axis=-1) <= 12.0**2
    voxels = np.where(ball, 200, 100) + np.random.default_rng(0).normal(0, 5, ball.shape)
    return Volume(voxels.astype(np.int16), np.diag([-1.0, -1.0, 2.0, 1.0])), ball


def point_of(volume, zyx):
    return tuple(volume.grid.ras_from_zyx_points(zyx).tolist())


@pytest.fixture(params=sorted(BASELINES))
def method(request):
    if request.param == "growcut":
        pytest.importorskip("slicer_core", reason="GrowCut needs the optional package slicer-core")
    return BASELINES[request.param]()


def test_a_click_finds_the_ball(method):
    volume, ball = phantom()
    method.start(volume)
    mask_zyx = method.click(point_of(volume, (20, 30, 30)), True)
    assert mask_zyx.dtype == bool
    assert mask_zyx.shape == ball.shape
    assert dice(ball, mask_zyx) > 0.95


def test_a_negative_click_takes_tissue_away_and_start_forgets(method):
    volume, _ = phantom()
    method.start(volume)
    before = method.click(point_of(volume, (20, 30, 30)), True)
    kept = before.copy()
    after = method.click(point_of(volume, (20, 30, 22)), False)
    assert after.sum() < before.sum()
    assert not after[20, 30, 22]
    assert np.array_equal(before, kept)  # an answer given is not changed later
    method.start(volume)
    assert np.array_equal(method.click(point_of(volume, (20, 30, 30)), True), before)


def test_only_the_box_around_the_clicks_is_searched(method):
    voxels = np.zeros((4, 4, 200), np.int16)
    voxels[:, :, ::2] = 1
    volume = Volume(voxels, np.eye(4))
    method.start(volume)
    assert not method.click((10.0, 2.0, 2.0), True)[:, :, 10 + 49 :].any()


def test_growcut_keeps_background_on_the_faces_of_its_box():
    pytest.importorskip("slicer_core", reason="GrowCut needs the optional package slicer-core")
    volume, _ = phantom()
    method = GrowCut()
    method.start(volume)
    method.click(point_of(volume, (20, 30, 30)), True)
    mask_zyx = method.click(point_of(volume, (20, 30, 6)), True)  # outside the ball, so that all of it could leak
    faces = [mask_zyx[0], mask_zyx[-1], mask_zyx[:, 0], mask_zyx[:, -1], mask_zyx[:, :, 0], mask_zyx[:, :, -1]]
    assert mask_zyx[20, 30, 6]
    assert not any(face.any() for face in faces)


def test_growcut_works_on_a_few_slices():
    pytest.importorskip("slicer_core", reason="GrowCut needs the optional package slicer-core")
    volume, ball = phantom(reach=(2, 30, 30))
    method = GrowCut()
    method.start(volume)
    assert dice(ball, method.click(point_of(volume, (2, 30, 30)), True)) > 0.9


def test_region_growing_keeps_the_clicked_voxel_and_joins_regions():
    volume, ball = phantom()
    method = RegionGrowing()
    method.start(volume)
    method.click(point_of(volume, (20, 30, 30)), True)
    mask_zyx = method.click(point_of(volume, (20, 30, 3)), True)
    assert mask_zyx[20, 30, 3]
    assert mask_zyx[20, 30, 30]
    assert mask_zyx.sum() > 5 * ball.sum()


def test_growcut_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "slicer_core.vtkSlicerSegmentationsModuleLogic", None)
    monkeypatch.setitem(sys.modules, "slicer_core", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "famsam\[peers\]"'):
        GrowCut()
