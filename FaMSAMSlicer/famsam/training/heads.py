"""How MR scans show heads, for label maps with FreeSurfer's numbers: intensities that are not random, skulls removed.

Contrast at random (SynthSeg, Billot et al. 2023) makes a network indifferent to it, but never shows it a T1 of a brain
as it is: grey matter on both sides alike, nuclei that hardly differ from what surrounds them.
"""

from __future__ import annotations

from typing import Dict, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from . import lesions
from .sample import Dice

TISSUES: Dict[str, Tuple[int, ...]] = {
    "fluid": (4, 5, 14, 15, 24, 43, 44, 72),
    "white matter": (2, 7, 41, 46, 85),
    "grey matter": (3, 8, 42, 47),
    "brainstem": (16, 28, 60),
    "thalamus": (10, 49),
    "caudate": (11, 26, 50, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 18, 53, 54),
    "oedema": (lesions.OEDEMA,),
    "enhancing": (lesions.ENHANCING,),
    "core": (lesions.CORE,),
    "necrosis": (lesions.NECROSIS,),
    "plaque": (lesions.PLAQUE,),
}
"""Labels that look alike."""
CONTRASTS: Dict[str, Tuple[float, ...]] = {
    "T1": (0.12, 0.85, 0.52, 0.76, 0.68, 0.56, 0.60, 0.76, 0.52, 0.62, 0.56, 0.52, 0.32, 0.60),
    "T1 with contrast": (0.12, 0.80, 0.54, 0.74, 0.67, 0.57, 0.60, 0.74, 0.53, 0.62, 1.10, 0.54, 0.30, 0.62),
    "T2": (0.95, 0.30, 0.55, 0.36, 0.42, 0.52, 0.48, 0.30, 0.58, 0.80, 0.64, 0.72, 0.92, 0.76),
    "FLAIR": (0.08, 0.42, 0.60, 0.45, 0.52, 0.57, 0.54, 0.42, 0.64, 0.88, 0.78, 0.82, 0.50, 0.90),
}
"""Mean intensity of each of ``TISSUES``, roughly."""
CONTRAST_CHANCES, CONTRAST_CHANCES_OF_PATIENTS = (0.6, 0.0, 0.2, 0.2), (0.12, 0.33, 0.15, 0.4)
LESIONS_VARY = 0.07
"""Standard deviation of a lesion's mean intensity, beyond that of other tissues."""
SUBARACHNOID_FLUID, FIRST_OUTSIDE = 24, 500
"""What is removed with the skull: this label, and those from there on."""


def is_head(labels_zyx: np.ndarray) -> bool:
    """Whether a label map holds the white matter, cortex and thalamus of both sides under FreeSurfer's numbers."""
    counts = np.bincount(labels_zyx.ravel(), minlength=50)
    return bool(counts[[2, 3, 10, 41, 42, 49]].all())


def without_skull(labels_zyx: np.ndarray) -> np.ndarray:
    """The label map of a skull-stripped scan."""
    outside = (labels_zyx >= FIRST_OUTSIDE) | (labels_zyx == SUBARACHNOID_FLUID)
    return np.where(outside, 0, labels_zyx)


def tissue_means(present: Sequence[int], dice: Dice) -> Tensor:
    """Mean intensity of each label as an MR scan shows it, (len(present),); of a label that is none of ``TISSUES`` a
    random one, of background about 0."""
    diseased = [label in lesions.LESION_LABELS for label in present]
    chances = CONTRAST_CHANCES_OF_PATIENTS if any(diseased) else CONTRAST_CHANCES
    contrast = list(CONTRASTS.values())[dice.pick(chances)]
    level = {label: mean for labels, mean in zip(TISSUES.values(), contrast) for label in labels}
    means = [level.get(label, dice.uniform(0.0, 0.9) if label else 0.0) for label in present]
    strength = dice.uniform(0.5, 1.0)  # of the contrast between tissues
    middle = dice.uniform(0.4, 0.6)
    spread = (0.02 + LESIONS_VARY * torch.tensor(diseased, device=dice.device)) * dice.normal(len(means))
    known = torch.tensor([label in level for label in present], device=dice.device)
    levels = torch.tensor(means, device=dice.device)
    return torch.where(known, middle + strength * (levels - middle), levels) + spread
