"""The worker runs although Slicer's main thread keeps Python's interpreter lock while it waits for events."""

from __future__ import annotations

import sys
import threading
import time

import host
import pytest
from FaMSAMSlicerLib.engine import Engine

TIMES = 200


def give_the_lock_away(*_unused):
    """As often as a click does that in torch; how often it came back while the main thread waited for the worker."""
    main, while_waiting = threading.main_thread().ident, 0
    for _ in range(TIMES):
        time.sleep(1e-4)
        while_waiting += sys._current_frames()[main].f_code is threading.Condition.wait.__code__
    return while_waiting


ASKED = {
    "_run": lambda engine: engine.submit(None),
    "_warm_up": lambda engine: engine.warm_up(None),
    "_encode_ahead": lambda engine: engine.encode_ahead(None),
    "_doubt": lambda engine: engine.doubt(None),
    "_propose": lambda engine: engine.propose(None, None),
}


@pytest.mark.parametrize("work", ASKED)
def test_all_that_the_worker_does_is_waited_for(monkeypatch, work):
    engine = Engine()
    monkeypatch.setattr(engine, work, give_the_lock_away)
    future = ASKED[work](engine)
    while engine.is_at_work:
        host.wait_for_events(1)
        engine.wait(0.006)
    assert future.result() > TIMES / 4, "else it goes on by one operation whenever the timer is due"
    engine.close()


def test_waiting_ends_with_the_work_and_with_the_time(monkeypatch):
    engine = Engine()
    engine.wait(60)  # for nothing
    monkeypatch.setattr(engine, "_run", time.sleep)
    future = engine.submit(0.05)
    engine.wait(60)
    assert future.done() and not engine.is_at_work
    engine.submit(0.5)
    engine.wait(0.001)
    assert engine.is_at_work
    engine.wait(60)
    engine.close()


def test_what_is_cancelled_is_no_work(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(engine, "_run", time.sleep)
    engine.submit(0.05)
    engine.submit(60).cancel()
    engine.wait(60)
    assert not engine.is_at_work
    engine.close()
