"""Every name of Slicer's that the extension uses exists: in the real classes, or in what Slicer's headers declare."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import slicer
import slicer.util
import vtk

MODULE = Path(__file__).parents[2] / "FaMSAMSlicer"
SOURCES = [MODULE / "FaMSAMSlicer.py", *sorted((MODULE / "FaMSAMSlicerLib").glob("*.py"))]
HEADERS = json.loads(Path(__file__).with_name("slicer_widgets.json").read_text())
IN_THE_APPLICATION = {
    "mrmlScene",
    "app",
    "modules",
    "util",
    "qSlicerSegmentEditorAbstractEffect",
    "qSlicerSegmentEditorScriptedEffect",
    "qMRMLSegmentEditorWidget",
}
ENUM_VALUES = {"NotConfirmed", "ConfirmedWithDialog", "ConfirmedWithoutDialog"}  # of qSlicerSegmentEditorAbstractEffect
WIDGETS = {"scriptedEffect": "qSlicerSegmentEditorScriptedEffect", "editor": "qMRMLSegmentEditorWidget"}


def members_of_all_classes() -> set:
    found = set()
    for module in (slicer, vtk):
        for name in dir(module):
            if name.startswith("vtk"):
                found.update(dir(getattr(module, name)))
    return found


METHOD = re.compile(r"(Get|Set|Add|Remove|Has|Is|Create|Update|Insert)[A-Z0-9]\w+$")
ALL_MEMBERS = members_of_all_classes()


def declared(class_name: str) -> set:
    names = set()
    while class_name in HEADERS:
        header = HEADERS[class_name]
        names |= set(header["methods"]) | set(header["properties"]) | {s.split("(")[0] for s in header["signals"]}
        class_name = header["base"]
    return names | {"self", "setMRMLScene", "layout", "undo", "redo"}


def dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "?", *reversed(parts)])


def unknown_names(source: str) -> list:
    unknown = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        name = dotted(node)
        parts = name.split(".")
        if parts[0] == "slicer" and len(parts) == 2:
            if parts[1] not in IN_THE_APPLICATION and not hasattr(slicer, parts[1]):
                unknown.append(name)
        elif parts[:2] == ["slicer", "util"] and len(parts) == 3:
            if not hasattr(slicer.util, parts[2]):
                unknown.append(name)
        elif re.match(r"(slicer|vtk)\.vtk\w+\.\w+$", name):
            if not hasattr(getattr(slicer if parts[0] == "slicer" else vtk, parts[1]), parts[2]):
                unknown.append(name)
        elif len(parts) >= 3 and parts[0] == "self" and parts[1] in WIDGETS:
            if parts[2] not in declared(WIDGETS[parts[1]]) | ENUM_VALUES:
                unknown.append(name)
        elif parts[:2] == ["self", "effect"] and len(parts) == 3:
            if parts[2] not in declared("qSlicerSegmentEditorScriptedEffect") | {"controller"}:
                unknown.append(name)
        elif METHOD.match(node.attr) and node.attr not in ALL_MEMBERS:
            unknown.append(name)
    return unknown


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_names_exist(path):
    assert not unknown_names(path.read_text())


@pytest.mark.parametrize(
    "wrong",
    [
        "slicer.vtkMRMLVolumNode()",
        "slicer.util.pip_instal('x')",
        "vtk.vtkCommand.LeftButtonPresEvent",
        "self.scriptedEffect.saveStateForUndoo()",
        "self.editor.setActiveEffectByNam('x')",
        "node.GetNthControlPointPositionn(0)",
    ],
)
def test_a_misspelled_name_is_found(wrong):
    assert unknown_names(wrong)


def unknown_in_ui(text: str) -> list:
    unknown = []
    for widget in ElementTree.fromstring(text).iter("widget"):
        class_name = widget.get("class")
        if class_name in HEADERS and class_name != "QWidget":
            names = declared(class_name) | declared("QWidget") | {"title"}
            unknown += [p.get("name") for p in widget.findall("property") if p.get("name") not in names]
        elif not re.match(r"Q(Widget|Label|LineEdit|PushButton|ComboBox|ProgressBar|Frame)$", class_name):
            unknown.append(class_name)
    return unknown


@pytest.mark.parametrize("path", sorted((MODULE / "Resources/UI").glob("*.ui")), ids=lambda path: path.name)
def test_ui_files_use_what_exists(path):
    assert not unknown_in_ui(path.read_text())


def test_an_unknown_widget_or_property_is_found():
    assert unknown_in_ui('<ui><widget class="ctkPathEdit"/></ui>') == ["ctkPathEdit"]
    assert unknown_in_ui('<ui><widget class="ctkPathLineEdit"><property name="path"/></widget></ui>') == ["path"]
