"""Pieces of random masks, against what labelling the whole array finds."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
import torch
from famsam.compact_mask import CompactMask
from famsam.model.prompt_maps import NEGATIVE, POSITIVE
from famsam.model.registry import build_model
from famsam.pieces import bounds_of_piece_nearest, piece_at, pieces_of
from famsam.segmenter import PRIOR_LOGIT, Prompts, Segmenter
from famsam.volume import Volume


def blobs(rng, size=24, count=6):
    """A few boxes, some of which touch."""
    mask = np.zeros((size,) * 3, dtype=bool)
    for _ in range(count):
        low = rng.integers(2, size - 6, 3)
        high = low + rng.integers(1, 5, 3)
        mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_the_nearest_piece_is_that_of_the_nearest_voxel(seed):
    rng = np.random.default_rng(seed)
    mask, spacing = blobs(rng), np.array([1.0, 2.0, 0.5])
    for point in [*rng.uniform(-3, 27, (6, 3)), np.argwhere(mask)[seed].astype(float)]:
        voxels = np.argwhere(mask)
        nearest = voxels[np.argmin((((voxels - point) * spacing) ** 2).sum(1))]
        inside = np.rint(point).astype(int)
        if (inside >= 0).all() and (inside < 24).all() and mask[tuple(inside)]:
            nearest = inside
        labels = cc3d.connected_components(mask, connectivity=26)
        piece = np.argwhere(labels == labels[tuple(nearest)])
        low, high = bounds_of_piece_nearest(mask, point, spacing)
        np.testing.assert_array_equal(low, piece.min(0))
        np.testing.assert_array_equal(high, piece.max(0) + 1)


def test_a_piece_is_found_at_a_point_or_near_it_only():
    mask = np.zeros((40, 40, 40), dtype=bool)
    mask[4:8, 4:8, 4:8] = mask[20:36, 20:36, 20:36] = True
    compact, spacing = CompactMask.of(mask.shape, mask), np.ones(3)
    for point, bounds in [((5, 5, 5), (4, 8)), ((9, 6, 6), (4, 8)), ((18, 25, 25), (20, 36)), ((39, 2, 39), None)]:
        found = piece_at(compact, np.array(point, dtype=float), spacing)
        if bounds is None:
            assert found is None
        else:
            assert found is not None
            np.testing.assert_array_equal(found[0], bounds[0])
            np.testing.assert_array_equal(found[1], bounds[1])
    assert piece_at(CompactMask.empty((4, 4, 4)), np.zeros(3), spacing) is None


@pytest.mark.parametrize("seed", range(8))
def test_only_pieces_with_a_positive_click_are_kept(seed):
    rng = np.random.default_rng(seed)
    mask = blobs(rng, 32)
    logits = torch.from_numpy(np.where(mask, 1.0, -1.0) + rng.uniform(-0.5, 0.5, mask.shape)).float()[None, None]
    volume = Volume(rng.normal(size=(64, 64, 64)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    segmenter = Segmenter(build_model("famsam"), volume)
    view = segmenter.chooser.around(np.full(3, 31.5), 1.5, np.full(3, 31.5))
    clicked = rng.permutation(np.argwhere(mask))[: 1 + seed % 3]
    points = view.points_from_crop((clicked + 0.5) * view.size / 32 - 0.5, segmenter.grid)
    beside = view.points_from_crop(np.full((1, 3), 1.0), segmenter.grid)
    prompts = Prompts(np.concatenate([points, beside]), (*(POSITIVE,) * len(points), NEGATIVE))
    nothing = CompactMask.empty(segmenter.grid.size_zyx)
    kept = segmenter.own_pieces(logits, view, prompts, nothing, nothing)
    labels = cc3d.connected_components(mask, connectivity=26)
    foreign = mask & ~np.isin(labels, [labels[tuple(index)] for index in clicked])
    expected = np.where(foreign, -PRIOR_LOGIT, logits[0, 0].numpy())
    np.testing.assert_array_equal(kept[0, 0].numpy(), expected)
    at_background = Prompts(beside, (POSITIVE,))
    assert torch.equal(segmenter.own_pieces(logits, view, at_background, nothing, nothing), logits)


def test_pieces_of_thin_masks_are_told_apart():
    """One voxel thin, with as many pieces as fit: cc3d refuses such masks of bools."""
    for size in ((3, 1, 1), (1, 5, 7), (7, 1, 7), (7, 7, 7)):
        mask = np.zeros(size, dtype=bool)
        mask[::2, ::2, ::2] = True
        labels, count = pieces_of(mask)
        assert count == mask.sum() and sorted(labels[mask].tolist()) == list(range(1, count + 1))
        assert not labels[~mask].any()
