"""Training of the proposal head onto a finished model, whose every other part stays as it is.

The model's features of a crop never change, so they are computed once and kept: a step costs the small head alone, and
a run of minutes on one CPU core is worth while.

Shape legend: B crops, S seeds, T structures, z y x voxels at stride 4, N cells at stride 8.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
from ..model.base import Embedding
from ..model.famsam import Famsam
from ..model.proposal_head import MASK_STRIDE, SEED_STRIDE, ProposalMaps, pick_seeds
from ..runtime import autocast
from .losses import mask_loss, true_iou
from .sample import Dice, Source
from .targets import draw_targets, visibility

MOST_DRAWS = 1000
"""So many crops in a row without a structure mean that the source has none."""

LEAST_COARSE_VOXELS = 6
"""What is smaller at stride 4 is left out: it is for closer views."""


@dataclass(frozen=True)
class ProposalTraining:
    """How a head is trained."""

    steps: int = 3000
    """Optimiser steps, unless the time is over before."""
    size: int = 96
    """Edge of the crops in voxels."""
    batch: int = 4
    """Crops a step."""
    structures: int = 10
    """At most so many structures of a crop."""
    seeds: int = 24
    """Seeds a crop and step, at random within its structures; a third as many where there is none."""
    steps_per_crop: int = 5
    """A new crop is drawn every so many steps."""
    pool: int = 400
    """Crops whose features are kept (about 1.5 MB each)."""
    validation_crops: int = 16
    """Crops set aside to judge the head on."""
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch, self.structures, self.seeds, self.steps_per_crop, self.validation_crops)
        if min(*counts, self.pool - self.batch + 1) < 1 or self.size % 32 or self.size < 32 or self.learning_rate <= 0:
            raise ConfigError(
                f"Expected counts from 1, a pool of a batch at least and a size of 32, 64, …; got {self}."
            )


@dataclass
class _Crop:
    """What the head is trained on: kept features of one crop, and where its structures are."""

    features: Tuple[Tensor, ...]
    """What ``ProposalHead.forward`` takes, fp16, without the batch axis."""
    targets_Tzyx: Tensor
    """Foreground fractions at stride 4, fp16."""
    cells: List[Tensor]
    """For each structure the flat indices of the seeds in it."""
    empty: Tensor
    """Flat indices of seeds where there is no structure."""


def train_proposals(
    model: Famsam,
    source: Source,
    config: Optional[ProposalTraining] = None,
    time_limit_s: float = math.inf,
    progress: bool = False,
) -> Tuple[Famsam, Dict[str, float]]:
    """The model with a newly trained proposal head; all its other parameters are the same.

    Args:
        model: a trained model; it is left as it is, and a head that it has is not looked at.
        source: where crops come from.
        config: how; the defaults if None.
        time_limit_s: the schedule of the learning rate ends after so long if the steps are not done before.
        progress: show a progress bar on the standard error stream.

    Returns:
        the model, in evaluation mode; what ``proposal_scores`` says of it on crops set aside, with "steps".

    Raises:
        DatasetError: the source has no structures.
        ConfigError: the time was over before the first step.
    """
    config = config or ProposalTraining()
    started = time.monotonic()
    torch.manual_seed(config.seed)
    trained = _with_new_head(model)
    head = trained.proposal_head
    assert head is not None
    validation = [_draw(trained, source, config, 1_000_000 + n) for n in range(config.validation_crops)]
    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    pool: List[_Crop] = []
    dice = Dice(config.seed, model.device)
    bar = tqdm(total=config.steps, unit="step", file=sys.stderr, disable=not progress, mininterval=5)
    step, drawn = 0, 0
    while step < config.steps and time.monotonic() - started < time_limit_s:
        if step % config.steps_per_crop == 0 or len(pool) < config.batch:
            pool = [*pool[-config.pool + 1 :], _draw(trained, source, config, drawn)]
            drawn += 1
            if len(pool) < config.batch:
                continue
        done = max(step / config.steps, (time.monotonic() - started) / time_limit_s)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))
        batch = [pool[dice.integer(0, len(pool) - 1)] for _ in range(config.batch)]
        loss, iou = _loss(trained, batch, config, dice)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}", iou=f"{iou:.3f}", refresh=False)
    bar.close()
    if step == 0:
        raise ConfigError(
            f"Expected time for one step of training at least, got {time_limit_s:g} seconds, in which the first crops "
            "were drawn. Give more time."
        )
    trained.eval().requires_grad_(False)
    return trained, {**proposal_scores(trained, validation), "steps": float(step)}


@torch.no_grad()
def proposal_scores(model: Famsam, crops: Sequence[_Crop], most: int = 10) -> Dict[str, float]:
    """What the head's coarse masks are worth, means over the structures of some crops, all 0..1.

    "iou": of each structure with the best of ``most`` proposals; "recall": share of structures with one of IoU above a
    half; "seeded_iou": with the mask of a seed in the middle of the structure.
    """
    best, seeded = [], []
    for crop in crops:
        maps = _maps(model, [crop])
        _, logits = pick_seeds(maps, most, torch.ones_like(maps.quality_Bzyx[0], dtype=torch.bool).flatten())
        middles = torch.tensor([int(cells[len(cells) // 2]) for cells in crop.cells], device=logits.device)
        own = maps.coarse_logits(middles[None])[0]
        for target_zyx, logits_zyx in zip(crop.targets_Tzyx.float(), own):
            truth = target_zyx[None, None]
            seeded.append(float(true_iou(logits_zyx[None, None], truth)))
            best.append(float(true_iou(logits[None], truth).max()) if len(logits) else 0.0)
    found = torch.tensor(best)
    return {
        "iou": float(found.mean()),
        "recall": float((found > 0.5).float().mean()),
        "seeded_iou": float(torch.tensor(seeded).mean()),
    }


def _with_new_head(model: Famsam) -> Famsam:
    trained = Famsam(dataclasses.replace(model.config, proposals=True))
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("proposal_head.")}
    trained.load_state_dict(kept, strict=False)
    trained = trained.to(model.device).eval().requires_grad_(False)
    trained.precision, trained.calibration = model.precision, model.calibration
    assert trained.proposal_head is not None
    trained.proposal_head.requires_grad_(True)
    return trained


@torch.no_grad()
def _draw(model: Famsam, source: Source, config: ProposalTraining, number: int) -> _Crop:
    dice = Dice(config.seed * 1_000_003 + number, model.device)
    for _ in range(MOST_DRAWS):
        sample = source(config.size, dice)
        crop = model.normalise(sample.image_ZYX[None, None], sample.inside_ZYX[None, None])
        coarse: List[Tensor] = []
        for structure in draw_targets(sample, config.structures, dice):
            target = F.avg_pool3d(structure[None, None].float(), MASK_STRIDE)[0]
            if int((target > 0.5).sum()) < LEAST_COARSE_VOXELS or any(torch.equal(target, other) for other in coarse):
                continue
            if dice.chance(0.05 + visibility(crop[0, 0], structure)):
                coarse.append(target)
        if coarse:
            break
    else:
        raise DatasetError(f"Expected structures to propose, found none in {MOST_DRAWS} training crops.")
    targets = torch.stack(coarse)
    with autocast(model.device, model.precision):
        embedding = model.encode(crop)
    shares_TN = F.avg_pool3d(targets, SEED_STRIDE // MASK_STRIDE).flatten(1)
    cells = [torch.nonzero(share >= 0.9 * share.max())[:, 0] for share in shares_TN]  # well inside
    background = (sample.labels_ZYX == 0) & sample.inside_ZYX
    nothing = F.avg_pool3d(background[None, None].float(), SEED_STRIDE).flatten()
    features = tuple(t[0].to(torch.float16) for t in _inputs(embedding))
    return _Crop(features, targets[:, 0].to(torch.float16), cells, torch.nonzero(nothing == 1)[:, 0])


def _inputs(embedding: Embedding) -> Tuple[Tensor, ...]:
    finer = embedding.finer
    return embedding.tokens, finer.features8, finer.features4, finer.similarity


def _maps(model: Famsam, crops: Sequence[_Crop]) -> ProposalMaps:
    assert model.proposal_head is not None
    features = [torch.stack(parts).float() for parts in zip(*(crop.features for crop in crops))]
    with autocast(model.device, model.precision):
        maps: ProposalMaps = model.proposal_head(*features)
    return maps


def _loss(model: Famsam, crops: Sequence[_Crop], config: ProposalTraining, dice: Dice) -> Tuple[Tensor, float]:
    """Loss of the coarse masks of random seeds and of the quality that the head promises for them; their mean IoU."""
    maps = _maps(model, crops)
    seeds_BS, truth_BSzyx = _random_seeds(crops, config.seeds, dice)
    logits_BSzyx = maps.coarse_logits(seeds_BS)
    logits, truth = logits_BSzyx.flatten(0, 1)[:, None], truth_BSzyx.flatten(0, 1)[:, None]
    iou = true_iou(logits.detach(), truth)
    promised_BN = maps.quality_Bzyx.flatten(1)
    quality_loss = F.binary_cross_entropy_with_logits(promised_BN.gather(1, seeds_BS).flatten(), iou.flatten())
    empty_loss = promised_BN.new_zeros(())
    for promised_N, crop in zip(promised_BN, crops):
        if len(crop.empty):
            some = crop.empty[torch.randint(len(crop.empty), (config.seeds // 3 + 1,), generator=dice.host)]
            empty_loss = empty_loss + F.softplus(promised_N[some]).mean() / len(crops)
    loss = mask_loss(logits, truth).mean() + quality_loss + 0.3 * empty_loss
    return loss, float(iou.mean())


def _random_seeds(crops: Sequence[_Crop], count: int, dice: Dice) -> Tuple[Tensor, Tensor]:
    """Flat indices of seeds (B, S), every structure as often as any other, and the structures that they lie in."""
    seeds, truths = [], []
    for crop in crops:
        which = [dice.integer(0, len(crop.cells) - 1) for _ in range(count)]
        seeds.append(torch.stack([crop.cells[t][dice.integer(0, len(crop.cells[t]) - 1)] for t in which]))
        truths.append(crop.targets_Tzyx[which].float())
    return torch.stack(seeds), torch.stack(truths)
