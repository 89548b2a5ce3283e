"""A fair comparison on real scans: small networks trained on the same budget, scored by whole sessions.

    python Testing/Benchmarks/train_on_scans.py DATA Testing/Benchmarks/train_clicks/*.json -o out/

DATA as in ``real_scans.py``, whose sources without anything of the head are trained on. ``famsam compare``
scores crops like those trained on; this scores the cases that no network was trained on, at 128 voxels a view. Writes
``scores.md``, ``.json`` and each run's folder; runs that have ended are not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from famsam.checkpoints import load_model, save_model
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.training.config import read_config
from famsam.training.trainer import Trainer, read_log
from real_scans import scored, sources

CLICKS = (1, 2, 3, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("configs", type=Path, nargs="+", help='JSON with "train" and "model", a variant each')
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = sources(args.data, "heads")
    methods, crops = [], {}
    for path in args.configs:
        run = args.output / path.stem
        trainer = Trainer(run, source, *read_config(path))
        trainer.run()
        save_model(trainer.averaged_model(), run / "famsam.safetensors")
        methods.append(SessionSegmenter(load_model(run / "famsam.safetensors", "cpu"), path.stem))
        last = list(read_log(run))[-1]
        crops[path.stem] = [last[f"dice{click}"] for click in (1, 3, 5)]
    report = scored(args.data, methods, max(CLICKS))
    heading = " / ".join(map(str, CLICKS))
    lines = [f"| variant | crops like those trained on, 1 / 3 / 5 clicks | cases, {heading} clicks |", "|---|---|---|"]
    scores = {}
    for name in report.methods:
        scores[name] = report.summary(name)["dice"]
        cells = [crops[name], [scores[name][click - 1] for click in CLICKS]]
        lines.append(f"| {name} | {' | '.join(' / '.join(f'{value:.3f}' for value in cell) for cell in cells)} |")
    (args.output / "scores.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"environment": report.environment, "crops": crops, "cases": scores}
    (args.output / "scores.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
