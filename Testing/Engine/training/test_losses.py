"""Losses: ordered as the masks are good, with gradients wherever something is to be learnt."""

from __future__ import annotations

import pytest
import torch
from famsam.training.losses import clicked_loss, mask_loss, prompt_loss, true_iou


def ball(size=16, radius=4.0, shift=0.0):
    axis = torch.arange(size).float() - (size - 1) / 2
    return (((axis[:, None, None] - shift) ** 2 + axis[:, None] ** 2 + axis**2) < radius**2).float()[None, None]


def logits_of(mask, certainty=6.0):
    return (2 * mask - 1) * certainty


def test_better_masks_cost_less():
    target = ball()
    perfect = mask_loss(logits_of(target), target)
    near = mask_loss(logits_of(ball(shift=1)), target)
    far = mask_loss(logits_of(ball(shift=6)), target)
    empty = mask_loss(logits_of(torch.zeros_like(target)), target)
    opposite = mask_loss(logits_of(1 - target), target)
    assert perfect.shape == (1, 1)
    assert 0 <= perfect < 0.05 and perfect < near < far < opposite and near < empty < opposite


def test_a_small_structure_counts_as_much_as_a_large_one():
    """An empty mask costs about the same whatever the size of what it misses: it cannot pay to predict nothing."""
    missed = [float(mask_loss(logits_of(torch.zeros(1, 1, 16, 16, 16)), ball(radius=r))) for r in (1.2, 3.0, 5.0)]
    assert max(missed) < 1.3 * min(missed)


def test_masks_are_scored_one_by_one():
    target = torch.cat([ball(), ball(radius=2)])
    logits = torch.cat([logits_of(ball()), logits_of(ball(shift=3))]).repeat(1, 3, 1, 1, 1)
    logits[:, 2] = -6
    losses = mask_loss(logits, target)
    assert losses.shape == (2, 3)
    for b in range(2):
        for m in range(3):
            alone = mask_loss(logits[b : b + 1, m : m + 1], target[b : b + 1])
            torch.testing.assert_close(losses[b : b + 1, m : m + 1], alone)


@pytest.mark.parametrize("content", ["empty", "full", "one voxel", "fractions"])
@pytest.mark.parametrize("prediction", [-30.0, 0.0, 30.0])
def test_gradients_are_finite_on_any_target(content, prediction):
    target = torch.zeros(1, 1, 8, 8, 8)
    if content == "full":
        target += 1
    elif content == "one voxel":
        target[0, 0, 3, 3, 3] = 1
    elif content == "fractions":
        target += torch.linspace(0, 1, 512).view_as(target)
    logits = torch.full((1, 2, 8, 8, 8), prediction, requires_grad=True)
    quality = torch.full((1, 2), 0.5, requires_grad=True)
    loss, dice = prompt_loss(logits, quality, target, ambiguous=True)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all() and torch.isfinite(quality.grad).all()
    assert 0 <= dice <= 1
    if prediction == 0.0:
        assert logits.grad.abs().sum() > 0


def test_gradients_point_towards_the_target():
    target = ball(size=8, radius=2.5)
    logits = torch.zeros(1, 1, 8, 8, 8, requires_grad=True)
    mask_loss(logits, target).sum().backward()
    assert (logits.grad[target > 0] < 0).all() and (logits.grad[target == 0] > 0).all()


def test_intersection_over_union():
    a, b = ball(radius=3), ball(radius=5)
    assert float(true_iou(logits_of(a), b)) == pytest.approx(float(a.sum() / b.sum()))
    assert float(true_iou(logits_of(a), a)) == 1
    assert float(true_iou(logits_of(ball(radius=2, shift=-5)), ball(radius=2, shift=5))) == 0
    assert float(true_iou(logits_of(torch.zeros_like(a)), torch.zeros_like(a))) == 0


def test_quality_learns_the_true_overlap():
    target = ball()
    logits = logits_of(ball(shift=1))
    iou = true_iou(logits, target)
    right, _ = prompt_loss(logits, iou, target, ambiguous=False)
    wrong, _ = prompt_loss(logits, iou - 0.3, target, ambiguous=False)
    assert float(wrong - right) == pytest.approx(0.09, abs=1e-4)


