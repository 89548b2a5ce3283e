"""Rounds, quartiles, FLOPs and peaks of known things."""

from __future__ import annotations

import sys
import time

import pytest
import torch
import torch.nn.functional as F
from famsam.bench.fresh import MemoryTask, peak_in_fresh_process, peak_mib, run_python
from famsam.bench.machine import Limits, Work
from famsam.bench.models import captured
from famsam.bench.timing import Timing, gflop, measure, once_ms
from famsam.errors import ConfigError

CPU = torch.device("cpu")


def test_timing_of_values():
    assert Timing.of([3.0, 1.0, 10.0, 4.0, 2.0]) == Timing(3.0, 1.0, 10.0, 2.0, 5)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 0.0, 1)


def test_measuring_goes_in_rounds_and_leaves_the_first_out():
    order = []
    timings = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, CPU)
    assert order == ["a", "b"] * 3
    assert {name: timing.runs for name, timing in timings.items()} == {"a": 2, "b": 2}


def test_once_ms_is_milliseconds():
    assert once_ms(lambda: time.sleep(0.02), CPU) >= 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process its peak and resets it")
def test_a_peak_that_is_over_again_is_seen():
    script = (
        "import numpy as np, torch; from famsam.bench.fresh import peak_mib\n"
        "call = lambda: np.ones(100 * 2**20, dtype=np.uint8).max()\n"
        "print(peak_mib(call, torch.device('cpu'))['host'])"
    )
    assert 95 < float(run_python(["-c", script])) < 160


def test_a_models_peak_is_measured_in_a_fresh_process():
    peak = peak_in_fresh_process(MemoryTask("cpu", "fp32", "famsam"))
    assert peak["device"] is None and (peak["host"] is None or 10 < peak["host"] < 1200)


def test_a_fresh_process_that_fails_is_reported():
    with pytest.raises(ConfigError, match="no_such_thing"):
        run_python(["-c", "import no_such_thing"])


def test_flop_of_a_product_a_convolution_and_attention():
    a, b = torch.ones(100, 200), torch.ones(200, 300)
    assert gflop(lambda: a @ b) == pytest.approx(2 * 100 * 200 * 300 / 1e9, abs=1e-4)
    x, w = torch.ones(1, 8, 20, 20, 20), torch.ones(16, 8, 3, 3, 3)
    assert gflop(lambda: F.conv3d(x, w, padding=1)) == pytest.approx(2 * 20**3 * 8 * 16 * 27 / 1e9, abs=1e-4)
    q = torch.ones(1, 4, 256, 32)
    counted = gflop(lambda: F.scaled_dot_product_attention(q, q, q))
    assert counted == pytest.approx(2 * 2 * 4 * 256 * 256 * 32 / 1e9, abs=1e-4)


def test_a_stage_is_held_against_the_nearer_limit():
    limits = Limits(CPU)
    limits.take(dict.fromkeys(limits.calls(), Timing(1000.0, 1000.0, 1000.0, 0.0, 1)))
    assert limits.matmul_gflops["fp32"] == pytest.approx(2 * 1024**3 / 1e9, abs=0.1)
    assert limits.copy_gib_s["bf16"] == pytest.approx(0.25)
    taken = Timing(4000.0, 4000.0, 4000.0, 0.0, 1)
    arithmetic = limits.judged(taken, Work(1.0, 2 * 1024**3 / 1e9, "fp32"))
    assert arithmetic["limit_ms"] == pytest.approx(1000, rel=0.05)
    assert arithmetic["of_limit"] == pytest.approx(0.25, rel=0.05)
    traffic = limits.judged(taken, Work(512.0))
    assert traffic["limit_ms"] == pytest.approx(2000, rel=0.01) and traffic["gflop"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs and events need an NVIDIA GPU")
def test_a_captured_call_computes_the_same_again():
    device = torch.device("cuda", 0)
    x, w = torch.randn(64, 64, device=device), torch.randn(64, 64, device=device)
    replay = captured(lambda: torch.relu(x @ w), device)
    x.copy_(torch.randn(64, 64, device=device))
    assert once_ms(replay, device) > 0
    torch.testing.assert_close(replay(), torch.relu(x @ w))
    assert peak_mib(lambda: torch.empty(2**20, device=device), device)["device"] == pytest.approx(4, abs=2)
