"""The session's verbs over HTTP, against the same verbs on a local session."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from famsam import Session, Volume
from famsam.proposing import ProposalOptions
from famsam.server.app import create_app
from famsam.server.packing import pack_bits, unpack_bits, unpack_probabilities
from famsam.server.wire import ProposalRequest
from server_fixtures import CENTRE_RAS_MM, RAS_FROM_IJK, SIZE_ZYX, ball_zyx, live

OTHER_RAS_MM = (RAS_FROM_IJK @ (16, 14, 11, 1))[:3].tolist()


@pytest.fixture
def local(model: Any) -> Session:
    made = Session(model)
    made.set_image(Volume(ball_zyx(), RAS_FROM_IJK))
    return made


class Mirror:
    """The mask as a client sees it: every answer's box pasted on what was there."""

    def __init__(self, client: Any, session: str) -> None:
        self._client, self._url = client, f"/v1/sessions/{session}"
        self.mask_zyx = np.zeros(SIZE_ZYX, bool)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._client.request(method, self._url + path, json=body)
        assert answer.status_code == 200, answer.text
        update = answer.json()
        if path != "/preview" and update["box_zyx"] is not None:
            where = tuple(slice(low, high) for low, high in zip(*update["box_zyx"]))
            self.mask_zyx[where] = unpack_bits(update["bits"], self.mask_zyx[where].shape)
            assert update["voxels"] == self.mask_zyx.sum()
        return update


