"""The worker with a server in place of the local model: clicks, undo, saved prompts, and a server that went away."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

for package in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(package, reason="these tests run a famsam server: extras 'server' and 'test'")
sys.path.insert(0, str(Path(__file__).parents[1] / "Engine" / "server"))

from famsam.checkpoints import DEFAULT_WEIGHTS  # noqa: E402
from famsam.client import Connection  # noqa: E402
from famsam.server.app import create_app  # noqa: E402
from famsam.server.security import Access  # noqa: E402
from FaMSAMSlicerLib import engine as engine_module  # noqa: E402
from FaMSAMSlicerLib.engine import Engine, ModelChoice  # noqa: E402
from FaMSAMSlicerLib.prompts import SegmentState, tag_text, write_state  # noqa: E402
from FaMSAMSlicerLib.segments import labelmap_view  # noqa: E402
from region_model import CountingModel, RegionModel, SoftModel  # noqa: E402
from server_fixtures import live  # noqa: E402
from worlds import dice  # noqa: E402

ROOT = Path(__file__).parents[2]
TOKEN = "correct-horse-battery"


def a_server(model=None):
    return live(create_app(model or RegionModel(), access=Access(token=TOKEN)))


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


def test_a_click_where_the_pointer_rested_encodes_nothing_at_the_server(remote_world):
    model = CountingModel()
    with a_server(model) as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token=TOKEN)
        remote_world.controller.warm_up()
        remote_world.controller.aim(remote_world.centre(0))
        remote_world.settle()
        assert "encode" in model.done and not remote_world.mask().any()
        model.done.clear()
        remote_world.click(remote_world.centre(0))
        assert "encode" not in model.done and remote_world.mask().any()


def test_doubts_of_the_server_are_those_of_a_local_model(remote_world, make_world):
    local = make_world()
    local.engine.close()
    local.engine = local.controller.engine = Engine(lambda choice: SoftModel())
    shown = []
    with a_server(SoftModel()) as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token=TOKEN)
        for world in (local, remote_world):
            world.controller.doubt_visible = True
            world.click(world.centre(0))
            node = world.controller._doubt.overlay.node
            image = node.GetSegmentation().GetSegment("inside").GetRepresentation("Binary labelmap")
            shown.append(labelmap_view(image).copy())
    assert shown[0].shape == shown[1].shape and shown[0].any()
    assert (shown[0] == shown[1]).mean() > 0.99, "probabilities are sent in steps of 1/255"


@contextmanager
def served(port):
    """The address of ``famsam serve``, a process of its own with the bundled model, on loopback.

    In a precision that is given: two processes may each measure another one to be the fastest.
    """
    arguments = ["serve", "--port", str(port), "--precision", "fp32"]
    command = [sys.executable, "-c", "import famsam.cli; famsam.cli.main()", *arguments]
    environment = {**os.environ, "FAMSAM_TOKEN": TOKEN, "PYTHONPATH": str(ROOT / "FaMSAMSlicer")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.stdout.readline()
        assert "serves" in said, said + process.stdout.read()
        yield re.search(r"http://\S+", said).group()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not DEFAULT_WEIGHTS.is_file(), reason="the bundled weights are not there")
def test_a_lost_connection_is_said_once_and_work_resumes(remote_world, monkeypatch):
    world, port = remote_world, free_port()
    controller = world.controller
    monkeypatch.setattr("FaMSAMSlicerLib.controller.RETRY_S", 0.1)
    with served(port) as address:
        controller.choice = ModelChoice(server=address, token=TOKEN)
        controller.warm_up()
        world.settle()
        assert address.rstrip("/") in controller.status.message
        world.click(world.centre(0))
        one = world.mask()
        assert dice(one, world.balls[0]) > 0.5
        world.click(world.centre(0, (0, 0, 3)))
        two = world.mask()
    world.said.clear()
    attempts = []
    monkeypatch.setattr(
        world.engine, "submit", lambda request: attempts.append(1) or Engine.submit(world.engine, request)
    )
    for offset in (1, 2):
        controller.click(world.centre(0, (0, offset, 0)))
    deadline = time.monotonic() + 60
    while len(attempts) < 4 and time.monotonic() < deadline:
        controller.poll()
        time.sleep(0.01)
    assert len(attempts) == 4, "it is tried again and again"
    lost = [message for message, _ in groupby(status.message for status in world.said) if "no connection" in message]
    assert len(lost) == 1 and controller.status.is_error and controller.busy
    assert controller.points.node.GetNumberOfControlPoints() == 4, "the clicks are kept"
    np.testing.assert_array_equal(world.mask(), two)
    with served(port):
        world.settle()
        assert controller.status.message == "Ready" and len(controller.state.prompts) == 4
        world.effect.undo()
        controller.sync()
        np.testing.assert_array_equal(world.mask(), two)
        world.effect.undo()
        controller.sync()
        np.testing.assert_array_equal(world.mask(), one)
        world.click(world.centre(0, (0, 0, 3)))
        np.testing.assert_array_equal(world.mask(), two)


def test_cancel_gives_up_what_waits_for_the_server(remote_world):
    remote_world.controller.choice = ModelChoice(server=f"http://127.0.0.1:{free_port()}")
    remote_world.controller.click(remote_world.centre(0))
    remote_world.controller._running.future.exception(timeout=60)
    assert remote_world.controller.poll() and "no connection" in remote_world.controller.status.message
    remote_world.controller.cancel()
    assert not remote_world.controller.poll() and not remote_world.controller.state.prompts
    remote_world.controller.aim(remote_world.centre(0))
    assert not remote_world.controller.has_work, "nothing is prepared while there is no connection"
    assert remote_world.controller.points.node.GetNumberOfControlPoints() == 0


@pytest.fixture
def hanging():
    """The address of a server that is connected to and answers nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def poll_until(world, is_there):
    deadline = time.monotonic() + 20
    while not is_there() and time.monotonic() < deadline:
        world.controller.poll(0.02)
    assert is_there(), world.controller.status


