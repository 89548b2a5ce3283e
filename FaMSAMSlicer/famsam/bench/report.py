"""What one run of the benchmark found, for programs and for people, and how it compares with an older one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Tuple

from ..errors import ConfigError

MODEL_STAGES = ("normalise", "encode", "decode")
CLICK_STAGES = ("set_image", "first", "first_encoded_ahead", "next", "preview", "mask", "undo", "redo")


@dataclass
class BenchReport:
    """Everything one run of the benchmark found; timings as ``timing.Timing`` has them."""

    environment: Dict[str, Any]
    limits: Dict[str, Dict[str, float]] = field(default_factory=dict)
    """The machine's own: "matmul_gflops" and "copy_gib_s" by precision."""
    import_ms: Dict[str, float] = field(default_factory=dict)
    """A fresh interpreter's first steps."""
    configs: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    """Per config: precision, parameters, peak memory, the timings of its stages with their distance from the limits."""
    stages: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    """The stages around the model, the same for every config."""
    clicks: Dict[str, Any] = field(default_factory=dict)
    """Volume size, the timings of "first" and "next" clicks and the rest of a session, the stages of the last click."""
    ablation: Dict[str, Any] = field(default_factory=dict)
    """FastSAM3D's encoder with and without sparse and flash attention (its Table 4): time, FLOPs, memory by name."""
    throughput: Dict[str, Any] = field(default_factory=dict)
    """Per config and batch size: timings and volumes a second."""
    scaling: Dict[str, Any] = field(default_factory=dict)
    """Latency by size of the scan, points and segments."""
    ratios: Dict[str, float] = field(default_factory=dict)
    """Medians over medians, of this run."""

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)

    def lines(self) -> List[str]:
        """The report for people."""
        about = self.environment
        rows = [f"{about['threads']} threads, torch {about['packages']['torch']}, {about['processor']}"]
        rows += [
            f"limits, {name}: " + ", ".join(f"{p} {value:.0f}" for p, value in by_precision.items())
            for name, by_precision in self.limits.items()
        ]
        rows += ["import, ms: " + ", ".join(f"{name} {value:.0f}" for name, value in self.import_ms.items())]
        for name, found in self.configs.items():
            timings = "   ".join(f"{stage} {_judged(found[stage])}" for stage in MODEL_STAGES)
            size = f"{found['parameters'] / 1e6:.1f} M parameters{_memory(found['peak_mib'])}"
            if found.get("paused_share"):
                size += f", {100 * found['paused_share']:.0f} % of the tokens pause"
            rows.append(f"{name:10} {found['precision']}: {timings}   ({size})")
        rows.append("volume (x, y, z) " + " x ".join(str(n) for n in self.clicks["volume_xyz"]))
        rows += [f"  {name}: {_judged(found)}" for name, found in self.stages.items()]
        for name in CLICK_STAGES:
            called = {"first": "first click", "next": "next click"}.get(name, name.replace("_", " "))
            rows.append(f"  {called}: {_timing(self.clicks[name])}")
        rows.append(f"  a session{_memory(self.clicks['peak_mib_above_volume'])} above the volume")
        for name, found in self.ablation.items():
            row = f"fastsam3d encode, {name}: {_judged(found)}, {found['gflop']:.1f} GFLOP{_memory(found['peak_mib'])}"
            rows.append(row)
        for name, batches in self.throughput.items():
            rows += [f"{name} {row}" for batch, found in batches.items() for row in _throughput(batch, found)]
        rows += [
            f"last fifth over first, {name}: {value:.2f}"
            for name, value in self.scaling.get("last_fifth_over_first", {}).items()
        ]
        rows += [
            f"left out: {' x '.join(map(str, row['volume_xyz']))}, it {row['why']}"
            for row in self.scaling.get("volumes_left_out", [])
        ]
        return rows + [f"{name}: {ratio:.2f}" for name, ratio in self.ratios.items()]


def _timing(found: Mapping[str, Any]) -> str:
    return f"{found['median_ms']:.1f} ms (spread {found['spread_ms']:.1f})"


def _judged(found: Mapping[str, Any]) -> str:
    share = found["of_limit"]
    return _timing(found) + ("" if share is None else f", {100 * share:.0f} % of the limit")


def _memory(peak_mib: Mapping[str, Any]) -> str:
    known = [f"{value:.0f} MiB of {where} memory" for where, value in peak_mib.items() if value is not None]
    return f", at most {' and '.join(known)}" if known else ", memory unknown"