def test_the_pages_files_are_of_their_own_types(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a program has written into Windows' registry, from which Python's table is made."""
    for name in ("index.html", "style.css", "viewer.js", "icon.svg"):
        (tmp_path / name).write_text("")
        mimetypes.add_type("text/plain", Path(name).suffix)
    monkeypatch.setattr("famsam.server.app.PAGE_FOLDER", tmp_path)
    with live(create_app(model)) as client:
        kinds = [client.get(name).headers["content-type"] for name in ("/", "/style.css", "/viewer.js", "/icon.svg")]
    assert [kind.partition(";")[0] for kind in kinds] == ["text/html", "text/css", "text/javascript", "image/svg+xml"]


def test_verbs_agree_with_a_local_session(client: Any, session: str, local: Session) -> None:
    remote = Mirror(client, session)
    steps = [
        ("POST", "/points", {"point_ras_mm": CENTRE_RAS_MM}, lambda: local.add_point(CENTRE_RAS_MM)),
        (
            "POST",
            "/points",
            {"point_ras_mm": OTHER_RAS_MM, "positive": False},
            lambda: local.add_point(OTHER_RAS_MM, positive=False),
        ),
        ("POST", "/undo", None, local.undo),
        ("POST", "/redo", None, local.redo),
        ("PUT", "/points/1", {"point_ras_mm": CENTRE_RAS_MM}, lambda: local.move_point(1, CENTRE_RAS_MM)),
        ("DELETE", "/points/0", None, lambda: local.remove_point(0)),
        (
            "POST",
            "/boxes",
            {"corners_ras_mm": [[10, 10, 40], [-10, -10, 20]]},
            lambda: local.add_box((-10, -10, 20), (10, 10, 40)),
        ),
        ("POST", "/reset", None, local.reset),
        ("POST", "/undo", None, local.undo),
    ]
    for method, path, body, verb in steps:
        update = remote.ask(method, path, body)
        expected = verb()
        np.testing.assert_array_equal(remote.mask_zyx, expected.mask_zyx, err_msg=path)
        assert update["quality"] == pytest.approx(expected.quality)
        assert update["state"] == local.to_dict()
    assert remote.mask_zyx.any()


def test_a_drag_is_one_step_of_the_history(client: Any, session: str, local: Session) -> None:
    remote = Mirror(client, session)
    remote.ask("POST", "/points", {"point_ras_mm": CENTRE_RAS_MM})
    before = remote.mask_zyx.copy()
    for step, continues in enumerate((False, True, True)):
        place = (RAS_FROM_IJK @ (15 + step, 12, 10, 1))[:3].tolist()
        remote.ask("PUT", "/points/0", {"point_ras_mm": place, "continues": continues})
    local.add_point(place)
    np.testing.assert_array_equal(remote.mask_zyx, local.result.mask_zyx)
    refused = client.put(f"/v1/sessions/{session}/points/0", json={"point_ras_mm": [9000, 0, 0], "continues": True})
    assert refused.status_code == 422
    assert remote.ask("POST", "/undo")["can_redo"]
    np.testing.assert_array_equal(remote.mask_zyx, before)


def test_preview_changes_nothing(client: Any, session: str, local: Session) -> None:
    remote = Mirror(client, session)
    remote.ask("POST", "/points", {"point_ras_mm": CENTRE_RAS_MM})
    local.add_point(CENTRE_RAS_MM)
    before = client.get(f"/v1/sessions/{session}/state").json()["state"]
    update = remote.ask("POST", "/preview", {"point_ras_mm": OTHER_RAS_MM, "positive": True})
    expected = local.preview(OTHER_RAS_MM)
    assert update["state"] is None
    assert update["box_zyx"] == [list(corner) for corner in expected.changed_box_zyx]
    assert client.get(f"/v1/sessions/{session}/state").json()["state"] == before


def test_the_uncertainty_is_that_of_a_local_session(client: Any, session: str, local: Session) -> None:
    url = f"/v1/sessions/{session}"
    early = client.get(f"{url}/uncertainty")
    assert early.status_code == 409 and "click first" in early.json()["detail"]
    client.post(f"{url}/points", json={"point_ras_mm": CENTRE_RAS_MM})
    local.add_point(CENTRE_RAS_MM)
    before = client.get(f"{url}/state").json()
    for decodes in (1, 4):
        answer = client.get(f"{url}/uncertainty", params={"decodes": decodes}).json()
        expected = local.uncertainty(decodes)
        assert answer["box_zyx"] == [list(corner) for corner in expected.box_zyx]
        seen = unpack_probabilities(answer["probabilities"], expected.probability_zyx.shape)
        np.testing.assert_allclose(seen, expected.probability_zyx, atol=0.5 / 255 + 1e-4)
        assert answer["expected_ml"] == pytest.approx(expected.expected_ml, rel=1e-3)
    assert client.get(f"{url}/state").json() == before
    for wrong in (0, 17, "many"):
        assert client.get(f"{url}/uncertainty", params={"decodes": wrong}).status_code == 422


def test_an_answer_holds_the_changed_box_alone_and_is_small(client: Any, session: str, local: Session) -> None:
    for point in (CENTRE_RAS_MM, OTHER_RAS_MM):
        answer = client.post(f"/v1/sessions/{session}/points", json={"point_ras_mm": point}).json()
        expected = local.add_point(point)
        box = expected.changed_box_zyx
        assert answer["box_zyx"] == [list(corner) for corner in box]
        voxels = int(np.prod(np.subtract(box[1], box[0])))
        assert len(answer["bits"]) < voxels / 8 * 4 / 3 + 40  # a bit a voxel, in base64, before it is compressed


def test_mask_in_and_out(client: Any, session: str) -> None:
    remote = Mirror(client, session)
    given = np.zeros(SIZE_ZYX, bool)
    given[8:12, 9:15, 10:17] = True
    remote.ask("PUT", "/mask", {"box_zyx": [[8, 9, 10], [12, 15, 17]], "bits": pack_bits(given[8:12, 9:15, 10:17])})
    np.testing.assert_array_equal(remote.mask_zyx, given)
    update = client.get(f"/v1/sessions/{session}/mask").json()
    assert update["box_zyx"] == [[8, 9, 10], [12, 15, 17]] and update["voxels"] == given.sum()


def test_restore_on_a_server_that_forgot(client: Any, volume: Any, session: str) -> None:
    remote = Mirror(client, session)
    remote.ask("POST", "/points", {"point_ras_mm": CENTRE_RAS_MM})
    state = remote.ask("POST", "/points", {"point_ras_mm": OTHER_RAS_MM, "positive": False})["state"]
    client.delete(f"/v1/sessions/{session}")
    again = Mirror(client, client.post(f"/v1/volumes/{volume['id']}/sessions").json()["id"])
    again.ask("PUT", "/state", {"state": state})
    np.testing.assert_array_equal(again.mask_zyx, remote.mask_zyx)


def test_sessions_do_not_see_one_another(client: Any, volume: Any, session: str) -> None:
    other = client.post(f"/v1/volumes/{volume['id']}/sessions").json()["id"]
    Mirror(client, session).ask("POST", "/points", {"point_ras_mm": CENTRE_RAS_MM})
    assert client.get(f"/v1/sessions/{other}/mask").json()["voxels"] == 0


def test_the_displayed_image_is_canonical_and_lies_where_the_scan_lies(client: Any, volume: Any) -> None:
    answer = client.get(f"/v1/volumes/{volume['id']}/image.nii")
    image = nibabel.Nifti1Image.from_bytes(answer.content)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asarray(image.dataobj)[::-1], ball_zyx().T)
    np.testing.assert_allclose(image.affine @ volume["display_from_ijk"], RAS_FROM_IJK)


def test_the_answers_name_the_grid(volume: Any) -> None:
    assert volume["size_xyz"] == list(SIZE_ZYX[::-1])
    np.testing.assert_array_equal(volume["ras_from_ijk"], RAS_FROM_IJK)
    assert not volume["is_dicom"]


def test_what_is_left_out_of_a_request_for_candidates_is_as_in_a_session():
    assert ProposalOptions(**ProposalRequest().model_dump()) == ProposalOptions()
