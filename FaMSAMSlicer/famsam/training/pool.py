"""A pool of ready training crops, drawn so that a run that was cut off goes on exactly as it would have."""

from __future__ import annotations

from typing import Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from ..errors import DatasetError
from .config import TrainConfig
from .sample import Dice, Sample, Source
from .targets import draw_targets, halve, visibility

Normalise = Callable[[Tensor, Tensor], Tensor]
"""(raw crop, which voxels lie inside the scan), both (B, 1, Z, Y, X) -> (B, C, Z, Y, X), a channel for each network."""

MOST_DRAWS = 1000
"""So many crops in a row without a structure to click on mean that the source has none."""


class CropPool:
    """Ready crops with their targets, each served several times under random flips and axis orders.

    Every crop has a number and is drawn with dice of its own, so that ``state()``, a few numbers, is all that is needed
    to go on with the same crops; they are drawn again when they are wanted.
    """

    def __init__(
        self, source: Source, config: TrainConfig, normalise: Normalise, device: torch.device, seed: int
    ) -> None:
        self.source, self.config, self.normalise, self.device, self.seed = source, config, normalise, device, seed
        self.items: Dict[int, Optional[Tuple[Tensor, Tensor]]] = {}
        self.made = 0
        self.size = 0
        self.owed = 0.0

    def batch(self, size: int, count: int, dice: Dice) -> Tuple[Tensor, Tensor]:
        """Normalised crops (B, C, Z, Y, X) and targets (B * T, 1, z, y, x) as fractions, T the same for each crop.

        ``count`` is B; of a team of processes each gets so many, as if one process had been asked for all of them.
        """
        if size != self.size:
            self.items, self.size = {}, size
        least = count * dice.part[1]
        start = max(least, self.config.pool // 8)
        fresh = self.config.fresh * (self.config.sizes[0][1] / size) ** 2
        self.owed = self.owed + fresh if len(self.items) >= start else float(start)
        while self.owed >= 1:
            self.owed -= 1
            self.items[self.made] = None
            self.made += 1
        self.items = {n: self.items[n] for n in sorted(self.items)[-max(least, self.config.pool) :]}
        numbers = list(self.items)
        own = dice.fork(count)
        chosen = [self._item(numbers[d.integer(0, len(numbers) - 1)]) for d in own]
        crops, targets = zip(*(_turned(*item, d) for item, d in zip(chosen, own)))
        return torch.stack(crops), torch.cat(targets)

    def state(self) -> Dict[str, float]:
        """What ``resume`` needs, as plain numbers."""
        return {"size": self.size, "owed": self.owed, "made": self.made, "kept": len(self.items)}

    def resume(self, state: Dict[str, float]) -> None:
        """Go on where a pool of the same source, configuration and seed stood."""
        self.size, self.owed, self.made = int(state["size"]), float(state["owed"]), int(state["made"])
        self.items = dict.fromkeys(range(self.made - int(state["kept"]), self.made))

    def _item(self, number: int) -> Tuple[Tensor, Tensor]:
        item = self.items[number]
        if item is None:
            item = self.items[number] = self._drawn(Dice(self.seed * 1_000_003 + number, self.device))
        return item

    def _drawn(self, dice: Dice) -> Tuple[Tensor, Tensor]:
        for _ in range(MOST_DRAWS):
            sample = self.source(self.size, dice)
            crop = self.normalise(_from_zero(sample)[None, None], sample.inside_ZYX[None, None])[0]
            drawn = draw_targets(sample, self.config.targets, dice)
            targets = [target for target in drawn if dice.chance(0.05 + visibility(crop[0], target))]
            if targets:
                break
        else:
            raise DatasetError(f"Expected structures to click on, found none in {MOST_DRAWS} training crops.")
        while len(targets) < self.config.targets:
            targets.append(targets[dice.integer(0, len(targets) - 1)])
        return crop.to(torch.float16), halve(torch.stack(targets)).to(torch.float16)


def _from_zero(sample: Sample) -> Tensor:
    """The image, shifted so that the darkest voxel of the scan is 0: the published networks mean voxels above 0."""
    image, inside = sample.image_ZYX, sample.inside_ZYX
    return (image - image[inside].min()) * inside if bool(inside.any()) else image


def _turned(crop_CZYX: Tensor, targets_T1zyx: Tensor, dice: Dice) -> Tuple[Tensor, Tensor]:
    """The same random flip and axis order for a crop and its targets."""
    order = torch.randperm(3, generator=dice.host).tolist()
    flips = [a for a in range(3) if dice.chance(0.5)]
    crop = crop_CZYX.float().permute(0, *(1 + a for a in order)).flip([1 + a for a in flips])
    targets = targets_T1zyx.float().permute(0, 1, *(2 + a for a in order)).flip([2 + a for a in flips])
    return crop, targets
