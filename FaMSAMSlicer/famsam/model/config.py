"""Model configurations as plain data, and the attention ablation of the paper."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Mapping, Optional, Tuple, Type, TypeVar, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from .attention import AttentionPattern

Config = TypeVar("Config")
ADDED_LATER = "added_later"
SAME = object()


def added_later(default: Any, before: Any = SAME) -> Any:
    """A dataclass field that files written before it was added lack; ``before`` (the default, if it is not given) is
    how things were then."""
    return dataclasses.field(default=default, metadata={ADDED_LATER: default if before is SAME else before})


def to_plain(config: Any) -> Dict[str, Any]:
    """A configuration dataclass as JSON-able data: nested dictionaries, lists, numbers, strings."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_plain(config_class: Type[Config], data: Any, path: str = "config") -> Config:
    """The inverse of ``to_plain``. Raises ``ConfigError`` for missing or unknown keys and values of another type.

    Files written before a field was there may lack it if it was declared by ``added_later``.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} must be a dictionary of {config_class.__name__}'s fields, got {data!r}.")
    fields = dataclasses.fields(config_class)  # type: ignore[arg-type]
    names = [field.name for field in fields]
    earlier = {field.name: field.metadata[ADDED_LATER] for field in fields if ADDED_LATER in field.metadata}
    data = {**earlier, **data}
    missing = [name for name in names if name not in data]
    unknown = [str(key) for key in data if key not in names]
    if missing or unknown:
        raise ConfigError(
            f"{path} must have exactly the fields {names}; missing: {missing or 'none'}, unknown: {unknown or 'none'}. "
            "Was it written by another version of famsam?"
        )
    types = get_type_hints(config_class)
    return config_class(**{name: _typed(types[name], data[name], f"{path}.{name}") for name in names})


def with_attention(config: Config, pattern: AttentionPattern) -> Config:
    """A copy of ``config`` in which every attention pattern, however deep, is ``pattern``."""
    changes: Dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(value, AttentionPattern):
            changes[field.name] = pattern
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_attention(value, pattern)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def attention_ablation(config: Config, group_size: int = 128, dilation: int = 4) -> Dict[str, Config]:
    """The 2x2 ablation of FastSAM3D (sparse x flash) on any configuration of the family.

    Returns:
        The four configurations by name: "dense", "dense+flash", "sparse" and "sparse+flash". Without flash the scores
        are written out; with it they never are (flash-attn where it can run, else PyTorch's fused attention).
    """
    patterns = {"dense": (0, 1), "sparse": (group_size, dilation)}
    backends = {"": "reference", "+flash": "auto"}
    return {
        pattern + backend: with_attention(config, AttentionPattern(*patterns[pattern], backend=backends[backend]))
        for pattern in patterns
        for backend in backends
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _typed(expected: Any, value: Any, path: str) -> Any:
    """``value``, checked and converted from what JSON makes of it."""
    if dataclasses.is_dataclass(expected):
        return from_plain(expected, value, path)  # type: ignore[arg-type]
    if get_origin(expected) is tuple:
        return _typed_tuple(get_args(expected), value, path)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise ConfigError(f"{path} must be of type {expected.__name__}, got {value!r}.")
    return value


def _typed_tuple(items: Tuple[Any, ...], value: Any, path: str) -> Tuple[Any, ...]:
    length: Optional[int] = None if items[-1] is Ellipsis else len(items)
    if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
        raise ConfigError(f"{path} must be a list of {length or 'any number of'} values, got {value!r}.")
    expected = items[:1] * len(value) if length is None else items
    return tuple(_typed(e, v, f"{path}[{i}]") for i, (e, v) in enumerate(zip(expected, value)))
