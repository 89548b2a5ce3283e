"""A server as a user starts it, and Debian's Chromium in front of it.

Chromium is looked for as ``chromium`` on the path (``apt-get install chromium``) or under the environment variable
CHROMIUM. Pictures go to the folder named by FAMSAM_SCREENSHOT_DIR, where that is set.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_ROOT = ROOT / "FaMSAMSlicer"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
SERVE = (
    "import argparse, sys; from famsam.server.command import add_serve_arguments, serve; "
    "parser = argparse.ArgumentParser(); add_serve_arguments(parser); sys.exit(serve(parser.parse_args()))"
)
SLOW_S = 240.0  # software GL on a busy machine; nothing here measures time


class RunningServer:
    """``famsam serve`` in a process of its own, on a port that stays the same when it is started again."""

    def __init__(
        self,
        weights: str,
        token: Optional[str] = None,
        port: int = 0,
        precision: str = "fp32",
        more: Sequence[str] = (),
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = port or probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        # Tests want one precision: "auto" measures at every start, and masks differ a little between the precisions.
        self._arguments = ["--port", str(self.port), "--model", weights, "--precision", precision, *more]
        self._environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)}
        if token is not None:
            self._environment["FAMSAM_TOKEN"] = token
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", SERVE, *self._arguments], env=self._environment)
        end_s = time.monotonic() + SLOW_S
        while time.monotonic() < end_s:
            assert self._process.poll() is None, "the server ended at its start"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None


class Tab:
    """A page in the browser, with what went wrong in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.problems: List[str] = []
        self.foreign: List[str] = []
        page.set_default_timeout(SLOW_S * 1000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self._note(request.url, address))

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.foreign.append(url)

    def get(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def until(self, expression: str) -> Any:
        """Wait until an expression is true. (The page's content policy forbids the browser's own way of polling.)"""
        end_s = time.monotonic() + SLOW_S
        while time.monotonic() < end_s:
            found = self.get(expression)
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{expression} did not become true; the page says {self.page.inner_text('body')!r}")

    def goto(self, address: str) -> None:
        self.page.goto(address)
        self.until("document.body.dataset.ready === 'yes'")

    def settled(self) -> None:
        """All clicks are answered and drawn."""
        self.until("famsam.waiting === 0 && document.getElementById('progress').hidden")
        self.get("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def tile(self, axis: int) -> Dict[str, float]:
        """Where the view that cuts an axis (0 sagittal, 1 coronal, 2 axial) lies on the screen."""
        return self.get(
            f"(({{left, top, width, height}}) => ({{x: left, y: top, width, height}}))"
            f"(famsam.viewer.tiles().find(t => t.axis === {axis}))"
        )

    def place(self, axis: int, across: float, down: float) -> List[float]:
        tile = self.tile(axis)
        return [tile["x"] + across * tile["width"], tile["y"] + down * tile["height"]]

    def click(self, axis: int, across: float, down: float, **options: Any) -> None:
        self.page.mouse.click(*self.place(axis, across, down), **options)
        self.settled()

    def drag_box(self, axis: int) -> None:
        """A box over the middle of a view: from 0.3 to 0.7 of it, across and down."""
        self.page.keyboard.press("b")
        self.page.mouse.move(*self.place(axis, 0.3, 0.3))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(axis, 0.7, 0.7), steps=3)
        self.page.mouse.up()
        self.settled()

    def voxels(self, segment: int = 0) -> int:
        """Of a segment, as the server counts them; those that are drawn must be as many, where no other covers them."""
        return int(self.get(f"famsam.work.segments[{segment}].voxels"))

    def drawn(self, label: int = 1) -> int:
        return int(self.get(f"famsam.overlay.count({label})"))

    def answer(self, yes: bool) -> str:
        """Answer what the page asks before it loses something; returns the question."""
        self.until("document.getElementById('confirm-dialog').open")
        asked = str(self.page.inner_text("#confirm-text"))
        self.page.click("#confirm-yes" if yes else "#confirm-dialog [value=no]")
        return asked

    def picture(self, name: str) -> None:
        folder = os.environ.get("FAMSAM_SCREENSHOT_DIR")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights that ship, or untrained ones in a checkout that has none."""
    from famsam.checkpoints import DEFAULT_WEIGHTS, save_model

    if DEFAULT_WEIGHTS.is_file():
        return "default"
    import torch
    from famsam.model.famsam import Famsam

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_model(Famsam(), path)
    return str(path)


@pytest.fixture(scope="module")
def server(weights: str) -> Iterator[RunningServer]:
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason="the viewer's tests need the extra 'server'")
    if not (PACKAGE_ROOT / "famsam" / "server" / "page" / "index.html").is_file():
        pytest.skip("the page has not been built: python setup.py build_page")
    running = RunningServer(weights)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="the viewer's tests need playwright"
    )
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one in the variable CHROMIUM")
    with api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=chromium,
            headless=True,
            args=FLAGS,
            viewport={"width": 1100, "height": 680},
            accept_downloads=True,
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def tab(browser: Any, server: RunningServer) -> Iterator[Tab]:
    opened = Tab(browser.new_page(), server.address)
    opened.goto(server.address)
    yield opened
    opened.page.close()
