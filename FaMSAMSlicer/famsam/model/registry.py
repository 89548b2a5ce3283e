"""The three named configurations: ``sam_med3d``, ``fastsam3d`` and ``famsam``, and how to build them."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from ..errors import ConfigError
from .base import PromptableModel
from .config import from_plain, to_plain

MODEL_NAMES = ("famsam", "fastsam3d", "sam_med3d")


def default_config(name: str) -> Any:
    """The configuration that ``name`` stands for. Raises ``ConfigError`` for another name than ``MODEL_NAMES``."""
    return _parts(name)[1]


def build_model(name: str = "famsam", config: Optional[Any] = None) -> PromptableModel:
    """A model with untrained weights.

    Args:
        name: one of ``MODEL_NAMES``.
        config: another configuration of that model (``FamsamConfig`` or ``Sam3DConfig``); None for the default.

    Raises:
        ConfigError: for an unknown name or a configuration of another model.
    """
    model_class, default = _parts(name)
    config = default if config is None else config
    if type(config) is not type(default) or getattr(config, "name", name) != name:
        raise ConfigError(f"{name} takes a {type(default).__name__} of that name, got {config!r}.")
    return model_class(config)


def config_to_dict(name: str, config: Any) -> Dict[str, Any]:
    """The name and the configuration of a model as JSON-able data."""
    return {"model": name, "config": to_plain(config)}


def config_from_dict(data: Any) -> Tuple[str, Any]:
    """The inverse of ``config_to_dict``: (name, configuration). Raises ``ConfigError`` for anything else."""
    if not isinstance(data, Mapping) or set(data) != {"model", "config"}:
        raise ConfigError(f"A model's configuration must have the keys 'model' and 'config', got {data!r}.")
    name = data["model"]
    return name, from_plain(type(default_config(name)), data["config"])


def _parts(name: str) -> Tuple[Callable[[Any], PromptableModel], Any]:
    if name == "famsam":
        from .famsam import Famsam, FamsamConfig

        return Famsam, FamsamConfig()
    if name in ("fastsam3d", "sam_med3d"):
        from .sam import Sam3D
        from .sam_config import FASTSAM3D, SAM_MED3D

        return Sam3D, FASTSAM3D if name == "fastsam3d" else SAM_MED3D
    raise ConfigError(f"The model must be one of {MODEL_NAMES}, got {name!r}.")
