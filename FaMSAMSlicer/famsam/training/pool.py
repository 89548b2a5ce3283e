"""A pool of ready training crops, drawn so that a run that was cut off goes on exactly as it would have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from ..errors import DatasetError
from .config import TrainConfig
from .sample import Dice, Sample, Source
from .targets import draw_targets, halve, visibility

Normalise = Callable[[Tensor, Tensor], Tensor]
"""(raw crop, which voxels lie inside the scan), both (B, 1, Z, Y, X) -> (B, C, Z, Y, X), a channel for each network."""

SMALL_SHARE, SMALL_CHANCE = 0.2, 0.12
"""A target that spans less than this share of the crop's edge is kept with this chance only: a session looks more
closely at what is that small."""
MOST_DRAWS = 1000
"""So many crops in a row without a structure to click on mean that the source has none."""


@dataclass
class _Shelf:
    """The crops of one size by their numbers, None for one not drawn yet, and the share of the next that is due."""

    owed: float = 0.0
    items: Dict[int, Optional[Tuple[Tensor, Tensor]]] = field(default_factory=dict)


class CropPool:
    """Ready crops with their targets, each served several times, turned by chance; see ``TrainConfig.turn_chance``.

    Every crop has a number and is drawn with dice of its own, so that ``state()``, a few numbers, is all that is needed
    to go on with the same crops; they are drawn again when they are wanted. Each size has crops of its own.
    """

    def __init__(
        self, source: Source, config: TrainConfig, normalise: Normalise, device: torch.device, seed: int
    ) -> None:
        self.source, self.config, self.normalise, self.device, self.seed = source, config, normalise, device, seed
        self.shelves: Dict[int, _Shelf] = {}
        self.made = 0

    def batch(self, size: int, count: int, dice: Dice) -> Tuple[Tensor, Tensor]:
        """Normalised crops (B, C, Z, Y, X) and targets (B * T, 1, z, y, x) as fractions, T the same for each crop.

        ``count`` is B; of a team of processes each gets so many, as if one process had been asked for all of them.
        """
        least = count * dice.part[1]
        shelf = self.shelves.setdefault(size, _Shelf())
        fresh = self.config.fresh * (self.config.sizes[0][1] / size) ** 2
        start = max(least, self.config.pool // 8)
        shelf.owed = shelf.owed + fresh if len(shelf.items) >= start else float(start)
        while shelf.owed >= 1:
            shelf.owed -= 1
            shelf.items[self.made] = None
            self.made += 1
        shelf.items = {n: shelf.items[n] for n in sorted(shelf.items)[-max(least, self.config.pool) :]}
        numbers = list(shelf.items)
        own = dice.fork(count)
        chosen = [self._item(size, numbers[d.integer(0, len(numbers) - 1)]) for d in own]
        crops, targets = zip(*(_turned(*item, d, self.config.turn_chance) for item, d in zip(chosen, own)))
        return torch.stack(crops), torch.cat(targets)

    def state(self) -> Dict[str, Any]:
        """What ``resume`` needs, as plain numbers."""
        shelves = {size: {"owed": shelf.owed, "numbers": list(shelf.items)} for size, shelf in self.shelves.items()}
        return {"made": self.made, "shelves": shelves}

    def resume(self, state: Dict[str, Any]) -> None:
        """Go on where a pool of the same source, configuration and seed stood."""
        self.made = int(state["made"])
        self.shelves = {
            int(size): _Shelf(float(kept["owed"]), dict.fromkeys(kept["numbers"]))
            for size, kept in state["shelves"].items()
        }

    def _item(self, size: int, number: int) -> Tuple[Tensor, Tensor]:
        items = self.shelves[size].items
        item = items[number]
        if item is None:
            item = items[number] = self._drawn(size, Dice(self.seed * 1_000_003 + number, self.device))
        return item

    def _drawn(self, size: int, dice: Dice) -> Tuple[Tensor, Tensor]:
        for _ in range(MOST_DRAWS):
            sample = self.source(size, dice)
            crop = self.normalise(_from_zero(sample)[None, None], sample.inside_ZYX[None, None])[0]
            drawn = draw_targets(sample, 2 * self.config.targets, dice)
            kept = [target for target in drawn if _span(target) >= SMALL_SHARE * size or dice.chance(SMALL_CHANCE)]
            seen = kept[: self.config.targets]
            targets = [target for target in seen if dice.chance(0.05 + visibility(crop[0], target))]
            if targets:
                break
        else:
            raise DatasetError(f"Expected structures to click on, found none in {MOST_DRAWS} training crops.")
        while len(targets) < self.config.targets:
            targets.append(targets[dice.integer(0, len(targets) - 1)])
        return crop.to(torch.float16), halve(torch.stack(targets)).to(torch.float16)


def _span(mask_ZYX: Tensor) -> int:
    """The longest edge of a mask's bounding box."""
    present = (mask_ZYX.flatten(1).any(1), mask_ZYX.any(2).any(0), mask_ZYX.any(0).any(0))
    return max(int(line.nonzero()[-1] - line.nonzero()[0]) + 1 for line in present)


def _from_zero(sample: Sample) -> Tensor:
    """The image, shifted so that the darkest voxel of the scan is 0: the published networks mean voxels above 0."""
    image, inside = sample.image_ZYX, sample.inside_ZYX
    return (image - image[inside].min()) * inside if bool(inside.any()) else image


def _turned(crop_CZYX: Tensor, targets_T1zyx: Tensor, dice: Dice, chance: float) -> Tuple[Tensor, Tensor]:
    """A crop and its targets, with ``chance`` under a random axis order and flips, else perhaps with x mirrored."""
    any_way = dice.chance(chance)
    order = torch.randperm(3, generator=dice.host).tolist() if any_way else [0, 1, 2]
    flips = [a for a in range(0 if any_way else 2, 3) if dice.chance(0.5)]
    crop = crop_CZYX.float().permute(0, *(1 + a for a in order)).flip([1 + a for a in flips])
    targets = targets_T1zyx.float().permute(0, 1, *(2 + a for a in order)).flip([2 + a for a in flips])
    return crop, targets
