"""The Segment Editor effect FaM-SAM: pointer and keys in, clicks to the controller, results by a timer."""

from __future__ import annotations

import logging
from typing import Any, List, Optional, Tuple

import qt
import slicer
import vtk
from famsam.errors import FamsamError
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect
from slicer.i18n import tr as _

from . import requirements
from .controller import Controller
from .engine import Engine, shared_engine
from .keyboard import HeldKey, give_keys_to_the_view
from .panel import Panel, ask_and_install, icon, resource
from .picking import on_screen, pick, place_in_slice
from .preparation import middle_shown
from .rubber_band import Pixel, RubberBand, box_around
from .settings import model_choice, server, set_server, settings
from .spaces import Point3
from .status import Status
from .watching import Watch

NAME = "FaM-SAM"
WAIT_S = 0.006
"""So long, at most, the application stands still at a time for the worker to run; and until it gets Python's lock back,
for which it has to wait as long again (5 ms) where the worker computes in Python itself."""
POLL_MS = 1
"""So long it goes on in between."""
OFFLINE_MS = 50
"""The same while nothing is computed, but a server waited for that cannot be reached."""
REST_MS = 150
"""The pointer rests when it has not moved for so long; then what a click there will look at is prepared."""
FINISH_S = 2.0
"""So long a click that is being computed is waited for when the effect is left."""
PREVIEW_KEY, SIGN_KEY, PROPOSE_KEY = "a", "x", "p"
TAKE_KEYS, LEAVE_KEY = ("return", "kp_enter"), "escape"
_CLICK_PIXELS = 3
_AIMING = (  # another place may be under the pointer after them
    vtk.vtkCommand.MouseMoveEvent,
    vtk.vtkCommand.MouseWheelForwardEvent,
    vtk.vtkCommand.MouseWheelBackwardEvent,
)

logger = logging.getLogger(__name__)


