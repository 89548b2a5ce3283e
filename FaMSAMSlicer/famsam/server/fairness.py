"""One model for all sessions, lent call by call so that nobody waits for another's large scan.

Every encode and every decode is one turn. Who has had the least of the model goes first (start-time fair queueing), so
a session that encodes twenty crops lets another's click in after the crop it is at.

The model computes in a thread of its own, whoever calls it: OpenMP keeps helpers for every thread that asks for some,
and with more of them than cores it puts all to sleep between two operators, which takes half as long again.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Tuple

import torch

from ..errors import FamsamError
from ..runtime import autocast, thread_count


class ModelBusyError(FamsamError):
    """Somebody has the model, or waits for it, and this call was not to wait."""


class FairTurns:
    """A lock that passes to the waiter with the least time served, counted since all were last idle."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: List[Tuple[float, int]] = []
        self._order = itertools.count()
        self._busy = False
        self._now_s = 0.0  # virtual: the start tag of whoever was served last
        self._served_until_s: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    @contextmanager
    def turn(self, who: Any, *, waits: bool = True) -> Iterator[None]:
        """Wait for the turn and keep it for the ``with`` block; ``who`` is whom its time is counted for.

        Raises:
            ModelBusyError: it is not to wait, and somebody else has the turn or waits for it.
        """
        with self._changed:
            if not waits and (self._busy or self._waiting):
                raise ModelBusyError("the model is in use")
            start_s = max(self._now_s, self._served_until_s.get(who, 0.0))
            ticket = (start_s, next(self._order))
            heapq.heappush(self._waiting, ticket)
            self._changed.wait_for(lambda: not self._busy and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._busy = True
            self._now_s = start_s
        began_s = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._served_until_s[who] = start_s + time.monotonic() - began_s
                self._changed.notify_all()


class ModelThread:
    """The one thread in which torch may use several cores; ``keep_to_one_core`` is for all others."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        standing = torch.get_num_threads()
        self._executor.submit(lambda: _use_threads(thread_count(standing))).result()
        self._limited = threading.local()

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function there, and wait for what it returns or raises."""
        return self._executor.submit(function, *args, **kwargs).result()

    def keep_to_one_core(self) -> None:
        """Let torch use but one core in the calling thread from now on."""
        if not getattr(self._limited, "done", False):
            _use_threads(1)
            self._limited.done = True

    def close(self) -> None:
        """End the thread when it has done what it was given."""
        self._executor.shutdown(wait=False)


def _use_threads(count: int) -> None:
    """Of the calling thread; the first operator settles it, whatever others set later."""
    torch.set_num_threads(count)
    torch.zeros(2**16).add_(1)


class SharedModel:
    """One session's share of the model: the same attributes, with all that computes taken in turns."""

    def __init__(self, model: Any, turns: FairTurns, thread: ModelThread) -> None:
        self._model = model
        self._turns = turns
        self._thread = thread
        self._waits = True

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Within the ``with`` block, encodes and decodes raise ``ModelBusyError`` instead of waiting for their turn."""
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, when it is this session's turn."""
        with self._turns.turn(self, waits=self._waits):
            return self._thread.run(self._compute, self._model.encode, *args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, when it is this session's turn."""
        with self._turns.turn(self, waits=self._waits):
            return self._thread.run(self._compute, self._model.decode, *args, **kwargs)

    def propose(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, when it is this session's turn."""
        with self._turns.turn(self, waits=self._waits):
            return self._thread.run(self._compute, self._model.propose, *args, **kwargs)

    def _compute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the model's thread, as the session would have it in its own."""
        with torch.inference_mode(), autocast(self._model.device, self._model.precision):
            return function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
