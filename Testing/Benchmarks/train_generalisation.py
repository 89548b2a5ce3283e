"""Domain generalisation: train without a modality or a region of the body, test on it and on everything else.

    python Testing/Benchmarks/train_generalisation.py DATA --config Testing/Benchmarks/train_generalisation.json -o out/

DATA holds ``labelled/`` (cases, with ``msd_hippocampus_bulk/`` in nnU-Net's layout), ``images_only/`` and
``labelmaps_only/``. The same small network is trained on the same budget from all sources, without the CT scans,
without the MR scans, and without anything of the head; synthetic anatomy stays in all of them. Every network is then
scored on the cases that none was trained on. Writes ``generalisation.md``, ``.json`` and each run's folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Dict, List

import numpy as np
import torch
from famsam.checkpoints import load_model, save_model
from famsam.evaluation.dataset import DatasetOptions, read_exclude_file
from famsam.evaluation.harness import EvaluationOptions, evaluate
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.training.config import read_config
from famsam.training.scans import load_label_maps, load_labelled, load_unlabelled
from famsam.training.trainer import MixedSource, Trainer, synthetic_source

TRAINED_ON = Path(__file__).parents[2] / "Resources" / "ModelCards" / "famsam-s.trained-on.txt"
LABELLED_CT, LABELLED_MR = ("sts_31_ct", "cip_ct_*"), ("sts_*_mr_t1", "totalseg_mr_*")
GROUPS: Dict[str, List[str]] = {
    "CT": ["totalseg_ct_*", "deeplesion_*"],
    "MR of the head": ["brats*", "crf_*", "jhu_*", "ms_*", "msd_*", "pd25_*", "pyrad_brain1", "robbin*", "swm_*"],
    "other MR": ["ivadomed_*", "pyrad_breast1", "sts_*_mr_t1"],
}
"""Cases to test on, by patterns of their names."""


def sources(data: Path, left_out: str) -> MixedSource:
    """What to train on, without ``left_out``: "nothing", "CT", "MR" or "heads"."""
    kept = ["*_CT.nii.gz"] * (left_out != "CT") + ["*_MR_T1.nii.gz"] * (left_out != "MR")
    labelled = [*(LABELLED_CT if left_out != "CT" else ()), *(LABELLED_MR if left_out != "MR" else ())]
    held_out = read_exclude_file(TRAINED_ON)
    labelled = [name for name in held_out if any(Path(name).match(pattern) for pattern in labelled)]
    maps = ("sammed3d_*",) if left_out == "heads" else ()
    found = [
        (synthetic_source, 0.35),
        (load_unlabelled(data / "images_only", kept).draw, 0.2),
        (load_labelled(data / "labelled", labelled).draw, 0.15),
        (load_label_maps(data / "labelmaps_only", maps).draw, 0.2),
    ]
    if left_out not in ("MR", "heads"):
        found.append((load_labelled(data / "labelled" / "msd_hippocampus_bulk").draw, 0.1))
    return MixedSource(*zip(*found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--config", type=Path, required=True, help='JSON with "train" and "model"')
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    config, model_config = read_config(args.config)
    methods = []
    for left_out in ("nothing", "CT", "MR", "heads"):
        trainer = Trainer(args.output / left_out, sources(args.data, left_out), config, model_config)
        trainer.run()
        weights = args.output / left_out / "famsam.safetensors"
        save_model(trainer.averaged_model(), weights)
        methods.append(SessionSegmenter(load_model(weights, "cpu"), left_out))
    torch.set_num_threads(1)
    dataset = DatasetOptions(exclude=read_exclude_file(TRAINED_ON), max_structures=3)
    report = evaluate(args.data / "labelled", methods, EvaluationOptions(dataset, clicks=5, progress=True))
    lines = ["| trained without | " + " | ".join(GROUPS) + " |", "|---" * (len(GROUPS) + 1) + "|"]
    rows = {}
    for method in report.methods:
        cases = report.case_scores(method)
        rows[method] = {
            group: np.mean(
                [s["dice"] for name, s in cases.items() if any(Path(name).match(p) for p in patterns)], axis=0
            ).tolist()
            for group, patterns in GROUPS.items()
        }
        cells = [" / ".join(f"{scores[click]:.3f}" for click in (0, 2, 4)) for scores in rows[method].values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", f"Dice after 1 / 3 / 5 clicks, means over cases; {config.steps} steps a network."]
    (args.output / "generalisation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"environment": report.environment, "rows": rows}
    (args.output / "generalisation.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
