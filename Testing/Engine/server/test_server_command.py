"""``famsam serve`` and ``famsam view``: what is refused before anything listens, and one life of a server's process."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, List
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import uvicorn
from famsam.checkpoints import save_model
from famsam.errors import ConfigError
from famsam.server.command import _bound, _protocol, add_serve_arguments, add_view_arguments, serve, view
from fastapi import FastAPI
from server_fixtures import ball_zyx, nifti_bytes

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "correct-horse-battery"


def serve_arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    return parser.parse_args(given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--allow-host", "scans.example.org"], "needs a token"),
        (["--allow-paths"], "--allow-paths"),
        (["--allow-paths", "--host", "0.0.0.0", "--token", TOKEN], "--allow-paths"),
        (["--allow-paths", "--allow-host", "scans.example.org", "--token", TOKEN], "--allow-paths"),
        (["--host", "0.0.0.0", "--token", "short"], "16"),
        (["--tls-key", "key.pem"], "--tls-certificate"),
        (["--tls-certificate", "no-such.pem", "--tls-key", "no-such.pem"], "PEM"),
        (["--tls-certificate", __file__, "--tls-key", __file__], "PEM"),
        (["--max-volumes", "0"], "volumes"),
    ],
)
def test_what_is_not_safe_is_refused(monkeypatch: pytest.MonkeyPatch, given: List[str], says: str) -> None:
    monkeypatch.delenv("FAMSAM_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=re.escape(says)):
        serve(serve_arguments(*given))


def test_a_taken_port_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="another --port"):
            serve(serve_arguments("--port", str(other.getsockname()[1])))


def test_answers_leave_at_once() -> None:
    """Without TCP_NODELAY the second part of an answer waits for the first one's acknowledgement.

    The listener names no protocol, as what is accepted on Windows does not.
    """

    async def connect_once() -> int:
        listener = _bound("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(FastAPI(), http=_protocol(), log_level="critical"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        _, writer = await asyncio.open_connection(*listener.getsockname())
        while not server.server_state.connections:
            await asyncio.sleep(0.01)
        (connection,) = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.proto == 0
        kept = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        server.should_exit = True
        await serving
        return kept

    assert asyncio.run(connect_once()) != 0


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_are_those_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfWindows(socket.socket):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", OfWindows)
        listener = _bound("::", 0)
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5):
        pass


def test_a_missing_image_is_told() -> None:
    parser = argparse.ArgumentParser()
    add_view_arguments(parser)
    with pytest.raises(ConfigError, match="no file"):
        view(parser.parse_args(["nothing-of-this-name.nii"]))


VIEW = (
    "import argparse, sys; from famsam.server.command import add_view_arguments, view; "
    "parser = argparse.ArgumentParser(); add_view_arguments(parser); sys.exit(view(parser.parse_args()))"
)


def environment_without_screen() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return {**kept, "SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22", "PYTHONPATH": str(ROOT / "FaMSAMSlicer")}


def test_view_if_screen_ends_at_once_without_one() -> None:
    command = [sys.executable, "-c", VIEW, "--if-screen"]
    done = subprocess.run(command, env=environment_without_screen(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "no screen" in done.stdout and "http" not in done.stdout, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="ends the server as Ctrl+C does, which POSIX can send to a child")
def test_view_prints_an_address_that_opens_the_image(model: Any, tmp_path: Path) -> None:
    weights, scan, scratch = tmp_path / "weights.safetensors", tmp_path / "scan.nii", tmp_path / "scratch"
    save_model(model, weights)
    scan.write_bytes(nifti_bytes(ball_zyx()))
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", VIEW, str(scan), "--port", "0", "--model", str(weights)],
        env={**environment_without_screen(), "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        process.stdout.readline()
        address, _, fragment = process.stdout.readline().strip().partition("#")
        assert "ends it" in process.stdout.readline() and "no screen" in process.stdout.readline()
        port = urlsplit(address).port
        assert f"-L {port}:127.0.0.1:{port}" in process.stdout.readline()
        asked = parse_qs(fragment)
        assert asked["path"] == [str(scan)]
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(base_url=address, transport=transport, timeout=60) as client:
            assert client.get("/").status_code == 200
            assert client.post("/v1/volumes/path", json={"path": str(scan)}).status_code == 401
            client.headers["authorization"] = f"Bearer {asked['token'][0]}"
            opened = client.post("/v1/volumes/path", json={"path": str(scan)})
            assert opened.status_code == 201, opened.text
            assert any(scratch.iterdir())
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors
    assert not any(scratch.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="the browser is a shell script, and the server is ended as POSIX allows")
def test_view_opens_a_browser_without_telling_the_token_to_others(model: Any, tmp_path: Path) -> None:
    weights, browser, told = tmp_path / "weights.safetensors", tmp_path / "browser", tmp_path / "told"
    save_model(model, weights)
    browser.write_text(f'#!/bin/sh\necho "$@" > "{told}.part"\nmv "{told}.part" "{told}"\n')
    browser.chmod(0o700)
    environment = {**environment_without_screen(), "DISPLAY": ":99", "BROWSER": f"{browser} %s"}
    del environment["SSH_CONNECTION"]
    process = subprocess.Popen(
        [sys.executable, "-c", VIEW, "--port", "0", "--model", str(weights)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        address, _, fragment = process.stdout.readline().strip().partition("#")
        token = parse_qs(fragment)["token"][0]
        with httpx.Client(base_url=address, transport=httpx.HTTPTransport(retries=20), timeout=60) as client:
            assert client.get("/").status_code == 200, "the browser is opened before the first answer"
            opened = told.read_text().strip()
            assert opened.startswith(address) and token not in opened
            assert client.get(opened).headers["location"] == f"/#{fragment}"
            assert client.get(opened).status_code == 410
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
