"""Synthetic scans: random anatomy, rendered like CT or MR, on the device that trains.

Learning from randomised synthetic volumes transfers to real scans (SynthSeg, Billot et al. 2023; Anatomix, Dey et al.
2024). Anatomy: partitions of smooth noise, warped ellipsoids, shells, vessel trees and lesions inside of what is there.
Rendering: contrasts from obvious to barely visible, texture, bias field, blur, thick slices, noise, cut fields of view.
"""

from __future__ import annotations

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .sample import Dice, Sample, gaussian_blur


def synthetic_sample(size: int, seed: int, device: torch.device) -> Sample:
    """A random crop of ``size`` voxels along each edge; the same seed gives the same sample on the same device."""
    dice = Dice(seed, device)
    labels, parents = draw_anatomy(size, dice)
    image, inside = render(labels, parents, dice)
    return Sample(image, inside, labels, parents)


def draw_anatomy(size: int, dice: Dice) -> Tuple[Tensor, List[int]]:
    """Random structures: labels (Z, Y, X) int64 and the parent of each label."""
    grid = _warped_grid(size, dice)
    count = dice.integer(2, 6)
    labels = dice.smooth_noise(count, size, size / dice.uniform(1.5, 6.0)).argmax(0) + 1
    parents = [0] * (count + 1)
    if dice.chance(0.4):
        body = _ellipsoid(grid, dice, radius=dice.uniform(0.35, 0.75) * size)
        labels = labels * body
    shapes = (_ellipsoid, _shell, _vessel_tree)
    for _ in range(dice.integer(3, 12)):
        kind = dice.pick([0.45, 0.12, 0.23, 0.2])
        mask = shapes[kind](grid, dice) if kind < 3 else _lesion(grid, labels, dice)
        host = labels[mask]
        if host.numel() < 6:
            continue
        parents.append(int(host.mode().values))
        labels = labels.masked_fill(mask, len(parents) - 1)
        if dice.chance(0.12):  # a thin wall: two sides of equal intensity with only an edge between them
            wall = (F.max_pool3d(mask[None].float(), 3, stride=1, padding=1)[0] > 0) & ~mask
            parents.append(parents[-1])
            labels = labels.masked_fill(wall, len(parents) - 1)
    return labels, parents


