"""The benchmark's numbers and their shape; how large they are is nobody's business here."""

from __future__ import annotations

import json

import pytest
import torch
from famsam import runtime
from famsam.bench import BenchOptions, BenchReport, ScalingOptions, run_bench
from famsam.bench.models import ModelCalls, untrained_model
from famsam.bench.run import ratios
from famsam.errors import CheckpointError, ConfigError
from famsam.model import int8

TIMING = {"median_ms", "min_ms", "max_ms", "spread_ms", "runs"}
JUDGED = TIMING | {"gflop", "mib", "limit_ms", "of_limit"}


@pytest.fixture(scope="module")
def kept():
    """What a run that is cut off has told by then."""
    return []


@pytest.fixture(scope="module")
def report(kept):
    scaling = ScalingOptions(((10, 12, 8),), points=1, segments=1, volume_xyz=(30, 34, 20), runs=1)
    options = BenchOptions("cpu", "fp32", 0, 1, (30, 34, 20), ("famsam",), batches=(2,), scaling=scaling)
    return run_bench(options, lambda report: kept.append(json.loads(json.dumps(report.to_dict()))))


def test_what_was_found_is_told_as_it_is_found(report, kept):
    assert len(kept) > 4 and kept[-1] == json.loads(json.dumps(report.to_dict()))
    first = kept[0]
    assert first["limits"] and first["configs"]["famsam"]["encode"] and not first["clicks"] and not first["import_ms"]
    sizes = [len(json.dumps(found)) for found in kept]
    assert sizes == sorted(sizes)


def test_every_configuration_is_timed(report):
    (found,) = report.configs.values()
    assert found["precision"] == "fp32" and 1_000_000 < found["parameters"] < 6_500_000
    for stage in ("normalise", "encode", "decode"):
        assert set(found[stage]) == JUDGED and found[stage]["runs"] == 1
        assert 0 < found[stage]["min_ms"] <= found[stage]["median_ms"] <= found[stage]["max_ms"]
    assert found["encode"]["gflop"] > 1 and found["decode"]["gflop"] > 1


def test_limits_are_measured_and_held_against_every_stage(report):
    precisions = {"fp32", "bf16", "int8"} if int8.usable() else {"fp32", "bf16"}
    for of_precision in report.limits.values():
        assert set(of_precision) == precisions and min(of_precision.values()) > 0
    for found in (*report.stages.values(), report.configs["famsam"]["encode"]):
        rounded = 1e-3 + 1e-3 / found["median_ms"]  # times are reported in whole microseconds
        assert found["of_limit"] == pytest.approx(found["limit_ms"] / found["median_ms"], rel=0.2, abs=rounded)
    assert set(report.stages) == {"read", "open", "resample", "prior", "paste", "paste guided"}


def test_clicks_are_timed_on_the_volume_that_was_asked_for(report):
    assert report.clicks["volume_xyz"] == [30, 34, 20]
    for name in ("set_image", "first", "first_encoded_ahead", "next", "preview", "mask", "undo", "redo"):
        assert set(report.clicks[name]) == TIMING and report.clicks[name]["median_ms"] > 0
    assert report.clicks["next"]["runs"] == 2 * report.clicks["first"]["runs"]
    assert set(report.clicks["last_next_click_stages_ms"]) == {"crop", "encode", "decode", "paste", "total"}


def test_ratios_are_those_of_the_medians_of_this_run():
    ours = {"precision": "bf16", "encode": {"median_ms": 20.0}, "decode": {"median_ms": 10.0}}
    paper = {"precision": "fp32", "encode": {"median_ms": 170.0}, "decode": {"median_ms": 5.0}}
    assert ratios({"famsam": ours, "fastsam3d": paper}) == {
        "encode: fastsam3d fp32 / famsam bf16": 8.5,
        "decode: fastsam3d fp32 / famsam bf16": 0.5,
    }
    assert ratios({"famsam": ours}) == {}


