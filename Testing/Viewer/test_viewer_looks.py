"""What the page shows and prepares besides masks: views encoded ahead, doubt, marks, progress, volumes and places."""

from __future__ import annotations

import base64
import re
import sys
import zlib
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from conftest import Tab

sys.path.append(str(Path(__file__).resolve().parents[1] / "Engine" / "server"))
from server_fixtures import ball_zyx, nifti_bytes

AXIAL = 2
DOUBTFUL = "famsam.overlay.labels.reduce((sum, one) => sum + (one > 200 && one <= 212 ? 1 : 0), 0)"


def open_ball(tab: Tab, folder: Path) -> None:
    path = folder / "ball.nii"
    path.write_bytes(nifti_bytes(ball_zyx()))
    tab.page.set_input_files("#file", str(path))
    tab.until("document.getElementById('scan-name').textContent.startsWith('ball.nii:')")
    tab.settled()
    tab.page.select_option("#layout", "axial")
    tab.settled()


def prompts(tab: Tab) -> List[Any]:
    return list(tab.get("(famsam.work.segment.state?.prompts ?? [])"))


def test_progress_is_told_while_a_scan_is_sent(tab: Tab, tmp_path: Path) -> None:
    held: List[Any] = []
    tab.page.route("**/v1/volumes", lambda route: held.append(route), times=1)
    path = tmp_path / "ball.nii"
    path.write_bytes(nifti_bytes(ball_zyx()))
    tab.page.set_input_files("#file", str(path))
    tab.until("!document.getElementById('progress').hidden")
    assert re.search("(Sending|Reading) the scan", tab.page.inner_text("#progress"))
    held[0].continue_()
    tab.until("document.getElementById('scan-name').textContent.startsWith('ball.nii:')")
    tab.settled()
    assert not tab.page.is_visible("#progress")


def test_where_the_pointer_rests_the_click_finds_its_view_encoded(tab: Tab, tmp_path: Path) -> None:
    open_ball(tab, tmp_path)
    assert tab.get("famsam.looks.prepared") == 0
    tab.page.mouse.move(*tab.place(AXIAL, 0.5, 0.5))
    tab.until("famsam.looks.prepared > 0 && !famsam.looks.busy")
    assert prompts(tab) == [] and tab.drawn() == 0
    tab.click(AXIAL, 0.5, 0.5)
    assert tab.get("famsam.lastTimings_ms.decode") > 0 and tab.get("famsam.lastTimings_ms.encode") == 0
    assert len(prompts(tab)) == 1 and tab.drawn() == tab.voxels() > 0


def test_nothing_is_prepared_while_boxes_are_drawn(tab: Tab) -> None:
    tab.page.click("#box")
    tab.until("!famsam.looks.busy")
    before = tab.get("famsam.looks.prepared")
    tab.page.mouse.move(*tab.place(AXIAL, 0.1, 0.1))
    tab.page.wait_for_timeout(600)
    assert tab.get("famsam.looks.prepared") == before
    tab.page.click("#include")


def test_the_first_look_and_the_first_click_open_one_session_together(tab: Tab) -> None:
    opened: List[str] = []
    tab.page.on("request", lambda request: opened.append(request.url) if request.url.endswith("/sessions") else None)
    tab.page.keyboard.press("n")
    tab.get("famsam.looks.point([0, 0, 30]); famsam.looks.prepare(); famsam.clickAtCrosshair(false)")
    tab.settled()
    assert len(opened) == 1 and len(prompts(tab)) == 1
    tab.page.click("#segments li.active button[aria-label^=Delete]")
    tab.answer(yes=True)
    tab.page.keyboard.press("1")


