"""Configurations of the published SAM-like 3D networks: SAM-Med3D and FastSAM3D are two values of one set of classes.

Sources: SAM-Med3D (Wang et al. 2023, arXiv 2310.15161), FastSAM3D (Shen et al. 2024, arXiv 2403.09827).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Tuple

from ..errors import ConfigError
from .attention import AttentionPattern

BLOCK_KINDS = ("mlp", "window", "global")


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}.")


@dataclass(frozen=True)
class VitConfig:
    """The image encoder; the defaults are SAM-Med3D's."""

    width: int = 768
    """Channels of a token."""
    heads: int = 12
    """Attention heads of every block that has attention."""
    mlp_width: int = 3072
    """Hidden channels of a block's MLP."""
    out_width: int = 384
    """Channels of the embedding that the neck makes."""
    blocks: Tuple[str, ...] = ("window", "window", "global") * 4
    """One of ``BLOCK_KINDS`` for each block: no attention, attention in a padded window, attention to all tokens."""
    window_size: int = 14
    """Edge of the zero-padded windows, in tokens; not smaller than the grid."""
    patch_size: int = 16
    """Edge of a patch, in voxels."""
    grid_size: int = 8
    """Edge of the token grid; a crop has ``patch_size * grid_size`` voxels along each edge."""
    norm_before_residual: bool = True
    """True for ordinary pre-norm blocks (SAM-Med3D); False for FastSAM3D's, whose residual starts after the norm."""
    attention: AttentionPattern = field(default_factory=AttentionPattern)
    """Pattern of the "global" blocks, backend of all; the published weights were trained with dense attention."""

    def __post_init__(self) -> None:
        _check_positive(self, "width", "heads", "mlp_width", "out_width", "window_size", "patch_size", "grid_size")
        if self.width % self.heads:
            raise ConfigError(f"width ({self.width}) must be a multiple of heads ({self.heads}).")
        unknown = [kind for kind in self.blocks if kind not in BLOCK_KINDS]
        if unknown or not self.blocks:
            raise ConfigError(f"blocks must be some of {BLOCK_KINDS}, one for each block, got {self.blocks}.")
        if "window" in self.blocks and self.window_size < self.grid_size:
            raise ConfigError(
                f"window_size ({self.window_size}) must not be smaller than grid_size ({self.grid_size}): the "
                "published encoders have one window over the whole grid."
            )


@dataclass(frozen=True)
class DecoderConfig:
    """The prompt encoder and the mask decoder, the same in both published networks; their width is the neck's."""

    heads: int = 8
    """Attention heads of the two-way transformer."""
    depth: int = 2
    """Layers of the two-way transformer."""
    mlp_width: int = 2048
    """Hidden channels of its MLPs."""
    downsample: int = 2
    """The cross-attentions work in this fraction of the width."""
    mask_channels: int = 16
    """Channels of the previous mask before the last projection."""
    alternatives: int = 3
    """Masks for an ambiguous prompt, beside the single one."""
    iou_width: int = 256
    """Hidden channels of the head that predicts the IoU."""
    iou_depth: int = 3
    """Layers of that head."""
    attention: AttentionPattern = field(default_factory=AttentionPattern)
    """Pattern of the tokens' self-attention; its backend serves the cross-attentions too, which are always dense
    (eq. 3 of FastSAM3D pairs each query with a key, and there the two differ in number)."""

    def __post_init__(self) -> None:
        _check_positive(
            self,
            *("heads", "depth", "mlp_width", "downsample", "mask_channels", "alternatives", "iou_width", "iou_depth"),
        )
        if self.mask_channels % 4:
            raise ConfigError(f"mask_channels must be a multiple of 4, got {self.mask_channels}.")


@dataclass(frozen=True)
class Sam3DConfig:
    """A published network; the defaults are SAM-Med3D's."""

    name: str = "sam_med3d"
    """"sam_med3d" or "fastsam3d"."""
    encoder: VitConfig = field(default_factory=VitConfig)
    """The image encoder."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The prompt encoder and the mask decoder."""

    def __post_init__(self) -> None:
        if self.name not in ("sam_med3d", "fastsam3d"):
            raise ConfigError(f"name must be 'sam_med3d' or 'fastsam3d', got {self.name!r}.")
        width = self.encoder.out_width
        for divisor, what in (
            (3, "3 (a positional code has three parts)"),
            (8, "8 (the mask decoder halves its channels three times)"),
            (self.decoder.downsample * self.decoder.heads, "the decoder's downsample * heads"),
        ):
            if width % divisor:
                raise ConfigError(f"out_width must be a multiple of {what}, got {width}.")


SAM_MED3D = Sam3DConfig()
FASTSAM3D = Sam3DConfig(
    name="fastsam3d",
    encoder=VitConfig(heads=6, blocks=("mlp", "mlp") + ("global",) * 4, norm_before_residual=False),
)
