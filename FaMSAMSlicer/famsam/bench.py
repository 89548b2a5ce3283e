"""Timings of the three configurations and of whole clicks, all in one run so that their ratios mean something."""

from __future__ import annotations

import datetime
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from tqdm import tqdm

from .checkpoints import DEFAULT_WEIGHTS, load_model
from .errors import ConfigError
from .model.base import PromptableModel
from .model.config import attention_ablation
from .model.registry import build_model, default_config
from .runtime import autocast, choose_device, choose_precision, describe
from .session import Session
from .volume import Volume

CONFIGS = ("famsam", "fastsam3d", "sam_med3d")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one thing, over some runs."""

    median_ms: float
    min_ms: float
    max_ms: float

    @classmethod
    def of(cls, values_ms: List[float]) -> Timing:
        return cls(*(round(v, 2) for v in (statistics.median(values_ms), min(values_ms), max(values_ms))))


@dataclass
class BenchReport:
    """Everything one run of the benchmark found."""

    environment: Dict[str, Any]
    configs: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    """Per config: precision, parameters, "encode" and "decode" timings."""
    clicks: Dict[str, Any] = field(default_factory=dict)
    """Volume size, the timings of "first" and "next" clicks, and the stages of the last one."""
    ablation: Dict[str, Any] = field(default_factory=dict)
    """FastSAM3D's encoder with and without sparse and flash attention (its Table 4): timings by name."""
    ratios: Dict[str, float] = field(default_factory=dict)
    """Medians over medians, of this run."""

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)

    def lines(self) -> List[str]:
        """The report for people."""
        about = self.environment
        rows = [f"{about['threads']} threads, torch {about['packages']['torch']}, {about['processor']}"]
        for name, found in self.configs.items():
            encode, decode = found["encode"]["median_ms"], found["decode"]["median_ms"]
            size = f"{found['parameters'] / 1e6:.1f} M parameters"
            rows.append(f"{name:10} {found['precision']}: encode {encode:8.1f} ms   decode {decode:7.1f} ms   ({size})")
        rows.append("volume (x, y, z) " + " x ".join(str(n) for n in self.clicks["volume_xyz"]))
        rows += [f"  {kind} click: {self.clicks[kind]['median_ms']:.0f} ms" for kind in ("first", "next")]
        rows += [f"fastsam3d encode, {name}: {found['median_ms']:.1f} ms" for name, found in self.ablation.items()]
        return rows + [f"{name}: {ratio:.2f}" for name, ratio in self.ratios.items()]


def run_bench(
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    runs: int = 7,
    volume_xyz: Tuple[int, int, int] = (512, 512, 300),
    ablation: bool = False,
    progress: bool = False,
    configs: Sequence[str] = CONFIGS,
) -> BenchReport:
    """Time encode and decode of the configurations, and the first and the next click on a large synthetic CT.

    Args:
        device, precision: as for ``load_model``; "auto" gives each configuration what it would get there.
        threads: torch threads, 0 for torch's choice.
        runs: repetitions after one that is not counted.
        volume_xyz: voxels of the volume that is clicked on.
        ablation: also time FastSAM3D's encoder with and without sparse and flash attention.
        progress: show a progress bar on the standard error stream.
        configs: which of ``CONFIGS`` to time.

    Raises:
        ConfigError: fewer than one run, too small a volume, an unknown configuration or device.
    """
    if runs < 1 or min(volume_xyz) < 8:
        raise ConfigError(f"Expected at least 1 run and 8 voxels along each axis, got {runs} and {tuple(volume_xyz)}.")
    if threads:
        torch.set_num_threads(threads)
    where = choose_device(device)
    bar = tqdm(total=len(configs) + 1 + ablation, disable=not progress, file=sys.stderr)
    report = BenchReport(
        {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "processor": platform.processor() or platform.machine(),
            **describe(),
        }
    )
    for name in configs:
        bar.set_postfix_str(name)
        model = build_model(name).to(where).eval().requires_grad_(False)
        wanted = "fp32" if precision == "auto" and where.type == "cpu" and not model.half_on_cpu else precision
        model.precision = choose_precision(wanted, where)
        report.configs[name] = _time_model(model, runs)
        bar.update()
    bar.set_postfix_str("clicks")
    report.clicks = _time_clicks(device, precision, runs, volume_xyz)
    bar.update()
    if ablation:
        bar.set_postfix_str("ablation")
        report.ablation = _time_ablation(where, runs)
        bar.update()
    bar.close()
    if {"famsam", "fastsam3d"} <= set(report.configs):
        ours, paper = report.configs["famsam"], report.configs["fastsam3d"]
        for stage in ("encode", "decode"):
            ratio = paper[stage]["median_ms"] / ours[stage]["median_ms"]
            report.ratios[f"{stage}: fastsam3d {paper['precision']} / famsam {ours['precision']}"] = round(ratio, 2)
    return report


