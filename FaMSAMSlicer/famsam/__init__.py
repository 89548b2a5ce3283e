"""FaM-SAM: click on a structure in a 3D scan, and its whole segmentation follows.

The engine behind the FaMSAMSlicer extension. It knows nothing of 3D Slicer; heavy packages (torch among them) are
imported when a name that needs them is first used, so that ``import famsam`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, List

from .errors import CheckpointError, FamsamError, PromptError, SessionError, VolumeError

__version__ = "0.1.0"

_LAZY = {
    "Session": ".session",
    "Result": ".session",
    "Volume": ".volume",
    "read_volume": ".volume",
    "write_mask": ".volume",
    "load_model": ".checkpoints",
}

__all__ = [
    "CheckpointError",
    "FamsamError",
    "PromptError",
    "Result",
    "Session",
    "SessionError",
    "Volume",
    "VolumeError",
    "load_model",
    "read_volume",
    "write_mask",
]

if TYPE_CHECKING:
    from .checkpoints import load_model
    from .session import Result, Session
    from .volume import Volume, read_volume, write_mask


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted(set(globals()) | set(__all__))
