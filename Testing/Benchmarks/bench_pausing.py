"""Quality against time over the share of paused tokens: a table, JSON and a plot.

    python Testing/Benchmarks/bench_pausing.py CASES -o pausing/ [--model WEIGHTS] [--clicks 3]

Every structure is clicked on by the simulated user once for every setting. Encoding is timed with the settings taken
in turn; on a CPU in processor time over the threads, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from famsam.checkpoints import load_model
from famsam.evaluation.dataset import DatasetOptions, read_exclude_file
from famsam.evaluation.harness import EvaluationOptions, evaluate
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.runtime import autocast


def clock_ms(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return 1000 * time.perf_counter()
    return 1000 * time.process_time() / torch.get_num_threads()


def encode_times_ms(models: dict, runs: int) -> dict:
    """Milliseconds of each encode, the median and the minimum of ``runs`` rounds."""
    found = {share: [] for share in models}
    for number in range(runs + 1):
        for share, model in models.items():
            crop = torch.randn(1, 1, *[model.crop_size] * 3, device=model.device)
            with torch.inference_mode(), autocast(model.device, model.precision):
                started = clock_ms(model.device)
                model.encode(crop)
                taken = clock_ms(model.device) - started
            if number:  # the first round warms up
                found[share].append(taken)
    return {share: {"median_ms": statistics.median(t), "min_ms": min(t)} for share, t in found.items()}


def plot(rows: list, clicks: int, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for click in sorted({1, clicks}):
        scores = [row["dice"][click - 1] for row in rows]
        axes.plot([row["min_ms"] for row in rows], scores, marker="o", label=f"{click} click{'s' * (click > 1)}")
    for row in rows:
        axes.annotate(f"{row['paused_share']:g}", (row["min_ms"], row["dice"][clicks - 1]), fontsize=8)
    axes.set(xlabel="encode, ms (minimum)", ylabel="mean Dice over cases", title="share of paused tokens")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("pausing"))
    parser.add_argument("--model", default="default")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 0.9, 0.95])
    parser.add_argument("--clicks", type=int, default=3)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--exclude-file", type=Path)
    parser.add_argument("--max-structures", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    models = {s: load_model(args.model, args.device, args.precision, paused_share=s) for s in args.shares}
    times = encode_times_ms(models, args.runs)
    exclude = read_exclude_file(args.exclude_file) if args.exclude_file else ()
    dataset = DatasetOptions(tuple(args.include), exclude, args.max_structures)
    methods = [SessionSegmenter(model, f"paused {share:g}") for share, model in models.items()]
    report = evaluate(args.directory, methods, EvaluationOptions(dataset, args.clicks, progress=True))
    rows = [
        {"paused_share": share, **times[share], "dice": report.summary(f"paused {share:g}")["dice"]} for share in models
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    content = {"environment": report.environment, "options": report.options, "rows": rows}
    (args.output / "pausing.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(rows, args.clicks, args.output / "pausing.png")
    lost = {row["paused_share"]: max(a - b for a, b in zip(rows[0]["dice"], row["dice"])) for row in rows}
    print("| paused | encode, median (min) | Dice after 1 … clicks | lost at most |\n| --- | --- | --- | --- |")
    for row in rows:
        scores = ", ".join(f"{d:.3f}" for d in row["dice"])
        share = row["paused_share"]
        print(f"| {share:g} | {row['median_ms']:.0f} ({row['min_ms']:.0f}) ms | {scores} | {lost[share]:.3f} |")
    within = [row for row in rows if lost[row["paused_share"]] <= 0.005]
    fastest = within[int(np.argmin([row["min_ms"] for row in within]))]["paused_share"]
    print(f"The fastest setting that loses at most 0.005 Dice: {fastest:g}")


if __name__ == "__main__":
    main()
