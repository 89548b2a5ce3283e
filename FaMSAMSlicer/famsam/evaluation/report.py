"""What an evaluation found: scores of every structure, their means, and how they are written down.

Means are taken over the structures of a case first and over the cases then, so that a case of many structures weighs
no more than one of a single structure.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from .. import __version__
from ..errors import MissingDependencyError

DICE_TARGETS = (0.80, 0.90)
"""Dice values whose number of clicks is counted."""
_TABLE_CLICKS = (1, 3, 5, 10)
_PACKAGES = ("numpy", "torch", "SimpleITK", "nibabel", "edt", "connected-components-3d", "slicer-core", "flash-attn")


@dataclass(frozen=True)
class ClickRecord:
    """One simulated click and how long the method took to answer it."""

    point_ras_mm: Tuple[float, float, float]
    positive: bool
    latency_ms: float


@dataclass
class StructureResult:
    """One structure segmented by one method; the score lists have one entry a click, also where none was made."""

    method: str
    case: str
    label: int
    structure: str
    voxels: int
    volume_ml: float
    start_ms: float = 0.0
    """Time that the method took to be shown the scan, before the first click."""
    clicks: List[ClickRecord] = field(default_factory=list)
    """The clicks made: fewer than asked for where nothing was left to correct, or after a failure."""
    dice: List[float] = field(default_factory=list)
    nsd: List[float] = field(default_factory=list)
    hausdorff95_mm: List[float] = field(default_factory=list)
    clicks_to_dice: Dict[str, int] = field(default_factory=dict)
    """{"0.80": 3, …}: the first click that reached a Dice; one more than the clicks asked for where none did."""
    failure: Optional[str] = None
    """What the method raised, or None."""

    def fill(self, clicks: int, dice_targets: Sequence[float]) -> None:
        """Bring the lists to one entry a click (the last score, or 0 after a failure) and count clicks to targets."""
        missing = clicks - len(self.dice)
        for scores, failure_score in ((self.dice, 0.0), (self.nsd, 0.0), (self.hausdorff95_mm, math.inf)):
            scores.extend([failure_score if self.failure else scores[-1]] * missing)
        self.clicks_to_dice = {
            f"{target:.2f}": next((i for i, dice in enumerate(self.dice, 1) if dice >= target), clicks + 1)
            for target in dice_targets
        }


@dataclass
class Report:
    """The results of one evaluation.

    Attributes:
        results: one entry for every structure and method.
        clicks: clicks a structure.
        tolerance_mm: of the NSD.
        options: what else was chosen, by name.
        environment: versions, hardware and date.
        unread: why a case could not be read, by its name.
    """

    results: List[StructureResult]
    clicks: int
    tolerance_mm: float
    options: Dict[str, Any]
    environment: Dict[str, Any]
    unread: Dict[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> List[str]:
        """The methods' names in the order they were given."""
        return list(dict.fromkeys(result.method for result in self.results))

    @property
    def cases(self) -> List[str]:
        """The cases' names in order."""
        return list(dict.fromkeys(result.case for result in self.results))

    def case_scores(self, method: str) -> Dict[str, Dict[str, Any]]:
        """Means over the structures of each case: {case: {"dice": […], "nsd": […], "clicks_to_dice": {…}}}."""
        return {case: _mean_scores(self._of(method, case)) for case in self.cases}

    def summary(self, method: str) -> Dict[str, Any]:
        """Means over the cases, latencies over all clicks, and counts, JSON-able; see the keys below."""
        results = self._of(method)
        by_case = list(self.case_scores(method).values())
        return {
            "dice": np.mean([scores["dice"] for scores in by_case], axis=0).tolist(),
            "nsd": np.mean([scores["nsd"] for scores in by_case], axis=0).tolist(),
            "clicks_to_dice": {
                target: float(np.mean([scores["clicks_to_dice"][target] for scores in by_case]))
                for target in results[0].clicks_to_dice
            },
            "reached_dice": {
                target: float(np.mean([result.clicks_to_dice[target] <= self.clicks for result in results]))
                for target in results[0].clicks_to_dice
            },
            "start_ms": _spread([result.start_ms for result in results]),
            "first_click_ms": _spread([click.latency_ms for result in results for click in result.clicks[:1]]),
            "later_click_ms": _spread([click.latency_ms for result in results for click in result.clicks[1:]]),
            "cases": len(by_case),
            "structures": len(results),
            "failures": sum(result.failure is not None for result in results),
        }

    def to_dict(self) -> Dict[str, Any]:
        """Everything, JSON-able: settings, environment, cases left out, and summary, cases and structures by method.

        Numbers that are not finite (a Hausdorff distance to an empty mask) become None.
        """
        return _jsonable(
            {
                "clicks": self.clicks,
                "tolerance_mm": self.tolerance_mm,
                "options": self.options,
                "environment": self.environment,
                "unread": self.unread,
                "summary": {method: self.summary(method) for method in self.methods},
                "cases": {method: self.case_scores(method) for method in self.methods},
                "structures": [asdict(result) for result in self.results],
            }
        )

    def to_markdown(self) -> str:
        """A table of methods, one of cases, and the conventions, as Markdown."""
        columns = [click for click in _TABLE_CLICKS if click <= self.clicks]
        targets = list(self.results[0].clicks_to_dice)
        header = [
            "method",
            *(f"Dice@{click}" for click in columns),
            *(f"NSD@{click}" for click in columns),
            *(f"clicks to {target}" for target in targets),
            "first click",
            "next click",
            "failures",
        ]
        rows = []
        for method in self.methods:
            summary = self.summary(method)
            rows.append(
                [
                    method,
                    *(f"{summary['dice'][click - 1]:.3f}" for click in columns),
                    *(f"{summary['nsd'][click - 1]:.3f}" for click in columns),
                    *(f"{summary['clicks_to_dice'][target]:.1f}" for target in targets),
                    _milliseconds(summary["first_click_ms"]),
                    _milliseconds(summary["later_click_ms"]),
                    str(summary["failures"]),
                ]
            )
        scores = {method: self.case_scores(method) for method in self.methods}
        case_header = ["case", "structures", *(f"{method} Dice@{c}" for method in self.methods for c in columns)]
        case_rows = [
            [
                case,
                str(len(self._of(self.methods[0], case))),
                *(f"{scores[method][case]['dice'][c - 1]:.2f}" for method in self.methods for c in columns),
            ]
            for case in self.cases
        ]
        hardware = self.environment["hardware"]
        return "\n".join(
            [
                f"# Evaluation: {len(self.cases)} cases, {len(self._of(self.methods[0]))} structures",
                "",
                *_table(header, rows),
                "",
                f"Dice and NSD (tolerance {self.tolerance_mm:g} mm) on the whole image after 1, 3, … clicks: mean over "
                "the structures of a case, then over cases. Clicks to a Dice count as "
                f"{self.clicks + 1} where {self.clicks} were not enough. Latencies: median (95th percentile).",
                "",
                f"famsam {self.environment['versions']['famsam']}, {self.environment['date']}, "
                f"{hardware['processor']}, {hardware['threads']} threads, "
                f"{hardware['accelerator'] or 'no accelerator'}.",
                "",
                "## Cases",
                "",
                *_table(case_header, case_rows),
                "",
                *(f"Left out: {reason}\n" for reason in self.unread.values()),
            ]
        )

    def write(self, folder: Union[str, Path], plot: bool = True) -> List[Path]:
        """Write ``evaluation.json``, ``evaluation.md`` and, unless told otherwise, ``evaluation.png`` into a folder.

        Returns:
            The files written.

        Raises:
            MissingDependencyError: a plot is asked for and matplotlib is not installed (the others are written).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "evaluation.json", folder / "evaluation.md"]
        written[0].write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        written[1].write_text(self.to_markdown(), encoding="utf-8")
        if plot:
            written.append(folder / "evaluation.png")
            self.write_plot(written[-1])
        return written

    def write_plot(self, path: Union[str, Path]) -> None:
        """Draw Dice and NSD against the number of clicks, a line a method, as a PNG.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                f'The plot needs matplotlib, which is not installed: pip install "famsam[plots]" ({error})'
            ) from error
        figure = Figure(figsize=(9, 4), layout="constrained")
        FigureCanvasAgg(figure)
        clicks = np.arange(1, self.clicks + 1)
        for axes, key, name in zip(
            figure.subplots(1, 2, sharey=True), ("dice", "nsd"), ("Dice", f"NSD at {self.tolerance_mm:g} mm")
        ):
            for method in self.methods:
                axes.plot(clicks, self.summary(method)[key], marker="o", markersize=4, label=method)
            axes.set(xlabel="clicks", title=name, ylim=(0, 1), xlim=(0.5, self.clicks + 0.5))
            axes.set_xticks(clicks[:: max(1, self.clicks // 10)])
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel(f"mean over {len(self.cases)} cases")
        figure.axes[0].legend(frameon=False)
        figure.savefig(path, dpi=150)

    def _of(self, method: str, case: Optional[str] = None) -> List[StructureResult]:
        return [result for result in self.results if result.method == method and (case is None or result.case == case)]


def describe_environment() -> Dict[str, Any]:
    """Date, versions and hardware, as far as they are known without importing anything heavy."""
    versions = {"python": platform.python_version(), "famsam": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "hardware": {
            "system": platform.platform(),
            "processor": _processor_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads() if torch else 1,
            "accelerator": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
            "peak_memory_mb": _peak_memory_mb(),
        },
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _peak_memory_mb() -> Optional[float]:
    """Peak resident memory of this process in MB so far; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)  # macOS counts bytes, Linux kilobytes


def _mean_scores(results: Sequence[StructureResult]) -> Dict[str, Any]:
    return {
        "dice": np.mean([result.dice for result in results], axis=0).tolist(),
        "nsd": np.mean([result.nsd for result in results], axis=0).tolist(),
        "clicks_to_dice": {
            target: float(np.mean([result.clicks_to_dice[target] for result in results]))
            for target in results[0].clicks_to_dice
        },
    }


def _spread(values_ms: Sequence[float]) -> Dict[str, Optional[float]]:
    if not values_ms:
        return {"median": None, "p95": None}
    return {"median": float(np.median(values_ms)), "p95": float(np.percentile(values_ms, 95))}


def _milliseconds(spread: Dict[str, Optional[float]]) -> str:
    return "—" if spread["median"] is None else f"{spread['median']:.0f} ({spread['p95']:.0f}) ms"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
