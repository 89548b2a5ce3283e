from __future__ import annotations

import json
import logging
import sys

import pytest
import torch
from famsam import runtime
from famsam.errors import ConfigError
from famsam.model import build_model
from famsam.model.famsam import FamsamConfig
from famsam.runtime import autocast, cast_once, choose_device, choose_precision, describe, matmul_gflops
from tiny_models import TINY

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_measurement():
    runtime._bf16_pays_on_cpu.cache_clear()
    yield
    runtime._bf16_pays_on_cpu.cache_clear()


def no_gpu(monkeypatch, cuda_build=None):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda_build)


def test_the_cpu_is_always_there():
    assert choose_device("cpu") == CPU
    assert choose_device("cpu:0") == CPU


def test_auto_takes_the_cpu_without_a_gpu(monkeypatch):
    no_gpu(monkeypatch)
    assert choose_device("auto") == choose_device() == CPU


def test_auto_falls_back_from_a_gpu_that_does_not_work(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if torch.cuda.device_count():
        monkeypatch.setattr(torch, "ones", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    else:
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    with caplog.at_level(logging.WARNING, "famsam"):
        assert choose_device("auto") == CPU
    assert "Falling back to the CPU" in caplog.text


@pytest.mark.parametrize(("build", "words"), [(None, "is built without CUDA"), ("12.4", "is built for CUDA 12.4")])
def test_a_missing_gpu_is_explained(monkeypatch, build, words):
    no_gpu(monkeypatch, build)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=f"{device}.*{words}.*'cpu'"):
            choose_device(device)


def test_a_gpu_out_of_range_is_explained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"no 'cuda:7'.*2 GPUs.*'cuda:0' to 'cuda:1'"):
        choose_device("cuda:7")


def test_apples_gpu_must_be_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="No Apple GPU"):
        choose_device("mps")


@pytest.mark.parametrize("device", ["gpu", "", "xpu", "cuda:x", "meta", None])
def test_other_devices_are_refused(device):
    with pytest.raises(ConfigError, match="device must be"):
        choose_device(device)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chosen_precision_is_kept(precision):
    assert choose_precision(precision, CPU) == precision


@pytest.mark.parametrize(
    ("precision", "message"), [("fp16", "is for GPUs"), ("int4", "must be 'auto'"), ("", "must be")]
)
def test_other_precisions_are_refused(precision, message):
    with pytest.raises(ConfigError, match=message):
        choose_precision(precision, CPU)


@pytest.mark.parametrize(("bf16_gflops", "chosen"), [(200.0, "bf16"), (140.0, "fp32"), (50.0, "fp32")])
def test_auto_precision_on_a_cpu_follows_one_measurement(monkeypatch, bf16_gflops, chosen):
    measured = []
    speeds = {"fp32": 100.0, "bf16": bf16_gflops}
    monkeypatch.setattr(runtime, "matmul_gflops", lambda device, precision: measured.append(1) or speeds[precision])
    assert [choose_precision("auto", CPU) for _ in range(3)] == [chosen] * 3
    assert len(measured) == 8, "four times each, once a process"


def test_bf16_is_not_chosen_without_onednn(monkeypatch):
    monkeypatch.setattr(runtime, "matmul_gflops", lambda device, precision: {"fp32": 1.0, "bf16": 9.0}[precision])
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(
    ("allowed", "bf16_pays", "int8_pays_over", "chosen"),
    [
        (("int8", "bf16"), True, (torch.bfloat16, torch.float32), "int8"),
        (("int8", "bf16"), True, (torch.float32,), "bf16"),
        (("int8", "bf16"), False, (torch.float32,), "int8"),
        (("int8", "bf16"), False, (), "fp32"),
        (("bf16",), True, (torch.bfloat16, torch.float32), "bf16"),
        ((), True, (torch.bfloat16, torch.float32), "fp32"),
    ],
)
def test_auto_precision_on_a_cpu_is_the_fastest_allowed(monkeypatch, allowed, bf16_pays, int8_pays_over, chosen):
    monkeypatch.setattr(runtime, "_bf16_pays_on_cpu", lambda: bf16_pays)
    monkeypatch.setattr(runtime.int8, "pays", lambda rival: rival in int8_pays_over)
    assert choose_precision("auto", CPU, allowed) == chosen


