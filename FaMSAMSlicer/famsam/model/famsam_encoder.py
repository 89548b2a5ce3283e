"""The default model's encoder: a light convolutional stem feeding a 6-layer ViT-Tiny with 3D sparse flash attention.

The stem is the convolutional assistance of Wu et al. 2026 ("Accelerating vision foundation model for efficient medical
image segmentation"): it shrinks the crop before the transformer sees it and keeps the fine features for the decoder.

Shape legend: B batch, C channels, Z Y X crop voxels, N tokens (raster order), H heads, D channels a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import ConfigError
from . import int8
from .attention import AttentionPattern, sparse_attention

PIECE_VOXELS = 2**16
"""So many voxels at a time pass through the steps of the equalisation."""
RANKING_BINS = 4096
"""Of equal width, of which one is sorted to find the value of a rank."""


@dataclass(frozen=True)
class TokenPausing:
    """How many tokens pause, and when: a trade of quality for speed that needs no training (Wu et al. 2026)."""

    share: float = 0.0
    """Share of the tokens that keep their value through the later blocks: those that the last block before changed
    least. 0: none, and the encoder computes exactly what it would without pausing."""
    after: int = 1
    """Blocks that every token passes."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or self.after < 1:
            raise ConfigError(f"Expected a paused share from 0 to below 1, after 1 block or more, got {self}.")


class ConvBlock(nn.Module):
    """Residual block: two 3x3x3 convolutions with group normalisation before the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = int8.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(channels // 8, channels)
        self.conv2 = int8.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(channels // 8, channels)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        y_BCZYX = activated(self.norm1(self.conv1(x_BCZYX)))
        return activated(added(self.norm2(self.conv2(y_BCZYX)), x_BCZYX))


def activated(x: Tensor) -> Tensor:
    """SiLU; where nothing is learnt, in the place of its input, which must not be needed any more."""
    return F.silu(x, inplace=not x.requires_grad)


def added(x: Tensor, other: Tensor) -> Tensor:
    """The sum; where nothing is learnt, in the place of ``x``, which must not be needed any more."""
    return x + other if x.requires_grad or x.dtype != torch.result_type(x, other) else x.add_(other)


class Stem(nn.Module):
    """The crop to features at strides 4 and 8, stride-2 detail folded into stride-4 channels, and the first tokens."""

    def __init__(self, channels: Sequence[int], token_channels: int) -> None:
        super().__init__()
        stride2, stride4, stride8, detail = channels
        self.conv2 = nn.Conv3d(1, stride2, 3, stride=2, padding=1)
        self.detail = nn.Conv3d(stride2, detail, 2, stride=2)
        self.conv4 = nn.Conv3d(stride2, stride4, 3, stride=2, padding=1, bias=False)
        self.norm4 = nn.GroupNorm(stride4 // 8, stride4)
        self.blocks4 = nn.Sequential(ConvBlock(stride4), ConvBlock(stride4))
        self.conv8 = int8.Conv3d(stride4, stride8, 3, stride=2, padding=1, bias=False)
        self.norm8 = nn.GroupNorm(stride8 // 8, stride8)
        self.blocks8 = nn.Sequential(ConvBlock(stride8), ConvBlock(stride8))
        self.conv16 = int8.Conv3d(stride8, token_channels, 3, stride=2, padding=1)

    def forward(self, crop_B1ZYX: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        f2 = F.relu(halving(self.conv2, crop_B1ZYX), inplace=True)
        f4 = self.blocks4(activated(self.norm4(self.conv4(f2))))
        f8 = self.blocks8(activated(self.norm8(self.conv8(f4))))
        return self.detail(f2), f4, f8, self.conv16(f8)


def halving(layer: nn.Conv3d, crop_B1ZYX: Tensor) -> Tensor:
    """A 3x3x3 convolution of one channel with stride 2: (B, 1, Z, Y, X) of even edges -> (B, C, Z/2, Y/2, X/2).

    The result is channels last, as all later layers want it. With oneDNN, two neighbours along x are taken for two
    channels of one voxel: the same memory, the same sums (the other places of the kernel have weights of 0), in half
    to a third of the time.
    """
    if crop_B1ZYX.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return layer(_channels_last(crop_B1ZYX, 1))
    kernel_OCZYX = F.pad(layer.weight, (1, 2))[:, 0].unflatten(-1, (3, 2)).movedim(-1, 1)
    return F.conv3d(_channels_last(crop_B1ZYX, 2), kernel_OCZYX, layer.bias, stride=(2, 2, 1), padding=1)


def _channels_last(crop_B1ZYX: Tensor, channels: int) -> Tensor:
    """The same memory with the strides of a channels-last tensor, which ``to`` does not give to a single channel.

    What a convolution returns has the layout of what it got. Of more channels, each is every so manieth voxel along x.
    """
    batch, _, depth, height, width = crop_B1ZYX.shape
    strides = (depth * height * width, 1, height * width, width, channels)
    return crop_B1ZYX.contiguous().as_strided((batch, channels, depth, height, width // channels), strides)


class SparseSelfAttention(nn.Module):
    """Multi-head self-attention over the sparse groups of FastSAM3D's eq. 3."""

    def __init__(self, channels: int, heads: int, pattern: AttentionPattern) -> None:
        super().__init__()
        self.heads = heads
        self.pattern = pattern
        self.qkv = int8.Linear(channels, 3 * channels)
        self.proj = int8.Linear(channels, channels)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(tokens_BNC), "b n (t h d) -> t b h n d", t=3, h=self.heads).unbind(0)
        out_BHND = sparse_attention(q, k, v, self.pattern)
        return self.proj(rearrange(out_BHND, "b h n d -> b n (h d)"))


