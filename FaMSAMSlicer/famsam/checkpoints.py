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
from safetensors.torch import save
from torch import Tensor

from . import __version__
from .errors import CheckpointError, ConfigError
from .model import int8
from .model.base import PromptableModel
from .model.calibration import Calibration
from .model.config import from_plain, to_plain
from .model.famsam import Famsam
from .model.famsam_encoder import TokenPausing
from .model.registry import MODEL_NAMES, build_model, config_from_dict, config_to_dict
from .model.sam_layout import DECODER, ENCODER, as_full_layout, infer_config
from .outputs import put_in_place
from .recordings import record_calls
from .runtime import choose_device, compute_in, use_fastest_threads
from .safe_pickle import load_torch_file

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "famsam-s.safetensors"
DEFAULT_PAUSED_SHARE = 0.95
"""Of tokens, with those weights: the fastest of ``Testing/Benchmarks/bench_pausing.py`` that costs no 0.005 of Dice."""
CONFIG_KEY = "famsam_config"
CALIBRATION_KEY = "famsam_calibration"
COARSE = {"int6": 4, "int5": 8}
"""Ways to store int8 values of which only the multiples of this are allowed."""
STORED = ("fp32", "fp16", "int8", *COARSE)
SCALES = ":scales"
"""Follows a parameter's name in the name of the scales of its output channels, (C,), if it is stored as int8."""
LARGE = 4096
"""Parameters of fewer numbers are not worth storing as int8."""
READ_SUFFIXES = (".safetensors", ".pth")
"""Of the files that are taken for weights where a folder is named; a file that is named may have any other."""
STATE_DICT_KEYS = ("model_state_dict", "state_dict")

PathLike = Union[str, "os.PathLike[str]"]
Tensors = Dict[str, Tensor]


def load_model(
    source: PathLike = "default",
    device: str = "auto",
    precision: str = "auto",
    teacher: Optional[PathLike] = None,
    paused_share: Optional[float] = None,
) -> PromptableModel:
    """A model ready to use: weights loaded, in evaluation mode, without gradients.

    Args:
        source: "default" for the weights that ship with the package, else a weights file: ``.safetensors``, or a
            PyTorch checkpoint of SAM-Med3D or FastSAM3D (the state dict itself, or a training checkpoint with it under
            "model_state_dict"; the whole network, or FastSAM3D's encoder alone).
        device: see ``runtime.choose_device``; for the CPU, see also ``runtime.use_fastest_threads``.
        precision: see ``runtime.choose_precision``. The parameters are always fp32; ``model.precision`` holds the
            choice for ``runtime.autocast``; for "int8", and for half precision on a GPU, there are copies besides.
        teacher: a checkpoint with the prompt encoder and the mask decoder for a ``source`` that is an encoder alone.
        paused_share: share of the tokens that pause in the later blocks of a famsam encoder, 0 to below 1; more is
            faster and less exact (see ``TokenPausing``). 0 changes nothing. None: as the shipped weights were measured
            with for these, 0 for all others.

    Raises:
        CheckpointError: if a file is missing, damaged, unsafe, foreign, or does not fit its configuration.
        ConfigError: for an unknown device or precision, and for tokens that are to pause in another model.
    """
    chosen_device = choose_device(device)
    path = _existing_file(source)
    model = _model_from(path, None if teacher is None else _existing_file(teacher)).to(chosen_device)
    if paused_share is None:
        paused_share = DEFAULT_PAUSED_SHARE if path.resolve() == DEFAULT_WEIGHTS.resolve() else 0.0
    if paused_share:
        if not isinstance(model, Famsam):
            raise ConfigError(f"Tokens can pause in famsam models only, not in {model.name}; leave paused_share at 0.")
        model.pausing = TokenPausing(paused_share)
    if chosen_device.type == "cpu":
        use_fastest_threads()
    compute_in(precision, model)
    if chosen_device.type == "cuda":
        record_calls(model)
    return model


def save_model(
    model: PromptableModel, path: PathLike, metadata: Optional[Mapping[str, str]] = None, stored: str = "fp32"
) -> None:
    """Write a model with its configuration as safetensors; the file appears whole or not at all.

    Args:
        model: any model of the family.
        path: the ``.safetensors`` file to write.
        metadata: more to keep in the file, such as where the weights come from.
        stored: how the parameters are kept, one of ``STORED``; they are fp32 again when loaded. "int8" rounds large
            ones exactly as computing in int8 does, and keeps the small ones as fp16; "int6" and "int5" allow only about
            a quarter and an eighth of the values of a byte, for which a compressed download (git, a zip file) is
            smaller by a quarter and a third. Buffers stay as they are.

    Raises:
        CheckpointError: if the file cannot be written, or has another suffix.
        ConfigError: for another way to store.
    """
    _require_safetensors(Path(path))
    if stored not in STORED:
        raise ConfigError(f"Parameters can be stored as one of {STORED}, got {stored!r}.")
    path = Path(path)
    parameters = {name for name, _ in model.named_parameters()}
    tensors: Tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if name not in parameters or stored == "fp32":
            tensors[name] = tensor.contiguous()
        elif stored != "fp16" and tensor.ndim > 1 and tensor.numel() >= LARGE:
            values, tensors[name + SCALES] = int8.quantised_weights(tensor)
            tensors[name] = _coarse(values, COARSE[stored]) if stored in COARSE else values
        else:
            tensors[name] = tensor.half().contiguous()
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
        unfinished.write_bytes(save(tensors, metadata=description))  # save_file lets nobody else read it
        put_in_place(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write {path}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def convert(
    source: PathLike, destination: PathLike, teacher: Optional[PathLike] = None, stored: str = "fp32"
) -> Dict[str, str]:
    """Turn a checkpoint into safetensors with its configuration and provenance in the metadata.

    Args:
        source, teacher: as for ``load_model``.
        destination: the ``.safetensors`` file to write.
        stored: how to keep the parameters, see ``save_model``.

    Returns:
        The provenance written: names and SHA-256 sums of the files converted.

    Raises:
        CheckpointError: as ``load_model``, and if ``destination`` cannot be written or has another suffix.
    """
    _require_safetensors(Path(destination))
    path = _existing_file(source)
    teacher_path = None if teacher is None else _existing_file(teacher)
    provenance = {"source": path.name, "source_sha256": _sha256(path)}
    if teacher_path is not None:
        provenance.update(teacher=teacher_path.name, teacher_sha256=_sha256(teacher_path))
    save_model(_model_from(path, teacher_path), destination, provenance, stored)
    return provenance


def _require_safetensors(path: Path) -> None:
    """Under another name the file could not be loaded again."""
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"The destination must be a .safetensors file, got {path}.")


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
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds a configuration that this famsam cannot read: {error}") from error
    model = _build(str(path), name, config, tensors)
    model.calibration = calibration
    return model


