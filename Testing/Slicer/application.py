"""The module and the effect with their panels, as they are in a running Slicer, and the events of a user."""

from __future__ import annotations

import importlib
import time

import host
import numpy as np
import python_qt
import qt_host
import slicer
import vtk
from FaMSAMSlicerLib.engine import Engine
from region_model import RegionModel
from worlds import two_balls


class Application:
    """The module, entered, with a scan loaded; the engine's model is the test's."""

    def __init__(self, monkeypatch):
        qt_host.install()
        python_qt.slot_errors.clear()
        host.scene()

        import FaMSAMSlicer

        self.engine = Engine(lambda choice: RegionModel())
        effect_file = importlib.import_module("FaMSAMSlicerLib.SegmentEditorFaMSAMEffect")
        monkeypatch.setattr(effect_file, "shared_engine", lambda: self.engine)
        qt_host.ScriptedEffect.factory.clear()
        self.module = FaMSAMSlicer.FaMSAMSlicer(type("Parent", (), {})())
        slicer.app.startupCompleted.emit()
        assert not python_qt.slot_errors, python_qt.slot_errors
        voxels, self.balls = two_balls()
        self.volume = host.volume(voxels, np.eye(4))
        self.parent = qt_host.qMRMLWidget()
        self.parent.isEntered = True
        self.widget = FaMSAMSlicer.FaMSAMSlicerWidget(self.parent)
        self.widget.setup()
        self.widget.enter()

    @property
    def effect(self):
        return self.widget.editor.activeEffect().self()

    @property
    def node(self):
        return self.effect.controller.segmentation_node

    @property
    def ui(self):
        return self.effect.panel.ui

    def mask(self):
        return host.segment_mask(self.node, self.effect.controller.segment_id, self.balls[0].shape)

    def center(self, ball):
        return tuple(float(v) for v in np.argwhere(self.balls[ball]).mean(0).round()[::-1])

    def start(self):
        self.widget.ui.startButton.checked = True
        self.settle()

    def settle(self):
        """Run the application's events until the effect's timer has stopped, or a server cannot be reached."""
        for _ in range(2000):
            qt_host.APPLICATION.processEvents()
            if self.effect._timer is None or not self.effect._timer.isActive() or self.effect.controller._offline:
                break
            time.sleep(0.005)
        assert not python_qt.slot_errors

    def settle_as_slicer(self):
        """The same, but the events are waited for as Slicer does it."""
        timer = self.effect._timer
        while timer.isActive():
            timer.stop()
            host.wait_for_events(timer.interval)
            self.effect._poll()

    def send(self, event, view, pixel=(0, 0), control=0, shift=0, key=""):
        view.interactor.SetEventInformation(pixel[0], pixel[1], control, shift, "\0", 0, key)
        return self.effect.processInteractionEvents(view.interactor, getattr(vtk.vtkCommand, event), view)

    def click(self, view, world, **keys):
        pixel = view.pixel(world)
        used = self.send("LeftButtonPressEvent", view, pixel, **keys)
        self.send("LeftButtonReleaseEvent", view, pixel, **keys)
        self.settle()
        return used

    def let_go(self):
        """Wait until a released key counts as released."""
        for _ in range(2000):
            qt_host.APPLICATION.processEvents()
            if not self.effect._preview_key._timer.isActive():
                break
            time.sleep(0.005)
        self.settle()

    def rest(self):
        """Let the pointer rest for as long as the effect wants it to."""
        for _ in range(2000):
            qt_host.APPLICATION.processEvents()
            if not self.effect._rest.isActive():
                break
            time.sleep(0.005)
        self.settle()
