"""What the evaluation asks of a method that turns clicks into masks, and the engine's own session as one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Dict, Optional, Protocol, Tuple

import numpy as np

from ..volume import Volume

if TYPE_CHECKING:
    from ..model.base import PromptableModel
    from ..session import Session


class ClickSegmenter(Protocol):
    """A method that is told of one click after the other and answers each with a whole mask.

    One whose answers depend on more than its class, such as weights, has that (JSON-able) as its attribute ``setup``.
    """

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

    @property
    def setup(self) -> Dict[str, Any]:
        """All that masks depend on besides scan and clicks, JSON-able."""
        from ..model.config import to_plain
        from ..model.registry import config_to_dict

        model, weights = self._model, hashlib.sha256()
        for name, tensor in model.state_dict().items():
            weights.update(name.encode() + tensor.cpu().numpy().tobytes())
        return {
            "weights": weights.hexdigest(),
            "model": config_to_dict(model.name, model.config),
            "calibration": to_plain(model.calibration),
            "pausing": repr(getattr(model, "pausing", None)),
            "device": str(model.device),
            "precision": model.precision,
        }

    def start(self, volume: Volume) -> None:
        from ..session import Session

        self._session = Session(self._model)
        self._session.set_image(volume)

    def click(self, point_ras_mm: Tuple[float, float, float], positive: bool) -> np.ndarray:
        assert self._session is not None, "start() comes before click()"
        return self._session.add_point(point_ras_mm, positive=positive).mask_zyx


def setup_of(segmenter: ClickSegmenter) -> Dict[str, Any]:
    """What tells a method from others, JSON-able."""
    kind = type(segmenter)
    return {
        "name": segmenter.name,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "setup": getattr(segmenter, "setup", None),
    }
