"""Prompts as maps that carry image evidence, at full resolution near the click and far-reaching along the image.

Clicks become, for positive and negative ones each: a ball; exp(-geodesic distance), which stops at edges (as in
DeepIGeoS, Wang et al. 2018); and exp(-|I - I at the click|). The decoder adds learned similarity to these.

On a CPU most maps are made click by click, only where a click reaches. On a GPU that would wait for every number that
decides what comes next, and could not be recorded as a CUDA graph: there the same maps are made of all clicks at once
(``…_at_once``), whatever they are.

Shape legend: B batch, N prompts, K choices of clicks, V kinds of costs, z y x low-resolution voxels, size 64 for a
128-voxel crop.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import FrozenSet, List, Optional, Tuple

import torch
from torch import Tensor

from . import line_minimum

POSITIVE, NEGATIVE, BOX_LOWER, BOX_UPPER = 1, 0, 2, 3
FAR = 1e3
"""A distance that stands for "no such click"."""


def point_masks(labels_BN: Tensor) -> Tuple[Tensor, Tensor]:
    """Which prompts are positive clicks and which are negative ones, (B, N) bool each."""
    return labels_BN == POSITIVE, labels_BN == NEGATIVE


def ball_map(points_BN3: Tensor, chosen_BN: Tensor, size_zyx: Tuple[int, ...], variance: float = 9.0) -> Tensor:
    """exp(-d² / variance) with d the distance in voxels to the nearest chosen click, (B, z, y, x); 0 without one.

    Beyond four standard widths, where it would be below 1.2e-7, it is 0.
    """
    if points_BN3.is_cuda:
        return ball_map_at_once(points_BN3, chosen_BN, size_zyx, variance)
    reach = math.ceil(4 * math.sqrt(variance))
    ball = torch.zeros((len(points_BN3), *size_zyx), device=points_BN3.device)
    along = torch.arange(max(size_zyx), device=points_BN3.device, dtype=torch.float32)
    shares_BN3 = torch.exp((along - points_BN3.float()[..., None]).square_() / -variance)
    for b, n in chosen_BN.nonzero().tolist():
        window, shares = [b], []
        for at, size, share in zip(points_BN3[b, n].tolist(), size_zyx, shares_BN3[b, n]):
            low, high = max(0, math.floor(at) - reach), min(size, math.ceil(at) + reach + 1)
            window.append(slice(low, max(low, high)))
            shares.append(share[window[-1]])
        z, y, x = shares
        part = ball[tuple(window)]
        torch.maximum(part, (z[:, None, None] * y[:, None]) * x, out=part)
    return ball


def ball_map_at_once(
    points_BN3: Tensor, chosen_BN: Tensor, size_zyx: Tuple[int, ...], variance: float = 9.0
) -> Tensor:
    """``ball_map`` without a look at the values."""
    return torch.exp(nearest_squared(points_BN3, chosen_BN, size_zyx) / -variance)


def nearest_squared(points_BN3: Tensor, chosen_BN: Tensor, size_zyx: Tuple[int, ...]) -> Tensor:
    """Squared distance in voxels to the nearest chosen click, (B, z, y, x); ``FAR``² without one."""
    z, y, x = (
        (torch.arange(n, device=points_BN3.device) - points_BN3[..., axis, None].float()).square()
        for axis, n in enumerate(size_zyx)
    )
    z = z + torch.where(chosen_BN, 0.0, FAR**2)[:, :, None]
    squared_BNzyx = z[:, :, :, None, None] + y[:, :, None, :, None] + x[:, :, None, None, :]
    return squared_BNzyx.amin(1).clamp_max(FAR**2)


def intensity_likeness(smooth_BZYX: Tensor, points_BN3: Tensor, chosen_BN: Tensor, sharpness: float = 4.0) -> Tensor:
    """exp(-sharpness |I - I at the click|) with the most alike of the chosen clicks, (B, z, y, x); 0 without one."""
    if smooth_BZYX.is_cuda:
        return intensity_likeness_at_once(smooth_BZYX, points_BN3, chosen_BN, sharpness)
    some_N = chosen_BN.any(dim=0).nonzero()[:, 0].tolist()
    if not some_N:  # an exponential function that ends at 0 takes ten times as long
        return torch.zeros_like(smooth_BZYX)
    at_clicks_BN = gather_points(smooth_BZYX[:, None], points_BN3)[..., 0]
    least: Optional[Tensor] = None
    for n in some_N:
        difference = (smooth_BZYX - at_clicks_BN[:, n, None, None, None]).abs_()
        if not bool(chosen_BN[:, n].all()):  # not of every item
            difference += torch.where(chosen_BN[:, n], 0.0, FAR)[:, None, None, None]
        least = difference if least is None else torch.minimum(least, difference)
    assert least is not None
    return least.mul_(-sharpness).exp_()


def intensity_likeness_at_once(
    smooth_BZYX: Tensor, points_BN3: Tensor, chosen_BN: Tensor, sharpness: float = 4.0
) -> Tensor:
    """``intensity_likeness`` without a look at the values."""
    at_clicks_BN = gather_points(smooth_BZYX[:, None], points_BN3)[..., 0]
    far_BN = torch.where(chosen_BN, 0.0, FAR)[:, :, None, None, None]
    difference = ((smooth_BZYX[:, None] - at_clicks_BN[:, :, None, None, None]).abs() + far_BN).amin(1)
    return torch.exp(-sharpness * difference)


def gather_points(features_BCzyx: Tensor, points_BN3: Tensor) -> Tensor:
    """Features at the voxels nearest to the points: (B, C, z, y, x), (B, N, 3) -> (B, N, C)."""
    sizes = features_BCzyx.shape[2:]
    z, y, x = (points_BN3[..., i].round().long().clamp(0, n - 1) for i, n in enumerate(sizes))
    flat_BN = (z * sizes[1] + y) * sizes[2] + x
    flat_BCM = features_BCzyx.flatten(2)
    return torch.gather(flat_BCM, 2, flat_BN[:, None].expand(-1, flat_BCM.shape[1], -1)).transpose(1, 2)


def distance_map(points_BN3: Tensor, chosen_BN: Tensor, size_zyx: Tuple[int, ...], reach: float) -> Tensor:
    """exp(-d / reach) with d the distance in voxels to the nearest chosen click, (B, z, y, x); 0 without one."""
    return torch.exp(nearest_squared(points_BN3, chosen_BN, size_zyx).sqrt() / -reach)


@dataclass(frozen=True)
class StepCost:
    """What one step of a path costs: ``step + linear * |dI| + square * dI²``."""

    step: float = 1.0
    linear: float = 20.0
    square: float = 0.0


NEAR_AND_ALIKE = StepCost()
"""Far is what lies behind an edge, and what is far away."""
SAME_REGION = StepCost(step=0.05, linear=0.0, square=100.0)
"""Far is what lies behind an edge, however near; noise hardly counts, and neither does the length of the path."""


def path_costs(image_BZYX: Tensor, cost: StepCost = NEAR_AND_ALIKE) -> Tensor:
    """Cost of the way along z, y and x from the border to every voxel, (B, 3, z, y, x)."""
    costs = []
    for axis in (1, 2, 3):
        steps = torch.zeros_like(image_BZYX)
        change = image_BZYX.diff(dim=axis).abs_()
        price = change.mul(cost.square).add_(cost.linear).mul_(change).add_(cost.step)
        steps.narrow(axis, 1, steps.shape[axis] - 1).copy_(price)
        costs.append(steps.cumsum(axis))
    return torch.stack(costs, dim=1)


def geodesic_distance(costs_VB3zyx: Tensor, points_BN3: Tensor, chosen_KBN: Tensor, rounds: int = 3) -> Tensor:
    """Cheapest axis-aligned path from the chosen clicks of each of K choices, for each of V kinds of costs.

    Along one axis the cheapest straight run from every voxel to every other is exact in one cumulative minimum:
    ``d_i = min_j d_j + |c_i - c_j|`` with ``c`` the cumulated cost. A round does that along z, y and x; ``rounds``
    bounds the number of bends of a path.

    Args:
        costs_VB3zyx: see ``path_costs``, one for each kind.

    Returns:
        (V, K, B, z, y, x); ``FAR`` where there is no click of that choice.
    """
    sizes = costs_VB3zyx.shape[3:]
    distance = torch.full((len(costs_VB3zyx), *chosen_KBN.shape[:2], *sizes), FAR, device=costs_VB3zyx.device)
    z, y, x = (points_BN3[..., i].round().long().clamp(0, n - 1) for i, n in enumerate(sizes))
    at_click_BN = (z * sizes[1] + y) * sizes[2] + x
    start_KBN = torch.where(chosen_KBN, 0.0, FAR).expand(len(distance), -1, -1, -1)
    distance.flatten(3).scatter_reduce_(3, at_click_BN.expand(start_KBN.shape), start_KBN, "amin")
    if not distance.is_cuda and not bool(chosen_KBN.any()):
        return distance
    if line_minimum.is_fast_on(distance):
        alongs = [costs_VB3zyx[:, :, axis].contiguous() for axis in range(3)]
        for _ in range(rounds):
            for axis, cost in enumerate(alongs):
                line_minimum.cheapest_runs(distance, cost, axis)
        return distance.clamp_max_(FAR)
    for _ in range(rounds):
        for axis in range(3):
            cost, along = costs_VB3zyx[:, None, :, axis], 3 + axis
            both = torch.stack([distance - cost, (distance + cost).flip(along)])
            forward, backward = running_minimum(both, 1 + along)
            distance = torch.minimum(forward.add_(cost), backward.flip(along).sub_(cost))
    return distance.clamp_max_(FAR)


def faded(distance: Tensor) -> Tensor:
    """exp(-distance), which may be changed, any shape; where that would vanish, the least number a CPU is fast with."""
    return distance.clamp_max_(87.0).neg_().exp_()


Voxels = FrozenSet[Tuple[int, ...]]
"""Where clicks of one sign lie (z, y, x)."""


class PathMemory:
    """Geodesic distances in one crop, kept for the next click: with one more click only its own paths are new.

    The distance from several clicks is the minimum of those from each, to the last bit, since sums round the same way
    whatever they are compared with. Several threads may share it.

    Args:
        most: so many sets of clicks are kept (128 KiB for each kind of cost at 32³), those that were not needed for
            longest dropped first.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._kept: OrderedDict[Voxels, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def distance(self, costs_VB3zyx: Tensor, points_BN3: Tensor, chosen_KBN: Tensor) -> Tensor:
        """``geodesic_distance`` for B = 1, always with the costs of the same crop: (V, K, 1, z, y, x)."""
        sizes = costs_VB3zyx.shape[3:]
        last = torch.tensor(sizes, device=points_BN3.device) - 1
        voxels = [tuple(voxel) for voxel in points_BN3[0].round().long().clamp_min(0).minimum(last).tolist()]
        distances: List[Optional[Tensor]] = []
        open_to = []
        for which_BN in chosen_KBN.tolist():
            choice = frozenset(voxel for voxel, chosen in zip(voxels, which_BN[0]) if chosen)
            part, known = self._most_of(choice)
            rest, known_too = self._most_of(choice - part)
            if choice != part and rest == choice - part and known is not None and known_too is not None:
                part, known = choice, self._keep(choice, torch.minimum(known, known_too))
            if choice != part:
                open_to.append((len(distances), choice, [[voxel in choice - part for voxel in voxels]]))
            distances.append(known)
        if open_to:
            new_KBN = torch.tensor([new for _, _, new in open_to], device=points_BN3.device)
            paths = geodesic_distance(costs_VB3zyx, points_BN3, new_KBN).unbind(1)
            for (k, choice, _), path in zip(open_to, paths):
                known = distances[k]
                distances[k] = self._keep(choice, path if known is None else torch.minimum(known, path))
        none = torch.full((len(costs_VB3zyx), 1, *sizes), FAR, device=costs_VB3zyx.device)
        return torch.stack([none if distance is None else distance for distance in distances], dim=1)

    def _most_of(self, choice: Voxels) -> Tuple[Voxels, Optional[Tensor]]:
        """The largest kept part of a set of clicks, and the distances from it."""
        with self._lock:
            parts: List[Voxels] = [kept for kept in self._kept if kept <= choice]
            if not parts:
                return frozenset(), None
            largest = max(parts, key=len)
            self._kept.move_to_end(largest)
            return largest, self._kept[largest]

    def _keep(self, choice: Voxels, distance: Tensor) -> Tensor:
        with self._lock:
            self._kept[choice] = distance
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return distance


def running_minimum(values: Tensor, axis: int) -> Tensor:
    """Cumulative minimum along an axis; may change ``values``."""
    if values.is_cuda:
        return values.cummin(axis).values
    if axis == values.ndim - 1:  # neighbours in memory: planes of single voxels would be slow
        reach, length = 1, values.shape[axis]
        while reach < length:
            wider = values.clone()
            further = wider.narrow(axis, reach, length - reach)
            torch.minimum(further, values.narrow(axis, 0, length - reach), out=further)
            values, reach = wider, 2 * reach
        return values
    planes = values.unbind(axis)
    for before, here in zip(planes, planes[1:]):
        torch.minimum(here, before, out=here)
    return values


def box_map(points_BN3: Tensor, labels_BN: Tensor, size_zyx: Tuple[int, ...]) -> Tensor:
    """1 inside the box prompt, 0 outside and where an item has none, (B, z, y, x)."""
    if points_BN3.is_cuda:
        return box_map_at_once(points_BN3, labels_BN, size_zyx)
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


def box_map_at_once(points_BN3: Tensor, labels_BN: Tensor, size_zyx: Tuple[int, ...]) -> Tensor:
    """``box_map`` without a look at the values; the upper corner must follow the lower one."""
    low_BN3, high_BN3 = points_BN3.floor(), points_BN3.roll(-1, dims=1).ceil()
    z, y, x = (
        (low_BN3[..., axis, None] <= torch.arange(n, device=points_BN3.device))
        & (torch.arange(n, device=points_BN3.device) <= high_BN3[..., axis, None])
        for axis, n in enumerate(size_zyx)
    )
    is_box_BN = (labels_BN == BOX_LOWER)[:, :, None, None, None]
    inside_BNzyx = z[:, :, :, None, None] & y[:, :, None, :, None] & x[:, :, None, None, :] & is_box_BN
    return inside_BNzyx.any(1).float()


def one_way(logits_BMzyx: Tensor, previous_B1zyx: Tensor, newest_B: Tensor) -> Tensor:
    """Logits that a positive click did not lower anywhere, nor a negative one raise.

    What a network changes against the sense of a click is worse than what was there more often than not.

    Args:
        previous_B1zyx: the logits before the click.
        newest_B: the newest prompt's label; only those of clicks change anything.
    """
    label_B1111 = newest_B.view(-1, 1, 1, 1, 1)
    raised = torch.where(label_B1111 == POSITIVE, torch.maximum(logits_BMzyx, previous_B1zyx), logits_BMzyx)
    return torch.where(label_B1111 == NEGATIVE, torch.minimum(raised, previous_B1zyx), raised)


MOST_GROWTH, FREE_GROWTH = 2.0, 512
"""See ``restrained``: how many times the voxels that were there, and how many voxels in any case."""


def restrained(
    logits_B1zyx: Tensor, previous_B1zyx: Tensor, at_B3: Tensor, newest_B: Tensor, least_added: float = 0.0
) -> Tensor:
    """Logits with which a positive click adds only what is certain enough, and no more than ``MOST_GROWTH`` times what
    was there before it.

    A click that adds more than that has leaked more often than not; of what it would add, the most certain part stays.
    A first mask is as large as it is found.

    Args:
        logits_B1zyx, previous_B1zyx: the logits after the click and before it.
        at_B3: the click (z, y, x), in voxels of the logits' grid; what is found right beside it stays as it is.
        newest_B: the newest prompt's label; only positive clicks change anything.
        least_added: a positive click adds what has a larger logit; see ``PromptableModel.least_added``.

    Returns:
        (B, 1, z, y, x).
    """
    if logits_B1zyx.is_cuda:
        return restrained_at_once(logits_B1zyx, previous_B1zyx, at_B3, newest_B, least_added)
    items = zip(logits_B1zyx[:, 0], previous_B1zyx[:, 0], at_B3, newest_B.tolist())
    parts = [
        _restrained(logits, previous, at, least_added) if label == POSITIVE else logits
        for logits, previous, at, label in items
    ]
    return torch.stack(parts)[:, None]


def _restrained(logits_zyx: Tensor, previous_zyx: Tensor, at_3: Tensor, least: float) -> Tensor:
    """``restrained`` for one positive click."""
    inside = previous_zyx > 0
    before = int(inside.sum())
    if before == 0:
        return logits_zyx
    most = max(int(MOST_GROWTH * before), FREE_GROWTH)
    added = logits_zyx[(logits_zyx > least) & ~inside]
    if len(added) > most:
        least = float(added.kthvalue(len(added) - most).values)
    lowered = torch.where(inside, logits_zyx, logits_zyx - least)
    beside = tuple(slice(max(0, round(at) - 1), max(0, round(at) + 2)) for at in at_3.tolist())
    lowered[beside] = logits_zyx[beside]
    return lowered


def restrained_at_once(
    logits_B1zyx: Tensor, previous_B1zyx: Tensor, at_B3: Tensor, newest_B: Tensor, least_added: float = 0.0
) -> Tensor:
    """``restrained`` without a look at the values."""
    inside = previous_B1zyx > 0
    before_B1 = inside.flatten(1).sum(1, keepdim=True)
    most_B1 = (MOST_GROWTH * before_B1).long().clamp(FREE_GROWTH, inside[0].numel() - 1)
    ranked_BV = torch.where(inside, -FAR, logits_B1zyx).flatten(1).sort(dim=1, descending=True).values
    least_B1 = ranked_BV.gather(1, most_B1).clamp_min(least_added)
    z, y, x = (
        (torch.arange(n, device=at_B3.device) - at_B3[:, axis, None].round()).abs() <= 1
        for axis, n in enumerate(logits_B1zyx.shape[2:])
    )
    beside = (z[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :])[:, None]
    free_B1 = (newest_B != POSITIVE)[:, None] | (before_B1 == 0)
    lowered = logits_B1zyx - least_B1.view(-1, 1, 1, 1, 1)
    return torch.where(inside | beside | free_B1.view(-1, 1, 1, 1, 1), logits_B1zyx, lowered)


def keep_clicks(logits_BMzyx: Tensor, points_BN3: Tensor, labels_BN: Tensor, radius: float = 1.0) -> Tensor:
    """Logits that obey the clicks: at least +2 within ``radius`` voxels of a positive click, at most -2 near a
    negative one; where both are near, the nearer click decides.

    Args:
        points_BN3: in voxels of the logits' grid.
    """
    batch, masks, *sizes = logits_BMzyx.shape
    if points_BN3.shape[1] == 0:
        return logits_BMzyx
    reach = torch.arange(-math.ceil(radius), math.ceil(radius) + 1, device=points_BN3.device, dtype=torch.float32)
    around_V3 = torch.cartesian_prod(reach, reach, reach)
    near_BV3 = (points_BN3.float().round()[:, :, None] + around_V3).flatten(1, 2)
    voxels_BV3 = torch.stack([at.clamp(0, n - 1) for at, n in zip(near_BV3.unbind(-1), sizes)], dim=-1)
    squared_BVN = (voxels_BV3[:, :, None] - points_BN3[:, None].float()).square_().sum(-1)
    positive, negative = (
        squared_BVN.masked_fill(~chosen[:, None], FAR**2).amin(-1) for chosen in point_masks(labels_BN)
    )
    near_positive = ((positive <= radius**2) & (positive <= negative))[:, None]
    near_negative = ((negative <= radius**2) & (negative < positive))[:, None]
    z, y, x = voxels_BV3.long().unbind(-1)
    flat_BMV = ((z * sizes[1] + y) * sizes[2] + x)[:, None].expand(-1, masks, -1)
    logits = logits_BMzyx.flatten(2)
    at_clicks = logits.gather(2, flat_BMV)
    at_clicks = torch.where(near_positive, at_clicks.clamp_min(2.0), at_clicks)
    at_clicks = torch.where(near_negative, at_clicks.clamp_max(-2.0), at_clicks)
    return logits.scatter(2, flat_BMV, at_clicks).view(batch, masks, *sizes)
