"""A click in a real slice view, and in the real 3D view, changes the pixels there; undo changes them back.

Needs a Python of its own with trame-slicer (``views_environment.py`` makes it), named by the environment variable
FAMSAM_TRAME_PYTHON, of the same version as this one, which lends it torch and PySide6; and Mesa's libEGL or libOSMesa.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from views_environment import CANNOT_DRAW, can_draw

HERE = Path(__file__).parent
PYTHON = os.environ.get("FAMSAM_TRAME_PYTHON", "")
RUN = """
import runpy, sys
_, packages, *sys.argv = sys.argv
sys.path.append(packages)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    if not PYTHON or not Path(PYTHON).is_file():
        pytest.skip(
            "FAMSAM_TRAME_PYTHON names no Python with trame-slicer, which draws Slicer's real views; "
            "make one: python Testing/Slicer/views_environment.py FOLDER"
        )
    if not can_draw():
        pytest.skip(CANNOT_DRAW)
    pytest.importorskip("PySide6", reason="the effect's panel runs on PySide6")
    version = [PYTHON, "-c", "import sys, trame_slicer; print('%d.%d' % sys.version_info[:2])"]
    asked = subprocess.run(version, capture_output=True, text=True)
    if asked.stdout.strip() != "{}.{}".format(*sys.version_info[:2]):
        pytest.skip(f"{PYTHON} has no trame-slicer, or is another Python than this one: {asked.stderr[-200:]}")
    folder = tmp_path_factory.mktemp("views")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1] / "FaMSAMSlicer")])}
    command = [PYTHON, "-c", RUN, sysconfig.get_paths()["purelib"], str(HERE / "real_views.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode < 0:
        pytest.skip(f"a view cannot be drawn here (signal {-done.returncode}): libEGL of Mesa or libOSMesa is missing")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


def test_click_in_the_slice_view(result):
    assert result["message"] == "Ready" and result["voxels"] > 5000
    assert result["slice_click"] > 5000
    assert result["after_undo"] == 0
    assert result["after_redo"] < result["slice_click"] / 20, "but for the point, which the pointer has left"


def test_click_in_the_3d_view(result):
    assert "Nothing is there" in result["3d_miss"]
    assert result["3d_prompts"] == 1 and result["3d_click"] > 50
