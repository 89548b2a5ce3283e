"""The default model: light convolutional stem, 6-layer sparse ViT-Tiny, multi-scale prompt-map decoder.

Shape legend: B batch, N prompts, M masks, C channels, Z Y X crop voxels, z y x voxels at half the crop's resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
from torch import Tensor

from ..errors import ConfigError
from . import prompt_maps
from .attention import AttentionPattern
from .base import Embedding, PromptableModel
from .config import added_later
from .famsam_encoder import FamsamEncoder, TokenPausing, contrast_limited_equalisation
from .fusion_decoder import DecoderInput, FusionDecoder
from .proposal_head import ProposalHead, ProposalMaps

SPARSE = AttentionPattern(group_size=128, dilation=4)
"""Of the 512 tokens of a crop, every fourth attends to its like."""


@dataclass(frozen=True)
class FamsamConfig:
    """Sizes of the default model, ``famsam-s``."""

    stem_channels: Tuple[int, int, int, int] = (16, 32, 64, 64)
    """Channels of the stem at strides 2, 4 and 8, and of the stride-2 detail kept for the decoder; multiples of 8."""
    token_channels: int = 256
    """Channels of the transformer's tokens at stride 16."""
    depth: int = 6
    """Transformer blocks in the encoder."""
    heads: int = 4
    """Attention heads in the encoder."""
    mlp_ratio: float = 3.0
    """Hidden channels of the transformer's MLPs over token channels."""
    attention: AttentionPattern = SPARSE
    """Sparse attention of the encoder's blocks."""
    decoder_channels: Tuple[int, int, int] = (32, 64, 128)
    """Channels of the decoder at strides 4, 8 and 16; multiples of 8."""
    decoder_depth: int = 2
    """Transformer blocks in the decoder, at stride 16."""
    decoder_attention: AttentionPattern = SPARSE
    """Sparse attention of the decoder's blocks."""
    mask_count: int = 4
    """Masks the decoder predicts: one for clear prompts, the rest alternatives for an ambiguous one."""

    proposals: bool = added_later(False)
    """Whether there is a head that proposes coarse masks without a prompt (0.1 million parameters)."""
    fusion: bool = added_later(True)
    """Whether the decoder sees the stem's finer features beside the tokens (Med-FastSAM's multi-scale fusion)."""

    far_reaching: bool = added_later(True, before=False)
    """Whether prompt maps tell also what lies in the same region as a click, and how far from it."""
    normed_position: bool = added_later(True, before=False)
    """Whether transformer blocks normalise tokens before they place them; see ``TransformerBlock``."""
    centred: bool = added_later(False)
    """Whether transformer blocks leave out what all tokens have in common; see ``TransformerBlock``."""
    residual: bool = added_later(False)
    """Whether the decoder adds what it finds to a share of the previous logits, which it learns."""
    newest: bool = added_later(False)
    """Whether prompt maps tell the newest click from those before it."""
    least_added: float = added_later(0.0, before=1.0)
    """A positive click adds what has a larger logit. Networks whose loss counted nothing beside the clicked error are
    wrong more often than right below 1.2; see ``losses.clicked_loss``."""

    def __post_init__(self) -> None:
        for name in ("stem_channels", "decoder_channels"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if any(c <= 0 or c % 8 for c in value):
                raise ConfigError(f"{name} must be positive multiples of 8, got {value}.")
        if self.heads < 1 or self.token_channels < 1 or self.token_channels % self.heads:
            raise ConfigError(f"token_channels ({self.token_channels}) must be a multiple of heads ({self.heads}).")
        if self.decoder_depth and self.decoder_channels[2] % self.heads:
            raise ConfigError(
                f"The last of decoder_channels ({self.decoder_channels[2]}) must be a multiple of heads ({self.heads})."
            )
        if not 1 <= self.token_channels * self.mlp_ratio < math.inf:
            raise ConfigError(f"mlp_ratio must be positive, and leave an MLP some channels, got {self.mlp_ratio}.")
        if self.depth < 1 or self.decoder_depth < 0 or self.mask_count < 1:
            raise ConfigError(
                f"depth and mask_count must be at least 1 and decoder_depth at least 0, got {self.depth}, "
                f"{self.mask_count} and {self.decoder_depth}."
            )
        if self.proposals and not self.fusion:
            raise ConfigError("proposals need the finer features that fusion=False leaves out of the decoder.")


class Famsam(PromptableModel):
    """FaM-SAM's own network; see ``PromptableModel`` for the shapes of ``encode`` and ``decode``."""

    name = "famsam"
    scout_size = 64
    takes_boxes = True
    ignores_padding = True
    one_way = True
    follows_edges = True
    several_at_first = True
    fast_on_cpu = ("int8", "bf16")
    pausing = TokenPausing()
    """A run-time setting, made by ``load_model``; no part of the configuration. Change it before a session sees a
    scan: sessions keep what was encoded. On a GPU calls are recorded as the model was loaded; load it anew instead."""

    def __init__(self, config: Optional[FamsamConfig] = None) -> None:
        super().__init__()
        self.config = config = config or FamsamConfig()
        self.least_added = config.least_added
        self.encoder = FamsamEncoder(
            config.stem_channels,
            config.token_channels,
            config.heads,
            [config.attention] * config.depth,
            config.mlp_ratio,
            config.normed_position,
            config.centred,
        )
        self.decoder = FusionDecoder(
            config.stem_channels,
            config.token_channels,
            config.decoder_channels,
            config.heads,
            [config.decoder_attention] * config.decoder_depth,
            config.mask_count,
            config.fusion,
            config.far_reaching,
            config.normed_position,
            config.centred,
            config.residual,
            config.newest,
        )
        self.proposal_head: Optional[ProposalHead] = None
        if config.proposals:
            self.proposal_head = ProposalHead(config.token_channels, *config.decoder_channels[:2])
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @staticmethod
    def normalise(crop_B1ZYX: Tensor, inside_B1ZYX: Tensor) -> Tensor:
        return contrast_limited_equalisation(crop_B1ZYX, inside_B1ZYX)

    def encode(self, crop_B1ZYX: Tensor) -> Embedding:
        tokens, features = self.encoder(crop_B1ZYX, self.pausing)
        return Embedding(tokens, self.decoder.prepare(crop_B1ZYX, tokens, *features))

    @property
    def proposes(self) -> bool:
        return self.proposal_head is not None

    def propose(self, embedding: Embedding) -> ProposalMaps:
        if self.proposal_head is None:
            return super().propose(embedding)
        finer: DecoderInput = embedding.finer
        maps: ProposalMaps = self.proposal_head(embedding.tokens, finer.features8, finer.features4, finer.similarity)
        return maps

    def decode(
        self,
        embedding: Embedding,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits_B1zyx: Optional[Tensor] = None,
        multimask: bool = False,
    ) -> Tuple[Tensor, Tensor]:
        several = multimask and self.config.mask_count > 1
        masks = slice(1, None) if several else slice(0, 1)
        logits, quality = self.decode_raw(embedding, points_BN3, labels_BN, mask_logits_B1zyx, masks)
        logits = prompt_maps.keep_clicks(logits.float(), points_BN3 / 2 - 0.25, labels_BN)
        return logits, quality.float()

    def decode_raw(
        self,
        embedding: Embedding,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits_B1zyx: Optional[Tensor] = None,
        masks: slice = slice(None),
    ) -> Tuple[Tensor, Tensor]:
        """``decode`` for any choice of the masks, and without enforcing the clicks; what training needs."""
        if points_BN3.shape[1] == 0:
            points_BN3 = points_BN3.new_zeros(len(points_BN3), 1, 3)
            labels_BN = labels_BN.new_full((len(points_BN3), 1), -1)
        return self.decoder(embedding.finer, points_BN3, labels_BN, mask_logits_B1zyx, masks)
