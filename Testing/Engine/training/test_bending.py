"""Crops of real anatomy that are turned, stretched and bent."""

import numpy as np
import pytest
import torch
from famsam.training.bending import Bending, drawn, wider
from famsam.training.sample import Dice

CPU = torch.device("cpu")


def ball(size: int, radius: float) -> torch.Tensor:
    axis = torch.arange(size) - (size - 1) / 2
    return (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt() <= radius


@pytest.mark.parametrize("seed", range(5))
def test_a_ball_in_the_middle_stays_about_there_and_about_as_large(seed):
    size = 32
    bending = Bending.draw(size, Dice(seed, CPU))
    bent = bending.mask(ball(wider(size), 8.0))
    assert bent.shape == (size,) * 3
    assert np.abs(np.argwhere(bent.numpy()).mean(0) - (size - 1) / 2).max() < 0.15 * size
    assert 0.4 < bent.sum() / ball(size, 8.0).sum() < 2.5
    assert not torch.equal(bent, ball(size, 8.0))


def test_image_and_labels_go_the_same_way():
    size = 32
    labels = ball(wider(size), 8.0).long() * 7
    inside = torch.ones_like(labels, dtype=torch.bool)
    bending = Bending.draw(size, Dice(3, CPU))
    image, bent = bending.image(labels.float(), inside), bending.labels(labels)
    assert set(bent.unique().tolist()) == {0, 7}
    assert float(((image > 3.5) == (bent == 7)).float().mean()) > 0.99
    assert not bool(bending.image(labels.float(), ~inside).any()), "nothing is taken from beyond the scan"


def test_the_seed_decides():
    grids = [Bending.draw(16, Dice(seed, CPU)).grid_ZYX3 for seed in (1, 1, 2)]
    assert torch.equal(grids[0], grids[1]) and not torch.equal(grids[0], grids[2])


def test_the_chance_decides_whether():
    assert all(drawn(8, Dice(seed, CPU), 0.0) is None for seed in range(5))
    assert all(drawn(8, Dice(seed, CPU), 1.0) is not None for seed in range(5))
