"""The prompt encoder of SAM-Med3D and FastSAM3D: points become tokens, the previous mask becomes a map.

Shape legend: B batch, N points, C channels, Z Y X = 32 voxels of the low-resolution mask, z y x = 8 tokens an edge.
"""

from __future__ import annotations

import math
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from .sam_config import Sam3DConfig
from .sam_layers import PatchConv3d


class PromptEncoder(nn.Module):
    """Points with labels and the previous mask's logits to what the mask decoder reads."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        width, hidden = config.encoder.out_width, config.decoder.mask_channels
        self.grid_size = config.encoder.grid_size
        self.crop_size = config.encoder.grid_size * config.encoder.patch_size
        self.pe_layer = PositionCode(width // 3)
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, width), nn.Embedding(1, width)])
        self.not_a_point_embed = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            PatchConv3d(1, hidden // 4, size=2),
            nn.LayerNorm(hidden // 4, eps=1e-6),
            nn.GELU(),
            PatchConv3d(hidden // 4, hidden, size=2),
            nn.LayerNorm(hidden, eps=1e-6),
            nn.GELU(),
            PatchConv3d(hidden, width, size=1),
        )

    def forward(
        self, points_BN3: Tensor, labels_BN: Tensor, mask_logits_B1ZYX: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Prompt tokens (B, N + 1, C), or (B, 0, C) without points, and a map that broadcasts to (B, z, y, x, C)."""
        if mask_logits_B1ZYX is None:
            map_BzyxC = self.no_mask_embed.weight.view(1, 1, 1, 1, -1)
        else:
            map_BzyxC = self.mask_downscaling(mask_logits_B1ZYX.movedim(1, -1))
        return self._embed_points(points_BN3, labels_BN), map_BzyxC

    def grid_code(self) -> Tensor:
        """(z, y, x, C): the positional code of the token grid; its first two axes are swapped against the points'."""
        centres = (torch.arange(self.grid_size, device=self.no_mask_embed.weight.device) + 0.5) / self.grid_size
        a, b, c = torch.meshgrid(centres, centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([b, a, c], dim=-1))

    def _embed_points(self, points_BN3: Tensor, labels_BN: Tensor) -> Tensor:
        """A token a point, and after them one that stands for no point, as if no box were there to follow."""
        batch, count = labels_BN.shape
        no_point_11C = self.not_a_point_embed.weight[None]
        if count == 0:
            return no_point_11C.new_empty(batch, 0, no_point_11C.shape[-1])
        code_BNC = self.pe_layer((points_BN3.float() + 0.5) / self.crop_size)
        negative_1C, positive_1C = self.point_embeddings.parameters()
        labels_BN1 = labels_BN[..., None]
        tokens_BNC = code_BNC + torch.where(labels_BN1 == 1, positive_1C, negative_1C)
        tokens_BNC = torch.where(labels_BN1 == -1, no_point_11C, tokens_BNC)
        return torch.cat([tokens_BNC, no_point_11C.expand(batch, 1, -1)], dim=1)


class PositionCode(nn.Module):
    """Random Fourier features of positions in 0..1: [sin, cos, sin] of 2 pi (2 c - 1) G."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, frequencies))

    def forward(self, positions: Tensor) -> Tensor:
        """(..., 3) -> (..., 3 * frequencies); in fp32, since half precision would move a point by half a voxel."""
        with torch.autocast(positions.device.type, enabled=False):
            phase = 2 * math.pi * ((2 * positions - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([phase.sin(), phase.cos(), phase.sin()], dim=-1)
