"""SAM-Med3D and FastSAM3D as promptable models, loadable from the published checkpoints."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from ..errors import PromptError, VolumeError
from .base import Embedding, PromptableModel
from .sam_config import SAM_MED3D, Sam3DConfig
from .sam_mask_decoder import MaskDecoder
from .sam_prompt_encoder import PromptEncoder
from .sam_vit import ImageEncoder

CT_AIR_HU = -500.0
"""A scan that reaches below this holds Hounsfield units."""
CT_CLAMP_HU = 1000.0
"""The published networks were trained on CT clamped to plus and minus this."""


class Sam3D(PromptableModel):
    """A published network with the published parameter names; see ``sam_config`` for the two of them.

    Crops hold the axes as the published code feeds them: x (towards the right), y (anterior), z (superior), at 1.5 mm.
    Without a previous mask ``decode`` uses the learned "no mask" embedding; the published code never does, but starts
    from an all-zero mask, which ``first_mask_logits`` gives.
    """

    crop_axes = "xyz"
    spacing_mm = 1.5
    takes_boxes = False
    fast_on_cpu = ()

    def __init__(self, config: Sam3DConfig = SAM_MED3D) -> None:
        super().__init__()
        self.config = config
        self.name = config.name
        self.crop_size = config.encoder.grid_size * config.encoder.patch_size
        self.mask_size = 4 * config.encoder.grid_size
        self.newest_point_only = config.name == "fastsam3d"
        self.image_encoder = ImageEncoder(config.encoder)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        self.apply(_initialise)

    @staticmethod
    def normalise(crop_B1ZYX: Tensor, inside_B1ZYX: Tensor) -> Tensor:
        """(x - mean) / std, with mean and unbiased std of the voxels above 0, applied to all voxels, padding included.

        CT (anything below -500) is clamped to +-1000 HU first. A crop with fewer than two voxels above 0 takes all
        voxels inside the scan instead, and a constant one is only shifted.
        """
        crops = crop_B1ZYX.float()
        return torch.stack([_normalise(crop, inside) for crop, inside in zip(crops, inside_B1ZYX)])

    def encode(self, crop_B1ZYX: Tensor) -> Embedding:
        """See ``PromptableModel.encode``. Raises ``VolumeError`` for another shape."""
        expected = (1, self.crop_size, self.crop_size, self.crop_size)
        if crop_B1ZYX.shape[1:] != expected:
            raise VolumeError(f"A crop for {self.name} must be (B, {expected}), got {tuple(crop_B1ZYX.shape)}.")
        return Embedding(self.image_encoder(crop_B1ZYX))

    def decode(
        self,
        embedding: Embedding,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits_B1zyx: Optional[Tensor] = None,
        multimask: bool = False,
    ) -> Tuple[Tensor, Tensor]:
        """See ``PromptableModel.decode``; the logits are 32 voxels an edge. One embedding serves a batch of prompts.

        Raises ``PromptError`` for shapes that do not fit each other and, except on a GPU, which a look at them would
        make wait, for labels other than 1, 0 and -1.
        """
        self._check_prompts(embedding, points_BN3, labels_BN, mask_logits_B1zyx)
        prompts_BQC, map_BzyxC = self.prompt_encoder(points_BN3, labels_BN, mask_logits_B1zyx)
        image_BzyxC = embedding.tokens.movedim(1, -1) + map_BzyxC
        logits, iou = self.mask_decoder(image_BzyxC, self.prompt_encoder.grid_code(), prompts_BQC, multimask)
        return logits, iou

    def first_mask_logits(self, batch: int = 1) -> Tensor:
        """(batch, 1, 32, 32, 32) zeros: what the published code feeds through its mask branch at the first click."""
        edge = self.mask_size
        return torch.zeros(batch, 1, edge, edge, edge, device=self.device)

    def _check_prompts(
        self, embedding: Embedding, points_BN3: Tensor, labels_BN: Tensor, mask_logits_B1zyx: Optional[Tensor]
    ) -> None:
        batch, edge = labels_BN.shape[0], self.mask_size
        if labels_BN.ndim != 2 or points_BN3.shape != (*labels_BN.shape, 3):
            raise PromptError(
                "Points must be (B, N, 3) and labels (B, N), "
                f"got {tuple(points_BN3.shape)} and {tuple(labels_BN.shape)}."
            )
        if mask_logits_B1zyx is not None and mask_logits_B1zyx.shape != (batch, 1, edge, edge, edge):
            raise PromptError(
                f"The previous logits must be {(batch, 1, edge, edge, edge)}, got {tuple(mask_logits_B1zyx.shape)}."
            )
        if embedding.tokens.shape[0] not in (1, batch):
            raise PromptError(f"An embedding of {embedding.tokens.shape[0]} crops cannot serve prompts for {batch}.")
        if labels_BN.numel() and not labels_BN.is_cuda and not -1 <= int(labels_BN.min()) <= int(labels_BN.max()) <= 1:
            raise PromptError(f"{self.name} takes labels 1, 0 and -1 only; it was never trained with boxes.")


def _normalise(crop_1ZYX: Tensor, inside_1ZYX: Tensor) -> Tensor:
    if crop_1ZYX.min() < CT_AIR_HU:
        crop_1ZYX = crop_1ZYX.clamp(-CT_CLAMP_HU, CT_CLAMP_HU)
    values = crop_1ZYX[crop_1ZYX > 0]
    if values.numel() < 2:
        values = crop_1ZYX[inside_1ZYX]
    if values.numel() < 2:
        return torch.zeros_like(crop_1ZYX)
    std, mean = torch.std_mean(values)
    return (crop_1ZYX - mean) / torch.where(std > 0, std, torch.ones_like(std))


def _initialise(module: nn.Module) -> None:
    """Small normal weights, so that an untrained network is numerically tame; loading replaces them all."""
    if isinstance(module, (nn.Linear, nn.Conv3d, nn.ConvTranspose3d, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
