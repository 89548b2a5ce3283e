"""What the tensors of a published checkpoint tell about the network they belong to."""

from __future__ import annotations

import re
from typing import Dict, Mapping

from torch import Tensor

from ..errors import CheckpointError
from .sam_config import FASTSAM3D, SAM_MED3D, DecoderConfig, Sam3DConfig, VitConfig

ENCODER = ("image_encoder.",)
DECODER = ("prompt_encoder.", "mask_decoder.")


def as_full_layout(tensors: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Published tensor names without DataParallel's prefix, and with "image_encoder." on those of a lone encoder.

    Raises:
        CheckpointError: if there is no image encoder and no decoder among the tensors.
    """
    names = {name[len("module.") :] if name.startswith("module.") else name: name for name in tensors}
    if "patch_embed.proj.weight" in names:
        names = {"image_encoder." + name: original for name, original in names.items()}
    if not any(name.startswith(ENCODER + DECODER) for name in names):
        some = ", ".join(sorted(names)[:4])
        raise CheckpointError(
            f"Expected the tensors of SAM-Med3D or FastSAM3D (image_encoder.…, prompt_encoder.…, mask_decoder.…) or of "
            f"FastSAM3D's encoder alone (patch_embed.…, blocks.…, neck.…), found {len(names)} others: {some} …"
        )
    return {name: tensors[original] for name, original in names.items()}


def infer_config(tensors: Mapping[str, Tensor]) -> Sam3DConfig:
    """The configuration of a full layout, read from names and shapes.

    The number of heads comes from the width of the relative-position tables, a block's window from their length, and
    the family from the blocks without attention, which only FastSAM3D has. Where a tensor is missing the published
    value stands, so that a comparison with the network built from the configuration names what is wrong.

    Raises:
        CheckpointError: if a tensor is missing without which nothing can be told.
        ConfigError: if the sizes contradict each other.
    """
    for name in ("patch_embed.proj.weight", "pos_embed", "neck.0.weight"):
        if f"image_encoder.{name}" not in tensors:
            raise CheckpointError(f"The tensor image_encoder.{name} is missing, which tells the network's size.")

    def size(name: str, axis: int, default: int) -> int:
        shape = tensors[name].shape if name in tensors else ()
        return shape[axis] if axis < len(shape) else default

    grid_size = size("image_encoder.pos_embed", 1, SAM_MED3D.encoder.grid_size)
    blocks, windows, head_width = [], [], 0
    for index in range(_count(tensors, r"image_encoder\.blocks\.(\d+)\.")):
        block = f"image_encoder.blocks.{index}."
        if f"{block}norm1.weight" not in tensors and f"{block}attn.qkv.weight" not in tensors:
            blocks.append("mlp")
            continue
        window = (size(f"{block}attn.rel_pos_d", 0, 2 * grid_size - 1) + 1) // 2
        windows += [window] if window != grid_size else []
        blocks.append("window" if window != grid_size else "global")
        head_width = size(f"{block}attn.rel_pos_d", 1, head_width)

    published = FASTSAM3D if "mlp" in blocks else SAM_MED3D
    default, decoder = published.encoder, published.decoder
    width = size("image_encoder.patch_embed.proj.weight", 0, default.width)
    out_width = size("image_encoder.neck.0.weight", 0, default.out_width)
    cross_width = size("mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", 0, 0)
    return Sam3DConfig(
        name=published.name,
        encoder=VitConfig(
            width=width,
            heads=width // head_width if head_width else default.heads,
            mlp_width=size("image_encoder.blocks.0.mlp.lin1.weight", 0, default.mlp_width),
            out_width=out_width,
            blocks=tuple(blocks) or default.blocks,
            window_size=max(windows, default=default.window_size),
            patch_size=size("image_encoder.patch_embed.proj.weight", 2, default.patch_size),
            grid_size=grid_size,
            norm_before_residual=default.norm_before_residual,
        ),
        decoder=DecoderConfig(
            heads=decoder.heads,
            depth=_count(tensors, r"mask_decoder\.transformer\.layers\.(\d+)\.") or decoder.depth,
            mlp_width=size("mask_decoder.transformer.layers.0.mlp.lin1.weight", 0, decoder.mlp_width),
            downsample=out_width // cross_width if cross_width else decoder.downsample,
            mask_channels=size("prompt_encoder.mask_downscaling.3.weight", 0, decoder.mask_channels),
            alternatives=size("mask_decoder.mask_tokens.weight", 0, decoder.alternatives + 1) - 1,
            iou_width=size("mask_decoder.iou_prediction_head.layers.0.weight", 0, decoder.iou_width),
            iou_depth=_count(tensors, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.") or decoder.iou_depth,
        ),
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different indices ``pattern`` captures."""
    matches = (re.match(pattern, name) for name in tensors)
    return len({match[1] for match in matches if match})
