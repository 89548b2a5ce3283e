"""What proposals are worth: of each labelled structure, the Dice of the best candidate that nobody clicked for.

    python Testing/Benchmarks/bench_proposals.py CASES --max-structures 3 \
        --exclude-file Resources/ModelCards/famsam-s.trained-on.txt

CASES is a folder as ``famsam evaluate`` takes it. The candidates of ``session.propose()`` are compared with every
structure, and with what one click in its middle finds: a click knows where the structure is, a proposal
does not. Prints a line a structure and the means over cases.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch
from famsam.checkpoints import DEFAULT_WEIGHTS, load_model
from famsam.evaluation.clicks import first_click
from famsam.evaluation.dataset import DatasetOptions, find_cases, read_exclude_file
from famsam.evaluation.metrics import dice
from famsam.proposing import ProposalOptions
from famsam.session import Session
from tqdm import tqdm

FIRST = (1, 3, 10)
"""Of so many candidates, the most trusted ones, the best one is told."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--model", default=str(DEFAULT_WEIGHTS))
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--exclude-file", type=Path)
    parser.add_argument("--max-structures", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="JSON to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.model, "cpu", args.precision)
    exclude = read_exclude_file(args.exclude_file) if args.exclude_file else ()
    dataset = DatasetOptions(tuple(args.include), tuple(exclude), args.max_structures)
    rows: List[Dict[str, Any]] = []
    for case in tqdm(find_cases(args.cases, dataset), unit="case"):
        loaded = case.load(dataset)
        session = Session(model)
        session.set_image(loaded.volume)
        started = time.process_time()
        candidates = session.propose(ProposalOptions(most=max(FIRST)))
        seconds = time.process_time() - started
        masks = [candidate.mask_zyx for candidate in candidates]
        for structure in loaded.structures:
            truth = loaded.truth_zyx(structure)
            found = [dice(truth, mask) for mask in masks] or [0.0]
            click = first_click(truth, tuple(loaded.volume.grid.spacing_zyx_mm.tolist()), None)
            session.reset()
            clicked = session.add_point(tuple(loaded.volume.grid.ras_from_zyx_points(click.zyx).tolist())).mask_zyx
            rows.append(
                {
                    "case": case.name,
                    "structure": structure.name,
                    "voxels": structure.voxels,
                    "candidates": len(masks),
                    "quality": [candidate.quality for candidate in candidates],
                    "dice": found,
                    "best": [max(found[:count]) for count in FIRST],
                    "clicked": dice(truth, clicked),
                    "seconds": seconds,
                }
            )
            best = " ".join(f"{value:.2f}" for value in rows[-1]["best"])
            tqdm.write(f"{case.name[:30]:31}{structure.name[:28]:29}{best}  one click {rows[-1]['clicked']:.2f}")
    cases = defaultdict(list)
    for row in rows:
        found = [float(best >= 0.5) for best in row["best"]]
        cases[row["case"]].append([*row["best"], *found, row["clicked"], row["seconds"]])
    means = np.mean([np.mean(values, axis=0) for values in cases.values()], axis=0)
    n = len(FIRST)
    print(f"{len(rows)} structures of {len(cases)} cases, means over cases, of the first {FIRST} candidates")
    print(f"Dice of the best: {np.round(means[:n], 3)}; share with 0.5 or more: {np.round(means[n : 2 * n], 3)}")
    print(f"one click: {means[2 * n]:.3f}; processor time of proposing: {means[-1]:.1f} s")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
