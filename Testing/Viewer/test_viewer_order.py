"""What the user does faster than the server answers: clicks, drags, deletions and undo, in their order."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from conftest import Tab

sys.path.append(str(Path(__file__).resolve().parents[1] / "Engine" / "server"))
from server_fixtures import ball_zyx, nifti_bytes

AXIAL = 2
PLACES = [(0.3, 0.3), (0.7, 0.3), (0.3, 0.7)]


def prompts(tab: Tab) -> List[Dict[str, Any]]:
    return list(tab.get("(famsam.work.segment.state?.prompts ?? [])"))


@contextmanager
def slow(tab: Tab) -> Iterator[None]:
    """The server's answers come only after the ``with`` block."""
    held: List[Any] = []
    holding = True

    def hold(route: Any) -> None:
        held.append(route) if holding else route.continue_()

    def is_verb(url: str) -> bool:
        return "/sessions/" in url and "encode-ahead" not in url

    tab.page.route(is_verb, hold)
    yield
    tab.page.wait_for_timeout(100)
    holding = False
    for route in held:
        route.continue_()
    tab.settled()
    tab.page.unroute(is_verb)


def on_screen(tab: Tab, prompt: Dict[str, Any]) -> Tuple[float, float]:
    seen = tab.get(f"famsam.viewer.screenPosition({prompt['ras_mm']}, {AXIAL})")
    return seen["x"], seen["y"]


def drag(tab: Tab, prompt: Dict[str, Any], dx: float, dy: float, meanwhile: Callable[[], Any] = lambda: None) -> None:
    x, y = on_screen(tab, prompt)
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x + dx / 2, y + dy / 2, steps=3)
    meanwhile()
    tab.page.mouse.move(x + dx, y + dy, steps=3)
    tab.page.mouse.up()


def undone(tab: Tab) -> List[Dict[str, Any]]:
    tab.page.keyboard.press("z")
    tab.settled()
    session = tab.get("famsam.work.segment.sessionId")
    state = tab.page.request.get(f"{tab.page.url}v1/sessions/{session}/state").json()["state"]
    assert state["prompts"] == prompts(tab) and tab.drawn() == tab.voxels()
    return prompts(tab)


@pytest.fixture
def three(tab: Tab, tmp_path: Path) -> List[Dict[str, Any]]:
    """Three prompts on a scan that was opened for the test."""
    path = tmp_path / "ball.nii"
    path.write_bytes(nifti_bytes(ball_zyx()))
    tab.get("famsam.work.inFile = true")
    tab.page.set_input_files("#file", str(path))
    tab.until("famsam.work.segment && !famsam.work.segment.state")
    tab.settled()
    tab.page.select_option("#layout", "axial")
    tab.settled()
    for place in PLACES:
        tab.click(AXIAL, *place)
    return prompts(tab)


def test_a_drag_while_a_click_waits_is_a_step_of_its_own(tab: Tab, three: List[Dict[str, Any]]) -> None:
    with slow(tab):
        tab.page.mouse.click(*tab.place(AXIAL, 0.7, 0.7))
        drag(tab, three[0], 30, 20)
    both = prompts(tab)
    assert len(both) == 4 and both[0] != three[0] and both[1:3] == three[1:]
    assert undone(tab) == [*three, both[3]]
    assert undone(tab) == three


def test_a_drag_of_another_point_is_a_step_of_its_own(tab: Tab, three: List[Dict[str, Any]]) -> None:
    x, y = on_screen(tab, three[0])
    with slow(tab):
        drag(tab, three[0], 30, 20)
        drag(tab, three[1], -30, 20)
    moved = prompts(tab)
    assert moved[0] != three[0] and moved[1] != three[1] and moved[2] == three[2]
    seen = on_screen(tab, moved[0])
    assert abs(seen[0] - x - 30) < 1.5 and abs(seen[1] - y - 20) < 1.5
    assert undone(tab) == [moved[0], *three[1:]]
    assert undone(tab) == three


def test_a_point_that_is_dragged_again_or_deleted_before_the_answer(tab: Tab, three: List[Dict[str, Any]]) -> None:
    x, y = on_screen(tab, three[0])
    with slow(tab):
        drag(tab, three[0], 30, 20)
        tab.page.mouse.move(x + 30, y + 20)
        tab.page.mouse.down()
        tab.page.mouse.move(x + 60, y + 20, steps=3)
        tab.page.mouse.up()
    moved = prompts(tab)
    seen = on_screen(tab, moved[0])
    assert abs(seen[0] - x - 60) < 1.5 and moved[1:] == three[1:]
    with slow(tab):
        drag(tab, moved[1], -30, 20)
        x, y = on_screen(tab, moved[1])
        tab.page.mouse.click(x - 30, y + 20, button="right")
    assert prompts(tab) == [moved[0], moved[2]]


def test_a_click_in_the_midst_of_a_drag_stays(tab: Tab, three: List[Dict[str, Any]]) -> None:
    def click() -> None:
        tab.settled()
        tab.page.keyboard.press("Enter")
        tab.settled()

    drag(tab, three[0], 30, 20, meanwhile=click)
    tab.settled()
    found = prompts(tab)
    assert len(found) == 4 and found[0] != three[0] and found[1:3] == three[1:]
    assert len(undone(tab)) == 4
    assert len(undone(tab)) == 3
    assert undone(tab) == three


def test_marks_that_are_deleted_before_the_answer_to_the_first(tab: Tab, three: List[Dict[str, Any]]) -> None:
    with slow(tab):
        for prompt in three[:2]:
            tab.page.mouse.click(*on_screen(tab, prompt), button="right")
    assert prompts(tab) == three[2:]
    assert not tab.page.is_visible("#alert")


def test_delete_takes_the_last_prompt_also_while_it_waits(tab: Tab, three: List[Dict[str, Any]]) -> None:
    with slow(tab):
        tab.page.mouse.click(*tab.place(AXIAL, 0.7, 0.7))
        tab.page.keyboard.press("Delete")
    assert prompts(tab) == three
    with slow(tab):
        for _ in range(2):
            tab.page.keyboard.press("Delete")
    assert prompts(tab) == three[:1]
    assert not tab.page.is_visible("#alert")


def test_a_click_while_a_file_is_saved_is_not_in_it(tab: Tab, three: List[Dict[str, Any]], tmp_path: Path) -> None:
    held: List[Any] = []
    tab.page.route("**/export", lambda route: held.append(route), times=1)
    tab.page.click(".save[data-format='nii.gz']")
    while not held:
        tab.page.wait_for_timeout(50)
    tab.page.mouse.click(*tab.place(AXIAL, 0.7, 0.7))
    tab.until("famsam.work.segment.state.prompts.length === 4")
    with tab.page.expect_download():
        held[0].continue_()
    assert tab.get("famsam.work.unsaved")
    with tab.page.expect_download():
        tab.page.click(".save[data-format='nii.gz']")
    tab.settled()
    assert not tab.get("famsam.work.unsaved")


def test_nothing_failed(tab: Tab) -> None:
    assert tab.problems == []
