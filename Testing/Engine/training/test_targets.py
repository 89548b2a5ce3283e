"""What is to be segmented in a training crop, and the clicks and boxes that a user would give for it."""

from __future__ import annotations

import cc3d
import edt
import numpy as np
import pytest
import torch
from famsam.training.clicks_at_once import ClicksAtOnce, flooded, squared_depth
from famsam.training.sample import Dice, Sample
from famsam.training.synthetic import synthetic_sample
from famsam.training.targets import MIN_VOXELS, ClickSimulator, corrupted, draw_targets, halve

CPU = torch.device("cpu")


def blocks(size=16, *bounds):
    """(B, 1, z, y, x) targets, each a box from low to high along every axis."""
    targets = torch.zeros(len(bounds), 1, size, size, size)
    for target, (low, high) in zip(targets, bounds):
        target[0, low:high, low:high, low:high] = 1
    return targets


def sample_of(labels, parents=()):
    return Sample(labels.float(), torch.ones_like(labels, dtype=torch.bool), labels, parents)


def voxel_of(point):
    """The logit voxel that holds a point given in crop voxels."""
    return tuple(np.floor((np.asarray(point) + 0.5) / 2).astype(int))


# --- targets ---


@pytest.mark.parametrize("seed", range(4))
def test_targets_are_single_connected_pieces(seed):
    sample = synthetic_sample(32, seed, CPU)
    targets = draw_targets(sample, 4, Dice(seed, CPU))
    assert 1 <= len(targets) <= 4
    for target in targets:
        assert target.dtype == torch.bool and target.shape == (32, 32, 32)
        _, count = cc3d.connected_components(target.numpy(), connectivity=6, return_N=True)
        assert count == 1
        assert MIN_VOXELS <= int(target.sum()) < 0.6 * target.numel()


def test_a_label_in_two_places_gives_one_of_them():
    labels = torch.zeros(16, 16, 16, dtype=torch.long)
    labels[1:5, 1:5, 1:5] = 1
    labels[9:14, 9:14, 9:14] = 1
    sizes = {int(t.sum()) for n in range(10) for t in draw_targets(sample_of(labels), 2, Dice(n, CPU))}
    assert sizes == {64, 125}


def test_a_structure_may_take_along_what_lies_in_it():
    labels = torch.zeros(16, 16, 16, dtype=torch.long)
    labels[2:12, 2:12, 2:12] = 1
    labels[5:9, 5:9, 5:9] = 2
    sizes = {int(t.sum()) for n in range(20) for t in draw_targets(sample_of(labels, [0, 0, 1]), 3, Dice(n, CPU))}
    assert sizes == {1000, 1000 - 64, 64}
    alone = {int(t.sum()) for n in range(20) for t in draw_targets(sample_of(labels), 3, Dice(n, CPU))}
    assert alone == {1000 - 64, 64}, "without parents no structure is part of another"


def test_what_lies_beyond_the_field_of_view_is_no_target():
    labels = torch.zeros(16, 16, 16, dtype=torch.long)
    labels[2:8, 2:8, 2:8], labels[10:15, 10:15, 10:15] = 1, 2
    sample = sample_of(labels)
    inside = torch.zeros_like(sample.labels_ZYX, dtype=torch.bool)
    inside[:6] = True
    cut = Sample(sample.image_ZYX, inside, sample.labels_ZYX, sample.parents)
    targets = [t for n in range(10) for t in draw_targets(cut, 2, Dice(n, CPU))]
    assert {int(t.sum()) for t in targets} == {4 * 6 * 6}


def test_small_structures_are_seen_as_often_as_large_ones():
    labels = torch.zeros(32, 32, 32, dtype=torch.long)
    labels[1:20, 1:20, 1:20] = 1
    labels[24:28, 24:28, 24:28] = 2
    small = [int(t.sum()) == 64 for n in range(60) for t in draw_targets(sample_of(labels), 1, Dice(n, CPU))]
    assert 15 < sum(small) < 45


def test_nothing_to_segment_gives_nothing():
    labels = torch.zeros(16, 16, 16, dtype=torch.long)
    assert draw_targets(sample_of(labels), 2, Dice(0, CPU)) == []
    labels[0, 0, :5] = 1
    assert draw_targets(sample_of(labels), 2, Dice(0, CPU)) == [], "too small"
    assert draw_targets(sample_of(torch.ones_like(labels)), 2, Dice(0, CPU)) == [], "everything"


