"""Simulated clicks for all targets of a batch at once, without a look at single values: for training on a GPU.

On a CPU ``targets.ClickSimulator`` does the same target by target, only where an error lies. Shape legend as there.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..model import line_minimum
from .sample import Dice

FAR = 1e6
"""A squared distance that no voxel has."""
BENDS_BETWEEN_LOOKS = 3
"""So often a flood runs along every axis between two looks at whether it still spreads."""
BENDS_UNSEEN = 12
"""So often where a look would wait for a GPU: what bends more often is left out."""


class ClicksAtOnce:
    """The prompts so far of a batch of targets, and the next click for each; see ``targets.ClickSimulator``.

    Clicks follow the same rules, with other random numbers: all targets share the first of the dice forked.
    """

    def __init__(self, targets_B1zyx: Tensor, dice: Dice, styles: Sequence[float] = (1.0, 0.0, 0.0)) -> None:
        target_Bzyx = targets_B1zyx[:, 0].float()
        most_B111 = target_Bzyx.amax((1, 2, 3), keepdim=True)
        # Structures thinner than a logit voxel keep their densest voxels.
        self.truth = torch.where(most_B111 > 0.5, target_Bzyx > 0.5, target_Bzyx >= 0.8 * most_B111)
        self.device = targets_B1zyx.device
        self.generator = dice.fork(1)[0].generator
        total = sum(styles)
        self.deep, self.anywhere = styles[0] / total, (styles[0] + styles[1]) / total
        self.points: List[Tensor] = []
        self.labels: List[Tensor] = []
        self._error: Optional[Tuple[Tensor, Tensor]] = None

    def add_boxes(self, chance: float) -> None:
        """Give some targets a loose bounding box, as two corner prompts."""
        low_B3, high_B3 = bounding_boxes(self.truth)
        low_B3, high_B3 = low_B3 * 2.0, high_B3 * 2.0 + 1
        slack_B3 = 0.1 * (high_B3 - low_B3) + 1
        boxed_B = self._random(len(self.truth)) < chance
        self.points.append(low_B3 - slack_B3 * (1.5 * self._random(len(self.truth), 1) - 0.5))
        self.points.append(high_B3 + slack_B3 * (1.5 * self._random(len(self.truth), 1) - 0.5))
        self.labels += [torch.where(boxed_B, label, -1) for label in (2, 3)]

    def click(self, logits_B1zyx: Optional[Tensor]) -> None:
        """Append a click for each target: in it, or in the largest error of the given logits."""
        error_Bzyx = self.truth if logits_B1zyx is None else self.truth ^ (logits_B1zyx[:, 0] > 0)
        wrong_B = error_Bzyx.flatten(1).any(1)
        flat_B = self._voxels(error_Bzyx)
        height, width = self.truth.shape[2:]
        index_B3 = torch.stack([flat_B // (height * width), flat_B // width % height, flat_B % width], dim=1)
        label_B = self.truth.flatten(1).gather(1, flat_B[:, None])[:, 0].long()
        self.points.append(torch.where(wrong_B[:, None], 2.0 * index_B3 + 0.5, 0.0))
        self.labels.append(torch.where(wrong_B, label_B, -1))
        self._error = error_Bzyx, flat_B

    def no_click(self) -> None:
        """Append padding: a round in which the user does nothing."""
        self._error = None
        self.points.append(torch.zeros(len(self.truth), 3, device=self.device))
        self.labels.append(torch.full((len(self.truth),), -1, device=self.device))

    def clicked_error(self) -> Tensor:
        """The connected piece of the error that the newest click lies in, (B, 1, z, y, x) bool; empty without one."""
        if self._error is None:
            return torch.zeros_like(self.truth)[:, None]
        error_Bzyx, flat_B = self._error
        return flooded(error_Bzyx, flat_B)[:, None]

    def _voxels(self, error_Bzyx: Tensor) -> Tensor:
        """Flat index of a voxel of each error, (B,); in the first style one deep inside."""
        count = len(error_Bzyx)
        squared_BV = squared_depth(error_Bzyx).flatten(1)
        least_B = (0.6 + 0.4 * self._random(count)).square() * squared_BV.amax(1)
        style_B1 = self._random(count, 1)
        border_BV = squared_BV <= torch.where(style_B1 >= self.anywhere, 1.0, float("inf"))
        deep_BV = squared_BV >= torch.where(style_B1 < self.deep, least_B[:, None], 0.0)
        candidates_BV = error_Bzyx.flatten(1) & border_BV & deep_BV
        return (candidates_BV * (1e-3 + self._random(*candidates_BV.shape))).argmax(1)

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device)

    @property
    def points_BN3(self) -> Tensor:
        return torch.stack(self.points, dim=1)

    @property
    def labels_BN(self) -> Tensor:
        return torch.stack(self.labels, dim=1)


def squared_depth(mask_Bzyx: Tensor) -> Tensor:
    """Squared distance in voxels of what is in a mask to what is not, as is all beyond the border; exact, float32.

    Along one axis the nearest is found by comparing all pairs: d²(i) = min over j of d²(j) + (i - j)² (Felzenszwalb
    and Huttenlocher 2012, eq. 2, whose lower envelopes would be slow on a GPU).
    """
    squared = torch.where(mask_Bzyx, FAR, 0.0).contiguous()
    for axis in range(3):
        line_minimum.nearest_squared_runs(squared, axis)
    for axis, count in enumerate(mask_Bzyx.shape[1:]):
        place = torch.arange(count, device=mask_Bzyx.device, dtype=torch.float32)
        to_border = torch.minimum(place + 1, count - place).square()
        squared = torch.minimum(squared, to_border.view([-1 if a == axis else 1 for a in range(3)]))
    return squared


def flooded(mask_Bzyx: Tensor, flat_B: Tensor) -> Tensor:
    """The connected piece (by faces) of each mask that holds a voxel, given by its flat index; bool, empty if the voxel
    is not in the mask. On a GPU the part of it that few bends lead to, see ``BENDS_UNSEEN``."""
    outside_Bzyx = (~mask_Bzyx).float()
    # Half of a wall on either side of it, so that to enter one costs as much as to leave it.
    walls = [(outside_Bzyx.cumsum(1 + axis) - 0.5 * outside_Bzyx)[None].contiguous() for axis in range(3)]
    start_B1 = torch.where(mask_Bzyx.flatten(1).gather(1, flat_B[:, None]), 0.0, FAR)
    distance_BV = torch.full_like(outside_Bzyx, FAR).flatten(1).scatter(1, flat_B[:, None], start_B1)
    distance_11Bzyx = distance_BV.view_as(outside_Bzyx)[None, None]
    unseen = line_minimum.is_fast_on(distance_11Bzyx)
    before, reached = -1, 0
    while before != reached:
        for _ in range(BENDS_UNSEEN if unseen else BENDS_BETWEEN_LOOKS):
            for axis, wall in enumerate(walls):
                line_minimum.cheapest_runs(distance_11Bzyx, wall, axis)
        piece_Bzyx = distance_11Bzyx[0, 0] < 0.25
        if unseen:
            break
        before, reached = reached, int(piece_Bzyx.sum())
    return piece_Bzyx


def bounding_boxes(mask_Bzyx: Tensor) -> Tuple[Tensor, Tensor]:
    """Lowest and highest index (z, y, x) of each mask's voxels, (B, 3) each; a mask without any has the whole crop."""
    lows, highs = [], []
    for axis in (1, 2, 3):
        present_Bn = mask_Bzyx.movedim(axis, 1).flatten(2).any(2).byte()
        lows.append(present_Bn.argmax(1))
        highs.append(present_Bn.shape[1] - 1 - present_Bn.flip(1).argmax(1))
    return torch.stack(lows, dim=1), torch.stack(highs, dim=1)
