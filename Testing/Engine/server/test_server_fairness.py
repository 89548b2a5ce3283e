"""Turns at the model, and how requests of one session wait for, and give way to, one another."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Iterator, List, Tuple

import httpx
import pytest
import torch
from famsam.server.app import create_app
from famsam.server.fairness import FairTurns, ModelBusyError, ModelThread, SharedModel
from famsam.server.hub import AHEAD, CHANGE, LOOK, WORKERS, OpenSession
from famsam.server.limits import Limits
from server_fixtures import CENTRE_RAS_MM, RAS_FROM_IJK, ball_zyx, live, nifti_bytes, upload

OTHER_RAS_MM = (RAS_FROM_IJK @ (16, 14, 11, 1))[:3].tolist()


class GatedModel:
    """The real model behind a gate, which a test holds shut to have requests wait."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.encodes = 0
        self.gate = threading.Event()
        self.at_gate = threading.Event()

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        self.encodes += 1
        return self._model.encode(*args, **kwargs)

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
    app = create_app(gated, limits=Limits(waiting_per_session=4))
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


def test_the_model_computes_in_one_thread_with_all_cores_and_others_with_one() -> None:
    before, found = torch.get_num_threads(), {}

    def elsewhere() -> None:
        thread.keep_to_one_core()
        found["elsewhere"] = torch.get_num_threads()
        found["model"] = thread.run(lambda: (threading.get_ident(), torch.get_num_threads()))

    thread = ModelThread()
    try:
        for _ in range(2):
            one = threading.Thread(target=elsewhere)
            one.start()
            one.join()
            assert found["elsewhere"] == 1 and found["model"][1] == before
            assert found["model"][0] not in (one.ident, threading.get_ident())
        with pytest.raises(ZeroDivisionError):
            thread.run(lambda: 1 / 0)
    finally:
        thread.close()
        torch.set_num_threads(before)


def test_a_turn_is_given_back_after_an_error(model: Any) -> None:
    turns = FairTurns()
    thread = ModelThread()
    shared = SharedModel(model, turns, thread)
    with pytest.raises(TypeError):
        shared.encode()
    thread.close()
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


def test_who_is_not_to_wait_is_told_that_the_model_is_in_use() -> None:
    turns, entered = FairTurns(), []
    with turns.turn(Someone()), pytest.raises(ModelBusyError), turns.turn(Someone(), waits=False):
        entered.append("while it was in use")
    with turns.turn(Someone(), waits=False):
        entered.append("when it was free")
    assert entered == ["when it was free"]


@pytest.mark.parametrize(
    ("kinds", "given_up"),
    [
        ([LOOK, LOOK, CHANGE], [True, True, False]),
        ([LOOK, AHEAD], [False, False]),
        ([AHEAD, LOOK, AHEAD, AHEAD], [True, False, True, False]),
        ([CHANGE, CHANGE], [False, False]),
        (["move 1", LOOK, "move 1"], [True, True, False]),
        (["move 1", "move 2"], [False, False]),
        (["move 1", CHANGE, "move 1"], [False, False, False]),  # what lies between may have renumbered the points
    ],
    ids=str,
)
def test_what_gives_way_to_what(kinds: List[str], given_up: List[bool]) -> None:
    async def opened() -> OpenSession:  # in a loop, which Python 3.9 has locks made in
        return OpenSession("id", None, None, None)  # type: ignore[arg-type]

    session = asyncio.run(opened())
    assert [asked.superseded for asked in [session.arrived(kind) for kind in kinds]] == given_up


def opened(client: httpx.Client, volume: Any = None) -> Any:
    volume = volume or upload(client, nifti_bytes(ball_zyx())).json()["id"]
    return volume, client.post(f"/v1/volumes/{volume}/sessions").json()["id"]


def ahead(client: httpx.Client, session: str, point: Any = OTHER_RAS_MM) -> httpx.Response:
    return client.post(f"/v1/sessions/{session}/encode-ahead", json={"point_ras_mm": point})


def test_encoding_ahead_leaves_nothing_to_encode_for_the_click(client: httpx.Client, gated: GatedModel) -> None:
    gated.gate.set()
    volume, session = opened(client)
    while ahead(client, session, CENTRE_RAS_MM).json()["more"]:
        pass
    encoded = gated.encodes
    assert encoded > 0
    _, sibling = opened(client, volume)  # has what was encoded for the other session of the scan
    assert ahead(client, sibling, CENTRE_RAS_MM).json() == {"more": False}
    assert client.get(f"/v1/sessions/{session}/state").json()["state"]["prompts"] == []
    assert gated.encodes == encoded


def test_sessions_of_a_scan_encode_once_and_see_what_a_lone_one_sees(client: httpx.Client, gated: GatedModel) -> None:
    gated.gate.set()
    volume, first = opened(client)
    answers, encodes = [], []
    for session in (first, opened(client, volume)[1], opened(client)[1]):
        gated.encodes = 0
        for positive, point in ((True, CENTRE_RAS_MM), (False, OTHER_RAS_MM)):
            body = {"point_ras_mm": point, "positive": positive}
            answers.append(client.post(f"/v1/sessions/{session}/points", json=body).json())
        encodes.append(gated.encodes)
    assert encodes[0] > 0 and encodes[1] == 0 and encodes[2] == encodes[0]
    for one, other in zip(answers[:2] * 2, answers[2:]):
        assert {**one, "timings_ms": None} == {**other, "timings_ms": None}