def test_halving_keeps_the_share_of_foreground():
    mask = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    half = halve(mask)
    assert half.shape == (2, 1, 4, 4, 4)
    assert float(half[0, 0, 1, 2, 3]) == pytest.approx(float(mask[0, 2:4, 4:6, 6:8].float().mean()))
    assert float(half.mean()) == pytest.approx(float(mask.float().mean()))


# --- clicks ---


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
@pytest.mark.parametrize("seed", range(5))
def test_the_first_click_is_positive_and_deep_inside(simulator_of, seed):
    targets = blocks(16, (4, 11), (0, 3), (12, 16))
    clicks = simulator_of(targets, Dice(seed, CPU))
    clicks.click(None)
    assert clicks.points_BN3.shape == (3, 1, 3) and clicks.labels_BN.tolist() == [[1]] * 3
    for point, target in zip(clicks.points_BN3[:, 0], targets[:, 0]):
        z, y, x = voxel_of(point)
        assert target[z, y, x] == 1
    z, y, x = voxel_of(clicks.points_BN3[0, 0])
    assert all(5 <= v <= 9 for v in (z, y, x)), "not at the edge of a block from 4 to 11"


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
def test_later_clicks_lie_on_the_largest_error_with_its_label(simulator_of):
    targets = blocks(16, (4, 10), (4, 10), (4, 10))
    logits = logits_of(targets)
    logits[0, 0, 4:10, 4:10, 7:10] = -5  # missed half of it
    logits[1, 0, 11:15, 11:15, 11:15] = 5  # a false piece elsewhere
    clicks = simulator_of(targets, Dice(0, CPU))
    clicks.click(logits)
    assert clicks.labels_BN[:, 0].tolist() == [1, 0, -1], "missing, too much, and nothing to correct"
    z, y, x = voxel_of(clicks.points_BN3[0, 0])
    assert 4 <= z < 10 and 7 <= x < 10
    z, y, x = voxel_of(clicks.points_BN3[1, 0])
    assert all(11 <= v < 15 for v in (z, y, x))


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
def test_the_clicked_error_is_one_piece(simulator_of):
    targets = blocks(16, (4, 10), (4, 10), (4, 10))
    logits = logits_of(targets)
    logits[0, 0, 4:10, 4:10, 7:10] = -5  # missed half of it
    logits[0, 0, 12:14, 12:14, 12:14] = 5  # and a smaller false piece elsewhere
    logits[1, 0, 11:15, 11:15, 11:15] = 5
    clicks = simulator_of(targets, Dice(0, CPU))
    clicks.click(logits)
    wanted = torch.zeros(3, 1, 16, 16, 16, dtype=torch.bool)
    wanted[0, 0, 4:10, 4:10, 7:10] = True
    wanted[1, 0, 11:15, 11:15, 11:15] = True
    torch.testing.assert_close(clicks.clicked_error(), wanted)
    clicks.no_click()
    assert not clicks.clicked_error().any()


@pytest.mark.parametrize("seed", range(4))
def test_floods_and_depths_at_once_are_exact(seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, 12, 10, 14, generator=generator) > 0.4
    masks[2] = True
    at = torch.randint(0, masks[0].numel(), (3,), generator=generator)
    for mask, index, piece, squared in zip(masks, at.tolist(), flooded(masks, at), squared_depth(masks)):
        pieces = cc3d.connected_components(np.ascontiguousarray(mask.numpy()), connectivity=6)
        own = pieces.ravel()[index]
        np.testing.assert_array_equal(piece.numpy(), (pieces == own) & (own > 0))
        depth = edt.edt(np.ascontiguousarray(mask.numpy()), black_border=True)
        np.testing.assert_allclose(squared.numpy(), depth**2, atol=1e-3)


