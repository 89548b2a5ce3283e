"""Domain generalisation: train without a modality or a region of the body, test on it and on everything else.

    python Testing/Benchmarks/train_generalisation.py DATA --config Testing/Benchmarks/train_generalisation.json -o out/

DATA as in ``real_scans.py``. The same network is trained on the same budget from all sources, without the CT scans,
without the MR scans, and without anything of the head; synthetic anatomy stays in all of them. Every network is then
scored on the cases that none was trained on. Writes ``generalisation.md``, ``.json`` and each run's folder; runs that
have ended are not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Dict, List

import numpy as np
from famsam.checkpoints import load_model, save_model
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.training.config import read_config
from famsam.training.trainer import Trainer
from real_scans import scored, sources

CLICKS = (1, 3, 5, 10)
GROUPS: Dict[str, List[str]] = {
    "CT": ["totalseg_ct_*", "deeplesion_*"],
    "hippocampi": ["msd_*"],
    "other MR of the head": ["brats*", "crf_*", "jhu_*", "ms_*", "pd25_*", "pyrad_brain1", "robbin*", "swm_*"],
    "other MR": ["ivadomed_*", "pyrad_breast1", "sts_*_mr_t1"],
}
"""Cases to test on, by patterns of their names."""


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
    report = scored(args.data, methods, max(CLICKS))
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
        cells = [" / ".join(f"{scores[click - 1]:.3f}" for click in CLICKS) for scores in rows[method].values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    heading = " / ".join(map(str, CLICKS))
    lines += ["", f"Dice after {heading} clicks, means over cases; {config.steps} steps a network."]
    (args.output / "generalisation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"environment": report.environment, "rows": rows}
    (args.output / "generalisation.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
