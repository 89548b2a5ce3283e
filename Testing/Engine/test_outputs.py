from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from famsam.errors import ConfigError
from famsam.outputs import WAITS_S, WEIGHTS_SUFFIXES, check_output_file, check_output_folder, put_in_place


def test_what_can_be_written_passes(tmp_path):
    check_output_file(None)
    check_output_folder(None)
    check_output_file(tmp_path / "new.txt")
    (tmp_path / "old.txt").write_text("old")
    check_output_file(tmp_path / "old.txt", apart_from=[None, tmp_path / "absent", tmp_path])
    check_output_file(tmp_path / "W.SAFETENSORS", WEIGHTS_SUFFIXES)
    check_output_folder(tmp_path)
    check_output_folder(tmp_path / "new" / "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"], "nothing is made"


def test_relative_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output_file((tmp_path / "new.txt").relative_to(tmp_path))
    check_output_folder((tmp_path / "new" / "newer").relative_to(tmp_path))


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match=r"ends in \.safetensors to write to, got .*w\.txt"):
        check_output_file(tmp_path / "w.txt", WEIGHTS_SUFFIXES)
    with pytest.raises(ConfigError, match="which is a folder"):
        check_output_file(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no folder .*absent"):
        check_output_file(tmp_path / "absent" / "w.txt")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(ConfigError, match=r"Expected a folder to write to.*file is a file"):
            check_output_folder(path)


def test_where_nothing_may_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # as root one may write anywhere
    with pytest.raises(ConfigError, match="may be written to, got"):
        check_output_file(tmp_path / "w.txt")
    with pytest.raises(ConfigError, match="may be written to, got"):
        check_output_folder(tmp_path / "new")


def test_what_is_read_must_stay(tmp_path):
    (tmp_path / "scan").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "scan")
    os.link(tmp_path / "scan", tmp_path / "hard")
    for path, kept in [("link", "scan"), ("scan", "link"), ("hard", "scan"), ("scan", "scan")]:
        with pytest.raises(ConfigError, match="would be lost"):
            check_output_file(tmp_path / path, apart_from=[tmp_path / kept])


def test_a_file_that_a_virus_scanner_holds_for_a_moment_takes_its_place(tmp_path, monkeypatch):
    waited, replace = [], os.replace
    finished, path = tmp_path / "new", tmp_path / "old"
    finished.write_text("new")
    path.write_text("old")

    def refuse(*_):
        raise PermissionError(13, "Access is denied")

    def refuse_twice(*names):
        return replace(*names) if len(waited) == 2 else refuse()

    monkeypatch.setattr("famsam.outputs.time.sleep", waited.append)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        put_in_place(finished, path)
    assert not waited, "other systems mean it"
    monkeypatch.setattr("famsam.outputs.sys", SimpleNamespace(platform="win32"))
    with pytest.raises(PermissionError):
        put_in_place(finished, path)
    assert tuple(waited) == WAITS_S
    waited.clear()
    monkeypatch.setattr(os, "replace", refuse_twice)
    put_in_place(finished, path)
    assert path.read_text() == "new" and not finished.exists()
