"""Real anatomy turned a little, stretched and bent: one scan stands for many patients of about the same position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .sample import Dice

MARGIN = 1.2
"""A crop is bent out of one so many times as wide, so that hardly anything comes from beyond it."""
MOST_DEGREES = 15.0
MOST_STRETCH = 1.15
BENDING_SHARE = 0.04
"""Usual displacement of the bending, as a share of the crop's edge."""


def wider(size: int) -> int:
    """Edge of the crop that one of ``size`` voxels an edge is bent out of; as much is added on each side."""
    return size + 2 * math.ceil(0.5 * (MARGIN - 1) * size)


@dataclass(frozen=True)
class Bending:
    """Where each voxel of a bent crop comes from.

    Attributes:
        grid_ZYX3: (1, Z, Y, X, 3) places in the wider crop, x first, -1..1 between its outer voxels' centres.
    """

    grid_ZYX3: Tensor

    @classmethod
    def draw(cls, size: int, dice: Dice) -> Bending:
        """A random one for crops of ``size`` voxels an edge."""
        turned = torch.eye(3)
        for first, second in ((0, 1), (0, 2), (1, 2)):
            angle = math.radians(dice.uniform(-MOST_DEGREES, MOST_DEGREES))
            turn = torch.eye(3)
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            turned = turned @ turn
        stretches = torch.tensor([dice.log_uniform(1 / MOST_STRETCH, MOST_STRETCH) for _ in range(3)])
        share = (size - 1) / (wider(size) - 1)
        matrix = share * turned * stretches
        theta = torch.cat([matrix, torch.zeros(3, 1)], dim=1)[None].to(dice.device)
        grid = F.affine_grid(theta, [1, 1, size, size, size], align_corners=True)
        strength = 2 * share * BENDING_SHARE * dice.uniform(0.0, 1.0)
        bends = dice.smooth_noise(3, size, dice.uniform(0.3, 0.6) * size)
        return cls(grid + strength * bends.permute(1, 2, 3, 0)[None])

    def image(self, image_ZYX: Tensor, inside_ZYX: Tensor) -> Tensor:
        """A wider crop's intensities, linearly interpolated; what lies beyond the crop or the scan is zero."""
        return self._sampled(image_ZYX * inside_ZYX, "bilinear")

    def mask(self, mask_ZYX: Tensor) -> Tensor:
        """A wider crop's mask (bool), False beyond the crop."""
        return self._sampled(mask_ZYX.float(), "nearest") > 0.5

    def labels(self, labels_ZYX: Tensor) -> Tensor:
        """A wider crop's labels, 0 beyond the crop."""
        return self._sampled(labels_ZYX.float(), "nearest").long()

    def _sampled(self, values_ZYX: Tensor, mode: str) -> Tensor:
        return F.grid_sample(values_ZYX[None, None].float(), self.grid_ZYX3, mode=mode, align_corners=True)[0, 0]


def drawn(size: int, dice: Dice, chance: float) -> Optional[Bending]:
    """A random bending with that chance, else None."""
    return Bending.draw(size, dice) if dice.chance(chance) else None
