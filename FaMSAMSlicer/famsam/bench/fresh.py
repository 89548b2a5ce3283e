"""What only a fresh process can tell: how long importing takes, and peaks of memory.

A process that has worked before reuses what it freed, and looks frugal.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch

from ..errors import ConfigError
from ..model.config import attention_ablation
from ..model.registry import default_config
from .clicks import one_session, synthetic_ct
from .models import ModelCalls, bundled_model, untrained_model
from .timing import Call

Peak = Dict[str, Optional[float]]


@dataclass(frozen=True)
class MemoryTask:
    """What a fresh process is to do: encode and decode one crop, or a short session of clicks."""

    device: str
    precision: str
    config: str = ""
    """The configuration that encodes and decodes; empty for clicks."""
    attention: str = ""
    """One of the ablation's names: another attention than the configuration's own."""
    source: str = "default"
    """For clicks: the model."""
    volume_xyz: Tuple[int, int, int] = (8, 8, 8)
    """For clicks: the scan."""


def peak_in_fresh_process(task: MemoryTask) -> Peak:
    """``peak_mib`` of a task. Raises ``ConfigError`` if the process fails."""
    script = "from famsam.bench.fresh import print_peak; print_peak()"
    peak: Peak = json.loads(run_python(["-c", script, json.dumps(asdict(task))]))
    return peak


def run_python(arguments: List[str]) -> str:
    """The last line that a fresh interpreter prints, with this package on its path and as many threads as here."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    if done.returncode or not done.stdout.strip():
        raise ConfigError(f"Expected a fresh Python process to measure itself, but it failed: {done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def import_times_ms(runs: int) -> Dict[str, float]:
    """Milliseconds of a fresh interpreter's first steps, the fastest of some: importing the package, then PyTorch, then
    the engine, then loading the bundled model."""
    script = (
        "import json, time; t = [time.perf_counter()]; lap = lambda: t.append(time.perf_counter())\n"
        "import famsam; lap()\nimport torch; lap()\nfamsam.Session, famsam.load_model, famsam.read_volume; lap()\n"
        "from famsam.checkpoints import DEFAULT_WEIGHTS\n"
        "famsam.load_model('default', 'cpu', 'fp32') if DEFAULT_WEIGHTS.exists() else None; lap()\n"
        "print(json.dumps([1000 * (b - a) for a, b in zip(t, t[1:])]))"
    )
    rows = [json.loads(run_python(["-c", script])) for _ in range(runs)]
    names = ("famsam", "torch", "engine", "bundled model")
    return {name: round(min(values), 1) for name, values in zip(names, zip(*rows))}


def peak_mib(call: Call, device: torch.device) -> Peak:
    """Memory that a call needs at its peak above what was held before it, MiB.

    Returns:
        "host": of this process (None where the system, other than Linux, cannot tell); "device": of a CUDA device as
        PyTorch allocates it, else None.
    """
    gc.collect()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    device_before = torch.cuda.memory_allocated(device) if on_gpu else 0
    can_reset = _reset_host_peak()
    host_before = _status_kib("VmRSS")
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
    host_peak = _status_kib("VmHWM") if can_reset else None
    return {
        "host": None if host_peak is None or host_before is None else round((host_peak - host_before) / 1024, 1),
        "device": round((torch.cuda.max_memory_allocated(device) - device_before) / 2**20, 1) if on_gpu else None,
    }


def print_peak() -> None:
    """In the fresh process: the peak of the task that the first argument describes, as JSON."""
    sys.stdout.write(json.dumps(_measured(MemoryTask(**json.loads(sys.argv[1])))) + "\n")


def _measured(task: MemoryTask) -> Peak:
    device = torch.device(task.device)
    if not task.config:
        model = bundled_model(device, task.precision, task.source)
        x, y, z = task.volume_xyz
        volume = synthetic_ct((z, y, x))
        return peak_mib(lambda: one_session(model, volume, 0, {}), device)
    config = attention_ablation(default_config(task.config))[task.attention] if task.attention else None
    model = untrained_model(task.config, device, task.precision, config)
    crop = torch.zeros(1, 1, *(model.crop_size,) * 3)
    crop[..., ::2] = 1
    return peak_mib(lambda: ModelCalls(model, crop), device)


def _reset_host_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status_kib(entry: str) -> Optional[int]:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")), None)
