"""Losses of a promptable mask. Shape legend: B batch, M masks, z y x voxels."""

from __future__ import annotations

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_loss(logits_BMzyx: Tensor, target_B1zyx: Tensor) -> Tensor:
    """Soft Dice plus a cross entropy in which foreground and background weigh the same, (B, M).

    Plain cross entropy on targets of 0.1 to 5 % of the crop collapses to empty masks.
    """
    logits, target = logits_BMzyx.float(), target_B1zyx.float()
    axes = (2, 3, 4)
    probability = logits.sigmoid()
    overlap = (probability * target).sum(axes)
    dice = 1 - (2 * overlap + 1) / (probability.sum(axes) + target.sum(axes) + 1)
    foreground = target.sum(axes).clamp_min(1.0)
    background = (1 - target).sum(axes).clamp_min(1.0)
    # -log p and -log (1 - p). A foreground voxel counts twice a background one: more would move the decision
    # boundary outwards, less would let structures of a few voxels vanish at first.
    loss_foreground = (F.softplus(-logits) * target).sum(axes) / foreground
    loss_background = (F.softplus(logits) * (1 - target)).sum(axes)
    near = torch.maximum(torch.minimum(background, 2 * foreground), 0.01 * background)
    return dice + 0.5 * (loss_foreground + loss_background / near)


def true_iou(logits_BMzyx: Tensor, target_B1zyx: Tensor) -> Tensor:
    """Intersection over union of the thresholded masks, (B, M)."""
    mask, truth = logits_BMzyx > 0, target_B1zyx > 0.5
    axes = (2, 3, 4)
    return (mask & truth).sum(axes) / (mask | truth).sum(axes).clamp_min(1)


def prompt_loss(
    logits_BMzyx: Tensor, quality_BM: Tensor, target_B1zyx: Tensor, ambiguous: bool
) -> Tuple[Tensor, Tensor]:
    """Loss of a decode and the Dice of its first mask.

    The first mask always learns. The alternatives learn where the prompt is ambiguous: the best one gets the loss, as
    in Segment Anything (Kirillov et al. 2023). The quality learns the true IoU.

    Returns:
        scalar loss, mean Dice of mask 0.
    """
    losses = mask_loss(logits_BMzyx, target_B1zyx)
    loss = losses[:, 0].mean()
    if ambiguous and losses.shape[1] > 1:
        loss = loss + 0.3 * losses[:, 1:].amin(dim=1).mean() + 0.02 * losses[:, 1:].mean()
    iou = true_iou(logits_BMzyx.detach(), target_B1zyx)
    loss = loss + F.mse_loss(quality_BM.float(), iou)
    return loss, (2 * iou[:, 0] / (1 + iou[:, 0])).mean()