@torch.inference_mode()
def _time_model(model: PromptableModel, runs: int) -> Dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    crop = torch.randn(1, 1, *(model.crop_size,) * 3, generator=generator).to(model.device)
    points = (torch.rand(1, 3, 3, generator=generator) * (model.crop_size - 1)).to(model.device)
    labels = torch.tensor([[1, 1, 0]], device=model.device)
    with autocast(model.device, model.precision):
        embedding = model.encode(crop)
        previous, _ = model.decode(embedding, points, labels)
        encode = _repeat(lambda: model.encode(crop), runs, model.device)
        decode = _repeat(lambda: model.decode(embedding, points, labels, previous.float()), runs, model.device)
    return {
        "precision": model.precision,
        "parameters": sum(p.numel() for p in model.parameters()),
        "encode": asdict(encode),
        "decode": asdict(decode),
    }


@torch.inference_mode()
def _time_ablation(device: torch.device, runs: int) -> Dict[str, Any]:
    """Encode times of FastSAM3D's sparse x flash ablation, in fp32 on a CPU and bf16 on a GPU (flash needs half)."""
    precision = choose_precision("bf16" if device.type == "cuda" else "fp32", device)
    crop = torch.randn(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(0)).to(device)
    found = {}
    for name, config in attention_ablation(default_config("fastsam3d")).items():
        model = build_model("fastsam3d", config).to(device).eval().requires_grad_(False)
        with autocast(device, precision):
            found[name] = asdict(_repeat(partial(model.encode, crop), runs, device))
    return found


def _time_clicks(device: str, precision: str, runs: int, volume_xyz: Tuple[int, int, int]) -> Dict[str, Any]:
    """First and next clicks on an organ-like ellipsoid in a noisy CT of 0.7 x 0.7 x 1 mm voxels."""
    size_zyx = volume_xyz[::-1]
    rng = np.random.default_rng(0)
    voxels = rng.normal(0, 20, size_zyx).astype(np.int16)
    centre = np.array(size_zyx) / 2
    radii_mm = np.minimum(np.array([40.0, 45.0, 60.0]), 0.3 * np.array(size_zyx) * [1.0, 0.7, 0.7])
    z, y, x = (((np.arange(n) - c) * d / r) ** 2 for n, c, d, r in zip(size_zyx, centre, (1.0, 0.7, 0.7), radii_mm))
    voxels[(z[:, None, None] + y[:, None] + x) < 1] += 150
    volume = Volume(voxels, np.diag([0.7, 0.7, 1.0, 1.0]))
    if DEFAULT_WEIGHTS.exists():
        model = load_model("default", device, precision)
    else:
        model = build_model("famsam").to(choose_device(device)).eval().requires_grad_(False)
        model.precision = choose_precision(precision, model.device)
    found: Dict[str, List[float]] = {"first": [], "next": []}
    stages: Dict[str, float] = {}
    for run in range(runs + 1):
        session = Session(model)
        session.set_image(volume)
        offsets = rng.uniform(-0.2, 0.2, (3, 3)) * radii_mm / [1.0, 0.7, 0.7]
        for kind, offset in zip(("first", "next", "next"), offsets):
            ras = tuple(volume.grid.ras_from_zyx_points([centre + offset])[0])
            started = time.perf_counter()
            result = session.add_point(ras)
            if run:
                found[kind].append(1000 * (time.perf_counter() - started))
        stages = {name: round(value, 2) for name, value in result.timings_ms.items()}
    timings = {kind: asdict(Timing.of(values)) for kind, values in found.items()}
    return {"volume_xyz": list(volume_xyz), "model": model.name, **timings, "last_next_click_stages_ms": stages}


def _repeat(call: Callable[[], Any], runs: int, device: torch.device) -> Timing:
    values = []
    for run in range(runs + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if run:
            values.append(1000 * (time.perf_counter() - started))
    return Timing.of(values)
