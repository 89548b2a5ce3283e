"""The shapes that synthetic anatomy is made of, drawn on a warped grid so that none stays regular.

Shape legend: Z Y X voxels of a cube; a level is 1 on a shape's surface and smaller inside.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .sample import Dice

REACH = 1.7
"""A lobulated ellipsoid stays within so many times its largest radius."""


class Canvas:
    """Voxel coordinates displaced by smooth noise.

    Attributes:
        grid: (3, Z, Y, X) displaced coordinates in voxels.
        size: voxels along each edge.
    """

    def __init__(self, size: int, dice: Dice) -> None:
        axis = torch.arange(size, device=dice.device, dtype=torch.float32)
        straight = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
        amplitude = dice.uniform(0.0, 0.06) * size
        fine = dice.uniform(0.0, 1.2)
        shift = amplitude * dice.smooth_noise(3, size, size / 3) + fine * dice.smooth_noise(3, size, size / 10)
        self.grid = straight + shift
        self.size = size
        self.largest_shift = float(shift.abs().max())

    def level(self, dice: Dice, radius: float, centre: Tensor) -> Tensor:
        """Radius of every point in units of a random, rotated and often lobulated ellipsoid's, (Z, Y, X).

        Far from the ellipsoid, where nothing is computed, the level is infinite.

        Args:
            radius: mean radius in voxels.
            centre: (3,) displaced coordinates, on the CPU.
        """
        radii = radius * torch.exp(0.35 * dice.few_normal(3)).clamp(0.4, 2.2)
        rotation, _ = torch.linalg.qr(dice.few_normal(3, 3))
        box = self._around(centre, REACH * float(radii.max()) + self.largest_shift)
        part = self.grid[:, box[0], box[1], box[2]]
        to_unit = rotation / radii[:, None]
        from_unit = to_unit @ centre[:, None]
        to_unit, from_unit = (t.to(part.device, non_blocking=True) for t in (to_unit, from_unit))
        squares = torch.addmm(from_unit, to_unit, part.flatten(1), beta=-1).square_()
        boxy = dice.chance(0.2)
        level = (squares.square_().sum(0).sqrt_().sqrt_() if boxy else squares.sum(0).sqrt_()).view(part.shape[1:])
        if dice.chance(0.5):
            scale = max(3.0, radius * dice.uniform(0.4, 1.5))
            lobes = dice.smooth_noise(1, max(part.shape[1:]), min(scale, self.size / 2))[0]
            level += dice.uniform(0.05, 0.3) * lobes[tuple(slice(0, n) for n in level.shape)].clamp(-2, 2)
        whole = torch.full(self.grid.shape[1:], float("inf"), device=self.grid.device)
        whole[box] = level
        return whole

    def anywhere(self, dice: Dice, margin: float) -> Tensor:
        """A random point (on the CPU), at least the fraction ``margin`` of the size away from the border."""
        return dice.few_uniform(3, margin * self.size, (1 - margin) * self.size)

    def _around(self, centre: Tensor, reach: float) -> Tuple[slice, ...]:
        """The box of voxels that can lie within ``reach`` of a point; never empty."""
        middle = [min(max(c, 0.0), self.size - 1.0) for c in centre.tolist()]
        return tuple(slice(max(0, int(c - reach)), min(self.size, int(c + reach) + 2)) for c in middle)


def ellipsoid(canvas: Canvas, dice: Dice, radius: float = 0.0) -> Tensor:
    """A lobulated ellipsoid of any size, or of a given mean radius in voxels."""
    radius = radius or dice.log_uniform(1.5, 0.38 * canvas.size)
    return canvas.level(dice, radius, canvas.anywhere(dice, 0.1)) < 1


def shell(canvas: Canvas, dice: Dice) -> Tensor:
    """The wall of an ellipsoid, 2 to 7 voxels thick."""
    radius = dice.log_uniform(4.0, 0.4 * canvas.size)
    level = canvas.level(dice, radius, canvas.anywhere(dice, 0.15))
    return (level - 1).abs() < dice.uniform(1.0, 3.5) / radius


def nested(canvas: Canvas, dice: Dice) -> List[Tensor]:
    """Two to four structures, each inside the one before."""
    level = canvas.level(dice, dice.log_uniform(6.0, 0.4 * canvas.size), canvas.anywhere(dice, 0.15))
    depth, masks = 1.0, [level < 1]
    for _ in range(dice.integer(1, 3)):
        depth *= dice.uniform(0.45, 0.9)
        masks.append(level < depth)
    return masks


def bone(canvas: Canvas, dice: Dice) -> List[Tensor]:
    """A bone and the marrow within its cortex, which is 1 to 3 voxels thick."""
    radius = dice.log_uniform(4.0, 0.25 * canvas.size)
    level = canvas.level(dice, radius, canvas.anywhere(dice, 0.05))
    whole = level < 1
    marrow = level < 1 - min(0.5, dice.uniform(1.0, 3.0) / radius)
    return [whole, marrow & ~grown(~whole)]


def lesion(canvas: Canvas, labels: Tensor, dice: Dice) -> Tensor:
    """A blob centred in an existing structure and cut to it."""
    z, y, x = dice.few_uniform(3, 0, canvas.size - 1e-3).long().tolist()
    host = labels[z, y, x]
    radius = dice.log_uniform(1.5, 0.2 * canvas.size)
    level = canvas.level(dice, radius, canvas.grid[:, z, y, x].cpu())
    return (level < 1) & (labels == host)


def vessel_tree(canvas: Canvas, dice: Dice) -> Tensor:
    """A curved tube, often with branches that thin out; distances are computed at half the resolution."""
    size = canvas.size
    coarse = F.avg_pool3d(canvas.grid[None], 2)[0]
    radius = dice.log_uniform(1.2, 0.09 * size + 1)
    start, heading = dice.few_uniform(3, 0, size), F.normalize(dice.few_normal(3), dim=0)
    nearest = torch.full(coarse.shape[1:], 1e3, device=coarse.device)
    for _ in range(dice.integer(1, 3)):
        points = [start]
        bend = dice.uniform(0.05, 0.5)
        for _ in range(dice.integer(6, 16)):
            heading = F.normalize(heading + bend * dice.few_normal(3), dim=0)
            points.append(points[-1] + heading * size / 10)
        distance = distance_to_line(coarse.flatten(1), torch.stack(points)).view(nearest.shape)
        nearest = torch.minimum(nearest, distance.div_(radius))
        start = points[dice.integer(1, len(points) - 2)]
        heading, radius = F.normalize(dice.few_normal(3), dim=0), max(1.0, radius * dice.uniform(0.5, 0.9))
    return F.interpolate(nearest[None, None], scale_factor=2.0, mode="trilinear")[0, 0] < 1


def distance_to_line(places_3V: Tensor, line_P3: Tensor, at_once: int = 0) -> Tensor:
    """How far each of V places is from a line of straight segments through P points, (V,).

    Args:
        line_P3: on the CPU.
        at_once: so many segments at a time; by default one on a CPU, which its cache holds, elsewhere all.
    """
    at_once = at_once or (1 if places_3V.device.type == "cpu" else len(line_P3))
    start_S3, along_S3 = line_P3[:-1], line_P3.diff(dim=0)
    length_S1 = along_S3.square().sum(1, keepdim=True).clamp_min(1e-12)
    segments_S7 = torch.cat([start_S3, along_S3, length_S1], dim=1).to(places_3V.device, non_blocking=True)
    nearest_V: Optional[Tensor] = None
    for some_S7 in segments_S7.split(at_once):
        start_S31, along_S31, length_S11 = some_S7[..., None].split([3, 3, 1], dim=1)
        offset_S3V = places_3V - start_S31
        share_S1V = ((along_S31.mT @ offset_S3V) / length_S11).clamp_(0, 1)
        squared_V = offset_S3V.sub_(along_S31 * share_S1V).square_().sum(1).amin(0)
        nearest_V = squared_V if nearest_V is None else torch.minimum(nearest_V, squared_V)
    assert nearest_V is not None
    return nearest_V.sqrt_()


def partition(count: int, size: int, scale: float, dice: Dice) -> Tensor:
    """Which of ``count`` smooth noise fields is the largest, (Z, Y, X) int64 from 0."""
    fields = dice.smooth_noise(count, size, scale)
    best, which = fields[0].clone(), torch.zeros(fields.shape[1:], dtype=torch.int64, device=fields.device)
    for index in range(1, count):  # five times as fast as argmax over the first axis on a CPU
        which.masked_fill_(fields[index] > best, index)
        torch.maximum(best, fields[index], out=best)
    return which


def grown(mask_ZYX: Tensor) -> Tensor:
    """A mask and its face neighbours."""
    out = mask_ZYX.clone()
    for axis in range(3):
        n = mask_ZYX.shape[axis]
        out.narrow(axis, 1, n - 1).logical_or_(mask_ZYX.narrow(axis, 0, n - 1))
        out.narrow(axis, 0, n - 1).logical_or_(mask_ZYX.narrow(axis, 1, n - 1))
    return out
