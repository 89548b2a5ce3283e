"""The image encoder of SAM-Med3D and FastSAM3D: a plain 3D vision transformer and a convolutional neck.

Shape legend: B batch, Z Y X voxels, z y x tokens, N = z * y * x, H heads, D channels a head, C channels. The spatial
axes are named in the order in which they lie in memory, whatever anatomical axes they hold.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn

from . import int8
from .attention import attend, sparse_attention
from .sam_config import VitConfig
from .sam_layers import Conv3dLast, MlpBlock, PatchConv3d
from .sam_position_bias import Tables, all_rows, padded_window_bias, position_bias


class ImageEncoder(nn.Module):
    """Patches, learned absolute positions, transformer blocks, neck."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        grid = config.grid_size
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, config.width))
        self.blocks = nn.ModuleList(Block(config, kind) for kind in config.blocks)
        self.neck = nn.Sequential(
            PatchConv3d(config.width, config.out_width, size=1, bias=False),
            nn.LayerNorm(config.out_width, eps=1e-6),
            Conv3dLast(config.out_width, config.out_width, kernel_size=3, padding=1, bias=False),
            nn.LayerNorm(config.out_width, eps=1e-6),
        )

    def forward(self, crop_B1ZYX: Tensor) -> Tensor:
        """(B, 1, Z, Y, X) -> (B, out_width, z, y, x)."""
        x_BzyxC = self.patch_embed(crop_B1ZYX) + self.pos_embed
        for block in self.blocks:
            x_BzyxC = block(x_BzyxC)
        return self.neck(x_BzyxC).movedim(-1, 1)


class PatchEmbed(nn.Module):
    """One token for every patch: (B, 1, Z, Y, X) -> (B, z, y, x, C)."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = PatchConv3d(1, config.width, size=config.patch_size)

    def forward(self, crop_B1ZYX: Tensor) -> Tensor:
        return self.proj(crop_B1ZYX.movedim(1, -1))


class Block(nn.Module):
    """A transformer block, wired as SAM-Med3D's or as FastSAM3D's; of kind "mlp" it has no attention."""

    def __init__(self, config: VitConfig, kind: str) -> None:
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
        self.attn: Optional[RelativeAttention] = None
        if kind != "mlp":
            self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
            self.attn = RelativeAttention(config, config.window_size if kind == "window" else config.grid_size)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MlpBlock(config.width, config.mlp_width, nn.GELU())

    def forward(self, x_BzyxC: Tensor) -> Tensor:
        if self.attn is not None:
            x_BzyxC = x_BzyxC + self.attn(self.norm1(x_BzyxC))
        normed_BzyxC = self.norm2(x_BzyxC)
        return (x_BzyxC if self.norm_before_residual else normed_BzyxC) + self.mlp(normed_BzyxC)


class RelativeAttention(nn.Module):
    """Self-attention of all tokens with the published position bias.

    With a window larger than the grid it is what the published code computes on the zero-padded window, exactly, at
    the cost of one key beyond the real ones (see ``sam_position_bias``); such a window is always dense.
    """

    def __init__(self, config: VitConfig, window_size: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.grid_size = config.grid_size
        self.is_padded = window_size > config.grid_size
        self.pattern = config.attention
        self.qkv = int8.Linear(config.width, 3 * config.width)
        self.proj = int8.Linear(config.width, config.width)
        table = (2 * window_size - 1, config.width // config.heads)
        self.rel_pos_d = nn.Parameter(torch.zeros(table))
        self.rel_pos_h = nn.Parameter(torch.zeros(table))
        self.rel_pos_w = nn.Parameter(torch.zeros(table))
        self._rows_DS: Optional[Tensor] = None

    def _tables(self) -> Tables:
        return Tables(self.rel_pos_d, self.rel_pos_h, self.rel_pos_w, self._rows_DS)

    def keep_rows(self, dtype: torch.dtype) -> None:
        """Keep what the position tables become before every product, in its precision; they must not change after."""
        self._rows_DS = all_rows(self._tables()).detach().to(dtype).contiguous()

    def forward(self, x_BzyxC: Tensor) -> Tensor:
        qkv_BN3HD = self.qkv(x_BzyxC).flatten(1, 3).unflatten(-1, (3, self.heads, -1))
        q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
        tables = self._tables()
        if self.is_padded:
            pad_q_HD, pad_k_HD, pad_v_HD = self.qkv.bias.to(q_BHND.dtype).unflatten(0, (3, self.heads, -1)).unbind(0)
            k_BHMD, v_BHMD = (
                torch.cat([real, pad[:, None].expand(real.shape[0], -1, 1, -1)], dim=2)
                for real, pad in ((k_BHND, pad_k_HD), (v_BHND, pad_v_HD))
            )
            bias = padded_window_bias(q_BHND, pad_q_HD, tables, self.grid_size)
            out_BHND = attend(q_BHND, k_BHMD, v_BHMD, bias, self.pattern.backend)
        else:
            bias = position_bias(q_BHND, tables, self.grid_size)
            out_BHND = sparse_attention(q_BHND, k_BHND, v_BHND, self.pattern, bias_BHNN=bias)
        return self.proj(out_BHND.transpose(1, 2).reshape(x_BzyxC.shape))