def asked_of_a_hanging_server(world, address):
    """A click that waits behind the question whether the server is there."""
    world.engine._load = lambda choice: engine_module._load_model(choice) if choice.server else RegionModel()
    world.controller.choice = ModelChoice(server=address)
    world.controller.warm_up()
    world.controller.click(world.centre(0))
    poll_until(world, lambda: world.engine._place.connection is not None)
    time.sleep(0.2)


def test_a_server_that_hangs_does_not_keep_this_machine_from_computing(remote_world, hanging):
    asked_of_a_hanging_server(remote_world, hanging)
    remote_world.controller.choice = ModelChoice()
    remote_world.controller.warm_up()
    poll_until(remote_world, lambda: remote_world.mask().any())
    assert len(remote_world.controller.state.prompts) == 1, "the click that it had been asked"
    assert not [status for status in remote_world.said if status.is_error]


def test_a_session_on_a_server_that_hangs_by_now_does_not_either(remote_world, monkeypatch):
    monkeypatch.setattr("famsam.client.FORGET_S", 0.1)
    with a_server() as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token=TOKEN)
        remote_world.click(remote_world.centre(0))
        plain = Connection._exchange
        monkeypatch.setattr(Connection, "_exchange", lambda *arguments: time.sleep(arguments[-1]) or plain(*arguments))
        remote_world.engine._load = lambda choice: RegionModel()
        remote_world.controller.choice = ModelChoice()
        remote_world.controller.warm_up()
        poll_until(remote_world, lambda: "Ready" in remote_world.controller.status.message)


def test_a_server_that_hangs_does_not_hold_up_the_end_of_the_application(remote_world, hanging):
    asked_of_a_hanging_server(remote_world, hanging)
    remote_world.engine.quit()
    started = time.monotonic()
    remote_world.controller.finish(20)
    remote_world.controller.close()
    remote_world.engine._thread.shutdown(wait=True)
    assert time.monotonic() - started < 10


def test_after_cancel_a_server_that_hangs_is_not_waited_for(remote_world, hanging):
    asked_of_a_hanging_server(remote_world, hanging)
    remote_world.controller.cancel()
    with a_server() as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token=TOKEN)
        remote_world.controller.click(remote_world.centre(1))
        poll_until(remote_world, lambda: remote_world.mask().any())
        remote_world.controller.click(remote_world.centre(0))
        remote_world.controller.cancel()
        remote_world.click(remote_world.centre(0))
    assert len(remote_world.controller.state.prompts) == 2 and not remote_world.controller.status.is_error
    assert dice(remote_world.mask(), remote_world.balls[0] | remote_world.balls[1]) > 0.7


def test_prompts_saved_with_the_scene_go_on_at_the_server(remote_world, make_world):
    """And those that were given to the server go on with the local model."""
    local = make_world()
    with a_server() as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token=TOKEN)
        local.click(local.centre(0))
        remote_world.click(remote_world.centre(0))
        texts = [tag_text(world.controller.segment) for world in (local, remote_world)]
        first, second = (SegmentState.from_json(text) for text in texts)
        assert replace(first, token="") == replace(second, token="")
        for world, state in ((local, second), (remote_world, first)):
            write_state(world.controller.segment, state)
            world.click(world.centre(0, (0, 0, 3)), positive=False)
            assert len(world.controller.state.prompts) == 2 and world.controller.state.base is None
        np.testing.assert_array_equal(local.mask(), remote_world.mask())


BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "nibabel", "SimpleITK", "einops", "safetensors", "cc3d", "edt", "tqdm"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import host, numpy as np
from FaMSAMSlicerLib.controller import Controller
from FaMSAMSlicerLib.engine import Engine, ModelChoice

host.scene()
voxels = np.zeros((20, 20, 20), np.int16)
voxels[5:15, 5:15, 5:15] = 500
volume = host.volume(voxels, np.eye(4))
node = host.segmentation(volume, "one")
controller = Controller(host.Effect(node, volume, "one"), Engine(), print)
controller.choice = ModelChoice(server=sys.argv[1], token=sys.argv[2])
controller.click((10.0, 10.0, 10.0))
controller.finish(60)
assert host.segment_mask(node, "one", voxels.shape)[10, 10, 10], controller.status
"""


def test_a_slicer_without_torch_can_click_with_a_server():
    with a_server() as server:
        paths = os.pathsep.join([str(ROOT / "FaMSAMSlicer"), str(Path(__file__).parent)])
        command = [sys.executable, "-c", BARE, str(server.base_url), TOKEN]
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_wrong_token_is_told(remote_world):
    with a_server() as server:
        remote_world.controller.choice = ModelChoice(server=str(server.base_url), token="wrong")
        remote_world.click(remote_world.centre(0))
    assert "token" in str(remote_world.said[-1])
    assert not remote_world.mask().any()
