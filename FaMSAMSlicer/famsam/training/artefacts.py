"""What a scanner, a patient and an export do to an image, on (Z, Y, X) intensities of about unit range."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .sample import Dice


def thick_slices(image_ZYX: Tensor, dice: Dice) -> Tensor:
    """Averages over slabs along an axis, or over blocks, interpolated back; or the image as it is."""
    size = image_ZYX.shape[0]
    factors = [1.0, 1.0, 1.0]
    if dice.chance(0.3):
        factors[dice.integer(0, 2)] = dice.uniform(2.0, 5.0)
    if dice.chance(0.3):
        factors = [f * dice.uniform(1.2, 2.5) for f in factors]
    if max(factors) == 1:
        return image_ZYX
    coarse = [max(4, round(size / f)) for f in factors]
    thick = F.interpolate(image_ZYX[None, None], size=coarse, mode="area")
    mode = "trilinear" if dice.chance(0.8) else "nearest"
    return F.interpolate(thick, size=(size,) * 3, mode=mode)[0, 0]


def ringing(image_ZYX: Tensor, dice: Dice) -> Tensor:
    """Gibbs ringing: the high frequencies along an axis or two are missing, as when MR acquires too few of them."""
    for axis in _some_axes(dice):
        spectrum = torch.fft.rfft(image_ZYX, dim=axis)
        kept = max(4, round(dice.uniform(0.3, 0.7) * spectrum.shape[axis]))
        spectrum.narrow(axis, kept, spectrum.shape[axis] - kept).zero_()
        image_ZYX = torch.fft.irfft(spectrum, n=image_ZYX.shape[axis], dim=axis)
    return image_ZYX


def motion(image_ZYX: Tensor, dice: Dice) -> Tensor:
    """Ghosts along an axis: part of the frequencies were acquired while the patient lay a few voxels off."""
    axis, size = dice.integer(0, 2), image_ZYX.shape[0]
    spectrum = torch.fft.rfft(image_ZYX, dim=axis)
    frequency = torch.arange(spectrum.shape[axis], device=image_ZYX.device)
    shift = dice.uniform(1.0, 4.0)
    moved = (frequency % dice.integer(2, 5) == 0) & (frequency > 0)
    phase = torch.where(moved, frequency * (2 * math.pi * shift / size), torch.zeros(()).to(image_ZYX))
    turn = torch.polar(torch.full_like(phase, 1.0), phase)
    shape = [-1 if a == axis else 1 for a in range(3)]
    return torch.fft.irfft(spectrum * turn.view(shape), n=size, dim=axis)


def metal(image_ZYX: Tensor, dice: Dice) -> Tensor:
    """An implant that outshines everything, with streaks that radiate from it within the slices that it lies in."""
    size = image_ZYX.shape[0]
    axis = dice.integer(0, 2)
    image = image_ZYX.movedim(axis, 0)
    u, v, w = (torch.arange(size, device=image.device) - dice.uniform(0.2, 0.8) * size for _ in range(3))
    angle = torch.atan2(v[:, None], w[None, :])
    distance = torch.hypot(v[:, None].expand(size, size), w[None, :].expand(size, size))
    spokes = dice.normal(dice.integer(24, 96))
    position = (angle / (2 * math.pi) + 0.5) * (len(spokes) - 1)
    low = position.long().clamp(0, len(spokes) - 2)
    streak = torch.lerp(spokes[low], spokes[low + 1], position - low)
    radius = dice.uniform(1.5, 0.06 * size + 2)
    fading = (radius / (distance + radius)).sqrt()
    along = torch.exp(-((u / (dice.uniform(1.0, 3.0) * radius)) ** 2))
    strength = dice.uniform(0.1, 0.5) * float(image.std().clamp_min(1e-3)) * 2
    streaked = image + strength * along[:, None, None] * (streak * fading)
    implant = (u[:, None, None] ** 2 + distance**2) < radius**2
    return streaked.masked_fill(implant, float(image.max()) + 4 * strength).movedim(0, axis)


def windowed(image_ZYX: Tensor, dice: Dice) -> Tensor:
    """Clipped to a window, as exported for a screen."""
    low, width = image_ZYX.min(), image_ZYX.max() - image_ZYX.min()
    return image_ZYX.clamp(low + dice.uniform(0, 0.3) * width, low + dice.uniform(0.7, 1) * width)


def _some_axes(dice: Dice) -> range:
    start = dice.integer(0, 2)
    return range(start, min(3, start + dice.integer(1, 2)))
