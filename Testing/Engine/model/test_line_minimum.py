"""Minima over lines of voxels: with all pairs written out, and in the kernel for GPUs by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from famsam.model import line_minimum, prompt_maps

SIZE_ZYX = (5, 8, 6)

CHECK = """
import torch
from famsam.model import line_minimum
line_minimum.is_fast_on = lambda tensor: fast
results = []
for fast in (False, True):
    torch.manual_seed(0)
    for size in ((5, 8, 6), (16, 3, 4)):
        distance = torch.rand(2, 3, 2, *size) * 50
        squared = torch.where(torch.rand(4, *size) > 0.3, 1e6, 0.0)
        for axis in range(3):
            line_minimum.cheapest_runs(distance, torch.rand(2, 2, *size).cumsum(2 + axis), axis)
            line_minimum.nearest_squared_runs(squared, axis)
        results += [distance, squared]
half = len(results) // 2
for written_out, kernel in zip(results[:half], results[half:]):
    torch.testing.assert_close(kernel, written_out)
print("equal")
"""


def test_geodesic_distances_are_minima_over_lines():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, *SIZE_ZYX, generator=generator)
    kinds = prompt_maps.NEAR_AND_ALIKE, prompt_maps.SAME_REGION
    costs = torch.stack([prompt_maps.path_costs(image, kind) for kind in kinds])
    points = torch.tensor([[[1.0, 2, 3], [4, 7, 5]]] * 3)
    chosen = torch.tensor([[[True, False]] * 3, [[False, True]] * 3])
    expected = prompt_maps.geodesic_distance(costs, points, chosen)
    distance = torch.full_like(expected, prompt_maps.FAR)
    distance[:, 0, :, 1, 2, 3] = distance[:, 1, :, 4, 7, 5] = 0.0
    for _ in range(3):
        for axis in range(3):
            line_minimum.cheapest_runs(distance, costs[:, :, axis].contiguous(), axis)
    torch.testing.assert_close(distance.clamp_max(prompt_maps.FAR), expected)


def test_only_contiguous_tensors_are_taken():
    with pytest.raises(ValueError, match="contiguous"):
        line_minimum.nearest_squared_runs(torch.zeros(2, 4, 4, 4).movedim(1, 3), 0)


def test_the_kernel_computes_what_all_pairs_give():
    pytest.importorskip("triton", minversion="3", reason="no Triton 3; it comes with PyTorch 2.4 and newer for GPUs")
    path = os.pathsep.join([str(Path(line_minimum.__file__).parents[2]), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    ran = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.stdout.strip() == "equal", ran.stderr
