"""How a run of the trainer is set up, as plain data: ``config.json`` in the run's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple, Union

from ..errors import ConfigError
from ..model.config import Config, from_plain, to_plain
from ..model.famsam import Famsam, FamsamConfig
from ..model.registry import default_config

CONFIG_NAME = "config.json"
PARTS = ("train", "model", "distill")
"""What a set-up's file may hold; see ``TrainConfig``, ``read_config`` and ``distill.DistillConfig``."""


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains; every value is written to ``config.json``."""

    steps: int = 6000
    """Optimiser steps of the whole run."""
    sizes: Tuple[Tuple[float, int, int], ...] = ((0.65, 64, 4), (0.85, 96, 2), (1.0, 128, 1))
    """(until this fraction of the run, edge of the crops in voxels, crops a step): cheap small crops first. Entries of
    the same fraction share that part of the run: each of its steps draws one of them, with equal chances."""
    targets: int = 3
    """Structures clicked on in each crop whenever it is served."""
    kept_targets: int = 3
    """Structures that are kept of each crop; ``targets`` of them are drawn whenever it is served."""
    round_weights: Tuple[float, ...] = (0.2, 0.2, 0.2, 0.15, 0.15, 0.1)
    """Chance of 1, 2, 3, ... rounds of clicks in a step."""
    every_round: bool = False
    """Whether all rounds are learnt from, those after the first together as much as that one, or the first and the last
    only."""
    box_chance: float = 0.1
    """Chance that a target also gets a box."""
    mask_chance: float = 0.1
    """Chance that a step starts from a faulty mask to be refined, half of the time before any click."""
    click_styles: Tuple[float, float, float] = (1.0, 0.0, 0.0)
    """Chances that a simulated click lies deep inside the error, anywhere in it, or at its border."""
    turn_chance: float = 1.0
    """Chance that a crop is served under a random axis order and random flips. Otherwise only left and right may change
    places, so that the network learns where anatomy lies: crops have the same orientation wherever they come from."""
    dice_weight: float = 1.0
    """Of the soft Dice beside the cross entropy; see ``losses.mask_loss``, here and for the next two."""
    foreground_weight: float = 2.0
    """How many background voxels a foreground voxel counts for in the cross entropy,"""
    later_foreground_weight: float = 2.0
    """and how many after the first round of clicks."""
    one_way: bool = False
    """Whether the loss of later rounds is of the mask that a session would show: see ``PromptableModel.one_way``."""
    focal_gamma: float = 0.0
    """Exponent of the focal factor of the cross entropy; 0 leaves it out."""
    clicked_weight: float = 0.0
    """Of the cross entropy over the piece of the previous error that was clicked on; see ``losses.clicked_loss``."""
    optimiser: str = "adamw"
    """"adamw", or "muon" (see ``muon``) for matrices and convolution kernels with AdamW for the rest."""
    learning_rate: float = 1e-3
    """AdamW's, after the warm-up."""
    muon_learning_rate: float = 3e-3
    """Muon's, after the warm-up."""
    weight_decay: float = 0.02
    warmup_steps: int = 200
    decay_fraction: float = 0.35
    """The last share of the run over which the learning rate falls to zero (warm-up, stable, decay)."""
    ema: float = 0.998
    """Decay of the averaged weights, which are the ones that ship; smaller at first, min(ema, (1 + n) / (10 + n))."""
    pool: int = 64
    """Crops kept ready; a step replaces ``fresh`` of them, so that one crop serves several steps."""
    fresh: float = 1.0
    """New crops a step (a fraction: one every so many steps) at the first of ``sizes``; fewer of larger ones."""
    ahead: int = 0
    """The newest so many crops of each size are not served yet: worker processes have the time to draw them."""
    minutes: float = 0.0
    """A budget of training time (0: none): the run ends with it, if not with the last of its steps, and what is told as
    a share of the run (``sizes``, ``decay_fraction``, ``DistillConfig.layer_fraction``) is one of that which is used up
    first. Such a run cannot be repeated to the last digit."""
    precision: str = "bf16"
    """"bf16" or "fp32". Crops of 32 voxels an edge are learnt from in fp32 on a CPU in any case."""
    recompute: bool = False
    """Forget what the encoder and each decoding computed and compute it again for the gradients: less memory, more
    time."""
    recorded: bool = True
    """On one GPU, whether steps are recorded as CUDA graphs; see ``recorded_steps``. Recording takes seconds for each
    size of the crops and number of rounds and saves most of the time of all later steps. The clicks of such a run are
    not those of another with the same seed."""
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
        for name in ("steps", "targets", "kept_targets", "pool", "validation_batches", *intervals):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.fresh <= 0 or not 0 <= self.decay_fraction <= 1 or not 0 <= self.ema < 1:
            raise ConfigError(
                "fresh must be above 0, decay_fraction within 0..1 and ema from 0 to below 1, got "
                f"{self.fresh}, {self.decay_fraction} and {self.ema}."
            )
        if self.ahead < 0 or self.minutes < 0:
            raise ConfigError(f"ahead and minutes must be at least 0, got {self.ahead} and {self.minutes}.")
        for name in ("round_weights", "click_styles"):
            chances = getattr(self, name)
            if not chances or min(chances) < 0 or sum(chances) <= 0:
                raise ConfigError(f"{name} must be chances that do not sum to 0, got {chances}.")
        least = ("dice_weight", "focal_gamma", "clicked_weight")
        above = ("foreground_weight", "later_foreground_weight")
        if min(getattr(self, name) for name in least) < 0 or min(getattr(self, name) for name in above) <= 0:
            values = ", ".join(f"{name} {getattr(self, name)}" for name in (*least, *above))
            raise ConfigError(f"{', '.join(least)} must be at least 0, {' and '.join(above)} above 0; got {values}.")
        if not self.sizes or self.sizes[-1][0] < 1.0 or any(s % 32 or s < 32 or n < 1 for _, s, n in self.sizes):
            raise ConfigError(
                "sizes must reach to 1.0 with edges that are multiples of 32 and at least one crop a step, got "
                f"{self.sizes}."
            )

    def done(self, step: int, seconds: float) -> float:
        """Share of the run that is behind it after so many steps and seconds of training; 1 and more at its end."""
        return max(step / self.steps, seconds / (60 * self.minutes) if self.minutes else 0.0)

    def sizes_at(self, done: float) -> List[Tuple[int, int]]:
        """(edge of the crops in voxels, crops a step) that a step draws from after a share of the run."""
        end = min(until for until, _, _ in self.sizes if done < until)
        return [(size, count) for until, size, count in self.sizes if until == end]


