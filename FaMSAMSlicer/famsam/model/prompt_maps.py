"""Prompts as maps that carry image evidence, at full resolution near the click and far-reaching along the image.

Clicks become, for positive and negative ones each: a ball; exp(-geodesic distance), which stops at edges (as in
DeepIGeoS, Wang et al. 2018); and exp(-|I - I at the click|). The decoder adds learned similarity to these.

Shape legend: B batch, N prompts, K maps, z y x low-resolution voxels, size 64 for a 128-voxel crop.
"""

from __future__ import annotations

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIVE, NEGATIVE, BOX_LOWER, BOX_UPPER = 1, 0, 2, 3
FAR = 1e3
"""A distance that stands for "no such click"."""


def point_masks(labels_BN: Tensor) -> Tuple[Tensor, Tensor]:
    """Which prompts are positive clicks and which are negative ones, (B, N) bool each."""
    return labels_BN == POSITIVE, labels_BN == NEGATIVE


def squared_click_distance(points_BN3: Tensor, chosen_BN: Tensor, size_zyx: Tuple[int, ...]) -> Tensor:
    """Squared distance in voxels from every voxel to the nearest chosen click, (B, z, y, x); ``FAR``² without one."""
    axes = [torch.arange(n, device=points_BN3.device, dtype=torch.float32) for n in size_zyx]
    z, y, x = ((a - points_BN3[..., i, None].float()) ** 2 for i, a in enumerate(axes))
    z = z + torch.where(chosen_BN, 0.0, FAR**2)[..., None]
    distance = torch.full((len(points_BN3), *size_zyx), FAR**2, device=points_BN3.device)
    for n in range(points_BN3.shape[1]):
        zy = z[:, n, :, None, None] + y[:, n, None, :, None]
        distance = torch.minimum(distance, zy + x[:, n, None, None, :])
    return distance


def intensity_difference(smooth_BZYX: Tensor, points_BN3: Tensor, chosen_BN: Tensor) -> Tensor:
    """min over the chosen clicks of |I - I at the click|, (B, z, y, x); ``FAR`` without one."""
    at_clicks_BN = gather_points(smooth_BZYX[:, None], points_BN3)[..., 0]
    difference = torch.full_like(smooth_BZYX, FAR)
    for n in range(points_BN3.shape[1]):
        candidate = (smooth_BZYX - at_clicks_BN[:, n, None, None, None]).abs_()
        candidate += torch.where(chosen_BN[:, n], 0.0, FAR)[:, None, None, None]
        difference = torch.minimum(difference, candidate)
    return difference


def gather_points(features_BCzyx: Tensor, points_BN3: Tensor) -> Tensor:
    """Features at the voxels nearest to the points: (B, C, z, y, x), (B, N, 3) -> (B, N, C)."""
    sizes = features_BCzyx.shape[2:]
    z, y, x = (points_BN3[..., i].round().long().clamp(0, n - 1) for i, n in enumerate(sizes))
    flat_BN = (z * sizes[1] + y) * sizes[2] + x
    flat_BCM = features_BCzyx.flatten(2)
    return torch.gather(flat_BCM, 2, flat_BN[:, None].expand(-1, flat_BCM.shape[1], -1)).transpose(1, 2)


def geodesic_distance(
    image_BZYX: Tensor, points_BN3: Tensor, chosen_BN: Tensor, edge_weight: float = 20.0, rounds: int = 3
) -> Tensor:
    """Cheapest axis-aligned path from the chosen clicks, (B, z, y, x); a step costs 1 + edge_weight * |dI|.

    Along one axis the cheapest straight run from every voxel to every other is exact in one cumulative minimum:
    ``d_i = min_j d_j + |c_i - c_j|`` with ``c`` the cumulated cost. A round does that along z, y and x; ``rounds``
    bounds the number of bends of a path.
    """
    batch, sizes = len(image_BZYX), image_BZYX.shape[1:]
    distance = torch.full_like(image_BZYX, FAR)
    z, y, x = (points_BN3[..., i].round().long().clamp(0, n - 1) for i, n in enumerate(sizes))
    rows, columns = chosen_BN.nonzero(as_tuple=True)
    distance[rows, z[rows, columns], y[rows, columns], x[rows, columns]] = 0.0
    if len(rows) == 0:
        return distance
    # All clicks of an item spread together; the last axis is made contiguous in turn so that cummin runs along memory.
    image, order = image_BZYX, (0, 2, 3, 1)
    cumulated = []
    for _ in range(3):
        image = image.permute(order).contiguous()
        steps = 1.0 + edge_weight * image.diff(dim=-1).abs()
        cumulated.append(F.pad(steps.cumsum(-1), (1, 0)))
    for _ in range(rounds):
        for cost in cumulated:
            distance = distance.permute(order).contiguous()
            forward = (distance - cost).cummin(-1).values + cost
            backward = (distance + cost).flip(-1).cummin(-1).values.flip(-1) - cost
            distance = torch.minimum(forward, backward)
    return distance.clamp_max_(FAR).view(batch, *sizes)


def box_map(points_BN3: Tensor, labels_BN: Tensor, size_zyx: Tuple[int, ...]) -> Tensor:
    """1 inside the box prompt, 0 outside and where an item has none, (B, z, y, x)."""
    inside = torch.zeros((len(points_BN3), *size_zyx), device=points_BN3.device)
    lower, upper = labels_BN == BOX_LOWER, labels_BN == BOX_UPPER
    if not lower.any():
        return inside
    for b in lower.any(dim=1).nonzero()[:, 0].tolist():
        for low, high in zip(points_BN3[b][lower[b]], points_BN3[b][upper[b]]):
            z0, y0, x0 = (max(0, int(v)) for v in low.floor().tolist())
            z1, y1, x1 = (int(v) + 1 for v in high.ceil().tolist())
            inside[b, z0:z1, y0:y1, x0:x1] = 1.0
    return inside


def keep_clicks(logits_BMzyx: Tensor, points_BN3: Tensor, labels_BN: Tensor, radius: float = 1.0) -> Tensor:
    """Logits that obey the clicks: at least +2 within ``radius`` voxels of a positive click, at most -2 near a
    negative one; where both are near, the nearer click decides.

    Args:
        points_BN3: in voxels of the logits' grid.
    """
    positive, negative = point_masks(labels_BN)
    sizes = tuple(logits_BMzyx.shape[2:])
    to_positive = squared_click_distance(points_BN3, positive, sizes)[:, None]
    to_negative = squared_click_distance(points_BN3, negative, sizes)[:, None]
    near_positive = (to_positive <= radius**2) & (to_positive <= to_negative)
    near_negative = (to_negative <= radius**2) & (to_negative < to_positive)
    logits = torch.where(near_positive, logits_BMzyx.clamp_min(2.0), logits_BMzyx)
    return torch.where(near_negative, logits.clamp_max(-2.0), logits)
