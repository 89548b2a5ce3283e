"""What the Extensions Manager would install: complete, importable, and a click works in it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import cmake_lists
import pytest

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "FaMSAMSlicer"


def test_cmake_lists_and_disk_agree_both_ways():
    assert cmake_lists.listed() == cmake_lists.on_disk(), "run: python Testing/Slicer/cmake_lists.py"


def test_cmake_policies_are_as_old_as_those_of_slicers_macros():
    """With CMP0148 of CMake 3.27, ``find_package(PythonInterp)`` fails, by which CTK compiles scripted modules."""
    text = (ROOT / "CMakeLists.txt").read_text()
    major, minor = re.search(r"^cmake_minimum_required\(VERSION [\d.]+\.\.\.(\d+)\.(\d+)", text, re.MULTILINE).groups()
    assert (int(major), int(minor)) < (3, 27)


def metadata() -> dict:
    return dict(re.findall(r'^set\((EXTENSION_\w+) "([^"$]*)"\)$', (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE))


def test_extension_metadata_is_literal_and_points_to_files_that_exist():
    values = metadata()
    assert values["EXTENSION_DEPENDS"] == "PyTorch"
    urls = [values["EXTENSION_ICONURL"], *values["EXTENSION_SCREENSHOTURLS"].split()]
    for url in urls:
        assert (ROOT / url.split("/main/", 1)[1]).is_file(), url
    assert (ROOT / "LICENSE").is_file()


def test_icon_is_a_128_pixel_png():
    for path in (ROOT / "Resources/Icons/FaMSAMSlicer.png", MODULE / "Resources/Icons/FaMSAMSlicer.png"):
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (128, 128)


def test_index_entry():
    path = ROOT / "Resources/ExtensionIndex/FaMSAMSlicer.json"
    project = re.search(r"^project\((\w+)\)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE).group(1)
    assert path.stem == project, "the index wants the file named after the CMake project"
    entry = json.loads(path.read_text())
    required = {"$schema", "category", "scm_url", "build_dependencies", "tier"}
    optional = {"scm_revision", "scm_type", "build_subdirectory", "enabled"}  # the schema allows no others
    assert required <= set(entry) <= required | optional and entry["category"] == "Segmentation"
    assert entry["$schema"].endswith("/Schemas/slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert entry["build_dependencies"] == metadata()["EXTENSION_DEPENDS"].split() and entry["tier"] in (1, 3, 5)
    assert entry["scm_url"].removesuffix(".git") == metadata()["EXTENSION_HOMEPAGE"]
    assert entry["scm_url"].rsplit("/", 1)[1].startswith("Slicer")


BUNDLED = {"slicer", "qt", "ctk", "vtk", "numpy", "famsam", "FaMSAMSlicerLib", "SegmentEditorEffects"}


@pytest.mark.parametrize("path", [MODULE / "FaMSAMSlicer.py", *sorted((MODULE / "FaMSAMSlicerLib").glob("*.py"))])
def test_nothing_unbundled_is_imported_at_file_scope(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 9))  # the Python of Slicer 5.6
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    assert names - set(sys.stdlib_module_names) <= BUNDLED
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("famsam"):
            bare = ("famsam.errors", "famsam.client")
            assert node.module in bare, "the rest of the engine needs packages that Slicer does not bring"
        assert not isinstance(node, ast.Expr) or isinstance(node.value, ast.Constant), "code that runs at file scope"


SLICER_CONFIG = """
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/use.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/nothing.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/nothing.cmake)
"""
USE = """
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MODULE_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "not an argument: ${MODULE_UNPARSED_ARGUMENTS}")
  endif()
  foreach(file ${MODULE_SCRIPTS} ${MODULE_RESOURCES})
    get_filename_component(folder ${file} DIRECTORY)
    install(FILES ${file} DESTINATION ./${folder})
  endforeach()
endmacro()
"""
CLICK = """
import sys
import numpy as np, slicer, torch
tree = sys.argv[1]
import famsam
assert famsam.__file__.startswith(tree), famsam.__file__
import host
from FaMSAMSlicerLib.controller import Controller
from FaMSAMSlicerLib.engine import Engine
import FaMSAMSlicerLib
assert FaMSAMSlicerLib.__file__.startswith(tree)
from famsam.checkpoints import DEFAULT_WEIGHTS
from famsam.model.famsam import Famsam
torch.manual_seed(0)
bundled = DEFAULT_WEIGHTS.is_file()
engine = Engine() if bundled else Engine(lambda choice: Famsam().eval().requires_grad_(False))
host.scene()
z, y, x = np.indices((40, 44, 48))
ball = (z - 20) ** 2 + (y - 22) ** 2 + (x - 24) ** 2 < 10 ** 2
voxels = (np.random.default_rng(0).normal(0, 20, ball.shape) + 400 * ball).astype(np.int16)
volume = host.volume(voxels, np.eye(4))
node = host.segmentation(volume, "one")
controller = Controller(host.Effect(node, volume, "one"), engine, print)
controller.click((24.0, 22.0, 20.0))
controller.finish(120)
assert not controller.status.is_error, controller.status.message
mask = host.segment_mask(node, "one", ball.shape)
assert mask[20, 22, 24], "the clicked voxel is in the segment"
if bundled:
    dice = 2 * (mask & ball).sum() / (mask.sum() + ball.sum())
    assert dice > 0.8, dice
"""


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and a compiler")
def test_installed_tree_clicks_in_a_clean_python(tmp_path):
    """The real CMake files, with Slicer's macro reduced to installing what it is given."""
    fake, build, tree = tmp_path / "slicer", tmp_path / "build", tmp_path / "tree"
    fake.mkdir()
    (fake / "SlicerConfig.cmake").write_text(SLICER_CONFIG)
    (fake / "use.cmake").write_text(USE)
    (fake / "nothing.cmake").write_text("")
    configure = ["cmake", "-S", ROOT, "-B", build, f"-DSlicer_DIR={fake}", f"-DCMAKE_INSTALL_PREFIX={tree}"]
    for command in (configure, ["cmake", "--install", build]):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    paths = [str(tree), str(Path(__file__).parent)]
    script = f"import sys; sys.path[:0] = {paths!r}\n" + CLICK
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tree)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_pictures_and_files_that_the_tutorial_names_are_there():
    text = (ROOT / "Resources/Slicer.md").read_text()
    named = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(named) >= 6 and all((ROOT / "Resources" / name).is_file() for name in named), named
    if shutil.which("git") and (ROOT / ".git").exists():
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
        assert {f"Resources/{name}" for name in named} <= set(tracked), "forgotten: git add"
    for path in re.findall(r"Testing/\w+/\w+\.py", text):
        assert (ROOT / path).is_file(), path
