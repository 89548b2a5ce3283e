"""What a network learns from a batch: the loss over rounds of simulated clicks, and the scores that measure it."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..model import prompt_maps
from ..model.base import Embedding, PromptableModel
from ..runtime import autocast
from . import prompting
from .clicks_at_once import ClicksAtOnce
from .config import TrainConfig
from .losses import clicked_loss, mask_loss, prompt_loss, true_iou
from .pool import Normalise
from .sample import Dice
from .targets import ClickSimulator, corrupted

Values = Dict[str, Union[Tensor, float]]
"""Single numbers to log, by name."""
Decoded = Tuple[Tensor, Tensor]
"""Logits (B, M, z, y, x) and predicted IoU (B, M)."""
RoundLoss = Callable[[Decoded, Tuple[Tensor, Tensor, Optional[Tensor]], bool], Tuple[Tensor, Tensor]]
"""(what was decoded, (points, labels, previous logits) it was decoded from, first round?) -> loss, Dice."""


class Plan(NamedTuple):
    """What a step does with every target of its batch."""

    rounds: int
    mask: bool = False
    """Whether it starts from a faulty mask to be refined,"""
    waits: bool = False
    """and if so, whether the first round has no click."""
    boxes: bool = False
    """Whether half of the targets also get a box."""

    @classmethod
    def drawn(cls, config: TrainConfig, takes_boxes: bool, dice: Dice) -> Plan:
        """One with the chances that the configuration gives."""
        rounds = 1 + dice.pick(config.round_weights)
        mask = dice.chance(config.mask_chance)
        waits, boxes = dice.chance(0.5), dice.chance(config.box_chance * 2)
        return cls(rounds, mask, mask and waits, boxes and takes_boxes and not mask)


def maybe_recomputed(function: Callable[..., Any], recompute: bool) -> Callable[..., Any]:
    """``function``, or one whose inner activations are computed anew in the backward pass (Chen et al. 2016)."""
    return partial(checkpoint, function, use_reentrant=False) if recompute else function


def simulated_clicks(
    targets_B1zyx: Tensor, dice: Dice, styles: Sequence[float] = (1.0, 0.0, 0.0)
) -> Union[ClickSimulator, ClicksAtOnce]:
    """Where the targets lie decides how clicks on them are found; see ``ClickSimulator``."""
    return (ClicksAtOnce if targets_B1zyx.is_cuda else ClickSimulator)(targets_B1zyx, dice, styles)


def rounds_of_clicks(
    model: PromptableModel,
    embedding: Embedding,
    targets: Tensor,
    plan: Plan,
    config: TrainConfig,
    dice: Dice,
    round_loss: RoundLoss,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Mean loss of the first and the later rounds of clicks, and the mean Dice after the first and the last. Of the
    later ones the last alone is learnt from, or all; see ``TrainConfig.every_round``.

    Args:
        embedding: of B crops.
        targets: (B * T, 1, z, y, x) fractions, those of a crop adjacent.
    """
    embedding = prompting.expand(embedding, len(targets) // len(embedding.tokens))
    decode = maybe_recomputed(prompting.decode, config.recompute)
    clicks = simulated_clicks(targets, dice, config.click_styles)
    previous = corrupted(targets, dice) if plan.mask else None
    if plan.boxes:
        clicks.add_boxes(0.5)
    rounds = plan.rounds
    loss = targets.new_zeros(())
    first = last = loss
    for number in range(1, rounds + 1):
        if number == 1 and plan.waits:
            clicks.no_click()
        else:
            clicks.click(previous)
        points, labels = clicks.points_BN3, clicks.labels_BN
        learn = number in (1, rounds) or config.every_round
        weight = 1 / (rounds - 1) if config.every_round and number > 1 else 1.0
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            decoded = decode(model, embedding, points, labels, previous, number == 1)
        if learn:
            if config.one_way and model.one_way and previous is not None:
                decoded = prompt_maps.one_way(decoded[0], previous, labels[:, -1]), decoded[1]
            part, last = round_loss(decoded, (points, labels, previous), number == 1)
            loss = loss + weight * part
            if config.clicked_weight and previous is not None:
                asked = clicked_loss(decoded[0][:, :1], targets, clicks.clicked_error(), previous)
                loss = loss + weight * config.clicked_weight * asked.mean()
            first = last if number == 1 else first
        previous = next_logits(model, decoded[0][:, :1].detach(), previous, points, labels)
    return loss / min(rounds, 2), first, last


def next_logits(
    model: PromptableModel,
    logits_B1zyx: Tensor,
    previous_B1zyx: Optional[Tensor],
    points_BN3: Tensor,
    labels_BN: Tensor,
) -> Tensor:
    """What the next round gets as previous logits, with the guarantees that a session gives."""
    logits, points_BN3 = logits_B1zyx.float(), points_BN3 / 2 - 0.25
    if model.one_way and previous_B1zyx is not None:
        newest_B = labels_BN[:, -1]
        logits = prompt_maps.restrained(logits, previous_B1zyx, points_BN3[:, -1], newest_B, model.least_added)
        logits = prompt_maps.one_way(logits, previous_B1zyx, newest_B)
    return prompt_maps.keep_clicks(logits, points_BN3, labels_BN)


def label_loss(config: TrainConfig, targets: Tensor) -> RoundLoss:
    """The loss against the true masks."""
    of_masks = partial(mask_loss, dice_weight=config.dice_weight, focal_gamma=config.focal_gamma)
    weights = {True: config.foreground_weight, False: config.later_foreground_weight}

    def loss(decoded: Decoded, _given: Any, first: bool) -> Tuple[Tensor, Tensor]:
        of_round = partial(of_masks, foreground_weight=weights[first])
        return prompt_loss(*decoded, targets, ambiguous=first, of_masks=of_round)

    return loss


def training_loss(
    model: PromptableModel, crops_B1ZYX: Tensor, targets: Tensor, plan: Plan, config: TrainConfig, dice: Dice
) -> Tuple[Tensor, Tensor, Tensor]:
    """``rounds_of_clicks`` on crops, learning from the true masks."""
    embedding = maybe_recomputed(prompting.encode, config.recompute)(model, crops_B1ZYX)
    return rounds_of_clicks(model, embedding, targets, plan, config, dice, label_loss(config, targets))


class Learner(nn.Module):
    """A network and its loss as one module, the form that data-parallel training wants.

    Its parameters are those that learn: the network's, named "model.…", and what a subclass adds to them.
    """

    can_be_planned = True
    """Whether ``forward`` is ``planned`` with whatever ``plan`` says, the same in every step."""

    def __init__(self, model: PromptableModel, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, crops: Tensor, targets: Tensor, dice: Dice, step: int) -> Tuple[Tensor, Values]:
        """The loss of a batch, and what to write into the log."""
        return self.planned(crops, targets, self.plan(dice), dice)

    def plan(self, dice: Dice) -> Plan:
        """What to do with the next batch."""
        return Plan.drawn(self.config, self.model.takes_boxes, dice)

    def planned(self, crops: Tensor, targets: Tensor, plan: Plan, dice: Dice) -> Tuple[Tensor, Values]:
        """``forward`` once that is decided."""
        loss, first, last = training_loss(self.model, crops, targets, plan, self.config, dice)
        return loss, {"first": first, "last": last}

    @property
    def normalise(self) -> Normalise:
        """From raw crops to the channels that ``forward`` takes; the first is the network's own.

        It leads to no weights: other processes, which could not take those of a GPU, are given it, too.
        """
        return self.model.normalise


@torch.no_grad()
def validation_scores(
    model: PromptableModel, batches: Sequence[Tuple[Tensor, Tensor]], config: TrainConfig, clicks: int = 5
) -> List[float]:
    """Mean Dice after each of ``clicks`` clicks on fixed crops; only the first channel of the crops is looked at."""
    totals, count = [0.0] * clicks, 0
    for crops, targets in batches:
        simulator = simulated_clicks(targets, Dice(1, targets.device))
        with autocast(targets.device, config.precision):
            embedding = prompting.expand(prompting.encode(model, crops[:, :1]), len(targets) // len(crops))
            previous: Optional[Tensor] = None
            for number in range(clicks):
                simulator.click(previous)
                points, labels = simulator.points_BN3, simulator.labels_BN
                logits, _ = prompting.decode(model, embedding, points, labels, previous)
                previous = next_logits(model, logits, previous, points, labels)
                iou = true_iou(previous, targets)
                totals[number] += float((2 * iou / (1 + iou)).sum())
        count += len(targets)
    return [total / count for total in totals]
