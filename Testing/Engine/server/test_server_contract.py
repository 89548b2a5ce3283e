"""What the API promises as a whole: its description, its ids, its verbs, and to go on after a fault of its own."""

from __future__ import annotations

import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator

import httpx
import pytest
from famsam import Session
from famsam.client import RemoteSession
from famsam.server.app import create_app
from famsam.server.limits import Limits
from server_fixtures import CENTRE_RAS_MM, ball_zyx, live, nifti_bytes, upload
from test_server_fairness import wait_until


def test_every_operation_is_versioned_and_described() -> None:
    description = create_app(None).openapi()
    assert description["info"]["version"]
    for path, operations in description["paths"].items():
        assert path.startswith("/v1/")
        for operation in operations.values():
            assert operation["description"].endswith((".", ")")), path
            assert {"401", "403", "404", "422", "429", "503"} <= set(operation["responses"])


def test_the_description_is_served_and_is_that_of_the_application(client: httpx.Client) -> None:
    assert client.get("/v1/openapi.json").json() == create_app(None).openapi()


def test_the_client_has_the_verbs_of_a_session() -> None:
    verbs = {name for name in vars(Session) if not name.startswith("_")}
    assert {"add_point", "encode_ahead", "propose", "take"} <= verbs
    for name in verbs:
        local, remote = getattr(Session, name), getattr(RemoteSession, name)
        if isinstance(local, property):
            assert isinstance(remote, property), name
            continue
        expected = [p for p in inspect.signature(local).parameters.items() if p[0] != "embeddings"]
        given = list(inspect.signature(remote).parameters.items())
        assert [(key, p.default) for key, p in given] == [(key, p.default) for key, p in expected], name


def test_ids_are_long_and_never_the_same(client: httpx.Client, volume: Any) -> None:
    ids = [client.post(f"/v1/volumes/{volume['id']}/sessions").json()["id"] for _ in range(5)]
    assert len({volume["id"], *ids}) == 6 and min(map(len, ids)) >= 24
    assert len({one[:6] for one in ids}) == 5


class Faulty:
    """The real model, until it is told to fail."""

    def __init__(self, model: Any) -> None:
        self._model, self.fails = model, False

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise RuntimeError("of the patient Doe")
        return self._model.decode(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def faulty(model: Any) -> Iterator[Any]:
    made = Faulty(model)
    with live(create_app(made)) as client:
        yield made, client


def test_a_fault_of_its_own_is_a_sentence_and_the_server_goes_on(faulty: Any) -> None:
    made, client = faulty
    volume = upload(client, nifti_bytes(ball_zyx())).json()["id"]
    session = client.post(f"/v1/volumes/{volume}/sessions").json()["id"]

    def click() -> httpx.Response:
        return client.post(f"/v1/sessions/{session}/points", json={"point_ras_mm": CENTRE_RAS_MM})

    made.fails = True
    failed = click()
    assert failed.status_code == 500 and failed.json()["code"] == "internal"
    assert failed.headers["connection"] == "close", "so that the next request does not go where nobody listens"
    assert "Doe" not in failed.text and "Traceback" not in failed.text
    made.fails = False
    answer = click()
    assert answer.status_code == 200 and len(answer.json()["state"]["prompts"]) == 1


def test_uploads_beyond_a_few_wait_unread(model: Any) -> None:
    content, goes_on, second_began = nifti_bytes(ball_zyx()), threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield content[:1000]
        assert goes_on.wait(60)
        yield content[1000:]

    def quickly() -> Iterator[bytes]:
        second_began.set()
        yield content

    app = create_app(model, limits=Limits(uploads_at_once=1))
    with live(app) as client, ThreadPoolExecutor(2) as pool:
        hub = app.state.hub
        first = pool.submit(upload, client, slowly())
        wait_until(lambda: len(list(hub._root.iterdir())) == 1)
        second = pool.submit(upload, client, quickly())
        assert second_began.wait(30)
        wait_until(lambda: hub._arriving == 2)
        assert len(list(hub._root.iterdir())) == 1 and not second.done()
        goes_on.set()
        assert first.result(60).status_code == second.result(60).status_code == 201