def test_what_was_encoded_of_a_scan_goes_when_nobody_works_on_it(client: httpx.Client, gated: GatedModel) -> None:
    gated.gate.set()
    volume, session = opened(client)
    ahead(client, session)
    hub = client.app.state.hub  # type: ignore[attr-defined]
    scan = hub.scan(volume)
    for closes, left in ((False, 1), (True, 1)):
        if closes:
            client.delete(f"/v1/sessions/{session}")
        hub.close_idle()
        assert len(scan.embeddings) == left
    scan.used_s -= 300
    hub.close_idle()
    assert len(scan.embeddings) == 0 and client.get(f"/v1/volumes/{volume}").status_code == 200


def beside_a_click(client: httpx.Client, gated: GatedModel, pool: ThreadPoolExecutor) -> Tuple[str, Future[Any]]:
    """A session, and the answer to come to another session's click that is held up in the model."""
    _, clicking = opened(client)
    _, resting = opened(client)
    click = pool.submit(client.post, f"/v1/sessions/{clicking}/points", json={"point_ras_mm": CENTRE_RAS_MM})
    assert gated.at_gate.wait(60)
    return resting, click


def test_however_many_wait_for_the_model_others_are_answered(client: httpx.Client, gated: GatedModel) -> None:
    volume_id, first = opened(client)
    others = [client.post(f"/v1/volumes/{volume_id}/sessions").json()["id"] for _ in range(WORKERS)]
    hub = client.app.state.hub  # type: ignore[attr-defined]
    with ThreadPoolExecutor(WORKERS) as pool:
        click = {"point_ras_mm": CENTRE_RAS_MM}
        clicks = [pool.submit(client.post, f"/v1/sessions/{one}/points", json=click) for one in others]
        try:
            wait_until(lambda: all(hub.session(one).waiting for one in others))
            assert gated.at_gate.wait(60)
            assert client.get(f"/v1/sessions/{first}/mask", timeout=30).status_code == 200
        finally:
            gated.gate.set()
        assert [one.result(60).status_code for one in clicks] == [200] * WORKERS


def test_encoding_ahead_waits_until_nobody_clicks(
    client: httpx.Client, gated: GatedModel, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famsam.server.hub.IDLE_PATIENCE_S", 60.0)
    resting, click = beside_a_click(client, gated, pool)
    encoded = gated.encodes
    waits = pool.submit(ahead, client, resting)
    hub = client.app.state.hub  # type: ignore[attr-defined]
    wait_until(lambda: hub.session(resting).waiting == 1)
    assert gated.encodes == encoded
    gated.gate.set()
    assert click.result(60).status_code == 200 and waits.result(60).json() == {"more": True}


def test_encoding_ahead_gives_way_to_a_click_of_its_own_session(
    client: httpx.Client, gated: GatedModel, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famsam.server.hub.IDLE_PATIENCE_S", 60.0)
    resting, click = beside_a_click(client, gated, pool)
    waits = pool.submit(ahead, client, resting)
    hub = client.app.state.hub  # type: ignore[attr-defined]
    wait_until(lambda: hub.session(resting).waiting == 1)
    own = pool.submit(client.post, f"/v1/sessions/{resting}/points", json={"point_ras_mm": CENTRE_RAS_MM})
    wait_until(lambda: hub.session(resting).waiting == 2)
    gated.gate.set()
    assert waits.result(60).json()["code"] == "superseded"
    assert own.result(60).status_code == click.result(60).status_code == 200


def test_encoding_ahead_is_put_off_where_something_is_always_up(
    client: httpx.Client, gated: GatedModel, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famsam.server.hub.IDLE_PATIENCE_S", 0.05)
    resting, click = beside_a_click(client, gated, pool)
    encoded = gated.encodes
    assert ahead(client, resting).json() == {"more": True} and gated.encodes == encoded
    gated.gate.set()
    assert click.result(60).status_code == 200


def test_the_newest_place_of_a_dragged_point_counts(
    client: httpx.Client, gated: GatedModel, pool: ThreadPoolExecutor
) -> None:
    gated.gate.set()
    _, session = opened(client)
    url = f"/v1/sessions/{session}"
    client.post(f"{url}/points", json={"point_ras_mm": CENTRE_RAS_MM})
    gated.gate.clear()
    gated.at_gate.clear()
    places = [(RAS_FROM_IJK @ (15 + step, 12, 10, 1))[:3].tolist() for step in range(3)]
    hub = client.app.state.hub  # type: ignore[attr-defined]

    def move(place: List[float]) -> Future[httpx.Response]:
        return pool.submit(client.put, f"{url}/points/0", json={"point_ras_mm": place})

    moves = [move(places[0])]
    assert gated.at_gate.wait(60)
    for number, place in enumerate(places[1:], 2):
        moves.append(move(place))
        wait_until(lambda n=number: hub._waiting == n)
    looking = pool.submit(client.post, f"{url}/preview", json={"point_ras_mm": OTHER_RAS_MM})
    wait_until(lambda: hub._waiting == 4)
    gated.gate.set()
    assert [done.result(60).status_code for done in (*moves, looking)] == [200, 409, 200, 200]
    (prompt,) = client.get(f"{url}/state").json()["state"]["prompts"]
    assert prompt["ras_mm"] == places[-1]


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
    third_click = ask("points", CENTRE_RAS_MM)
    wait_until(lambda: hub._waiting == 4)
    one_too_many = ask("points", CENTRE_RAS_MM).result(60)
    assert one_too_many.status_code == 429 and one_too_many.headers["retry-after"]
    gated.gate.set()
    superseded = old_preview.result(60)
    assert superseded.status_code == 409 and superseded.json()["code"] == "superseded"
    assert {click.result(60).status_code for click in (first_click, second_click, third_click)} == {200}
    prompts = client.get(f"/v1/sessions/{session}/state").json()["state"]["prompts"]
    assert [prompt["ras_mm"] for prompt in prompts] == [CENTRE_RAS_MM, OTHER_RAS_MM, CENTRE_RAS_MM]
