"""While the user aims, the worker encodes what it would look at, so that the click itself only has to be decoded."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Optional

from .engine import Engine, Request

logger = logging.getLogger(__name__)


class Aim:
    """A place that may be clicked next. True while there is something left to be encoded for it."""

    def __init__(self) -> None:
        self._request: Optional[Request] = None
        self._future: Optional[Future[bool]] = None

    def __bool__(self) -> bool:
        return self._request is not None

    def at(self, request: Optional[Request]) -> None:
        """Another place, or none: what the worker has not begun for the last one is dropped."""
        self.drop()
        self._request = request

    def drop(self) -> None:
        """No place. At most one view is still in work."""
        if self._future is not None:
            self._future.cancel()
        self._request = self._future = None

    def go_on(self, engine: Engine) -> None:
        """To be called while there is nothing else for the worker to do: one view after another."""
        if self._request is None or (self._future is not None and not self._future.done()):
            return
        if self._future is None or self._there_is_more(self._future):
            self._future = engine.encode_ahead(self._request)
        else:
            self.drop()

    @staticmethod
    def _there_is_more(future: Future[bool]) -> bool:
        error = future.exception()
        if error is not None:  # the click will say so
            logger.debug("Nothing could be encoded ahead: %s", error)
            return False
        return future.result()
