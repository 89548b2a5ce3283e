"""Turns at the model, and how requests of one session wait for, and give way to, one another."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Iterator, List

import httpx
import pytest
from famsam.server.app import create_app
from famsam.server.fairness import FairTurns, SharedModel
from famsam.server.limits import Limits
from server_fixtures import CENTRE_RAS_MM, RAS_FROM_IJK, ball_zyx, live, nifti_bytes, upload

OTHER_RAS_MM = (RAS_FROM_IJK @ (16, 14, 11, 1))[:3].tolist()


class GatedModel:
    """The real model behind a gate, which a test holds shut to have requests wait."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.gate = threading.Event()
        self.at_gate = threading.Event()

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        self.at_gate.set()
        assert self.gate.wait(60)
        return self._model.decode(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def gated(model: Any) -> GatedModel:
    return GatedModel(model)


@pytest.fixture
def client(gated: GatedModel) -> Iterator[httpx.Client]:
    app = create_app(gated, limits=Limits(waiting_per_session=3))
    with live(app) as opened:
        opened.app = app  # type: ignore[attr-defined]
        yield opened
        gated.gate.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def wait_until(condition: Any) -> None:
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


class Someone:
    """Who takes turns."""


def test_whoever_had_less_goes_first() -> None:
    turns, order = FairTurns(), []
    greedy, modest = Someone(), Someone()
    with turns.turn(greedy):
        time.sleep(0.02)

    def queue(who: Someone, name: str) -> None:
        with turns.turn(who):
            order.append(name)

    threads = [threading.Thread(target=queue, args=pair) for pair in ((greedy, "greedy"), (modest, "modest"))]
    with turns.turn(Someone()):
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda n=number: len(turns._waiting) == n)
    for thread in threads:
        thread.join()
    assert order == ["modest", "greedy"]


def test_a_turn_is_given_back_after_an_error(model: Any) -> None:
    turns = FairTurns()
    shared = SharedModel(model, turns)
    with pytest.raises(TypeError):
        shared.encode()
    with turns.turn(shared):
        pass
    assert shared.name == model.name


def test_a_click_gets_in_between_the_calls_of_anothers_long_work() -> None:
    turns, order = FairTurns(), []
    scan, click = Someone(), Someone()
    started = threading.Event()

    def long_work() -> None:
        for number in range(5):
            with turns.turn(scan):
                order.append("scan")
                started.set()
                if number == 0:
                    wait_until(lambda: len(turns._waiting) == 1)
                time.sleep(0.005)

    thread = threading.Thread(target=long_work)
    thread.start()
    started.wait(10)
    with turns.turn(click):
        order.append("click")
    thread.join()
    assert order == ["scan", "click", "scan", "scan", "scan", "scan"]


def test_previews_give_way_to_newer_requests_and_clicks_do_not(
    client: httpx.Client, gated: GatedModel, pool: ThreadPoolExecutor
) -> None:
    volume = upload(client, nifti_bytes(ball_zyx())).json()["id"]
    session = client.post(f"/v1/volumes/{volume}/sessions").json()["id"]

    def ask(verb: str, point: List[float]) -> Future[httpx.Response]:
        return pool.submit(client.post, f"/v1/sessions/{session}/{verb}", json={"point_ras_mm": point})

    first_click = ask("points", CENTRE_RAS_MM)
    assert gated.at_gate.wait(60)  # being computed
    old_preview = ask("preview", OTHER_RAS_MM)
    hub = client.app.state.hub  # type: ignore[attr-defined]
    wait_until(lambda: hub._waiting == 2)
    second_click = ask("points", OTHER_RAS_MM)
    wait_until(lambda: hub._waiting == 3)
    one_too_many = ask("points", CENTRE_RAS_MM).result(60)
    assert one_too_many.status_code == 429 and one_too_many.headers["retry-after"]
    gated.gate.set()
    superseded = old_preview.result(60)
    assert superseded.status_code == 409 and superseded.json()["code"] == "superseded"
    assert first_click.result(60).status_code == second_click.result(60).status_code == 200
    prompts = client.get(f"/v1/sessions/{session}/state").json()["state"]["prompts"]
    assert [prompt["ras_mm"] for prompt in prompts] == [CENTRE_RAS_MM, OTHER_RAS_MM]
