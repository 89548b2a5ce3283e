"""Calibration of what a model says about itself: the probability of each voxel and the predicted IoU of a mask.

Both are corrected on the logit scale by a scale and a shift (Platt 1999; the scale alone is the temperature scaling of
Guo et al. 2017), which keeps their order, so that nothing but the numbers changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError

LARGEST_LOGIT = 9.0
"""Probabilities are taken as no closer to 0 and 1 than the logistic function of this."""
LEAST_SCALE, MOST_SCALE = 0.05, 20.0
PULL = 0.1
"""Weight of the pull towards no correction in a fit; a sample weighs 1."""


@dataclass(frozen=True)
class Calibration:
    """Logistic corrections; the defaults change nothing."""

    mask_scale: float = 1.0
    """Factor on a voxel's logit."""
    mask_shift: float = 0.0
    """Added to it then."""
    quality_scale: float = 1.0
    """Factor on the logit of the predicted IoU."""
    quality_shift: float = 0.0
    """Added to it then."""

    def __post_init__(self) -> None:
        values = (self.mask_scale, self.mask_shift, self.quality_scale, self.quality_shift)
        if not all(math.isfinite(v) for v in values) or self.mask_scale <= 0 or self.quality_scale <= 0:
            raise ConfigError(f"A calibration needs finite numbers with scales above 0, got {self}.")

    def probability(self, logits: Tensor) -> Tensor:
        """The probability that each voxel belongs to the structure, for mask logits of any shape."""
        return (logits.float() * self.mask_scale + self.mask_shift).sigmoid()

    def iou(self, predicted: float) -> float:
        """The IoU to expect where the model predicts ``predicted``, 0..1; unchanged by the default values."""
        if (self.quality_scale, self.quality_shift) == (1.0, 0.0):
            return predicted
        return float(logistic(self.quality_scale * logit(predicted) + self.quality_shift))


def logit(probability: Any) -> NDArray[np.float64]:
    """Inverse of ``logistic``, clipped to +- ``LARGEST_LOGIT``."""
    p = np.clip(np.asarray(probability, dtype=np.float64), logistic(-LARGEST_LOGIT), logistic(LARGEST_LOGIT))
    return np.asarray(np.log(p / (1 - p)))


def logistic(value: Any) -> NDArray[np.float64]:
    """1 / (1 + exp(-value))."""
    return np.asarray(1 / (1 + np.exp(-np.asarray(value, dtype=np.float64))))


def fit_logistic(logits: Any, targets: Any, weights: Any = None, steps: int = 50) -> Tuple[float, float]:
    """(scale, shift) that minimise the cross entropy of ``logistic(scale * logits + shift)`` with the targets.

    Args:
        logits: (N,) uncalibrated.
        targets: (N,) 0..1: labels, or shares.
        weights: (N,) of the samples; 1 each if None.
        steps: of Newton's method; the problem is convex.

    A weak pull towards (1, 0) keeps the answer finite where the data leave it open; the scale is kept within
    0.05..20, so that the order never turns.

    Raises:
        ConfigError: there are no samples, or the numbers of logits, targets and weights differ.
    """
    x, t = np.asarray(logits, dtype=np.float64).ravel(), np.asarray(targets, dtype=np.float64).ravel()
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if len(x) == 0 or len(t) != len(x) or len(w) != len(x):
        raise ConfigError(
            f"Expected as many targets and weights as logits, at least one; got {len(t)}, {len(w)} and {len(x)}."
        )
    design = np.stack([x, np.ones_like(x)], axis=1)
    start = np.array([1.0, 0.0])
    values = start.copy()
    for _ in range(steps):
        p = logistic(design @ values)
        gradient = design.T @ (w * (p - t)) + PULL * (values - start)
        curvature = (design * (w * p * (1 - p))[:, None]).T @ design + PULL * np.eye(2)
        change = np.linalg.solve(curvature, gradient)
        values = values - change * min(1.0, 2.0 / max(float(np.abs(change).max()), 1e-12))
        values[0] = np.clip(values[0], LEAST_SCALE, MOST_SCALE)
        if np.abs(change).max() < 1e-8:
            break
    return float(values[0]), float(values[1])
