"""Keys in the views: which view gets them, and whether one is held."""

from __future__ import annotations

from typing import Callable

import qt

REPEAT_MS = 60
"""A held key repeats as releases, each followed by a press at once; a release alone for so long is a real one."""
_TYPED_IN = ("QLineEdit", "QTextEdit", "QPlainTextEdit", "QAbstractSpinBox")


class HeldKey:
    """Whether a key is down.

    Args:
        let_go: called when it has gone up.
    """

    def __init__(self, let_go: Callable[[], None]) -> None:
        self.is_down = False
        self._on_let_go = let_go
        self._timer = qt.QTimer()
        self._timer.setInterval(REPEAT_MS)
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._let_go)

    def press(self) -> bool:
        """The key was pressed, or repeats; whether it was up before."""
        self._timer.stop()
        was_up, self.is_down = not self.is_down, True
        return was_up

    def release(self) -> None:
        """The key was released, or repeats."""
        self._timer.start()

    def close(self) -> None:
        """Not of interest any more."""
        self._timer.stop()
        self._timer.disconnect("timeout()", self._let_go)
        self.is_down = False

    def _let_go(self) -> None:
        self.is_down = False
        self._on_let_go()


def give_keys_to_the_view() -> None:
    """The view under the pointer gets the keys, which Slicer gives it only after a click; not while the user types."""
    focused = qt.QApplication.focusWidget()
    if focused is not None and any(focused.inherits(kind) for kind in _TYPED_IN):
        return
    view = qt.QApplication.widgetAt(qt.QCursor.pos())
    if view is not None:
        view.setFocus()
