"""An environment of its own for Slicer's real views: trame-slicer pins an older slicer-core than the other tests use.

    python views_environment.py FOLDER

Makes it where views can be drawn and packages can be installed; else says why not, so that the tests of the views are
skipped. Never fails, and never takes longer than ``LIMIT_S``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from ctypes.util import find_library
from pathlib import Path

PACKAGES = ["trame-slicer[standalone]==2.0.0"]
LIMIT_S = 300
CANNOT_DRAW = "nothing here can draw a view: install Mesa's libEGL (libegl1 and libgl1-mesa-dri) or libOSMesa"


def can_draw() -> bool:
    """Whether a library for drawing off screen is there; without one, making a view ends the process."""
    return any(find_library(name) for name in ("EGL", "OSMesa"))


def python_in(folder: Path) -> Path:
    """The environment's Python."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make(folder: Path) -> str:
    """Returns:
    why there is no such environment; empty if it is there now.
    """
    if not can_draw():
        return CANNOT_DRAW
    try:
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python_in(folder)), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "1"]
        done = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True, timeout=LIMIT_S)
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    else:
        problem = done.stderr.strip()[-300:] if done.returncode else ""
    if problem:
        shutil.rmtree(folder, ignore_errors=True)
        return f"{' '.join(PACKAGES)} could not be installed: {problem}"
    return ""


if __name__ == "__main__":
    reason = make(Path(sys.argv[1]))
    sys.stdout.write(f"Slicer's real views are not tested here: {reason}\n" if reason else "")
