"""Slicer's Python side of Qt on PySide6, off screen: enough to run the module's ``setup()`` and the effect's panel.

What PythonQt does is done in ``python_qt.py``. Widgets of Slicer and CTK are stand-ins that offer only what the headers
declare (``slicer_widgets.json``, checked by a test); the Segment Editor's is driven by the real editor logic. This
proves our Python, not Slicer's widgets.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Optional

import host
import slicer
import vtk
from PySide6 import QtCore, QtUiTools, QtWidgets
from python_qt import make_qt

HEADERS: Dict[str, Dict[str, Any]] = json.loads(Path(__file__).with_name("slicer_widgets.json").read_text())
APPLICATION = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["test"])


class UiLoader(QtUiTools.QUiLoader):
    """Builds stand-ins by class name, and fails on a class that is neither Qt's nor one of them."""

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        if class_name in STAND_INS:
            widget = STAND_INS[class_name](parent)
            widget.setObjectName(name)
            return widget
        if not hasattr(QtWidgets, class_name):
            self.unknown.append(class_name)
        return super().createWidget(class_name, parent, name)

    def load(self, *arguments: Any) -> Any:
        self.unknown: List[str] = []
        widget = super().load(*arguments)
        if self.unknown:
            raise RuntimeError(f"the .ui file uses {self.unknown}, which has no stand-in")
        return widget


# --- stand-ins for widgets ---


class qMRMLWidget(QtWidgets.QWidget):
    mrmlSceneChanged = QtCore.Signal(object)

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        return getattr(self, "_scene", None)


class ctkPathLineEdit(QtWidgets.QWidget):
    currentPathChanged = QtCore.Signal(str)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._edit = QtWidgets.QLineEdit(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._edit)
        self._filters: List[str] = []

    def _path(self) -> str:
        return getattr(self, "_current", "")

    def _set_path(self, path: str) -> None:
        if path != self._path():
            self._current = path
            self._edit.setText(path)
            self.currentPathChanged.emit(path)

    currentPath = QtCore.Property(str, _path, _set_path, notify=currentPathChanged)
    nameFilters = QtCore.Property("QStringList", lambda s: s._filters, lambda s, v: setattr(s, "_filters", v))


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    def _set_collapsed(self, collapsed: bool) -> None:
        self._collapsed = collapsed

    collapsed = QtCore.Property(bool, lambda s: getattr(s, "_collapsed", False), _set_collapsed)


STAND_INS = {c.__name__: c for c in (qMRMLWidget, ctkPathLineEdit, ctkCollapsibleGroupBox)}


