"""Coarse masks without a prompt: the idea of Med-FastSAM's coarse prompt encoder (Luo et al. 2024), for any structure.

The paper's encoder predicts the one class it was trained for. Here every place at stride 8 may be the seed of a
structure: the head tells how well it could outline what lies there, and gives a kernel whose product with features at
stride 4 is the coarse mask (dynamic kernels as in CondInst, Tian et al. 2020). Two more terms start it off well: the
likeness to the seed that the decoder has learned from clicks, and a Gaussian around a centre, both weighed by the
kernel. The decoder takes a coarse mask as its dense prompt.

Shape legend: B batch, S seeds, K kernel numbers, C channels, z y x voxels of the scale at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .famsam_encoder import ConvBlock

SEED_STRIDE, MASK_STRIDE = 8, 4
"""Crop voxels between neighbouring seeds, and between neighbouring voxels of a coarse mask."""
COARSE_CHANNELS, MASK_CHANNELS = 32, 24
USUAL_RADIUS = 16.0
"""Crop voxels: the Gaussian's standard deviation before anything is learned, and the unit of its displacement."""


@dataclass
class ProposalMaps:
    """What the head makes of a crop."""

    quality_Bzyx: Tensor
    """(B, 16, 16, 16) for a crop of 128: logit of the IoU that a coarse mask grown from a seed there should have."""
    kernels_BKzyx: Tensor
    """(B, K, 16, 16, 16)."""
    features_BCzyx: Tensor
    """(B, C, 32, 32, 32)."""
    similarity_BDzyx: Tensor
    """(B, D, 32, 32, 32): unit vectors whose dot product tells how alike two places look."""

    def seed_positions(self, seeds_BS: Tensor) -> Tensor:
        """Flat indices of seeds -> crop voxel indices (B, S, 3) of their centres, axes z, y, x."""
        _, y, x = self.quality_Bzyx.shape[1:]
        grid = torch.stack([seeds_BS // (y * x), seeds_BS // x % y, seeds_BS % x], dim=-1)
        return grid * SEED_STRIDE + (SEED_STRIDE - 1) / 2

    def coarse_logits(self, seeds_BS: Tensor) -> Tensor:
        """Coarse mask logits of seeds (flat indices into the grid of ``quality_Bzyx``), (B, S, z, y, x) at stride 4."""
        chosen_BKS = _at(self.kernels_BKzyx, seeds_BS).float()
        weights, bias, affinity, shift, spread = chosen_BKS.split([MASK_CHANNELS, 1, 1, 3, 3], dim=1)
        similarity = self.similarity_BDzyx.float()
        like_BDS = F.normalize(_at(F.avg_pool3d(similarity, SEED_STRIDE // MASK_STRIDE), seeds_BS), dim=1)
        logits = torch.einsum("bcs,bczyx->bszyx", weights, self.features_BCzyx.float())
        logits = logits + torch.einsum("bds,bdzyx->bszyx", F.softplus(affinity) * like_BDS, similarity)
        logits = logits + (bias - F.softplus(affinity))[:, 0, :, None, None, None]
        centre_BS3 = self.seed_positions(seeds_BS) + USUAL_RADIUS * shift.transpose(1, 2)
        radius_BS3 = USUAL_RADIUS * spread.transpose(1, 2).clamp(-2.0, 2.5).exp()
        for axis in range(3):
            places = torch.arange(logits.shape[2 + axis], device=logits.device) * MASK_STRIDE + (MASK_STRIDE - 1) / 2
            distance = (places - centre_BS3[..., axis, None]) / radius_BS3[..., axis, None]
            logits = logits - 0.5 * distance.square().unflatten(2, [-1 if a == axis else 1 for a in range(3)])
        return logits


def _at(maps_BKzyx: Tensor, seeds_BS: Tensor) -> Tensor:
    """The channels at flat indices, (B, K, S)."""
    return maps_BKzyx.flatten(2).gather(2, seeds_BS[:, None].expand(-1, maps_BKzyx.shape[1], -1))


class ProposalHead(nn.Module):
    """Tokens and the decoder's features at strides 8 and 4 -> ``ProposalMaps``."""

    def __init__(self, token_channels: int, channels4: int, channels8: int) -> None:
        super().__init__()
        self.from16 = nn.Conv3d(token_channels, COARSE_CHANNELS, 1)
        self.from8 = nn.Conv3d(channels8, COARSE_CHANNELS, 1)
        self.from4 = nn.Conv3d(channels4, COARSE_CHANNELS, 2, stride=2)
        self.coarse = ConvBlock(COARSE_CHANNELS)
        kernel_numbers = MASK_CHANNELS + 1 + 1 + 3 + 3
        last = nn.Conv3d(64, kernel_numbers, 1)
        with torch.no_grad():  # at first a mask is what looks like its seed, near to it
            last.weight.mul_(0.3)
            last.bias.zero_()  # type: ignore[union-attr]
            last.bias[MASK_CHANNELS], last.bias[MASK_CHANNELS + 1] = 1.0, 4.0  # type: ignore[index]
        self.kernels = nn.Sequential(nn.Conv3d(COARSE_CHANNELS, 64, 1), nn.SiLU(), last)
        self.quality = nn.Sequential(nn.Conv3d(COARSE_CHANNELS, 32, 1), nn.SiLU(), nn.Conv3d(32, 1, 1))
        self.fine4 = nn.Conv3d(channels4, MASK_CHANNELS, 1)
        self.fine8 = nn.Conv3d(COARSE_CHANNELS, MASK_CHANNELS, 1)
        self.mix = nn.Conv3d(MASK_CHANNELS, MASK_CHANNELS, 3, padding=1)

    def forward(self, tokens16: Tensor, features8: Tensor, features4: Tensor, similarity4: Tensor) -> ProposalMaps:
        spread16 = F.interpolate(self.from16(tokens16), scale_factor=2.0, mode="nearest")
        x8 = self.coarse(F.silu(spread16 + self.from8(features8) + self.from4(features4)))
        spread8 = F.interpolate(self.fine8(x8), scale_factor=2.0, mode="nearest")
        x4 = self.mix(F.silu(self.fine4(features4) + spread8))
        return ProposalMaps(self.quality(x8)[:, 0].float(), self.kernels(x8), x4, similarity4)


def local_maxima(maps: ProposalMaps, most: int, allowed_N: Tensor, least_quality: float) -> Tensor:
    """The seeds of the first crop that promise no less than any of their 26 neighbours, flat indices, best first.

    Seeds that are not allowed (N bool, flat) or promise less than ``least_quality`` are left out.
    """
    quality_zyx = maps.quality_Bzyx[0].sigmoid() * allowed_N.view(maps.quality_Bzyx.shape[1:])
    highest_zyx = F.max_pool3d(quality_zyx[None, None], 3, stride=1, padding=1)[0, 0]
    peaks_N = torch.where(quality_zyx >= highest_zyx, quality_zyx, 0.0).flatten()
    order_N = peaks_N.argsort(descending=True, stable=True)[:most]
    return order_N[peaks_N[order_N] >= least_quality]


def pick_seeds(
    maps: ProposalMaps, most: int, allowed_N: Tensor, least_quality: float = 0.05, overlap: float = 0.5
) -> Tuple[Tensor, Tensor]:
    """The best seeds of the first crop whose coarse masks differ.

    The best seed is taken, then the best one whose mask overlaps (IoU) with none taken by more than ``overlap``, and so
    on; seeds that are not allowed (N bool, flat) or promise less than ``least_quality`` are not looked at.

    Returns:
        seeds_S: flat indices, best first; coarse logits (S, z, y, x).
    """
    quality_N = maps.quality_Bzyx[0].flatten().sigmoid() * allowed_N
    order_N = quality_N.argsort(descending=True, stable=True)
    order_N = order_N[quality_N[order_N] >= least_quality][: 16 * most]
    size = maps.features_BCzyx.shape[2:]
    none = torch.zeros((0, *size), device=order_N.device)
    logits_Nzyx = maps.coarse_logits(order_N[None])[0] if len(order_N) else none
    foreground_NV = (logits_Nzyx > 0).flatten(1).float()
    shared_NN = foreground_NV @ foreground_NV.T
    areas_N = foreground_NV.sum(1)
    kept = _distinct(
        (shared_NN / (areas_N[:, None] + areas_N - shared_NN).clamp_min(1)).tolist(), areas_N.tolist(), most, overlap
    )
    return order_N[kept], logits_Nzyx[kept]


def _distinct(iou_NN: Sequence[Sequence[float]], areas: Sequence[float], most: int, overlap: float) -> Sequence[int]:
    kept: List[int] = []
    for n, area in enumerate(areas):
        if len(kept) < most and area > 0 and all(iou_NN[n][k] <= overlap for k in kept):
            kept.append(n)
    return kept
