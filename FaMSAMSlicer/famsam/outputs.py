"""Where results are to go, looked at before anything is computed: a command must not find out at its end. And how a
file that is whole takes its place."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Optional, Sequence

from .errors import ConfigError

PLOT_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")
WEIGHTS_SUFFIXES = (".safetensors",)
WAITS_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""On Windows, for programs that look at every new file, as virus scanners do, and meanwhile let nobody rename it."""


def check_output_file(
    path: Optional[Path], suffixes: Sequence[str] = (), apart_from: Sequence[Optional[Path]] = ()
) -> None:
    """Refuse what could not be written in the end, or would replace what is read.

    Args:
        path: the file to write, an older one of this name is replaced; None: there is nothing to write.
        suffixes: what its name may end in, in small or capital letters; empty: anything.
        apart_from: files that must stay, under whatever name they are reached; None counts for nothing.

    Raises:
        ConfigError: it has another suffix, is a folder, lies in none or in one that cannot be written to, or is one of
            the files that must stay.
    """
    if path is None:
        return
    if suffixes and not path.name.lower().endswith(tuple(suffixes)):
        raise ConfigError(f"Expected a file that ends in {' or '.join(suffixes)} to write to, got {path}.")
    for kept in apart_from:
        if kept is not None and path.exists() and kept.exists() and path.samefile(kept):
            raise ConfigError(
                f"Expected another file to write to than {kept}, which is read here and would be lost; got {path}. "
                "Name another one."
            )
    if path.is_dir() or not path.parent.is_dir():
        problem = "which is a folder" if path.is_dir() else f"and there is no folder {path.parent}"
        raise ConfigError(f"Expected a file in an existing folder to write to, got {path}, {problem}.")
    _check_may_write(path if path.exists() else path.parent)


def put_in_place(finished: Path, path: Path) -> None:
    """Give a file that is whole its name; an older one of this name is replaced.

    Raises:
        OSError: it cannot be replaced. On Windows that is believed after some seconds only, see ``WAITS_S``.
    """
    for wait_s in WAITS_S if sys.platform == "win32" else ():
        try:
            os.replace(finished, path)
            return
        except PermissionError:
            time.sleep(wait_s)
    os.replace(finished, path)


def check_output_folder(path: Optional[Path]) -> None:
    """Refuse a folder that could not be made or written to in the end; None: there is none.

    Raises:
        ConfigError: it or a folder above it is a file, or cannot be written to.
    """
    if path is None:
        return
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"Expected a folder to write to, got {path}; {existing} is a file. Name another folder.")
    _check_may_write(existing)


def _check_may_write(existing: Path) -> None:
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"Expected a place that may be written to, got {existing}, which may not. Name another one.")
