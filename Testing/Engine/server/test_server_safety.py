"""What a hostile or careless client may send: always an answer with a sentence, never a stack trace."""

from __future__ import annotations

import gzip
import io
import json
import logging
import shutil
import socket
import struct
import time
import zipfile
import zlib
from base64 import b64encode
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any, Callable, Dict

import httpx
import nibabel
import numpy as np
import pytest
from famsam import VolumeError
from famsam.server import intake
from famsam.server.app import create_app
from famsam.server.intake import _without_path, read_request
from famsam.server.limits import MIB, Limits
from famsam.server.security import Access
from server_fixtures import CENTRE_RAS_MM, RAS_FROM_IJK, TEST_LIMITS, ball_zyx, dicom_zip, live, nifti_bytes, upload
from test_server_fairness import wait_until


def refused(answer: httpx.Response, status: int) -> str:
    """The sentence of a refusal."""
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert set(problem) == {"detail", "code"}
    assert (
        "Traceback" not in problem["detail"] and "/tmp" not in problem["detail"] and "famsam-server" not in answer.text
    )
    return str(problem["detail"])


def header_with(**fields: Any) -> bytes:
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(nifti_bytes(ball_zyx())))
    for name, value in fields.items():
        header[name] = value
    return bytes(header.binaryblock) + nifti_bytes(ball_zyx())[348:]


