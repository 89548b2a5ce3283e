"""Losses of a promptable mask. Shape legend: B batch, M masks, z y x voxels."""

from __future__ import annotations

from typing import Callable, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

MaskLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, M, z, y, x), target (B, 1, z, y, x)) -> (B, M)."""


def mask_loss(
    logits_BMzyx: Tensor,
    target_B1zyx: Tensor,
    dice_weight: float = 1.0,
    foreground_weight: float = 2.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Soft Dice plus a cross entropy in which foreground and background weigh about the same, (B, M).

    Plain cross entropy on targets of 0.1 to 5 % of the crop collapses to empty masks.

    Args:
        dice_weight: of the soft Dice; the cross entropy has weight 1.
        foreground_weight: how many background voxels a foreground voxel counts for. More would move the decision
            boundary outwards, less would let structures of a few voxels vanish at first.
        focal_gamma: exponent of the focal factor (1 - p)^gamma, p the probability of the truth (Lin et al. 2017,
            eq. 4); 0 is plain cross entropy.
    """
    logits, target = logits_BMzyx.float(), target_B1zyx.float()
    axes = (2, 3, 4)
    probability = logits.sigmoid()
    overlap = (probability * target).sum(axes)
    dice = 1 - (2 * overlap + 1) / (probability.sum(axes) + target.sum(axes) + 1)
    miss, alarm = F.softplus(-logits), F.softplus(logits)  # -log p and -log (1 - p)
    if focal_gamma:
        miss, alarm = miss * (1 - probability).pow(focal_gamma), alarm * probability.pow(focal_gamma)
    foreground, background = balance(target, foreground_weight)
    cross_entropy = (miss * target).sum(axes) / foreground + (alarm * (1 - target)).sum(axes) / background
    return dice_weight * dice + 0.5 * cross_entropy


def clicked_loss(
    logits_B1zyx: Tensor, target_B1zyx: Tensor, clicked_B1zyx: Tensor, previous_B1zyx: Tensor
) -> Tensor:
    """Cross entropy over the piece of the previous mask's error that was clicked on, and over what was right before the
    click and is wrong after it, (B,); 0 where there is neither.

    It is what the click asks for, and the harm that it does. A piece as large as the structure, or larger, weighs 1, a
    smaller one less: for a network that learnt to mend the smallest error at any cost, clicks did harm elsewhere.

    Args:
        clicked_B1zyx: the piece, bool.
        previous_B1zyx: the logits before the click.
    """
    entropy = F.binary_cross_entropy_with_logits(logits_B1zyx.float(), target_B1zyx.float(), reduction="none")
    axes = (1, 2, 3, 4)
    size = torch.maximum(target_B1zyx.float().sum(axes), clicked_B1zyx.sum(axes)).clamp_min(1)
    truth = target_B1zyx > 0.5
    harmed = ((previous_B1zyx > 0) == truth) & ((logits_B1zyx > 0) != truth)
    return (entropy * (clicked_B1zyx | harmed)).sum(axes) / size


def balance(target_BMzyx: Tensor, foreground_weight: float) -> Tuple[Tensor, Tensor]:
    """What to divide sums over the foreground and over the background by, (B, M) each.

    The background's sum is divided as if it had at most ``foreground_weight`` times the foreground's voxels.
    """
    axes = (2, 3, 4)
    foreground = target_BMzyx.sum(axes).clamp_min(1.0)
    background = (1 - target_BMzyx).sum(axes).clamp_min(1.0)
    near = torch.maximum(torch.minimum(background, foreground_weight * foreground), 0.01 * background)
    return foreground, near


def true_iou(logits_BMzyx: Tensor, target_B1zyx: Tensor) -> Tensor:
    """Intersection over union of the thresholded masks, (B, M)."""
    mask, truth = logits_BMzyx > 0, target_B1zyx > 0.5
    axes = (2, 3, 4)
    return (mask & truth).sum(axes) / (mask | truth).sum(axes).clamp_min(1)


def prompt_loss(
    logits_BMzyx: Tensor, quality_BM: Tensor, target_B1zyx: Tensor, ambiguous: bool, of_masks: MaskLoss = mask_loss
) -> Tuple[Tensor, Tensor]:
    """Loss of a decode and the Dice of its first mask.

    The first mask always learns. The alternatives learn where the prompt is ambiguous: the best one gets the loss, as
    in Segment Anything (Kirillov et al. 2023). The quality learns the true IoU.

    Args:
        ambiguous: whether the alternatives learn.
        of_masks: the loss of each mask.

    Returns:
        scalar loss, mean Dice of mask 0.
    """
    losses = of_masks(logits_BMzyx, target_B1zyx)
    loss = losses[:, 0].mean()
    if ambiguous and losses.shape[1] > 1:
        loss = loss + 0.3 * losses[:, 1:].amin(dim=1).mean() + 0.02 * losses[:, 1:].mean()
    iou = true_iou(logits_BMzyx.detach(), target_B1zyx)
    loss = loss + F.mse_loss(quality_BM.float(), iou)
    return loss, (2 * iou[:, 0] / (1 + iou[:, 0])).mean()
