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


def test_points_are_deleted_by_menu_and_by_key(result):
    assert result["point_menus"] == [0] and result["points_left"] == [0, 0]


def test_click_in_the_3d_view(result):
    assert "Nothing is there" in result["3d_miss"]
    assert result["3d_prompts"] == 1 and result["3d_click"] > 50


def test_click_in_a_reformatted_view(result):
    assert result["reformatted_place"] == pytest.approx([30.0, 60.0, 30.0], abs=0.5)
    assert result["reformatted_click"] > 2000 and result["reformatted_click_in_the_other_view"] > 2000


def test_doubts_are_drawn_in_the_slice_view(result):
    assert result["doubt"] > 100 and result["doubt_gone"] == 0


def test_box_in_the_slice_view(result):
    assert result["box_rectangle"] > 100 and result["box_message"] == "Ready"
    assert result["box"]["type"] == "box"
    assert result["box"]["lower_ras_mm"][:2] == pytest.approx([26.0, 22.0], abs=0.5)
    assert result["box"]["upper_ras_mm"][:2] == pytest.approx([64.0, 58.0], abs=0.5)


def test_preview_in_the_3d_view(result):
    assert result["3d_preview"] > 1000 and result["3d_preview_prompts"] == 0
    first, *others = result["3d_preview_picked"]
    for other in others:
        assert other == pytest.approx(first, abs=1e-6), "the preview itself is not in the pointer's way"
    assert result["3d_preview_gone"] == 0


def test_click_on_the_volume_rendering(result):
    assert "Nothing is there" in result["vr_miss"]
    assert result["vr_prompts"] == 1 and result["vr_message"] == "Ready"
    r, a, _s = result["vr_place"]
    assert (r - 45) ** 2 + (a - 40) ** 2 == pytest.approx(34**2, rel=0.1), "a millimetre behind the body's surface"
