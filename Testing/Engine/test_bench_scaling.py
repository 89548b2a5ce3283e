"""The scaling curves' shape, what is left out, and the plot."""

from __future__ import annotations

import famsam.bench.scaling as scaling
import numpy as np
import pytest
import torch
from famsam.bench import ScalingOptions
from famsam.bench.clicks import StageCalls, clicks_on, synthetic_ct
from famsam.bench.models import bundled_model
from famsam.bench.plot import draw_scaling
from famsam.errors import ConfigError


@pytest.fixture(scope="module")
def model():
    return bundled_model(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def found(model):
    options = ScalingOptions(((12, 10, 9), (20, 16, 12)), points=3, segments=2, volume_xyz=(20, 16, 12), runs=1)
    return scaling.time_scaling(model, options, lambda text: None)


def test_every_curve_has_its_points(found):
    assert [row["volume_xyz"] for row in found["volumes"]] == [[12, 10, 9], [20, 16, 12]]
    assert {"open", "first", "next", "undo"} < set(found["volumes"][0])
    assert [row["points"] for row in found["points"]] == [1, 2, 3]
    assert [row["points"] for row in found["decode_by_points"]] == [1, 2]
    assert [row["segments"] for row in found["segments"]] == [1, 2]
    assert min(row[f"{name}_ms"] for row in found["segments"] for name in ("first", "next", "switch")) > 0
    assert found["volumes_left_out"] == []
    growth = found["last_fifth_over_first"]
    points = [row["click_ms"] for row in found["points"]]
    assert growth["next click by points"] == pytest.approx(points[-1] / points[1], rel=0.01)


def test_a_scan_that_does_not_fit_is_left_out_and_named(model, monkeypatch):
    monkeypatch.setattr(scaling, "free_memory_mib", lambda: scaling.SPARE_MIB + 0.003)
    rows, left_out = scaling.by_volume(model, ScalingOptions(((10, 10, 10), (20, 20, 20)), runs=1), lambda text: None)
    assert [row["volume_xyz"] for row in rows] == [[10, 10, 10]]
    (left_out,) = left_out
    assert left_out["volume_xyz"] == [20, 20, 20] and "needs 0 MiB" in left_out["why"]


def test_free_memory_is_told():
    assert scaling.free_memory_mib() > 0


def test_the_plot_is_drawn(found, tmp_path):
    draw_scaling(found, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", [{"volumes_xyz": ()}, {"volumes_xyz": ((4, 9, 9),)}, {"points": 0}, {"runs": 0}])
def test_what_cannot_be_varied_is_refused(wrong):
    with pytest.raises(ConfigError, match="Expected"):
        ScalingOptions(**wrong)


def test_the_synthetic_scan_has_a_bright_object_where_the_clicks_are():
    volume = synthetic_ct((20, 40, 30))
    assert volume.voxels_zyx.dtype == np.int16 and volume.grid.size_zyx == (20, 40, 30)
    for ras in clicks_on(volume, 5, seed=3):
        z, y, x = np.rint(volume.grid.zyx_from_ras_points(ras)).astype(int)
        assert volume.voxels_zyx[z, y, x] > 50
    assert volume.voxels_zyx[0, 0, 0] < 100 and list(clicks_on(volume, 2, 3)) == list(clicks_on(volume, 2, 3))


def test_the_stages_do_what_they_say():
    volume = synthetic_ct((20, 40, 30))
    with StageCalls(volume) as stages:
        results = {name: call() for name, call in stages.calls().items()}
        path = stages.path
        assert path.exists()
    assert not path.exists()
    np.testing.assert_array_equal(results["read"].voxels_zyx, volume.voxels_zyx)
    assert results["resample"].shape == (1, 1, 128, 128, 128) and results["prior"].shape == (64, 64, 64)
    for stage in ("paste", "paste guided"):
        assert results[stage][0].all() and results[stage][0].shape == (20, 40, 30)