def config_to_dict(config: TrainConfig, model_config: Any) -> Dict[str, Any]:
    """JSON-able form of a run's set-up."""
    return {"train": to_plain(config), "model": to_plain(model_config)}


def config_of_run(directory: Union[str, Path]) -> Tuple[TrainConfig, Any]:
    """The set-up of a run that has been begun, or the defaults."""
    path = Path(directory) / CONFIG_NAME
    return read_config(path) if path.exists() else (TrainConfig(), FamsamConfig())


def check_begun_by(command: str, directory: Union[str, Path]) -> None:
    """Refuse to go on with a run that another command began; both keep more in its folder than the weights.

    Args:
        command: "train" or "distill".
        directory: the run's folder; one without ``config.json`` holds no run yet.

    Raises:
        ConfigError: the run was begun by the other command, or its ``config.json`` cannot be read.
    """
    path = Path(directory) / CONFIG_NAME
    if not path.exists():
        return
    began = "distill" if _part(path, "distill") else "train"
    if began != command:
        raise ConfigError(
            f"Expected a new folder, or one of a run of famsam {command}, got {directory}, whose run famsam {began} "
            f"began. Go on with famsam {began} {directory}, or name another folder."
        )


def read_config(path: Union[str, Path]) -> Tuple[TrainConfig, Any]:
    """A set-up from a JSON file like a run's ``config.json``; what the file leaves out has its default.

    Returns:
        How to train, and the network: a ``FamsamConfig``, or a ``Sam3DConfig`` where its "name" is given.

    Raises:
        ConfigError: the file cannot be read, or holds unknown names or impossible values.
    """
    return read_part(path, "train", TrainConfig()), read_model(path) or FamsamConfig()


def read_model(path: Union[str, Path]) -> Any:
    """The network in a set-up's file, or None if the file leaves it out; see ``read_config``."""
    given = _part(path, "model")
    return read_part(path, "model", default_config(str(given.get("name", Famsam.name)))) if given else None


def read_part(path: Union[str, Path], key: str, default: Config) -> Config:
    """What a set-up's file holds under one of ``PARTS``, completed by the default's values; raises as above."""
    given = {**to_plain(default), **_part(path, key)}
    return from_plain(type(default), given, f"{path}: {key}")


def _part(path: Union[str, Path], key: str) -> Mapping[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Expected a training configuration as JSON in {path}; {error}.") from error
    if not isinstance(data, Mapping) or not set(data) <= set(PARTS):
        raise ConfigError(f"Expected some of the keys {', '.join(PARTS)} in {path}, got {data!r}.")
    given = data.get(key, {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"Expected a dictionary under {key!r} in {path}, got {given!r}.")
    return given