class SegmentEditorFaMSAMEffect(AbstractScriptedSegmentEditorEffect):
    """Click on a structure in any slice view or in the 3D view; the segment follows."""

    def __init__(self, scriptedEffect: Any) -> None:
        scriptedEffect.name = NAME
        scriptedEffect.title = NAME
        scriptedEffect.perSegment = True
        scriptedEffect.requireSegments = True
        AbstractScriptedSegmentEditorEffect.__init__(self, scriptedEffect)
        self.controller: Any = None  # a Controller while the effect is active
        self.panel: Any = None  # a Panel from setupOptionsFrame on
        self._timer: Any = None
        self._rest: Any = None  # the timer that runs until the pointer counts as resting
        self._pointed_at: Optional[Tuple[Any, Any, Pixel]] = None  # interactor, view, and where in it
        self._watch: Optional[Watch] = None
        self._preview_key: Any = None  # a HeldKey while the effect is active
        self._band: Optional[RubberBand] = None
        self._pressed_3d: Optional[Pixel] = None
        self._pressed_2d = False
        self._menu_point: Optional[int] = None
        self._devices_shown: List[Tuple[str, str]] = []

    # --- what the Segment Editor asks ---

    def clone(self) -> Any:
        effect = slicer.qSlicerSegmentEditorScriptedEffect(None)
        effect.setPythonSource(__file__.replace("\\", "/"))
        return effect

    def icon(self) -> qt.QIcon:
        return icon("SegmentEditorFaMSAMEffect")

    def helpText(self) -> str:
        return "<html>" + _(
            "Click on a structure in any slice view, or on its surface in the 3D view, and its segment follows.<br>"
            "<b>Click</b>: include what is there. <b>Ctrl+click</b>: exclude it. <b>X</b>: swap the two.<br>"
            "<b>Hold A</b>: preview under the pointer. <b>Drag a point</b> to move it; right-click it to delete it.<br>"
            "<b>Box</b>: drag a rectangle in a slice view. <b>Show doubt</b>: where the next click helps most.<br>"
            "<b>P</b>: have a structure proposed, or the next one (Shift+P: the one before); <b>Enter</b>: take it.<br>"
            "Editable area, overwrite mode and undo work as for every effect. Points are saved with the segment."
        )

    def setupOptionsFrame(self) -> None:
        self.panel = Panel()
        self.scriptedEffect.addOptionsWidget(self.panel.widget)
        for tool in ("positive", "negative", "box"):
            self.panel.on_click(f"{tool}Button", self.updateMRMLFromGUI)
        self.panel.on_click("pointsButton", self.updateMRMLFromGUI)
        self.panel.on_click("doubtButton", self._doubt_toggled)
        self.panel.on_click("previewButton", self._preview_switched)
        self.panel.on_click("proposeButton", lambda: self.controller and self.controller.propose())
        self.panel.on_click("takeButton", self._take_proposal)
        self.panel.on_click("clearButton", lambda: self.controller and self.controller.clear_points())
        self.panel.on_click("emptyButton", lambda: self.controller and self.controller.reset_segment())
        self.panel.on_click("cancelButton", lambda: self.controller and self.controller.cancel())
        self.panel.on_click("installButton", self.install)
        self.panel.on(self.panel.delete_action, "triggered()", self._delete_point)
        self.panel.on(self.panel.ui.modelFile, "currentPathChanged(QString)", self._model_chosen)
        for selector in (self.panel.ui.deviceSelector, self.panel.ui.precisionSelector):
            self.panel.on(selector, "activated(int)", self._model_chosen)
        for line in (self.panel.ui.serverAddress, self.panel.ui.serverToken):
            self.panel.on(line, "editingFinished()", self._model_chosen)

    def createCursor(self, widget: Any) -> qt.QCursor:
        return qt.QCursor(qt.QPixmap(resource("Icons", "Cursor.png")), 15, 15)

    def setMRMLDefaults(self) -> None:
        self.scriptedEffect.setParameterDefault("Tool", "positive")

    def updateGUIFromMRML(self) -> None:
        if self.panel is None:
            return
        self.panel.show_tool(self._tool)
        chosen = settings()
        self.panel.show_model(chosen.modelFile, chosen.device, chosen.precision)
        self.panel.show_server(*server())
        self.panel.ui.pointsButton.checked = chosen.pointsVisible

    def updateMRMLFromGUI(self) -> None:
        visible = self.panel.ui.pointsButton.checked
        settings().pointsVisible = visible
        if self.controller is not None:
            self.controller.points.visible = visible
        self.scriptedEffect.setParameter("Tool", self.panel.tool)

    def activate(self) -> None:
        self.deactivate()
        self.controller = Controller(self.scriptedEffect, shared_engine(), self._show)
        self.controller.choice = model_choice(settings())
        self.controller.points.visible = settings().pointsVisible
        self.controller.points.on_menu = self._point_menu
        self.controller.points.is_button_down = lambda: bool(qt.QApplication.mouseButtons())
        self.controller.doubt_visible = self.panel.ui.doubtButton.checked
        self._timer, self._rest = qt.QTimer(), qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._poll)
        self._rest.setInterval(REST_MS)
        self._rest.setSingleShot(True)
        self._rest.connect("timeout()", self._pointer_rests)
        self._preview_key = HeldKey(self._preview_switched)
        self._watch = Watch(self.scriptedEffect.parameterSetNode(), self._selection_changed)
        self.controller.sync()
        self._get_ready()

    def deactivate(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.disconnect("timeout()", self._poll)
            self._rest.stop()
            self._rest.disconnect("timeout()", self._pointer_rests)
            self._preview_key.close()
        if self._watch is not None:
            self._watch.stop()
        if self._band is not None:
            self._band.remove()
        if self.controller is not None:
            self.controller.finish(FINISH_S)
            self.controller.close()
            _run_out(self.controller.engine)
        self._timer = self._rest = self._preview_key = self._watch = self.controller = None
        self._pointed_at = self._band = self._pressed_3d = self._menu_point = None
        self._pressed_2d = False

    def cleanup(self) -> None:
        self.deactivate()
        if self.panel is not None:
            self.panel.disconnect()

    def sourceVolumeNodeChanged(self) -> None:
        if self.controller is not None:
            self.controller.end_preview()
            self.controller.sync()
            self._get_ready()

    def processInteractionEvents(self, callerInteractor: Any, eventId: int, viewWidget: Any) -> bool:
        """Returns:
        True if the event is used up.
        """
        if self.controller is None:
            return False
        if eventId in (vtk.vtkCommand.KeyPressEvent, vtk.vtkCommand.KeyReleaseEvent):
            return self._key(callerInteractor, viewWidget, eventId == vtk.vtkCommand.KeyPressEvent)
        self._rest.stop()
        if eventId == vtk.vtkCommand.EnterEvent:
            give_keys_to_the_view()
            return False
        if eventId == vtk.vtkCommand.LeaveEvent:
            self.controller.end_preview()
            return False
        x, y = callerInteractor.GetEventPosition()
        if eventId in _AIMING:
            self._pointed_at = callerInteractor, viewWidget, (x, y)
            self._rest.start()
        if _is_slice(viewWidget):
            return self._in_slice_view(callerInteractor, eventId, viewWidget, (x, y))
        if viewWidget.className() == "qMRMLThreeDWidget":
            return self._in_3d_view(callerInteractor, eventId, viewWidget, (x, y))
        return False

    # --- what the user does ---

    def _in_slice_view(self, interactor: Any, event: int, view: Any, pixel: Pixel) -> bool:
        controller = self.controller
        if event == vtk.vtkCommand.LeftButtonPressEvent:
            self._pressed_2d = False
            if controller.points.hovered or interactor.GetShiftKey():
                return False
            confirmed = self.scriptedEffect.confirmCurrentSegmentVisible()
            if not confirmed:
                return False
            self._pressed_2d = confirmed != self.scriptedEffect.ConfirmedWithDialog  # after which the button is up
            if self._tool != "box":
                controller.click(self._place(interactor, view, pixel), self._sign(interactor))
            elif self._pressed_2d:
                self._band = RubberBand(_renderer(view), pixel)
            return True
        if event == vtk.vtkCommand.LeftButtonDoubleClickEvent:  # would enlarge the view; its first half was a click
            return not (controller.points.hovered or interactor.GetShiftKey())
        if event == vtk.vtkCommand.LeftButtonReleaseEvent and self._pressed_2d:
            self._pressed_2d = False
            band, self._band = self._band, None
            if band is not None:
                band.remove()
                _renderer(view).GetRenderWindow().Render()
                if band.is_box:
                    controller.box(box_around([self._place(interactor, view, corner) for corner in band.corners]))
            return True
        if event == vtk.vtkCommand.MouseMoveEvent:
            if self._band is not None:
                self._band.move(pixel)
                _renderer(view).GetRenderWindow().Render()
                return True
            self._preview_at(interactor, view, pixel)
        return False

    def _in_3d_view(self, interactor: Any, event: int, view: Any, pixel: Pixel) -> bool:
        """A click is a press and a release at one place; a drag still turns the camera."""
        controller = self.controller
        if event == vtk.vtkCommand.LeftButtonPressEvent:
            self._pressed_3d = None if controller.points.hovered or interactor.GetShiftKey() else pixel
        elif event == vtk.vtkCommand.LeftButtonReleaseEvent and self._pressed_3d is not None:
            start, self._pressed_3d = self._pressed_3d, None
            jitter = on_screen(_CLICK_PIXELS, interactor.GetRenderWindow())
            is_click = max(abs(a - b) for a, b in zip(start, pixel)) <= jitter
            if is_click and self.scriptedEffect.confirmCurrentSegmentVisible():
                place = self._place(interactor, view, pixel)
                if place is None:
                    self._show(Status(_("Nothing is there to click on. Click on a surface or the volume rendering.")))
                else:
                    controller.click(place, self._sign(interactor))
        elif event == vtk.vtkCommand.MouseMoveEvent:
            self._preview_at(interactor, view, pixel)
        return False

    def _preview_at(self, interactor: Any, view: Any, pixel: Pixel) -> None:
        """Show what a click there would do, if that is wanted."""
        if not self._previewing or self.controller.points.hovered:
            return
        place = self._place(interactor, view, pixel)
        if place is None:
            self.controller.end_preview()
        else:
            self.controller.preview(place, self._sign(interactor), in_3d=not _is_slice(view))

    def _pointer_rests(self) -> None:
        """A click may follow there: have it prepared, unless something else is going on at the pointer."""
        pointed_at, self._pointed_at = self._pointed_at, None
        elsewhere = self._previewing or self._tool == "box" or self._pressed_3d is not None
        if pointed_at is None or elsewhere or self.controller.points.hovered:
            return
        place = self._place(*pointed_at)
        if place is not None:
            self.controller.aim(place)
            self._keep_polling()

    def _key(self, interactor: Any, view: Any, pressed: bool) -> bool:
        key = (interactor.GetKeySym() or "").lower()
        if key == PREVIEW_KEY:
            if not pressed:
                self._preview_key.release()
            elif self._preview_key.press():
                self._preview_at(interactor, view, interactor.GetEventPosition())
            return True
        if key == SIGN_KEY and pressed:
            self.scriptedEffect.setParameter("Tool", "negative" if self._tool == "positive" else "positive")
            return True
        if key == PROPOSE_KEY and pressed:
            self.controller.propose(-1 if interactor.GetShiftKey() else 1, in_3d=not _is_slice(view))
            return True
        if pressed and self.controller.is_proposing and key in (*TAKE_KEYS, LEAVE_KEY):
            self._take_proposal() if key in TAKE_KEYS else self.controller.end_proposals()
            return True
        return False

    def _take_proposal(self) -> None:
        proposed = self.controller is not None and self.controller.status.proposed
        if proposed and self.scriptedEffect.confirmCurrentSegmentVisible():
            self.controller.take_proposal()

    def _point_menu(self) -> None:
        self._menu_point = self.controller.points.hovered_index
        self.panel.show_point_menu()

    def _delete_point(self) -> None:
        if self.controller is not None and self._menu_point is not None:
            self.controller.points.delete(self._menu_point)

    def install(self) -> None:
        """Ask, install what is missing, and make the model ready."""
        left = self._missing()
        try:
            if left and not ask_and_install(left, requirements.install, requirements.question(left)):
                return
        except FamsamError as error:
            self._show(Status(str(error), is_error=True))
            return
        self._get_ready()

    # --- inside ---

    @property
    def _tool(self) -> str:
        """A scene that was saved without this effect, and is loaded into this one, takes the default away."""
        return self.scriptedEffect.parameter("Tool") if self.scriptedEffect.parameterDefined("Tool") else "positive"

    def _sign(self, interactor: Any) -> bool:
        return (self._tool != "negative") != bool(interactor.GetControlKey())

    @property
    def _previewing(self) -> bool:
        """Whether a preview follows the pointer."""
        return bool(self._preview_key.is_down or self.panel.ui.previewButton.checked)

    @staticmethod
    def _place(interactor: Any, view: Any, pixel: Pixel) -> Optional[Point3]:
        """World RAS mm under a pixel; None where a 3D view shows nothing."""
        if _is_slice(view):
            return place_in_slice(interactor, view.mrmlSliceNode(), *pixel)
        return pick(_renderer(view), *pixel)

    def _preview_switched(self) -> None:
        if self.controller is not None and not self._previewing:
            self.controller.end_preview()

    def _doubt_toggled(self) -> None:
        if self.controller is not None:
            self.controller.doubt_visible = self.panel.ui.doubtButton.checked
            self.controller.sync()
            self._keep_polling()

    def _model_chosen(self, *_unused: Any) -> None:
        ui, chosen = self.panel.ui, settings()
        before = model_choice(chosen)
        chosen.modelFile = ui.modelFile.currentPath or ""
        chosen.device, chosen.precision = ui.deviceSelector.currentText, ui.precisionSelector.currentText
        set_server(ui.serverAddress.text, ui.serverToken.text)
        self.panel.show_server(*server())
        if self.controller is not None and model_choice(chosen) != before:
            self.controller.choice = model_choice(chosen)
            self._get_ready()

    def _missing(self) -> List[requirements.Requirement]:
        return requirements.missing(self.controller.choice.server)

    def _get_ready(self) -> None:
        """Load the model, or connect to the server; or say what has to be installed first."""
        left = self._missing()
        self.panel.show_missing(bool(left))
        if left:
            names = ", ".join(requirement.name for requirement in left)
            self._show(Status(_("Missing: {names}. Press Install first.").format(names=names), is_error=True))
            return
        self.controller.warm_up()
        shown = None if self.controller.volume_node is None else middle_shown(self.controller.volume_node)
        if shown is not None:
            self.controller.aim(shown)

    def _show(self, status: Status) -> None:
        if self.panel is not None:
            self.panel.show_status(status)
        self._keep_polling()

    def _keep_polling(self) -> None:
        if self._timer is None:
            return
        is_at_work = self.controller.engine.is_at_work
        if is_at_work or self.controller.has_work:
            self._timer.start(OFFLINE_MS if self.controller.is_offline and not is_at_work else POLL_MS)

    def _poll(self) -> None:
        if not self.controller.poll(WAIT_S):
            found = self.controller.engine.devices
            if found and found != self._devices_shown:
                self._devices_shown = found
                self.panel.show_devices(found)
        self._keep_polling()

    def _selection_changed(self) -> None:
        self.controller.sync()
        self._keep_polling()


def _run_out(engine: Engine) -> None:
    """Let the worker end what nobody waits for any more."""
    engine.wait(WAIT_S)
    if engine.is_at_work:
        qt.QTimer.singleShot(POLL_MS, lambda: _run_out(engine))


def _is_slice(view_widget: Any) -> bool:
    return bool(view_widget.className() == "qMRMLSliceWidget")


def _renderer(view_widget: Any) -> Any:
    view = view_widget.sliceView() if _is_slice(view_widget) else view_widget.threeDView()
    return view.renderWindow().GetRenderers().GetFirstRenderer()
