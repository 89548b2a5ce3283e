"""The server's private temporary folder, which goes with its process, however that ends.

A server that is killed cannot remove its folder, so the next one of the same user does: a lock, which the system takes
from a process that ended, tells whose owner is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, Optional

try:
    import fcntl
except ImportError:  # Windows, where a killed server's folder waits for the system's own cleaning
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
        self._lock: Optional[Any] = None
        if fcntl is not None:
            self._lock = (self._folder / "new").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self._folder / "new").rename(self._folder / _LOCK)  # never seen without being held

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _remove_left_over() -> None:
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is held, or another user's
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            with open(os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