def test_the_published_model_is_timed_as_well():
    calls = ModelCalls(untrained_model("fastsam3d", torch.device("cpu"), "auto"), torch.randn(1, 1, 128, 128, 128))
    assert calls.model.precision == "fp32"
    assert calls.decode()[0].shape == (1, 1, 32, 32, 32)
    work = calls.work()
    parameters_mib = sum(p.nbytes for p in calls.model.parameters()) / 2**20
    assert parameters_mib < work["encode"].mib + work["decode"].mib < 1.4 * parameters_mib
    assert work["encode"].gflop > 10 * work["decode"].gflop > 0


def test_throughput_counts_the_volumes_of_a_batch(report):
    for found in report.throughput.values():
        for stage in ("encode", "decode"):
            expected = 1000 * 2 / found["2"][stage]["median_ms"]
            assert found["2"][stage]["per_second"] == pytest.approx(expected, rel=0.01)


def test_the_report_names_where_it_was_measured_and_reads_well(report):
    about = report.environment
    assert set(about["famsam"]) == {"version"}, "a report that is passed on tells nothing of where it was made"
    assert about["packages"]["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads() and about["date"] and about["processor"]
    assert set(report.import_ms) == {"famsam", "torch", "engine", "bundled model"}
    assert report.import_ms["famsam"] < report.import_ms["torch"]
    lines = report.lines()
    assert f"torch {torch.__version__}" in lines[0]
    assert any(line.startswith("famsam") and "encode" in line and "% of the limit" in line for line in lines)
    assert any("first click" in line for line in lines) and any("30 x 34 x 20" in line for line in lines)
    assert any("batch 2, encode" in line for line in lines) and any("click by points" in line for line in lines)
    assert json.loads(json.dumps(report.to_dict()))["limits"] == report.limits


def test_threads_are_as_they_were():
    before = torch.get_num_threads()
    with pytest.raises(CheckpointError):
        run_bench(BenchOptions("cpu", threads=before + 1, runs=1, volume_xyz=(8, 8, 8), model="missing.safetensors"))
    assert torch.get_num_threads() == before


def test_the_threads_and_the_precision_asked_for_are_those_of_the_run(monkeypatch):
    class Enough(Exception):
        pass

    found = []

    def enough(report):
        found.append((torch.get_num_threads(), report.environment))
        raise Enough

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtime, "_STANDARD_THREADS", 2)
    monkeypatch.setattr(runtime, "_fastest_threads", lambda: 1)
    with pytest.raises(Enough):
        run_bench(BenchOptions("cpu", "fp32", 2, 1, (16, 16, 16), ("famsam",)), enough)
    ((threads, about),) = found
    assert threads == about["threads"] == 2
    assert (about["device"], about["precision"]) == ("cpu", "fp32")


def test_a_report_without_runs_is_empty():
    assert BenchReport({}).to_dict()["configs"] == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"runs": 0},
        {"volume_xyz": (4, 100, 100)},
        {"configs": ("unet",)},
        {"configs": ()},
        {"batches": (0,)},
        {"threads": -1},
    ],
)
def test_what_cannot_be_timed_is_refused(wrong):
    with pytest.raises(ConfigError, match="Expected"):
        BenchOptions(**wrong)


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="quantum"):
        run_bench(BenchOptions("quantum"))


@pytest.mark.skipif(not int8.usable(), reason="this PyTorch or processor has no int8 operators")
def test_int8_is_held_against_its_own_limit_and_counts_the_same_work():
    crop = torch.zeros(1, 1, 128, 128, 128)
    work = {}
    for precision in ("fp32", "int8"):
        calls = ModelCalls(untrained_model("famsam", torch.device("cpu"), precision), crop)
        work[precision] = calls.work()["encode"]
    assert work["int8"].precision == "int8" and work["int8"].gflop == work["fp32"].gflop > 1
