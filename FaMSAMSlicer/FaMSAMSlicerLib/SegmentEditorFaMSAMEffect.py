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
from .engine import shared_engine
from .panel import Panel, ask_and_install, icon, resource
from .picking import pick, place_in_slice
from .preparation import middle_shown
from .rubber_band import Pixel, RubberBand, box_around
from .settings import model_choice, server, set_server, settings
from .spaces import Point3
from .status import Status

NAME = "FaM-SAM"
POLL_MS = 5
REST_MS = 150
"""The pointer rests when it has not moved for so long; then what a click there will look at is prepared."""
FINISH_S = 2.0
"""So long a click that is being computed is waited for when the effect is left."""
PREVIEW_KEY, SIGN_KEY = "a", "x"
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
        self._observations: List[Tuple[Any, int]] = []
        self._segmentation: Any = None
        self._band: Optional[RubberBand] = None
        self._pressed_3d: Optional[Pixel] = None
        self._pressed_2d = False
        self._previewing = False
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
            "<b>Hold A</b>: preview under the pointer. <b>Drag a point</b> to move it; delete it by its menu.<br>"
            "<b>Box</b>: drag a rectangle in a slice view. <b>Show doubt</b>: where the next click helps most.<br>"
            "Editable area, overwrite mode and undo work as for every effect. Points are saved with the segment."
        )

    def setupOptionsFrame(self) -> None:
        self.panel = Panel()
        self.scriptedEffect.addOptionsWidget(self.panel.widget)
        for tool in ("positive", "negative", "box"):
            self.panel.on_click(f"{tool}Button", self.updateMRMLFromGUI)
        self.panel.on_click("pointsButton", self.updateMRMLFromGUI)
        self.panel.on_click("doubtButton", self._doubt_toggled)
        self.panel.on_click("previewButton", self._preview_toggled)
        self.panel.on_click("clearButton", lambda: self.controller and self.controller.clear_points())
        self.panel.on_click("emptyButton", lambda: self.controller and self.controller.reset_segment())
        self.panel.on_click("cancelButton", lambda: self.controller and self.controller.cancel())
        self.panel.on_click("installButton", self.install)
        self.panel.ui.modelFile.connect("currentPathChanged(QString)", self._model_chosen)
        for selector in (self.panel.ui.deviceSelector, self.panel.ui.precisionSelector):
            selector.connect("activated(int)", self._model_chosen)
        for line in (self.panel.ui.serverAddress, self.panel.ui.serverToken):
            line.connect("editingFinished()", self._model_chosen)

    def createCursor(self, widget: Any) -> qt.QCursor:
        return qt.QCursor(qt.QPixmap(resource("Icons", "Cursor.png")), 15, 15)

    def setMRMLDefaults(self) -> None:
        self.scriptedEffect.setParameterDefault("Tool", "positive")

    def updateGUIFromMRML(self) -> None:
        if self.panel is None:
            return
        self.panel.show_tool(self.scriptedEffect.parameter("Tool"))
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
        self.controller.doubt_visible = self.panel.ui.doubtButton.checked
        self._timer, self._rest = qt.QTimer(), qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._poll)
        self._rest.setInterval(REST_MS)
        self._rest.setSingleShot(True)
        self._rest.connect("timeout()", self._pointer_rests)
        self._observe(self.scriptedEffect.parameterSetNode(), vtk.vtkCommand.ModifiedEvent)
        self._follow_segmentation()
        self.controller.sync()
        self._get_ready()

    def deactivate(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.disconnect("timeout()", self._poll)
            self._rest.stop()
            self._rest.disconnect("timeout()", self._pointer_rests)
        for node, tag in self._observations:
            node.RemoveObserver(tag)
        self._drop_band()
        if self.controller is not None:
            self.controller.finish(FINISH_S)
            self.controller.close()
        self._timer = self._rest = self.controller = self._segmentation = self._pointed_at = None
        self._observations, self._previewing, self._pressed_3d, self._pressed_2d = [], False, None, False

    def cleanup(self) -> None:
        self.deactivate()

    def sourceVolumeNodeChanged(self) -> None:
        if self.controller is not None:
            self.controller.end_preview()
            self.controller.sync()
            self._get_ready()

    def masterVolumeNodeChanged(self) -> None:  # its name before Slicer 5.2
        self.sourceVolumeNodeChanged()

    def interactionNodeModified(self, interactionNode: Any) -> None:
        """Placing other markups is not disturbed: the Segment Editor sends no events meanwhile."""

    def processInteractionEvents(self, callerInteractor: Any, eventId: int, viewWidget: Any) -> bool:
        """Returns:
        True if the event is used up.
        """
        if self.controller is None:
            return False
        if eventId in (vtk.vtkCommand.KeyPressEvent, vtk.vtkCommand.KeyReleaseEvent):
            return self._key(callerInteractor, eventId == vtk.vtkCommand.KeyPressEvent)
        self._rest.stop()
        if eventId == vtk.vtkCommand.LeaveEvent:
            self.controller.end_preview()
            return False
        x, y = callerInteractor.GetEventPosition()
        if eventId in _AIMING:
            self._pointed_at = callerInteractor, viewWidget, (x, y)
            self._rest.start()
        if viewWidget.className() == "qMRMLSliceWidget":
            return self._in_slice_view(callerInteractor, eventId, viewWidget, (x, y))
        if viewWidget.className() == "qMRMLThreeDWidget":
            return self._in_3d_view(callerInteractor, eventId, viewWidget, (x, y))
        return False

    # --- what the user does ---

    def _in_slice_view(self, interactor: Any, event: int, view: Any, pixel: Pixel) -> bool:
        controller = self.controller
        if event == vtk.vtkCommand.LeftButtonPressEvent:
            if controller.points.hovered or interactor.GetShiftKey() or not self._may_edit():
                return False
            self._pressed_2d = True
            if self._tool == "box":
                self._band = RubberBand(_renderer(view), pixel)
            else:
                controller.click(self._world(interactor, view, pixel), self._sign(interactor))
            return True
        if event == vtk.vtkCommand.LeftButtonReleaseEvent and self._pressed_2d:
            self._pressed_2d = False
            band, self._band = self._band, None
            if band is not None:
                band.remove()
                _renderer(view).GetRenderWindow().Render()
                if band.is_box:
                    controller.box(box_around([self._world(interactor, view, corner) for corner in band.corners]))
            return True
        if event == vtk.vtkCommand.MouseMoveEvent:
            if self._band is not None:
                self._band.move(pixel)
                _renderer(view).GetRenderWindow().Render()
                return True
            if self._previewing and not controller.points.hovered:
                controller.preview(self._world(interactor, view, pixel), self._sign(interactor))
        return False

    def _in_3d_view(self, interactor: Any, event: int, view: Any, pixel: Pixel) -> bool:
        """A click is a press and a release at one place; a drag still turns the camera."""
        controller = self.controller
        if event == vtk.vtkCommand.LeftButtonPressEvent:
            self._pressed_3d = None if controller.points.hovered or interactor.GetShiftKey() else pixel
        elif event == vtk.vtkCommand.LeftButtonReleaseEvent and self._pressed_3d is not None:
            start, self._pressed_3d = self._pressed_3d, None
            if max(abs(a - b) for a, b in zip(start, pixel)) <= _CLICK_PIXELS and self._may_edit():
                place = pick(_renderer(view), *pixel)
                if place is None:
                    self._show(Status(_("Nothing is there to click on. Click on a surface or the volume rendering.")))
                else:
                    controller.click(place, self._sign(interactor))
        elif event == vtk.vtkCommand.MouseMoveEvent and self._previewing and not controller.points.hovered:
            place = pick(_renderer(view), *pixel)
            if place is None:
                controller.end_preview()
            else:
                controller.preview(place, self._sign(interactor), in_3d=True)
        return False

    def _pointer_rests(self) -> None:
        """A click may follow there: have it prepared, unless something else is going on at the pointer."""
        pointed_at, self._pointed_at = self._pointed_at, None
        elsewhere = self._previewing or self._tool == "box" or self._pressed_3d is not None
        if pointed_at is None or elsewhere or self.controller.points.hovered:
            return
        interactor, view, pixel = pointed_at
        is_slice = view.className() == "qMRMLSliceWidget"
        place = self._world(interactor, view, pixel) if is_slice else pick(_renderer(view), *pixel)
        if place is not None:
            self.controller.aim(place)
            self._keep_polling()

    def _key(self, interactor: Any, pressed: bool) -> bool:
        key = (interactor.GetKeySym() or "").lower()
        if key == PREVIEW_KEY:
            self.set_previewing(pressed or self.panel.ui.previewButton.checked)
            return True
        if key == SIGN_KEY and pressed:
            self.scriptedEffect.setParameter("Tool", "negative" if self._tool == "positive" else "positive")
            return True
        return False

    def set_previewing(self, previewing: bool) -> None:
        """Whether a preview follows the pointer."""
        self._previewing = previewing
        if not previewing and self.controller is not None:
            self.controller.end_preview()

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
        return self.scriptedEffect.parameter("Tool")

    def _sign(self, interactor: Any) -> bool:
        return (self._tool != "negative") != bool(interactor.GetControlKey())

    @staticmethod
    def _world(interactor: Any, slice_widget: Any, pixel: Pixel) -> Point3:
        return place_in_slice(interactor, slice_widget.mrmlSliceNode(), *pixel)

    def _may_edit(self) -> bool:
        return bool(self.scriptedEffect.confirmCurrentSegmentVisible())

    def _preview_toggled(self) -> None:
        self.set_previewing(self.panel.ui.previewButton.checked)

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
            names = ", ".join(requirement.module for requirement in left)
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
        if self._timer is not None and self.controller.has_work and not self._timer.isActive():
            self._timer.start()

    def _poll(self) -> None:
        if not self.controller.poll():
            self._timer.stop()
            found = self.controller.engine.devices
            if found and found != self._devices_shown:
                self._devices_shown = found
                self.panel.show_devices(found)

    def _observe(self, node: Any, event: int) -> None:
        self._observations.append((node, node.AddObserver(event, self._selection_changed)))

    def _follow_segmentation(self) -> None:
        """Undo, redo and other tools change segments: then the points have to be shown anew."""
        node = self.controller.segmentation_node
        if node is self._segmentation:
            return
        for observed, tag in self._observations[1:]:
            observed.RemoveObserver(tag)
        del self._observations[1:]
        self._segmentation = node
        if node is not None:
            events = slicer.vtkSegmentation
            for event in (
                events.SegmentModified,
                events.SegmentRemoved,
                events.SourceRepresentationModified,
                slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
            ):
                self._observe(node, event)

    def _selection_changed(self, caller: Any, event: Any) -> None:
        if self.controller is not None:
            self._follow_segmentation()
            self.controller.sync()
            self._keep_polling()

    def _drop_band(self) -> None:
        if self._band is not None:
            self._band.remove()
            self._band = None


def _renderer(view_widget: Any) -> Any:
    is_slice = view_widget.className() == "qMRMLSliceWidget"
    view = view_widget.sliceView() if is_slice else view_widget.threeDView()
    return view.renderWindow().GetRenderers().GetFirstRenderer()
