"""One student, taught in four ways on the same budget: layer by layer (as printed, or at unit norm) and then by logits,
by logits alone, from scratch.

    python Testing/Benchmarks/train_distillation.py DATA --teacher Testing/Benchmarks/train_teacher.json \
        --config Testing/Benchmarks/train_distillation.json -o distillation/

DATA as in ``real_scans.py``. A teacher is the set-up of a network that is trained first, or a weights file, or
"default". All are scored on the cases that none was trained on, the teacher too. Writes ``distillation.md``, ``.json``
and ``.png``, and each run's folder with its own picture; runs that have ended are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Dict, List

import torch
from famsam.checkpoints import DEFAULT_WEIGHTS, load_model, save_model
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.training import prompting
from famsam.training.config import read_config, read_model, read_part
from famsam.training.distill import DistillConfig, Distiller
from famsam.training.plots import comparison_curves, distillation_curve
from famsam.training.trainer import TrainConfig, Trainer
from real_scans import scored, sources

CLICKS = (1, 3, 5, 10)
TEACHER = "the teacher"
VARIANTS = {
    "layers-then-logits": DistillConfig(),
    "unit-layers-then-logits": DistillConfig(unit_scale=True),
    "logits-only": DistillConfig(layer_fraction=0.0),
    "from-scratch": DistillConfig(layer_fraction=0.0, logit_weight=0.0, label_weight=1.0, copy=False),
}
"""All but the last begin with the teacher's stem and decoder."""


def encode_ms(weights: Dict[str, Path], runs: int = 7) -> Dict[str, float]:
    """Median milliseconds of each network to encode one crop of 128 voxels in fp32, in turns, one thread."""
    torch.set_num_threads(1)
    crop = torch.randn(1, 1, 128, 128, 128)
    models = {name: load_model(path, "cpu", "fp32", paused_share=0.0) for name, path in weights.items()}
    times: Dict[str, List[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(runs + 1):
            for name, model in models.items():
                start = time.perf_counter()
                prompting.encode(model, crop)
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="default", help="set-up (JSON) of one to train, or weights, or default")
    parser.add_argument("--config", type=Path, required=True, help='JSON with "train" and, if wanted, "model"')
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only this one; repeatable")
    args = parser.parse_args()
    chosen, source = args.variant or list(VARIANTS), sources(args.data, "nothing")
    weights = {name: args.output / name / "famsam.safetensors" for name in chosen}
    weights[TEACHER] = DEFAULT_WEIGHTS if args.teacher == "default" else Path(args.teacher)
    seconds = dict.fromkeys(weights, 0.0)
    if args.teacher.endswith(".json"):
        run = Trainer(args.output / "teacher", source, *read_config(args.teacher))
        run.run()
        weights[TEACHER] = run.directory / "famsam.safetensors"
        save_model(run.averaged_model(), weights[TEACHER])
        seconds[TEACHER] = run.seconds
    config, student = read_part(args.config, "train", TrainConfig()), read_model(args.config)
    for name in chosen:
        distill = dataclasses.replace(VARIANTS[name], teacher=str(weights[TEACHER]))
        run = Distiller(args.output / name, source, distill, config, student)
        run.run()
        distillation_curve(run.directory)
        save_model(run.averaged_model(), weights[name])
        seconds[name] = run.seconds
    report = scored(args.data, [SessionSegmenter(load_model(path, "cpu"), name) for name, path in weights.items()], 10)
    times = encode_ms(weights)
    heading = " | ".join(map(str, CLICKS))
    lines = [f"| network | seconds | Dice after clicks: {heading} | encode, ms |", "|---" * (len(CLICKS) + 3) + "|"]
    rows = []
    for name in weights:
        dice = report.summary(name)["dice"]
        rows.append({"name": name, "seconds": round(seconds[name]), "dice": dice, "encode_ms": times[name]})
        scores = " | ".join(f"{dice[click - 1]:.3f}" for click in CLICKS)
        lines.append(f"| {name} | {seconds[name]:.0f} | {scores} | {times[name]:.0f} |")
    hardware = f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    lines += ["", f"{config.steps} steps a student; crops of 128 voxels encoded in fp32, one thread; {hardware}."]
    (args.output / "distillation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    outcome = {"environment": report.environment, "rows": rows}
    (args.output / "distillation.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    comparison_curves({name: args.output / name for name in chosen}, args.output / "distillation.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
