"""The uncertainty map: where it lies, that it agrees with the mask, and what moves it. Any weights will do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from famsam.compact_mask import CompactMask
from famsam.errors import PromptError, SessionError
from famsam.geometry import box_slices
from famsam.model.calibration import Calibration
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.prompts import canonical_prompts
from famsam.segmenter import Prediction, Segmenter
from famsam.session import Session
from famsam.uncertainty import uncertainty_of
from famsam.volume import Volume
from tiny_models import tiny_model

TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)
OBLIQUE_LPS = np.array([[-1.4, 0.3, 0, 20], [-0.3, -1.4, 0, 30], [0, 0, -2.0, 10], [0, 0, 0, 1.0]])


def blob_volume(ras_from_ijk=None):
    z, y, x = np.indices((40, 44, 48))
    inside = (z - 20) ** 2 + (y - 22) ** 2 + (x - 18) ** 2 < 90
    noise = np.random.default_rng(0).normal(0, 10, inside.shape)
    matrix = np.diag([1.5, 1.5, 1.5, 1]) if ras_from_ijk is None else ras_from_ijk
    return Volume((1000 * inside + noise).astype(np.int16), matrix)


def clicked(ras_from_ijk=None, seed=1):
    torch.manual_seed(seed)
    session = Session(Famsam(TINY).eval().requires_grad_(False))
    volume = blob_volume(ras_from_ijk)
    session.set_image(volume)
    session.add_point(tuple(volume.grid.ras_from_zyx_points([(20, 22, 18)])[0]))
    return session


@pytest.mark.parametrize("ras_from_ijk", [None, OBLIQUE_LPS])
def test_a_single_decode_agrees_with_the_mask(ras_from_ijk):
    session = clicked(ras_from_ijk)
    uncertainty, mask = session.uncertainty(decodes=1), session.result.mask_zyx
    low, high = (np.array(corner) for corner in uncertainty.box_zyx)
    assert uncertainty.probability_zyx.shape == tuple(high - low)
    assert uncertainty.probability_zyx.dtype == uncertainty.entropy_zyx.dtype == np.float32
    assert (low >= 0).all() and (high <= mask.shape).all()
    part = mask[box_slices(uncertainty.box_zyx)]
    assert part.sum() == mask.sum() > 0, "the map covers the mask"
    agreement = ((uncertainty.probability_zyx > 0.5) == part).mean()
    assert agreement > 0.97, "but for the clicked voxels, pieces without a click, and a border that follows edges"


def test_doubt_is_largest_at_one_half_and_the_volume_is_the_sum():
    session = clicked()
    uncertainty = session.uncertainty()
    p, entropy = uncertainty.probability_zyx, uncertainty.entropy_zyx
    assert (p >= 0).all() and (p <= 1).all() and (entropy >= 0).all() and (entropy <= 1.0001).all()
    order = np.argsort(np.abs(p - 0.5).ravel())
    assert (np.diff(entropy.ravel()[order]) <= 1e-5).all()
    assert uncertainty.expected_ml == pytest.approx(p.sum() * 1.5**3 / 1000, rel=1e-4)


def test_more_decodes_disagree_and_every_call_answers_the_same():
    session = clicked()
    one, several, again = session.uncertainty(1), session.uncertainty(4), session.uncertainty(4)
    np.testing.assert_array_equal(several.probability_zyx, again.probability_zyx)
    assert several.box_zyx != one.box_zyx or np.abs(several.probability_zyx - one.probability_zyx).max() > 1e-3


def test_a_piece_of_the_result_that_other_clicks_cut_off_is_no_other_piece(monkeypatch):
    session = clicked()
    segmenter, prompts = session._segmenter, canonical_prompts(session._state.prompts, session.volume)
    z, y, x = np.indices((40, 44, 48))
    mask = CompactMask.of(z.shape, (z >= 16) & (z < 24) & (y >= 18) & (y < 26) & (x >= 10) & (x < 40))
    view = session._state.last.view
    logits = segmenter.as_prior(mask, view)
    across = np.linspace(0, 1, logits.shape[-1])
    reached = view.points_to_crop(np.array([[20, 22, 30.0]]), segmenter.grid)[0, 2] / view.size
    cut = torch.from_numpy(np.abs(across - reached) < 0.05)
    monkeypatch.setattr(segmenter, "decode", lambda *_: (logits.masked_fill(cut, -8.0), 0.5))
    start = segmenter.start()
    steps = (start, Prediction(mask, view, logits))
    map_ = uncertainty_of(segmenter, prompts, steps, start.mask, 4, session.volume.canonical)
    probability = np.zeros(z.shape)
    probability[box_slices(map_.box_zyx)] = map_.probability_zyx
    assert (probability[18:22, 20:24, 12:22] > 0.8).all(), "where the click is"
    assert (probability[18:22, 20:24, 35:38] > 0.8).all(), "beyond the cut"
    assert probability[20, 22, 30] < 0.5


def test_one_click_is_moved_as_it_was_made_with_the_most_trusted_alternative(monkeypatch):
    session = clicked()
    decode, asked = Segmenter.decode, []

    def noted(self, embedding, view, prompts, prior, several=False):
        asked.append(several)
        return decode(self, embedding, view, prompts, prior, several)

    monkeypatch.setattr(Segmenter, "decode", noted)
    session.uncertainty(3)
    session.add_point(tuple(session.volume.grid.ras_from_zyx_points([(25, 22, 18)])[0]))
    assert asked[:2] == [True, True]
    del asked[:]
    session.uncertainty(3)
    assert asked == [False, False]


@pytest.mark.parametrize("name, without", [("sam_med3d", 1), ("fastsam3d", 0)])
def test_a_model_that_sees_the_newest_click_alone_has_the_mask_before_in_every_decode(name, without, monkeypatch):
    model = tiny_model(name)
    session, decode, priors = Session(model), model.decode, []
    session.set_image(blob_volume())
    for place, positive in (((20, 22, 18), True), ((20, 22, 22), False)):
        session.add_point(tuple(session.volume.grid.ras_from_zyx_points(place)), positive)

    def noted(embedding, points, labels, prior=None, multimask=False):
        priors.append(prior)
        return decode(embedding, points, labels, prior, multimask)

    monkeypatch.setattr(model, "decode", noted)
    session.uncertainty(3)
    assert [bool(prior.any()) for prior in priors].count(False) == without


def test_asking_changes_nothing():
    session = clicked()
    state, mask = session.to_dict(), session.result.mask_zyx
    session.uncertainty()
    assert session.to_dict() == state and session.can_undo and not session.can_redo
    np.testing.assert_array_equal(session.result.mask_zyx, mask)


def test_the_calibration_of_the_model_is_applied():
    session = clicked()
    before, quality = session.uncertainty(1), session.result.quality
    session.model.calibration = Calibration(0.5, 0.0, 2.0, -1.0)
    after = session.uncertainty(1)
    sure = np.abs(before.probability_zyx - 0.5).max()
    assert np.abs(after.probability_zyx - 0.5).max() < sure, "half the logit is less sure"
    session.undo()
    session.redo()
    assert session.result.quality == quality, "history keeps what was shown"
    session.reset()
    session.add_point(tuple(session.volume.grid.ras_from_zyx_points([(20, 22, 18)])[0]))
    assert session.result.quality == pytest.approx(Calibration(0.5, 0.0, 2.0, -1.0).iou(quality))


def test_without_a_prompt_or_a_decode_there_is_an_explanation():
    session = clicked()
    with pytest.raises(PromptError, match="at least 1 decode"):
        session.uncertainty(decodes=0)
    session.reset()
    with pytest.raises(SessionError, match="click first"):
        session.uncertainty()
    with pytest.raises(SessionError, match="set_image"):
        Session(session.model).uncertainty()
