"""Score against steps: the same network trained for more and more steps, each time from scratch to the end of its
learning rate, and scored on the cases that it was not trained on.

    python Testing/Benchmarks/train_scaling.py DATA --config Testing/Benchmarks/train_oriented.json -o scaling/

DATA as in ``real_scans.py``, whose sources are trained on, without those of one kind if so told. Writes
``scaling.md``, ``.json`` and ``.png``, and each run's folder; runs that have ended are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List

from famsam.checkpoints import load_model, save_model
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.training.config import read_config
from famsam.training.trainer import Trainer
from real_scans import scored, sources

CLICKS = (1, 3, 5, 10)


def plot(rows: List[Dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for click in CLICKS:
        axes.plot(
            [row["steps"] for row in rows],
            [row["dice"][click - 1] for row in rows],
            marker="o",
            label=f"{click} click{'s' * (click > 1)}",
        )
    axes.set(xscale="log", xlabel="steps", ylabel="mean Dice over cases", ylim=(0, 1))
    axes.minorticks_off()
    axes.set_xticks([row["steps"] for row in rows], [str(row["steps"]) for row in rows])
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--config", type=Path, required=True, help='JSON with "train" and "model"')
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 125, 250, 500])
    parser.add_argument("--without", choices=("nothing", "CT", "MR", "heads"), default="nothing", help="left out")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    config, model_config = read_config(args.config)
    source = sources(args.data, args.without)
    methods, seconds = [], {}
    for steps in args.steps:
        warmup = min(config.warmup_steps, steps // 4)
        budget = dataclasses.replace(config, steps=steps, warmup_steps=warmup, validate_every=steps)
        trainer = Trainer(args.output / str(steps), source, budget, model_config)
        trainer.run()
        weights = args.output / str(steps) / "famsam.safetensors"
        save_model(trainer.averaged_model(), weights)
        methods.append(SessionSegmenter(load_model(weights, "cpu"), str(steps)))
        seconds[steps] = round(trainer.seconds)
    report = scored(args.data, methods, max(CLICKS))
    rows = [{"steps": s, "seconds": seconds[s], "dice": report.summary(str(s))["dice"]} for s in args.steps]
    lines = ["| steps | seconds | Dice, 1 click | 3 | 5 | 10 |", "|---|---|---|---|---|---|"]
    for row in rows:
        scores = " | ".join(f"{row['dice'][click - 1]:.3f}" for click in CLICKS)
        lines.append(f"| {row['steps']} | {row['seconds']} | {scores} |")
    (args.output / "scaling.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"environment": report.environment, "rows": rows}
    (args.output / "scaling.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(rows, args.output / "scaling.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
