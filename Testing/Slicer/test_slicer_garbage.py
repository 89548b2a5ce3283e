"""The main thread collects Python's garbage, never the worker: widgets must not be destroyed there."""

from __future__ import annotations

import gc
import threading

import pytest
from FaMSAMSlicerLib.engine import Engine

MANY = 100_000


class Widget:
    """Freed by the garbage collector only, as what holds a widget often is."""

    freed_by: list = []  # noqa: RUF012

    def __init__(self):
        self.me = self

    def __del__(self):
        self.freed_by.append(threading.current_thread())


def make_objects(*_unused):
    return [[] for _ in range(MANY)]


@pytest.fixture
def engine(monkeypatch):
    Widget.freed_by.clear()
    engine = Engine()
    monkeypatch.setattr(engine, "_run", make_objects)
    yield engine
    engine.close()


def let_work(engine):
    while engine.is_at_work:
        engine.wait(0.006)


def test_the_worker_frees_nothing_of_the_main_thread(engine):
    for _ in range(10):
        Widget()
        engine.submit(None)
    let_work(engine)
    assert gc.isenabled()
    gc.collect()
    assert len(Widget.freed_by) == 10 and set(Widget.freed_by) == {threading.main_thread()}


def test_garbage_does_not_pile_up_while_the_worker_is_at_work(engine, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(engine, "_run", lambda request: gate.wait(60))
    engine.submit(None)
    gc.enable()  # as something else may do
    for _ in range(5):
        kept = [Widget() for _ in range(2 * gc.get_threshold()[0])]
        del kept
        engine.wait(0.001)
        assert not gc.isenabled()
    assert len(Widget.freed_by) >= gc.get_threshold()[0]
    gate.set()
    let_work(engine)
    assert gc.isenabled()


def test_it_is_on_again_however_the_end_of_the_work_is_noticed(engine):
    engine.submit(None).result()
    assert not engine.is_at_work and gc.isenabled()


def test_what_somebody_else_has_switched_off_stays_off(engine):
    gc.disable()
    try:
        engine.submit(None)
        let_work(engine)
        assert not gc.isenabled()
    finally:
        gc.enable()
