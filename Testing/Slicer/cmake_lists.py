"""The files that CMake installs with the module; ``python Testing/Slicer/cmake_lists.py`` lists them anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List

MODULE = Path(__file__).parents[2] / "FaMSAMSlicer"
LISTS = MODULE / "files.cmake"
BUILT = ("famsam/server/page/", "famsam.egg-info/")
"""Made by the Python package's build; Slicer does not need it."""
BUILD_FILES = {"CMakeLists.txt", "files.cmake"}


def on_disk() -> Dict[str, List[str]]:
    """What has to be installed: Python files, and all others, relative to the module's folder."""
    files = sorted(path.relative_to(MODULE).as_posix() for path in MODULE.rglob("*") if path.is_file())
    kept = [
        name
        for name in files
        if not name.startswith(BUILT) and "__pycache__" not in name and "/." not in name and name not in BUILD_FILES
    ]
    return {
        "MODULE_PYTHON_SCRIPTS": [name for name in kept if name.endswith(".py")],
        "MODULE_PYTHON_RESOURCES": [name for name in kept if not name.endswith((".py", ".pyc", ".tmp"))],
    }


def listed() -> Dict[str, List[str]]:
    """What ``files.cmake`` lists."""
    blocks = re.findall(r"set\((\w+)\n(.*?)\s*\)", LISTS.read_text(), re.DOTALL)
    return {name: body.split() for name, body in blocks}


if __name__ == "__main__":
    blocks = (f"set({name}\n" + "".join(f"  {file}\n" for file in files) + "  )\n" for name, files in on_disk().items())
    LISTS.write_text("\n".join(blocks))
