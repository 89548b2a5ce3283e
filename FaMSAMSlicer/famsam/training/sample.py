"""What every source of training volumes delivers, and the random helpers that they share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Callable, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Sample:
    """A crop with its anatomy.

    Attributes:
        image_ZYX: float intensities in arbitrary units, zero outside the scan.
        inside_ZYX: bool, voxels inside the scan.
        labels_ZYX: int structure of each voxel; 0 is no structure.
        parents: for each label the label that it lies in (0: none), index = label.
    """

    image_ZYX: Tensor
    inside_ZYX: Tensor
    labels_ZYX: Tensor
    parents: Sequence[int] = ()


class Dice:
    """Random numbers of one generator, so that a seed reproduces a sample.

    Args:
        seed: decides everything that follows.
        device: where tensors are drawn.
        part: (index, of how many) of a team of processes that throw the same dice; see ``fork``.
    """

    def __init__(self, seed: int, device: torch.device, part: Tuple[int, int] = (0, 1)) -> None:
        self.device = device
        self.part = part
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.host = torch.Generator().manual_seed(seed)

    def fork(self, count: int) -> List[Dice]:
        """Independent dice for each of ``count`` things that this process holds.

        What a thing gets does not depend on how the things are spread over the processes of a team.
        """
        index, parts = self.part
        seeds = torch.randint(2**62, (parts * count,), generator=self.host).tolist()
        return [Dice(seed, self.device) for seed in seeds[index * count : (index + 1) * count]]

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.host))

    def log_uniform(self, low: float, high: float) -> float:
        return float(torch.tensor(low).log().lerp(torch.tensor(high).log(), torch.rand((), generator=self.host)).exp())

    def integer(self, low: int, high: int) -> int:
        """low <= result <= high."""
        return int(torch.randint(low, high + 1, (), generator=self.host))

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def pick(self, weights: Sequence[float]) -> int:
        return int(torch.multinomial(torch.tensor(weights, dtype=torch.float), 1, generator=self.host))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def vector(self, count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=self.generator, device=self.device)

    def few_normal(self, *shape: int) -> Tensor:
        """As ``normal``, but on the CPU: for arithmetic on a few numbers, each step of which a GPU would be named."""
        return torch.randn(*shape, generator=self.host)

    def few_uniform(self, count: int, low: float, high: float) -> Tensor:
        """As ``vector``, but on the CPU."""
        return low + (high - low) * torch.rand(count, generator=self.host)

    def smooth_noise(self, channels: int, size: int, scale: float) -> Tensor:
        """Noise of about unit variance that varies over ``scale`` voxels, (channels, size, size, size)."""
        n = max(2, round(size / scale) + 2)
        weights = _stretching(n, size, self.device)
        noise = self.normal(channels, n, n, n) @ weights
        noise = torch.einsum("czyx,zi,yj->cijx", noise, weights, weights)
        return noise * 1.4


@functools.lru_cache(maxsize=512)
def _stretching(count: int, size: int, device: torch.device) -> Tensor:
    """(count, size): linear interpolation as a matrix along an axis, on a CPU several times as fast as
    ``F.interpolate``."""
    return F.interpolate(torch.eye(count)[None], size=size, mode="linear")[0].to(device)


Source = Callable[[int, Dice], Sample]
"""(crop size, dice) -> a training crop."""


def gaussian_blur(image_ZYX: Tensor, sigma: Sequence[float]) -> Tensor:
    """Separable Gaussian blur with one standard deviation (voxels) an axis z, y, x."""
    out = image_ZYX[None, None]
    for axis, s in enumerate(sigma):
        if s < 0.15:
            continue
        radius = max(1, round(2.5 * s))
        offsets = torch.arange(-radius, radius + 1, dtype=image_ZYX.dtype)
        kernel = torch.exp(-0.5 * (offsets / s) ** 2)
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        padded = F.pad(out, padding, mode="replicate")
        out = F.conv3d(padded, (kernel / kernel.sum()).view(shape).to(image_ZYX.device, non_blocking=True))
    return out[0, 0]
