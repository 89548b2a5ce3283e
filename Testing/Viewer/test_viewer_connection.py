"""The page and a server that comes and goes: what is said, what is kept, and what counts how often."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Dict, List

from conftest import RunningServer, Tab

sys.path.append(str(Path(__file__).resolve().parents[1] / "Engine" / "server"))
from server_fixtures import ball_zyx, nifti_bytes

AXIAL = 2


def open_ball(tab: Tab, folder: Path) -> None:
    path = folder / "ball.nii"
    path.write_bytes(nifti_bytes(ball_zyx()))
    with tab.page.expect_file_chooser() as chooser:
        tab.page.click("#open")
    chooser.value.set_files(str(path))
    tab.until("document.getElementById('scan-name').textContent.startsWith('ball.nii:')")
    tab.settled()
    tab.page.select_option("#layout", "axial")
    tab.settled()


def prompts(tab: Tab) -> List[Dict[str, Any]]:
    return list(tab.get("(famsam.work.segment.state?.prompts ?? [])"))


def click_without_waiting(tab: Tab, across: float, down: float) -> None:
    tab.page.mouse.click(*tab.place(AXIAL, across, down))


def test_a_lost_connection_is_said_once_and_all_clicks_are_kept(
    tab: Tab, server: RunningServer, tmp_path: Path
) -> None:
    open_ball(tab, tmp_path)
    tab.click(AXIAL, 0.5, 0.5)
    first = tab.voxels()
    server.stop()
    click_without_waiting(tab, 0.3, 0.3)
    tab.until("!document.getElementById('alert').hidden")
    assert "connection" in tab.page.inner_text("#alert").lower()
    tab.page.click("#alert-close")
    click_without_waiting(tab, 0.7, 0.3)
    click_without_waiting(tab, 0.7, 0.7)
    tab.page.wait_for_timeout(3000)  # of retries
    assert not tab.page.is_visible("#alert")
    assert tab.page.is_visible("#progress")
    server.start()
    tab.settled()
    assert not tab.page.is_visible("#alert")
    assert len(prompts(tab)) == 4
    assert tab.drawn() == tab.voxels()
    for count in (3, 2, 1):
        tab.page.keyboard.press("z")
        tab.settled()
        assert len(prompts(tab)) == count
    assert tab.voxels() == tab.drawn() == first
    tab.page.keyboard.press("z")  # a step from before the server was restarted
    tab.settled()
    assert prompts(tab) == [] and tab.voxels() == tab.drawn() == 0 and tab.page.is_disabled("#undo")
    for count in (1, 2):
        tab.page.keyboard.press("y")
        tab.settled()
        assert len(prompts(tab)) == count and tab.drawn() == tab.voxels()
    tab.page.keyboard.press("z")
    tab.settled()
    assert tab.voxels() == tab.drawn() == first


def test_a_click_whose_answer_was_lost_counts_once(tab: Tab) -> None:
    before = len(prompts(tab))
    in_doubt = tab.get("famsam.work.segment.sessionId")
    carried_out: List[int] = []

    def lose_the_answer(route: Any) -> None:
        carried_out.append(route.fetch().status)
        route.abort("connectionreset")

    tab.page.route("**/points", lose_the_answer, times=1)
    tab.click(AXIAL, 0.4, 0.6)
    assert carried_out == [200]
    assert len(prompts(tab)) == before + 1
    assert tab.drawn() == tab.voxels()
    session = tab.get("famsam.work.segment.sessionId")
    state = tab.page.request.get(f"{tab.page.url}v1/sessions/{session}/state").json()["state"]
    assert state["prompts"] == prompts(tab)
    assert tab.page.request.get(f"{tab.page.url}v1/sessions/{in_doubt}/state").status == 404  # nobody needs it any more


def test_a_click_whose_answer_broke_off_counts_once(tab: Tab) -> None:
    before = len(prompts(tab))
    tab.page.route("**/points", lambda route: route.fulfill(response=route.fetch(), body='{"box_zyx": ['), times=1)
    tab.click(AXIAL, 0.6, 0.6)
    assert len(prompts(tab)) == before + 1 and tab.drawn() == tab.voxels()
    assert not tab.page.is_visible("#alert")
    session = tab.get("famsam.work.segment.sessionId")
    state = tab.page.request.get(f"{tab.page.url}v1/sessions/{session}/state").json()["state"]
    assert state["prompts"] == prompts(tab)


def test_a_connection_lost_again_while_prompts_are_brought_back(tab: Tab) -> None:
    before = prompts(tab)
    expired = tab.get("famsam.work.segment.sessionId")
    assert tab.page.request.delete(f"{tab.page.url}v1/sessions/{expired}").status == 204
    tab.page.route("**/state", lambda route: route.abort("connectionreset"), times=1)
    tab.click(AXIAL, 0.35, 0.55)
    assert prompts(tab)[:-1] == before and len(prompts(tab)) == len(before) + 1
    assert tab.drawn() == tab.voxels() and not tab.page.is_visible("#alert")


def test_a_proxy_that_finds_no_server_behind_it_is_waited_for(tab: Tab) -> None:
    before = prompts(tab)
    tab.page.route("**/points", lambda route: route.fulfill(status=502, body="Bad Gateway"), times=1)
    tab.click(AXIAL, 0.65, 0.55)
    assert prompts(tab)[:-1] == before and len(prompts(tab)) == len(before) + 1
    assert tab.drawn() == tab.voxels() and not tab.page.is_visible("#alert")


def test_a_reload_before_a_clicks_answer_leaves_the_work_as_it_was_saved(tab: Tab) -> None:
    before, carried_out = prompts(tab), []
    tab.page.route("**/points", lambda route: carried_out.append(route.fetch().status), times=1)
    click_without_waiting(tab, 0.4, 0.4)
    end_s = time.monotonic() + 60
    while not carried_out and time.monotonic() < end_s:
        tab.page.wait_for_timeout(50)
    tab.page.reload()
    tab.until("document.body.dataset.ready === 'yes'")
    tab.settled()
    assert carried_out == [200] and prompts(tab) == before and tab.drawn() == tab.voxels()
    tab.page.keyboard.press("z")
    tab.settled()
    session = tab.get("famsam.work.segment.sessionId")
    state = tab.page.request.get(f"{tab.page.url}v1/sessions/{session}/state").json()["state"]
    assert state["prompts"] == prompts(tab) == before[:-1]
    tab.page.keyboard.press("y")
    tab.settled()
    tab.page.select_option("#layout", "axial")
    tab.settled()


def test_a_copy_of_a_tab_has_sessions_of_its_own(browser: Any, tab: Tab) -> None:
    before, kept = prompts(tab), tab.get("JSON.stringify({...sessionStorage})")
    copy = Tab(browser.new_page(), tab.page.url)
    copy.page.goto(f"{tab.page.url}style.css")
    copy.page.evaluate("kept => Object.entries(JSON.parse(kept)).forEach(one => sessionStorage.setItem(...one))", kept)
    copy.goto(tab.page.url)
    copy.settled()
    assert prompts(copy) == before and copy.voxels() == copy.drawn() == tab.voxels()
    tab.click(AXIAL, 0.3, 0.4)
    copy.click(AXIAL, 0.7, 0.4)
    copy.page.keyboard.press("z")
    copy.settled()
    assert prompts(copy) == before and len(prompts(tab)) == len(before) + 1
    assert copy.drawn() == copy.voxels() and tab.drawn() == tab.voxels()
    assert copy.problems == []
    copy.page.close()


def test_a_history_too_large_for_the_tabs_storage_costs_the_history_alone(tab: Tab) -> None:
    tab.get("famsam.work.segment.future = Array(12).fill({...famsam.work.segment.state, mask: 'x'.repeat(1e6)})")
    tab.get("famsam.work.saveNow()")
    saved = tab.get("JSON.parse(sessionStorage.getItem('famsam-work-2'))")
    assert saved["segments"][0]["state"]["prompts"] == prompts(tab)
    tab.get("famsam.work.segment.future = []")


def test_a_segment_that_is_deleted_while_its_click_waits(tab: Tab) -> None:
    first = prompts(tab)
    held: List[Any] = []
    asked: List[str] = []
    tab.page.keyboard.press("n")
    tab.page.route("**/points", lambda route: held.append(route), times=1)
    click_without_waiting(tab, 0.4, 0.4)
    click_without_waiting(tab, 0.5, 0.4)
    tab.until("famsam.waiting === 2")
    end_s = time.monotonic() + 60
    while not held and time.monotonic() < end_s:
        tab.page.wait_for_timeout(50)
    tab.page.click("#segments li.active button[aria-label^=Delete]")
    tab.until("famsam.work.segments.length === 1")
    tab.page.on("request", lambda request: asked.append(request.url))
    held[0].continue_()
    tab.settled()
    assert prompts(tab) == first and tab.drawn(2) == 0 and tab.drawn() == tab.voxels()
    assert not tab.page.is_visible("#alert") and len(asked) < 6
    tab.click(AXIAL, 0.45, 0.45)
    assert len(prompts(tab)) == len(first) + 1


def test_a_preview_brings_back_a_session_that_expired(tab: Tab) -> None:
    before = prompts(tab)
    expired = tab.get("famsam.work.segment.sessionId")
    assert tab.page.request.delete(f"{tab.page.url}v1/sessions/{expired}").status == 204
    tab.page.keyboard.down("p")
    tab.page.mouse.move(*tab.place(AXIAL, 0.3, 0.6))
    tab.until(f"famsam.work.segment.sessionId !== {expired!r} && !famsam.work.restoring && !famsam.looks.busy")
    seen = tab.get("famsam.looks.previews")
    tab.page.mouse.move(*tab.place(AXIAL, 0.32, 0.62))
    tab.until(f"famsam.looks.previews > {seen}")
    tab.page.keyboard.up("p")
    tab.until("!famsam.looks.busy")
    assert prompts(tab) == before and tab.drawn() == tab.voxels()


def test_after_a_reload_and_a_restart_only_the_same_scan_brings_the_segments_back(
    tab: Tab, server: RunningServer, tmp_path: Path
) -> None:
    before, voxels = prompts(tab), tab.voxels()
    tab.page.wait_for_timeout(100)  # until the page has stored its work
    server.stop()
    server.start()
    tab.page.reload()
    tab.until("document.body.dataset.ready === 'yes'")
    assert "Open the same file again" in tab.page.inner_text("#alert")
    same, other = tmp_path / "ball.nii", tmp_path / "other.nii"
    same.write_bytes(nifti_bytes(ball_zyx()))
    other.write_bytes(nifti_bytes(ball_zyx()[:, :, 2:]))
    tab.page.set_input_files("#file", str(other))
    assert "not the scan" in tab.answer(yes=False)
    tab.until("!document.getElementById('alert').hidden")
    assert prompts(tab) == before
    tab.page.set_input_files("#file", str(same))
    tab.until("document.getElementById('scan-name').textContent.startsWith('ball.nii:')")
    tab.settled()
    assert prompts(tab) == before and tab.voxels() == voxels == tab.drawn()
    server.stop()
    server.start()
    tab.page.reload()
    tab.until("document.body.dataset.ready === 'yes'")
    tab.page.set_input_files("#file", str(other))
    tab.answer(yes=True)
    tab.until("document.getElementById('scan-name').textContent.startsWith('other.nii:')")
    tab.settled()
    assert tab.get("famsam.work.segments.map(one => one.voxels)") == [0] and not tab.page.is_visible("#alert")
    tab.page.set_input_files("#file", str(same))  # nothing is lost by it, so nothing is asked
    tab.until("document.getElementById('scan-name').textContent.startsWith('ball.nii:')")
    tab.settled()
    assert tab.get("famsam.work.segments.map(one => one.voxels)") == [0] and tab.problems == []


def test_a_file_above_the_servers_limit_is_told_before_it_is_sent(browser: Any, weights: str, tmp_path: Path) -> None:
    small = RunningServer(weights, more=["--max-upload-mib", "1"])
    small.start()
    try:
        tab = Tab(browser.new_page(), small.address)
        tab.goto(small.address)
        path = tmp_path / "large.nii"
        path.write_bytes(b"\0" * (3 << 20))
        tab.page.set_input_files("#file", str(path))
        tab.until("!document.getElementById('alert').hidden")
        told = tab.page.inner_text("#alert")
        assert "3 MiB" in told and "at most 1 MiB" in told
        tab.page.close()
    finally:
        small.stop()


def test_clicks_in_quick_succession_all_count(tab: Tab) -> None:
    before = prompts(tab)
    places = [(0.2, 0.5), (0.8, 0.5), (0.5, 0.2)]
    for place in places:
        click_without_waiting(tab, *place)
    tab.settled()
    assert len(prompts(tab)) == len(before) + len(places)
    assert tab.drawn() == tab.voxels()


def test_a_click_takes_the_place_of_previews(tab: Tab) -> None:
    before = len(prompts(tab))
    tab.page.keyboard.down("p")
    for step in range(6):
        tab.page.mouse.move(*tab.place(AXIAL, 0.3 + 0.05 * step, 0.65))
    click_without_waiting(tab, 0.55, 0.7)
    tab.page.keyboard.up("p")
    tab.settled()
    tab.until("!famsam.looks.busy")
    assert len(prompts(tab)) == before + 1
    assert tab.drawn() == tab.voxels()
    assert not tab.page.is_visible("#alert")


def test_a_server_that_came_back_with_another_token_is_gone_on_with(
    browser: Any, weights: str, tmp_path: Path
) -> None:
    first = RunningServer(weights, token="a-long-enough-token")
    first.start()
    second = RunningServer(weights, token="another-long-token", port=first.port)
    try:
        tab = Tab(browser.new_page(), first.address)
        tab.goto(first.address + "#token=a-long-enough-token")
        open_ball(tab, tmp_path)
        tab.click(AXIAL, 0.5, 0.5)
        first.stop()
        second.start()
        click_without_waiting(tab, 0.3, 0.3)
        tab.until("document.getElementById('token-dialog').open")
        tab.page.fill("#token", "another\u2013long\u2013token")  # as word processors have it
        tab.page.keyboard.press("Enter")
        tab.until("document.getElementById('token-dialog').open")
        tab.page.fill("#token", "another-long-token")
        tab.page.keyboard.press("Enter")
        tab.settled()
        assert len(prompts(tab)) == 2 and tab.drawn() == tab.voxels()
        assert not tab.page.is_visible("#alert") and tab.problems == []
        tab.page.close()
    finally:
        first.stop()
        second.stop()
