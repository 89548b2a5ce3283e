"""The two-way transformer of the mask decoder: prompt tokens and image tokens attend to each other.

Shape legend: B batch, Q prompt tokens, N image tokens, H heads, D channels a head, C channels.
"""

from __future__ import annotations

from typing import Tuple

from torch import Tensor, nn

from .attention import attend, sparse_attention
from .sam_config import DecoderConfig
from .sam_layers import MlpBlock


class TwoWayTransformer(nn.Module):
    """A stack of two-way layers and a last look of the prompt tokens at the image."""

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(config, width, is_first=i == 0) for i in range(config.depth))
        self.final_attn_token_to_image = Attention(config, width, config.downsample)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image_BNC: Tensor, image_code_NC: Tensor, prompts_BQC: Tensor) -> Tuple[Tensor, Tensor]:
        """Returns the prompt tokens (B, Q, C) and the image tokens (B, N, C), both updated."""
        tokens_BQC = prompts_BQC
        for layer in self.layers:
            tokens_BQC, image_BNC = layer(tokens_BQC, image_BNC, prompts_BQC, image_code_NC)
        seen_BQC = self.final_attn_token_to_image(tokens_BQC + prompts_BQC, image_BNC + image_code_NC, image_BNC)
        return self.norm_final_attn(tokens_BQC + seen_BQC), image_BNC


class TwoWayLayer(nn.Module):
    """Tokens to tokens, tokens to image, MLP, image to tokens; the original tokens serve as their positions.

    In the first layer the self-attention replaces the tokens: no residual, and no positions added.
    """

    def __init__(self, config: DecoderConfig, width: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(config, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(config, width, config.downsample)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MlpBlock(width, config.mlp_width, nn.ReLU())
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(config, width, config.downsample)

    def forward(
        self, tokens_BQC: Tensor, image_BNC: Tensor, token_code_BQC: Tensor, image_code_NC: Tensor
    ) -> Tuple[Tensor, Tensor]:
        if self.is_first:
            tokens_BQC = self.self_attn(tokens_BQC, tokens_BQC, tokens_BQC)
        else:
            coded_BQC = tokens_BQC + token_code_BQC
            tokens_BQC = tokens_BQC + self.self_attn(coded_BQC, coded_BQC, tokens_BQC)
        tokens_BQC = self.norm1(tokens_BQC)

        coded_image_BNC = image_BNC + image_code_NC
        seen_BQC = self.cross_attn_token_to_image(tokens_BQC + token_code_BQC, coded_image_BNC, image_BNC)
        tokens_BQC = self.norm2(tokens_BQC + seen_BQC)
        tokens_BQC = self.norm3(tokens_BQC + self.mlp(tokens_BQC))

        seen_BNC = self.cross_attn_image_to_token(coded_image_BNC, tokens_BQC + token_code_BQC, tokens_BQC)
        return tokens_BQC, self.norm4(image_BNC + seen_BNC)


class Attention(nn.Module):
    """Attention in ``width / downsample`` channels; self-attention follows the configured pattern."""

    def __init__(self, config: DecoderConfig, width: int, downsample: int = 1) -> None:
        super().__init__()
        inner = width // downsample
        self.heads = config.heads
        self.pattern = config.attention
        self.is_cross = downsample > 1
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q_BQC: Tensor, k_BNC: Tensor, v_BNC: Tensor) -> Tensor:
        """(B, Q, C) queries, (B, N, C) keys and values -> (B, Q, C)."""
        q_BHQD, k_BHND, v_BHND = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q_BQC), (self.k_proj, k_BNC), (self.v_proj, v_BNC))
        )
        if self.is_cross:
            out_BHQD = attend(q_BHQD, k_BHND, v_BHND, None, self.pattern.backend)
        else:
            out_BHQD = sparse_attention(q_BHQD, k_BHND, v_BHND, self.pattern)
        return self.out_proj(out_BHQD.transpose(1, 2).flatten(2))
