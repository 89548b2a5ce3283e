"""How sure the model is of a result, voxel by voxel.

The maps of the peers repeat a whole prediction up to a hundred times. Here the scan is encoded once, as for the result
itself, and only the small decoder runs again: a handful of times, with clicks where a user could have put them as well.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .compact_mask import CompactMask
from .geometry import CanonicalFrame
from .model.calibration import logit
from .resample import CropBox, paste_logits, sample_logits
from .segmenter import Prediction, Prompts, Segmenter
from .uncertainty_map import Uncertainty

LEAST_PROBABILITY = 0.01
"""Outside of the box of a map no voxel is more probable than this, as far as the model looked."""
JITTER_CROP_VOXELS = 2.0
"""Standard deviation of the displacement of a click, along each axis."""


@torch.inference_mode()
def uncertainty_of(
    segmenter: Segmenter,
    prompts: Prompts,
    steps: Sequence[Prediction],
    base: CompactMask,
    decodes: int,
    frame: CanonicalFrame,
) -> Uncertainty:
    """The probabilities behind the last prediction, see ``Session.uncertainty``; the same at every call.

    Args:
        segmenter: of the scan.
        prompts: all prompts, the newest last.
        steps: the prediction before the newest prompt, and the one after it.
        base: the mask that the user started from.
        decodes: so many, the one behind the prediction among them.
        frame: the scan's.
    """
    before, last = steps
    assert last.view is not None and last.logits is not None
    answers = [last.logits.float()]
    prior = segmenter.prior(last.view, before)
    several = segmenter.shows_several(prompts, prior)
    needs_prior = segmenter.model.newest_point_only  # it is all that such a model knows of the other clicks
    for number in range(1, decodes):
        moved = _jittered(prompts, last.view, segmenter, seed=number)
        given = prior if needs_prior or number % 2 == 0 else None
        answers.append(segmenter.decode(segmenter.embedding(last.view), last.view, moved, given, several)[0])
    mean = answers[0] if len(answers) == 1 else torch.stack([a.sigmoid() for a in answers]).mean(0).logit(eps=1e-4)
    calibration = segmenter.model.calibration
    own = segmenter.own_pieces(mean, last.view, prompts, before.mask, base)
    shown = segmenter.as_prior(last.mask, last.view)
    if shown is not None:
        own = own.maximum(F.interpolate(shown, size=own.shape[2:], mode="nearest"))
    mean = _without_other_pieces(mean, own)
    calibrated = (mean * calibration.mask_scale + calibration.mask_shift)[0, 0]
    _, box = paste_logits(calibrated, segmenter.grid, last.view, threshold=float(logit(LEAST_PROBABILITY)))
    if box is None:
        return Uncertainty(None, np.zeros((0, 0, 0), dtype=np.float32), grid=frame.native)
    canonical = sample_logits(calibrated, segmenter.grid, last.view, box).sigmoid_().numpy()
    return Uncertainty(frame.native_box(box), frame.from_canonical(canonical), grid=frame.native)


def _jittered(prompts: Prompts, view: CropBox, segmenter: Segmenter, seed: int) -> Prompts:
    """The prompts displaced at random, within the scan."""
    step_zyx = JITTER_CROP_VOXELS * view.spacing_mm / segmenter.grid.spacing_zyx_mm
    moved = prompts.points_zyx + step_zyx * np.random.default_rng(seed).normal(size=prompts.points_zyx.shape)
    return Prompts(moved.clip(0, np.asarray(segmenter.grid.size_zyx) - 1), prompts.labels)


def _without_other_pieces(logits: Tensor, own: Tensor) -> Tensor:
    """Logits that are low in the pieces that the result leaves out, and in the doubtful rim around them.

    Args:
        own: of the same size, above 0 in the pieces that the result holds.
    """
    dropped = ((logits > 0) & (own <= 0)).float()
    if not bool(dropped.any()):
        return logits
    rim = F.max_pool3d(dropped, 7, stride=1, padding=3) > 0
    kept = F.max_pool3d((own > 0).float(), 3, stride=1, padding=1) > 0
    return logits.masked_fill(rim & ~kept, -20.0)