def _coarse(values: Tensor, step: int) -> Tensor:
    """Of int8 values the multiples of ``step``, and both ends, so that the scales still are those of the largest."""
    rounded = (values.float() / step).round() * step
    return torch.where(values.abs() == 127, values.float(), rounded.clamp(-127, 127)).to(torch.int8)


def _in_floats(tensors: Tensors) -> Tensors:
    """What ``save_model`` stored as int8, multiplied by its scales; everything else as it is."""
    whole = {}
    for name, tensor in tensors.items():
        scales = tensors.get(name + SCALES)
        if name.endswith(SCALES) and name[: -len(SCALES)] in tensors:
            continue
        if tensor.dtype == torch.int8 and scales is not None and scales.shape == tensor.shape[:1]:
            tensor = tensor.float() * scales.float().view(-1, *[1] * (tensor.ndim - 1))
        whole[name] = tensor
    return whole


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
                    "checkpoint that it was distilled from: give that file as the teacher "
                    "(famsam convert ENCODER OUTPUT.safetensors --teacher FILE)."
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
    except (ConfigError, RuntimeError, TypeError) as error:  # the latter two of sizes that no tensor can have
        raise CheckpointError(f"{origin} holds an impossible configuration: {error}") from error
    expected = model.state_dict()
    shared = [key for key in expected if key in tensors]
    reshaped = [key for key in shared if tensors[key].shape != expected[key].shape]
    fitting = [key for key in shared if tensors[key].shape == expected[key].shape]
    problems = [
        *_listed("missing", [key for key in expected if key not in tensors]),
        *_listed("not part of it", [key for key in tensors if key not in expected]),
        *_listed("of another shape", [f"{key}: {_misfit(tensors[key], expected[key])}" for key in reshaped]),
        *_listed("without finite numbers", [key for key in fitting if not _is_finite(tensors[key])]),
    ]
    if problems:
        raise CheckpointError(
            f"{origin} does not fit the {name} network that it should hold: {'; '.join(problems)}. "
            "Is it complete, and a checkpoint of this network?"
        )
    model.load_state_dict({key: _laid_out_as(expected[key], tensor) for key, tensor in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _laid_out_as(expected: Tensor, tensor: Tensor) -> Tensor:
    """A tensor in another's type and memory layout, which convolutions would else change at every call."""
    if tensor.dtype == expected.dtype and tensor.stride() == expected.stride():
        return tensor
    return torch.empty_strided(expected.shape, expected.stride(), dtype=expected.dtype).copy_(tensor)


def _listed(what: str, names: List[str]) -> List[str]:
    """``["3 tensors missing (a, b, …)"]``, or nothing."""
    if not names:
        return []
    return [f"{len(names)} tensors {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"]


def _misfit(found: Tensor, expected: Tensor) -> str:
    return f"found {tuple(found.shape)}, expected {tuple(expected.shape)}"


def _is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds floating-point numbers, and all of them are finite as fp32."""
    return tensor.is_floating_point() and bool(torch.isfinite(tensor.float()).all())


def _read(path: Path) -> Tuple[Tensors, Dict[str, str]]:
    """The tensors of a weights file by name, independent of the file, and the metadata of a safetensors file."""
    if path.suffix.lower() == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return _in_floats(tensors), file.metadata() or {}
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
    path = DEFAULT_WEIGHTS if str(path) == "default" else Path(path).expanduser()
    try:
        if path.is_file():
            path.open("rb").close()  # safetensors takes what it may not read for missing
            return path
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}. Expected a file that you may read.") from error
    if path == DEFAULT_WEIGHTS:
        raise CheckpointError(f"The default weights are missing ({path}); install famsam again or name a weights file.")
    if str(path) in MODEL_NAMES:
        raise CheckpointError(f"{path} is a model's name; name a file with its weights, or 'default' for famsam's own.")
    if path.is_dir():
        inside = [str(path / name) for name in sorted(os.listdir(path)) if name.lower().endswith(READ_SUFFIXES)]
        named = f"name the file in it, {' or '.join(inside)}" if inside else f"no {' or '.join(READ_SUFFIXES)} is in it"
        raise CheckpointError(f"{path} is a folder, expected a file with weights; {named}.")
    raise CheckpointError(f"There is no weights file {path}. Expected 'default', a .safetensors or a .pth file.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