def test_only_an_ambiguous_prompt_teaches_the_alternatives():
    target = ball()
    for ambiguous in (False, True):
        logits = torch.zeros(1, 4, 16, 16, 16, requires_grad=True)
        with torch.no_grad():
            logits[:, 2] += 0.2 * logits_of(target)[:, 0]  # the best of the alternatives
        loss, _ = prompt_loss(logits, torch.zeros(1, 4), target, ambiguous)
        loss.backward()
        strength = logits.grad.abs().sum((0, 2, 3, 4))
        assert strength[0] > 0
        if ambiguous:
            assert strength[2] > 3 * strength[1] > 0, "most for the best, a little for all"
        else:
            assert (strength[1:] == 0).all()


def test_dice_of_the_first_mask_is_reported():
    target = ball(radius=4)
    logits = torch.cat([logits_of(ball(radius=3)), logits_of(target)], dim=1)
    _, dice = prompt_loss(logits, torch.zeros(1, 2), target, ambiguous=True)
    smaller = ball(radius=3)
    assert float(dice) == pytest.approx(float(2 * smaller.sum() / (smaller.sum() + target.sum())), abs=1e-5)


def test_the_focal_factor_spares_what_is_already_right():
    target = ball()
    sure, unsure = logits_of(target, 4.0), logits_of(target, 0.2)
    plain = [float(mask_loss(logits, target, dice_weight=0.0)) for logits in (sure, unsure)]
    focal = [float(mask_loss(logits, target, dice_weight=0.0, focal_gamma=2.0)) for logits in (sure, unsure)]
    assert focal[0] < 0.01 * plain[0] and focal[1] > 0.15 * plain[1]


def test_the_foreground_weighs_as_much_as_asked():
    """A false alarm costs the less, the more a foreground voxel weighs; what is missed costs the same."""
    target = ball(radius=2)
    empty, full = logits_of(torch.zeros_like(target), 30.0), logits_of(torch.ones_like(target), 30.0)
    missed = [float(mask_loss(empty, target, 0.0, weight)) for weight in (1.0, 4.0)]
    alarm = [float(mask_loss(full, target, 0.0, weight)) for weight in (1.0, 4.0)]
    assert missed[0] == pytest.approx(missed[1]) and alarm[0] > 3 * alarm[1] > 1.0


def test_what_was_clicked_on_weighs_as_much_as_it_is_large():
    """A missed half costs half as much as the whole; what was not clicked on costs nothing."""
    target = torch.zeros(1, 1, 8, 8, 8)
    target[..., 4:] = 1
    half, whole = torch.zeros_like(target, dtype=torch.bool), target > 0
    half[..., :4, 4:] = True
    empty = torch.full_like(target, -3.0)
    pieces = (half, whole, ~whole, torch.zeros_like(whole))
    costs = [float(clicked_loss(empty, target, piece, empty)) for piece in pieces]
    missed = float(torch.nn.functional.softplus(torch.tensor(3.0)))
    assert costs[:2] == pytest.approx([missed / 2, missed], rel=1e-5)
    assert costs[2] == pytest.approx(missed - 3, rel=1e-4), "background that was background already"
    assert costs[3] == 0


def test_a_false_piece_larger_than_the_structure_weighs_no_more():
    target = torch.zeros(1, 1, 8, 8, 8)
    target[..., :1, :1, :1] = 1
    false = target == 0
    full = torch.full_like(target, 3.0)
    cost = float(clicked_loss(full, target, false, full))
    assert cost == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(3.0))), rel=1e-5)


def test_what_a_click_makes_wrong_costs_as_much_as_what_it_leaves_wrong():
    """The click was on a missing half: adding as many voxels beside the structure costs the same again."""
    target = torch.zeros(1, 1, 8, 8, 8)
    target[..., 4:] = 1
    previous = torch.where(target > 0, 3.0, -3.0)
    half = torch.zeros_like(target, dtype=torch.bool)
    half[..., :4, 4:] = True
    previous[half] = -3
    overshoot = previous.clone()
    overshoot[..., :4, :4] = 3
    costs = [float(clicked_loss(logits, target, half, previous)) for logits in (previous, overshoot)]
    assert costs[1] == pytest.approx(2 * costs[0], rel=1e-5)
    mended = torch.where(target > 0, 3.0, -3.0)
    assert float(clicked_loss(mended, target, half, previous)) < 0.05 * costs[0]
