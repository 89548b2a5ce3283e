"""The default network with untrained weights, and a server around it."""

from __future__ import annotations

from typing import Any, Iterator

import pytest

for package in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(package, reason="the server's tests need the extras 'server' and 'test'")

import httpx  # noqa: E402
from famsam.server.app import create_app  # noqa: E402
from server_fixtures import TEST_LIMITS, ball_zyx, live, nifti_bytes, upload  # noqa: E402


@pytest.fixture(scope="session")
def model() -> Any:
    import torch
    from famsam.model.famsam import Famsam

    torch.manual_seed(0)
    return Famsam().eval()


@pytest.fixture(scope="module")
def client(model: Any) -> Iterator[httpx.Client]:
    with live(create_app(model, limits=TEST_LIMITS)) as opened:
        yield opened


@pytest.fixture
def volume(client: httpx.Client) -> Iterator[Any]:
    answer = upload(client, nifti_bytes(ball_zyx()))
    assert answer.status_code == 201, answer.text
    info = answer.json()
    yield info
    client.delete(f"/v1/volumes/{info['id']}")


@pytest.fixture
def session(client: httpx.Client, volume: Any) -> str:
    return client.post(f"/v1/volumes/{volume['id']}/sessions").json()["id"]
