"""The package as a whole: light to import, free of any host, typed, and with one version."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import famsam
import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

PACKAGE = Path(famsam.__file__).parent
ROOT = PACKAGE.parent.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
HOST_MODULES = {"slicer", "qt", "ctk", "vtk", "vtkmodules", "PythonQt"}
LAZY_MODULES = ("torch", "SimpleITK", "nibabel", "numpy", "matplotlib", "cc3d", "fastapi")


def imported_names(source: str) -> set[str]:
    """Top-level names of every absolute import, wherever in the file it stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def called_names(source: str) -> set[str]:
    """Names of the functions that are called by a plain name."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {node.func.id for node in calls if isinstance(node.func, ast.Name)}


def test_import_is_lazy_and_names_resolve_on_use():
    code = (
        "import json, sys, famsam\n"
        f"early = [name for name in {LAZY_MODULES!r} if name in sys.modules]\n"
        "famsam.Session\n"
        "print(json.dumps([early, 'torch' in sys.modules]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    early, torch_after_use = json.loads(done.stdout)
    assert early == []
    assert torch_after_use


def test_command_line_parses_without_heavy_imports():
    code = "import sys, famsam.cli as cli; cli._parser(); print([n for n in ('torch', 'numpy') if n in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", famsam.__all__)
def test_public_names_resolve(name):
    value = getattr(famsam, name)
    assert value.__doc__, f"famsam.{name} has no docstring"
    assert name in dir(famsam)


def test_unknown_names_are_refused_as_python_does():
    with pytest.raises(AttributeError, match="no attribute 'segmentation'"):
        famsam.segmentation  # noqa: B018


def test_errors_have_one_root():
    errors = [getattr(famsam, name) for name in famsam.__all__ if name.endswith("Error")]
    assert len(errors) > 3 and all(issubclass(error, famsam.FamsamError) for error in errors)


def test_the_walk_sees_the_engine_and_what_it_imports():
    assert PACKAGE / "segmenter.py" in SOURCES and PACKAGE / "server" / "app.py" in SOURCES
    assert imported_names("def f():\n    import vtk.util\n    from slicer.util import x\n    from . import qt") == {
        "vtk",
        "slicer",
    }


def test_no_engine_file_imports_a_host():
    found = {str(path.relative_to(PACKAGE)): imported_names(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: names & HOST_MODULES for path, names in found.items() if names & HOST_MODULES} == {}


def test_only_the_command_line_prints():
    printing = [path.name for path in SOURCES if "print" in called_names(path.read_text(encoding="utf-8"))]
    assert printing == ["cli.py"]


def test_every_file_is_python_39_and_documented():
    undocumented, unguarded = [], []
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, feature_version=(3, 9))
        if tree.body and not ast.get_docstring(tree):
            undocumented.append(path.name)
        defines = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body)
        if defines and "from __future__ import annotations" not in source:
            unguarded.append(path.name)
    assert undocumented == []
    assert unguarded == [], "annotations must not be evaluated: Python 3.9 does not know all of them"


@pytest.mark.parametrize(
    "platform, machine, newest",
    [("darwin", "x86_64", "1.26.4"), ("darwin", "arm64", "2.4.6"), ("win32", "AMD64", "2.4.6")],
)
def test_numpy_is_one_that_the_newest_torch_there_knows(platform, machine, newest):
    """On Macs with Intel processors that is torch 2.2, which knows none from 2 on."""
    environment = {**default_environment(), "sys_platform": platform, "platform_machine": machine}
    written = re.findall(r'^    "(numpy[^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    (asked,) = [r for r in map(Requirement, written) if r.marker is None or r.marker.evaluate(environment)]
    assert newest in asked.specifier and ("2.4.6" in asked.specifier) == (newest == "2.4.6")


def test_version_is_one_literal():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project and 'attr = "famsam.__version__"' in project
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    literal = re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', source, re.MULTILINE)
    assert literal and literal.group(1) == famsam.__version__


def test_types_and_weights_ship():
    assert (PACKAGE / "py.typed").is_file()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project[project.index("[tool.setuptools.package-data]") :]
    packaged = re.search(r"^famsam = \[(.*?)\]", table, re.MULTILINE)
    assert packaged and {'"py.typed"', '"weights/*"'} <= set(packaged.group(1).split(", "))
