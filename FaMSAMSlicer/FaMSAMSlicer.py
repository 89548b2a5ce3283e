"""The module FaMSAMSlicer: a thin panel around a Segment Editor whose one effect is FaM-SAM."""

from __future__ import annotations

import logging
import os
import unittest
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

EFFECT = "FaM-SAM"
UNDO_STEPS = 50


class FaMSAMSlicer(ScriptedLoadableModule):
    """What the application shows of the module, and what it does when it has started."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "FaM-SAM"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "SegmentEditor", "Markups"]
        self.parent.contributors = ["FaMSAMSlicer contributors"]
        self.parent.helpText = _(
            "Click on a structure in a slice view or in the 3D view and its whole segmentation follows. "
            "Points are kept with the segment: move, delete or add to them at any time."
        )
        self.parent.acknowledgementText = _(
            "Builds on the ideas of Segment Anything, FastSAM3D, SAM-Med3D and FastSAM-3DSlicer."
        )
        slicer.app.connect("startupCompleted()", register)


def register() -> None:
    """Register the effect and the sample data: called once, when the application has started."""
    import FaMSAMSlicerLib
    import SampleData
    from FaMSAMSlicerLib.engine import shared_engine
    from FaMSAMSlicerLib.SegmentEditorFaMSAMEffect import SegmentEditorFaMSAMEffect

    # Slicer looks the class up by the file's name in the package named as its folder; the submodule of that name,
    # which is there by now, would be in the way.
    FaMSAMSlicerLib.SegmentEditorFaMSAMEffect = SegmentEditorFaMSAMEffect  # type: ignore[assignment]
    effect = slicer.qSlicerSegmentEditorScriptedEffect(None)
    path = os.path.join(os.path.dirname(__file__), "FaMSAMSlicerLib", "SegmentEditorFaMSAMEffect.py")
    effect.setPythonSource(path.replace("\\", "/"))
    effect.self().register()
    slicer.app.connect("aboutToQuit()", shared_engine().quit)

    icons = os.path.join(os.path.dirname(__file__), "Resources", "Icons")
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="FaM-SAM",
        sampleName="CTChest",
        uris="https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/"
        "4507b664690840abb6cb9af2d919377ffc4ef75b167cb6fd0f747befdb12e38e",
        fileNames="CT-chest.nrrd",
        checksums="SHA256:4507b664690840abb6cb9af2d919377ffc4ef75b167cb6fd0f747befdb12e38e",
        thumbnailFileName=os.path.join(icons, "FaMSAMSlicer.png"),
        nodeNames="CTChest",
    )


class FaMSAMSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: start button, message, and the Segment Editor's widget with our effect."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.editor: Any = None
        self.was_active = False

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/FaMSAMSlicer.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = FaMSAMSlicerLogic()

        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.setMaximumNumberOfUndoStates(UNDO_STEPS)
        self.editor.setEffectNameOrder([EFFECT])
        self.editor.unorderedEffectsVisible = False
        self.editor.setMRMLScene(slicer.mrmlScene)
        self.ui.editorFrame.layout().addWidget(self.editor)
        self.ui.startButton.connect("toggled(bool)", self.on_start)
        self.ui.sampleButton.connect("clicked()", self.on_sample_data)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.on_scene_start_close)
        for event in (slicer.mrmlScene.EndCloseEvent, slicer.mrmlScene.EndImportEvent):
            self.addObserver(slicer.mrmlScene, event, self.on_scene_renewed)

    def enter(self) -> None:
        """The module is shown."""
        node = self.logic.editor_node()
        if not self.hasObserver(node, vtk.vtkCommand.ModifiedEvent, self.on_editor_modified):
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.on_editor_modified)
        self.editor.updateEffectList()  # the panel of the module that Slicer starts with is older than the effect
        node.SetActiveEffectName("")  # a scene may have been saved, and loaded, with an active one
        self.editor.setMRMLSegmentEditorNode(node)
        self.editor.updateWidgetFromMRML()
        self.editor.setupViewObservations()
        self.editor.installKeyboardShortcuts()

    def exit(self) -> None:
        """Another module is shown."""
        self.ui.startButton.checked = False
        self.editor.setActiveEffect(None)
        self.editor.uninstallKeyboardShortcuts()
        self.editor.removeViewObservations()

    def cleanup(self) -> None:
        """The module is reloaded, or the application ends."""
        self.removeObservers()
        if self.editor is not None:
            self.exit()
            self.editor.setMRMLSegmentEditorNode(None)

    def on_start(self, start: bool) -> None:
        """Make what is missing and switch the effect on, or switch it off."""
        from famsam.errors import FamsamError

        if not start:
            self.editor.setActiveEffect(None)
            self.show_started(False)
            return
        try:
            self.logic.prepare()
        except FamsamError as error:
            self.say(str(error))
            self.ui.startButton.checked = False
            return
        self.say("")
        self.enter()
        self.editor.setActiveEffectByName(EFFECT)
        self.show_started(True)
        if self.editor.activeEffect() is None:  # the user did not want the segmentation to be made editable
            self.ui.startButton.checked = False

    def on_editor_modified(self, caller: Any, event: Any) -> None:
        """The button follows the effect where that is chosen or left in another way (in the editor, by Esc)."""
        active = caller.GetActiveEffectName() == EFFECT
        if active != self.was_active:
            self.was_active = active
            was_blocked = self.ui.startButton.blockSignals(True)
            self.ui.startButton.checked = active
            self.ui.startButton.blockSignals(was_blocked)
            self.show_started(active)

    def show_started(self, started: bool) -> None:
        """What the button will do next."""
        self.ui.startButton.text = _("Stop clicking") if started else _("Start clicking")

    def on_sample_data(self) -> None:
        """Show the Sample Data module."""
        slicer.util.selectModule("SampleData")

    def on_scene_start_close(self, caller: Any, event: Any) -> None:
        """Let go of the nodes that are about to be removed."""
        self.ui.startButton.checked = False
        self.editor.setActiveEffect(None)
        self.editor.setMRMLSegmentEditorNode(None)

    def on_scene_renewed(self, caller: Any, event: Any) -> None:
        """The scene is a new, empty one, or another has been loaded into it."""
        if self.parent.isEntered:
            self.enter()
        else:  # a scene that was saved while clicking must not start that in another module
            self.logic.editor_node().SetActiveEffectName("")

    def say(self, message: str) -> None:
        """Show a message under the start button."""
        self.ui.messageLabel.text = message
        self.ui.messageLabel.visible = bool(message)


class FaMSAMSlicerLogic(ScriptedLoadableModuleLogic):
    """What the module does without its widgets."""

    def getParameterNode(self) -> Any:
        """The typed settings."""
        from FaMSAMSlicerLib.settings import settings

        return settings()

    def editor_node(self) -> Any:
        """The Segment Editor node of this module, not that of the Segment Editor module."""
        node = slicer.mrmlScene.GetSingletonNode("FaMSAMSlicer", "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
            node.UnRegister(None)
            node.SetSingletonTag("FaMSAMSlicer")
            node = slicer.mrmlScene.AddNode(node)
        return node

    def prepare(self) -> None:
        """Choose the shown volume, make a segmentation and a segment, where there is none.

        Raises:
            famsam.VolumeError: there is no usable volume.
        """
        from FaMSAMSlicerLib.preparation import prepare

        prepare(self.editor_node())


class FaMSAMSlicerTest(ScriptedLoadableModuleTest):
    """The self-test, inside Slicer, with the bundled model: click, undo, redo, save, load."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Called by the button **Reload and Test**, to which any exception is a failure."""
        self.setUp()
        try:
            self.test_click_undo_save_load()
        except unittest.SkipTest as reason:
            self.delayDisplay(f"Skipped: {reason}")

    def test_click_undo_save_load(self) -> None:
        """A bright ball is clicked; the segment must be that ball, be undone, redone, saved and loaded."""
        import tempfile
        import time

        import numpy as np
        from FaMSAMSlicerLib.requirements import missing

        if missing():
            names = ", ".join(requirement.name for requirement in missing())
            self.skipTest(f"{names} missing here: press Install in the module's panel first")
        self.delayDisplay("A ball in noise")
        z, y, x = np.indices((64, 72, 80))
        ball = (z - 30) ** 2 + (y - 36) ** 2 + (x - 42) ** 2 < 12**2
        voxels = (np.random.default_rng(0).normal(0, 20, ball.shape) + 400 * ball).astype(np.int16)
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ball")
        slicer.util.updateVolumeFromArray(volume, voxels)
        slicer.util.setSliceViewerLayers(background=volume, fit=True)

        slicer.util.selectModule("FaMSAMSlicer")
        widget = slicer.modules.FaMSAMSlicerWidget  # what the module has is, in Slicer 5.6, the one before a reload
        widget.ui.startButton.checked = True
        effect = widget.editor.activeEffect().self()
        controller = effect.controller

        def settle() -> None:
            deadline = time.time() + 120
            while controller.busy and time.time() < deadline:
                slicer.app.processEvents()
                time.sleep(0.01)
            self.assertFalse(controller.status.is_error, controller.status.message)

        def mask(node: Any, segment_id: str) -> Any:
            return slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, volume) != 0

        node, segment_id = controller.segmentation_node, controller.segment_id
        started = time.time()
        controller.click((42.0, 36.0, 30.0))
        settle()
        first = mask(node, segment_id)
        overlap = 2 * (first & ball).sum() / (first.sum() + ball.sum())
        logging.info("First click: %.2f s, Dice %.3f", time.time() - started, overlap)
        self.assertGreater(overlap, 0.8)

        controller.click((42.0, 36.0, 38.0))
        settle()
        second = mask(node, segment_id)
        widget.editor.undo()
        self.assertTrue((mask(node, segment_id) == first).all())
        self.assertEqual(len(controller.state.prompts), 1)
        widget.editor.redo()
        self.assertTrue((mask(node, segment_id) == second).all())

        self.delayDisplay("Save and load")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "ball.seg.nrrd")
            self.assertTrue(slicer.util.saveNode(node, path))
            loaded = slicer.util.loadSegmentation(path)
        from FaMSAMSlicerLib.prompts import read_state

        self.assertTrue((mask(loaded, segment_id) == second).all())
        self.assertEqual(len(read_state(loaded.GetSegmentation().GetSegment(segment_id)).prompts), 2)
        widget.exit()
        self.assertIsNone(effect.controller)
        self.delayDisplay("FaMSAMSlicer self-test passed")
