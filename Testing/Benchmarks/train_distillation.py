"""One student, taught in four ways on the same budget: layer by layer (as printed, or at unit norm) and then by logits,
by logits alone, from scratch.

    python Testing/Benchmarks/train_distillation.py --teacher default --config budget.json -o distillation/

Writes ``distillation.md``, ``.json`` and ``.png``, and each run's own pictures. All are scored on the same synthetic
crops, the teacher too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from famsam.checkpoints import DEFAULT_WEIGHTS, load_model
from famsam.training import prompting
from famsam.training.config import read_model, read_part
from famsam.training.distill import DistillConfig, Distiller
from famsam.training.learner import validation_scores
from famsam.training.plots import comparison_curves, distillation_curve
from famsam.training.trainer import TrainConfig, read_log, synthetic_source

VARIANTS = {
    "layers-then-logits": DistillConfig(),
    "unit-layers-then-logits": DistillConfig(unit_scale=True),
    "logits-only": DistillConfig(layer_fraction=0.0),
    "from-scratch": DistillConfig(layer_fraction=0.0, logit_weight=0.0, label_weight=1.0, copy=False),
}
"""All but the last begin with the teacher's stem and decoder."""


def encode_ms(model: torch.nn.Module, size: int, runs: int = 5) -> float:
    """Median milliseconds to encode one crop in fp32."""
    crop = torch.randn(1, 1, size, size, size)
    times = []
    with torch.inference_mode():
        for _ in range(runs + 1):
            start = time.perf_counter()
            prompting.encode(model, crop)
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="default", help="weights file, or the default ones")
    parser.add_argument("--config", type=Path, required=True, help='JSON with "train" and, if wanted, "model"')
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only this one; repeatable")
    args = parser.parse_args()
    chosen = args.variant or list(VARIANTS)
    teacher = str(DEFAULT_WEIGHTS) if args.teacher == "default" else args.teacher
    config, student = read_part(args.config, "train", TrainConfig()), read_model(args.config)
    rows = []
    for name in chosen:
        distill = dataclasses.replace(VARIANTS[name], teacher=teacher)
        run = Distiller(args.output / name, synthetic_source, distill, config, student)
        run.run()
        distillation_curve(run.directory)
        last = list(read_log(run.directory))[-1]
        scores = {key: last[key] for key in ("dice1", "dice3", "dice5")}
        rows.append({"name": name, "seconds": round(run.seconds), **scores})
        print(rows[-1], flush=True)
    with torch.no_grad():
        found = validation_scores(run.teacher, run._validation_batches(), config)
    rows.append({"name": "the teacher", "seconds": 0, "dice1": found[0], "dice3": found[2], "dice5": found[4]})
    whole_teacher = load_model(teacher, "cpu", "fp32", paused_share=0.0)
    times = {"teacher": encode_ms(whole_teacher, 128), "student": encode_ms(run.model.eval(), 128)}
    lines = ["| student | seconds | Dice, 1 click | 3 clicks | 5 clicks |", "|---|---|---|---|---|"]
    for row in rows:
        scores = " | ".join(f"{row[key]:.3f}" for key in ("dice1", "dice3", "dice5"))
        lines.append(f"| {row['name']} | {row['seconds']} | {scores} |")
    hardware = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    lines += [
        "",
        f"{config.steps} steps; encoding a crop of 128 voxels in fp32: teacher {times['teacher']:.0f} ms, student "
        f"{times['student']:.0f} ms; {hardware}, torch {torch.__version__}.",
    ]
    (args.output / "distillation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    outcome = {"rows": rows, "encode_ms": times, "hardware": hardware}
    (args.output / "distillation.json").write_text(json.dumps(outcome, indent=1), encoding="utf-8")
    comparison_curves({name: args.output / name for name in chosen}, args.output / "distillation.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
