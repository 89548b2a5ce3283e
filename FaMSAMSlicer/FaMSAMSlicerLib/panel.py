"""The panel of the effect: shows a status, reports what is pressed. No behaviour of its own."""

from __future__ import annotations

import os
from typing import Any, Callable, List, Optional, Sequence, Tuple

import qt
import slicer
from slicer.i18n import tr as _

from .status import Status

_RESOURCES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "Resources")


def resource(*parts: str) -> str:
    """Path of a file under the module's Resources."""
    return os.path.join(_RESOURCES, *parts)


class Panel:
    """Loads ``FaMSAMPanel.ui``; ``ui`` holds its widgets by name."""

    def __init__(self) -> None:
        self.widget = slicer.util.loadUI(resource("UI", "FaMSAMPanel.ui"))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self._connections: List[Tuple[Any, str, Callable[..., None]]] = []
        self.ui.modelFile.nameFilters = [_("Weights") + " (*.safetensors *.pth)"]
        self._point_menu = qt.QMenu(self.widget)
        self.delete_action = self._point_menu.addAction(_("Delete point"))
        self.show_missing(False)
        self.show_status(Status(_("Click on a structure.")))

    def show_status(self, status: Status) -> None:
        """Message, predicted quality and latency; a bar while something is computed."""
        parts = [status.message]
        if not status.is_error and not status.busy and status.latency_ms:
            parts.append(
                _("{latency} ms, predicted overlap {quality}").format(
                    latency=round(status.latency_ms), quality=f"{status.quality:.0%}"
                )
            )
        self.ui.statusLabel.text = " · ".join(part for part in parts if part)
        self.ui.statusLabel.styleSheet = "color: #d9534f" if status.is_error else ""
        self.ui.progressBar.visible = status.busy
        self.ui.cancelButton.visible = status.busy or status.proposed
        self.ui.takeButton.enabled = status.proposed

    def show_point_menu(self) -> None:
        """What can be done with the point under the pointer."""
        self._point_menu.popup(qt.QCursor.pos())

    def show_missing(self, missing: bool) -> None:
        """Whether there is something to install first."""
        self.ui.installButton.visible = missing

    def show_tool(self, tool: str) -> None:
        """ "positive", "negative" or "box"."""
        getattr(self.ui, f"{tool}Button").checked = True

    @property
    def tool(self) -> str:
        """The pressed one."""
        return next(tool for tool in ("box", "negative", "positive") if getattr(self.ui, f"{tool}Button").checked)

    def show_model(self, file: str, device: str, precision: str) -> None:
        """The chosen model; nothing is told, so that what is not shown yet is not taken for the user's choice."""
        was_blocked = self.ui.modelFile.blockSignals(True)
        self.ui.modelFile.currentPath = file
        self.ui.modelFile.blockSignals(was_blocked)
        for selector, value in ((self.ui.deviceSelector, device), (self.ui.precisionSelector, precision)):
            if selector.findText(value) < 0:
                selector.addItem(value)
            selector.setCurrentIndex(selector.findText(value))

    def show_devices(self, found: Sequence[Tuple[str, str]]) -> None:
        """Offer what was found on this machine, and what is chosen already."""
        selector = self.ui.deviceSelector
        chosen, names = selector.currentText, [device for device, _name in found]
        selector.clear()
        for device, name in (("auto", _("the graphics card if there is a usable one")), *found):
            selector.addItem(device)
            selector.setItemData(selector.count - 1, name, qt.Qt.ToolTipRole)
        if chosen not in ("auto", *names):
            selector.addItem(chosen)
        selector.setCurrentIndex(selector.findText(chosen))

    def show_server(self, address: str, token: str) -> None:
        """Which server computes; the choices that are the server's then are greyed."""
        self.ui.serverAddress.text, self.ui.serverToken.text = address, token
        self.ui.serverToken.enabled = bool(address)
        for widget in (self.ui.modelFile, self.ui.deviceSelector, self.ui.precisionSelector):
            widget.enabled = not address

    def on(self, sender: Any, signal: str, slot: Callable[..., None]) -> None:
        """Call when a widget sends a signal."""
        sender.connect(signal, slot)
        self._connections.append((sender, signal, slot))

    def on_click(self, button: str, slot: Callable[[], None]) -> None:
        """Call when a button is clicked."""
        self.on(getattr(self.ui, button), "clicked()", slot)

    def disconnect(self) -> None:
        """Call nothing any more: what is connected is never freed."""
        for sender, signal, slot in self._connections:
            sender.disconnect(signal, slot)
        self._connections = []


def ask_and_install(requirements: Any, install: Callable[..., None], question: str) -> Optional[bool]:
    """Ask, then install with a progress dialog.

    Returns:
        True if installed, False if declined.
    """
    if not slicer.util.confirmOkCancelDisplay(question, windowTitle="FaM-SAM"):
        return False
    dialog = slicer.util.createProgressDialog(maximum=100, windowTitle="FaM-SAM", labelText=_("Installing…"))
    dialog.setCancelButton(None)

    def say(message: str, percent: int) -> None:
        dialog.labelText = message
        dialog.value = percent
        slicer.app.processEvents()

    try:
        with slicer.util.WaitCursor():
            install(requirements, say)
    finally:
        dialog.close()
    return True


def icon(name: str) -> qt.QIcon:
    """One of the module's icons."""
    return qt.QIcon(resource("Icons", f"{name}.png"))