class TransformerBlock(nn.Module):
    """Pre-norm block. A depthwise 3x3x3 convolution gives the tokens their positions, at any crop size, and carries
    information between the sparse groups.

    It should see normalised tokens, too (``normed_position``): else every block multiplies what comes in, and after a
    few blocks the tokens are so large that attention and MLP add nothing to them. And what all tokens have in common
    should not count (``centred``): else training has every block add more of it, until the tokens hardly differ from
    one another after normalisation.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        pattern: AttentionPattern,
        mlp_ratio: float = 4.0,
        normed_position: bool = False,
        centred: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.normed_position, self.centred = normed_position, centred
        self.position = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attention = SparseSelfAttention(channels, heads, pattern)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(int8.Linear(channels, hidden), nn.GELU(), int8.Linear(hidden, channels))

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        x_BCZYX = self._placed(x_BCZYX)
        grid = x_BCZYX.shape[2:]
        tokens = rearrange(x_BCZYX, "b c z y x -> b (z y x) c")
        tokens = tokens + self.attention(self.norm1(self._differences(tokens, tokens)))
        tokens = tokens + self.mlp(self.norm2(self._differences(tokens, tokens)))
        return rearrange(tokens, "b (z y x) c -> b c z y x", z=grid[0], y=grid[1])

    def forward_some(self, x_BCZYX: Tensor, active_BN: Tensor) -> Tensor:
        """The block for some tokens (flat indices) alone; the others keep their values and are not attended to, but
        their neighbours still see them through the convolution."""
        index_BNC = active_BN[..., None].expand(-1, -1, x_BCZYX.shape[1])
        placed = self._placed(x_BCZYX).flatten(2).transpose(1, 2)
        tokens = placed.gather(1, index_BNC)
        tokens = tokens + self.attention(self.norm1(self._differences(tokens, placed)))
        tokens = tokens + self.mlp(self.norm2(self._differences(tokens, placed.scatter(1, index_BNC, tokens))))
        kept = x_BCZYX.flatten(2).transpose(1, 2)
        updated = kept.scatter(1, index_BNC, tokens.to(kept.dtype))
        return updated.transpose(1, 2).unflatten(2, x_BCZYX.shape[2:])

    def _placed(self, x_BCZYX: Tensor) -> Tensor:
        """Tokens that know where they are."""
        if not self.normed_position:
            return x_BCZYX + self.position(x_BCZYX)
        seen_BCZYX = centred(x_BCZYX) if self.centred else x_BCZYX
        length = seen_BCZYX.float().square().mean(1, keepdim=True).add(1e-6).rsqrt()
        return x_BCZYX + self.position((seen_BCZYX * length).to(x_BCZYX.dtype))

    def _differences(self, tokens_BNC: Tensor, all_BNC: Tensor) -> Tensor:
        """Some tokens without what all have in common, if the block is ``centred``."""
        return tokens_BNC - all_BNC.mean(1, keepdim=True) if self.centred else tokens_BNC


def centred(x_BCZYX: Tensor) -> Tensor:
    """Every channel without its mean."""
    return x_BCZYX - x_BCZYX.mean((2, 3, 4), keepdim=True)


class FamsamEncoder(nn.Module):
    """Stem and ViT-Tiny: (B, 1, Z, Y, X) -> tokens at stride 16 and finer features (see ``Stem``)."""

    def __init__(
        self,
        stem_channels: Sequence[int],
        token_channels: int,
        heads: int,
        patterns: Sequence[AttentionPattern],
        mlp_ratio: float,
        normed_position: bool = False,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.centred = centred
        self.stem = Stem(stem_channels, token_channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(token_channels, heads, pattern, mlp_ratio, normed_position, centred)
            for pattern in patterns
        )
        self.norm = nn.GroupNorm(1, token_channels)

    def forward(self, crop_B1ZYX: Tensor, pausing: TokenPausing = TokenPausing()) -> Tuple[Tensor, List[Tensor]]:
        detail, f4, f8, tokens = self.stem(crop_B1ZYX)
        active_BN: Optional[Tensor] = None
        for number, block in enumerate(self.blocks, 1):
            assert isinstance(block, TransformerBlock)
            before, tokens = tokens, block(tokens) if active_BN is None else block.forward_some(tokens, active_BN)
            if pausing.share and number == pausing.after:
                active_BN = changed_most(before, tokens, 1 - pausing.share, block.attention.pattern.dilation)
        return self.norm(centred(tokens) if self.centred else tokens), [detail, f4, f8]


def changed_most(before_BCZYX: Tensor, after_BCZYX: Tensor, share: float, dilation: int) -> Tensor:
    """Flat indices (B, M) of the tokens that a block changed most, relative to their length.

    Of each sparse group (every ``dilation``-th token) equally many are taken, and listed so that attention with the
    same dilation among them alone lets those attend to one another that did before.
    """
    before, after = before_BCZYX.flatten(2).float(), after_BCZYX.flatten(2).float()
    change_BN = (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-6)
    dilation = dilation if change_BN.shape[1] % dilation == 0 else 1
    change_BWR = change_BN.unflatten(1, (-1, dilation))
    count = max(1, math.ceil(share * change_BWR.shape[1]))
    rank_BMR = change_BWR.topk(count, dim=1).indices.sort(dim=1).values
    return (rank_BMR * dilation + torch.arange(dilation, device=rank_BMR.device)).flatten(1)


def contrast_limited_equalisation(
    crop_B1ZYX: Tensor, inside_B1ZYX: Tensor, bins: int = 512, clip_limit: float = 6.0
) -> Tensor:
    """Map intensities by a contrast-limited cumulative histogram (Pizer et al. 1987, one tile) to [-1, 1].

    A monotone map that gives crowded intensities (soft tissue beside air and bone in a CT) more of the range; a bin
    counts for at most ``clip_limit`` times the mean of all bins. Voxels outside the scan get -1.

    Args:
        crop_B1ZYX: raw intensities, (B, 1, Z, Y, X).
        inside_B1ZYX: bool, the same shape: voxels that lie inside the scan.
    """
    out = torch.full_like(crop_B1ZYX, -1.0, memory_format=torch.contiguous_format)
    for crop, inside, target in zip(crop_B1ZYX.contiguous(), inside_B1ZYX.contiguous(), out):
        whole = bool(inside.numpy().all() if inside.device.type == "cpu" else inside.all())  # NumPy is faster there
        values = crop[:, ::2, ::2, ::2].float()
        values = values.flatten() if whole else values[inside[:, ::2, ::2, ::2]]
        if values.numel() < 8:
            values = crop[inside].float()
        count = values.numel()
        if count == 0:
            continue
        low, high = _ranked(values, int(0.001 * (count - 1)), int(0.999 * (count - 1)))
        per_unit = bins / (high - low).clamp_min(1e-30)
        binned = values.sub(low).mul_(per_unit).clamp_(0, bins - 1).int()
        histogram = torch.bincount(binned, minlength=bins).float()
        # A background of one value (padding, skull-stripped) says nothing about tissue: the clip keeps it to one bin.
        limited = histogram.clamp_max(clip_limit * histogram.sum() / bins)
        curve = torch.cat([limited.new_zeros(1), limited.cumsum(0)])
        curve = curve / curve[-1] * 2 - 1
        # Start and slope of a bin in one look at the table, which takes as long as the arithmetic.
        bins_2 = torch.stack([curve[:-1], curve.diff()], dim=1).view(torch.int64)[:, 0]
        for part, within, goal in zip(_pieces(crop), _pieces(inside), _pieces(target)):
            position = part.float().sub(low).mul_(per_unit).clamp_(0, bins - 1e-3)
            start, slope = bins_2.index_select(0, position.int()).view(curve.dtype).view(-1, 2).unbind(1)
            mapped = position.frac_().mul_(slope).add_(start)
            goal.copy_(mapped if whole else torch.where(within, mapped, goal))
    return out


def _ranked(values_N: Tensor, first: int, second: int) -> Tuple[Tensor, Tensor]:
    """Those two of the sorted values, of which a CPU sorts only the ones near by."""
    if values_N.device.type != "cpu":
        return values_N.kthvalue(1 + first).values, values_N.kthvalue(1 + second).values
    low, high = values_N.min(), values_N.max()
    share_N = values_N.sub(low).mul_((RANKING_BINS - 1) / (high - low).clamp_min(1e-30))
    bin_N = share_N.int().clamp_(0, RANKING_BINS - 1)
    up_to = torch.bincount(bin_N, minlength=RANKING_BINS).cumsum(0)
    found = []
    for rank in (first, second):
        among = int((up_to <= rank).sum())
        before = int(up_to[among - 1]) if among else 0
        found.append(values_N[bin_N == among].kthvalue(1 + rank - before).values)
    return found[0], found[1]


def _pieces(x: Tensor) -> Sequence[Tensor]:
    """A contiguous tensor in flat pieces that stay in a CPU's cache; in one piece elsewhere."""
    return x.view(-1).split(PIECE_VOXELS if x.device.type == "cpu" else max(1, x.numel()))
