"""Python's cyclic garbage, collected by the main thread alone while the worker is at work.

Python collects on whichever thread happens to make an object, and with what it collects it ends the widgets and VTK
objects of any module: off the main thread that crashes the application.
"""

from __future__ import annotations

import gc


class Garbage:
    """Whether Python collects by itself. Where somebody else has switched that off, it stays so."""

    def __init__(self) -> None:
        self._held = False

    def hold(self) -> None:
        """From now on only ``collect`` does it."""
        if gc.isenabled():
            gc.disable()
            self._held = True

    def collect(self) -> None:
        """Collect what Python would have by now, but for what is old, which can wait. For the main thread."""
        self.hold()  # something else may have switched it on
        (young, middle, _), (most_young, most_middle, _) = gc.get_count(), gc.get_threshold()
        if self._held and 0 < most_young < young:
            gc.collect(1 if middle > most_middle else 0)

    def release(self) -> None:
        """Python does it by itself again."""
        if self._held:
            gc.enable()
            self._held = False
