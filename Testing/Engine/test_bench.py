"""The benchmark's numbers and their shape; how large they are is nobody's business here."""

from __future__ import annotations

import json

import pytest
import torch
from famsam.bench import BenchReport, Timing, run_bench
from famsam.errors import ConfigError


@pytest.fixture(scope="module")
def report():
    return run_bench("cpu", "fp32", runs=1, volume_xyz=(30, 34, 20), configs=("famsam", "fastsam3d"))


def test_every_configuration_is_timed(report):
    assert set(report.configs) == {"famsam", "fastsam3d"}
    for found in report.configs.values():
        assert found["precision"] == "fp32" and found["parameters"] > 1_000_000
        for stage in ("encode", "decode"):
            assert 0 < found[stage]["min_ms"] <= found[stage]["median_ms"] <= found[stage]["max_ms"]
    assert report.configs["famsam"]["parameters"] < 6_500_000


def test_clicks_are_timed_on_the_volume_that_was_asked_for(report):
    assert report.clicks["volume_xyz"] == [30, 34, 20]
    assert report.clicks["first"]["median_ms"] > 0 and report.clicks["next"]["median_ms"] > 0
    assert set(report.clicks["last_next_click_stages_ms"]) == {"crop", "encode", "decode", "paste", "total"}


def test_ratios_are_those_of_the_medians_of_this_run(report):
    ours, paper = report.configs["famsam"], report.configs["fastsam3d"]
    assert len(report.ratios) == 2
    for stage in ("encode", "decode"):
        (ratio,) = (value for name, value in report.ratios.items() if name.startswith(stage))
        assert ratio == pytest.approx(paper[stage]["median_ms"] / ours[stage]["median_ms"], abs=0.006)


def test_the_report_names_where_it_was_measured_and_reads_well(report):
    assert report.environment["packages"]["torch"] == torch.__version__
    assert report.environment["threads"] == torch.get_num_threads() and report.environment["date"]
    lines = report.lines()
    assert f"torch {torch.__version__}" in lines[0]
    assert any(line.startswith("famsam") and "encode" in line for line in lines)
    assert any("first click" in line for line in lines) and any("30 x 34 x 20" in line for line in lines)
    assert json.loads(json.dumps(report.to_dict()))["ratios"] == report.ratios


def test_timing_of_values():
    assert Timing.of([3.0, 1.0, 10.0]) == Timing(median_ms=3.0, min_ms=1.0, max_ms=10.0)


def test_a_report_without_runs_is_empty():
    assert BenchReport({}).to_dict()["configs"] == {}


@pytest.mark.parametrize(
    "wrong", [{"runs": 0}, {"volume_xyz": (4, 100, 100)}, {"configs": ("unet",)}, {"device": "quantum"}]
)
def test_what_cannot_be_timed_is_refused(wrong):
    with pytest.raises(ConfigError):
        run_bench(**{"device": "cpu", "runs": 1, "volume_xyz": (20, 20, 20), **wrong})