def zipped(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


def lying_zip() -> bytes:
    """A zip bomb: a DICOM file of 100 MiB of zeros, announced with its true size."""
    return zipped("a.dcm", b"\0" * 128 + b"DICM" + b"\0" * (100 * MIB))


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: {encoding}\nendian: little\n{extra}\n"
BAD_UPLOADS: Dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"hello, this is no scan" * 30,
    "a truncated NIfTI": lambda: nifti_bytes(ball_zyx())[:5000],
    "a truncated header": lambda: nifti_bytes(ball_zyx())[:200],
    "a truncated gzip": lambda: gzip.compress(nifti_bytes(ball_zyx()))[:-400],
    "a gzip of text": lambda: gzip.compress(b"no scan" * 200),
    "a header that announces far more": lambda: header_with(dim=[3, 20000, 20000, 20000, 1, 1, 1, 1]),
    "a gzipped header that announces far more": lambda: gzip.compress(
        header_with(dim=[3, 5000, 5000, 5000, 1, 1, 1, 1])
    ),
    "a header that announces a little more": lambda: header_with(dim=[3, 60, 60, 60, 1, 1, 1, 1]),
    "a negative dimension": lambda: header_with(dim=[3, 28, -24, 20, 1, 1, 1, 1]),
    "an unknown data type": lambda: header_with(datatype=1234),
    "voxels at an impossible place": lambda: header_with(vox_offset=3e9),
    "a singular matrix": lambda: header_with(srow_y=[0, 0, 0, 0]),
    "four axes": lambda: nifti_bytes(
        np.zeros((3, 8, 8, 8), np.int16) + ball_zyx()[0, 0, 0] + np.arange(8, dtype=np.int16)
    ),
    "only NaN": lambda: nifti_bytes(np.full((8, 8, 8), np.nan, np.float32)),
    "one value": lambda: nifti_bytes(np.ones((8, 8, 8), np.int16)),
    "a NRRD that refers to another file": lambda: NRRD.format(
        sizes="4 4 4", encoding="raw", extra="data file: /etc/passwd\n"
    ).encode(),
    "a NRRD that refers to another file in capitals": lambda: NRRD.format(
        sizes="4 4 4", encoding="raw", extra="Data  File: /etc/passwd\n"
    ).encode(),
    "a truncated NRRD": lambda: NRRD.format(sizes="64 64 64", encoding="raw", extra="").encode() + b"\0" * 100,
    "a huge NRRD": lambda: (
        NRRD.format(sizes="60000 60000 60000", encoding="gzip", extra="").encode() + gzip.compress(b"\0" * 1000)
    ),
    "a MetaImage that refers to another file": lambda: (
        b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = /etc/passwd\n"
    ),
    "a MetaImage with an impossible compressed size": lambda: (
        b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\n"
        b"CompressedData = True\nCompressedDataSize = 99999999999\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    ),
    "a zip of text": lambda: zipped("notes.txt", b"nothing here" * 100),
    "a truncated zip": lambda: dicom_zip(ball_zyx()[:4])[:-60],
    "a zip bomb": lying_zip,
    "a DICOM file without pixels": lambda: b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0\0\0\0\0",
}


@pytest.mark.parametrize("what", BAD_UPLOADS)
def test_a_bad_file_is_refused_with_a_sentence(what: str, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(BAD_UPLOADS[what]())
    limits = {"volume_bytes": TEST_LIMITS.volume_bytes, "files_in_zip": TEST_LIMITS.files_in_zip}
    with pytest.raises(VolumeError) as refusal:
        read_request({"path": str(path), "folder": str(tmp_path), "limits": limits})
    assert len(str(refusal.value)) > 20 and str(tmp_path) not in str(refusal.value)


def test_scans_are_read_where_the_system_limits_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("current limit exceeds maximum limit")  # what Python makes of macOS's answer

    monkeypatch.setattr("resource.setrlimit", refuse)
    scan, folder, request = tmp_path / "scan.nii", tmp_path / "private", tmp_path / "request.json"
    scan.write_bytes(nifti_bytes(ball_zyx()))
    folder.mkdir()
    limits = {"volume_bytes": MIB, "files_in_zip": 9}
    request.write_text(json.dumps({"path": str(scan), "folder": str(folder), "limits": limits}))
    monkeypatch.setattr("sys.argv", ["intake", str(request)])
    assert intake.main() == 0
    assert "error" not in json.loads(capsys.readouterr().out)


def test_sentences_hold_no_path_of_windows_either() -> None:
    class Folder(PureWindowsPath):
        def is_dir(self) -> bool:
            return True

    folder = Folder(r"C:\Users\Jo\famsam-server-x")
    for told in (folder, folder / "000000.dcm"):
        for spelt in (str(told), repr(str(told))):
            assert "Users" not in _without_path(f"{spelt} holds no volume", folder)


def test_names_within_a_zip_lead_nowhere(client: httpx.Client, tmp_path: Path) -> None:
    names = ["../../evil.dcm", "/etc/evil.dcm", "C:\\evil.dcm", "con", "\u202e.dcm", "a" * 300, "x/../../y", "."]
    with zipfile.ZipFile(io.BytesIO(dicom_zip(ball_zyx()[: len(names)]))) as ordinary:
        slices = [ordinary.read(name) for name in ordinary.namelist() if "IM" in name]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in zip(names, slices):
            archive.writestr(name, content)
    (tmp_path / "upload").write_bytes(packed.getvalue())
    limits = {"volume_bytes": TEST_LIMITS.volume_bytes, "files_in_zip": len(names)}
    read_request({"path": str(tmp_path / "upload"), "folder": str(tmp_path), "limits": limits})
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert kept == [*(f"series/{k:06d}.dcm" for k in range(len(names))), "voxels.npy"]
    answer = upload(client, packed.getvalue())
    assert answer.status_code == 201 and answer.json()["size_xyz"][2] == len(names)
    client.delete(f"/v1/volumes/{answer.json()['id']}")


@pytest.mark.parametrize("what", ["nothing", "a truncated gzip", "a NRRD that refers to another file", "a zip bomb"])
def test_the_server_goes_on_after_a_bad_upload(client: httpx.Client, what: str) -> None:
    assert len(refused(upload(client, BAD_UPLOADS[what]()), 422)) > 20
    assert client.get("/v1/server").status_code == 200


def test_a_volume_above_the_limit_is_refused_before_it_is_read(client: httpx.Client) -> None:
    bomb = gzip.compress(nifti_bytes(np.zeros((150, 150, 150), np.int16)))
    assert len(bomb) < 50_000
    assert "at most 4 MiB" in refused(upload(client, bomb), 422)


def test_not_a_number_is_opened_as_background(client: httpx.Client) -> None:
    voxels = ball_zyx().astype(np.float32)
    voxels[0, 0] = np.nan
    answer = upload(client, nifti_bytes(voxels))
    assert answer.status_code == 201
    client.delete(f"/v1/volumes/{answer.json()['id']}")


def test_an_upload_above_the_limit_is_cut_short(client: httpx.Client) -> None:
    refused(upload(client, b"\0" * (TEST_LIMITS.upload_bytes + 1)), 413)

    def unannounced() -> Any:
        for _ in range(TEST_LIMITS.upload_bytes // MIB + 2):
            yield b"\0" * MIB

    with suppress(httpx.TransportError):  # the server may hang up while we still send, which is as good
        refused(upload(client, unannounced()), 413)
    refused(client.put("/v1/sessions/x/mask", json={"bits": "A" * (2 * MIB)}), 413)


def test_an_upload_that_breaks_off_leaves_nothing(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(model)
    start = b"POST /v1/volumes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
    log = logging.getLogger("uvicorn.error")
    with live(app) as client, caplog.at_level("ERROR", logger=log.name):
        log.addHandler(caplog.handler)  # uvicorn's own do not pass anything on
        hub = app.state.hub
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as sender:
            sender.sendall(start + b"x" * 100)
            wait_until(lambda: hub._arriving == 1)
        wait_until(lambda: hub._arriving == 0 and not any(hub._root.iterdir()))
        assert client.get("/v1/server").status_code == 200
        log.removeHandler(caplog.handler)
    assert not any(record.levelname == "ERROR" for record in caplog.records)


def test_a_stalled_upload_is_given_up(model: Any) -> None:
    limits = Limits(read_timeout_s=0.3)

    def stalling() -> Any:
        yield b"\0" * 1000
        time.sleep(2)
        yield b"\0" * 1000

    with live(create_app(model, limits=limits)) as client:
        refused(upload(client, stalling()), 400)


def test_other_names_and_other_pages_are_refused(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    assert client.get("/v1/server", headers={"origin": own, "sec-fetch-site": "same-origin"}).status_code == 200
    refused(client.get("/v1/server", headers={"host": "evil.example:8765"}), 421)
    refused(client.get("/", headers={"host": "127.0.0.1.evil.example"}), 421)
    refused(client.get("/v1/server", headers={"origin": "https://evil.example"}), 403)
    refused(client.get("/v1/server", headers={"origin": "http://127.0.0.1:1"}), 403)
    for origin in ("null", "http://[", "", own + ".evil.example", own.replace("http", "ftp")):
        refused(client.get("/v1/server", headers={"origin": origin}), 403)
    refused(client.post("/v1/volumes/sample", headers={"sec-fetch-site": "cross-site"}), 403)


def test_answers_forbid_other_origins_and_caches(client: httpx.Client) -> None:
    headers = client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_the_token(model: Any) -> None:
    with live(create_app(model, access=Access(token="correct-horse-battery"))) as client:
        refused(client.get("/v1/server"), 401)
        for wrong in (
            "Bearer wrong",
            "Bearer correct-horse-batter",
            "Basic correct-horse-battery",
            "Bearer",
            "Bearer \xe9",
        ):
            refused(client.get("/v1/server", headers={"authorization": wrong.encode("latin-1")}), 401)
        right = {"authorization": "Bearer correct-horse-battery"}
        assert client.get("/v1/server", headers=right).status_code == 200
        assert client.get("/").status_code == 200  # the page itself holds nothing; it asks for the token


def test_paths_are_opened_only_where_allowed(model: Any, client: httpx.Client, tmp_path: Path) -> None:
    scan = tmp_path / "Doe_Jane.nii"
    scan.write_bytes(nifti_bytes(ball_zyx()))
    refused(client.post("/v1/volumes/path", json={"path": str(scan)}), 403)
    with live(create_app(model, paths_allowed=True)) as own:
        assert own.post("/v1/volumes/path", json={"path": str(scan)}).status_code == 201
        missing = own.post("/v1/volumes/path", json={"path": str(tmp_path / "nothing.nii")})
        assert "no such file" in refused(missing, 422)
        scan.write_bytes(b"broken")
        assert "Doe" not in refused(own.post("/v1/volumes/path", json={"path": str(scan)}), 422)
        for path in ("~nobody-of-this-name/scan.nii", "a" * 4000, "/dev/null", str(tmp_path), "scan\0.nii"):
            assert "Doe" not in refused(own.post("/v1/volumes/path", json={"path": path}), 422)


def test_a_scan_opened_by_its_path_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, private = tmp_path / "scan.nii.gz", tmp_path / "private"
    scan.write_bytes(gzip.compress(nifti_bytes(ball_zyx())))
    for links_allowed in (True, False):
        if not links_allowed:
            monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("as on Windows")))
        private.mkdir()
        request = {"path": str(scan), "folder": str(private)}
        read_request({**request, "limits": {"volume_bytes": MIB, "files_in_zip": 9}})
        assert (private / "voxels.npy").is_file() and scan.is_file()
        shutil.rmtree(private)


def test_limits_of_what_is_open(client: httpx.Client, volume: Any) -> None:
    sessions = []
    for _ in range(TEST_LIMITS.sessions):
        sessions.append(client.post(f"/v1/volumes/{volume['id']}/sessions"))
    assert {answer.status_code for answer in sessions} == {201}
    busy = client.post(f"/v1/volumes/{volume['id']}/sessions")
    refused(busy, 503)
    assert busy.headers["retry-after"]
    volumes = [upload(client, nifti_bytes(ball_zyx())) for _ in range(TEST_LIMITS.volumes)]
    refused(volumes[-1], 503)
    for opened in volumes[:-1]:
        assert client.delete(f"/v1/volumes/{opened.json()['id']}").status_code == 204


def test_memory_of_all_scans_is_limited(model: Any) -> None:
    scan = nifti_bytes(ball_zyx())
    with live(create_app(model, limits=Limits(all_volumes_bytes=ball_zyx().nbytes + 1))) as client:
        first = upload(client, scan)
        refused(upload(client, scan), 503)
        client.delete(f"/v1/volumes/{first.json()['id']}")
        assert upload(client, scan).status_code == 201


def test_scans_that_nobody_works_on_make_room(model: Any) -> None:
    app = create_app(model, limits=Limits(volumes=3))
    with live(app) as client:
        kept, older, newer = (upload(client, nifti_bytes(ball_zyx())).json()["id"] for _ in range(3))
        client.post(f"/v1/volumes/{kept}/sessions")
        refused(upload(client, nifti_bytes(ball_zyx())), 503)
        for scan_id, unused_s in ((kept, 300), (older, 200), (newer, 100)):
            app.state.hub.scan(scan_id).used_s -= unused_s
        assert upload(client, nifti_bytes(ball_zyx())).status_code == 201
        assert [client.get(f"/v1/volumes/{one}").status_code for one in (kept, older, newer)] == [200, 404, 200]
        refused(upload(client, nifti_bytes(ball_zyx())), 503)


def test_a_session_that_was_left_is_closed_unless_it_is_asked_for(model: Any) -> None:
    app = create_app(model)
    with live(app) as client:
        scan = upload(client, nifti_bytes(ball_zyx())).json()["id"]
        left, reloaded = (client.post(f"/v1/volumes/{scan}/sessions").json()["id"] for _ in range(2))
        for one in (left, reloaded):
            assert client.post(f"/v1/sessions/{one}/leave").status_code == 204
        app.state.hub.close_idle()
        assert client.get(f"/v1/sessions/{reloaded}/mask").status_code == 200
        for opened in app.state.hub._sessions.values():
            opened.used_s -= 61  # a minute later
        app.state.hub.close_idle()
        assert [client.get(f"/v1/sessions/{one}/mask").status_code for one in (left, reloaded)] == [404, 200]
        assert client.get(f"/v1/volumes/{scan}").status_code == 200
        refused(client.post(f"/v1/sessions/{left}/leave"), 404)


def test_number_of_prompts_is_limited(client: httpx.Client, session: str) -> None:
    state = client.get(f"/v1/sessions/{session}/state").json()["state"]
    point = {"type": "point", "ras_mm": CENTRE_RAS_MM, "positive": True}
    state["prompts"] = [point] * (TEST_LIMITS.prompts + 1)
    assert "at most 6" in refused(client.put(f"/v1/sessions/{session}/state", json={"state": state}), 422)
    for _ in range(TEST_LIMITS.prompts):
        assert client.post(f"/v1/sessions/{session}/points", json={"point_ras_mm": CENTRE_RAS_MM}).status_code == 200
    refused(client.post(f"/v1/sessions/{session}/points", json={"point_ras_mm": CENTRE_RAS_MM}), 422)


@pytest.mark.parametrize(
    "body",
    [
        {"point_ras_mm": [0, 0]},
        {"point_ras_mm": [0, 0, "x"]},
        {"point_ras_mm": [0, 0, 1e300]},
        {"point_ras_mm": [9000, 0, 0]},
        {"point_ras_mm": CENTRE_RAS_MM, "positive": "perhaps"},
        {"point_ras_mm": CENTRE_RAS_MM, "positve": False},
        {},
    ],
)
def test_bad_points(client: httpx.Client, session: str, body: Any) -> None:
    refused(client.post(f"/v1/sessions/{session}/points", json=body), 422)
    assert client.get(f"/v1/sessions/{session}/state").json()["state"]["prompts"] == []


def test_not_a_number_and_broken_json(client: httpx.Client, session: str) -> None:
    for text in (
        b'{"point_ras_mm": [NaN, 0, 0]}',
        b'{"point_ras_mm": [1e999, 0, 0]}',
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
    ):
        answer = client.post(
            f"/v1/sessions/{session}/points", content=text, headers={"content-type": "application/json"}
        )
        assert answer.status_code in (400, 422), answer.text
        refused(answer, answer.status_code)


def test_bombs_and_lies_in_masks(client: httpx.Client, session: str) -> None:
    bomb = b64encode(zlib.compress(b"\0" * (200 * MIB), 9)).decode()
    assert "more" in refused(client.put(f"/v1/sessions/{session}/mask", json={"bits": bomb}), 422)
    cut_off = b64encode(zlib.compress(b"\0" * 1680)[:-1]).decode()
    assert "cut off" in refused(client.put(f"/v1/sessions/{session}/mask", json={"bits": cut_off}), 422)
    for body in (
        {"bits": "not base64!"},
        {"bits": b64encode(b"not zlib").decode()},
        {"bits": b64encode(zlib.compress(b"\0" * 4)).decode()},
        {"bits": "", "box_zyx": [[0, 0, 0], [900, 900, 900]]},
        {"bits": "", "box_zyx": [[5, 5, 5], [5, 5, 5]]},
    ):
        refused(client.put(f"/v1/sessions/{session}/mask", json=body), 422)
    state = client.get(f"/v1/sessions/{session}/state").json()["state"]
    for mask in (
        {"size_zyx": [90000, 90000, 90000], "box_zyx": [[0, 0, 0], [90000, 90000, 90000]], "bits": bomb},
        {"size_zyx": [20, 24, 28], "box_zyx": [[0, 0, 0], [90000, 90000, 90000]], "bits": bomb},
        {"size_zyx": [20, 24, 28], "box_zyx": [[0, 0, 0], [20, 24, 28]], "bits": bomb},
        {"size_zyx": ["a", 24, 28], "box_zyx": None, "bits": ""},
        {"size_zyx": [1e400, 24, 28], "box_zyx": None, "bits": ""},
        {"size_zyx": [10**400, 24, 28], "box_zyx": None, "bits": ""},
        [],
        7,
    ):
        text = json.dumps({"state": {**state, "mask": mask}})
        answer = client.put(f"/v1/sessions/{session}/state", content=text, headers={"content-type": "application/json"})
        refused(answer, 422)


def test_numbers_too_large_for_a_coordinate(client: httpx.Client, session: str) -> None:
    state = client.get(f"/v1/sessions/{session}/state").json()["state"]
    point = {"type": "point", "ras_mm": [10**400, 0, 0], "positive": True}
    matrix = {**state["image"], "ras_from_ijk": [[10**400] * 4] * 4}
    for changed in ({"prompts": [point]}, {"image": matrix}):
        answer = client.put(f"/v1/sessions/{session}/state", json={"state": {**state, **changed}})
        assert "too large" in refused(answer, 422)


def test_looking_and_walking_do_not_use_up_the_history(model: Any) -> None:
    app = create_app(model)
    with live(app) as client:
        scan = upload(client, nifti_bytes(ball_zyx())).json()["id"]
        session = client.post(f"/v1/volumes/{scan}/sessions").json()["id"]
        url, point = f"/v1/sessions/{session}", {"point_ras_mm": CENTRE_RAS_MM}
        client.post(f"{url}/points", json=point)
        client.put(f"{url}/points/0", json=point)
        held = app.state.hub.session(session).history_bytes
        assert held > 1_000_000
        for method, path, body in (
            ("POST", "/preview", point),
            ("PUT", "/points/0", {**point, "continues": True}),
            ("POST", "/undo", None),
            ("POST", "/redo", None),
            ("GET", "/mask", None),
        ):
            assert client.request(method, url + path, json=body).status_code == 200
            assert app.state.hub.session(session).history_bytes == held, path


@pytest.mark.parametrize(
    "state", [{}, {"version": 99}, {"version": 1, "image": 3, "prompts": 4}, {"prompts": {"a": 1}}]
)
def test_bad_states(client: httpx.Client, session: str, state: Any) -> None:
    refused(client.put(f"/v1/sessions/{session}/state", json={"state": state}), 422)


def test_verbs_that_do_not_apply_now(client: httpx.Client, session: str) -> None:
    refused(client.post(f"/v1/sessions/{session}/undo"), 409)
    refused(client.post(f"/v1/sessions/{session}/redo"), 409)
    refused(client.delete(f"/v1/sessions/{session}/points/0"), 422)
    refused(client.delete(f"/v1/sessions/{session}/points/{10**30}"), 422)
    refused(client.get("/v1/sessions/unknown/state"), 404)
    refused(client.get("/v1/nothing"), 404)
    refused(client.put("/v1/server"), 405)


def test_idle_scans_and_sessions_are_forgotten(model: Any) -> None:
    with live(create_app(model, limits=Limits(idle_s=0.2))) as client:
        scan = upload(client, nifti_bytes(ball_zyx())).json()["id"]
        session = client.post(f"/v1/volumes/{scan}/sessions").json()["id"]
        time.sleep(0.8)
        assert "idle" in refused(client.get(f"/v1/sessions/{session}/state"), 404)
        refused(client.get(f"/v1/volumes/{scan}"), 404)


def test_nothing_of_a_scan_stays_on_disk_or_in_the_log(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level("DEBUG"), live(create_app(model)) as client:
        scan = upload(client, dicom_zip(ball_zyx())).json()["id"]
        (private,) = tmp_path.glob("famsam-server-*")
        assert private.stat().st_mode & 0o077 == 0
        root = private / "scans"
        assert any(root.rglob("*.dcm"))
        session = client.post(f"/v1/volumes/{scan}/sessions").json()["id"]
        client.post(f"/v1/sessions/{session}/points", json={"point_ras_mm": [500, 0, 0]})
        client.delete(f"/v1/volumes/{scan}")
        assert not any(root.iterdir())
        upload(client, nifti_bytes(ball_zyx()))
        (folder,) = root.iterdir()
        assert not any(folder.iterdir())  # what was read is not needed again
        upload(client, dicom_zip(ball_zyx()))
    assert not any(tmp_path.glob("famsam-server-*"))
    own = [record.getMessage() for record in caplog.records if record.name.startswith("famsam")]
    assert not any("Doe" in text or "secret" in text or session in text for text in own)


def test_big_endian_and_scaled_headers_still_open(client: httpx.Client) -> None:
    image = nibabel.Nifti1Image(ball_zyx().T, RAS_FROM_IJK, nibabel.Nifti1Header(endianness=">"))
    content = image.to_bytes()
    assert struct.unpack(">i", content[:4]) == (348,)
    answer = upload(client, content)
    assert answer.status_code == 201
    client.delete(f"/v1/volumes/{answer.json()['id']}")