def _warped_grid(size: int, dice: Dice) -> Tensor:
    """Voxel coordinates (3, Z, Y, X) displaced by smooth noise, so that no shape drawn on them stays regular."""
    axis = torch.arange(size, device=dice.device, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    amplitude = dice.uniform(0.0, 0.06) * size
    fine = dice.uniform(0.0, 1.2)
    return grid + amplitude * dice.smooth_noise(3, size, size / 3) + fine * dice.smooth_noise(3, size, size / 10)


def _ellipsoid_level(grid: Tensor, dice: Dice, radius: float, centre: Tensor) -> Tensor:
    """Radius of every point in units of a random, rotated and lobulated ellipsoid's, (Z, Y, X)."""
    radii = radius * torch.exp(0.35 * dice.normal(3)).clamp(0.4, 2.2)
    rotation, _ = torch.linalg.qr(dice.normal(3, 3))
    offset = grid.flatten(1) - centre[:, None]
    power = 4.0 if dice.chance(0.2) else 2.0
    level = ((rotation @ offset).abs() / radii[:, None]).pow(power).sum(0).pow(1 / power).view(grid.shape[1:])
    if dice.chance(0.5):
        size = grid.shape[1]
        scale = max(3.0, radius * dice.uniform(0.4, 1.5))
        level = level + dice.uniform(0.05, 0.3) * dice.smooth_noise(1, size, min(scale, size / 2))[0]
    return level


def _ellipsoid(grid: Tensor, dice: Dice, radius: float = 0.0) -> Tensor:
    size = grid.shape[1]
    radius = radius or dice.log_uniform(1.5, 0.38 * size)
    return _ellipsoid_level(grid, dice, radius, dice.vector(3, 0.1 * size, 0.9 * size)) < 1


def _shell(grid: Tensor, dice: Dice) -> Tensor:
    size = grid.shape[1]
    radius = dice.log_uniform(4.0, 0.4 * size)
    level = _ellipsoid_level(grid, dice, radius, dice.vector(3, 0.15 * size, 0.85 * size))
    return (level - 1).abs() < dice.uniform(1.0, 3.5) / radius


def _lesion(grid: Tensor, labels: Tensor, dice: Dice) -> Tensor:
    """A blob centred in an existing structure and cut to it."""
    index = dice.vector(3, 0, grid.shape[1] - 1e-3).long()
    host = labels[tuple(index)]
    radius = dice.log_uniform(1.5, 0.2 * grid.shape[1])
    level = _ellipsoid_level(grid, dice, radius, grid[:, index[0], index[1], index[2]])
    return (level < 1) & (labels == host)


def _vessel_tree(grid: Tensor, dice: Dice) -> Tensor:
    """A curved tube, often with branches that thin out; distances are computed at half the resolution."""
    size = grid.shape[1]
    coarse = F.avg_pool3d(grid[None], 2)[0]
    radius = dice.log_uniform(1.2, 0.09 * size + 1)
    start, heading = dice.vector(3, 0, size), F.normalize(dice.normal(3), dim=0)
    nearest = torch.full(coarse.shape[1:], 1e3, device=grid.device)
    for _ in range(dice.integer(1, 3)):
        points = [start]
        bend = dice.uniform(0.05, 0.5)
        for _ in range(dice.integer(6, 16)):
            heading = F.normalize(heading + bend * dice.normal(3), dim=0)
            points.append(points[-1] + heading * size / 10)
        line = torch.stack(points)
        for a, b in zip(line[:-1], line[1:]):
            along = b - a
            offset = coarse.flatten(1) - a[:, None]
            t = ((along @ offset) / (along @ along)).clamp(0, 1)
            distance = (offset - along[:, None] * t).square().sum(0).sqrt().view(nearest.shape)
            nearest = torch.minimum(nearest, distance / radius)
        start = points[dice.integer(1, len(points) - 2)]
        heading, radius = F.normalize(dice.normal(3), dim=0), max(1.0, radius * dice.uniform(0.5, 0.9))
    return F.interpolate(nearest[None, None], scale_factor=2.0, mode="trilinear")[0, 0] < 1


def render(labels_ZYX: Tensor, parents: List[int], dice: Dice) -> Tuple[Tensor, Tensor]:
    """Intensities for an anatomy: (image, inside), both (Z, Y, X)."""
    size = labels_ZYX.shape[0]
    means = _label_means(parents, dice)
    spread = dice.vector(len(parents), 0.0, dice.uniform(0.01, 0.12))
    texture = dice.smooth_noise(1, size, dice.log_uniform(2.0, 8.0))[0] + 0.7 * gaussian_blur(
        dice.normal(size, size, size), [dice.uniform(0.0, 1.0)] * 3
    )
    image = means[labels_ZYX] + spread[labels_ZYX] * texture
    if dice.chance(0.3):  # gradual intensity within a structure
        image = image + dice.uniform(0.02, 0.15) * dice.smooth_noise(1, size, size / 2)[0]
    if dice.chance(0.5):
        image = image * torch.exp(dice.uniform(0.05, 0.35) * dice.smooth_noise(1, size, size / 1.5)[0])
    image = gaussian_blur(image, [dice.uniform(0.0, 1.0)] * 3)
    noise = dice.uniform(0.0, 0.06) if dice.chance(0.9) else dice.uniform(0.06, 0.15)
    image = image + noise * dice.normal(size, size, size)
    return degrade(image, dice), cut_field_of_view(size, dice)


def _label_means(parents: List[int], dice: Dice) -> Tensor:
    """Mean intensity of each label: unrelated, CT-like, or close to the parent's."""
    means = dice.vector(len(parents), 0.0, 1.0)
    if dice.chance(0.35):  # CT: air, fat, much soft tissue of nearly the same value, bone
        levels = means.new_tensor([0.0, 0.42, 0.5, 0.56, 0.85])
        which = [dice.pick([0.08, 0.2, 0.35, 0.25, 0.12]) for _ in parents]
        means = levels[which] + 0.03 * dice.normal(len(parents))
    for label, parent in enumerate(parents):
        if parent and dice.chance(0.6):
            sign = 1.0 if dice.chance(0.5) else -1.0
            means[label] = means[parent] + sign * dice.log_uniform(0.03, 0.35)
    means[0] = dice.uniform(-0.05, 0.05) if dice.chance(0.8) else dice.uniform(0, 1)
    return means


def degrade(image_ZYX: Tensor, dice: Dice) -> Tensor:
    """What a scanner and an export do: thick slices, low resolution, a window, gamma."""
    size = image_ZYX.shape[0]
    factors = [1.0, 1.0, 1.0]
    if dice.chance(0.3):
        factors[dice.integer(0, 2)] = dice.uniform(2.0, 5.0)
    if dice.chance(0.3):
        factors = [f * dice.uniform(1.2, 2.5) for f in factors]
    if max(factors) > 1:
        coarse = [max(4, round(size / f)) for f in factors]
        thick = F.interpolate(image_ZYX[None, None], size=coarse, mode="area")
        mode = "trilinear" if dice.chance(0.8) else "nearest"
        image_ZYX = F.interpolate(thick, size=(size,) * 3, mode=mode)[0, 0]
    if dice.chance(0.2):
        low, width = image_ZYX.min(), image_ZYX.max() - image_ZYX.min()
        image_ZYX = image_ZYX.clamp(low + dice.uniform(0, 0.3) * width, low + dice.uniform(0.7, 1) * width)
    if dice.chance(0.3):
        image_ZYX = -image_ZYX
    return image_ZYX


def cut_field_of_view(size: int, dice: Dice) -> Tensor:
    """Which voxels lie inside the scan: all, or all but a margin on some sides."""
    inside = torch.ones(size, size, size, dtype=torch.bool, device=dice.device)
    if dice.chance(0.35):
        for axis in range(3):
            for side in range(2):
                if dice.chance(0.3):
                    width = dice.integer(1, size // 3)
                    start = 0 if side == 0 else size - width
                    inside.narrow(axis, start, width).fill_(False)
    return inside
