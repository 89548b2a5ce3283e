"""Training steps on a GPU, recorded as CUDA graphs and replayed.

A step of a network as small as ours is some ten thousand short kernels, and a GPU waits for their names most of the
time. What decides which kernels run, the plan and the shapes of a batch, makes a few kinds of steps; each is recorded
once, from the crops to the gradients, and so is what the optimisers do with them.
"""

from __future__ import annotations

import functools
import logging
from contextlib import contextmanager
from typing import Any, Dict, Hashable, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn

from ..recordings import Call, Recorder, cuda_graph, recording_stream
from ..runtime import autocast
from .config import TrainConfig
from .learner import Learner, Plan, Values
from .sample import Dice

logger = logging.getLogger(__name__)


class Replays:
    """Calls that are made as they are the first time, recorded the second, and replayed from then on.

    The first time leaves buffers, compiled kernels and chosen algorithms, none of which a recording may begin with.

    Args:
        record: how.
    """

    def __init__(self, record: Recorder) -> None:
        self.record = record
        self._begun: Set[Hashable] = set()
        self._kept: Dict[Hashable, Optional[Tuple[Call, Any]]] = {}

    def __call__(self, kind: Hashable, call: Call) -> Any:
        """What ``call`` returns, which the next call may write over. It must read the same tensors every time that it
        is of this kind."""
        if kind not in self._begun:
            self._begun.add(kind)
            return call()
        if kind not in self._kept:
            self._kept[kind] = self._recorded(call)
        kept = self._kept[kind]
        if kept is None:
            return call()
        replay, result = kept
        replay()
        return result

    def _recorded(self, call: Call) -> Optional[Tuple[Call, Any]]:
        try:
            return self.record(call)
        except RuntimeError as error:
            logger.warning("A training step is not recorded, which costs time and nothing else: %s", error)
            return None


class RecordedSteps:
    """What a step computes on one GPU: ``gradients`` of a batch, then ``update``.

    Steps that begin with a faulty mask are computed as usual, since each of those masks is drawn on the CPU.

    Args:
        learner: whose parameters learn.
        optimisers: over all of them, ready for rates that are tensors (``capturable``).
        record: how; by default as CUDA graphs.
    """

    def __init__(
        self,
        learner: Learner,
        optimisers: Sequence[torch.optim.Optimizer],
        config: TrainConfig,
        device: torch.device,
        record: Optional[Recorder] = None,
    ) -> None:
        self.learner, self.optimisers, self.config, self.device = learner, optimisers, config, device
        self.replays = Replays(record or functools.partial(cuda_graph, device=device, rehearsals=0))
        self.dice = DeviceDice(device)
        self._batches: Dict[Hashable, Tuple[Tensor, Tensor]] = {}
        self._end: Optional[torch.cuda.Event] = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the ``with`` block all work of this thread is on the stream of the recordings."""
        if self.device.type != "cuda":
            yield
            return
        aside, around = recording_stream(self.device), torch.cuda.current_stream(self.device)
        aside.wait_stream(around)
        with torch.cuda.stream(aside):
            yield
        around.wait_stream(aside)

    def gradients(self, crops: Tensor, targets: Tensor, plan: Plan, dice: Dice) -> Values:
        """Leave the gradients of a batch's loss in the parameters; what to log, as tensors."""
        self._wait()
        self._forget_gradients()
        if plan.mask:
            return self._computed(crops, targets, plan, dice)
        kind = plan, crops.shape, targets.shape
        if kind[1:] not in self._batches:
            self._batches[kind[1:]] = torch.empty_like(crops), torch.empty_like(targets)
        own = self._batches[kind[1:]]
        for kept, given in zip(own, (crops, targets)):
            kept.copy_(given)
        values = self.replays(kind, lambda: self._computed(*own, plan, self.dice))
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}

    def update(self) -> None:
        """Clip the gradients and have the optimisers step; gradients that are not finite count as 0."""
        learning = tuple(p.grad is not None for p in self.learner.parameters())
        self.replays(learning, self._updated)
        if self.device.type == "cuda":
            self._end = torch.cuda.Event()
            self._end.record()

    def _wait(self) -> None:
        """One step at a time, while the next batch is made ready."""
        if self._end is not None:
            self._end.synchronize()

    def _forget_gradients(self) -> None:
        """Set them to 0 where they are, since recordings add to the same tensors."""
        gradients = self._gradients()
        if gradients:
            torch._foreach_zero_(gradients)

    def _gradients(self) -> List[Tensor]:
        return [p.grad for p in self.learner.parameters() if p.grad is not None]

    def _computed(self, crops: Tensor, targets: Tensor, plan: Plan, dice: Dice) -> Values:
        with autocast(self.device, self.config.precision):
            loss, values = self.learner.planned(crops, targets, plan, dice)
        loss.backward()
        return {"loss": loss.detach(), **values}

    def _updated(self) -> None:
        nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        for gradient in self._gradients():
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        for optimiser in self.optimisers:
            optimiser.step()


class DeviceDice(Dice):
    """The device's own random numbers, other ones whenever a CUDA graph that draws them is replayed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(0, device)
        self.generator = None  # type: ignore[assignment]

    def fork(self, count: int) -> List[Dice]:
        return [self] * count


def with_tensor_rates(optimisers: Sequence[torch.optim.Optimizer], device: torch.device) -> None:
    """Have optimisers read their learning rates from tensors, as recordings of them must."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"


def set_rate(group: Dict[str, Any], rate: float) -> None:
    """Set a group's learning rate, whether it is a number or a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
