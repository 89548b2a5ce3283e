"""The synthetic generator and the random helpers under it."""

from __future__ import annotations

import pytest
import torch
from famsam.training.sample import Dice, gaussian_blur
from famsam.training.synthetic import cut_field_of_view, degrade, draw_anatomy, render, synthetic_sample

CPU = torch.device("cpu")
SIZE = 32


def test_the_same_seed_gives_the_same_sample():
    a, b, c = (synthetic_sample(SIZE, seed, CPU) for seed in (5, 5, 6))
    for name in ("image_ZYX", "inside_ZYX", "labels_ZYX"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)
    assert list(a.parents) == list(b.parents)
    assert not torch.equal(a.image_ZYX, c.image_ZYX)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    synthetic_sample(SIZE, 1, CPU)
    torch.testing.assert_close(torch.rand(3), expected)


@pytest.mark.parametrize("seed", range(6))
def test_samples_are_whole_and_finite(seed):
    sample = synthetic_sample(SIZE, seed, CPU)
    assert sample.image_ZYX.shape == sample.inside_ZYX.shape == sample.labels_ZYX.shape == (SIZE,) * 3
    assert sample.image_ZYX.dtype == torch.float32 and torch.isfinite(sample.image_ZYX).all()
    assert sample.inside_ZYX.dtype == torch.bool and sample.inside_ZYX.float().mean() > 0.1
    assert sample.labels_ZYX.dtype == torch.int64
    assert int(sample.labels_ZYX.min()) >= 0 and int(sample.labels_ZYX.max()) < len(sample.parents)
    assert all(0 <= parent < max(1, label) for label, parent in enumerate(sample.parents)), "parents come first"
    assert sample.image_ZYX.std() > 0


def test_structures_show_in_the_image():
    """Most structures differ from their surroundings by more than chance."""
    between = within = 0.0
    for seed in range(6):
        sample = synthetic_sample(SIZE, seed, CPU)
        labels, image = sample.labels_ZYX, sample.image_ZYX
        image = (image - image.mean()) / image.std()
        for label in labels.unique():
            values = image[labels == label]
            between += float(values.mean() ** 2 * len(values))
            within += float(values.var(unbiased=False) * len(values))
    assert between / (between + within) > 0.3


def test_anatomy_is_varied():
    counts, kinds = set(), 0
    for seed in range(8):
        labels, parents = draw_anatomy(SIZE, Dice(seed, CPU))
        counts.add(len(parents))
        sizes = labels.flatten().bincount()
        kinds += int((sizes[sizes > 0] < 0.01 * SIZE**3).any())
    assert len(counts) > 3 and kinds >= 4, "different numbers of structures, small ones among them"


def test_rendering_keeps_the_anatomy():
    labels, parents = draw_anatomy(SIZE, Dice(1, CPU))
    before = labels.clone()
    images = [render(labels, parents, Dice(seed, CPU))[0] for seed in (1, 2)]
    torch.testing.assert_close(labels, before)
    assert not torch.allclose(images[0], images[1])


def test_degrading_keeps_size_and_finiteness():
    image = torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(0))
    changed = 0
    for seed in range(15):
        worse = degrade(image.clone(), Dice(seed, CPU))
        assert worse.shape == image.shape and torch.isfinite(worse).all()
        changed += int(not torch.equal(worse, image))
    assert 3 <= changed <= 15


def test_the_field_of_view_is_cut_on_some_sides_only():
    shares = [float(cut_field_of_view(SIZE, Dice(seed, CPU)).float().mean()) for seed in range(40)]
    assert sum(share == 1 for share in shares) > 15 and min(shares) < 0.95 and min(shares) > 0


# --- helpers ---


def test_blur_keeps_the_mean_and_widens_as_asked():
    image = torch.zeros(33, 33, 33)
    image[16, 16, 16] = 1
    blurred = gaussian_blur(image, (2.0, 1.0, 0.0))
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    offsets = torch.arange(33.0) - 16
    widths = [float((blurred.sum(axes) * offsets**2).sum().sqrt()) for axes in ((1, 2), (0, 2), (0, 1))]
    assert widths[0] == pytest.approx(2.0, rel=0.1) and widths[1] == pytest.approx(1.0, rel=0.1) and widths[2] == 0
    torch.testing.assert_close(gaussian_blur(torch.full((9, 9, 9), 3.0), (1.0, 2.0, 3.0)), torch.full((9, 9, 9), 3.0))


def test_dice_stay_within_their_bounds():
    dice = Dice(0, CPU)
    assert all(2 <= dice.uniform(2, 3) <= 3 for _ in range(50))
    assert all(0.1 <= dice.log_uniform(0.1, 10) <= 10.001 for _ in range(50))
    assert {dice.integer(3, 5) for _ in range(60)} == {3, 4, 5}
    assert {dice.pick([0.5, 0.0, 0.5]) for _ in range(60)} == {0, 2}
    assert not dice.chance(0.0) and dice.chance(1.0)
    assert dice.normal(2, 3).shape == (2, 3)
    vector = dice.vector(100, -1, 1)
    assert vector.min() >= -1 and vector.max() <= 1


def test_smooth_noise_is_smooth():
    dice = Dice(0, CPU)
    rough, smooth = dice.smooth_noise(1, 32, 2.0)[0], dice.smooth_noise(1, 32, 16.0)[0]
    assert rough.shape == (32, 32, 32)
    assert smooth.diff(dim=0).abs().mean() < 0.3 * rough.diff(dim=0).abs().mean()
