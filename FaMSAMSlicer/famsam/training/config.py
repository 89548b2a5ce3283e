"""How a run of the trainer is set up, as plain data: ``config.json`` in the run's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple, Union

from ..errors import ConfigError
from ..model.config import from_plain, to_plain
from ..model.famsam import FamsamConfig

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains; every value is written to ``config.json``."""

    steps: int = 6000
    """Optimiser steps of the whole run."""
    sizes: Tuple[Tuple[float, int, int], ...] = ((0.65, 64, 4), (0.85, 96, 2), (1.0, 128, 1))
    """(until this fraction of the run, edge of the crops in voxels, crops a step): cheap small crops first."""
    targets: int = 3
    """Structures clicked on in each crop."""
    round_weights: Tuple[float, ...] = (0.2, 0.2, 0.2, 0.15, 0.15, 0.1)
    """Chance of 1, 2, 3, ... rounds of clicks in a step."""
    box_chance: float = 0.1
    """Chance that a target also gets a box."""
    mask_chance: float = 0.1
    """Chance that a step starts from a faulty mask to be refined, half of the time before any click."""
    optimiser: str = "adamw"
    """"adamw", or "muon" for the matrices of the transformer (Jordan et al. 2024) with AdamW for the rest."""
    learning_rate: float = 1e-3
    """AdamW's, after the warm-up."""
    muon_learning_rate: float = 0.01
    """Muon's, after the warm-up."""
    weight_decay: float = 0.02
    warmup_steps: int = 200
    decay_fraction: float = 0.35
    """The last share of the run over which the learning rate falls to zero (warm-up, stable, decay)."""
    ema: float = 0.998
    """Decay of the averaged weights, which are the ones that ship."""
    pool: int = 64
    """Crops kept ready; a step replaces ``fresh`` of them, so that one crop serves several steps."""
    fresh: float = 1.0
    """New crops a step (a fraction: one every so many steps) at the first of ``sizes``; fewer of larger ones."""
    precision: str = "bf16"
    """"bf16" or "fp32"."""
    seed: int = 0
    validate_every: int = 500
    validation_batches: int = 10
    """So many times four crops are set aside to validate on."""
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.optimiser not in ("adamw", "muon"):
            raise ConfigError(f'optimiser must be "adamw" or "muon", got {self.optimiser!r}.')
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(f'precision must be "bf16" or "fp32", got {self.precision!r}.')
        intervals = ("warmup_steps", "validate_every", "checkpoint_every")
        for name in ("steps", "targets", "pool", "validation_batches", *intervals):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.fresh <= 0 or not 0 <= self.decay_fraction <= 1 or not 0 <= self.ema < 1:
            raise ConfigError(
                "fresh must be above 0, decay_fraction within 0..1 and ema from 0 to below 1, got "
                f"{self.fresh}, {self.decay_fraction} and {self.ema}."
            )
        if not self.round_weights or min(self.round_weights) < 0 or sum(self.round_weights) <= 0:
            raise ConfigError(f"round_weights must be chances that do not sum to 0, got {self.round_weights}.")
        if not self.sizes or self.sizes[-1][0] < 1.0 or any(s % 32 or s < 32 or n < 1 for _, s, n in self.sizes):
            raise ConfigError(
                "sizes must reach to 1.0 with edges that are multiples of 32 and at least one crop a step, got "
                f"{self.sizes}."
            )


def config_to_dict(config: TrainConfig, model_config: FamsamConfig) -> Dict[str, Any]:
    """JSON-able form of a run's set-up."""
    return {"train": to_plain(config), "model": to_plain(model_config)}


def config_of_run(directory: Union[str, Path]) -> Tuple[TrainConfig, FamsamConfig]:
    """The set-up of a run that has been begun, or the defaults."""
    path = Path(directory) / CONFIG_NAME
    return read_config(path) if path.exists() else (TrainConfig(), FamsamConfig())


def read_config(path: Union[str, Path]) -> Tuple[TrainConfig, FamsamConfig]:
    """A set-up from a JSON file like a run's ``config.json``; what the file leaves out has its default.

    Raises:
        ConfigError: the file cannot be read, or holds unknown names or impossible values.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Expected a training configuration as JSON in {path}; {error}.") from error
    if not isinstance(data, Mapping) or not set(data) <= {"train", "model"}:
        raise ConfigError(f'Expected the keys "train" and "model" in {path}, got {data!r}.')
    parts = []
    for key, default in (("train", TrainConfig()), ("model", FamsamConfig())):
        given = data.get(key, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"Expected a dictionary under {key!r} in {path}, got {given!r}.")
        parts.append(from_plain(type(default), {**to_plain(default), **given}, f"{path}: {key}"))
    train, model = parts
    assert isinstance(train, TrainConfig) and isinstance(model, FamsamConfig)
    return train, model
