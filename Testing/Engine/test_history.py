"""What a session made of prompts once is not made again, and is what a fresh session makes of them."""

from __future__ import annotations

import json

import famsam.history as history
import numpy as np
import pytest
import torch
from famsam.compact_mask import CompactMask
from famsam.errors import PromptError
from famsam.history import Recall, State
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.segmenter import Prediction
from famsam.session import Session
from famsam.volume import Volume

A1, A2, A3, B1 = ((float(r), float(a), 0.0) for r, a in ((0, 0), (3, 0), (0, 3), (-6, -6)))


class CountingModel(Famsam):
    """The default network, small; counts its encodes and decodes."""

    encodes = decodes = 0

    def encode(self, *args, **kwargs):
        self.encodes += 1
        return super().encode(*args, **kwargs)

    def decode(self, *args, **kwargs):
        self.decodes += 1
        return super().decode(*args, **kwargs)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    small = FamsamConfig((8, 8, 8, 8), 16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1)
    return CountingModel(small).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def volume():
    matrix = np.diag([1.5, 1.5, 1.5, 1.0])
    matrix[:3, 3] = -18
    return Volume(np.random.default_rng(0).normal(0, 50, (24, 24, 24)).astype(np.int16), matrix)


def session_on(model, volume):
    session = Session(model)
    session.set_image(volume)
    return session


def test_going_back_to_another_segments_prompts_computes_nothing(model, volume):
    session = session_on(model, volume)
    empty = session.to_dict()
    session.add_point(A1)
    first = session.add_point(A2, positive=False)
    of_a = json.loads(json.dumps(session.to_dict()))
    session.restore(empty)
    session.add_point(B1)
    before = model.decodes
    restored = session.restore(of_a)
    assert model.decodes == before, "nothing was decoded"
    np.testing.assert_array_equal(restored.mask_zyx, first.mask_zyx)
    assert restored.quality == first.quality and restored.timings_ms == {}
    went_on = session.add_point(A3)
    assert model.decodes > before
    fresh = session_on(model, volume)
    fresh.add_point(A1)
    fresh.add_point(A2, positive=False)
    np.testing.assert_array_equal(went_on.mask_zyx, fresh.add_point(A3).mask_zyx)


def test_also_what_undo_and_a_new_click_have_dropped(model, volume):
    session = session_on(model, volume)
    session.add_point(A1)
    dropped = session.add_point(A2)
    state = session.to_dict()
    session.undo()
    session.add_point(A3)
    before = model.decodes
    np.testing.assert_array_equal(session.restore(state).mask_zyx, dropped.mask_zyx)
    assert model.decodes == before


def test_the_part_in_common_is_taken_over_and_the_rest_computed(model, volume):
    session = session_on(model, volume)
    session.add_point(A1)
    session.add_point(A2)
    other = session_on(model, volume)
    other.add_point(A1)
    expected = other.add_point(A3)
    np.testing.assert_array_equal(session.restore(other.to_dict()).mask_zyx, expected.mask_zyx)
    assert len(session.prompts) == 2


def test_prompts_on_another_mask_are_another_thing(model, volume):
    session = session_on(model, volume)
    session.add_point(A1)
    mask = np.zeros(volume.grid.size_zyx, dtype=bool)
    mask[2:6, 2:6, 2:6] = True
    session.set_mask(mask)
    on_mask = session.add_point(A1)
    fresh = session_on(model, volume)
    fresh.set_mask(mask)
    np.testing.assert_array_equal(on_mask.mask_zyx, fresh.add_point(A1).mask_zyx)
    before = model.decodes
    np.testing.assert_array_equal(session.restore(fresh.to_dict()).mask_zyx, on_mask.mask_zyx)
    assert model.decodes == before


def test_another_scan_recalls_nothing(model, volume):
    session = session_on(model, volume)
    session.add_point(A1)
    state = session.to_dict()
    session.set_image(Volume(volume.voxels_zyx[::-1].copy(), volume.grid.ras_from_ijk))
    before = model.decodes
    session.restore(state)
    assert model.decodes > before


def prepared(session, point):
    """Everything that a click at a point needs, one view at a time."""
    before = session.model.encodes
    while session.encode_ahead(point):
        assert session.model.encodes == before + 1, "one view at a time"
        before = session.model.encodes


def test_a_click_that_was_encoded_ahead_is_the_same_click(model, volume):
    expected = session_on(model, volume).add_point(A1)
    session = session_on(model, volume)
    prepared(session, A1)
    assert not session.can_undo and not session.result.mask_zyx.any()
    encodes, decodes = model.encodes, model.decodes
    result = session.add_point(A1)
    assert (model.encodes, model.decodes) == (encodes, decodes), "the very same click has nothing left to do"
    np.testing.assert_array_equal(result.mask_zyx, expected.mask_zyx)
    assert result.quality == expected.quality and result.timings_ms == {}
    with pytest.raises(PromptError):
        session.encode_ahead((500.0, 0.0, 0.0))


def test_a_click_beside_the_one_that_was_encoded_ahead_only_decodes(model, volume):
    beside = (A1[0] + 0.1, A1[1], A1[2])
    expected = session_on(model, volume).add_point(beside)
    session = session_on(model, volume)
    prepared(session, A1)
    encodes, decodes = model.encodes, model.decodes
    result = session.add_point(beside)
    assert model.encodes == encodes and model.decodes > decodes
    np.testing.assert_array_equal(result.mask_zyx, expected.mask_zyx)


def test_a_click_in_between_is_not_disturbed_by_what_was_begun(model, volume):
    cold = session_on(model, volume)
    expected = [cold.add_point(point).mask_zyx for point in (B1, A1)]
    session = session_on(model, volume)
    session.encode_ahead(A1)
    click = session.add_point(B1)
    timings = dict(click.timings_ms)
    session.encode_ahead(A1)
    assert click.timings_ms == timings
    np.testing.assert_array_equal(click.mask_zyx, expected[0])
    prepared(session, A1)
    np.testing.assert_array_equal(session.add_point(A1).mask_zyx, expected[1])


def test_what_was_encoded_for_a_negative_click_ahead_is_a_positive_one(model, volume):
    session, other = session_on(model, volume), session_on(model, volume)
    prepared(session, A1)
    negative = session.add_point(A1, positive=False)
    np.testing.assert_array_equal(negative.mask_zyx, other.add_point(A1, positive=False).mask_zyx)


def test_going_on_after_an_error_begins_again(model, volume, monkeypatch):
    session = session_on(model, volume)
    with monkeypatch.context() as broken:
        broken.setattr(type(model), "encode", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            session.encode_ahead(A1)
    prepared(session, A1)
    np.testing.assert_array_equal(session.add_point(A1).mask_zyx, session_on(model, volume).add_point(A1).mask_zyx)


def test_only_so_much_is_kept_in_mind(monkeypatch):
    monkeypatch.setattr(history, "RECALLED_BYTES", 250)
    base = CompactMask.empty((8, 8, 8))
    start = State(base, (), (Prediction(base),))
    mask = CompactMask((8, 8, 10), ((0, 0, 0), (8, 8, 10)), bytes(100))
    recall = Recall()
    for name in "abc":
        recall.keep(State(base, (name,), (Prediction(base), Prediction(mask))))
    assert [len(recall.resumed(start, [name]).prompts) for name in "abc"] == [0, 1, 1]
    recall.keep(State(base, ("b", "d"), (Prediction(base), Prediction(mask), Prediction(mask))))
    assert [len(recall.resumed(start, prompts).prompts) for prompts in ("c", "bd", "b", "bx")] == [0, 2, 1, 1]
