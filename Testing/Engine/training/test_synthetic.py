"""The synthetic generator and the random helpers under it."""

from __future__ import annotations

import pytest
import torch
from famsam.training.sample import Dice, gaussian_blur
from famsam.training.shapes import Canvas, distance_to_line, ellipsoid, grown, nested, partition, vessel_tree
from famsam.training.synthetic import (
    CONTRASTS,
    TISSUES,
    Anatomy,
    cut_field_of_view,
    degrade,
    draw_anatomy,
    label_means,
    render,
    render_means,
    synthetic_sample,
)

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
        anatomy = draw_anatomy(SIZE, Dice(seed, CPU))
        counts.add(len(anatomy.parents))
        sizes = anatomy.labels_ZYX.flatten().bincount()
        kinds += int((sizes[sizes > 0] < 0.01 * SIZE**3).any())
    assert len(counts) > 3 and kinds >= 4, "different numbers of structures, small ones among them"


def test_rendering_keeps_the_anatomy():
    anatomy = draw_anatomy(SIZE, Dice(1, CPU))
    labels = anatomy.labels_ZYX
    before = labels.clone()
    images = [render(labels, anatomy.parents, Dice(seed, CPU))[0] for seed in (1, 2)]
    torch.testing.assert_close(labels, before)
    assert not torch.allclose(images[0], images[1])


def test_every_kind_of_structure_comes_up():
    drawn = [draw_anatomy(SIZE, Dice(seed, CPU)) for seed in range(25)]
    assert any(anatomy.bones for anatomy in drawn) and any(any(anatomy.lesions) for anatomy in drawn)
    assert any(anatomy.alike for anatomy in drawn)
    assert any(anatomy.parents[anatomy.parents[label]] for anatomy in drawn for label in range(len(anatomy.parents)))


def test_marrow_lies_within_its_cortex():
    found = 0
    for seed in range(40):
        anatomy = draw_anatomy(SIZE, Dice(seed, CPU))
        for cortex in anatomy.bones:
            assert anatomy.parents[cortex + 1] == cortex
        if anatomy.bones and anatomy.bones[-1] + 1 == len(anatomy.parents) - 1:  # nothing was drawn over the last one
            cortex, labels = anatomy.bones[-1], anatomy.labels_ZYX
            outside = grown(labels == cortex + 1) & (labels != cortex + 1)
            assert (labels[outside] == cortex).all()
            found += 1
    assert found


def test_what_is_alike_has_one_intensity_and_bones_that_of_bone():
    labels = torch.zeros(8, 8, 8, dtype=torch.long)
    anatomy = Anatomy(labels, [0] * 6, bones=[3], lesions=[5], alike=[(2, 1)])
    cortex, marrow, lesion = (TISSUES.index(name) for name in ("cortex", "marrow", "lesion"))
    kinds = set()
    for seed in range(60):
        means, _ = label_means(anatomy, Dice(seed, CPU))
        assert means[2] == means[1] and means[0] != means[1]
        for kind, levels in CONTRASTS.items():
            bone = (float(means[3]) - levels[cortex], float(means[4]) - levels[marrow])
            if max(map(abs, bone)) < 0.12:
                kinds.add(kind)
    assert len(kinds) >= 4, "CT, T1, T2, FLAIR or PET"
    assert all(len(levels) == len(TISSUES) for levels in CONTRASTS.values()) and lesion == len(TISSUES) - 1


def test_pet_is_blurred():
    labels = (torch.arange(SIZE)[:, None, None] >= SIZE // 2).long().expand(SIZE, SIZE, SIZE)
    widths = []
    for is_pet in (False, True):
        image, _ = render_means(labels, (torch.tensor([0.0, 1.0]), is_pet), Dice(8, CPU))
        profile = image.mean((1, 2))
        widths.append(float(profile.diff().abs().max() / (profile.max() - profile.min())))
    assert widths[1] < 0.7 * widths[0], "the steepest step of the profile"


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


def test_smooth_noise_is_linear_between_its_nodes():
    noise = Dice(3, CPU).smooth_noise(2, 17, 4.0)
    nodes = Dice(3, CPU).normal(1, 2, 6, 6, 6)
    expected = torch.nn.functional.interpolate(nodes, size=(17,) * 3, mode="trilinear")[0] * 1.4
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-5)


