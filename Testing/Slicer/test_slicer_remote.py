"""The worker with a server in place of the local model: clicks, undo, saved prompts, and a server that went away."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(package, reason="these tests run a famsam server: extras 'server' and 'test'")
sys.path.insert(0, str(Path(__file__).parents[1] / "Engine" / "server"))

from famsam.server.app import create_app  # noqa: E402
from famsam.server.security import Access  # noqa: E402
from FaMSAMSlicerLib.engine import Engine, ModelChoice  # noqa: E402
from region_model import RegionModel  # noqa: E402
from server_fixtures import live  # noqa: E402
from worlds import dice  # noqa: E402

TOKEN = "correct-horse-battery"


def a_server():
    return live(create_app(RegionModel(), access=Access(token=TOKEN)))


@pytest.fixture
def remote_world(make_world):
    world = make_world()
    world.engine.close()
    world.engine = world.controller.engine = Engine()
    return world


def test_clicks_undo_and_segments_as_with_a_local_model(remote_world, make_world):
    local = make_world()
    with a_server() as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token=TOKEN)
        for world in (local, remote_world):
            world.click(world.centre(0))
            once = world.mask()
            world.click(world.centre(0, (0, 0, 3)), positive=False)
            twice = world.mask()
            assert (once != twice).any()
            world.effect.undo()
            world.controller.sync()
            np.testing.assert_array_equal(world.mask(), once)
            world.click(world.centre(0, (0, 0, 3)), positive=False)
            np.testing.assert_array_equal(world.mask(), twice)
            world.select("second")
            world.click(world.centre(1))
        for segment in ("first", "second"):
            np.testing.assert_array_equal(remote_world.mask(segment), local.mask(segment))
        assert dice(remote_world.mask("second"), remote_world.balls[1]) > 0.8


def test_a_server_that_went_away_and_came_back(remote_world):
    with a_server() as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token=TOKEN)
        remote_world.click(remote_world.centre(0))
        first = remote_world.mask()
    assert first.any()
    remote_world.click(remote_world.centre(0, (0, 2, 0)))
    assert "connection" in str(remote_world.said[-1]).lower()
    np.testing.assert_array_equal(remote_world.mask(), first)
    with a_server() as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token=TOKEN)
        remote_world.click(remote_world.centre(0, (0, 2, 0)))
        assert dice(remote_world.mask(), remote_world.balls[0]) > 0.8


def test_a_wrong_token_is_told(remote_world):
    with a_server() as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token="wrong")
        remote_world.click(remote_world.centre(0))
    assert "token" in str(remote_world.said[-1])
    assert not remote_world.mask().any()
