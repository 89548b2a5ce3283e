"""A small promptable model without weights: grows the region of like intensity around the clicks.

It goes through the engine's real session, as every model does; it answers in milliseconds and one can say beforehand
what a click must give.
"""

from __future__ import annotations

import threading
from typing import Any, Optional, Tuple

import cc3d
import torch
from famsam.model.base import Embedding, PromptableModel
from famsam.model.proposal_head import MASK_CHANNELS, MASK_STRIDE, SEED_STRIDE, ProposalMaps
from torch import Tensor, nn
from torch.nn import functional

TOLERANCE = 0.35


class RegionModel(PromptableModel):
    """Connected voxels within ``TOLERANCE`` standard deviations of a positive click; negative clicks cut away."""

    name = "region"
    crop_size = 48
    config: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)  # tells the session the device

    def normalise(self, crop_B1ZYX: Tensor, inside_B1ZYX: Tensor) -> Tensor:
        inside = crop_B1ZYX[inside_B1ZYX]
        scaled = (crop_B1ZYX - inside.mean()) / inside.std().clamp_min(1e-6)
        return torch.where(inside_B1ZYX, scaled, torch.full_like(scaled, -1e3))

    def encode(self, crop_B1ZYX: Tensor) -> Embedding:
        return Embedding(crop_B1ZYX, crop_B1ZYX)

    def decode(
        self,
        embedding: Embedding,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits_B1zyx: Optional[Tensor] = None,
        multimask: bool = False,
    ) -> Tuple[Tensor, Tensor]:
        crop = embedding.tokens
        logits = torch.full_like(crop, -4.0)
        if mask_logits_B1zyx is not None:
            previous = functional.interpolate(mask_logits_B1zyx.float(), crop.shape[2:], mode="trilinear")
            logits = torch.where(previous > 0, 4.0, -4.0)
        for point, label in zip(points_BN3[0], labels_BN[0].tolist()):
            if label in (0, 1):
                logits = torch.where(_region(crop, point), 4.0 if label == 1 else -4.0, logits)
        return logits, torch.full((1, 1), 0.9)


class CountingModel(RegionModel):
    """Counts encodes and decodes in their order; encodes only while ``gate`` is open."""

    def __init__(self):
        super().__init__()
        self.done, self.gate, self.entered, self.error = [], threading.Event(), threading.Event(), None
        self.gate.set()

    def encode(self, *args, **kwargs):
        self.entered.set()
        assert self.gate.wait(60)
        self.done.append("encode")
        if self.error is not None:
            raise self.error
        return super().encode(*args, **kwargs)

    def decode(self, *args, **kwargs):
        self.done.append("decode")
        return super().decode(*args, **kwargs)


class SoftModel(RegionModel):
    """Less and less sure toward the border of what it finds."""

    def decode(self, *args, **kwargs):
        logits, iou = super().decode(*args, **kwargs)
        kernel = torch.ones(1, 1, 3, 3, 3) / 27
        return functional.conv3d(functional.conv3d(logits, kernel, padding=1), kernel, padding=1), iou


class ProposingModel(RegionModel):
    """Proposes what is bright, the brighter the better; while ``gate`` is closed it is still looking for that."""

    spacing_mm = 1.0  # so that one view shows the whole of a test's scan

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.gate, self.looking = 0, threading.Event(), threading.Event()
        self.gate.set()

    @property
    def proposes(self) -> bool:
        return True

    def propose(self, embedding: Embedding) -> ProposalMaps:
        self.looking.set()
        assert self.gate.wait(60)
        self.looks += 1
        crop = embedding.tokens
        brightness = functional.avg_pool3d(crop.clamp_min(-1.0), SEED_STRIDE)[:, 0]
        quality = torch.where(brightness > 1.0, brightness, torch.full_like(brightness, -9.0))
        numbers = torch.zeros(MASK_CHANNELS + 8)  # weights, bias, likeness, displacement, spread
        numbers[MASK_CHANNELS : MASK_CHANNELS + 2] = torch.tensor([2.0, -20.0])
        numbers[-3:] = -2.0  # no more than the seed itself
        kernels = numbers[None, :, None, None, None].expand(-1, -1, *quality.shape[1:])
        coarse = functional.avg_pool3d(crop, MASK_STRIDE) * 0
        return ProposalMaps(quality, kernels, coarse.expand(-1, MASK_CHANNELS, -1, -1, -1), coarse)

    def decode(self, embedding: Embedding, *args: Any, **kwargs: Any) -> Tuple[Tensor, Tensor]:
        logits, _ = super().decode(embedding, *args, **kwargs)
        inside = embedding.tokens[logits > 0]
        trust = inside.mean() / 10 if len(inside) else torch.zeros(())
        return logits, trust.clamp(0.0, 0.9).reshape(1, 1)


def _region(crop: Tensor, point: Tensor) -> Tensor:
    z, y, x = (int(v) for v in point.round().clamp(0, crop.shape[-1] - 1))
    alike = (crop[0, 0] - crop[0, 0, z, y, x]).abs() < TOLERANCE
    pieces = cc3d.connected_components(alike.numpy(), connectivity=26)
    return torch.from_numpy(pieces == pieces[z, y, x])[None, None]