def test_the_map_of_doubt_is_the_servers(tab: Tab) -> None:
    assert tab.get(DOUBTFUL) == 0 and not tab.page.is_visible("#legend")
    tab.page.keyboard.press("u")
    tab.until(f"{DOUBTFUL} > 0")
    tab.picture("uncertainty")
    session = tab.get("famsam.work.segment.sessionId")
    answer = tab.page.request.get(f"{tab.page.url}v1/sessions/{session}/uncertainty").json()
    p = np.frombuffer(zlib.decompress(base64.b64decode(answer["probabilities"])), np.uint8) / 255
    p = p.clip(1e-6, 1 - 1e-6)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert tab.get(DOUBTFUL) == (entropy > 0.15).sum()
    assert float(tab.page.inner_text("#expected").split()[1]) == pytest.approx(answer["expected_ml"], rel=0.1, abs=0.01)
    levels = np.array(tab.get("[...new Set(famsam.overlay.labels)].filter(one => one > 200).sort((a, b) => a - b)"))
    lut = np.array(tab.get("[...famsam.viewer.nv.drawLut.lut]")).reshape(256, 4)
    lightness = lut[201:213, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all() and (levels <= 212).all()


def test_the_map_of_doubt_follows_the_segment_and_goes(tab: Tab) -> None:
    first = tab.page.inner_text("#expected")
    tab.page.keyboard.down("Shift")
    tab.click(AXIAL, 0.62, 0.5)
    tab.page.keyboard.up("Shift")
    tab.until(f"{DOUBTFUL} > 0 && document.getElementById('expected').textContent !== {first!r}")
    tab.page.keyboard.press("z")
    tab.settled()
    tab.until(f"{DOUBTFUL} > 0 && document.getElementById('expected').textContent === {first!r}")
    tab.page.keyboard.down("p")  # a preview takes the map's place for as long as it lasts
    seen = tab.get("famsam.looks.previews")
    tab.page.mouse.move(*tab.place(AXIAL, 0.45, 0.55))
    tab.until(f"famsam.looks.previews > {seen} && {DOUBTFUL} === 0")
    tab.page.keyboard.up("p")
    tab.until(f"{DOUBTFUL} > 0")
    tab.page.click("#doubt")
    tab.settled()
    assert tab.get(DOUBTFUL) == 0 and tab.drawn() == tab.voxels()
    assert not tab.page.is_visible("#legend") and tab.page.get_attribute("#doubt", "aria-pressed") == "false"


def test_progress_and_marks_are_shown_while_clicks_wait(tab: Tab) -> None:
    held: List[Any] = []
    before = len(prompts(tab))
    tab.page.route("**/points", lambda route: held.append(route), times=1)
    for across in (0.3, 0.35, 0.4):
        tab.page.mouse.click(*tab.place(AXIAL, across, 0.3))
    tab.until("!document.getElementById('progress').hidden")
    assert "Segmenting" in tab.page.inner_text("#progress")
    assert tab.page.locator("#marks .point").count() == before + 3
    held[0].continue_()
    tab.settled()
    assert len(prompts(tab)) == before + 3 == tab.page.locator("#marks .point").count()
    for _ in range(3):
        tab.page.keyboard.press("z")
    tab.settled()


def test_buttons_and_the_right_button_exclude(tab: Tab) -> None:
    tab.page.click("#exclude")
    tab.click(AXIAL, 0.6, 0.6)
    tab.click(AXIAL, 0.4, 0.4, button="right")  # the other of the two
    tab.page.click("#include")
    tab.click(AXIAL, 0.65, 0.4, button="right")
    assert [prompt["positive"] for prompt in prompts(tab)[-3:]] == [False, True, False]
    for _ in range(3):
        tab.page.click("#undo")
    tab.settled()


def test_the_crosshair_is_told_in_millimetres_and_volumes_in_millilitres(tab: Tab) -> None:
    tab.click(AXIAL, 0.55, 0.45)
    told = [float(part) for part in re.findall(r"-?\d+\.\d", tab.page.inner_text("#position"))]
    np.testing.assert_allclose(told, prompts(tab)[-1]["ras_mm"], atol=1.3)  # half a voxel
    (ml,) = re.findall(r"([\d.]+) ml", tab.page.inner_text("#segments li.active small"))
    assert float(ml) == pytest.approx(tab.voxels() * 1.5 * 2 * 2.5 / 1000, abs=0.06)


def test_a_finger_taps_drags_and_draws_as_the_mouse_does(tab: Tab) -> None:
    tab.page.keyboard.press("n")
    fingers = tab.page.context.new_cdp_session(tab.page)

    def touch(*path: List[float], beside: Any = None) -> None:
        for kind, place in (("touchStart", path[0]), *(("touchMove", place) for place in path[1:])):
            points = [place] if beside is None or kind == "touchStart" else [place, beside]
            places = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(points)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
        fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        tab.settled()

    start, end = tab.place(AXIAL, 0.45, 0.5), tab.place(AXIAL, 0.6, 0.65)
    touch(start)
    (tapped,) = prompts(tab)
    assert tapped["positive"] and tab.drawn(2) == tab.voxels(1) > 0
    touch(end, start)  # swiped: the crosshair alone
    touch(end, end, beside=tab.place(AXIAL, 0.2, 0.2))  # two fingers
    assert prompts(tab) == [tapped]
    touch(start, [(a + b) / 2 for a, b in zip(start, end)], end)
    (moved,) = prompts(tab)
    assert np.linalg.norm(np.subtract(moved["ras_mm"], tapped["ras_mm"])) > 2
    assert tab.get("famsam.viewer.dragged") is None and tab.get("famsam.dragging") is None
    assert tab.page.locator("#marks .point").bounding_box()["x"] == pytest.approx(end[0] - 8, abs=3)
    touch(end, start, tab.place(AXIAL, 0.5, 0.4), beside=tab.place(AXIAL, 0.2, 0.2))
    assert tab.get("famsam.dragging") is None and len(prompts(tab)) == 1
    tab.page.click("#box")
    touch(tab.place(AXIAL, 0.2, 0.2), end, tab.place(AXIAL, 0.7, 0.8))
    assert [one["type"] for one in prompts(tab)] == ["point", "box"]
    tab.page.click("#include")


def test_a_finger_that_deletes_a_point_moves_no_other(tab: Tab) -> None:
    tab.page.keyboard.press("n")
    for across in (0.4, 0.7):
        tab.click(AXIAL, across, 0.5)
    kept = prompts(tab)[1:]
    fingers = tab.page.context.new_cdp_session(tab.page)
    x, y = tab.place(AXIAL, 0.4, 0.5)
    fingers.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    tab.get("document.querySelector('[data-index=\"0\"]').dispatchEvent(new MouseEvent('contextmenu'))")  # it rested
    tab.settled()
    fingers.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y + 40}]})
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.settled()
    assert prompts(tab) == kept


def test_nothing_failed(tab: Tab) -> None:
    assert tab.foreign == [] and tab.problems == []
