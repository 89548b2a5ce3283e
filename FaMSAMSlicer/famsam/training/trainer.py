"""Training of a network: encode a few crops, click on several structures of each, learn from every round.

A run lives in a folder: ``checkpoint.pt`` (resume), ``log.csv`` and ``curve.png`` (what happened), ``config.json``. It
may be cut off at any time and goes on from its last checkpoint. Started by ``torchrun``, several processes train
together, each on ``sizes`` crops a step; of several machines the folder of the first (node rank 0) counts.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import math
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints import load_model
from ..errors import CheckpointError, ConfigError
from ..model.base import PromptableModel
from ..outputs import put_in_place
from ..runtime import autocast
from . import prompting, team
from .config import CONFIG_NAME, TrainConfig, check_begun_by, config_of_run, config_to_dict
from .learner import Learner, Values, validation_scores
from .muon import Muon
from .pool import CropPool
from .recorded_steps import RecordedSteps, set_rate, with_tensor_rates
from .sample import Dice, Sample, Source
from .synthetic import synthetic_sample

_LOG = logging.getLogger(__name__)

JUDGES = ("quality",)
"""Modules that Muon leaves to AdamW: small heads that predict a number. Its large steps made one of them constant."""
OWN_SETTINGS = ("lr", "initial_lr", "weight_decay", "capturable")
"""Of an optimiser's groups, what the configuration of a run that goes on says anew."""
SHOW_EVERY = 5
"""Steps between two looks at what the progress bar shows."""
LEAST_EDGE_IN_BF16 = 64
"""Crops of fewer voxels are learnt from in fp32 on a CPU: oneDNN's bf16 gradients of convolutions over two tokens an
edge contain memory that nobody has written. So are all crops without oneDNN, where bf16 takes five times as long."""
SMALLEST_KERNEL = 8
"""Muon learns matrices and kernels of at least so many rows and columns, no depthwise ones."""


