"""What the benchmark runs on, and how fast that can be at best: matrix products and copies in every precision."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import torch
from torch import Tensor

from ..model import int8
from ..runtime import DTYPES, describe
from .timing import Call, Timing

MATRIX_SIZE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
COPIED_MIB = {"cpu": 128, "cuda": 1024, "mps": 256}
"""Large enough to leave every cache."""


def environment() -> Dict[str, Any]:
    """Hardware, versions, commit, threads and load, JSON-able; no paths, since reports are passed on."""
    found = describe()
    found["famsam"] = {"version": found["famsam"]["version"]}
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "may_use_cores": affinity,
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        **found,
        "cuda": torch.version.cuda,
    }


@dataclass(frozen=True)
class Work:
    """What a stage has to do at the very least, to be held against the machine's limits."""

    mib: float
    """Read and written once each: input, parameters and output."""
    gflop: float = 0.0
    """Of matrix products, convolutions and attention."""
    precision: str = "fp32"


class Limits:
    """The machine's limits as measured.

    Attributes:
        matmul_gflops, copy_gib_s: by precision; a copy counts what it reads and what it writes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.precisions = ["fp32", "bf16", "fp16"] if device.type != "cpu" else ["fp32", "bf16"]
        if device.type == "cpu" and int8.usable():
            self.precisions.append("int8")
        self.matmul_gflops: Dict[str, float] = {}
        self.copy_gib_s: Dict[str, float] = {}
        self._size, self._mib = MATRIX_SIZE[device.type], COPIED_MIB[device.type]

    def calls(self) -> Dict[str, Call]:
        """What has to be timed to know them, by name."""
        calls: Dict[str, Call] = {}
        for precision in self.precisions:
            dtype = DTYPES.get(precision, torch.uint8)
            a, b = (torch.randn(self._size, self._size, device=self.device) for _ in range(2))
            source = torch.ones(self._mib * 2**20 // dtype.itemsize, device=self.device, dtype=dtype)
            target = torch.zeros_like(source)
            calls[f"matmul {precision}"] = _product(a, b, precision)
            calls[f"copy {precision}"] = partial(target.copy_, source)
        return calls

    def take(self, timings: Mapping[str, Timing]) -> None:
        """From the fastest of the runs, by the names of ``calls``."""
        for p in self.precisions:
            self.matmul_gflops[p] = round(2 * self._size**3 / 1e6 / timings[f"matmul {p}"].min_ms, 1)
            self.copy_gib_s[p] = round(2 * self._mib / 1.024 / timings[f"copy {p}"].min_ms, 2)

    def judged(self, timing: Timing, work: Work) -> Dict[str, Any]:
        """A timing with the least time that the machine's limits would allow for the same work.

        Returns:
            the timing's fields, "gflop", "mib", "limit_ms" (the longer of the arithmetic at the speed of a matrix
            product and the memory traffic at the speed of a copy) and "of_limit" (1: nothing is left to gain).
        """
        arithmetic_ms = 1000 * work.gflop / self.matmul_gflops[work.precision]
        traffic_ms = 1000 * work.mib / 1024 / self.copy_gib_s[work.precision]
        limit_ms = max(arithmetic_ms, traffic_ms)
        return {
            **timing.to_dict(),
            "gflop": work.gflop,
            "mib": round(work.mib, 3),
            "limit_ms": round(limit_ms, 3),
            "of_limit": round(limit_ms / timing.median_ms, 4) if timing.median_ms else None,
        }

    def to_dict(self) -> Dict[str, Dict[str, float]]:
        return {"matmul_gflops": self.matmul_gflops, "copy_gib_s": self.copy_gib_s}


def _product(a: Tensor, b: Tensor, precision: str) -> Call:
    """The product of two square matrices, as fast as the precision allows."""
    if precision != "int8":
        a, b = a.to(DTYPES[precision]), b.to(DTYPES[precision])
        return partial(torch.mm, a, b, out=torch.empty_like(a))
    layer = int8.Linear(len(b), b.shape[1], bias=False).requires_grad_(False)
    layer.weight.copy_(b)
    layer.pack()
    return partial(layer.product, *int8.quantised(a))


def _commit() -> Optional[str]:
    """The commit that the package was checked out from, "+" appended where tracked files differ; None without git."""
    here = Path(__file__).parent
    try:
        # Only where the package itself is part of the checkout, and not merely installed somewhere below one.
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
        return _git(here, "rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        found = ""
    return found or platform.processor() or platform.machine()
