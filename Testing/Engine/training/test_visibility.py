"""Visible structures score high, invisible ones near zero."""

from __future__ import annotations

import torch
from famsam.training.targets import visibility


def cube_in_noise(contrast: float):
    generator = torch.Generator().manual_seed(0)
    crop = 0.1 * torch.randn(32, 32, 32, generator=generator)
    mask = torch.zeros(32, 32, 32, dtype=torch.bool)
    mask[8:24, 8:24, 8:24] = True
    return crop + contrast * mask, mask


def test_grows_with_contrast():
    scores = [visibility(*cube_in_noise(contrast)) for contrast in (0.0, 0.05, 0.5)]
    assert scores[0] < 0.2 < scores[1] < 2.0 < scores[2]


def test_a_structure_that_fills_the_crop_has_no_surroundings():
    crop, mask = cube_in_noise(1.0)
    assert visibility(crop, torch.ones_like(mask)) == 0.0
