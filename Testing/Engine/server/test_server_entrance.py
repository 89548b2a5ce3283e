"""The address that opens the page once."""

from __future__ import annotations

from typing import Any

import httpx
from famsam.server.app import create_app
from famsam.server.entrance import Entrance
from server_fixtures import TEST_LIMITS, live

TARGET = "/#token=a-long-enough-token&path=/home/somebody/a%20scan.nii"


def test_an_entrance_leads_in_once(model: Any) -> None:
    entrance, other = Entrance(TARGET), Entrance(TARGET)
    assert entrance.path != other.path and "token" not in entrance.path
    with live(create_app(model, limits=TEST_LIMITS, entrance=entrance)) as client:
        for wrong in (other.path, "/enter/%C3%A9", entrance.path + "x"):
            assert client.get(wrong).status_code == 410, "and a wrong guess does not use it up"
        first, second = client.get(entrance.path), client.get(entrance.path)
        assert first.status_code == 303 and first.headers["location"] == TARGET
        assert first.headers["cache-control"] == "no-store"
        assert second.status_code == 410 and "start it again" in second.text and "token=" not in second.text
        assert "/enter" not in client.get("/v1/openapi.json").text


def test_there_is_none_unless_asked_for(client: httpx.Client) -> None:
    assert client.get("/enter/anything").status_code == 404
