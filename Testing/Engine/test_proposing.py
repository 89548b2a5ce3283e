"""Candidates of a session: what holds for any weights of the head."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from famsam import cli
from famsam.checkpoints import load_model, save_model
from famsam.errors import ConfigError, MissingDependencyError, PromptError, SessionError
from famsam.geometry import box_slices
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.model.proposal_head import MASK_CHANNELS
from famsam.proposing import ProposalOptions
from famsam.session import Session
from famsam.volume import Volume, read_mask, read_volume

TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)
OPTIONS = ProposalOptions(least_quality=0.0, per_view=6)
OBLIQUE_LPS = np.array([[-1.4, 0.3, 0, 20], [-0.3, -1.4, 0, 30], [0, 0, -2.0, 10], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Famsam(FamsamConfig(**{**vars(TINY), "proposals": True})).eval().requires_grad_(False)
    model.proposal_head.kernels[-1].bias[MASK_CHANNELS] = 2.0  # masks of any weights are not empty then
    model.decoder.masks.bias[:] = 0.0
    return model


def noisy_volume(ras_from_ijk=None, size_zyx=(40, 44, 48)):
    z, y, x = np.indices(size_zyx)
    voxels = np.random.default_rng(0).normal(0, 10, size_zyx)
    for centre, radius in (((20, 22, 12), 8), ((16, 30, 34), 6), ((30, 12, 30), 5)):
        voxels += 300 * (sum((a - c) ** 2 for a, c in zip((z, y, x), centre)) < radius**2)
    return Volume(voxels.astype(np.int16), np.diag([1.5, 1.5, 1.5, 1]) if ras_from_ijk is None else ras_from_ijk)


def session_of(model, volume=None):
    session = Session(model)
    session.set_image(volume or noisy_volume())
    return session


@pytest.mark.parametrize("ras_from_ijk", [None, OBLIQUE_LPS])
def test_candidates_are_ranked_distinct_and_on_the_grid(model, ras_from_ijk):
    session = session_of(model, noisy_volume(ras_from_ijk))
    candidates = session.propose(OPTIONS)
    assert 1 <= len(candidates) <= OPTIONS.most
    qualities = [c.quality for c in candidates]
    assert qualities == sorted(qualities, reverse=True) and all(0 <= q <= 1 for q in qualities)
    for c in candidates:
        mask = c.mask_zyx
        assert mask.shape == session.volume.grid.size_zyx and mask.sum() >= OPTIONS.least_voxels
        low, high = (np.array(corner) for corner in c.box_zyx)
        found = np.argwhere(mask)
        assert (found.min(0) == low).all() and (found.max(0) + 1 == high).all()
        np.testing.assert_array_equal(c.mask_in(c.box_zyx), mask[box_slices(c.box_zyx)])
    for a, b in combinations(candidates, 2):
        assert (a.mask_zyx & b.mask_zyx).sum() <= OPTIONS.overlap * (a.mask_zyx | b.mask_zyx).sum()


def test_the_options_limit_what_comes(model):
    session = session_of(model)
    assert len(session.propose(ProposalOptions(most=1, least_quality=0.0))) == 1
    assert session.propose(ProposalOptions(least_quality=1.0)) == []
    assert session.propose(ProposalOptions(least_quality=0.0, least_voxels=10**6)) == []
    assert session.propose(ProposalOptions(least_quality=0.0, least_promise=1.0)) == []
    every = session.propose(ProposalOptions(least_quality=0.0, overlap=1.0, per_view=6))
    assert len(every) >= len(session.propose(OPTIONS))
    with pytest.raises(ConfigError, match="from 1"):
        ProposalOptions(most=0)


def test_proposing_changes_nothing_and_does_not_depend_on_prompts(model):
    session = session_of(model)
    before = session.propose(OPTIONS)
    session.add_point(tuple(session.volume.grid.ras_from_zyx_points([(20, 22, 12)])[0]))
    state, mask = session.to_dict(), session.result.mask_zyx
    after = session.propose(OPTIONS)
    assert [c.quality for c in after] == [c.quality for c in before]
    assert session.to_dict() == state
    np.testing.assert_array_equal(session.result.mask_zyx, mask)


def test_a_candidate_is_taken_undone_and_refined(model):
    session = session_of(model)
    session.add_point(tuple(session.volume.grid.ras_from_zyx_points([(20, 22, 12)])[0]))
    clicked = session.result.mask_zyx
    candidate = session.propose(OPTIONS)[0]
    result = session.take(candidate)
    np.testing.assert_array_equal(result.mask_zyx, candidate.mask_zyx)
    assert result.quality == candidate.quality and session.prompts == ()
    np.testing.assert_array_equal(session.undo().mask_zyx, clicked)
    session.redo()
    outside = np.argwhere(~candidate.mask_zyx)[0]
    refined = session.add_point(tuple(session.volume.grid.ras_from_zyx_points([outside])[0]))
    assert refined.mask_zyx[tuple(outside)]
    other = session_of(model)
    np.testing.assert_array_equal(other.restore(session.to_dict()).mask_zyx, refined.mask_zyx)


def test_what_cannot_be_done_is_explained(model):
    with pytest.raises(SessionError, match="set_image"):
        Session(model).propose()
    candidate = session_of(model).propose(OPTIONS)[0]
    with pytest.raises(PromptError, match="propose"):
        session_of(model, noisy_volume(size_zyx=(40, 44, 50))).take(candidate)
    with pytest.raises(ConfigError, match="famsam train-proposals"):
        session_of(Famsam(TINY).eval()).propose()


def test_large_scans_are_looked_at_piece_by_piece(model):
    from famsam.proposing import _views
    from famsam.segmenter import Segmenter

    segmenter = Segmenter(model, noisy_volume(np.diag([4.0, 4.0, 8.0, 1.0])))
    views = _views(segmenter, ProposalOptions(views=99))
    assert len(set(views)) == len(views) > 1 and _views(segmenter, ProposalOptions(views=1)) == views[:1]
    seen = np.zeros(segmenter.grid.size_zyx, bool)
    seen[box_slices(views[0].image_box(segmenter.grid))] = True
    assert seen.all(), "the first view shows the whole scan"
    seen[:] = False
    for view in views[1:]:
        assert view.spacing_mm < views[0].spacing_mm
        seen[box_slices(view.image_box(segmenter.grid))] = True
    assert seen.mean() > 0.95


def test_the_command_writes_masks_and_pictures(model, tmp_path, monkeypatch, capsys):
    import nibabel as nib

    volume = noisy_volume()
    nib.save(nib.Nifti1Image(volume.voxels_zyx.transpose(2, 1, 0), volume.grid.ras_from_ijk), tmp_path / "scan.nii.gz")
    save_model(model, tmp_path / "model.safetensors")
    fixed = ["propose", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "scan.nii.gz.out"), "--device", "cpu"]
    fixed += ["--precision", "fp32", "--model", str(tmp_path / "model.safetensors"), "--json"]
    assert cli.main([*fixed, "--most", "2", "--pause", "0"]) == 0
    rows = json.loads(capsys.readouterr().out)["candidates"]
    expected = session_of(model, read_volume(tmp_path / "scan.nii.gz")).propose(ProposalOptions(most=2))
    assert len(rows) == len(expected) > 0
    for row, candidate in zip(rows, expected):
        assert row["predicted_iou"] == pytest.approx(candidate.quality, abs=1e-4)
        mask = read_mask(row["mask"], volume)
        assert mask.sum() == pytest.approx(row["volume_ml"] * 1000 / 1.5**3)
        assert (mask ^ candidate.mask_zyx).sum() < 1e-3 * mask.sum(), "but for rounding in the stored geometry"
        assert Path(row["picture"]).read_bytes().startswith(b"\x89PNG")

    def missing(*_args, **_kwargs):
        raise MissingDependencyError("matplotlib is not installed")

    monkeypatch.setattr("famsam.picture.three_plane_picture", missing)
    monkeypatch.setattr(Session, "propose", lambda _session, _options: 2 * expected[:1])
    assert cli.main([*fixed, "-o", str(tmp_path / "undrawn")]) == 1
    masks = sorted(path.name for path in (tmp_path / "undrawn").iterdir())
    assert masks == ["candidate_01.nii.gz", "candidate_02.nii.gz"], "what cannot be drawn does not cost the masks"


def test_a_candidate_is_what_a_click_on_its_seed_shows(model):
    from famsam.proposing import _seeds, _views
    from famsam.segmenter import Segmenter

    volume = noisy_volume()
    segmenter = Segmenter(model, volume)
    nothing = segmenter.start()
    options = ProposalOptions(views=1, per_view=3, least_quality=0.0)
    seeds = _seeds(_views(segmenter, ProposalOptions(views=1))[0], segmenter, options)
    assert 1 <= len(seeds) <= 5, "three peaks, and two coarse masks that may have the same seeds"
    shown = [segmenter.step(seed, nothing, nothing.mask).mask.dense() for seed in seeds]
    candidates = session_of(model, volume).propose(options)
    assert candidates
    for candidate in candidates:
        mask = volume.canonical.to_canonical(candidate.mask_zyx)
        assert any(np.array_equal(mask, one) for one in shown)


def test_there_is_nothing_in_noise():
    noise = np.random.default_rng(0).normal(100, 10, (40, 44, 48)).astype(np.int16)
    session = session_of(load_model(), Volume(noise, np.diag([1.5, 1.5, 2.0, 1.0])))
    assert session.propose() == []
    assert session.propose(ProposalOptions(least_quality=0.0)), "the model does see something, and does not trust it"
