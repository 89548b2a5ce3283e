"""Structures like those trained on, as cases to evaluate on: what choices may be made by without the development cases.

    python Testing/Benchmarks/draw_structures.py DATA -o structures/
    famsam evaluate structures/ -o report/

DATA as in ``real_scans.py``, of which the label maps are used. Every third volume is a synthetic one, the others label
maps with synthetic intensities, 160 voxels along each edge; up to two structures of each, drawn as in training, are a
case of their own. The same seed gives the same cases.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from famsam.training.sample import Dice
from famsam.training.scans import load_label_maps
from famsam.training.synthetic import synthetic_sample
from famsam.training.targets import draw_targets, visibility
from tqdm import tqdm

SIZE, SPACINGS_MM, STRUCTURES = 160, (0.8, 1.6), 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--volumes", type=int, default=44)
    parser.add_argument("--seed", type=int, default=77)
    args = parser.parse_args()
    maps = load_label_maps(args.data / "labelmaps_only")
    dice = Dice(args.seed, torch.device("cpu"))
    for number in tqdm(range(args.volumes), unit="volume"):
        sample = maps.draw(SIZE, dice) if number % 3 else synthetic_sample(SIZE, 1000 + number, torch.device("cpu"))
        spacing = math.exp(np.random.default_rng(number).uniform(*np.log(SPACINGS_MM)))
        scale = 1000 / max(float(sample.image_ZYX.abs().max()), 1e-6)
        image = (sample.image_ZYX.numpy() * scale).astype(np.int16)
        drawn = 0
        for structure in draw_targets(sample, 3 * STRUCTURES, dice):
            if drawn == STRUCTURES:
                break
            if not dice.chance(0.05 + visibility(sample.image_ZYX, structure)):
                continue
            case = args.output / f"{'labels' if number % 3 else 'synthetic'}_{number:02d}_{drawn}"
            case.mkdir(parents=True, exist_ok=True)
            for name, voxels in (("image", image), ("labels", structure.numpy().astype(np.uint8))):
                nib.save(nib.Nifti1Image(voxels.T, np.diag([spacing] * 3 + [1.0])), case / f"{name}.nii.gz")
            drawn += 1


if __name__ == "__main__":
    main()
