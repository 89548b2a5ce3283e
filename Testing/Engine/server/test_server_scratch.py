"""What a server leaves behind when it is killed, and who clears it up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from famsam.server.scratch import Scratch

ROOT = Path(__file__).resolve().parents[3]
HOLD = "import sys, famsam.server.scratch as m; s = m.Scratch(); print(s.path, flush=True); sys.stdin.read()"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="locks of files are POSIX's here")


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
