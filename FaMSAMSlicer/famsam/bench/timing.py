"""Timings in rounds, and floating-point operations: what everything else here measures with."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one thing, over some runs."""

    median_ms: float
    min_ms: float
    max_ms: float
    spread_ms: float
    """Between the quartiles: half of the runs lie in a range of this length."""
    runs: int

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> Timing:
        several = len(values_ms) > 1
        low, median, high = statistics.quantiles(values_ms, n=4, method="inclusive") if several else 3 * [values_ms[0]]
        median, low, high = (round(value, 3) for value in (median, low, high))
        return cls(median, round(min(values_ms), 3), round(max(values_ms), 3), round(high - low, 3), len(values_ms))

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)


def measure(
    calls: Mapping[str, Call], runs: int, device: torch.device, after_round: Call = lambda: None
) -> Dict[str, Timing]:
    """Time several things in rounds, each once a round, so that whatever slows the machine down slows them all alike.

    Args:
        calls: what to time, by name; a first round of them is not counted.
        runs: rounds that are counted.
        device: a CUDA device's own events are asked (from the call to the end of its last kernel), else the clock.
        after_round: called after each round, the first included.
    """
    values_ms: Dict[str, List[float]] = {name: [] for name in calls}
    for round_ in range(runs + 1):
        for name, call in calls.items():
            elapsed_ms = once_ms(call, device)
            if round_:
                values_ms[name].append(elapsed_ms)
        after_round()
    return {name: Timing.of(values) for name, values in values_ms.items()}


def once_ms(call: Call, device: torch.device) -> float:
    """Milliseconds of one call, all that it started on the device included."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        with torch.cuda.device(device):
            begin.record()
            call()
            end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))
    started = time.perf_counter()
    call()
    if device.type == "mps":
        torch.mps.synchronize()
    return 1000 * (time.perf_counter() - started)


@torch.no_grad()
def gflop(call: Call) -> float:
    """10^9 floating-point operations in a call's matrix products, convolutions and attention, as torch counts them.

    A product and a sum are two. To be called without autocast, so that every operator is one that torch counts.
    """
    cpu_attention = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    mapping: Dict[Any, Callable[..., int]] = {torch.ops.aten.mkldnn_convolution: _convolution_flop}
    if cpu_attention:
        mapping[cpu_attention] = _attention_flop
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return round(counter.get_total_flops() / 1e9, 4)


def _attention_flop(q_BHND: Sequence[int], k_BHMD: Sequence[int], v_BHMD: Sequence[int], *_: Any, **__: Any) -> int:
    """From the shapes: the scores and the weighted sum, neither of which torch counts for its CPU kernel."""
    batch_heads = math.prod(q_BHND[:2])
    return 2 * batch_heads * q_BHND[2] * k_BHMD[2] * (q_BHND[3] + v_BHMD[3])


def _convolution_flop(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """From the shapes: torch does not count oneDNN's operator where it is called directly."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])