class ScriptedEffect(host.Effect):
    """``qSlicerSegmentEditorScriptedEffect``: parameters in the editor node, an options frame, geometry of views."""

    factory: ClassVar[Dict[str, Any]] = {}

    def __init__(self, _parent: Any = None) -> None:
        self.name = self.title = ""
        self.perSegment = self.requireSegments = True
        self.showEffectCursorInSliceView = self.showEffectCursorInThreeDView = True
        self.editor: Any = None
        self._frame = QtWidgets.QFrame()
        self._layout = QtWidgets.QVBoxLayout(self._frame)

    def setPythonSource(self, path: str) -> None:
        package = __import__(Path(path).parent.name)
        self._effect = getattr(package, Path(path).stem)(self)

    def self(self) -> Any:
        return self._effect

    @property
    def node(self) -> Any:
        return self.editor.node

    @property
    def logic(self) -> Any:
        return self.editor.logic

    def setParameter(self, name: str, value: Any) -> None:
        self.node.SetAttribute(f"{self.name}.{name}", str(value))
        self._effect.updateGUIFromMRML()

    def setParameterDefault(self, name: str, value: Any) -> None:
        if self.node.GetAttribute(f"{self.name}.{name}") is None:
            self.node.SetAttribute(f"{self.name}.{name}", str(value))

    def parameterDefined(self, name: str) -> bool:
        return bool(self.node.GetAttribute(f"{self.name}.{name}"))

    def parameter(self, name: str) -> str:
        value = self.node.GetAttribute(f"{self.name}.{name}")
        assert value is not None, f"{name} is no parameter of {self.name}"
        return value

    def addOptionsWidget(self, widget: Any) -> None:
        self._layout.addWidget(widget)

    def optionsFrame(self) -> Any:
        return self._frame

    def selectEffect(self, name: str) -> None:
        self.editor.setActiveEffectByName(name) if name else self.editor.setActiveEffect(None)

    def _interaction_node_modified(self, node: Any) -> None:
        """The effect's own, or else what Slicer does: no effect while markups are placed."""
        if hasattr(self._effect, "interactionNodeModified"):
            self._effect.interactionNodeModified(node)
        elif node.GetCurrentInteractionMode() != node.ViewTransform:
            self.selectEffect("")


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """The Segment Editor's widget: selectors, undo, one active effect; all of it over the real editor logic."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.node: Any = None
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self._active: Any = None
        self.observing_views = self.shortcuts = False
        self._names: List[str] = []
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._effects: Dict[str, ScriptedEffect] = {}
        self.updateEffectList()

    unorderedEffectsVisible = QtCore.Property(
        bool, lambda s: getattr(s, "_unordered", True), lambda s, v: setattr(s, "_unordered", v)
    )

    def updateEffectList(self) -> None:
        """Copy the effects that have been registered since; nothing else does it."""
        for name in ScriptedEffect.factory.keys() - self._effects.keys():
            effect = ScriptedEffect.factory[name].self().clone()
            effect.editor = self
            if self.node is not None:
                effect.self().setMRMLDefaults()
            effect.self().setupOptionsFrame()
            self._effects[name] = effect

    def setMRMLScene(self, scene: Any) -> None:
        super().setMRMLScene(scene)
        self.logic.SetMRMLScene(scene)
        self._interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
        if self._interaction is not None:
            self._interaction.AddObserver(vtk.vtkCommand.ModifiedEvent, self._interaction_modified)

    def setMaximumNumberOfUndoStates(self, count: int) -> None:
        self.logic.SetMaximumNumberOfUndoStates(count)

    def setEffectNameOrder(self, names: List[str]) -> None:
        self._names = list(names)
        self.updateEffectList()

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        if node is self.node:
            return
        self.node = node
        self.logic.SetSegmentEditorNode(node)
        if node is not None:
            for name in self._names:
                self._effect(name)
            self._follow_node()

    def mrmlSegmentEditorNode(self) -> Any:
        return self.node

    def updateWidgetFromMRML(self) -> None:
        if self.node is not None and self.node.GetSegmentationNode() is not None:
            self.logic.UpdateReferenceGeometryImage()

    def setActiveEffectByName(self, name: str) -> None:
        self.setActiveEffect(self._effect(name))

    def setActiveEffect(self, effect: Any) -> None:
        if self.node is not None:
            self.node.SetActiveEffectName("" if effect is None else effect.name)
            self._follow_node()

    def _follow_node(self) -> None:
        """Leave and enter effects as the node says; not while the scene is closed or loaded."""
        name = self.node.GetActiveEffectName()
        effect = self._effect(name) if name else None
        if effect is self._active or self._scene.IsClosing() or self._scene.IsBatchProcessing():
            return
        if self._active is not None:
            self._active.self().deactivate()
            self._active.optionsFrame().hide()
        self._active = effect
        if effect is not None and self._interaction is not None:
            self._interaction.SetCurrentInteractionMode(self._interaction.ViewTransform)
        if effect is not None:
            self.layout().addWidget(effect.optionsFrame())
            effect.optionsFrame().show()
            effect.self().updateGUIFromMRML()
            effect.self().activate()

    def activeEffect(self) -> Any:
        return self._active

    def _interaction_modified(self, node: Any, event: str) -> None:
        if self._active is not None:
            self._active._interaction_node_modified(node)

    def setupViewObservations(self) -> None:
        self.observing_views = True

    def removeViewObservations(self) -> None:
        self.observing_views = False

    def installKeyboardShortcuts(self) -> None:
        self.shortcuts = True

    def uninstallKeyboardShortcuts(self) -> None:
        self.shortcuts = False

    def setSegmentationNode(self, node: Any) -> None:
        """The effect is left, when the other one is selected already (Slicer 5.8 and older leave it before that)."""
        if node is not self.logic.GetSegmentationNode():
            self.logic.SetSegmentationNode(node)
            self.updateWidgetFromMRML()
            self.setActiveEffect(None)

    def setSourceVolumeNode(self, node: Any) -> None:
        self.logic.SetSourceVolumeNode(node)
        if self._active is not None:
            self._active.self().sourceVolumeNodeChanged()

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self.logic.SetCurrentSegmentID(segment_id)

    def undo(self) -> None:
        self.logic.Undo()

    def redo(self) -> None:
        self.logic.Redo()

    def _effect(self, name: str) -> Optional[ScriptedEffect]:
        effect = self._effects.get(name)
        if effect is not None and self.node is not None:
            effect.self().setMRMLDefaults()
        return effect


class SliceView:
    """A slice view as an effect sees it: 300×300 pixels, 60 mm wide."""

    def __init__(self, orientation: str, center: Any, name: str = "") -> None:
        self._node = slicer.vtkMRMLSliceNode()
        self._node.SetName(name or orientation)
        self._node.SetLayoutName(name or orientation)
        slicer.mrmlScene.AddNode(self._node)
        self._node.SetOrientation(orientation)
        self._node.SetDimensions(300, 300, 1)
        self._node.SetFieldOfView(60.0, 60.0, 1.0)
        self._node.JumpSliceByCentering(*center)
        self._renderer = vtk.vtkRenderer()
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetSize(300, 300)
        self._window.AddRenderer(self._renderer)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self._window)

    def className(self) -> str:
        return "qMRMLSliceWidget"

    def sliceView(self) -> Any:
        return types.SimpleNamespace(renderWindow=lambda: self._window)

    def mrmlSliceNode(self) -> Any:
        return self._node

    def pixel(self, world: Any) -> Any:
        """Of a place in the world."""
        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._node.GetXYToRAS(), matrix)
        x, y, _z, _w = matrix.MultiplyPoint((*world, 1.0))
        return round(x), round(y)


class ThreeDView:
    """A 3D view as an effect sees it, with its own camera."""

    def __init__(self) -> None:
        self._renderer = vtk.vtkRenderer()
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetSize(300, 300)
        self._window.AddRenderer(self._renderer)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self._window)

    def className(self) -> str:
        return "qMRMLThreeDWidget"

    def threeDView(self) -> Any:
        return types.SimpleNamespace(renderWindow=lambda: self._window)


# --- modules that Slicer has ---


class _ModuleBase:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class _WidgetBase:
    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.layout = QtWidgets.QVBoxLayout(parent)

    def setup(self) -> None:
        pass

    def resourcePath(self, name: str) -> str:
        import FaMSAMSlicer

        return str(Path(FaMSAMSlicer.__file__).parent / "Resources" / name)


class _EffectBase:
    def __init__(self, scripted_effect: Any) -> None:
        self.scriptedEffect = scripted_effect

    def register(self) -> None:
        ScriptedEffect.factory[self.scriptedEffect.name] = self.scriptedEffect


def parameter_node_wrapper(wrapped: Any) -> Any:
    """A typed view of a parameter node: annotated attributes are kept in it as JSON."""

    def accessor(name: str) -> property:
        def read(self: Any) -> Any:
            text = self.parameterNode.GetParameter(name)
            return json.loads(text) if text else getattr(defaults, name)

        def write(self: Any, value: Any) -> None:
            self.parameterNode.SetParameter(name, json.dumps(value))

        return property(read, write)

    defaults = type("Defaults", (), {name: getattr(wrapped, name) for name in wrapped.__annotations__})
    members = {name: accessor(name) for name in wrapped.__annotations__}
    members["__init__"] = lambda self, node: setattr(self, "parameterNode", node)
    return type(wrapped.__name__, (), {**members, "__doc__": wrapped.__doc__})


class App(QtCore.QObject):
    """``slicer.app``."""

    startupCompleted = QtCore.Signal()
    aboutToQuit = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="slicer-settings-")
        self._settings = QtCore.QSettings(str(Path(self._folder.name) / "Slicer.ini"), QtCore.QSettings.IniFormat)

    def userSettings(self) -> Any:
        return self._settings

    def processEvents(self) -> None:
        APPLICATION.processEvents()

    def applicationLogic(self) -> Any:
        return host.application_logic()


def install() -> None:
    """Put the modules where the extension imports them from, and the widgets where it finds them."""
    if "qt" in sys.modules:
        return
    if sys.version_info < (3, 12):
        # PySide6 6.12 gives away a reference to None with every call; before None was immortal, that ends the process.
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40

    def module(name: str, **members: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)

    sys.modules["qt"] = make_qt()
    sys.modules["qt"].QUiLoader = UiLoader  # type: ignore[attr-defined]
    module("ctk")
    module("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
    module("slicer.parameterNodeWrapper", parameterNodeWrapper=parameter_node_wrapper)
    module(
        "slicer.ScriptedLoadableModule",
        ScriptedLoadableModule=_ModuleBase,
        ScriptedLoadableModuleWidget=_WidgetBase,
        ScriptedLoadableModuleLogic=type("ScriptedLoadableModuleLogic", (), {}),
        ScriptedLoadableModuleTest=type("ScriptedLoadableModuleTest", (), {}),
    )
    module("SegmentEditorEffects", AbstractScriptedSegmentEditorEffect=_EffectBase)
    logic = types.SimpleNamespace(sources=[])
    logic.registerCustomSampleDataSource = lambda **source: logic.sources.append(source)
    module("SampleData", SampleDataLogic=logic)
    slicer.app = App()
    slicer.qSlicerSegmentEditorScriptedEffect = ScriptedEffect
    slicer.qMRMLSegmentEditorWidget = qMRMLSegmentEditorWidget
