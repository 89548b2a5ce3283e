"""The page, used as a person uses it. The tests follow one another in one tab; each begins where the last one ended."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Dict

import nibabel
import numpy as np
import pytest
from conftest import RunningServer, Tab

AXIAL, CORONAL, SAGITTAL = 2, 1, 0


def drop(tab: Tab, name: str, content: bytes) -> None:
    tab.page.evaluate(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        [name, list(content)],
    )


def pixels(tab: Tab, axis: int) -> np.ndarray:
    """What is drawn in a view, without the marks over it."""
    from PIL import Image

    tab.get("document.getElementById('marks').style.visibility = 'hidden'")
    tab.get("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    content = tab.page.screenshot(clip=tab.tile(axis))
    tab.get("document.getElementById('marks').style.visibility = ''")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int16)


def small_scan() -> bytes:
    z, y, x = np.indices((30, 34, 38))
    ball = ((z - 15) ** 2 + (y - 17) ** 2 + (x - 19) ** 2 < 64) * 300 + z
    image = nibabel.Nifti1Image(ball.astype(np.int16).T, np.diag([-2.0, 2, 2, 1]))
    return image.to_bytes()


def test_the_sample_opens(tab: Tab) -> None:
    tab.picture("welcome")
    tab.page.click("#welcome-sample")
    tab.until("!document.getElementById('add-segment').disabled")
    tab.settled()
    assert all(size in tab.page.inner_text("#scan-name") for size in ("197", "233", "189"))
    assert not tab.page.is_visible("#welcome")


def test_a_click_in_the_axial_view_shows_the_mask_in_all_three(tab: Tab) -> None:
    tab.click(AXIAL, 0.46, 0.5)
    assert tab.voxels() > 0
    assert tab.drawn() == tab.voxels()
    assert tab.page.locator("#marks .point.positive").count() == 3
    assert " ml" in tab.page.inner_text("#segments")
    assert "ms" in tab.page.inner_text("#status") and "quality" in tab.page.inner_text("#status")
    with_mask = {axis: pixels(tab, axis) for axis in (AXIAL, CORONAL, SAGITTAL)}
    tab.page.keyboard.press("v")
    tab.settled()
    for axis, seen in with_mask.items():
        assert (np.abs(seen - pixels(tab, axis)).max(-1) > 20).any(), axis
    tab.page.keyboard.press("v")
    tab.settled()
    tab.picture("first-click")


def test_the_click_lies_where_the_pointer_was(tab: Tab) -> None:
    across, down = tab.place(AXIAL, 0.46, 0.5)
    ras = tab.get("famsam.work.segment.state.prompts[0].ras_mm")
    seen = tab.get(f"famsam.viewer.screenPosition({ras}, {AXIAL})")
    assert abs(seen["x"] - across) < 1 and abs(seen["y"] - down) < 1
    # The patient's right is on the left of the screen, the front is up: MNI coordinates of this very place.
    assert 0 < ras[0] < 25 and -40 < ras[1] < 0


def test_negative_click_undo_and_redo(tab: Tab) -> None:
    before = tab.voxels()
    ras = tab.get("famsam.work.segment.state.prompts[0].ras_mm")
    tab.page.keyboard.down("Shift")
    tab.click(AXIAL, 0.46, 0.4)
    tab.page.keyboard.up("Shift")
    prompts = tab.get("famsam.work.segment.state.prompts")
    assert [prompt["positive"] for prompt in prompts] == [True, False] and prompts[0]["ras_mm"] == ras
    assert tab.page.locator("#marks .point.negative").count() >= 1
    after = tab.voxels()
    assert tab.drawn() == after
    tab.page.keyboard.press("z")
    tab.settled()
    assert tab.voxels() == before == tab.drawn()
    tab.page.click("#redo")
    tab.settled()
    assert tab.voxels() == after == tab.drawn()


def test_preview_while_the_key_is_held(tab: Tab) -> None:
    before = tab.voxels()
    tab.page.mouse.move(*tab.place(AXIAL, 0.6, 0.6))
    tab.page.keyboard.down("p")
    tab.until("famsam.looks.previews > 0")
    seen = tab.get("famsam.looks.previews")
    tab.page.mouse.move(*tab.place(AXIAL, 0.62, 0.62))
    tab.until(f"famsam.looks.previews > {seen}")
    tab.picture("preview")
    tab.page.keyboard.up("p")
    tab.until("!famsam.looks.busy")
    assert tab.voxels() == before == tab.drawn()
    assert len(tab.get("famsam.work.segment.state.prompts")) == 2


def test_drag_and_delete_of_a_point(tab: Tab) -> None:
    place = tab.get("famsam.work.segment.state.prompts[1].ras_mm")
    start = tab.get(f"famsam.viewer.screenPosition({place}, {AXIAL})")
    tab.page.mouse.move(start["x"], start["y"])
    tab.page.mouse.down()
    tab.page.mouse.move(start["x"] + 12, start["y"] - 6, steps=3)
    tab.page.mouse.up()
    tab.settled()
    moved = tab.get("famsam.work.segment.state.prompts[1].ras_mm")
    seen = tab.get(f"famsam.viewer.screenPosition({moved}, {AXIAL})")
    assert abs(seen["x"] - start["x"] - 12) < 1.5 and abs(seen["y"] - start["y"] + 6) < 1.5
    tab.page.keyboard.press("z")  # the drag is one step of the history
    tab.settled()
    assert tab.get("famsam.work.segment.state.prompts[1].ras_mm") == pytest.approx(place)
    tab.page.mouse.click(start["x"], start["y"], button="right")
    tab.settled()
    assert len(tab.get("famsam.work.segment.state.prompts")) == 1
    assert tab.drawn() == tab.voxels()


def test_a_second_segment(tab: Tab) -> None:
    first = tab.voxels(0)
    tab.page.keyboard.press("n")
    tab.page.fill("#segments li.active input[type=text]", "Thalamus")
    tab.page.keyboard.press("Enter")
    tab.get("document.activeElement.blur()")
    tab.click(AXIAL, 0.56, 0.56)
    assert tab.voxels(1) > 0 and tab.voxels(0) == first
    assert tab.drawn(2) == tab.voxels(1)  # the active segment lies on top
    assert tab.page.locator("#segments li").count() == 2
    tab.page.keyboard.press("1")
    assert tab.drawn(1) == first
    tab.picture("two-segments")


def test_keys_alone_are_enough(tab: Tab) -> None:
    tab.page.keyboard.press("2")
    before = tab.page.inner_text("#position")
    tab.page.keyboard.press("Shift+ArrowLeft")
    tab.page.keyboard.press("PageUp")
    assert tab.page.inner_text("#position") != before
    tab.page.keyboard.press("Enter")
    tab.settled()
    assert len(tab.get("famsam.work.segment.state.prompts")) == 2
    tab.page.keyboard.press("Delete")
    tab.settled()
    assert len(tab.get("famsam.work.segment.state.prompts")) == 1


def saved_masks(tab: Tab, file_format: str, folder: Path) -> Path:
    with tab.page.expect_download() as download:
        tab.page.click(f".save[data-format='{file_format}']")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    tab.settled()
    return path


def test_saved_files_hold_what_is_shown(tab: Tab, tmp_path: Path) -> None:
    image: Any = nibabel.load(saved_masks(tab, "nii.gz", tmp_path))
    labels = np.asarray(image.dataobj)
    assert (labels == 2).sum() == tab.voxels(1)
    point = tab.get("famsam.work.segments[1].state.prompts[0].ras_mm")
    i, j, k = np.round(np.linalg.inv(image.affine) @ [*point, 1])[:3].astype(int)
    assert labels[i, j, k] == 2
    header = saved_masks(tab, "seg.nrrd", tmp_path).read_bytes()[:4000].decode("utf-8", "replace")
    assert "Segment1_Name:=Thalamus" in header
    assert tab.page.is_disabled(".save[data-format='dcm']")


def as_is(tab: Tab) -> Dict[str, Any]:
    return tab.get(
        "({names: famsam.work.segments.map(s => s.name), colours: famsam.work.segments.map(s => s.colour),"
        " voxels: famsam.work.segments.map(s => s.voxels), prompts: famsam.work.segments.map(s => s.state.prompts)})"
    )


def test_a_reload_restores_everything(tab: Tab) -> None:
    before = as_is(tab)
    tab.page.reload()
    tab.until("document.body.dataset.ready === 'yes'")
    tab.settled()
    assert as_is(tab) == before
    tab.page.keyboard.press("1")
    assert tab.drawn(1) == before["voxels"][0] > 0
    assert tab.page.is_enabled("#undo")  # the sessions still live on the server


def test_a_restarted_server_in_mid_work(tab: Tab, server: RunningServer) -> None:
    before = as_is(tab)
    server.stop()
    tab.page.mouse.click(*tab.place(AXIAL, 0.4, 0.45))
    tab.until("!document.getElementById('alert').hidden")
    assert "connection" in tab.page.inner_text("#alert").lower()
    server.start()
    tab.settled()
    after = as_is(tab)
    assert after["prompts"][0][:-1] == before["prompts"][0] and len(after["prompts"][0]) == 2
    assert after["voxels"][1] == before["voxels"][1]
    assert tab.drawn(1) == after["voxels"][0]
    assert not tab.page.is_visible("#alert")
    tab.page.keyboard.press("z")
    tab.settled()
    assert as_is(tab) == before


def test_a_bad_file_is_refused_and_work_goes_on(tab: Tab) -> None:
    before = as_is(tab)
    drop(tab, "notes.txt", b"no scan at all" * 50)
    tab.answer(yes=True)
    tab.until("!document.getElementById('alert').hidden")
    assert "NIfTI" in tab.page.inner_text("#alert")
    tab.picture("bad-file")
    assert as_is(tab) == before
    tab.page.click("#alert-close")
    tab.click(AXIAL, 0.6, 0.3)
    assert len(as_is(tab)["prompts"][0]) == len(before["prompts"][0]) + 1


def test_a_dropped_scan_takes_the_old_ones_place_if_that_is_meant(tab: Tab) -> None:
    before = as_is(tab)
    drop(tab, "ball.nii", small_scan())
    assert "not saved" in tab.answer(yes=False)
    assert as_is(tab) == before and tab.page.inner_text("#scan-name").startswith("Sample")
    drop(tab, "ball.nii", small_scan())
    tab.answer(yes=True)
    tab.until("document.getElementById('scan-name').textContent.startsWith('ball.nii')")
    tab.settled()
    assert [segment["voxels"] for segment in tab.get("famsam.work.segments")] == [0]
    tab.click(AXIAL, 0.5, 0.5)
    assert tab.drawn(1) == tab.voxels() > 0


def test_a_box_prompt(tab: Tab) -> None:
    tab.page.keyboard.press("n")
    tab.drag_box(CORONAL)
    (prompt,) = tab.get("famsam.work.segment.state.prompts")
    assert prompt["type"] == "box"
    assert all(low < high for low, high in zip(prompt["lower_ras_mm"], prompt["upper_ras_mm"]))
    assert tab.page.locator("#marks .frame").count() >= 1
    tab.page.keyboard.press("i")


def test_a_box_with_the_keys_alone(tab: Tab) -> None:
    def press(*keys: str) -> None:
        for key in keys:
            tab.page.keyboard.press(key)
        tab.settled()

    press("n", "b", "Enter")
    assert "opposite corner" in tab.page.inner_text("#status")
    press("Shift+ArrowRight", "Shift+ArrowDown", "ArrowDown", "Shift+PageUp", "Enter")
    (prompt,) = tab.get("famsam.work.segment.state.prompts")
    sides_mm = np.subtract(prompt["upper_ras_mm"], prompt["lower_ras_mm"])
    np.testing.assert_allclose(sides_mm, [20, 22, 20], atol=0.01)
    press("z", "Enter", "Shift+ArrowLeft", "Shift+ArrowUp", "Enter")  # both corners on one axial slice
    (prompt,) = tab.get("famsam.work.segment.state.prompts")
    np.testing.assert_allclose(np.subtract(prompt["upper_ras_mm"], prompt["lower_ras_mm"]), 20, atol=0.1)  # clipped
    press("z", "Enter", "b", "i", "Enter")  # a corner that is given up
    assert [one["type"] for one in tab.get("famsam.work.segment.state.prompts")] == ["point"]


def test_help_and_layouts(tab: Tab) -> None:
    tab.page.keyboard.press("?")
    assert tab.page.is_visible("#help-dialog")
    tab.picture("help")
    tab.page.keyboard.press("Escape")
    for name, axes in (("axial", [2]), ("3d", []), ("all", [2, 1, 0])):
        tab.page.select_option("#layout", name)
        tab.settled()
        assert sorted(tab.get("famsam.viewer.tiles().map(t => t.axis)")) == sorted(axes)


def test_nothing_came_from_elsewhere_and_nothing_failed(tab: Tab, server: RunningServer) -> None:
    assert tab.foreign == []
    assert tab.problems == []
    assert "niivue" in tab.page.request.get(server.address + "licenses.txt").text()


def test_the_token_is_asked_for(browser: Any, weights: str) -> None:
    guarded = RunningServer(weights, token="a-long-enough-token")
    guarded.start()
    try:
        tab = Tab(browser.new_page(), guarded.address)
        tab.page.goto(guarded.address)
        for given in ("wrong", "a-long-enough-token"):
            tab.until("document.getElementById('token-dialog').open")
            tab.page.fill("#token", given)
            tab.page.keyboard.press("Enter")
            tab.until("!document.getElementById('token-dialog').open || document.getElementById('token').value === ''")
        tab.until("document.body.dataset.ready === 'yes'")
        drop(tab, "ball.nii", small_scan())
        tab.until("document.getElementById('scan-name').textContent.startsWith('ball.nii')")
        tab.page.close()
    finally:
        guarded.stop()
