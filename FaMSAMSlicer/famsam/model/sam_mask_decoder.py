"""The mask decoder of SAM-Med3D and FastSAM3D: image and prompt tokens to low-resolution logits and predicted IoU.

Shape legend: B batch, C channels, N = z * y * x image tokens, Q prompt tokens, M masks, Z Y X = 32 voxels of
the logits.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor, nn

from .sam_config import Sam3DConfig
from .sam_layers import MlpHead, PatchConvTranspose3d
from .sam_two_way import TwoWayTransformer


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling by four, one hypernetwork for each mask."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        width, decoder = config.encoder.out_width, config.decoder
        masks = decoder.alternatives + 1
        self.transformer = TwoWayTransformer(decoder, width)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(masks, width)
        self.output_upscaling = nn.Sequential(
            PatchConvTranspose3d(width, width // 4, size=2),
            nn.LayerNorm(width // 4, eps=1e-6),
            nn.GELU(),
            PatchConvTranspose3d(width // 4, width // 8, size=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MlpHead(width, width, width // 8, 3) for _ in range(masks))
        self.iou_prediction_head = MlpHead(width, decoder.iou_width, masks, decoder.iou_depth)

    def forward(
        self, image_BzyxC: Tensor, image_code_zyxC: Tensor, prompts_BQC: Tensor, multimask: bool
    ) -> Tuple[Tensor, Tensor]:
        """Returns logits (B, M, Z, Y, X) and predicted IoU (B, M): mask 0 alone, or the alternatives 1 to 3."""
        batch = prompts_BQC.shape[0]
        own_tokens_QC = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens_BQC = torch.cat([own_tokens_QC.expand(batch, -1, -1), prompts_BQC], dim=1)
        image_BNC = image_BzyxC.flatten(1, 3).expand(batch, -1, -1)
        tokens_BQC, image_BNC = self.transformer(image_BNC, image_code_zyxC.flatten(0, 2), tokens_BQC)

        masks = range(1, self.mask_tokens.num_embeddings) if multimask else range(1)
        features_BZYXC = self.output_upscaling(image_BNC.unflatten(1, image_BzyxC.shape[1:4]))
        weights_BMC = torch.stack([self.output_hypernetworks_mlps[m](tokens_BQC[:, 1 + m]) for m in masks], dim=1)
        logits_BMV = weights_BMC @ features_BZYXC.flatten(1, 3).transpose(1, 2)
        iou_BM = self.iou_prediction_head(tokens_BQC[:, 0])[:, masks.start : masks.stop]
        return logits_BMV.unflatten(2, features_BZYXC.shape[1:4]), iou_BM
