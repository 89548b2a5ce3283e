"""One way to prompt every network of the family while it learns.

Crops and points have their axes in the order z, y, x, whatever the network's own order; logits have half the crop's
resolution; a previous mask is given as such logits. Gradients flow, and clicks are not enforced on the mask.

Shape legend: B crops or prompts, N clicks, M masks, Z Y X crop voxels, z y x voxels at half the crop's resolution.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..model.base import Embedding, PromptableModel
from ..model.famsam import Famsam
from ..model.registry import build_model


def build(config: Any) -> PromptableModel:
    """An untrained network from a ``FamsamConfig`` or a ``Sam3DConfig``."""
    return build_model(getattr(config, "name", Famsam.name), config)


def check_crop_size(model: PromptableModel, size: int) -> None:
    """Raises ``ConfigError`` if ``model`` cannot take crops of ``size`` voxels along each edge."""
    if not isinstance(model, Famsam) and size != model.crop_size:
        raise ConfigError(f"{model.name} takes crops of {model.crop_size} voxels only, got {size} among the sizes.")


def encode(model: PromptableModel, crop_B1ZYX: Tensor) -> Embedding:
    """The embedding of a normalised crop."""
    return model.encode(in_order(model, crop_B1ZYX))


def decode(
    model: PromptableModel,
    embedding: Embedding,
    points_BN3: Tensor,
    labels_BN: Tensor,
    previous_B1zyx: Optional[Tensor] = None,
    several: bool = False,
) -> Tuple[Tensor, Tensor]:
    """Logits (B, M, z, y, x) and predicted IoU (B, M): the mask for a clear prompt, and ``several``: the alternatives.

    Args:
        embedding: one for each of the B prompts, see ``expand``.
        points_BN3: crop voxel indices (z, y, x).
        labels_BN: see ``PromptableModel.decode``.
    """
    if isinstance(model, Famsam):
        masks = slice(None) if several else slice(0, 1)
        return model.decode_raw(embedding, points_BN3, labels_BN, previous_B1zyx, masks)
    if model.newest_point_only:
        points_BN3, labels_BN = points_BN3[:, -1:], labels_BN[:, -1:]
    if model.crop_axes == "xyz":
        points_BN3 = points_BN3.flip(-1)
    if previous_B1zyx is None:
        given = model.first_mask_logits(len(points_BN3))
    else:
        given = F.interpolate(in_order(model, previous_B1zyx), size=(model.mask_size,) * 3, mode="area")
    choices = (False, True) if several else (False,)
    parts = [model.decode(embedding, points_BN3, labels_BN, given, multimask) for multimask in choices]
    logits = in_order(model, torch.cat([logits for logits, _ in parts], dim=1).float())
    logits = F.interpolate(logits, size=(model.crop_size // 2,) * 3, mode="trilinear")
    return logits, torch.cat([quality for _, quality in parts], dim=1)


def in_order(model: PromptableModel, t_BCZYX: Tensor) -> Tensor:
    """Axes z, y, x to the network's order, or back: both are the same."""
    return t_BCZYX.permute(0, 1, 4, 3, 2) if model.crop_axes == "xyz" else t_BCZYX


def expand(embedding: Embedding, times: int) -> Embedding:
    """An embedding of B crops -> of B * times prompts' worth, each crop's copies adjacent."""
    tokens = embedding.tokens.repeat_interleave(times, 0)
    finer = embedding.finer
    if finer is None:
        return Embedding(tokens)
    copies = {f.name: getattr(finer, f.name).repeat_interleave(times, 0) for f in dataclasses.fields(finer)}
    return Embedding(tokens, dataclasses.replace(finer, **copies))
