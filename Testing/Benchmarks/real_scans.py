"""What the trainings that are compared on real scans share: what they learn from, and what they are scored on.

DATA, a folder, holds ``labelled/`` (cases, with ``msd_hippocampus_bulk/`` in nnU-Net's layout), ``images_only/`` and
``labelmaps_only/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import torch
from famsam.evaluation.dataset import DatasetOptions, read_exclude_file
from famsam.evaluation.harness import EvaluationOptions, evaluate
from famsam.evaluation.report import Report
from famsam.evaluation.segmenters import ClickSegmenter
from famsam.training.scans import load_label_maps, load_labelled, load_unlabelled
from famsam.training.trainer import MixedSource, synthetic_source

TRAINED_ON = Path(__file__).parents[2] / "Resources" / "ModelCards" / "famsam-s.trained-on.txt"
LABELLED_CT, LABELLED_MR = ("sts_31_ct", "cip_ct_*"), ("sts_*_mr_t1", "totalseg_mr_*")


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


def scored(data: Path, methods: Sequence[ClickSegmenter], clicks: int) -> Report:
    """Whole sessions, a thread each, on the cases that none was trained on, at most three structures of each."""
    torch.set_num_threads(1)
    dataset = DatasetOptions(exclude=read_exclude_file(TRAINED_ON), max_structures=3)
    return evaluate(data / "labelled", methods, EvaluationOptions(dataset, clicks=clicks, progress=True))