def logits_of(targets):
    return (targets * 2 - 1) * 5


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
@pytest.mark.parametrize("seed", range(3))
def test_every_click_tells_the_truth(simulator_of, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = blocks(16, (2, 9), (5, 14))
    clicks = simulator_of(targets, Dice(seed, CPU))
    for _ in range(5):
        before = torch.randn(2, 1, 16, 16, 16, generator=generator)
        clicks.click(before)
        for b in range(2):
            z, y, x = voxel_of(clicks.points_BN3[b, -1])
            truth, predicted = bool(targets[b, 0, z, y, x]), bool(before[b, 0, z, y, x] > 0)
            assert truth != predicted and clicks.labels_BN[b, -1] == int(truth)
    assert clicks.points_BN3.shape == (2, 5, 3)


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
def test_structures_thinner_than_a_voxel_can_be_clicked(simulator_of):
    targets = torch.zeros(1, 1, 16, 16, 16)
    targets[0, 0, 8, 8, :] = 0.25
    targets[0, 0, 8, 8, 5] = 0.3
    clicks = simulator_of(targets, Dice(0, CPU))
    clicks.click(None)
    assert clicks.labels_BN.tolist() == [[1]]
    assert voxel_of(clicks.points_BN3[0, 0])[:2] == (8, 8)


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
def test_a_round_without_a_click_is_padding(simulator_of):
    clicks = simulator_of(blocks(16, (4, 10), (2, 5)), Dice(0, CPU))
    clicks.no_click()
    clicks.click(None)
    assert clicks.labels_BN.tolist() == [[-1, 1], [-1, 1]] and clicks.points_BN3.shape == (2, 2, 3)


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
def test_the_seed_decides_the_clicks(simulator_of):
    def points(seed):
        clicks = simulator_of(blocks(16, (2, 13)), Dice(seed, CPU))
        clicks.click(None)
        return clicks.points_BN3

    torch.testing.assert_close(points(1), points(1))
    assert any(not torch.equal(points(1), points(seed)) for seed in range(2, 6))


# --- boxes and faulty masks ---


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
@pytest.mark.parametrize("seed", range(5))
def test_boxes_hold_their_structures_nearly_tightly(simulator_of, seed):
    targets = blocks(16, (3, 11), (5, 7))
    clicks = simulator_of(targets, Dice(seed, CPU))
    clicks.add_boxes(1.0)
    assert clicks.labels_BN.tolist() == [[2, 3]] * 2
    for (low, high), (first, last) in zip(clicks.points_BN3, ((3, 11), (5, 7))):
        extent = 2.0 * (last - first)
        slack = 0.1 * extent + 1
        assert (low <= 2 * first + 0.5 * slack).all() and (low >= 2 * first - slack).all()
        assert (high >= 2 * last - 1 - 0.5 * slack).all() and (high <= 2 * last - 1 + slack).all()
        assert (low < high).all()


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
def test_only_some_targets_get_boxes(simulator_of):
    clicks = simulator_of(blocks(8, *[(2, 5)] * 40), Dice(0, CPU))
    clicks.add_boxes(0.5)
    boxed = (clicks.labels_BN[:, 0] == 2).sum()
    assert 8 < boxed < 32
    assert ((clicks.labels_BN == torch.tensor([2, 3])) | (clicks.labels_BN == -1)).all()


def test_faulty_masks_resemble_what_they_are_of():
    targets = blocks(16, (3, 12), (5, 11))
    different = 0
    for seed in range(8):
        faulty = corrupted(targets, Dice(seed, CPU))
        assert faulty.shape == targets.shape and set(faulty.unique().tolist()) <= {-4.0, 4.0}
        mask = faulty > 0
        overlap = 2 * (mask & (targets > 0)).sum() / (mask.sum() + targets.sum())
        assert overlap > 0.3
        different += int((mask != (targets > 0)).any())
    assert different == 8


@pytest.mark.parametrize("simulator_of", [ClickSimulator, ClicksAtOnce])
def test_clicks_lie_where_their_style_says(simulator_of):
    cube = torch.zeros(1, 1, 16, 16, 16)
    cube[0, 0, 3:12, 3:12, 3:12] = 1
    depths = {}
    for name, styles in (("centre", (1, 0, 0)), ("random", (0, 1, 0)), ("border", (0, 0, 1))):
        found = []
        for seed in range(40):
            simulator = simulator_of(cube, Dice(seed, CPU), styles)
            simulator.click(None)
            index = ((simulator.points_BN3[0, 0] - 0.5) / 2).long()
            assert cube[0, 0, index[0], index[1], index[2]] == 1 and int(simulator.labels_BN[0, 0]) == 1
            found.append(min(int(min(index)) - 2, 12 - int(max(index))))  # in voxels, 1 at the border, 5 in the middle
        depths[name] = found
    assert min(depths["centre"]) >= 3 and set(depths["border"]) == {1}
    assert 1 in depths["random"] and max(depths["random"]) >= 3
