"""Gliomas and demyelinated plaques, put into the label map of a head: what MR scans of patients show beside anatomy.

Shape legend: Z Y X voxels of a cube.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

import edt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import shapes
from .sample import Dice

OEDEMA, ENHANCING, CORE, NECROSIS, PLAQUE = LESION_LABELS = (401, 402, 403, 404, 405)
"""Numbers that FreeSurfer does not use: a glioma's oedema, its enhancing, other solid and dead parts, and a plaque."""
PARENTS: Dict[int, int] = {ENHANCING: OEDEMA, CORE: ENHANCING, NECROSIS: ENHANCING}
"""What each part lies in: the core of a glioma is its enhancing part and what that encloses, the whole all of it."""
WHITE_MATTER, GREY_MATTER, VENTRICLES = (2, 7, 41, 46, 85), (3, 8, 42, 47), (4, 43)
DEEP = (10, 11, 12, 13, 16, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60)
"""Nuclei, hippocampi and brainstem: where gliomas grow, too."""
GLIOMA_CHANCE = 0.7
GLIOMA_MM, PLAQUES_MM = (12.0, 90.0), (20.0, 110.0)
"""Diameters of gliomas, and widths of the region in which plaques are seen."""
SULCUS_MM = 3.0
"""Half the width of what a tumour fills between folds."""


class Lesions:
    """The lesions of one crop, to be drawn once it is known what it shows.

    Attributes:
        glioma: a glioma, or else plaques.
        width_mm: the glioma's diameter, or the width of the region with plaques.
    """

    def __init__(self, dice: Dice) -> None:
        self.glioma = dice.chance(GLIOMA_CHANCE)
        self.width_mm = dice.log_uniform(*(GLIOMA_MM if self.glioma else PLAQUES_MM))

    def draw(self, labels_ZYX: Tensor, spacing_mm: float, dice: Dice) -> Tensor:
        """The crop's labels with lesions in them; unchanged where the middle of the crop shows no white matter."""
        size = len(labels_ZYX)
        quarter = size // 4
        middle = torch.zeros_like(labels_ZYX, dtype=torch.bool)
        middle[quarter:-quarter, quarter:-quarter, quarter:-quarter] = True
        white = _any_of(labels_ZYX, WHITE_MATTER)
        places = torch.nonzero(white & middle)
        if len(places) == 0:
            return labels_ZYX
        canvas = shapes.Canvas(size, dice)
        if not self.glioma:
            return torch.where(_plaques(labels_ZYX, white, canvas, spacing_mm, dice), PLAQUE, labels_ZYX)
        z, y, x = places[dice.integer(0, len(places) - 1)].tolist()
        return _glioma(labels_ZYX, canvas, canvas.grid[:, z, y, x].cpu(), self.width_mm, spacing_mm, dice)


def parents_of(present: List[int]) -> List[int]:
    """For each of the labels of a crop, in ascending order, the index of the one that it lies in, or 0."""
    index = {label: number for number, label in enumerate(present)}
    return [next((index[p] for p in _ancestors(label) if p in index), 0) for label in present]


def _ancestors(label: int) -> List[int]:
    return [PARENTS[label], *_ancestors(PARENTS[label])] if label in PARENTS else []


def _closed(mask_ZYX: Tensor, radius: float) -> Tensor:
    """The mask with gaps of up to twice the radius (voxels) filled."""
    reach = int(np.clip(round(radius), 1, 6))
    values = mask_ZYX[None].float()
    for sign in (1, -1):
        for axis in range(3):
            window, padding = [1, 1, 1], [0, 0, 0]
            window[axis], padding[axis] = 2 * reach + 1, reach
            values = sign * F.max_pool3d(sign * values, window, stride=1, padding=padding)
    return values[0] > 0.5


def _any_of(labels_ZYX: Tensor, which: Tuple[int, ...]) -> Tensor:
    return torch.isin(labels_ZYX, torch.tensor(which, device=labels_ZYX.device))


def _glioma(
    labels_ZYX: Tensor, canvas: shapes.Canvas, centre: Tensor, width_mm: float, spacing_mm: float, dice: Dice
) -> Tensor:
    """A lobulated core with an enhancing rim and dead parts in it, and oedema that follows the white matter.

    The core leaves no fluid between the folds that it has grown into.
    """
    size, radius = len(labels_ZYX), 0.5 * width_mm / spacing_mm
    white, grey, deep = (_any_of(labels_ZYX, which) for which in (WHITE_MATTER, GREY_MATTER, DEEP))
    folds = _closed(white | grey | deep, SULCUS_MM / spacing_mm)
    if dice.chance(0.5):
        folds &= ~_any_of(labels_ZYX, VENTRICLES)
    labels = labels_ZYX
    share = dice.uniform(0.35, 0.9)
    lumps = dice.smooth_noise(3, size, float(np.clip(dice.uniform(0.25, 0.8) * radius, 2.5, size / 2)))
    if dice.chance(0.85):
        level = canvas.level(dice, radius, centre) + dice.uniform(0.05, 0.35) * lumps[0]
        level = level + dice.uniform(0.2, 0.7) * grey + dice.uniform(0.1, 0.5) * deep
        labels = torch.where((level < 1) & (white | grey | deep), OEDEMA, labels)
    if dice.chance(0.1):
        return labels
    core = canvas.level(dice, share * radius, centre + 0.15 * radius * dice.few_normal(3))
    core = core + dice.uniform(0.0, 0.25) * lumps[1]
    inside = (core < 1) & folds
    labels = torch.where(inside, CORE, labels)
    rim = dice.uniform(0.1, 0.6) if dice.chance(0.75) else 1.0
    if dice.chance(0.75):
        enhancing = (core > 1 - rim) & (lumps[1] > dice.uniform(-2.0, 0.3))
        labels = torch.where(inside & enhancing, ENHANCING, labels)
    if dice.chance(0.65):
        dead = (core < 1 - rim * dice.uniform(0.7, 1.0)) & (lumps[2] > dice.uniform(-2.0, 0.8))
        labels = torch.where(inside & dead, NECROSIS, labels)
    return labels


def _plaques(labels_ZYX: Tensor, white_ZYX: Tensor, canvas: shapes.Canvas, spacing_mm: float, dice: Dice) -> Tensor:
    """Caps and seams at the ventricles, and spots elsewhere in the white matter."""
    size = len(labels_ZYX)
    plaques = torch.zeros_like(white_ZYX)
    ventricles = _any_of(labels_ZYX, VENTRICLES)
    if ventricles.any() and dice.chance(0.8):
        away = edt.edt(~ventricles.cpu().numpy(), anisotropy=(spacing_mm,) * 3)
        uneven = dice.smooth_noise(1, size, float(np.clip(dice.uniform(5.0, 20.0) / spacing_mm, 2.5, size / 2)))[0]
        width = dice.uniform(1.5, 9.0) * (dice.uniform(-0.3, 0.7) + uneven)
        plaques |= torch.from_numpy(away).to(width.device) < width
    places = torch.nonzero(white_ZYX)
    for _ in range(dice.integer(2, 24)):
        z, y, x = places[dice.integer(0, len(places) - 1)].tolist()
        radius = dice.log_uniform(1.5, 7.0) / spacing_mm
        plaques |= canvas.level(dice, radius, canvas.grid[:, z, y, x].cpu()) < 1
    return plaques & white_ZYX
