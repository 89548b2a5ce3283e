"""Weights files: the one that ships, the published formats of SAM-Med3D and FastSAM3D, and our own safetensors.

A safetensors file of ours holds in its metadata the model's name and configuration ("famsam_config"), the version
that wrote it ("famsam_version"), where it comes from, and its calibration if it has one ("famsam_calibration").
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .errors import CheckpointError, ConfigError
from .model.base import PromptableModel
from .model.calibration import Calibration
from .model.config import from_plain, to_plain
from .model.famsam import Famsam
from .model.famsam_encoder import TokenPausing
from .model.registry import MODEL_NAMES, build_model, config_from_dict, config_to_dict
from .model.sam_layout import DECODER, ENCODER, as_full_layout, infer_config
from .runtime import choose_device, compute_in
from .safe_pickle import load_torch_file

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "famsam-s.safetensors"
CONFIG_KEY = "famsam_config"
CALIBRATION_KEY = "famsam_calibration"
STATE_DICT_KEYS = ("model_state_dict", "state_dict")

PathLike = Union[str, "os.PathLike[str]"]
Tensors = Dict[str, Tensor]


def load_model(
    source: PathLike = "default",
    device: str = "auto",
    precision: str = "auto",
    teacher: Optional[PathLike] = None,
    paused_share: float = 0.0,
) -> PromptableModel:
    """A model ready to use: weights loaded, in evaluation mode, without gradients.

    Args:
        source: "default" for the weights that ship with the package, else a weights file: ``.safetensors``, or a
            PyTorch checkpoint of SAM-Med3D or FastSAM3D (the state dict itself, or a training checkpoint with it under
            "model_state_dict"; the whole network, or FastSAM3D's encoder alone).
        device: see ``runtime.choose_device``.
        precision: see ``runtime.choose_precision``. The parameters are always fp32; ``model.precision`` holds the
            choice for ``runtime.autocast``; for "int8" there are quantised copies of them besides.
        teacher: a checkpoint with the prompt encoder and the mask decoder for a ``source`` that is an encoder alone.
        paused_share: share of the tokens that pause in the later blocks of a famsam encoder, 0 to below 1; more is
            faster and less exact (see ``TokenPausing``). 0 changes nothing.

    Raises:
        CheckpointError: if a file is missing, damaged, unsafe, foreign, or does not fit its configuration.
        ConfigError: for an unknown device or precision, and for tokens that are to pause in another model.
    """
    chosen_device = choose_device(device)
    path = _existing_file(DEFAULT_WEIGHTS if source == "default" else source)
    model = _model_from(path, None if teacher is None else _existing_file(teacher)).to(chosen_device)
    if paused_share:
        if not isinstance(model, Famsam):
            raise ConfigError(f"Tokens can pause in famsam models only, not in {model.name}; leave paused_share at 0.")
        model.pausing = TokenPausing(paused_share)
    compute_in(precision, model)
    return model


def save_model(
    model: PromptableModel, path: PathLike, metadata: Optional[Mapping[str, str]] = None, half: bool = False
) -> None:
    """Write a model with its configuration as safetensors; the file appears whole or not at all.

    Args:
        model: any model of the family.
        path: the file to write.
        metadata: more to keep in the file, such as where the weights come from.
        half: store the parameters as fp16 (buffers stay fp32); they are fp32 again when loaded.
    """
    path = Path(path)
    halved = {name for name, _ in model.named_parameters()} if half else set()
    tensors = {
        name: tensor.detach().to("cpu", torch.float16 if name in halved else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    description = {
        **(metadata or {}),
        CONFIG_KEY: json.dumps(config_to_dict(model.name, model.config)),
        "famsam_version": __version__,
        "format": "pt",
    }
    if model.calibration != Calibration():
        description[CALIBRATION_KEY] = json.dumps(to_plain(model.calibration))
    unfinished = path.with_name(path.name + ".part")
    try:
        save_file(tensors, unfinished, metadata=description)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write {path}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def convert(
    source: PathLike, destination: PathLike, teacher: Optional[PathLike] = None, half: bool = False
) -> Dict[str, str]:
    """Turn a checkpoint into safetensors with its configuration and provenance in the metadata.

    Args:
        source, teacher: as for ``load_model``.
        destination: the ``.safetensors`` file to write.
        half: store the parameters as fp16.

    Returns:
        The provenance written: names and SHA-256 sums of the files converted.

    Raises:
        CheckpointError: as ``load_model``, and if ``destination`` cannot be written or has another suffix.
    """
    if Path(destination).suffix != ".safetensors":
        raise CheckpointError(f"The destination must be a .safetensors file, got {destination}.")
    path = _existing_file(DEFAULT_WEIGHTS if source == "default" else source)
    teacher_path = None if teacher is None else _existing_file(teacher)
    provenance = {"source": path.name, "source_sha256": _sha256(path)}
    if teacher_path is not None:
        provenance.update(teacher=teacher_path.name, teacher_sha256=_sha256(teacher_path))
    save_model(_model_from(path, teacher_path), destination, provenance, half)
    return provenance


def _model_from(path: Path, teacher_path: Optional[Path]) -> PromptableModel:
    """The model of a file, on the CPU."""
    tensors, metadata = _read(path)
    if CONFIG_KEY not in metadata:
        return _published_model(path, tensors, teacher_path)
    if teacher_path is not None:
        raise CheckpointError(f"{path} is a whole model; it takes no teacher. Leave {teacher_path} out.")
    try:
        name, config = config_from_dict(json.loads(metadata[CONFIG_KEY]))
        calibration = Calibration()
        if CALIBRATION_KEY in metadata:
            calibration = from_plain(Calibration, json.loads(metadata[CALIBRATION_KEY]), "calibration")
    except (ConfigError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} holds a configuration that this famsam cannot read: {error}") from error
    model = _build(str(path), name, config, tensors)
    model.calibration = calibration
    return model


def _published_model(path: Path, tensors: Tensors, teacher_path: Optional[Path]) -> PromptableModel:
    origin = str(path)
    try:
        tensors = as_full_layout(tensors)
        has_encoder, has_decoder = (any(name.startswith(part) for name in tensors) for part in (ENCODER, DECODER))
        if not has_encoder:
            raise CheckpointError("Found a decoder without an image encoder. Load the whole checkpoint instead.")
        if has_decoder and teacher_path is not None:
            raise CheckpointError(f"Found a whole network, which takes no teacher. Leave {teacher_path} out.")
        if not has_decoder:
            if teacher_path is None:
                raise CheckpointError(
                    "Found an image encoder alone. Its prompt encoder and mask decoder are those of the SAM-Med3D "
                    "checkpoint that it was distilled from: give that file as the teacher."
                )
            tensors.update(_decoder_of(teacher_path))
            origin = f"{path} with the teacher {teacher_path}"
        config = infer_config(tensors)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{origin}: {error}") from error
    return _build(origin, config.name, config, tensors)


def _decoder_of(path: Path) -> Tensors:
    """The tensors of the prompt encoder and of the mask decoder."""
    try:
        tensors = as_full_layout(_read(path)[0])
    except CheckpointError as error:
        raise CheckpointError(f"The teacher cannot be read: {error}") from error
    decoder = {name: tensor for name, tensor in tensors.items() if name.startswith(DECODER)}
    if not decoder:
        raise CheckpointError(f"The teacher {path} has no prompt encoder and mask decoder.")
    return decoder


def _build(origin: str, name: str, config: Any, tensors: Tensors) -> PromptableModel:
    """The network of a configuration with these weights; refuses anything that does not fit exactly."""
    try:
        with torch.device("meta"):
            model = build_model(name, config)
    except ConfigError as error:
        raise CheckpointError(f"{origin} holds an impossible configuration: {error}") from error
    expected = model.state_dict()
    shared = [key for key in expected if key in tensors]
    reshaped = [key for key in shared if tensors[key].shape != expected[key].shape]
    problems = [
        *_listed("missing", [key for key in expected if key not in tensors]),
        *_listed("not part of it", [key for key in tensors if key not in expected]),
        *_listed("of another shape", [f"{key}: {_misfit(tensors[key], expected[key])}" for key in reshaped]),
        *_listed("without finite numbers", [key for key in shared if not _is_finite(tensors[key])]),
    ]
    if problems:
        raise CheckpointError(
            f"{origin} does not fit the {name} network that it should hold: {'; '.join(problems)}. "
            "Is it complete, and a checkpoint of this network?"
        )
    model.load_state_dict({key: tensor.to(expected[key].dtype) for key, tensor in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _listed(what: str, names: List[str]) -> List[str]:
    """``["3 tensors missing (a, b, …)"]``, or nothing."""
    if not names:
        return []
    return [f"{len(names)} tensors {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"]


def _misfit(found: Tensor, expected: Tensor) -> str:
    return f"found {tuple(found.shape)}, expected {tuple(expected.shape)}"


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(torch.isfinite(tensor).all())


def _read(path: Path) -> Tuple[Tensors, Dict[str, str]]:
    """The tensors of a weights file by name, independent of the file, and the metadata of a safetensors file."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return tensors, file.metadata() or {}
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged, truncated or no safetensors file ({error}).") from error
    return _state_dict(path, load_torch_file(path)), {}


def _state_dict(path: Path, content: Any) -> Tensors:
    """The tensors by name in what a training script saved."""
    if isinstance(content, Mapping):
        for key in STATE_DICT_KEYS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: expected a state dict (tensors by name), found {type(content).__name__}.")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path}: expected a state dict (tensors by name), alone or under one of {STATE_DICT_KEYS}; found a "
            f"dictionary in which {others[:4]} are no tensors."
        )
    return {str(key): value for key, value in content.items()}


def _existing_file(path: PathLike) -> Path:
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if path == DEFAULT_WEIGHTS:
        raise CheckpointError(f"The default weights are missing ({path}); install famsam again or name a weights file.")
    if str(path) in MODEL_NAMES:
        raise CheckpointError(f"{path} is a model's name; name a file with its weights, or 'default' for famsam's own.")
    raise CheckpointError(f"There is no weights file {path}. Expected 'default', a .safetensors or a .pth file.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
