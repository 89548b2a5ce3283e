"""A model as a session calls it: axes z, y, x, in the model's precision, and answers on the CPU.

A click waits for a GPU once: when its logits and its quality come back together.

Shape legend: N prompts, n low-resolution voxels along each edge.
"""

from __future__ import annotations

import time
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .model.base import Embedding, PromptableModel
from .runtime import autocast, reconsider_threads

PROMPT_COUNTS = (4, 16, 64)
"""On a GPU a decode has one of these numbers of prompts, or a multiple of the last, the first ones padding, so that a
recorded one fits."""


class ModelCaller:
    """Encode and decode of one model that is loaded and in evaluation mode."""

    def __init__(self, model: PromptableModel) -> None:
        self.model = model

    def normalise(self, crop_ZYX: Tensor, inside_ZYX: Tensor) -> Tensor:
        """A raw crop and which of it lies inside the scan -> what ``encode`` takes, (1, 1, Z, Y, X)."""
        crop, inside = (t[None, None].to(self.model.device) for t in (crop_ZYX, inside_ZYX))
        return self._oriented(self.model.normalise(crop, inside))

    def encode(self, crop_11ZYX: Tensor) -> Embedding:
        """What the encoder makes of a normalised crop; it stays on the model's device."""
        started = time.perf_counter()
        with autocast(self.model.device, self.model.precision):
            embedding = self.model.encode(crop_11ZYX)
        if self.model.device.type == "cpu":
            reconsider_threads(time.perf_counter() - started)
        return embedding

    def decode(
        self,
        embedding: Embedding,
        points_N3: Tensor,
        labels_N: Tensor,
        prior_11zyx: Optional[Tensor],
        several: bool = False,
    ) -> Tuple[Tensor, float]:
        """Prompts to the one mask for them.

        Args:
            embedding: what ``encode`` returned.
            points_N3: float32 crop voxels (z, y, x).
            labels_N: see ``PromptableModel.decode``.
            prior_11zyx: the previous logits, or None.
            several: the most trusted of the alternatives for an ambiguous prompt instead.

        Returns:
            float32 logits (1, 1, n, n, n) on the CPU and the predicted IoU, 0..1.
        """
        model = self.model
        if model.newest_point_only:
            points_N3, labels_N = points_N3[-1:], labels_N[-1:]
        if model.crop_axes == "xyz":
            points_N3 = points_N3.flip(-1)
        on_gpu = model.device.type == "cuda"
        if on_gpu and model.ignores_padding:
            points_N3, labels_N = padded(points_N3, labels_N)
        prior = model.first_mask_logits() if prior_11zyx is None else self._oriented(prior_11zyx)
        prior = None if prior is None else prior.to(model.device, torch.float32, non_blocking=on_gpu)
        points, labels = (t[None].to(model.device, non_blocking=on_gpu) for t in (points_N3, labels_N))
        with autocast(model.device, model.precision):
            logits, quality = model.decode(embedding, points, labels, prior, several)
        best_1 = quality[0].argmax(keepdim=True)  # stays where it is: a look at the number would wait for a GPU
        logits, quality = logits.index_select(1, best_1).float(), quality[0].index_select(0, best_1).float()
        if model.device.type != "cpu":
            together = torch.cat([logits.flatten(), quality.flatten()]).cpu()
            logits, quality = together[:-1].view(logits.shape), together[-1:]
        return self._oriented(logits), float(quality.clamp(0, 1))

    def _oriented(self, cube: Tensor) -> Tensor:
        """(1, 1, z, y, x) to the model's axis order, and back: reversing the axes is its own inverse."""
        return cube.permute(0, 1, 4, 3, 2).contiguous() if self.model.crop_axes == "xyz" else cube


def padded(points_N3: Tensor, labels_N: Tensor) -> Tuple[Tensor, Tensor]:
    """Prompts after padding up to the next of ``PROMPT_COUNTS``, or of the multiples of the largest."""
    count, largest = len(labels_N), PROMPT_COUNTS[-1]
    wanted = next((wanted for wanted in PROMPT_COUNTS if wanted >= count), -(-count // largest) * largest)
    padding = wanted - count
    return F.pad(points_N3, (0, 0, padding, 0)), F.pad(labels_N, (padding, 0), value=-1)
