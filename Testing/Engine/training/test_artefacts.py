"""Each artefact does what it is named after, and nothing to the image's size or finiteness."""

from __future__ import annotations

import pytest
import torch
from famsam.training import artefacts
from famsam.training.sample import Dice

CPU = torch.device("cpu")
SIZE = 32


def step_along_z():
    image = torch.zeros(SIZE, SIZE, SIZE)
    image[12:20] = 1
    return image


@pytest.mark.parametrize("name", ["thick_slices", "ringing", "motion", "metal", "windowed"])
def test_size_and_finiteness_are_kept_and_a_seed_reproduces(name):
    apply = getattr(artefacts, name)
    image = torch.rand(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    results = [apply(image, Dice(seed, CPU)) for seed in (1, 1, 2, 3, 4, 5)]
    assert all(r.shape == image.shape and r.dtype == image.dtype and torch.isfinite(r).all() for r in results)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(image, before)
    assert any(not torch.allclose(r, image) for r in results)


def test_ringing_overshoots_beside_an_edge_and_keeps_the_mean():
    image = step_along_z()
    found = [artefacts.ringing(image, Dice(seed, CPU)) for seed in range(12)]
    overshoots = [float(f.max()) - 1 for f in found]
    assert max(overshoots) > 0.05 and min(overshoots) < 1e-3, "along z, or along the other axes"
    assert all(float(f.mean()) == pytest.approx(float(image.mean()), abs=1e-4) for f in found)


def test_motion_leaves_ghosts_where_there_was_nothing():
    image = torch.zeros(SIZE, SIZE, SIZE)
    image[14:18, 14:18, 14:18] = 1
    for seed in range(5):
        moved = artefacts.motion(image, Dice(seed, CPU))
        empty = moved[(image == 0)]
        assert 0.02 < float(empty.abs().max()) < 1
        assert float(moved.mean()) == pytest.approx(float(image.mean()), abs=1e-4)


def test_metal_outshines_and_streaks_fade_away_from_it():
    image = 0.5 + 0.1 * torch.rand(64, 64, 64, generator=torch.Generator().manual_seed(0))
    for seed in range(4):
        spoilt = artefacts.metal(image, Dice(seed, CPU))
        implant = spoilt == spoilt.max()
        assert 1 < int(implant.sum()) < 0.05 * image.numel() and float(spoilt.max()) > float(image.max())
        change = (spoilt - image).abs().masked_fill(implant, 0)
        centre = torch.nonzero(implant).float().mean(0)
        grid = torch.stack(torch.meshgrid(*[torch.arange(64.0)] * 3, indexing="ij"))
        distance = (grid - centre[:, None, None, None]).square().sum(0).sqrt()
        near, far = change[(distance < 12) & ~implant].mean(), change[distance > 30].mean()
        assert float(near) > 2 * float(far)


def test_a_window_clips_on_both_sides_at_most():
    image = torch.linspace(0, 1, SIZE**3).view(SIZE, SIZE, SIZE)
    clipped = artefacts.windowed(image, Dice(3, CPU))
    assert float(clipped.min()) >= 0 and 0.65 < float(clipped.max()) <= 1
    inside = (clipped > clipped.min()) & (clipped < clipped.max())
    torch.testing.assert_close(clipped[inside], image[inside])


def test_thick_slices_average_over_neighbours():
    image = torch.rand(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    roughness = [float(artefacts.thick_slices(image, Dice(seed, CPU)).std()) for seed in range(12)]
    assert min(roughness) < 0.5 * float(image.std()) and max(roughness) == pytest.approx(float(image.std()))
