"""Packed masks against dense numpy arrays."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
from famsam.compact_mask import CompactMask
from famsam.errors import PromptError
from famsam.geometry import bounding_box, box_slices
from grids import masks, sizes_zyx
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def boxes(draw, size_zyx):
    """A half-open box of the grid with at least one voxel."""
    low = [draw(st.integers(0, n - 1)) for n in size_zyx]
    high = [draw(st.integers(a + 1, n)) for a, n in zip(low, size_zyx)]
    return tuple(low), tuple(high)


@st.composite
def mask_pairs(draw):
    size = draw(sizes_zyx())
    return draw(masks(size)), draw(masks(size))


@st.composite
def masks_with_boxes(draw):
    size = draw(sizes_zyx())
    return draw(masks(size)), draw(boxes(size))


@st.composite
def replacements(draw):
    """A mask, a region to replace, and voxels for a part of that region (perhaps none)."""
    size = draw(sizes_zyx())
    region = draw(boxes(size))
    part = draw(boxes([h - a for a, h in zip(*region)]))
    origin = tuple(a + b for a, b in zip(region[0], part[0]))
    voxels = draw(masks([h - a for a, h in zip(*part)]))
    if draw(st.booleans()):
        voxels = np.zeros((0, 0, 0), dtype=bool)
    return draw(masks(size)), region, voxels, origin


def packed(dense):
    return CompactMask.of(dense.shape, dense)


@given(masks_with_boxes())
def test_holds_what_it_was_made_of(case):
    dense, box = case
    mask = packed(dense)
    np.testing.assert_array_equal(mask.dense(), dense)
    assert mask.box_zyx == bounding_box(dense)
    np.testing.assert_array_equal(mask.within(box), dense[box_slices(box)])
    if mask.box_zyx is not None:
        np.testing.assert_array_equal(mask.voxels(), dense[box_slices(mask.box_zyx)])
        assert mask.box_size_zyx == mask.voxels().shape
        assert len(mask.bits) == -(-mask.voxels().size // 8)


@given(mask_pairs(), st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 0.8, 1.0]))
def test_counts_and_overlaps(pair, iou):
    a, b = pair
    either = (a | b).sum()
    assert packed(a).count == a.sum()
    assert packed(a).overlaps(packed(b), iou) == bool((a & b).sum() > iou * either)


@given(masks_with_boxes())
def test_a_part_of_the_grid_lands_at_its_origin(case):
    dense, box = case
    expected = np.zeros_like(dense)
    expected[box_slices(box)] = dense[box_slices(box)]
    np.testing.assert_array_equal(CompactMask.of(dense.shape, dense[box_slices(box)], box[0]).dense(), expected)


@given(replacements())
def test_replaced_changes_the_region_and_nothing_else(case):
    dense, region, voxels, origin = case
    mask = packed(dense)
    changed = mask.replaced(region, voxels, origin)
    expected = dense.copy()
    expected[box_slices(region)] = False
    if voxels.size:
        end = tuple(o + n for o, n in zip(origin, voxels.shape))
        expected[box_slices((origin, end))] = voxels
    np.testing.assert_array_equal(changed.dense(), expected)
    assert changed.box_zyx == bounding_box(expected), "the box stays tight"
    np.testing.assert_array_equal(mask.dense(), dense, "the mask itself is immutable")


@given(mask_pairs())
def test_united_and_shared_are_numpys_or_and_and(pair):
    a, b = pair
    for found, expected in ((packed(a).united(packed(b)), a | b), (packed(a).shared(packed(b)), a & b)):
        np.testing.assert_array_equal(found.dense(), expected)
        assert found.box_zyx == bounding_box(expected), "the box stays tight"


@given(mask_pairs())
def test_changed_box_is_the_smallest_that_holds_every_difference(pair):
    a, b = pair
    assert packed(a).changed_box(packed(b)) == bounding_box(a ^ b)
    assert packed(a).changed_box(packed(a.copy())) is None


@given(mask_pairs())
def test_dictionary_round_trip(pair):
    state = json.loads(json.dumps(packed(pair[0]).to_dict()))
    restored = CompactMask.from_dict(state)
    np.testing.assert_array_equal(restored.dense(), pair[0])
    assert restored.size_zyx == pair[0].shape


def test_what_it_gives_is_the_callers_own():
    mask = packed(np.ones((2, 3, 4), dtype=bool))
    for array in (mask.dense(), mask.voxels(), mask.within(((0, 0, 0), (2, 3, 4)))):
        array[...] = False
    assert mask.dense().all()


def test_a_small_object_in_a_large_scan_costs_little():
    dense = np.zeros((40, 200, 200), dtype=bool)
    dense[10:20, 50:60, 70:80] = True
    assert len(packed(dense).bits) == 125
    assert len(json.dumps(packed(dense).to_dict())) < 200


def good_state():
    return packed(np.eye(6, dtype=bool)[None].repeat(5, 0)).to_dict()


@pytest.mark.parametrize(
    "damage",
    [
        {"bits": "AAAA"},
        {"bits": "???"},
        {"bits": 7},
        {"bits": packed(np.ones((2, 2, 2), dtype=bool)).to_dict()["bits"]},
        {"bits": good_state()["bits"][:-6]},
        {"bits": good_state()["bits"][:-8]},
        {"box_zyx": [[0, 0, 0], [5, 6, 7]]},
        {"box_zyx": [[0, 0, -1], [5, 6, 5]]},
        {"box_zyx": [[3, 3, 3], [3, 3, 3]]},
        {"box_zyx": [[0, 0], [5, 6]]},
        {"box_zyx": "box"},
        {"size_zyx": [5, 6]},
        {"size_zyx": None},
        {"size_zyx": ["five", 6, 6]},
        {"size_zyx": [0, 6, 6], "box_zyx": None},
        {"size_zyx": [5, 6, -6], "box_zyx": None},
        {"size_zyx": [5], "box_zyx": None},
        {"size_zyx": [5, 6, float("inf")], "box_zyx": None},
        {"box_zyx": [[0, 0, 0], [float("inf"), 6, 6]]},
    ],
)
def test_damaged_dictionaries_are_refused(damage):
    with pytest.raises(PromptError, match=r"CompactMask\.to_dict"):
        CompactMask.from_dict({**good_state(), **damage})


@pytest.mark.parametrize("key", ["size_zyx", "box_zyx", "bits"])
def test_missing_entries_are_refused(key):
    state = good_state()
    del state[key]
    with pytest.raises(PromptError, match=key):
        CompactMask.from_dict(state)


@pytest.mark.parametrize("state", [None, [], "mask", 3])
def test_what_is_no_dictionary_is_refused(state):
    with pytest.raises(PromptError, match=r"CompactMask\.to_dict"):
        CompactMask.from_dict(state)


def test_bits_beyond_what_the_box_holds_are_never_unpacked():
    """A few bytes may not unfold into a gigabyte."""
    bomb = base64.b64encode(zlib.compress(bytes(1 << 24), 9)).decode("ascii")
    with pytest.raises(PromptError):
        CompactMask.from_dict({**good_state(), "bits": bomb})
