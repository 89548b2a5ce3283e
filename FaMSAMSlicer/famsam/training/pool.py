"""A pool of ready training crops, drawn so that a run that was cut off goes on exactly as it would have."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DatasetError
from .config import TrainConfig
from .sample import Dice, Sample, Source
from .targets import draw_targets, halve, visibility

_LOG = logging.getLogger(__name__)

Normalise = Callable[[Tensor, Tensor], Tensor]
"""(raw crop, which voxels lie inside the scan), both (B, 1, Z, Y, X) -> (B, C, Z, Y, X), a channel for each network."""

SMALL_SHARE, SMALL_CHANCE = 0.2, 0.12
"""A target that spans less than this share of the crop's edge is kept with this chance only: a session looks more
closely at what is that small."""
MOST_DRAWS = 1000
"""So many crops in a row without a structure to click on mean that the source has none."""


Item = Tuple[Tensor, Tensor]
"""A crop (C, Z, Y, X) and some of its structures (T, 1, z, y, x), both float16."""


@dataclass
class _Shelf:
    """The crops of one size by their numbers, None for one not drawn yet, and the share of the next that is due."""

    owed: float = 0.0
    items: Dict[int, Union[Item, Future[Any], None]] = field(default_factory=dict)

    def drawn(self, number: int) -> bool:
        """Whether a crop is there."""
        item = self.items[number]
        return item.done() if isinstance(item, Future) else item is not None


@dataclass(frozen=True)
class CropMaker:
    """Draws the crop of a number, always the same one, on a device; what worker processes do."""

    source: Source
    config: TrainConfig
    normalise: Normalise
    seed: int

    def __call__(self, size: int, number: int, device: torch.device) -> Item:
        dice = Dice(self.seed * 1_000_003 + number, device)
        for _ in range(MOST_DRAWS):
            sample = self.source(size, dice)
            crop = self.normalise(_from_zero(sample)[None, None], sample.inside_ZYX[None, None])[0]
            drawn = draw_targets(sample, self.config.kept_targets + self.config.targets, dice)
            kept = [target for target in drawn if _span(target) >= SMALL_SHARE * size or dice.chance(SMALL_CHANCE)]
            seen = kept[: self.config.kept_targets]
            targets = [target for target in seen if dice.chance(0.05 + visibility(crop[0], target))]
            if targets:
                return crop.to(torch.float16), halve(torch.stack(targets)).to(torch.float16)
        raise DatasetError(f"Expected structures to click on, found none in {MOST_DRAWS} training crops.")


class CropPool:
    """Ready crops with their targets, each served several times, turned by chance; see ``TrainConfig.turn_chance``.

    Every crop has a number and is drawn with dice of its own, so that ``state()``, a few numbers, is all that is needed
    to go on with the same crops; they are drawn again when they are wanted. Each size has crops of its own.

    Args:
        workers: so many processes draw the crops, on the CPU; 0: this one does, on ``device``, when it needs them. It
            goes on alone if one of them is killed.
    """

    def __init__(
        self,
        source: Source,
        config: TrainConfig,
        normalise: Normalise,
        device: torch.device,
        seed: int,
        workers: int = 0,
    ) -> None:
        if workers < 0:
            raise ConfigError(f"Expected a number of workers of at least 0, got {workers}.")
        self.maker = CropMaker(source, config, normalise, seed)
        self.config, self.device = config, device
        self.shelves: Dict[int, _Shelf] = {}
        self.made = 0
        self.most_waiting = max(config.ahead, workers)
        self.workers = _workers(workers, self.maker) if workers else None

    def batch(self, size: int, count: int, dice: Dice) -> Tuple[Tensor, Tensor]:
        """Normalised crops (B, C, Z, Y, X) and targets (B * T, 1, z, y, x) as fractions, T the same for each crop.

        ``count`` is B; of a team of processes each gets so many, as if one process had been asked for all of them.
        """
        least = count * dice.part[1]
        shelf = self.shelves.setdefault(size, _Shelf())
        fresh = self.config.fresh * (self.config.sizes[0][1] / size) ** 2
        start = max(least, self.config.pool // 8) + self.config.ahead
        shelf.owed = shelf.owed + fresh if len(shelf.items) >= start else float(start)
        hurried = self.workers is not None and self.config.minutes > 0
        waiting = sum(not shelf.drawn(number) for number in shelf.items) if hurried else 0
        room = max(0, start - len(shelf.items), self.most_waiting - waiting) if hurried else shelf.owed
        shelf.owed = min(shelf.owed, room)
        while shelf.owed >= 1:
            shelf.owed -= 1
            shelf.items[self.made] = self._begun(size, self.made)
            self.made += 1
        dropped = sorted(shelf.items)[: -max(least, self.config.pool) - self.config.ahead]
        for number in dropped:
            item = shelf.items.pop(number)
            if isinstance(item, Future):
                item.cancel()
        numbers = sorted(shelf.items)
        ready = numbers[: max(least, len(numbers) - self.config.ahead)]
        if hurried:
            drawn = [number for number in numbers if shelf.drawn(number)]
            ready = drawn if len(drawn) >= least else numbers[:least]
        own = dice.fork(count)
        crops, targets = zip(*(self._served(size, ready[d.integer(0, len(ready) - 1)], d) for d in own))
        return torch.stack(crops), torch.cat(targets)

    def close(self) -> None:
        """Have the worker processes end."""
        if self.workers is not None:
            self.workers.shutdown(wait=False, cancel_futures=True)

    def state(self) -> Dict[str, Any]:
        """What ``resume`` needs, as plain numbers."""
        shelves = {size: {"owed": shelf.owed, "numbers": list(shelf.items)} for size, shelf in self.shelves.items()}
        return {"made": self.made, "shelves": shelves}

    def resume(self, state: Dict[str, Any]) -> None:
        """Go on where a pool of the same source, configuration and seed stood."""
        self.made = int(state["made"])
        self.shelves = {
            int(size): _Shelf(float(kept["owed"]), {n: self._begun(int(size), n) for n in kept["numbers"]})
            for size, kept in state["shelves"].items()
        }

    def _begun(self, size: int, number: int) -> Optional[Future[Any]]:
        """A crop that a worker begins to draw, if there are any."""
        if self.workers is None:
            return None
        try:
            return self.workers.submit(_drawn_by_worker, size, number)
        except BrokenProcessPool:
            self._go_on_alone()
            return None

    def _go_on_alone(self) -> None:
        if self.workers is None:
            return
        _LOG.warning(
            "A process that draws crops was killed, perhaps for want of memory: they are drawn without such processes "
            "from here on, which takes longer. To have some again, stop the run and start it again with fewer workers."
        )
        self.close()
        self.workers = None

    def _item(self, size: int, number: int) -> Item:
        items = self.shelves[size].items
        found = items[number]
        if isinstance(found, tuple):
            return found
        try:
            drawn = None if found is None else found.result()
        except BrokenProcessPool:
            self._go_on_alone()
            drawn = None
        if drawn is None:
            item = self.maker(size, number, self.device)
        else:
            crop, targets = (self._sent(torch.from_numpy(part)) for part in drawn)
            item = crop, targets
        items[number] = item
        return item

    def _sent(self, part: Tensor) -> Tensor:
        """To the device, which need not be idle."""
        return part.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else part

    def _served(self, size: int, number: int, dice: Dice) -> Tuple[Tensor, Tensor]:
        crop, targets = self._item(size, number)
        return _turned(crop, self._some(targets, dice), dice, self.config.turn_chance)

    def _some(self, targets_T1zyx: Tensor, dice: Dice) -> Tensor:
        """As many targets as a crop is clicked on in, of those that it has, some twice if they are too few."""
        count, wanted = len(targets_T1zyx), self.config.targets
        chosen = torch.randperm(count, generator=dice.host)[:wanted].tolist()
        chosen += [dice.integer(0, count - 1) for _ in range(wanted - len(chosen))]
        return torch.stack([targets_T1zyx[index] for index in chosen])  # a list would be sent to a GPU


_maker_of_worker: List[CropMaker] = []
"""Of a worker process, its one crop maker."""


def _workers(count: int, maker: CropMaker) -> ProcessPoolExecutor:
    """Processes that draw crops. On Linux they are forks, which share the scans' memory; Windows has none, and on macOS
    they may crash in Apple's libraries."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    return ProcessPoolExecutor(count, context, _become_worker, (maker,))


def _become_worker(maker: CropMaker) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains is interrupted too, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _maker_of_worker[:] = [maker]


def _end_with_parent() -> None:
    """End this process when its parent was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _drawn_by_worker(size: int, number: int) -> Tuple[np.ndarray, ...]:
    crop, targets = _maker_of_worker[0](size, number, torch.device("cpu"))
    return crop.numpy(), targets.numpy()


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
