"""Small networks in the layout of the published ones, with weights that are all random and fixed by a seed."""

from __future__ import annotations

import torch
from famsam.model import build_model
from famsam.model.sam import Sam3D
from famsam.model.sam_config import DecoderConfig, Sam3DConfig, VitConfig

_DECODER = DecoderConfig(mlp_width=16, mask_channels=8, iou_width=8)
_SIZES = {"width": 24, "heads": 2, "mlp_width": 32, "out_width": 48, "patch_size": 4, "grid_size": 4}

TINY = {
    "sam_med3d": Sam3DConfig(
        name="sam_med3d",
        encoder=VitConfig(blocks=("window", "global"), window_size=5, **_SIZES),
        decoder=_DECODER,
    ),
    "fastsam3d": Sam3DConfig(
        name="fastsam3d",
        encoder=VitConfig(blocks=("mlp", "global"), norm_before_residual=False, **_SIZES),
        decoder=_DECODER,
    ),
}
CROP_B1ZYX = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
POINTS_BN3 = torch.tensor([[[3.0, 7.0, 11.0], [15.0, 0.0, 2.0]]])
LABELS_BN = torch.tensor([[1, 0]])


def tiny_model(name: str, seed: int = 0) -> Sam3D:
    """ "sam_med3d" or "fastsam3d" in small; no tensor is zero, so that no part is without influence."""
    model = build_model(name, TINY[name]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model


def answer(model: Sam3D) -> torch.Tensor:
    """The logits for two clicks on a fixed crop."""
    with torch.inference_mode():
        return model.decode(model.encode(CROP_B1ZYX), POINTS_BN3, LABELS_BN)[0]
