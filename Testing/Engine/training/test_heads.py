"""Label maps of heads, rendered as MR scans show heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from famsam.geometry import Grid
from famsam.training import heads, scans
from famsam.training.sample import Dice

CPU = torch.device("cpu")
WHITE, CORTEX, THALAMUS, VENTRICLE = (2, 41), (3, 42), (10, 49), 4


def head(size=32):
    """A box of a brain in a skull, with two sides of white matter, cortex and thalamus, and a ventricle."""
    labels = np.zeros((size,) * 3, np.uint16)
    labels[2:-2, 2:-2, 2:-2] = 511
    labels[4:-4, 4:-4, 4:-4] = heads.SUBARACHNOID_FLUID
    for side, columns in enumerate((slice(6, size // 2), slice(size // 2, -6))):
        labels[6:-6, 6:-6, columns] = CORTEX[side]
        labels[9:-9, 9:-9, columns] = WHITE[side]
        labels[12:-12, 12:-12, columns] = THALAMUS[side]
    labels[14:18, 14:18, 14:18] = VENTRICLE
    return labels


def grid_of(labels):
    return Grid(labels.shape, np.eye(4))


def test_a_head_is_told_by_its_labels():
    assert heads.is_head(head())
    abdomen = np.arange(16, dtype=np.uint16).repeat(8).reshape(2, 8, 8)
    assert not heads.is_head(abdomen)


def test_without_the_skull_the_brain_stays():
    bare = heads.without_skull(head())
    assert set(np.unique(bare)) == {0, *WHITE, *CORTEX, *THALAMUS, VENTRICLE}
    assert (bare[bare > 0] == head()[bare > 0]).all()


@pytest.mark.parametrize("seed", range(6))
def test_both_sides_look_alike_and_fluid_is_apart(seed):
    present = [0, *WHITE, *CORTEX, *THALAMUS, VENTRICLE, 511]
    means = heads.tissue_means(present, Dice(seed, CPU))
    level = dict(zip(present, means.tolist()))
    assert means.shape == (len(present),) and abs(level[0]) < 0.1
    for left, right in (WHITE, CORTEX, THALAMUS):
        assert abs(level[left] - level[right]) < 0.12
    assert abs(level[VENTRICLE] - level[CORTEX[0]]) > 0.1


def test_crops_of_a_head_are_drawn_from_the_same_dice_again():
    labels = head()
    source = scans.SynthesisedLabelMaps([scans.Anatomy.of(labels, grid_of(labels))])
    assert source.are_heads == [True]
    for seed in range(8):
        first, again = (source.draw(32, Dice(seed, CPU)) for _ in range(2))
        torch.testing.assert_close(first.image_ZYX, again.image_ZYX, rtol=0, atol=0)
        assert torch.isfinite(first.image_ZYX).all() and len(first.parents) > int(first.labels_ZYX.max())


def test_what_surrounds_a_head_can_be_calm():
    noisy = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    outside = torch.zeros(16, 16, 16, dtype=torch.bool)
    outside[:8] = True
    calm = scans._calmed(noisy, outside, 0.1)
    assert torch.equal(calm[8:], noisy[8:])
    assert float(calm[:8].std()) == pytest.approx(0.1 * float(noisy[:8].std()), rel=1e-4)
    assert float(calm[:8].mean()) == pytest.approx(float(noisy[:8].mean()), abs=1e-4)
    assert torch.equal(scans._calmed(noisy, torch.zeros_like(outside), 0.1), noisy), "nothing there"
