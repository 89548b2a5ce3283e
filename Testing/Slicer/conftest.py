"""Slicer's real data model for every test of this folder; without it they are skipped, and say why."""

from __future__ import annotations

import gc

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

    @pytest.fixture
    def app(monkeypatch):
        pytest.importorskip("PySide6", reason="the panels run on PySide6 (pip install PySide6-Essentials)")
        import python_qt
        from application import Application

        application = Application(monkeypatch)
        yield application
        application.widget.cleanup()
        while application.engine.is_at_work:
            application.engine.wait(60)
        application.engine.close()
        assert gc.isenabled() and not python_qt.slot_errors
