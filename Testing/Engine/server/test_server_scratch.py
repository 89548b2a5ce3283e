"""What a server leaves behind when it is killed, and who clears it up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest
from famsam.server.scratch import Scratch

ROOT = Path(__file__).resolve().parents[3]
HOLD = "import sys, famsam.server.scratch as m; s = m.Scratch(); print(s.path, flush=True); sys.stdin.read()"


def test_on_windows_an_open_file_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("famsam.server.scratch.fcntl", None)
    (tmp_path / "famsam-server-without-a-lock").mkdir()
    servers: List[Scratch] = []
    unlink = Path.unlink

    def unlink_if_closed(path: Path, missing_ok: bool = False) -> None:
        if any(path.parent == server.path.parent and not server._lock.closed for server in servers):
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_if_closed)
    for _ in range(3):
        servers.append(Scratch())
    killed, running, other = servers
    (killed.path / "scan.nii").write_bytes(b"of a patient")
    killed._lock.close()  # as the system does
    servers.append(Scratch())
    assert not killed.path.parent.exists() and running.path.is_dir() and other.path.is_dir()
    for server in servers:
        server.close()
    assert [one.name for one in tmp_path.iterdir()] == ["famsam-server-without-a-lock"]


@pytest.mark.skipif(os.name == "nt", reason="locks of files are POSIX's here")
def test_the_folder_of_a_killed_server_goes_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT / "FaMSAMSlicer")}
    (tmp_path / "famsam-server-without-a-lock").mkdir()
    (tmp_path / "famsam-server-link").symlink_to(ROOT)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        (theirs / "scan.nii").write_bytes(b"of a patient")
        first = Scratch()
        assert theirs.is_dir(), "a server that runs keeps its own"
        other.send_signal(signal.SIGKILL)
    second = Scratch()
    assert not theirs.parent.exists()
    assert first.path.is_dir() and second.path.is_dir()
    for scratch in (first, second):
        scratch.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["famsam-server-link", "famsam-server-without-a-lock"]
    assert (ROOT / "pyproject.toml").is_file()