def test_smooth_noise_is_smooth():
    dice = Dice(0, CPU)
    rough, smooth = dice.smooth_noise(1, 32, 2.0)[0], dice.smooth_noise(1, 32, 16.0)[0]
    assert rough.shape == (32, 32, 32)
    assert smooth.diff(dim=0).abs().mean() < 0.3 * rough.diff(dim=0).abs().mean()


# --- shapes ---


def test_an_ellipsoid_is_the_same_whether_cut_to_its_box_or_not(monkeypatch):
    masks = []
    for reach in (1.7, 50.0):
        monkeypatch.setattr("famsam.training.shapes.REACH", reach)
        for seed in range(12):
            dice = Dice(seed, CPU)
            canvas = Canvas(SIZE, dice)
            level = canvas.level(Dice(seed + 100, CPU), 4.0, torch.tensor([10.0, 15.0, 30.0]))
            masks.append(level < 1)
    whole, smooth = masks[12:], [Dice(seed + 100, CPU) for seed in range(12)]
    compared = 0
    for seed, dice in enumerate(smooth):
        dice.few_normal(3), dice.few_normal(3, 3), dice.chance(0.2)
        if not dice.chance(0.5):  # lobes are noise of the box's size
            assert torch.equal(masks[seed], whole[seed])
            compared += int(whole[seed].any())
    assert compared >= 3


def test_nested_masks_lie_in_each_other():
    for seed in range(6):
        dice = Dice(seed, CPU)
        masks = nested(Canvas(SIZE, dice), dice)
        assert 2 <= len(masks) <= 4
        assert all((inner & ~outer).sum() == 0 for outer, inner in zip(masks, masks[1:]))


def test_a_partition_is_where_each_field_is_largest():
    fields = Dice(2, CPU).smooth_noise(4, 16, 5.0)
    assert torch.equal(partition(4, 16, 5.0, Dice(2, CPU)), fields.argmax(0))


def test_a_grown_mask_has_its_face_neighbours():
    mask = torch.zeros(5, 5, 5, dtype=torch.bool)
    mask[2, 2, 2] = mask[0, 0, 0] = True
    out = grown(mask)
    assert int(out.sum()) == 7 + 4 and bool(out[1, 2, 2]) and bool(out[0, 0, 1]) and not out[1, 1, 2]
    assert int(mask.sum()) == 2


def test_vessels_are_thin_and_long():
    for seed in range(4):
        dice = Dice(seed, CPU)
        canvas = Canvas(SIZE, dice)
        tree = vessel_tree(canvas, dice)
        if int(tree.sum()) < 50:
            continue
        extent = max(int(torch.nonzero(tree)[:, axis].max() - torch.nonzero(tree)[:, axis].min()) for axis in range(3))
        assert int(tree.sum()) < 0.25 * SIZE**3 and extent > 0.3 * SIZE
    assert ellipsoid(canvas, dice, 0.3 * SIZE).any()


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_distances_to_a_line_are_those_to_its_nearest_point(at_once):
    generator = torch.Generator().manual_seed(0)
    line, places = torch.rand(4, 3, generator=generator) * 9, torch.rand(3, 50, generator=generator) * 9
    shares = torch.linspace(0, 1, 2001)[:, None]
    points = torch.cat([a + shares * (b - a) for a, b in zip(line[:-1], line[1:])])
    expected = torch.cdist(places.T, points).amin(1)
    torch.testing.assert_close(distance_to_line(places, line, at_once), expected, rtol=1e-4, atol=2e-3)
