"""What a famsam server answers, with the attributes of what a local session answers; needs no torch."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .compact_mask import CompactMask
from .geometry import Box
from .server.packing import unpack_bits


class RemotePrompt(NamedTuple):
    """A prompt in force, as ``famsam.Session.prompts`` has them."""

    description: Dict[str, Any]

    def to_dict(self) -> Dict[str, Any]:
        """As ``famsam.Session.to_dict`` writes it."""
        return self.description


class RemoteResult:
    """What an interaction led to; the same attributes as ``famsam.Result``.

    Attributes:
        changed_box_zyx: half-open box outside of which the mask is what it was; None if nothing changed.
        quality: predicted IoU with what was meant, 0..1.
        timings_ms: the server's.
    """

    def __init__(self, mask: CompactMask, changed: Optional[Box], update: Dict[str, Any]) -> None:
        self.mask = mask
        self.changed_box_zyx = changed
        self.quality = float(update["quality"] or 0.0)
        self.timings_ms: Dict[str, float] = update["timings_ms"]

    @classmethod
    def after(cls, before: CompactMask, update: Dict[str, Any]) -> RemoteResult:
        """The mask before, with the box of the server's answer put in place."""
        if update["box_zyx"] is None:
            return cls(before, None, update)
        changed, size = box_of(update)
        return cls(before.replaced(changed, unpack_bits(update["bits"], size), changed[0]), changed, update)

    @property
    def mask_zyx(self) -> NDArray[np.bool_]:
        """bool (z, y, x), the whole image grid; the caller's own."""
        return self.mask.dense()

    def mask_in(self, box_zyx: Box) -> NDArray[np.bool_]:
        """The mask within a half-open box of the image grid, (z, y, x) bool; all that a redraw needs."""
        return self.mask.within(box_zyx)

    @property
    def box_zyx(self) -> Optional[Box]:
        """The smallest half-open box of the image grid that holds the mask; None if it is empty."""
        return self.mask.box_zyx


class RemoteCandidate:
    """A mask that nobody asked for yet, as ``RemoteSession.propose`` gives it; like ``famsam.proposing.Candidate``.

    Attributes:
        quality: predicted IoU with the structure that it outlines, 0..1.
        size_zyx: of the image grid.
        box_zyx: the smallest half-open box of the image grid that holds it.
        bits: the mask in that box, as it came; see ``famsam.server.packing``.
    """

    def __init__(self, answer: Dict[str, Any], size_zyx: Tuple[int, int, int]) -> None:
        self.quality, self.bits, self.size_zyx = float(answer["quality"]), str(answer["bits"]), size_zyx
        self.box_zyx, box_size = box_of(answer)
        self._mask = CompactMask.of(size_zyx, unpack_bits(self.bits, box_size), self.box_zyx[0])

    @property
    def mask_zyx(self) -> NDArray[np.bool_]:
        """bool (z, y, x), the whole image grid, a new array."""
        return self._mask.dense()

    def mask_in(self, box_zyx: Box) -> NDArray[np.bool_]:
        """The mask within a half-open box of the image grid, (z, y, x) bool."""
        return self._mask.within(box_zyx)


def box_of(answer: Dict[str, Any]) -> Tuple[Box, Tuple[int, int, int]]:
    """The half-open box of an answer, (z, y, x), and its size."""
    (z0, y0, x0), (z1, y1, x1) = (tuple(int(n) for n in corner) for corner in answer["box_zyx"])
    return ((z0, y0, x0), (z1, y1, x1)), (z1 - z0, y1 - y0, x1 - x0)
