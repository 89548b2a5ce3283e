"""What a function computes on a GPU, recorded for each set of shapes that comes again, and replayed (CUDA graphs).

A network as small as ours spends most of its time on a GPU waiting for the next kernel to be named; a recording names
them all at once. Arguments and results may be tensors, None, and dataclasses or tuples of them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
from torch import Tensor

from .model.base import PromptableModel
from .model.fusion_decoder import FusionDecoder
from .runtime import autocast, cast_once

Call = Callable[[], Any]
Recorder = Callable[[Call], Tuple[Call, Any]]
"""A call -> what does the same on the same tensors again, and the result whose tensors it then fills."""

MOST = 12
"""Recordings kept of one function, the least recently used dropped first: each holds its tensors."""

RECORDED = ("encode", "decode")

logger = logging.getLogger(__name__)

_recording = threading.Lock()  # one at a time, since all of them are made on the same stream
_playing = threading.Lock()  # likewise, since all of them compute in the same memory: results are copied in between


def record_calls(model: PromptableModel, record: Optional[Recorder] = None) -> None:
    """Have a model's ``encode`` and ``decode`` recorded from now on, in the model's precision and without gradients.

    Args:
        model: complete, on its device.
        record: how; by default as CUDA graphs.
    """
    for module in model.modules():
        if isinstance(module, FusionDecoder):
            module.remembers = False  # a replay reads the next crop from the same tensors
    record = record or functools.partial(cuda_graph, device=model.device)
    with unrecorded(model):
        computing = cast_once(model)
    for name in RECORDED:
        setattr(model, name, Recordings(_in_precision(computing, getattr(type(model), name)), record))


@contextmanager
def unrecorded(model: PromptableModel) -> Iterator[None]:
    """Within the ``with`` block, a model's calls are not recorded and not replayed."""
    recordings = {name: vars(model).pop(name) for name in RECORDED if name in vars(model)}
    try:
        yield
    finally:
        vars(model).update(recordings)


def _in_precision(model: PromptableModel, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with torch.inference_mode(), autocast(model.device, model.precision):
            return method(model, *arguments)

    return call


class _Recording(NamedTuple):
    arguments: Any
    replay: Call
    result: Any


class Recordings:
    """A function, recorded for each set of shapes that it is called with twice; results are copies, free to be kept.

    What cannot be recorded, or comes for the first time and perhaps never again, is called as it is.

    Args:
        function: of tensors; it must compute the same kernels whatever the tensors hold.
        record: how.
        most: see ``MOST``.
    """

    def __init__(self, function: Callable[..., Any], record: Recorder, most: int = MOST) -> None:
        self.function, self.record, self.most = function, record, most
        self._kept: OrderedDict[Any, Optional[_Recording]] = OrderedDict()
        self._seen: Set[Any] = set()

    def __call__(self, *arguments: Any) -> Any:
        with _playing, torch.inference_mode():
            return self._called(arguments)

    def _called(self, arguments: Tuple[Any, ...]) -> Any:
        shapes = _shapes(arguments)
        if shapes not in self._seen:
            self._seen.add(shapes)
            return self.function(*arguments)
        if shapes not in self._kept:
            self._kept[shapes] = self._recorded(arguments)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shapes)
        recording = self._kept[shapes]
        if recording is None:
            return self.function(*arguments)
        for own, given in zip(_tensors(recording.arguments), _tensors(arguments)):
            own.copy_(given)
        recording.replay()
        return _copied(recording.result)

    def _recorded(self, arguments: Any) -> Optional[_Recording]:
        own = _copied(arguments)
        try:
            replay, result = self.record(lambda: self.function(*own))
        except RuntimeError as error:
            logger.warning("A call is not recorded, which costs time and nothing else: %s", error)
            return None
        return _Recording(own, replay, result)


def cuda_graph(call: Call, device: torch.device, rehearsals: int = 3) -> Tuple[Call, Any]:
    """Record a call on a CUDA device as a graph.

    All graphs of a device share the memory of what they compute on the way; replay them on one stream only.

    Args:
        rehearsals: so often it is called before, since the first calls allocate buffers, compile kernels and choose
            among algorithms. Without any, it must have been called before, on ``recording_stream``.

    Raises:
        RuntimeError: the call waits for the GPU, or allocates in a way that cannot be recorded.
    """
    with _recording, torch.cuda.device(device):
        aside, pool = _aside(device)
        aside.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(aside):
            for _ in range(rehearsals):
                call()
            with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                result = call()
        torch.cuda.current_stream().wait_stream(aside)
    return graph.replay, result


def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """On which all calls on a device are recorded."""
    return _aside(device)[0]


@functools.cache
def _aside(device: torch.device) -> Tuple[torch.cuda.Stream, Any]:
    """The stream on which all calls on a device are recorded (each stream has large buffers), and the memory's pool."""
    return torch.cuda.Stream(device), torch.cuda.graph_pool_handle()


def _shapes(value: Any) -> Any:
    """What decides whether a recording fits, hashable."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.stride()
    parts = _parts(value)
    return value if parts is None else tuple(map(_shapes, parts))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value) or ():
        yield from _tensors(part)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    parts = _parts(value)
    if parts is None:
        return value
    copies = [_copied(part) for part in parts]
    return tuple(copies) if isinstance(value, tuple) else type(value)(*copies)


def _parts(value: Any) -> Optional[List[Any]]:
    """What a tuple or a dataclass is made of; None for anything else."""
    if isinstance(value, tuple):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None
