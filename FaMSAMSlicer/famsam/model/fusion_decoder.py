"""The default model's decoder: prompt maps and prompt tokens, fused with the stem's features at four scales.

The fusion of transformer tokens with finer convolutional features follows the idea of Med-FastSAM's multi-scale
fusion decoder (Luo et al. 2024). Every source is projected by a 1x1x1 convolution and added, which costs a third of
concatenating before a 3x3x3 one.

Shape legend: B batch, N prompts, C channels, K maps, M masks, z y x voxels of the scale at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import int8, prompt_maps
from .attention import AttentionPattern
from .famsam_encoder import ConvBlock, TransformerBlock, activated, added

MAPS_STRIDE2 = 7
"""Ball and intensity maps of positive and negative clicks, previous mask, whether there is one, box."""
FOLDED_MAPS = 16
"""Channels that the stride-2 maps become at stride 4."""
MAPS_STRIDE4 = FOLDED_MAPS + 4
"""With geodesic and learned similarity maps of positive and negative clicks."""
FAR_REACHING_MAPS = 4
"""At stride 4, too: same-region and distance maps of positive and negative clicks."""
NEWEST_MAPS = 2
"""At stride 2 (balls) and at stride 4 (geodesic maps): the newest prompt, if it is a positive or a negative click."""
DISTANCE_REACH = 8.0
"""Of the distance maps, in stride-4 voxels."""
SIMILARITY_CHANNELS = 16


NEAR_COSTS = ((prompt_maps.NEAR_AND_ALIKE, 8.0),)
FAR_REACHING_COSTS = (*NEAR_COSTS, (prompt_maps.SAME_REGION, 4.0))
"""What geodesic paths cost, and the distance at which their map has fallen to 1 / e."""


@dataclass
class DecoderInput:
    """What the decoder reads of a crop, all of it independent of the prompts."""

    features16: Tensor
    """(B, C, 8, 8, 8): the encoder's tokens in the decoder's channels."""
    features8: Tensor
    """(B, C, 16, 16, 16)."""
    features4: Tensor
    """(B, C, 32, 32, 32)."""
    detail: Tensor
    """(B, C, 32, 32, 32): stride-2 features folded into stride-4 channels."""
    similarity: Tensor
    """(B, 16, 32, 32, 32): unit vectors whose dot product tells how alike two places look."""
    image2: Tensor
    """(B, 64, 64, 64): the normalised crop averaged to stride 2, then smoothed over 3x3x3."""
    path_costs4: Tensor
    """(B, V, 3, 32, 32, 32): what geodesic paths of each kind cost along each axis at stride 4."""

    def __post_init__(self) -> None:
        self.paths = prompt_maps.PathMemory()  # no field: copies for other prompts, or of other crops, have their own


class FusionDecoder(nn.Module):
    """Prompts and features -> mask logits at stride 2 and the predicted IoU of each mask.

    Nothing but the maps and the logits is ever computed at stride 2: eight neighbouring stride-2 voxels are channels of
    one stride-4 voxel, which keeps a CPU at arithmetic instead of memory traffic.
    """

    def __init__(
        self,
        stem_channels: Sequence[int],
        token_channels: int,
        channels: Sequence[int],
        heads: int,
        patterns: Sequence[AttentionPattern],
        mask_count: int,
        fusion: bool = True,
        far_reaching: bool = False,
        normed_position: bool = False,
        centred: bool = False,
        residual: bool = False,
        newest: bool = False,
    ) -> None:
        super().__init__()
        c4, c8, c16 = channels
        _, s4, s8, detail = stem_channels
        more = NEWEST_MAPS if newest else 0
        maps4 = MAPS_STRIDE4 + (FAR_REACHING_MAPS if far_reaching else 0) + more
        self.newest = newest
        self.mask_count = mask_count
        self.remembers = True
        self.costs = FAR_REACHING_COSTS if far_reaching else NEAR_COSTS
        self.similarity4 = nn.Conv3d(s4, SIMILARITY_CHANNELS, 1)
        self.similarity8 = nn.Conv3d(s8, SIMILARITY_CHANNELS, 1)
        self.similarity_scale = nn.Parameter(torch.tensor(5.0))
        self.fold = nn.Conv3d(MAPS_STRIDE2 + more, FOLDED_MAPS + c4, 2, stride=2)
        self.maps4 = int8.Conv3d(maps4, c4, 3, padding=1)
        self.maps8 = int8.Conv3d(maps4, c8, 3, padding=1)
        self.maps16 = nn.Conv3d(maps4, c16, 3, padding=1)
        self.features4 = nn.Conv3d(s4, c4, 1) if fusion else Nothing()
        self.features8 = nn.Conv3d(s8, c8, 1) if fusion else Nothing()
        self.features16 = nn.Conv3d(token_channels, c16, 1)
        self.down4 = nn.Conv3d(c4, c8, 2, stride=2)
        self.first8 = ConvBlock(c8)
        self.down8 = nn.Conv3d(c8, c16, 2, stride=2)
        self.blocks16 = nn.ModuleList(
            TransformerBlock(c16, heads, pattern, 2.0, normed_position, centred)
            for pattern in patterns
        )
        self.up8 = nn.ConvTranspose3d(c16, c8, 2, stride=2)
        self.block8 = ConvBlock(c8)
        self.up4 = nn.ConvTranspose3d(c8, c4, 2, stride=2)
        self.mix4 = int8.Conv3d(c4, c4, 3, padding=1, bias=False)
        self.norm4 = nn.GroupNorm(c4 // 8, c4)
        self.detail = nn.Conv3d(detail, c4, 1) if fusion else Nothing()
        self.fine = ConvBlock(c4)
        self.masks = nn.Conv3d(c4, 8 * mask_count, 1)
        self.quality = nn.Sequential(nn.Linear(c16 + c8 + c4, 64), nn.SiLU(), nn.Linear(64, mask_count))
        nn.init.constant_(self.masks.bias, -2.0)  # type: ignore[arg-type]
        self.kept_share = nn.Parameter(torch.tensor(0.5)) if residual else None

    def prepare(self, crop_B1ZYX: Tensor, tokens: Tensor, detail: Tensor, f4: Tensor, f8: Tensor) -> DecoderInput:
        """Everything that prompts do not change, computed once a crop."""
        image2 = halved(crop_B1ZYX.float())
        image4 = halved(image2)[:, 0]
        coarse_similarity = F.interpolate(self.similarity8(f8), scale_factor=2.0, mode="nearest")
        return DecoderInput(
            features16=self.features16(tokens),
            features8=self.features8(f8),
            features4=self.features4(f4),
            detail=self.detail(detail),
            similarity=F.normalize((self.similarity4(f4) + coarse_similarity).float(), dim=1),
            image2=smoothed(image2)[:, 0],
            path_costs4=torch.stack([prompt_maps.path_costs(image4, cost) for cost, _ in self.costs], dim=1),
        )

    def forward(
        self,
        given: DecoderInput,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits_B1zyx: Optional[Tensor],
        chosen: slice = slice(None),
    ) -> Tuple[Tensor, Tensor]:
        """Decode one set of prompts a batch item.

        Args:
            given: what ``prepare`` returned.
            points_BN3: crop voxel indices (z, y, x); labels_BN: see ``PromptableModel.decode``.
            mask_logits_B1zyx: previous logits at stride 2, or None.
            chosen: which of the masks to compute.

        Returns:
            logits at stride 2 (B, M, z, y, x), predicted IoU in 0..1 (B, M).
        """
        dtype = given.features4.dtype
        previous_B1zyx = None if mask_logits_B1zyx is None else mask_logits_B1zyx.float().clamp(-6, 6)
        previous8 = None if previous_B1zyx is None else _fold(previous_B1zyx)
        maps2 = self._maps_stride2(given.image2, points_BN3, labels_BN, previous8)
        folded_BzyxK, fine_maps = self._folded(maps2, dtype)
        points4 = points_BN3 / 4 - 0.375
        clicks_KBN = torch.stack(prompt_maps.point_masks(labels_BN))
        newest_KBN = torch.stack(prompt_maps.point_masks(only_newest(labels_BN))) if self.newest else None
        paths_VKB, newest_paths_KB = self._geodesic_distances(given, points4, clicks_KBN, newest_KBN)
        geodesic = [prompt_maps.faded(path_KB / scale) for path_KB, (_, scale) in zip(paths_VKB, self.costs)]
        spread = [geodesic[0], self._similarity_maps(given.similarity, points4, clicks_KBN), *geodesic[1:]]
        if newest_paths_KB is not None:
            spread.append(prompt_maps.faded(newest_paths_KB / self.costs[0][1]))
        if len(self.costs) > 1:
            size = tuple(given.similarity.shape[2:])
            near = [prompt_maps.distance_map(points4, clicks_BN, size, DISTANCE_REACH) for clicks_BN in clicks_KBN]
            spread.append(torch.stack(near))
        spread_BzyxK = torch.cat(spread).movedim(0, -1).to(dtype)
        maps4 = torch.cat([folded_BzyxK, spread_BzyxK], dim=-1).movedim(-1, 1)
        maps8 = channels_last(halved(maps4))

        x4 = activated(added(self.maps4(maps4), given.features4))
        x8 = self.first8(added(added(self.maps8(maps8), given.features8), self.down4(x4)))
        x16 = given.features16 + self.maps16(channels_last(halved(maps8))) + self.down8(x8)
        for block in self.blocks16:
            x16 = block(x16)
        x8 = self.block8(added_doubled(x8, x16, self.up8))
        x4 = activated(self.norm4(self.mix4(added_doubled(x4, x8, self.up4))))
        fine = self.fine(added(added(x4, given.detail), fine_maps))

        start, stop, _ = chosen.indices(self.mask_count)
        folded_B8zyx = F.conv3d(fine, self.masks.weight[: 8 * stop], self.masks.bias[: 8 * stop])  # type: ignore[index]
        logits_BMzyx = _unfold(folded_B8zyx[:, 8 * start :])
        # Pooled over the first mask whichever are asked for: a mask's quality does not depend on the choice.
        first_B1zyx = folded_B8zyx[:, :8].detach().float().mean(1, keepdim=True)
        if self.kept_share is not None and previous_B1zyx is not None:
            logits_BMzyx = logits_BMzyx + self.kept_share * previous_B1zyx
            first_B1zyx = first_B1zyx + self.kept_share.detach() * halved(previous_B1zyx)
        pooled = _foreground_means((fine, x8, x16), first_B1zyx)
        return logits_BMzyx, self.quality(pooled).sigmoid()[:, chosen]

    def _geodesic_distances(
        self, given: DecoderInput, points_BN3: Tensor, chosen_KBN: Tensor, newest_KBN: Optional[Tensor]
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """``prompt_maps.geodesic_distance`` from the chosen clicks, and of the first kind from the newest click.

        For one crop on a CPU, what its next click needs is kept.
        """
        costs_VB3zyx = given.path_costs4.transpose(0, 1)
        newest: Optional[Tensor] = None
        if not self.remembers or len(points_BN3) > 1 or points_BN3.is_cuda or torch.is_grad_enabled():
            if newest_KBN is not None and points_BN3.is_cuda and not torch.is_grad_enabled():
                # Together, since a GPU takes as long to begin as to compute.
                paths = prompt_maps.geodesic_distance(costs_VB3zyx, points_BN3, torch.cat([chosen_KBN, newest_KBN]))
                return paths[:, : len(chosen_KBN)], paths[0, len(chosen_KBN) :]
            if newest_KBN is not None:
                newest = prompt_maps.geodesic_distance(costs_VB3zyx[:1], points_BN3, newest_KBN)[0]
            return prompt_maps.geodesic_distance(costs_VB3zyx, points_BN3, chosen_KBN), newest
        if newest_KBN is not None:  # first, since the paths of all clicks go on from its
            newest = given.paths.distance(costs_VB3zyx, points_BN3, newest_KBN)[0]
        return given.paths.distance(costs_VB3zyx, points_BN3, chosen_KBN), newest

    def _maps_stride2(
        self, smooth2_BZYX: Tensor, points_BN3: Tensor, labels_BN: Tensor, previous8_B8zyx: Optional[Tensor]
    ) -> List[Optional[Tensor]]:
        """The inputs of ``fold``, each of them folded already (B, 8, z, y, x), z y x at stride 4; None for one that is
        known to be 0 (on a CPU, where a look at the prompts costs nothing)."""
        points, size = points_BN3 / 2 - 0.25, tuple(smooth2_BZYX.shape[1:])
        maps: List[Optional[Tensor]] = []

        def add(some_B: Tensor, make: Callable[[], Tensor]) -> None:
            known_0 = not some_B.is_cuda and bool(maps) and not bool(some_B.any())  # the first one always is there
            maps.append(None if known_0 else _fold(make()[:, None]))

        for chosen in prompt_maps.point_masks(labels_BN):
            add(chosen, partial(prompt_maps.ball_map, points, chosen, size))
            add(chosen, partial(prompt_maps.intensity_likeness, smooth2_BZYX, points, chosen))
        if previous8_B8zyx is None:
            maps += [None, None]
        else:
            maps += [previous8_B8zyx / 6, torch.ones_like(previous8_B8zyx)]
        add(labels_BN == prompt_maps.BOX_LOWER, partial(prompt_maps.box_map, points, labels_BN, size))
        if self.newest:
            for chosen in prompt_maps.point_masks(only_newest(labels_BN)):
                add(chosen, partial(prompt_maps.ball_map, points, chosen, size))
        return maps

    def _folded(self, maps: Sequence[Optional[Tensor]], dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
        """``fold`` of maps that are folded already, as the product of matrices that it is then.

        Returns:
            the maps (B, z, y, x, FOLDED_MAPS) and the features (B, C, z, y, x) that it makes of them.
        """
        some = [(weight, folded) for weight, folded in zip(self.fold.weight.unbind(1), maps) if folded is not None]
        planes_BKzyx = torch.cat([folded.to(dtype) for _, folded in some], dim=1)
        planes_BVK = planes_BKzyx.flatten(2).transpose(1, 2)
        weight_OK, bias_O = torch.cat([weight.flatten(1) for weight, _ in some], dim=1), self.fold.bias
        if len(planes_BVK) == 1:  # only so a CPU multiplies the planes as they lie
            made_BVO = F.linear(planes_BVK[0], weight_OK, bias_O)[None]
        else:
            made_BVO = F.linear(planes_BVK, weight_OK, bias_O)
        maps_BzyxK, features_BzyxC = (
            part.contiguous().unflatten(1, planes_BKzyx.shape[2:])  # sums with a part of a tensor are slow
            for part in (made_BVO[..., :FOLDED_MAPS], made_BVO[..., FOLDED_MAPS:])
        )
        return maps_BzyxK, features_BzyxC.movedim(-1, 1)

    def _similarity_maps(self, similarity_BDzyx: Tensor, points_BN3: Tensor, chosen_KBN: Tensor) -> Tensor:
        """exp(-s (1 - cosine)) to the most similar of the chosen clicks, (K, B, z, y, x)."""
        at_clicks_BND = prompt_maps.gather_points(similarity_BDzyx, points_BN3)
        if not chosen_KBN.is_cuda:
            some_N = chosen_KBN.any(dim=0).any(dim=0)
            at_clicks_BND, chosen_KBN = at_clicks_BND[:, some_N], chosen_KBN[:, :, some_N]
        with torch.autocast(similarity_BDzyx.device.type, enabled=False):  # casts take longer than the product
            cosine_BNzyx = torch.einsum("bnd,bdzyx->bnzyx", at_clicks_BND, similarity_BDzyx).float()
        maps = []
        for which_BN in chosen_KBN:
            if not which_BN.is_cuda and not bool(which_BN.any()):
                maps.append(torch.zeros_like(similarity_BDzyx[:, 0], dtype=torch.float32))
                continue
            best = cosine_BNzyx.masked_fill(~which_BN[:, :, None, None, None], -1.0).amax(dim=1)
            missing = ~which_BN.any(dim=1)[:, None, None, None]
            maps.append(torch.exp(self.similarity_scale * (best - 1.0)).masked_fill(missing, 0.0))
        return torch.stack(maps)


class Nothing(nn.Module):
    """A source that adds nothing: (B, C, z, y, x) -> zeros (B, 1, 1, 1, 1). The ablation of the fusion puts it in."""

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        return x_BCzyx.new_zeros(len(x_BCzyx), 1, 1, 1, 1)


def only_newest(labels_BN: Tensor) -> Tensor:
    """The labels with all prompts but the last made padding."""
    return F.pad(labels_BN[:, -1:], (labels_BN.shape[1] - 1, 0), value=-1)


def channels_last(x_BCZYX: Tensor) -> Tensor:
    """In the layout that convolutions want; in another one they take twice the time, and sums of two ten times.

    Of a single item that is already so, the stride to the next may still tell convolutions that it is not.
    """
    last_BZYXC = x_BCZYX.movedim(1, -1)
    return last_BZYXC.flatten().view(last_BZYXC.shape).movedim(-1, 1)


def added_doubled(x_BCZYX: Tensor, coarse_BDzyx: Tensor, layer: nn.ConvTranspose3d) -> Tensor:
    """``x`` and what a transposed 2x2x2 convolution of stride 2 makes of features half as fine; see ``added``.

    On a CPU as the product of matrices that it is, since the operator is slow and its result's layout is not ``x``'s.
    """
    if x_BCZYX.device.type != "cpu":
        return added(x_BCZYX, layer(coarse_BDzyx))
    weight = layer.weight.permute(2, 3, 4, 1, 0).flatten(0, 3)
    assert layer.bias is not None
    eight_BzyxK = F.linear(coarse_BDzyx.movedim(1, -1), weight, layer.bias.repeat(8))
    fine_BzZyYxXC = eight_BzyxK.unflatten(-1, (2, 2, 2, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    sums = added(x_BCZYX.movedim(1, -1).reshape(fine_BzZyYxXC.shape), fine_BzZyYxXC)
    return sums.view(*x_BCZYX.movedim(1, -1).shape).movedim(-1, 1)


def halved(x_BCZYX: Tensor) -> Tensor:
    """Mean over 2x2x2 voxels; on a CPU several times faster than the pooling operator."""
    for axis in (2, 3, 4):
        pairs = x_BCZYX.unflatten(axis, (-1, 2))
        x_BCZYX = pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1)
    return x_BCZYX * 0.125


def smoothed(x_BCZYX: Tensor) -> Tensor:
    """Mean over the 3x3x3 voxels around each one, of fewer at the border."""
    for axis in (2, 3, 4):
        last = x_BCZYX.shape[axis] - 1
        total, count = x_BCZYX.clone(), x_BCZYX.new_full((last + 1,), 3.0)
        total.narrow(axis, 1, last).add_(x_BCZYX.narrow(axis, 0, last))
        total.narrow(axis, 0, last).add_(x_BCZYX.narrow(axis, 1, last))
        for border in (0, last):
            count[border].fill_(2.0)
        x_BCZYX = total.div_(count.view([-1 if a == axis else 1 for a in range(5)]))
    return x_BCZYX


def _unfold(folded: Tensor) -> Tensor:
    """(B, 8 M, z, y, x) -> (B, M, 2z, 2y, 2x): channels become the eight stride-2 voxels of a stride-4 one."""
    return rearrange(folded, "b (m i j l) z y x -> b m (z i) (y j) (x l)", i=2, j=2, l=2)


def _fold(logits: Tensor) -> Tensor:
    """The inverse of ``_unfold``: (B, M, 2z, 2y, 2x) -> (B, 8 M, z, y, x)."""
    return rearrange(logits, "b m (z i) (y j) (x l) -> b (m i j l) z y x", i=2, j=2, l=2)


def _foreground_means(features: Sequence[Tensor], logits_B1zyx: Tensor) -> Tensor:
    """Means of several features over the mask's probability, the last ones' first, (B, C + C' + ...).

    Args:
        features: (B, C, z, y, x) at the logits' scale, (B, C', z/2, y/2, x/2), and so on.
        logits_B1zyx: the mask's, without gradients.
    """
    share = logits_B1zyx.sigmoid()
    means = []
    for number, features_BCzyx in enumerate(features):
        if number:
            share = halved(share)
        weights_Bzyx = share[:, 0].clamp_min(1e-4)
        weights_Bzyx = weights_Bzyx / weights_Bzyx.sum((1, 2, 3), keepdim=True)
        weights_Bz1M = weights_Bzyx.flatten(2)[:, :, None]
        features_BzMC = features_BCzyx.movedim(1, -1).flatten(2, 3)
        # Plane by plane: one long sum a channel is slow in bf16, and less exact.
        means.append((weights_Bz1M.to(features_BzMC.dtype) @ features_BzMC)[:, :, 0].float().sum(1))
    return torch.cat(means[::-1], dim=1)