def test_int8_is_refused_where_it_cannot_be(monkeypatch):
    with pytest.raises(ConfigError, match="int8 needs a CPU"):
        choose_precision("int8", torch.device("cuda", 0))
    monkeypatch.setattr(runtime.int8, "usable", lambda: False)
    with pytest.raises(ConfigError, match="missing or wrong there"):
        choose_precision("int8", CPU)


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")])
def test_auto_precision_on_a_gpu_follows_its_capability(monkeypatch, capability, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda", 0)) == chosen


def test_auto_precision_on_apples_gpu_is_fp32():
    assert choose_precision("auto", torch.device("mps")) == "fp32"


def test_autocast_computes_in_the_precision():
    a = torch.ones(4, 4)
    with autocast(CPU, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize("name", ["famsam", "fastsam3d", "sam_med3d"])
def test_weights_cast_once_give_what_casts_at_every_call_give(name):
    torch.manual_seed(0)
    config = TINY.get(name, FamsamConfig((8, 8, 8, 8), 16, 2, 2, decoder_channels=(8, 8, 16)))
    model = build_model(name, config).eval().requires_grad_(False)
    assert cast_once(model) is model
    model.precision = "bf16"
    copied = cast_once(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    shared = {p.data_ptr() for p in model.parameters()}
    assert all((p.data_ptr() in shared) == (p.dtype == torch.float32) for p in copied.parameters())
    crop, points, labels = torch.randn(1, 1, *(model.crop_size,) * 3), torch.rand(1, 2, 3) * 15, torch.tensor([[1, 0]])
    with torch.inference_mode(), autocast(model.device, model.precision):
        (expected, _), (found, _) = (one.decode(one.encode(crop), points, labels) for one in (model, copied))
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.01 * float(expected.abs().max()))
    assert name != "famsam" or torch.equal(found, expected)


def test_speeds_are_positive():
    assert all(matmul_gflops(CPU, precision, size=64) > 0 for precision in ("fp32", "bf16"))


def test_the_description_is_json_and_true():
    import famsam

    found = json.loads(json.dumps(describe()))
    assert found["famsam"] == {"version": famsam.__version__, "file": famsam.__file__}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["torch"] == torch.__version__
    assert {"numpy", "SimpleITK", "nibabel", "flash_attn"} <= set(found["packages"])
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] in [entry["device"] for entry in found["devices"]]
    device = torch.device(found["device"])
    assert found["precision"] == choose_precision("auto", device, ("int8", "bf16"))
    assert found["devices"][0]["device"] == "cpu"
    assert set(found["devices"][0]["matmul_gflops"]) == {"fp32", "bf16"}


@pytest.mark.parametrize(
    "milliseconds, chosen",
    [
        ({8: 3, 4: 5, 2: 9, 1: 17}, 8),
        ({8: 5, 4: 4.5, 2: 8, 1: 14}, 8),
        ({8: 90, 4: 95, 2: 4, 1: 7}, 2),
        ({8: 9, 4: 5, 2: 6, 1: 11}, 4),
    ],
    ids=["more is faster", "fewer are not clearly faster", "a container's two cores", "slow cores hold up fast ones"],
)
def test_fewer_threads_where_they_are_clearly_faster(monkeypatch, milliseconds, chosen):
    before, seen = torch.get_num_threads(), []

    def seconds_of(work):
        seen.append(torch.get_num_threads())
        return milliseconds[seen[-1]] / 1000

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtime, "_STANDARD_THREADS", 8)
    monkeypatch.setattr(runtime, "_seconds_of", seconds_of)
    runtime._fastest_threads.cache_clear()
    try:
        torch.set_num_threads(8)
        runtime.use_fastest_threads()
        assert torch.get_num_threads() == chosen and seen == [8, 4, 2, 1]
        runtime.use_fastest_threads()
        assert torch.get_num_threads() == chosen and len(seen) == 4, "measured once"
    finally:
        runtime._fastest_threads.cache_clear()
        torch.set_num_threads(before)


def test_threads_are_reconsidered_after_slow_calls_and_taken_back_later(monkeypatch):
    before, busy, clock_s = torch.get_num_threads(), [True], [100.0]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtime, "_STANDARD_THREADS", 2)
    monkeypatch.setattr(runtime, "_measured_threads", {"count": 2, "at_s": 99.0})
    monkeypatch.setattr(runtime.time, "monotonic", lambda: clock_s[0])
    monkeypatch.setattr(runtime, "_seconds_of", lambda work: 9.0 if torch.get_num_threads() == 2 and busy[0] else 1.0)
    try:
        torch.set_num_threads(2)
        for now_s, call_s, is_busy, expected in [
            (100.0, 5.0, True, 2),  # just measured
            (110.0, 0.1, True, 2),  # fast enough
            (110.0, 5.0, True, 1),
            (125.0, 5.0, False, 1),  # more threads are not tried again so soon
            (150.0, 0.1, False, 2),
        ]:
            clock_s[0], busy[0] = now_s, is_busy
            runtime.reconsider_threads(call_s)
            assert torch.get_num_threads() == expected, now_s
        torch.set_num_threads(5)
        clock_s[0] = 300.0
        runtime.reconsider_threads(5.0)
        assert torch.get_num_threads() == 5, "somebody chose them"
    finally:
        runtime._fastest_threads.cache_clear()
        torch.set_num_threads(before)


@pytest.mark.parametrize("how", ["torch", "environment", "kept"])
def test_threads_that_somebody_chose_stay(monkeypatch, how):
    before = torch.get_num_threads()
    monkeypatch.setattr(runtime, "_seconds_of", lambda work: pytest.fail("nothing is to be measured"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runtime._fastest_threads.cache_clear()
    try:
        if how == "torch":
            torch.set_num_threads(runtime._STANDARD_THREADS + 3)
        elif how == "environment":
            monkeypatch.setenv("OMP_NUM_THREADS", str(before))
        else:
            runtime.keep_threads(runtime._STANDARD_THREADS)
        chosen = torch.get_num_threads()
        runtime.use_fastest_threads()
        runtime.reconsider_threads(2 * runtime.SLOW_CALL_S)
        assert torch.get_num_threads() == chosen
    finally:
        runtime.keep_threads(0)
        torch.set_num_threads(before)


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(ConfigError, match="0 or more threads, got -1"):
        runtime.keep_threads(-1)


def test_measuring_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    runtime._fastest_threads.cache_clear()
    try:
        assert runtime._fastest_threads() in [runtime._STANDARD_THREADS >> n for n in range(8)]
        assert torch.get_num_threads() == runtime._STANDARD_THREADS
    finally:
        runtime._fastest_threads.cache_clear()
        torch.set_num_threads(before)
