"""Reading PyTorch files (.pth, .pt, .ckpt) without ever running code that they bring along.

A PyTorch file is a pickle, and a pickle may call any function. Only tensors, plain containers
(learning-rate schedulers keep a ``Counter``) and ``argparse.Namespace``, which holds nothing but attributes, pass.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import pickle
import re
import types
import zipfile
from pathlib import Path
from typing import IO, Any, Dict, List, Tuple

import torch

from .errors import CheckpointError


def load_torch_file(path: Path) -> Any:
    """The content of a file written by ``torch.save``, on the CPU.

    Raises:
        CheckpointError: if the file is truncated, is no PyTorch file, or asks for anything but plain data.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error}") from error
    parts = _parts(path) if start == b"PK" else []
    if any(name.endswith("/constants.pkl") for name in parts):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which holds code; nothing was run. Expected tensors by name: ask its "
            "author for the state dict alone, or for a .safetensors file."
        )
    if parts and not any(name.endswith("/data.pkl") for name in parts):
        raise CheckpointError(
            f"{path} is a zip archive of other files ({', '.join(parts[:3])}{', …' if len(parts) > 3 else ''}). "
            "Expected a PyTorch checkpoint: if there is one among them, unpack it and name that."
        )
    try:
        return _load(path)
    except Exception as error:  # a damaged pickle may fail in any way
        raise CheckpointError(f"{path} {_complaint(start, error)}") from error


def _load(path: Path) -> Any:
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals([argparse.Namespace, collections.Counter]):
            return torch.load(path, map_location="cpu", weights_only=True)
    return _load_restricted(path)


def _load_restricted(path: Path) -> Any:
    """The same for PyTorch before 2.5, whose ``weights_only`` cannot be told to let a Namespace through."""
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_RESTRICTED_PICKLE)


def _parts(path: Path) -> List[str]:
    """Names of the files in a zip archive, which PyTorch's files are, too; none if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # in any way, as above; PyTorch has a look next
        return []


class _Unpickler(pickle.Unpickler):
    """Lets a pickle name what PyTorch builds tensors from, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return _ALLOWED[module, name]


class _InertNamespace:
    """Stands for ``argparse.Namespace``: takes its attributes and does nothing."""


def _restricted_load(file: IO[bytes], **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def _allowed_globals() -> Dict[Tuple[str, str], Any]:
    allowed: Dict[Tuple[str, str], Any] = {
        ("argparse", "Namespace"): _InertNamespace,
        ("collections", "Counter"): collections.Counter,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("_codecs", "encode"): codecs.encode,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype) or name.endswith("Storage"):
            allowed["torch", name] = value
    return allowed


_ALLOWED = _allowed_globals()
_RESTRICTED_PICKLE = types.SimpleNamespace(Unpickler=_Unpickler, load=_restricted_load, __name__="famsam.safe_pickle")


def _complaint(start: bytes, error: Exception) -> str:
    """What is wrong with a file that begins with ``start``, and what to do."""
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)", text)
    if refused:
        return (
            f"asks for {refused[1]}, which is not plain data, and reading it could run code; nothing was run. "
            "Expected tensors by name: ask its author for the state dict alone, or for a .safetensors file."
        )
    if not start:
        return "is empty; expected a PyTorch checkpoint. Download it again."
    # Of PyTorch's answer only the reason: around it stands the advice to read the file without any guard.
    reason = text.split("WeightsUnpickler error:")[-1].strip().split("\n")[0].split(". ")[0] or type(error).__name__
    if start in (b"PK", b"\x80\x02"):
        return f"is a damaged or truncated PyTorch checkpoint ({reason}). Download it again."
    return f"is no PyTorch checkpoint ({reason}). Expected a .pth file as published, or a .safetensors file."
