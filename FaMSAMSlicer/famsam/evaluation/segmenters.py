"""What the evaluation asks of a method that turns clicks into masks, and the engine's own session as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Protocol, Tuple

import numpy as np

from ..volume import Volume

if TYPE_CHECKING:
    from ..model.base import PromptableModel
    from ..session import Session


class ClickSegmenter(Protocol):
    """A method that is told of one click after the other and answers each with a whole mask."""

    name: str
    """How the method is called in reports; one run cannot hold two of one name."""

    def start(self, volume: Volume) -> None:
        """A new structure in this scan: forget every click so far."""

    def click(self, point_ras_mm: Tuple[float, float, float], positive: bool) -> np.ndarray:
        """One more click, at a point in RAS mm -> bool (z, y, x) mask on the scan's whole grid."""


class SessionSegmenter:
    """``famsam.Session`` as the evaluation sees it.

    ``start`` sets the image anew, so that no crop encoded for an earlier structure makes a first click look quick.
    """

    def __init__(self, model: PromptableModel, name: Optional[str] = None) -> None:
        self.name = name or model.name
        self._model = model
        self._session: Optional[Session] = None

    def start(self, volume: Volume) -> None:
        from ..session import Session

        self._session = Session(self._model)
        self._session.set_image(volume)

    def click(self, point_ras_mm: Tuple[float, float, float], positive: bool) -> np.ndarray:
        assert self._session is not None, "start() comes before click()"
        return self._session.add_point(point_ras_mm, positive=positive).mask_zyx
