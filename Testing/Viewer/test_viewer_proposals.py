"""Candidates in the page, of a model that takes bright things for structures; each test begins where the last ended."""

from __future__ import annotations

import base64
import sys
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import nibabel
import numpy as np
import pytest
import torch
from conftest import PACKAGE_ROOT, Tab
from famsam.model.base import Embedding, PromptableModel
from famsam.model.prompt_maps import gather_points, point_masks
from famsam.model.proposal_head import MASK_CHANNELS, MASK_STRIDE, SEED_STRIDE, ProposalMaps
from torch import Tensor
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[1] / "Engine" / "server"))
from server_fixtures import live

AXIAL = 2
SIZE_ZYX = (40, 44, 48)
BALLS = (((20, 22, 12), 8, 400), ((16, 30, 34), 6, 600), ((30, 12, 30), 7, 500))  # centre, radius, brightness
BACK, LEAST = 0.1, 0.25  # brightness of what is around them, and of what is taken for one
SESSIONS = 6
SHOWN = "famsam.overlay.count(252) + famsam.overlay.count(253)"
TEXT = "document.getElementById('proposals-text').textContent"
CURRENT = "[...document.querySelectorAll('#candidates button')].findIndex(b => b.ariaCurrent === 'true')"


class BrightModel(PromptableModel):
    """Takes bright things for structures, the brighter the better; negative clicks cut a cube away."""

    name = "bright"
    config: Any = None

    def __init__(self, proposes: bool) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # where it is, there the crops must be
        self._proposes = proposes

    def normalise(self, crop_B1ZYX: Tensor, inside_B1ZYX: Tensor) -> Tensor:
        return torch.where(inside_B1ZYX, crop_B1ZYX / 1000, torch.zeros_like(crop_B1ZYX))

    def encode(self, crop_B1ZYX: Tensor) -> Embedding:
        return Embedding(functional.avg_pool3d(crop_B1ZYX, self.crop_size // self.mask_size), crop_B1ZYX)

    def decode(
        self,
        embedding: Embedding,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits_B1zyx: Optional[Tensor] = None,
        multimask: bool = False,
    ) -> Tuple[Tensor, Tensor]:
        image = embedding.tokens
        points_BN3 = (points_BN3 + 0.5) * self.mask_size / self.crop_size - 0.5
        positive, negative = (which[0] for which in point_masks(labels_BN))
        brightness = gather_points(image, points_BN3)[0, positive, 0]
        least = min(LEAST, *(brightness - 0.05).tolist(), 1.0)
        logits = 20 * (image - least)
        for point in points_BN3[0, negative].round().long():
            z, y, x = (slice(max(0, int(n) - 4), int(n) + 5) for n in point)
            logits[:, :, z, y, x] = -4.0
        return logits, brightness.mean().reshape(1, 1) if len(brightness) else torch.zeros(1, 1)

    @property
    def proposes(self) -> bool:
        return self._proposes

    def propose(self, embedding: Embedding) -> ProposalMaps:
        if not self._proposes:
            return super().propose(embedding)
        crop = embedding.finer
        quality = 20 * (functional.avg_pool3d(crop, SEED_STRIDE)[:, 0] - LEAST)
        kernels = torch.zeros(1, MASK_CHANNELS + 8, *quality.shape[1:])
        kernels[:, 0] = 1.0
        fine = functional.avg_pool3d(crop, MASK_STRIDE)
        features = torch.cat([20 * (fine - LEAST), torch.zeros_like(fine).expand(-1, MASK_CHANNELS - 1, -1, -1, -1)], 1)
        return ProposalMaps(quality, kernels, features, torch.zeros_like(fine))


@dataclass
class Served:
    """A server in this process, with its own client."""

    app: Any
    client: Any
    address: str


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(BrightModel(proposes=True)) as running:
        yield running


@pytest.fixture(scope="module")
def headless() -> Iterator[Served]:
    with served(BrightModel(proposes=False)) as running:
        yield running


@contextmanager
def served(model: PromptableModel) -> Iterator[Served]:
    if not (PACKAGE_ROOT / "famsam" / "server" / "page" / "index.html").is_file():
        pytest.skip("the page has not been built: python setup.py build_page")
    from famsam.server.app import create_app
    from famsam.server.limits import Limits

    app = create_app(model, limits=Limits(sessions=SESSIONS))
    with live(app) as client:
        yield Served(app, client, f"{client.base_url}/")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans whose voxels do not run along right, anterior, superior; there is nothing in the dark one."""
    folder = tmp_path_factory.mktemp("scans")
    z, y, x = np.indices(SIZE_ZYX)
    noise = np.random.default_rng(0).normal(1000 * BACK, 10, SIZE_ZYX)
    balls = sum(
        (bright - 1000 * BACK) * (sum((a - c) ** 2 for a, c in zip((z, y, x), centre)) < radius**2)
        for centre, radius, bright in BALLS
    )
    ras_from_ijk = np.array([[-1.5, 0, 0, 30], [0, 0, 2.0, -40], [0, -1.5, 0, 50], [0, 0, 0, 1]])
    for name, content in (("balls.nii", balls), ("shifted.nii", np.roll(balls, 3, axis=2)), ("dark.nii", 0 * balls)):
        nibabel.Nifti1Image((noise + content).astype(np.int16).T, ras_from_ijk).to_filename(folder / name)
    return folder


def open_scan(tab: Tab, path: Path, loses: bool = False) -> None:
    tab.page.set_input_files("#file", str(path))
    if loses:
        tab.answer(yes=True)
    tab.until(f"document.getElementById('scan-name').textContent.startsWith('{path.name}:')")
    tab.settled()


def press(tab: Tab, key: str) -> None:
    tab.page.keyboard.press(key)
    tab.settled()


def found(tab: Tab) -> List[Any]:
    """(mask in its box, box, quality) of the candidates, from what the server answered."""
    answers = tab.get("famsam.proposals.found.map(one => one.answer)")
    unpacked = []
    for one in answers:
        low, high = np.array(one["box_zyx"])
        bits = np.frombuffer(zlib.decompress(base64.b64decode(one["bits"])), np.uint8)
        mask = np.unpackbits(bits, count=int(np.prod(high - low)), bitorder="little").reshape(high - low)
        unpacked.append((mask.astype(bool), (low, high), one["quality"]))
    return unpacked


def current(tab: Tab) -> Any:
    return found(tab)[tab.get("famsam.proposals.at")]


def shows(tab: Tab, index: int) -> None:
    """A candidate is current, drawn as it is, and in the middle of the views."""
    mask, (low, high), quality = found(tab)[index]
    assert tab.get(CURRENT) == index == tab.get("famsam.proposals.at")
    assert tab.get(SHOWN) == mask.sum() and tab.get("famsam.overlay.count(253)") < mask.sum()
    grid = tab.get("famsam.viewer.grid.ijkFromRas")
    at_xyz = np.array(grid)[:3] @ [*tab.get("famsam.viewer.crosshairRas()"), 1]
    at = np.round(at_xyz[::-1]).astype(int) - low
    assert (at >= 0).all() and (at < high - low).all() and mask[tuple(at)]
    text = tab.page.inner_text("#proposals-text")
    assert text.startswith(f"{index + 1} of {len(found(tab))}:") and f"{round(100 * quality)} %" in text
    assert float(text.split()[-2]) == pytest.approx(mask.sum() * 1.5 * 1.5 * 2 / 1000, rel=0.02)


def test_one_key_finds_and_shows_candidates(tab: Tab, scans: Path) -> None:
    assert tab.page.is_disabled("#propose") and not tab.page.is_visible("#proposals")
    tab.page.keyboard.press("c")  # without a scan there is nothing to be found
    open_scan(tab, scans / "balls.nii")
    assert tab.page.is_enabled("#propose") and "(C)" in tab.get("document.getElementById('propose').title")
    tab.page.keyboard.press("c")
    tab.until("famsam.candidate")
    tab.settled()
    qualities = [quality for _, _, quality in found(tab)]
    assert len(qualities) > 2 and qualities == sorted(qualities, reverse=True)
    labels = tab.page.locator("#candidates button").all_inner_texts()
    assert [label.strip() for label in labels] == [f"{round(100 * q)} %" for q in qualities]
    shows(tab, 0)
    assert tab.voxels() == 0 and not tab.page.is_visible("#proposals-progress")
    assert tab.page.get_attribute("#propose", "aria-pressed") == "true"
    tab.picture("proposals")


def test_the_pictures_show_the_scan_and_an_outline(tab: Tab) -> None:
    seen = tab.get(
        "[...document.querySelectorAll('#candidates canvas')].map(c =>"
        " [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"
    )
    for one in seen:
        colours = np.array(one).reshape(-1, 4)[:, :3]
        outline = (colours == [255, 92, 240]).all(1)
        assert 0.01 < outline.mean() < 0.5
        assert len(np.unique(colours[~outline])) > 5 and (np.ptp(colours[~outline], axis=1) == 0).all()


def test_keys_step_through_the_candidates(tab: Tab) -> None:
    last = len(found(tab)) - 1
    for key, index in (("c", 1), ("c", 2), ("Shift+C", 1), ("Shift+C", 0), ("Shift+C", last), ("c", 0)):
        press(tab, key)
        shows(tab, index)


def test_a_preview_comes_before_the_candidate_and_doubt_after_it(tab: Tab) -> None:
    doubtful = "famsam.overlay.labels.reduce((sum, one) => sum + (one > 200 && one <= 212 ? 1 : 0), 0)"
    tab.page.mouse.move(*tab.place(AXIAL, 0.5, 0.5))
    tab.page.keyboard.down("p")
    tab.until(f"famsam.looks.previews > 0 && {SHOWN} === 0")
    tab.page.keyboard.up("p")
    tab.until(f"{SHOWN} > 0")
    press(tab, "u")
    tab.page.keyboard.press("u")
    tab.settled()
    shows(tab, 0)
    assert tab.get(doubtful) == 0


def test_escape_ends_and_nothing_is_looked_for_twice(tab: Tab) -> None:
    asked: List[str] = []
    tab.page.on("request", lambda request: asked.append(request.url) if "/proposals" in request.url else None)
    press(tab, "Escape")
    assert tab.get(SHOWN) == 0 and not tab.page.is_visible("#proposals") and tab.voxels() == 0
    press(tab, "c")
    shows(tab, 0)
    assert asked == []


def test_enter_takes_a_candidate_which_clicks_refine_and_undo_takes_back(tab: Tab) -> None:
    press(tab, "c")
    shows(tab, 1)
    mask, _, quality = current(tab)
    press(tab, "Enter")
    assert tab.voxels() == tab.drawn() == mask.sum() and tab.get(SHOWN) == 0
    assert tab.get("famsam.work.segment.quality") == pytest.approx(quality)
    assert tab.get("famsam.work.segment.state.prompts") == []
    tab.click(AXIAL, 0.3, 0.3)
    assert len(tab.get("famsam.work.segment.state.prompts")) == 1
    refined = tab.voxels()
    assert refined != mask.sum() and refined == tab.drawn()
    for key, voxels in (("z", mask.sum()), ("z", 0), ("y", mask.sum()), ("y", refined)):
        press(tab, key)
        assert tab.voxels() == tab.drawn() == voxels


def test_after_one_was_taken_the_next_goes_into_another_segment(tab: Tab) -> None:
    assert "C shows" in tab.page.inner_text("#proposals-text")
    press(tab, "n")
    press(tab, "c")
    shows(tab, 2)
    tab.page.click("#take")
    tab.settled()
    mask = found(tab)[2][0]
    assert tab.voxels(1) == tab.drawn(2) == mask.sum()
    assert tab.page.is_disabled("#take") and tab.page.is_visible("#proposals")


def test_pictures_are_shown_and_taken_by_the_mouse_and_from_the_keys(tab: Tab) -> None:
    press(tab, "n")
    tab.page.locator("#candidates button").nth(1).click()
    tab.settled()
    shows(tab, 1)
    press(tab, "c")
    shows(tab, 2)
    assert tab.get("document.activeElement === document.querySelectorAll('#candidates button')[2]")
    press(tab, "Enter")  # on the picture, which has the focus
    assert tab.voxels(2) == found(tab)[2][0].sum()
    press(tab, "z")
    tab.page.locator("#candidates button").nth(0).dblclick()
    tab.settled()
    assert tab.voxels(2) == found(tab)[0][0].sum() == tab.drawn(3)
    assert tab.get("famsam.work.segment.past.length") == 1


def test_a_click_puts_the_candidate_aside(tab: Tab) -> None:
    press(tab, "n")
    press(tab, "c")
    assert tab.get(SHOWN) > 0
    index = tab.get("famsam.proposals.at")
    tab.click(AXIAL, 0.6, 0.6)
    assert tab.get(SHOWN) == 0 and len(tab.get("famsam.work.segment.state.prompts")) == 1
    press(tab, "Enter")  # now at the crosshair
    assert len(tab.get("famsam.work.segment.state.prompts")) == 2
    press(tab, "c")
    shows(tab, index)


def test_the_page_stays_usable_while_it_looks(tab: Tab, scans: Path) -> None:
    held: List[Any] = []
    open_scan(tab, scans / "shifted.nii", loses=True)
    assert not tab.page.is_visible("#proposals") and tab.get("famsam.proposals.found") is None
    tab.page.route("**/proposals", lambda route: held.append(route), times=1)
    tab.page.click("#propose")
    tab.until(f"{TEXT}.startsWith('Looking')")
    assert tab.page.is_visible("#proposals-progress") and tab.page.is_disabled("#take")
    tab.picture("proposing")
    tab.click(AXIAL, 0.5, 0.5)
    assert len(tab.get("famsam.work.segment.state.prompts")) == 1
    press(tab, "Escape")
    assert not tab.page.is_visible("#proposals")
    tab.until("famsam.proposals.searching")
    held[0].continue_()
    tab.until("!famsam.proposals.searching")
    tab.settled()
    assert tab.get(SHOWN) == 0 and not tab.page.is_visible("#proposals")
    press(tab, "c")  # what was found meanwhile
    shows(tab, 0)


def test_candidates_of_a_scan_that_is_gone_are_not_shown(tab: Tab, scans: Path) -> None:
    held: List[Any] = []
    open_scan(tab, scans / "balls.nii", loses=True)
    tab.page.route("**/proposals", lambda route: held.append(route), times=1)
    tab.page.keyboard.press("c")
    tab.until(f"{TEXT}.startsWith('Looking')")
    open_scan(tab, scans / "shifted.nii")
    held[0].continue_()
    press(tab, "c")
    tab.until("famsam.candidate")
    tab.settled()
    shows(tab, 0)
    assert not tab.page.is_visible("#alert")


def test_what_goes_wrong_is_told(tab: Tab, server: Served, scans: Path) -> None:
    open_scan(tab, scans / "balls.nii")
    sessions = f"/v1/volumes/{tab.get('famsam.work.volume.id')}/sessions"
    opened = [server.client.post(sessions) for _ in range(SESSIONS)]
    tab.page.keyboard.press("c")
    tab.until("!document.getElementById('alert').hidden")
    assert "sessions are open already" in tab.page.inner_text("#alert-text")
    assert not tab.page.is_visible("#proposals") and not tab.get("famsam.proposals.searching")
    tab.page.click("#alert-close")
    for one in opened:
        if one.status_code == 201:
            server.client.delete(f"/v1/sessions/{one.json()['id']}")


def test_a_scan_that_the_server_has_closed_is_opened_there_again(tab: Tab, server: Served) -> None:
    server.client.delete(f"/v1/volumes/{tab.get('famsam.work.volume.id')}")
    tab.page.keyboard.press("c")
    tab.until("famsam.candidate")
    tab.settled()
    shows(tab, 0)
    press(tab, "Enter")
    assert tab.voxels() == tab.drawn() == found(tab)[0][0].sum()


def test_a_scan_without_candidates_says_so(tab: Tab, scans: Path) -> None:
    open_scan(tab, scans / "dark.nii", loses=True)
    tab.page.keyboard.press("c")
    tab.until(f"{TEXT}.startsWith('Nothing')")
    press(tab, "c")
    press(tab, "Enter")  # with nothing to take, a click
    assert len(tab.get("famsam.work.segment.state.prompts")) == 1


def test_no_session_of_a_search_stays_open(tab: Tab, server: Served) -> None:
    tab.until("!famsam.proposals.searching")
    assert len(server.app.state.hub._sessions) == 1


def test_nothing_failed(tab: Tab) -> None:
    assert tab.foreign == [] and tab.problems == []


def test_without_a_head_the_button_tells_why_it_does_nothing(browser: Any, headless: Served, scans: Path) -> None:
    tab = Tab(browser.new_page(), headless.address)
    tab.goto(headless.address)
    open_scan(tab, scans / "balls.nii")
    assert tab.page.is_disabled("#propose")
    assert "no proposal head" in tab.get("document.getElementById('propose').title")
    tab.page.keyboard.press("c")
    assert "no proposal head" in tab.page.inner_text("#status") and not tab.page.is_visible("#proposals")
    assert tab.problems == []
    tab.page.close()


def test_a_tab_that_is_closed_leaves_its_sessions_and_a_reloaded_one_has_them(
    browser: Any, headless: Served, scans: Path
) -> None:
    tab = Tab(browser.new_page(), headless.address)
    tab.goto(headless.address)
    open_scan(tab, scans / "balls.nii")
    tab.click(2, 0.5, 0.5)
    opened = headless.app.state.hub.session(tab.get("famsam.work.segment.sessionId"))

    def kept_s() -> float:
        return float(headless.app.state.hub.limits.idle_s - (time.monotonic() - opened.used_s))

    tab.page.reload()
    tab.until("document.body.dataset.ready === 'yes'")
    tab.settled()
    assert tab.get("famsam.work.segment.sessionId") == opened.id and kept_s() > 3000
    assert tab.problems == []
    tab.page.close()
    end_s = time.monotonic() + 60
    while kept_s() > 60 and time.monotonic() < end_s:
        time.sleep(0.05)
    assert kept_s() <= 60
