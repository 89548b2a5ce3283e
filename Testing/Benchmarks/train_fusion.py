"""Ablation of the multi-scale fusion: the same network with and without it, on small, thin and other structures.

    python Testing/Benchmarks/train_fusion.py DATA --config Testing/Benchmarks/train_generalisation.json \
        --steps 600 --seeds 2 3 -o out/

DATA as in ``real_scans.py``. Two networks a seed are trained on the same crops, one of which decodes without the stem's
finer features (``FamsamConfig.fusion``), and scored on the cases that none was trained on: in whole sessions, which
look closely at what is small, and in views of one spacing. Prints means over structures and seeds, with the smallest
and largest difference between two networks of a seed; runs that have ended are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
from famsam.checkpoints import load_model, save_model
from famsam.evaluation.dataset import DatasetOptions, find_cases
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.tiling import is_thin
from famsam.training.config import read_config
from famsam.training.trainer import Trainer
from real_scans import scored, sources

CLICKS = (1, 3, 5, 10)
SMALL = 2000
"""Structures of fewer voxels are small."""
THIN_SHARE = 0.5
"""Larger ones of which less than this share lies deeper than a voxel are thin."""
SPACING_MM = 1.5
"""That of the views where views are not chosen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--config", type=Path, required=True, help='JSON with "train" and "model"')
    parser.add_argument("--steps", type=int, help="default: those of the config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    config, model_config = read_config(args.config)
    config = dataclasses.replace(config, steps=args.steps or config.steps)
    methods = []
    for seed in args.seeds:
        for fusion in (True, False):
            run = args.output / f"{'with' if fusion else 'without'}-{seed}"
            network = dataclasses.replace(model_config, fusion=fusion)
            trainer = Trainer(run, sources(args.data, "nothing"), dataclasses.replace(config, seed=seed), network)
            trainer.run()
            save_model(trainer.averaged_model(), run / "famsam.safetensors")
            for name in ("session", "one spacing"):
                model = load_model(run / "famsam.safetensors", "cpu")
                if name == "one spacing":
                    model.spacing_mm = SPACING_MM
                methods.append(SessionSegmenter(model, f"{name}, {run.name}"))
    report = scored(args.data, methods, max(CLICKS))
    kinds = kinds_of_structures(args.data)
    scores: Dict[str, Dict[str, List[Tuple[List[float], List[float]]]]] = {}
    for result in report.results:
        by_kind = scores.setdefault(result.method, {})
        by_kind.setdefault(kinds[result.case, result.structure], []).append((result.dice, result.nsd))
    rows = [row for kind in ("small", "thin", "other") for row in rows_of(kind, scores, args.seeds)]
    print("| structures | seen in | decoder | Dice, 1 / 3 / 5 / 10 clicks | NSD |\n|---|---|---|---|---|")
    print("\n".join(rows))
    content: Dict[str, Any] = {"environment": report.environment, "rows": rows, "scores": scores}
    (args.output / "fusion.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def kinds_of_structures(data: Path) -> Dict[Tuple[str, str], str]:
    """(case, structure) -> "small", "thin" or "other", of all cases."""
    kinds = {}
    for case in find_cases(data / "labelled", DatasetOptions(max_structures=3)):
        loaded = case.load(DatasetOptions(max_structures=3))
        for structure in loaded.structures:
            thin = is_thin(loaded.truth_zyx(structure), THIN_SHARE)
            kinds[case.name, structure.name] = "small" if structure.voxels < SMALL else "thin" if thin else "other"
    return kinds


def rows_of(kind: str, scores: Dict[str, Dict[str, Any]], seeds: List[int]) -> List[str]:
    """Lines of the table: with and without fusion, and the difference."""
    rows, at = [], [click - 1 for click in CLICKS]
    for view in ("session", "one spacing"):
        means = {
            variant: np.array([np.mean(scores[f"{view}, {variant}-{seed}"][kind], axis=0) for seed in seeds])[..., at]
            for variant in ("with", "without")
        }  # (seeds, Dice and NSD, clicks)
        count = len(scores[f"{view}, with-{seeds[0]}"][kind])
        for variant, values in means.items():
            cells = [" / ".join(f"{value:.3f}" for value in metric) for metric in values.mean(0)]
            rows.append(f"| {count} {kind} | {view} | {variant} | {' | '.join(cells)} |")
        gains = means["with"] - means["without"]
        cells = [
            " / ".join(f"{low:+.3f} to {high:+.3f}" for low, high in zip(*metric))
            for metric in zip(gains.min(0), gains.max(0))
        ]
        rows.append(f"| {count} {kind} | {view} | gain | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
