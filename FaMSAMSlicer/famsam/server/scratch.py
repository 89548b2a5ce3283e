"""The server's private temporary folder, which goes with its process, however that ends.

A server that is killed cannot remove its folder, so the next one of the same user does: a lock, which the system takes
from a process that ended, tells whose owner is gone. On Windows that is a file that is open, which nobody can remove.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX = "famsam-server-"
_LOCK = "lock"


class Scratch:
    """A folder that this user alone may read.

    Attributes:
        path: where scans are put.
    """

    def __init__(self) -> None:
        _remove_left_over()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.path = self._folder / "scans"
        self.path.mkdir()
        self._lock: Any = (self._folder / (_LOCK if fcntl is None else "new")).open("w")
        if fcntl is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self._folder / "new").rename(self._folder / _LOCK)  # never seen without being held

    def close(self) -> None:
        """Remove the folder."""
        self._lock.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove_left_over() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is held, or another user's
            if fcntl is None:
                (folder / _LOCK).unlink()
                shutil.rmtree(folder, ignore_errors=True)
                continue
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            with open(os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
