"""Where the model is not sure of the selected segment, shown over the scan while the user wants to see it.

What is shown belongs to one state of one segment: it goes as soon as that changes (a click, undo, another segment,
another tool), and is asked for anew when the worker has nothing else to do.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any, Optional, Tuple

from .engine import Doubt, Engine, Request
from .overlay import DOUBT, Overlay

logger = logging.getLogger(__name__)


class DoubtView:
    """True while the overlay is not what it should be."""

    def __init__(self) -> None:
        self.overlay = Overlay(DOUBT)
        self._wanted: Optional[Tuple[Any, ...]] = None
        self._shown: Optional[Tuple[Any, ...]] = None
        self._asked: Optional[Tuple[Future[Optional[Doubt]], Request, Any]] = None

    def __bool__(self) -> bool:
        return self._wanted != self._shown

    def want(self, state: Optional[Tuple[Any, ...]]) -> None:
        """Show the doubts in this state (any values that differ between states); None to show nothing."""
        if state == self._wanted:
            return
        self._drop()
        self.overlay.hide()
        self._wanted, self._shown = state, None

    @property
    def is_due(self) -> bool:
        """Whether the worker has to be asked."""
        return bool(self) and self._asked is None

    def ask(self, engine: Engine, request: Optional[Request], volume_node: Any) -> None:
        """Have the worker tell; without a request there is nothing to show."""
        if request is None:
            self._shown = self._wanted
        else:
            self._asked = engine.doubt(request), request, volume_node

    def take(self) -> None:
        """Show what the worker has told, if it has."""
        if self._asked is None or not self._asked[0].done():
            return
        (future, request, volume_node), self._asked = self._asked, None
        self._shown = self._wanted
        error = future.exception()
        if error is not None:  # it is no more than a help: what matters is said when clicking
            logger.debug("The doubts are not known: %s", error)
            return
        doubt = future.result()
        if doubt is not None:
            self.overlay.show(doubt.labels_zyx, doubt.low_xyz, request.scan, volume_node)

    def remove(self) -> None:
        """Take it away for good."""
        self._drop()
        self._wanted = self._shown = None
        self.overlay.remove()

    def _drop(self) -> None:
        if self._asked is not None:
            self._asked[0].cancel()
        self._asked = None