class MixedSource:
    """Draws from several sources with given weights."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        known = len(sources) == len(weights) and all(0 <= weight < math.inf for weight in weights)
        if not known or sum(weights) <= 0:
            raise ConfigError(
                f"Expected a finite weight of at least 0 for each of {len(sources)} sources, not all 0; got "
                f"{list(weights)}."
            )
        self.sources, self.weights = list(sources), list(weights)

    def __call__(self, size: int, dice: Dice) -> Sample:
        return self.sources[dice.pick(self.weights)](size, dice)


def synthetic_source(size: int, dice: Dice) -> Sample:
    """Purely synthetic crops."""
    return synthetic_sample(size, dice.integer(0, 2**31 - 1), dice.device)


def grow_from(model: nn.Module, smaller: nn.Module) -> None:
    """Give a network the parameters of a smaller one, so that at first it computes the same.

    A kernel that has more input channels than the smaller network's has zeros for the further ones.

    Raises:
        ConfigError: a parameter of the smaller network is not there, or differs in more than its input channels.
    """
    own = model.state_dict()
    for name, tensor in smaller.state_dict().items():
        part = own.get(name)
        if part is not None and tensor.ndim > 1 and part.ndim > 1:
            part.zero_()
            part = part[:, : tensor.shape[1]]
        if part is None or part.shape != tensor.shape:
            raise ConfigError(
                f"Expected weights of a network that this one contains, got {name} of shape {tuple(tensor.shape)}; "
                f"here it is {tuple(own[name].shape) if name in own else 'absent'}. Start from weights of the same "
                "configuration, or from none."
            )
        part.copy_(tensor)


class Trainer:
    """One run; ``run()`` trains to the end or to a time limit and may be called again to go on.

    Args:
        directory: the run's folder; made if absent, resumed if it holds a checkpoint.
        source: where crops come from.
        config, model_config: see ``TrainConfig``, and ``FamsamConfig`` or ``Sam3DConfig``; None means what the
            folder's ``config.json`` says, or the defaults in a new folder.
        device: where to train.
        start: weights that a new run starts from, see ``grow_from``; a run that has begun has its own.
        workers: processes that draw the crops, see ``CropPool``.

    Raises:
        ConfigError: the folder's run was begun by another command, or the network does not suit the configuration.
        CheckpointError: the folder's run is damaged, or of another configuration.
    """

    command = "train"
    """The command of ``famsam`` that begins such runs."""

    def __init__(
        self,
        directory: Union[str, Path],
        source: Source,
        config: Optional[TrainConfig] = None,
        model_config: Any = None,
        device: Optional[torch.device] = None,
        start: Optional[Union[str, Path]] = None,
        workers: int = 0,
    ) -> None:
        self.directory = Path(directory)
        check_begun_by(self.command, self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        if config is None or model_config is None:
            own_config, own_model_config = team.given(config_of_run(self.directory))
            config, model_config = config or own_config, model_config or own_model_config
        self.config = config
        self.device = device or torch.device("cpu")
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # a few shapes, each of them for thousands of steps
        torch.manual_seed(self.config.seed)
        self.model = prompting.build(model_config).to(self.device)
        if start is not None:
            grow_from(self.model, load_model(start, device="cpu", precision="fp32"))
        for _, size, _ in self.config.sizes:
            prompting.check_crop_size(self.model, size)
        self.learner = self._make_learner().to(self.device)
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        self.optimisers = _optimisers(self.learner, self.config)
        self.recorded = self._recorded_steps()
        self.step = 0
        self.seconds = 0.0
        self.smooth = _Smoothed()
        self._unlogged: List[Dict[str, Any]] = []
        self.workers = workers
        self.pool = self._pool(source, self.config.seed)
        checkpoint = team.file_of_leader(self.checkpoint_path)
        if checkpoint is not None:
            self._resume(checkpoint)
        self.shared = team.shared(self.learner)
        if team.leads():
            self._forget_log()
            with _replacing(self.directory / CONFIG_NAME) as path:
                path.write_text(json.dumps(self._settings(), indent=1), encoding="utf-8")

    def _make_learner(self) -> Learner:
        """What learns: ``self.model``, and how."""
        return Learner(self.model, self.config)

    def _recorded_steps(self) -> Optional[RecordedSteps]:
        """Steps as CUDA graphs, where that can be."""
        alone = self.device.type == "cuda" and team.part()[1] == 1
        if not (self.config.recorded and alone and self.learner.can_be_planned and not self.config.recompute):
            return None
        with_tensor_rates(self.optimisers, self.device)
        return RecordedSteps(self.learner, self.optimisers, self.config, self.device)

    def _pool(self, source: Source, seed: int) -> CropPool:
        return CropPool(source, self.config, self.learner.normalise, self.device, seed, self.workers)

    def _settings(self) -> Dict[str, Any]:
        """What ``config.json`` is to hold."""
        return config_to_dict(self.config, self.model.config)

    @property
    def checkpoint_path(self) -> Path:
        return self.directory / "checkpoint.pt"

    def run(self, time_limit_s: float = math.inf, progress: bool = False) -> None:
        """Train until the last step or for ``time_limit_s`` seconds; a checkpoint is left either way."""
        with self.recorded.running() if self.recorded is not None else contextlib.nullcontext():
            self._run(time_limit_s, progress)

    def _run(self, time_limit_s: float, progress: bool) -> None:
        config, started, leads = self.config, time.monotonic(), team.leads()
        validation = self._validation_batches() if leads else []
        bar = tqdm(total=config.steps, initial=self.step, disable=not (progress and leads), unit="step", mininterval=5)
        while self._done() < 1:
            if team.agreed(time.monotonic() - started >= time_limit_s, self.device):
                break
            before = time.monotonic()
            self.smooth.add(self._one_step())
            self.step += 1
            self.seconds += time.monotonic() - before
            over = self._done() >= 1
            bar.update()
            if self.step % SHOW_EVERY == 0 and not bar.disable:
                bar.set_postfix({name: f"{value:.3f}" for name, value in self.smooth.values.items()}, refresh=False)
            if leads and (self.step % config.validate_every == 0 or over):
                scores = validation_scores(self.averaged_model(), validation, config)
                self._log(self.smooth.values, scores)
            if self.step % config.checkpoint_every == 0:
                self.save()
        bar.close()
        self.save()

    def _one_step(self) -> Values:
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                set_rate(group, group["initial_lr"] * self._schedule())
        if self.recorded is not None:
            crops, targets, dice = self._batch()
            values = self.recorded.gradients(crops, targets, self.learner.plan(dice), dice)
            self.recorded.update()
            self._average()
            return values
        values = self._gradients()
        if torch.isfinite(nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)):
            for optimiser in self.optimisers:
                optimiser.step()
            self._average()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        return values

    def _batch(self) -> Tuple[Tensor, Tensor, Dice]:
        """This step's crops and targets, and dice for what is done with them."""
        dice = Dice(self.config.seed * 1_000_003 + self.step, self.device, team.part())
        sizes = self.config.sizes_at(self._done())
        size, count = sizes[dice.pick([1.0] * len(sizes)) if len(sizes) > 1 else 0]
        crops, targets = self.pool.batch(size, count, dice)
        self.learner.train()
        return crops, targets, dice

    def _gradients(self) -> Values:
        """Leave the gradients of this step's loss, the team's mean, in the parameters; what to log."""
        crops, targets, dice = self._batch()
        half = torch.backends.mkldnn.is_available() and crops.shape[-1] >= LEAST_EDGE_IN_BF16
        in_fp32 = self.device.type == "cpu" and not half
        with autocast(self.device, "fp32" if in_fp32 else self.config.precision):
            loss, values = self.shared(crops, targets, dice, round(self._done() * self.config.steps))
        loss.backward()
        return {"loss": loss.detach(), **values}

    @torch.no_grad()
    def _average(self) -> None:
        """Take the weights into an exponential moving average whose memory grows to that of ``TrainConfig.ema``: the
        first steps are soon forgotten."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) if self.step else 0.0
        averaged: List[Tensor] = list(self.average.module.parameters())
        torch._foreach_lerp_(averaged, [*self.model.parameters()], 1 - decay)
        self.average.n_averaged += 1

    def _schedule(self) -> float:
        """Warm-up, stable, then linear decay to zero; the factor on the learning rates."""
        config = self.config
        decay = max(config.decay_fraction, 1 / config.steps)
        return min(1.0, (self.step + 1) / config.warmup_steps, (1 - self._done()) / decay)

    def _done(self) -> float:
        """Share of the run that is behind it, the same in all processes of a team."""
        seconds = team.told(self.seconds, self.device) if self.config.minutes else 0.0
        return self.config.done(self.step, seconds)

    def _validation_batches(self) -> List[Tuple[Tensor, Tensor]]:
        dice = Dice(987_654_321, self.device)
        size = self.config.sizes[0][1]
        pool = self._pool(self.pool.maker.source, seed=987_654)
        try:
            return [pool.batch(size, 4, dice) for _ in range(self.config.validation_batches)]
        finally:
            pool.close()

    def _log(self, values: Dict[str, float], scores: Sequence[float]) -> None:
        path = self.directory / "log.csv"
        row = {"step": self.step, "seconds": round(self.seconds), **{k: round(v, 4) for k, v in values.items()}}
        row.update({f"dice{i + 1}": round(s, 4) for i, s in enumerate(scores)})
        _LOG.info("%s", row)
        self._unlogged.append(row)
        new = not path.exists()
        try:
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerows(self._unlogged)
        except PermissionError as error:  # on Windows a spreadsheet that shows it keeps it for itself
            _LOG.warning("%s cannot be written (%s), perhaps because it is open elsewhere; its rows wait.", path, error)
        else:
            self._unlogged.clear()

    def save(self) -> None:
        """Write the checkpoint so that a crash in the middle leaves the old one; the leading process does."""
        if not team.leads():
            return
        beside = self.learner.state_dict()
        model = {name: beside.pop(f"model.{name}") for name in self.model.state_dict()}
        state = {
            "model": model,
            "beside": beside,
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
            "pool": self.pool.state(),
            "smooth": self.smooth.values,
        }
        with _replacing(self.checkpoint_path) as path:
            torch.save(state, path)

    def _resume(self, checkpoint: Union[Path, BinaryIO]) -> None:
        try:
            state = torch.load(checkpoint, map_location=self.device, weights_only=True)
        except Exception as error:  # a damaged pickle may fail in any way
            raise CheckpointError(
                f"{self.checkpoint_path} is damaged or truncated ({type(error).__name__}), the run cannot go on from "
                "it. Put a copy of it in its place, or delete it to begin the run anew, or give another folder."
            ) from error
        try:
            model = {f"model.{name}": tensor for name, tensor in state["model"].items()}
            self.learner.load_state_dict({**model, **state.get("beside", {})})
            self.average.load_state_dict(state["average"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"]):
                for own, group in zip(optimiser.param_groups, saved["param_groups"]):
                    group.update({name: own[name] for name in OWN_SETTINGS if name in own})
                optimiser.load_state_dict(saved)
            self.step, self.seconds = state["step"], state["seconds"]
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"Expected {self.checkpoint_path} to hold a run of this configuration; {error}. Give the configuration "
                "it was started with, or another folder."
            ) from error
        if "shelves" in state.get("pool", {}):
            self.pool.resume(state["pool"])
        self.smooth.values = state.get("smooth", {})

    def _forget_log(self) -> None:
        """Drop what was logged after the checkpoint, or without one, since those steps are done again, and a row that
        was cut off."""
        path = self.directory / "log.csv"
        if not path.exists():
            return
        header, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        if not (header.strip() and header.endswith("\n")):
            _LOG.warning("%s is empty or cut off; the log of the steps before %d is lost.", path, self.step)
            path.unlink()
            return
        whole = [row for row in rows if row.count(",") == header.count(",") and row.endswith("\n")]
        if not header.startswith("step,") or not all(row.split(",")[0].isdigit() for row in whole):
            raise ConfigError(f"Expected {path} to be the log of this run, got another file. Move it away, and go on.")
        kept = [row for row in whole if int(row.split(",")[0]) <= self.step]
        if not kept:
            path.unlink()  # what is logged next may have other columns
            return
        with _replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
            file.writelines([header, *kept])

    def averaged_model(self) -> PromptableModel:
        """The weights that ship."""
        model = self.average.module
        assert isinstance(model, PromptableModel)
        return model.eval()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of the one at ``path`` when it is whole; else that one stays."""
    unfinished = path.with_suffix(".tmp")
    try:
        yield unfinished
        put_in_place(unfinished, path)
    except (OSError, RuntimeError) as error:  # the latter is what torch makes of a full disk
        raise CheckpointError(
            f"Expected room for {path}, which could not be written ({error}); what was there before is kept. Make "
            "room, and start the run again: it goes on from its last checkpoint."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _optimisers(learner: nn.Module, config: TrainConfig) -> List[torch.optim.Optimizer]:
    kernels: List[nn.Parameter] = []
    others: List[nn.Parameter] = []
    for name, parameter in learner.named_parameters():
        depthwise = parameter.ndim > 2 and parameter.shape[1] == 1
        judges = any(part in JUDGES for part in name.split("."))
        is_kernel = parameter.ndim > 1 and min(parameter.flatten(1).shape) >= SMALLEST_KERNEL
        learnt_by_muon = config.optimiser == "muon" and is_kernel and not depthwise and not judges
        (kernels if learnt_by_muon else others).append(parameter)
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    made: List[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))]
    if kernels:
        precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
        rate, decay = config.muon_learning_rate, config.weight_decay
        made.append(Muon(kernels, lr=rate, weight_decay=decay, precision=precision))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return made


class _Smoothed:
    """Running means for the log. They stay where the numbers are until they are read: a GPU is not waited for."""

    def __init__(self) -> None:
        self._means: Dict[str, Tensor] = {}

    @property
    def values(self) -> Dict[str, float]:
        return {name: float(mean) for name, mean in self._means.items()}

    @values.setter
    def values(self, values: Mapping[str, float]) -> None:
        self._means = {name: torch.tensor(value) for name, value in values.items()}

    def add(self, values: Values) -> None:
        """Numbers of one more step; those that are not a number are left out."""
        for name, number in values.items():
            value = torch.as_tensor(number, dtype=torch.float32)
            before = self._means.get(name, value).to(value.device)
            known = torch.where(before.isnan(), value, before)
            self._means[name] = torch.where(value.isnan(), known, 0.98 * known + 0.02 * value)


def read_log(directory: Union[str, Path]) -> Iterator[Dict[str, float]]:
    """The rows of a run's ``log.csv`` as numbers."""
    with (Path(directory) / "log.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield {name: float(value) for name, value in row.items()}
