"""Synthetic scans: random anatomy, rendered like CT, MR or PET, on the device that trains.

Learning from randomised synthetic volumes transfers to real scans (SynthSeg, Billot et al. 2023; Anatomix, Dey et al.
2024). Anatomy: partitions of smooth noise, warped ellipsoids, nested and touching organs, bones with cortex and marrow,
shells, vessel trees and lesions inside of what is there. Rendering: contrasts from obvious to barely visible, texture,
bias field, blur, thick slices, ringing, motion, metal, noise, cut fields of view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Sequence, Tuple

import torch
from torch import Tensor

from . import artefacts, shapes
from .sample import Dice, Sample, gaussian_blur

TISSUES = ("air", "fluid", "muscle", "organ", "fat", "cortex", "marrow", "lesion")
TISSUE_CHANCES = (0.08, 0.12, 0.25, 0.35, 0.2, 0.0, 0.0, 0.0)
"""Of a structure that is neither bone nor lesion."""
CONTRASTS = {
    "CT": (0.0, 0.5, 0.53, 0.56, 0.44, 0.95, 0.6, 0.52),
    "T1": (0.0, 0.15, 0.4, 0.5, 0.95, 0.05, 0.8, 0.35),
    "T2": (0.0, 0.95, 0.25, 0.45, 0.7, 0.03, 0.55, 0.8),
    "FLAIR": (0.0, 0.08, 0.4, 0.55, 0.6, 0.04, 0.5, 0.9),
    "PET": (0.02, 0.05, 0.1, 0.25, 0.05, 0.06, 0.15, 0.95),
}
"""Mean intensity of each of ``TISSUES``, roughly as scans of this kind show them."""


@dataclass
class Anatomy:
    """Structures and what they are to each other.

    Attributes:
        labels_ZYX: int64 structure of each voxel; 0 is none.
        parents: for each label the label that it lies in (0: none), index = label.
        bones: labels of cortex; the label after each is its marrow.
        lesions: labels of lesions.
        alike: pairs of labels of the same intensity, which only an edge parts.
    """

    labels_ZYX: Tensor
    parents: List[int]
    bones: List[int] = field(default_factory=list)
    lesions: List[int] = field(default_factory=list)
    alike: List[Tuple[int, int]] = field(default_factory=list)

    def add(self, mask_ZYX: Tensor, parent: int = -1) -> int:
        """Make the mask a structure; its label, or 0 if it holds almost nothing.

        Args:
            parent: the label that it lies in; by default what most of it replaces.
        """
        replaced = torch.bincount(self.labels_ZYX[mask_ZYX], minlength=1).tolist()
        if sum(replaced) < 6:
            return 0
        self.parents.append(replaced.index(max(replaced)) if parent < 0 else parent)
        self.labels_ZYX = self.labels_ZYX.masked_fill(mask_ZYX, len(self.parents) - 1)
        return len(self.parents) - 1


def synthetic_sample(size: int, seed: int, device: torch.device) -> Sample:
    """A random crop of ``size`` voxels along each edge; the same seed gives the same sample on the same device."""
    dice = Dice(seed, device)
    anatomy = draw_anatomy(size, dice)
    means = label_means(anatomy, dice)
    image, inside = render_means(anatomy.labels_ZYX, means, dice)
    return Sample(image, inside, anatomy.labels_ZYX, anatomy.parents)


def draw_anatomy(size: int, dice: Dice) -> Anatomy:
    """Random structures."""
    canvas = shapes.Canvas(size, dice)
    count = dice.integer(2, 6)
    labels = shapes.partition(count, size, size / dice.uniform(1.5, 6.0), dice) + 1
    if dice.chance(0.4):
        labels = labels * shapes.ellipsoid(canvas, dice, radius=dice.uniform(0.35, 0.75) * size)
    anatomy = Anatomy(labels, [0] * (count + 1))
    for _ in range(dice.integer(3, 12)):
        kind = dice.pick([0.36, 0.1, 0.2, 0.18, 0.06, 0.05, 0.05])
        if kind < 3:
            label = anatomy.add((shapes.ellipsoid, shapes.shell, shapes.vessel_tree)[kind](canvas, dice))
            if label and dice.chance(0.12):
                _add_wall(anatomy, label)
        elif kind == 3:
            anatomy.lesions.append(anatomy.add(shapes.lesion(canvas, anatomy.labels_ZYX, dice)))
        elif kind == 4:
            _add_bone(anatomy, shapes.bone(canvas, dice))
        elif kind == 5:
            parent = -1
            for mask in shapes.nested(canvas, dice):
                parent = anatomy.add(mask, parent) or parent
        else:
            _add_touching(anatomy, shapes.ellipsoid(canvas, dice, dice.uniform(0.12, 0.4) * size), dice)
    return anatomy


def _add_wall(anatomy: Anatomy, label: int) -> None:
    """A thin wall around a structure, with the same intensity on both sides."""
    mask = anatomy.labels_ZYX == label
    anatomy.add(shapes.grown(mask) & ~mask, parent=anatomy.parents[label])
    anatomy.alike.append((label, anatomy.parents[label]))


def _add_bone(anatomy: Anatomy, masks: Sequence[Tensor]) -> None:
    whole, marrow = masks
    if int(marrow.sum()) < 6:
        return
    cortex = anatomy.add(whole)
    anatomy.add(marrow, parent=cortex)
    anatomy.bones.append(cortex)


def _add_touching(anatomy: Anatomy, mask_ZYX: Tensor, dice: Dice) -> None:
    """Two to four organs that touch; of the same intensity now and then, with an edge a voxel or two wide between."""
    size = len(mask_ZYX)
    count = dice.integer(2, 4)
    parts = shapes.partition(count, size, size / dice.uniform(1.5, 3.0), dice)
    added = [anatomy.add(mask_ZYX & (parts == index)) for index in range(count)]
    own = [label for label in added if label]
    if len(own) > 1 and dice.chance(0.5):
        pieces = [anatomy.labels_ZYX == label for label in own]
        edge = torch.zeros_like(mask_ZYX)
        for piece in pieces:
            edge |= shapes.grown(piece) & mask_ZYX & ~piece
        thin = edge & pieces[0] if dice.chance(0.5) else edge
        anatomy.add(thin, parent=anatomy.parents[own[0]])
        anatomy.alike += [(label, own[0]) for label in own[1:]]


def render(labels_ZYX: Tensor, parents: List[int], dice: Dice) -> Tuple[Tensor, Tensor]:
    """Intensities for any label map: (image, inside), both (Z, Y, X)."""
    return render_means(labels_ZYX, label_means(Anatomy(labels_ZYX, parents), dice), dice)


def label_means(anatomy: Anatomy, dice: Dice) -> Tuple[Tensor, bool]:
    """Mean intensity of each label: unrelated, or as a kind of scan shows tissues; and whether it is a PET."""
    count = len(anatomy.parents)
    means = dice.few_uniform(count, 0.0, 1.0)
    kind = [None, *CONTRASTS][dice.pick([0.5, 0.25, 0.06, 0.06, 0.06, 0.07])]
    if kind:
        levels = means.new_tensor(CONTRASTS[kind])
        tissues = [dice.pick(TISSUE_CHANCES) for _ in range(count)]
        means = levels[tissues] + (0.03 if kind == "CT" else 0.06) * dice.few_normal(count)
    for label, parent in enumerate(anatomy.parents):
        if parent and dice.chance(0.6):
            sign = 1.0 if dice.chance(0.5) else -1.0
            means[label] = means[parent] + sign * dice.log_uniform(0.03, 0.35)
    if kind:
        special = [(label, "lesion") for label in anatomy.lesions if label and dice.chance(0.5)]
        special += [(label, "cortex") for label in anatomy.bones] + [(label + 1, "marrow") for label in anatomy.bones]
        for label, tissue in special:
            means[label] = levels[TISSUES.index(tissue)] + 0.05 * float(dice.few_normal(1))
    for label, other in anatomy.alike:
        means[label] = means[other]
    means[0] = dice.uniform(-0.05, 0.05) if dice.chance(0.8) else dice.uniform(0, 1)
    return means.to(dice.device, non_blocking=True), kind == "PET"


def render_means(labels_ZYX: Tensor, means: Tuple[Tensor, bool], dice: Dice) -> Tuple[Tensor, Tensor]:
    """Intensities for labels whose means are given, see ``label_means``: (image, inside), both (Z, Y, X)."""
    size = labels_ZYX.shape[0]
    levels, is_pet = means
    spread = dice.vector(len(levels), 0.0, dice.uniform(0.01, 0.12))
    texture = dice.smooth_noise(1, size, dice.log_uniform(2.0, 8.0))[0] + 0.7 * gaussian_blur(
        dice.normal(size, size, size), [dice.uniform(0.0, 1.0)] * 3
    )
    image = levels[labels_ZYX] + spread[labels_ZYX] * texture
    if dice.chance(0.3):  # gradual intensity within a structure
        image = image + dice.uniform(0.02, 0.15) * dice.smooth_noise(1, size, size / 2)[0]
    if dice.chance(0.5):
        image = image * torch.exp(dice.uniform(0.05, 0.35) * dice.smooth_noise(1, size, size / 1.5)[0])
    image = gaussian_blur(image, [dice.uniform(1.0, 2.5) if is_pet else dice.uniform(0.0, 1.0)] * 3)
    noise = dice.uniform(0.0, 0.06) if dice.chance(0.9) else dice.uniform(0.06, 0.15)
    image = image + noise * dice.normal(size, size, size)
    return degrade(image, dice), cut_field_of_view(size, dice)


def degrade(image_ZYX: Tensor, dice: Dice) -> Tensor:
    """What a scanner, a patient and an export do, each of it now and then; see ``artefacts``."""
    if dice.chance(0.06):
        image_ZYX = artefacts.metal(image_ZYX, dice)
    if dice.chance(0.08):
        image_ZYX = artefacts.motion(image_ZYX, dice)
    if dice.chance(0.08):
        image_ZYX = artefacts.ringing(image_ZYX, dice)
    image_ZYX = artefacts.thick_slices(image_ZYX, dice)
    if dice.chance(0.2):
        image_ZYX = artefacts.windowed(image_ZYX, dice)
    return -image_ZYX if dice.chance(0.3) else image_ZYX


def cut_field_of_view(size: int, dice: Dice) -> Tensor:
    """Which voxels lie inside the scan: all, or all but a margin on some sides."""
    inside = torch.ones(size, size, size, dtype=torch.bool, device=dice.device)
    if dice.chance(0.35):
        for axis in range(3):
            for side in range(2):
                if dice.chance(0.3):
                    width = dice.integer(1, size // 3)
                    start = 0 if side == 0 else size - width
                    inside.narrow(axis, start, width).fill_(False)
    return inside
