"""One model for all sessions, lent call by call so that nobody waits for another's large scan.

Every encode and every decode is one turn. Who has had the least of the model goes first (start-time fair queueing), so
a session that encodes twenty crops lets another's click in after the crop it is at.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from contextlib import contextmanager
from typing import Any, Iterator, List, Tuple

from ..errors import FamsamError


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


class SharedModel:
    """One session's share of the model: the same attributes, with ``encode`` and ``decode`` taken in turns."""

    def __init__(self, model: Any, turns: FairTurns) -> None:
        self._model = model
        self._turns = turns
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
            return self._model.encode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, when it is this session's turn."""
        with self._turns.turn(self, waits=self._waits):
            return self._model.decode(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
