"""Targets and simulated prompts: one connected piece to segment, and the clicks a user would make on it.

Masks are at the logits' resolution (half the crop's) as soft fractions; points are crop voxel indices (z, y, x).
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import cc3d
import edt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import bounding_box, box_slices
from .sample import Dice, Sample

MIN_VOXELS = 24


def draw_targets(sample: Sample, count: int, dice: Dice) -> List[Tensor]:
    """Up to ``count`` structures of a sample as bool masks (Z, Y, X): single labels, or a label with what lies in it.

    Structures are drawn evenly over the logarithm of their size, so that small ones are seen as often as large ones.
    What lies beyond the scan's field of view belongs to none.
    """
    labels = torch.where(sample.inside_ZYX, sample.labels_ZYX, 0)
    present, sizes = torch.unique(labels[labels > 0], return_counts=True)
    keep = sizes >= MIN_VOXELS
    present, sizes = present[keep].tolist(), sizes[keep].tolist()
    if not present:
        return []
    bins = np.histogram(np.log(sizes), bins=5)
    which = np.clip(np.digitize(np.log(sizes), bins[1][1:-1]), 0, 4)
    weights = [1.0 / bins[0][w] for w in which]
    targets: List[Tensor] = []
    for _ in range(2 * count):
        label = present[dice.pick(weights)]
        mask = labels == label
        if len(sample.parents) and dice.chance(0.3):
            mask = torch.isin(labels, torch.tensor(_with_descendants(label, sample.parents), device=labels.device))
        piece = _one_piece(mask, dice)
        if piece is not None:
            targets.append(piece)
        if len(targets) == count:
            break
    return targets


def _with_descendants(label: int, parents: Sequence[int]) -> List[int]:
    family = [label]
    for child, parent in enumerate(parents):
        if parent in family and child > label:
            family.append(child)
    return family


def _one_piece(mask_ZYX: Tensor, dice: Dice) -> Optional[Tensor]:
    """One of the three largest connected pieces, or None if all are tiny or it fills most of the crop."""
    pieces = cc3d.connected_components(mask_ZYX.cpu().numpy(), connectivity=6)
    counts = np.bincount(pieces.ravel())[1:]
    order = [i for i in np.argsort(-counts)[:3] if counts[i] >= MIN_VOXELS and counts[i] < 0.6 * pieces.size]
    if not order:
        return None
    chosen = order[dice.pick([float(counts[i]) for i in order])]
    return torch.from_numpy(pieces == chosen + 1).to(mask_ZYX.device)


def halve(mask_BZYX: Tensor) -> Tensor:
    """Bool masks at the crop's resolution to foreground fractions at the logits', (B, 1, z, y, x)."""
    return F.avg_pool3d(mask_BZYX[:, None].float(), 2)


class ClickSimulator:
    """The prompts so far of a batch of targets, and the next click for each.

    Args:
        targets_B1zyx: what is to be segmented, as fractions.
        dice: each target gets dice of its own from these.
        styles: weights of clicks deep inside the error, anywhere in it, and at its border.
    """

    def __init__(self, targets_B1zyx: Tensor, dice: Dice, styles: Sequence[float] = (1.0, 0.0, 0.0)) -> None:
        self.truth = (targets_B1zyx[:, 0] > 0.5).cpu().numpy()
        # Structures thinner than a logit voxel keep their densest voxels.
        for item, target in zip(self.truth, targets_B1zyx[:, 0]):
            if not item.any():
                item[...] = (target >= 0.8 * target.max()).cpu().numpy()
        self.dice = dice.fork(len(targets_B1zyx))
        self.styles = styles
        self.device = targets_B1zyx.device
        self.points: List[np.ndarray] = []
        self.labels: List[np.ndarray] = []
        self._errors: List[Optional[Tuple[np.ndarray, Tuple[int, ...]]]] = []

    def add_boxes(self, chance: float) -> None:
        """Give some targets a loose bounding box, as two corner prompts."""
        lower, upper, labels = [], [], []
        for item, dice in zip(self.truth, self.dice):
            z, y, x = (np.flatnonzero(item.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
            low = np.array([a[0] for a in (z, y, x)]) * 2.0
            high = np.array([a[-1] for a in (z, y, x)]) * 2.0 + 1
            slack = 0.1 * (high - low) + 1
            lower.append(low - slack * dice.uniform(-0.5, 1.0))
            upper.append(high + slack * dice.uniform(-0.5, 1.0))
            labels.append((2, 3) if dice.chance(chance) else (-1, -1))
        self.points += [np.stack(lower), np.stack(upper)]
        self.labels += [np.array([label[0] for label in labels]), np.array([label[1] for label in labels])]

    def click(self, logits_B1zyx: Optional[Tensor]) -> None:
        """Append a click for each target: in it, or in the largest error of the given logits."""
        predicted = np.zeros_like(self.truth) if logits_B1zyx is None else (logits_B1zyx[:, 0] > 0).cpu().numpy()
        points, labels = [], []
        self._errors = []
        for truth, mask, dice in zip(self.truth, predicted, self.dice):
            error = truth ^ mask
            if not error.any():
                points.append(np.zeros(3))
                labels.append(-1)
                self._errors.append(None)
                continue
            index = self._voxel(error, dice)
            points.append(2.0 * index + 0.5)
            labels.append(int(truth[tuple(index)]))
            self._errors.append((error, tuple(index)))
        self.points.append(np.stack(points))
        self.labels.append(np.array(labels))

    def no_click(self) -> None:
        """Append padding: a round in which the user does nothing."""
        self._errors = [None] * len(self.truth)
        self.points.append(np.zeros((len(self.truth), 3)))
        self.labels.append(np.full(len(self.truth), -1))

    def _voxel(self, error_zyx: np.ndarray, dice: Dice) -> np.ndarray:
        """A voxel of the error; in the first style one deep inside, since users do not hit the very centre."""
        style = dice.pick(self.styles)
        low, high = bounding_box(error_zyx)  # type: ignore[misc]
        error = np.ascontiguousarray(error_zyx[box_slices((low, high))])
        depth = edt.edt(error, black_border=True)
        if style == 0:
            candidates = np.argwhere(depth >= dice.uniform(0.6, 1.0) * depth.max())
        else:
            candidates = np.argwhere(error if style == 1 else (depth > 0) & (depth <= 1))
        return candidates[dice.integer(0, len(candidates) - 1)] + np.array(low)

    def clicked_error(self) -> Tensor:
        """The connected piece of the error that the newest click lies in, (B, 1, z, y, x) bool; empty without one."""
        pieces = np.zeros_like(self.truth)
        for piece, found in zip(pieces, self._errors):
            if found is not None:
                error, index = found
                box = bounding_box(error)
                assert box is not None  # the click lies in it
                parts = cc3d.connected_components(np.ascontiguousarray(error[box_slices(box)]), connectivity=6)
                piece[box_slices(box)] = parts == parts[tuple(np.subtract(index, box[0]))]
        return torch.from_numpy(pieces[:, None]).to(self.device)

    @property
    def points_BN3(self) -> Tensor:
        return torch.from_numpy(np.stack(self.points, axis=1)).float().to(self.device)

    @property
    def labels_BN(self) -> Tensor:
        return torch.from_numpy(np.stack(self.labels, axis=1)).long().to(self.device)


def corrupted(targets_B1zyx: Tensor, dice: Dice) -> Tensor:
    """Logits of a faulty mask of each target, as a user would hand over for refinement: grown, shrunk or patchy."""
    size = targets_B1zyx.shape[2]
    own = dice.fork(len(targets_B1zyx))
    noise = torch.stack([d.smooth_noise(1, size, d.uniform(3.0, size / 2)) for d in own])
    blurred = F.avg_pool3d(targets_B1zyx, 5, stride=1, padding=2)
    level = blurred + dice.uniform(0.1, 0.5) * noise - dice.uniform(0.3, 0.7)
    return torch.where(level > 0, 4.0, -4.0)


def visibility(crop_ZYX: Tensor, mask_ZYX: Tensor) -> float:
    """How well a structure stands out: contrast to its surroundings over the spread of both, about 0 to 3.

    What cannot be seen teaches a model to answer with a blob, so such targets are drawn less often.
    """
    image = F.avg_pool3d(crop_ZYX[None, None].float(), 2)[0, 0]
    inside = F.avg_pool3d(mask_ZYX[None, None].float(), 2)
    near = F.max_pool3d(inside, 5, stride=1, padding=2)[0, 0] > 0
    core, shell = inside[0, 0] > 0.5, near & (inside[0, 0] < 0.1)
    if int(core.sum()) < 4 or int(shell.sum()) < 4:
        return 0.0
    within, around = image[core], image[shell]
    spread = (within.var() + around.var()).sqrt().clamp_min(0.02)
    return float((within.mean() - around.mean()).abs() / spread)
