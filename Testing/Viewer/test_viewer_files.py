"""Files in and out of the page, how it shows them, and work with the keys alone; on small scans."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any, List

import nibabel
import numpy as np
import pytest
import SimpleITK
from conftest import Tab

sys.path.append(str(Path(__file__).resolve().parents[1] / "Engine" / "server"))
from server_fixtures import ball_zyx, dicom_zip, nifti_bytes

AXIAL = 2


def choose_file(tab: Tab, path: Path, button: str = "#open") -> None:
    with tab.page.expect_file_chooser() as chooser:
        tab.page.click(button)
    chooser.value.set_files(str(path))
    tab.until(f"document.getElementById('scan-name').textContent.startsWith('{path.name}:')")
    tab.settled()


def saved(tab: Tab, file_format: str, folder: Path) -> Path:
    with tab.page.expect_download() as download:
        tab.page.click(f".save[data-format='{file_format}']")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    tab.settled()
    return path


def colours(tab: Tab, axis: int = AXIAL) -> np.ndarray:
    """The pixels of a view, (rows, columns, 3), without the marks over it."""
    from PIL import Image

    tab.get("document.getElementById('marks').style.visibility = 'hidden'")
    tab.get("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    content = tab.page.screenshot(clip=tab.tile(axis))
    tab.get("document.getElementById('marks').style.visibility = ''")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int16)


def set_value(tab: Tab, selector: str, value: str, event: str) -> None:
    """As a picker of colours or a slider does, which cannot be typed into."""
    tab.page.eval_on_selector(
        selector,
        "(field, [value, kind]) => { field.value = value; field.dispatchEvent(new Event(kind, { bubbles: true })); }",
        [value, event],
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_the_file_dialog_opens_every_format(tab: Tab, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ball{suffix}"
    image = SimpleITK.GetImageFromArray(ball_zyx())
    image.SetSpacing((1.5, 2.0, 2.5))
    SimpleITK.WriteImage(image, str(path))
    choose_file(tab, path, "#welcome-open" if tab.page.is_visible("#welcome") else "#open")
    shown = tab.page.inner_text("#scan-name").replace("\u00d7", "x")
    assert "28 x 24 x 20 voxels of 1.5 x 2.0 x 2.5 mm" in shown
    assert [option.inner_text() for option in tab.page.query_selector_all("#window option")] == [
        "automatic",
        "full range",
    ]


def test_a_zipped_dicom_series_opens_with_the_windows_of_a_ct(tab: Tab, tmp_path: Path) -> None:
    path = tmp_path / "series.zip"
    path.write_bytes(dicom_zip(ball_zyx()))
    choose_file(tab, path)
    tab.page.select_option("#layout", "axial")
    tab.settled()
    assert tab.get("document.getElementById('window').selectedOptions[0].text") == "soft tissue"
    seen: List[np.ndarray] = []
    whole = int(ball_zyx().min()), int(ball_zyx().max())
    for name, low, high in (("soft tissue", -160, 240), ("bone", -500, 1300), ("full range", *whole)):
        tab.page.select_option("#window", label=name)
        tab.settled()
        assert tab.get("[famsam.viewer.nv.volumes[0].cal_min, famsam.viewer.nv.volumes[0].cal_max]") == pytest.approx(
            [low, high]
        )
        seen.append(colours(tab))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(seen[one] - seen[other]).max() > 30


def test_what_is_odd_about_a_series_is_told(tab: Tab, tmp_path: Path) -> None:
    whole, path = zipfile.ZipFile(io.BytesIO(dicom_zip(ball_zyx()))), tmp_path / "gap.zip"
    with whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            if not name.endswith("IM7"):
                archive.writestr(name, whole.read(name))
    choose_file(tab, path)
    assert "slices may be missing" in tab.page.inner_text("#alert")
    assert str(tmp_path) not in tab.page.inner_text("#alert")
    path.write_bytes(dicom_zip(ball_zyx()))
    tab.page.set_input_files("#file", str(path))
    tab.until("document.getElementById('scan-name').textContent.includes(' 20 voxels')")
    tab.settled()
    assert not tab.page.is_visible("#alert")


def test_names_and_colours_are_changed_and_shown(tab: Tab) -> None:
    tab.click(AXIAL, 0.5, 0.5)
    tab.page.fill("#segments li.active input[type=text]", "Kidney")
    tab.page.keyboard.press("Tab")
    set_value(tab, "#segments li.active input[type=color]", "#00ff00", "change")
    tab.settled()
    assert tab.get("[famsam.work.segment.name, famsam.work.segment.colour]") == ["Kidney", "#00ff00"]

    def greenness() -> int:
        seen = colours(tab)
        return int((seen[..., 1] - seen[..., 0]).max())

    half = greenness()
    assert half > 60
    set_value(tab, "#opacity", "1", "input")
    tab.settled()
    assert greenness() > half + 40
    set_value(tab, "#opacity", "0.5", "input")


def test_a_segment_is_deleted_and_its_colour_is_free_again(tab: Tab) -> None:
    tab.page.keyboard.press("n")
    tab.click(AXIAL, 0.3, 0.3)
    assert tab.drawn(2) > 0
    second = tab.get("famsam.work.segments[1].colour")
    tab.page.click("#segments li.active button[aria-label^=Delete]")
    assert tab.get("famsam.work.segments[1].name") in tab.answer(yes=False)
    assert tab.drawn(2) > 0
    tab.page.click("#segments li.active button[aria-label^=Delete]")
    tab.answer(yes=True)
    tab.settled()
    assert tab.drawn(2) == 0 and tab.drawn(1) == tab.voxels(0)
    tab.page.keyboard.press("n")
    assert tab.get("famsam.work.segments[1].colour") == second


def test_dicom_seg_holds_both_segments(tab: Tab, tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom (Python 3.10 or newer)")
    tab.click(AXIAL, 0.7, 0.6)
    tab.page.fill("#segments li.active input[type=text]", "Cyst")
    tab.page.keyboard.press("Tab")
    content = highdicom.seg.segread(saved(tab, "dcm", tmp_path))
    assert [segment.SegmentLabel for segment in content.SegmentSequence] == ["Kidney", "Cyst"]
    for number in (1, 2):
        frames = [
            content.pixel_array[k]
            for k, frame in enumerate(content.PerFrameFunctionalGroupsSequence)
            if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        ]
        assert sum(int(np.count_nonzero(frame)) for frame in frames) == tab.voxels(number - 1) > 0


def test_seg_nrrd_holds_names_and_colours(tab: Tab, tmp_path: Path) -> None:
    header = saved(tab, "seg.nrrd", tmp_path).read_bytes()[:6000].decode("utf-8", "replace")
    assert "Segment0_Name:=Kidney" in header and "Segment1_Name:=Cyst" in header
    colour = next(line for line in header.splitlines() if line.startswith("Segment0_Color:="))
    assert [float(part) for part in colour.partition(":=")[2].split()] == [0, 1, 0]


def test_keys_alone_open_segment_and_save(browser: Any, server: Any, tmp_path: Path) -> None:
    path = tmp_path / "ball.nii"
    path.write_bytes(nifti_bytes(ball_zyx()))
    tab = Tab(browser.new_page(), server.address)
    choosers: List[Any] = []
    tab.page.on("filechooser", lambda chooser: choosers.append(chooser))
    tab.goto(server.address)
    keys = tab.page.keyboard

    def focus(selector: str) -> None:
        for _ in range(40):
            if tab.get(f"document.activeElement.matches({selector!r})"):
                return
            keys.press("Tab")
        raise AssertionError(f"the Tab key does not lead to {selector}")

    focus("#welcome-open")
    keys.press("Enter")
    tab.page.wait_for_timeout(1000)
    choosers[0].set_files(str(path))
    tab.until("!document.getElementById('add-segment').disabled")
    tab.settled()
    focus("#canvas")
    keys.press("Enter")
    tab.settled()
    for key in ("Shift+ArrowLeft", "PageUp", "ArrowUp", "Shift+Enter"):
        keys.press(key)
    tab.settled()
    prompts = tab.get("famsam.work.segment.state.prompts")
    assert [prompt["positive"] for prompt in prompts] == [True, False]
    # Ten voxels of 1.5 mm to the right, one of 2.5 mm up, one of 2 mm to the front.
    moved = np.subtract(prompts[1]["ras_mm"], prompts[0]["ras_mm"])
    np.testing.assert_allclose(moved, [15, 2, 2.5], atol=0.01)
    keys.press("z")
    tab.settled()
    assert len(tab.get("famsam.work.segment.state.prompts")) == 1
    keys.press("y")
    tab.settled()
    assert len(tab.get("famsam.work.segment.state.prompts")) == 2
    keys.press("n")
    enter = "new KeyboardEvent('keydown', { key: 'Enter', bubbles: true })"  # chooses a colour, and is no click
    tab.page.eval_on_selector("#segments li.active input[type=color]", f"field => field.dispatchEvent({enter})")
    assert tab.get("famsam.waiting") == 0 and tab.get("famsam.work.segment.state") is None
    focus("#segments li.active input[type=text]")
    keys.press("Control+a")
    keys.type("Ball")
    focus("#layout")
    keys.press("a")  # as a list is chosen from by its entries' first letters
    tab.until("famsam.viewer.tiles().length === 1")
    focus(".save[data-format='nii.gz']")
    with tab.page.expect_download() as download:
        keys.press("Enter")
    download.value.save_as(tmp_path / "mask.nii.gz")
    labels = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
    assert (labels == 1).sum() == tab.voxels(0) > 0
    assert tab.get("famsam.work.segments.map(s => s.name)") == ["Segment 1", "Ball"]
    assert tab.problems == []
    tab.page.close()


def test_of_two_scans_opened_at_once_the_second_is_shown(tab: Tab, tmp_path: Path) -> None:
    for name, voxels in (("first.nii", ball_zyx()), ("second.nii", ball_zyx()[:, :, 2:])):
        (tmp_path / name).write_bytes(nifti_bytes(voxels))
        tab.page.set_input_files("#file", str(tmp_path / name))
    tab.until("document.getElementById('scan-name').textContent.startsWith('second.nii:')")
    tab.settled()
    assert tab.get("famsam.viewer.nv.volumes.length") == 1
    assert tab.get("famsam.viewer.nv.volumes[0].dims.slice(1, 4)") == [26, 24, 20]
    assert tab.get("famsam.work.segments.length") == 1
    tab.click(AXIAL, 0.5, 0.5)
    assert tab.drawn() == tab.voxels() and not tab.page.is_visible("#alert")
    tab.get("famsam.work.inFile = true")


def test_a_scan_whose_views_do_not_arrive_is_not_taken_for_the_one_before(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "other.nii").write_bytes(nifti_bytes(ball_zyx()[:, :, 2:]))
    tab.page.route("**/image.nii", lambda route: route.abort("connectionreset"), times=1)
    tab.page.set_input_files("#file", str(tmp_path / "other.nii"))
    tab.until("!document.getElementById('alert').hidden")
    tab.page.mouse.move(400, 300)
    tab.page.keyboard.press("n")
    tab.page.mouse.click(400, 300)
    tab.settled()
    assert tab.get("famsam.work.segments") == [] and tab.page.inner_text("#scan-name") == ""
    assert tab.page.is_disabled("#add-segment") and "cannot be reached" in tab.page.inner_text("#alert")
    choose_file(tab, tmp_path / "other.nii")
    assert not tab.page.is_visible("#alert")


def test_a_reload_before_the_views_arrived_leaves_a_segment_to_click(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "other.nii").write_bytes(nifti_bytes(ball_zyx()[:, :, 2:]))
    tab.page.route("**/image.nii", lambda route: route.abort("connectionreset"), times=1)
    tab.page.set_input_files("#file", str(tmp_path / "other.nii"))
    tab.until("!document.getElementById('alert').hidden")
    tab.page.reload()
    tab.until("document.body.dataset.ready === 'yes'")
    tab.page.select_option("#layout", "axial")
    tab.settled()
    tab.click(AXIAL, 0.5, 0.5)
    assert len(tab.get("famsam.work.segment.state.prompts")) == 1 and tab.drawn() == tab.voxels() > 0
    tab.get("famsam.work.inFile = true")


def test_a_scan_that_the_browser_cannot_draw_is_refused(tab: Tab, tmp_path: Path) -> None:
    most = tab.get("famsam.viewer.mostVoxels")
    wide = tmp_path / "wide.nii"
    wide.write_bytes(nifti_bytes(np.arange(4 * (most + 1), dtype=np.int16).reshape(2, 2, most + 1)))
    tab.page.set_input_files("#file", str(wide))
    tab.until("!document.getElementById('alert').hidden")
    assert f"{most + 1} voxels along an axis" in tab.page.inner_text("#alert")
    assert tab.get("famsam.overlay") is None


def test_tiny_voxels_are_told_and_boxed(tab: Tab, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.nii"
    tiny.write_bytes(nifti_bytes(ball_zyx(), np.diag([0.02, 0.02, 0.02, 1.0])))
    choose_file(tab, tiny)
    assert "of 0.02 x 0.02 x 0.02 mm" in tab.page.inner_text("#scan-name").replace("\u00d7", "x")
    tab.drag_box(AXIAL)
    assert [one["type"] for one in tab.get("famsam.work.segment.state.prompts")] == ["box"]
    told = tab.page.inner_text("#segments li.active small")
    assert float(told.split()[0]) == pytest.approx(tab.voxels() * 0.02**3 / 1000, rel=0.05) and tab.voxels() > 0
    tab.page.keyboard.press("i")
    tab.get("famsam.work.inFile = true")


def test_an_address_pasted_into_the_tab_opens_its_scan(tab: Tab) -> None:
    tab.page.goto(tab.page.url + "#sample")
    tab.until("document.getElementById('scan-name').textContent.startsWith('Sample:')")
    tab.settled()
    assert tab.get("location.hash") == ""


def test_nothing_failed(tab: Tab) -> None:
    assert tab.foreign == [] and tab.problems == []
