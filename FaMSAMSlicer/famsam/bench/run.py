"""The benchmark: everything in one run, so that its ratios mean something."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from tqdm import tqdm

from ..errors import ConfigError
from ..runtime import choose_device, keep_threads
from .clicks import StageCalls, synthetic_ct, time_clicks
from .fresh import MemoryTask, import_times_ms, peak_in_fresh_process
from .machine import Limits, environment
from .models import CONFIGS, ModelCalls, ablation, bundled_model, throughput, untrained_model
from .report import BenchReport
from .scaling import ScalingOptions, time_scaling
from .timing import Call, measure


@dataclass(frozen=True)
class BenchOptions:
    """What is timed, and how often."""

    device: str = "auto"
    precision: str = "auto"
    """As for ``load_model``; "auto" gives each configuration what it would get there."""
    threads: int = 0
    """Torch threads; 0 for as many as are measured to be fastest."""
    runs: int = 7
    """Repetitions after one that is not counted."""
    volume_xyz: Tuple[int, int, int] = (512, 512, 300)
    """Voxels of the volume that is clicked on."""
    configs: Tuple[str, ...] = CONFIGS
    """Which configurations to time."""
    model: str = "default"
    """Whose clicks are timed: "default" or a weights file."""
    ablation: bool = False
    """Also FastSAM3D's encoder with and without sparse and flash attention."""
    batches: Tuple[int, ...] = ()
    """Also the throughput with so many crops at a time."""
    scaling: Optional[ScalingOptions] = None
    """Also latency by size of the scan, points and segments."""
    progress: bool = False
    """Show a progress bar on the standard error stream."""

    def __post_init__(self) -> None:
        if self.runs < 1 or min(self.volume_xyz) < 8 or self.threads < 0:
            raise ConfigError(
                "Expected at least 1 run, 8 voxels along each axis and 0 or more threads, got "
                f"{self.runs}, {tuple(self.volume_xyz)} and {self.threads}."
            )
        unknown = sorted(set(self.configs) - set(CONFIGS))
        if unknown or not self.configs:
            raise ConfigError(f"Expected some of the configurations {CONFIGS}, got {unknown or 'none'}.")
        if any(batch < 1 for batch in self.batches):
            raise ConfigError(f"Expected batches of at least one crop, got {self.batches}.")


def run_bench(
    options: Optional[BenchOptions] = None, so_far: Callable[[BenchReport], None] = lambda report: None
) -> BenchReport:
    """Time the configurations, the stages around them and whole clicks, beside the machine's own limits.

    The limits, the stages and the configurations are timed in rounds, each once a round. What needs fresh processes,
    memory and imports, comes last.

    Args:
        so_far: is given what has been found whenever there is more, for a run that may be cut off.

    Raises:
        ConfigError: a device that is not there, or a precision that it does not have.
        CheckpointError: a weights file that cannot be used.
    """
    options = options or BenchOptions()
    device = choose_device(options.device)
    threads_before = torch.get_num_threads()
    keep_threads(options.threads)
    try:
        with tqdm(disable=not options.progress, file=sys.stderr, bar_format="{desc} {elapsed}") as bar:
            return _run(options, device, bar, so_far)
    finally:
        keep_threads(0)
        torch.set_num_threads(threads_before)


def _run(
    options: BenchOptions, device: torch.device, bar: tqdm, so_far: Callable[[BenchReport], None]
) -> BenchReport:
    bundled = bundled_model(device, options.precision, options.model)
    report = BenchReport({**environment(), "device": str(device), "precision": bundled.precision})
    volume = synthetic_ct((options.volume_xyz[2], options.volume_xyz[1], options.volume_xyz[0]))
    tasks: List[Tuple[Dict[str, Any], str, MemoryTask]] = []
    with StageCalls(volume, bundled.mask_size, device) as stages:
        crop = stages.crop()
        models: Dict[str, ModelCalls] = {}
        for name in options.configs:
            bar.set_description_str(f"building {name}")
            as_shipped = name == bundled.name
            models[name] = ModelCalls(bundled if as_shipped else untrained_model(name, device, options.precision), crop)
        limits = Limits(device)
        calls: Dict[str, Call] = {**limits.calls(), **stages.calls()}
        for name, model_calls in models.items():
            calls.update({f"{name} {stage}": call for stage, call in model_calls.calls().items()})
        bar.set_description_str(f"limits, stages and models in {options.runs + 1} rounds")
        timings = measure(calls, options.runs, device)
        calls.clear()  # what they hold would count as memory of the models
        limits.take(timings)
        report.limits = limits.to_dict()
        report.stages = stages.found(timings, limits)
    for name, model_calls in models.items():
        bar.set_description_str(f"FLOPs of {name}")
        own = {stage: timings[f"{name} {stage}"] for stage in model_calls.calls()}
        found = report.configs[name] = model_calls.found(own, limits)
        tasks.append((found, "peak_mib", MemoryTask(str(device), found["precision"], name)))
    report.ratios = ratios(report.configs)
    so_far(report)
    for name, model_calls in models.items():
        if options.batches:
            bar.set_description_str(f"throughput of {name}")
            report.throughput[name] = throughput(model_calls.model, crop, options.batches, options.runs)
            so_far(report)
    models.clear()
    bar.set_description_str("clicks")
    report.clicks = time_clicks(bundled, volume, options.runs)
    task = MemoryTask(str(device), bundled.precision, source=options.model, volume_xyz=options.volume_xyz)
    tasks.append((report.clicks, "peak_mib_above_volume", task))
    so_far(report)
    if options.ablation:
        bar.set_description_str("ablation")
        report.ablation = ablation(device, crop, limits, options.runs)
        for name, found in report.ablation.items():
            tasks.append((found, "peak_mib", MemoryTask(str(device), found["precision"], "fastsam3d", name)))
        so_far(report)
    if options.scaling is not None:
        del volume
        report.scaling = time_scaling(bundled, options.scaling, bar.set_description_str)
        so_far(report)
    for number, (found, name, task) in enumerate(tasks, 1):
        bar.set_description_str(f"memory, {number} of {len(tasks)}")
        found[name] = peak_in_fresh_process(task)
        so_far(report)
    bar.set_description_str("imports")
    report.import_ms = import_times_ms(min(options.runs, 3))
    so_far(report)
    return report


def ratios(configs: Mapping[str, Dict[str, Any]]) -> Dict[str, float]:
    """How many times faster the default configuration is than the published one."""
    if not {"famsam", "fastsam3d"} <= set(configs):
        return {}
    ours, paper = configs["famsam"], configs["fastsam3d"]
    return {
        f"{stage}: fastsam3d {paper['precision']} / famsam {ours['precision']}": round(
            paper[stage]["median_ms"] / ours[stage]["median_ms"], 2
        )
        for stage in ("encode", "decode")
    }