def _throughput(batch: str, found: Mapping[str, Any]) -> Iterator[str]:
    if "failed" in found:
        yield f"batch {batch}: {found['failed']}"
    for name, entry in found.items():
        if name == "device_mib" and entry is not None:
            yield f"batch {batch}: at most {entry:.0f} MiB of device memory"
        if isinstance(entry, dict) and "per_second" in entry:
            yield f"batch {batch}, {name}: {entry['per_second']:.1f} volumes/s, {_timing(entry)}"
    for name, reason in found.get("not_captured", {}).items():
        yield f"batch {batch}, {name} cannot be a CUDA graph: {reason}"


def read_report(path: Path) -> Dict[str, Any]:
    """A report that ``famsam bench --output`` wrote.

    Raises:
        ConfigError: the file is missing, no JSON, or no report.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Expected a benchmark's JSON in {path}; {error}.") from error
    if not isinstance(found, dict) or not isinstance(found.get("environment"), dict) or "configs" not in found:
        raise ConfigError(f"Expected what 'famsam bench --output' wrote in {path}, got other JSON.")
    return found


def compare(new: Mapping[str, Any], old: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """What two reports have in common, one row each.

    Returns:
        rows of "name", "old", "new", "ratio" (new over old) and "verdict": "faster" or "slower" only where no run of
        one report lies within the range of the other's runs, else "same"; None for what is no timing.
    """
    rows: List[Dict[str, Any]] = []
    old_limits = dict(_numbers({"limits": old.get("limits", {}), "ratios": old.get("ratios", {})}))
    for name, value in _numbers({"limits": new.get("limits", {}), "ratios": new.get("ratios", {})}):
        if old_limits.get(name):
            ratio = round(value / old_limits[name], 3)
            rows.append({"name": name, "old": old_limits[name], "new": value, "ratio": ratio, "verdict": None})
    old_timings = dict(_timings(old))
    for name, timing in _timings(new):
        before = old_timings.get(name)
        if before is None or not before["median_ms"]:
            continue
        verdict = "same"
        if timing["max_ms"] < before["min_ms"]:
            verdict = "faster"
        elif timing["min_ms"] > before["max_ms"]:
            verdict = "slower"
        ratio = round(timing["median_ms"] / before["median_ms"], 3)
        rows.append(
            {"name": name, "old": before["median_ms"], "new": timing["median_ms"], "ratio": ratio, "verdict": verdict}
        )
    return rows


def comparison_lines(new: Mapping[str, Any], old: Mapping[str, Any]) -> List[str]:
    """``compare`` for people, after a word on what differs between the two machines or runs."""
    lines = []
    for name, before, now in _differences(old, new):
        lines.append(f"differs: {name} was {before}, is {now}")
    lines.append(f"since commit {old['environment'].get('commit')}, {old['environment'].get('date')}:")
    for row in compare(new, old):
        verdict = f"  {row['verdict']}" if row["verdict"] else ""
        lines.append(f"{row['name']:52} {row['old']:10.2f} -> {row['new']:10.2f}  x {row['ratio']:.2f}{verdict}")
    return lines


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Tuple[str, Any, Any]]:
    """(name, before, now) of what timings depend on besides the code; what a run that was cut off lacks is left out."""
    for key in ("processor", "cores", "may_use_cores", "threads", "device", "precision", "packages"):
        before, now = (report["environment"].get(key) for report in (old, new))
        if before != now:
            yield key, before, now
    parts = [{"clicks": report.get("clicks", {}), **report["configs"]} for report in (old, new)]
    for name in parts[1]:
        for key in ("volume_xyz", "model", "precision", "parameters", "paused_share"):
            before, now = (part.get(name, {}).get(key) for part in parts)
            if None not in (before, now) and before != now:
                yield f"{name} {key}", before, now


def _timings(value: Any, path: str = "") -> Iterator[Tuple[str, Mapping[str, float]]]:
    """All timings of a report, by their dotted path."""
    if isinstance(value, dict):
        if {"median_ms", "min_ms", "max_ms"} <= set(value):
            yield path, value
            return
        for key, item in value.items():
            yield from _timings(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):  # the rows of a curve, each known by the size of its scan or its number of points
        for row in (item for item in value if isinstance(item, dict)):
            size = row.get("volume_xyz", [row.get("points")])
            yield from _timings(row, f"{path}.{'x'.join(map(str, size))}")


def _numbers(value: Any, path: str = "") -> Iterator[Tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (int, float)):
        yield path, float(value)
