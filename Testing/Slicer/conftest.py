"""Slicer's real data model for every test of this folder; without it they are skipped, and say why."""

from __future__ import annotations

import pytest

try:
    import slicer  # noqa: F401
    import vtk  # noqa: F401
except ImportError:
    collect_ignore_glob = ["test_*.py"]
    HAVE_SLICER = False
else:
    HAVE_SLICER = True


def pytest_terminal_summary(terminalreporter):
    if not HAVE_SLICER:
        terminalreporter.write_line(
            "Testing/Slicer was left out: it needs Slicer's data model (pip install 'slicer-core>=5.13').", yellow=True
        )


if HAVE_SLICER:
    from worlds import World

    @pytest.fixture
    def make_world():
        made = []

        def make(*args, **kwargs):
            made.append(World(*args, **kwargs))
            return made[-1]

        yield make
        for world in made:
            world.controller.close()
            world.engine.close()

    @pytest.fixture
    def world(make_world):
        return make_world()
