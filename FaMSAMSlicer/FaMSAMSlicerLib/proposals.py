"""Structures that the model has found by itself: shown one after the other until one is taken, or none.

They belong to one segment, scan and model: with another one selected they end. Until one is taken nothing of the user's
is changed, but that the slice views go to what is shown.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Optional, Sequence, Tuple

import numpy as np
from famsam.errors import ConfigError

from .engine import Engine, ModelChoice
from .overlay import PREVIEW, Overlay
from .preparation import bring_into_view
from .scans import Scan
from .spaces import transformed, world_from_node
from .translation import tr as _


class Proposals:
    """True from when they are wanted until they have ended."""

    def __init__(self) -> None:
        self.overlay = Overlay(PREVIEW)
        self._wanted: Optional[Tuple[Any, Scan, ModelChoice]] = None
        self._asked: Optional[Future[Optional[Sequence[Any]]]] = None
        self._found: Sequence[Any] = ()
        self._at = 0

    def __bool__(self) -> bool:
        return self._wanted is not None

    @property
    def is_pending(self) -> bool:
        """Whether they are wanted and not there yet."""
        return bool(self) and not self._found

    @property
    def is_due(self) -> bool:
        """Whether the worker has to be asked."""
        return self.is_pending and self._asked is None

    @property
    def is_answered(self) -> bool:
        """Whether the worker has told."""
        return self._asked is not None and self._asked.done()

    @property
    def shown(self) -> Any:
        """The candidate that is shown; None if there is none."""
        return self._found[self._at] if self._found else None

    def belong_to(self, state: Any) -> bool:
        """Whether they were wanted in this state."""
        return self._wanted is not None and self._wanted[0] == state

    def want(self, state: Any, scan: Scan, choice: ModelChoice) -> None:
        """Begin.

        Args:
            state: any value that differs where they do not hold any more.
            scan: where to look.
            choice: the model that looks.
        """
        self.end()
        self._wanted = state, scan, choice

    def ask(self, engine: Engine) -> None:
        """Have the worker look."""
        assert self._wanted is not None
        self._asked = engine.propose(self._wanted[1], self._wanted[2])

    def receive(self, volume_node: Any) -> None:
        """Take what the worker has told, and show the best one if there is any; else they end.

        Raises:
            ConfigError: this model cannot propose.
            FamsamError: whatever else was in the way.
        """
        assert self._asked is not None
        asked, self._asked = self._asked, None
        try:
            found = asked.result()
            if found is None:
                raise ConfigError(
                    _("This model cannot propose anything: its weights have no head for that. Click on a structure.")
                )
            self._found, self._at = found, 0
            if found:
                self._show(volume_node)
            else:
                self.end()
        except Exception:
            self.end()
            raise

    def step(self, by: int, volume_node: Any) -> None:
        """Show the one so many places further on; after the last comes the first."""
        self._at = (self._at + by) % len(self._found)
        self._show(volume_node)

    def take(self) -> Any:
        """The candidate that is shown, and they end; None if there is none."""
        taken = self.shown
        self.end()
        return taken

    def end(self) -> None:
        """Show nothing, and let the worker leave out what it has not begun."""
        if self._asked is not None:
            self._asked.cancel()
        self._wanted = self._asked = None
        self._found = ()
        self.overlay.hide()

    def remove(self) -> None:
        """Take it away for good."""
        self.end()
        self.overlay.remove()

    @property
    def message(self) -> str:
        """What there is to say about them."""
        if not self:
            return _("No structure was found. Click on one.")
        if self.is_pending:
            return _("Looking for structures…")
        text = _("Proposal {number} of {count}, predicted overlap {quality}. Enter takes it, P shows the next.")
        return text.format(number=self._at + 1, count=len(self._found), quality=f"{self.shown.quality:.0%}")

    def _show(self, volume_node: Any) -> None:
        assert self._wanted is not None
        candidate, scan = self.shown, self._wanted[1]
        low_xyz = np.array(candidate.box_zyx[0][::-1])
        mask_zyx = candidate.mask_in(candidate.box_zyx)
        world_from_ijk = world_from_node(volume_node) @ scan.ras_from_ijk
        self.overlay.show(mask_zyx, low_xyz, scan, volume_node)
        bring_into_view(volume_node, transformed(world_from_ijk, (low_xyz + _inside(mask_zyx)).tolist()))


def _inside(mask_zyx: np.ndarray) -> np.ndarray:
    """(3,) index (x, y, z) of a voxel of a mask, in the plane and the row that hold most of it."""
    z = int(mask_zyx.sum((1, 2)).argmax())
    y = int(mask_zyx[z].sum(1).argmax())
    (row,) = mask_zyx[z, y].nonzero()
    return np.array([row[len(row) // 2], y, z])
