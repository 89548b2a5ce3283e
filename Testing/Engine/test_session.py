"""The session's contract, on the default network with seeded random weights: what holds must hold for any weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from famsam.compact_mask import CompactMask
from famsam.errors import PromptError, SessionError
from famsam.model.famsam import Famsam
from famsam.session import Session
from famsam.volume import Volume


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Famsam().eval().requires_grad_(False)


def ball_volume(size_zyx=(40, 44, 48), ras_from_ijk=None, radius=9.0) -> Volume:
    z, y, x = np.indices(size_zyx)
    centre = (np.array(size_zyx) - 1) / 2
    inside = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2
    noise = np.random.default_rng(0).normal(0, 10, size_zyx)
    matrix = np.diag([1.5, 1.5, 1.5, 1]) if ras_from_ijk is None else ras_from_ijk
    return Volume((1000 * inside + noise).astype(np.int16), matrix)


def centre_of(volume: Volume, offset_zyx=(0, 0, 0)):
    index = (np.array(volume.grid.size_zyx) - 1) / 2 + offset_zyx
    return tuple(volume.grid.ras_from_zyx_points([index])[0])


def voxel_of(volume: Volume, ras):
    return tuple(np.rint(volume.grid.zyx_from_ras_points([ras])[0]).astype(int))


@pytest.fixture
def session(model):
    session = Session(model)
    session.set_image(ball_volume())
    return session


def test_clicked_voxels_obey_whatever_the_rest_looks_like(session):
    volume = session.volume
    inside, outside = centre_of(volume), centre_of(volume, (0, 6, 0))
    result = session.add_point(inside, positive=True)
    assert result.mask_zyx[voxel_of(volume, inside)]
    result = session.add_point(outside, positive=False)
    assert result.mask_zyx[voxel_of(volume, inside)] and not result.mask_zyx[voxel_of(volume, outside)]
    result = session.add_point(outside, positive=True)
    assert result.mask_zyx[voxel_of(volume, outside)], "of two clicks on one voxel the later counts"


def test_one_way_holds_for_a_mask_to_start_from_and_a_box_decides_anew(session, monkeypatch):
    half = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64, 64)
    monkeypatch.setattr(Famsam, "decode", lambda *_: (half.clone(), torch.tensor([[0.5]])))
    start = np.zeros(session.volume.grid.size_zyx, dtype=bool)
    start[12:28, 10:24, 20:40] = True
    session.set_mask(start)
    after = session.add_point(centre_of(session.volume, (0, 6, 0)), positive=False).mask_zyx
    assert not (after & ~start).any() and (start & ~after).any()
    session.reset()
    session.set_mask(start)
    boxed = session.add_box(centre_of(session.volume, (-12, -12, -12)), centre_of(session.volume, (12, 12, 12)))
    assert (boxed.mask_zyx & ~start).any() and (start & ~boxed.mask_zyx).any()


def test_mask_has_the_image_shape_and_only_the_changed_box_changed(session):
    before = session.result.mask_zyx
    result = session.add_point(centre_of(session.volume))
    assert result.mask_zyx.shape == session.volume.grid.size_zyx and result.mask_zyx.dtype == bool
    (z0, y0, x0), (z1, y1, x1) = result.changed_box_zyx
    rest = before ^ result.mask_zyx
    assert rest[z0:z1, y0:y1, x0:x1].any()
    rest[z0:z1, y0:y1, x0:x1] = False
    assert not rest.any()
    np.testing.assert_array_equal(result.mask_in(result.changed_box_zyx), result.mask_zyx[z0:z1, y0:y1, x0:x1])


def test_timings_and_quality(session):
    result = session.add_point(centre_of(session.volume))
    assert set(result.timings_ms) == {"crop", "encode", "decode", "paste", "total"}
    assert result.timings_ms["total"] >= result.timings_ms["decode"] > 0
    assert 0 <= result.quality <= 1


def test_timings_are_those_of_the_interaction_alone(session):
    volume = session.volume
    timings_ms = session.add_point(centre_of(volume)).timings_ms
    session.uncertainty(decodes=2)
    assert session.result.timings_ms == timings_ms
    assert session.preview(centre_of(volume, (0, 0, 5))).timings_ms
    assert session.add_point(centre_of(volume, (0, 0, 5))).timings_ms == {}, "the preview had computed it"
    session.add_point(centre_of(volume, (0, 5, 0)))
    assert session.remove_point(2).timings_ms == {}, "back to what was there"


def test_undo_and_redo_of_any_depth(session):
    volume = session.volume
    masks = [session.result.mask_zyx]
    for i in range(4):
        masks.append(session.add_point(centre_of(volume, (0, 0, 2 * i)), positive=i % 2 == 0).mask_zyx)
    masks.append(session.reset().mask_zyx)
    for expected in masks[-2::-1]:
        np.testing.assert_array_equal(session.undo().mask_zyx, expected)
    with pytest.raises(SessionError, match="Nothing to undo"):
        session.undo()
    for expected in masks[1:]:
        np.testing.assert_array_equal(session.redo().mask_zyx, expected)
    with pytest.raises(SessionError, match="Nothing to redo"):
        session.redo()


def test_a_new_click_after_undo_ends_redo(session):
    session.add_point(centre_of(session.volume))
    session.undo()
    session.add_point(centre_of(session.volume, (2, 0, 0)))
    assert not session.can_redo


def test_preview_shows_the_click_and_changes_nothing(session):
    volume = session.volume
    session.add_point(centre_of(volume))
    state, before = session.to_dict(), session.result.mask_zyx
    previewed = session.preview(centre_of(volume, (0, 5, 0)), positive=False).mask_zyx
    assert session.to_dict() == state and session.can_undo and not session.can_redo
    np.testing.assert_array_equal(session.result.mask_zyx, before)
    np.testing.assert_array_equal(session.add_point(centre_of(volume, (0, 5, 0)), positive=False).mask_zyx, previewed)


def test_same_prompts_same_mask_however_they_came(model):
    volume = ball_volume()
    a, b, c = centre_of(volume), centre_of(volume, (0, 7, 0)), centre_of(volume, (3, 0, 0))
    straight = Session(model)
    straight.set_image(volume)
    straight.add_point(a)
    expected = straight.add_point(c, positive=False).mask_zyx
    winding = Session(model)
    winding.set_image(volume)
    for point in (b, a, b):
        winding.preview(point)
    winding.add_point(a)
    winding.add_point(b)
    winding.add_point(c, positive=False)
    np.testing.assert_array_equal(winding.remove_point(1).mask_zyx, expected)
    winding.move_point(0, b)
    np.testing.assert_array_equal(winding.move_point(0, a).mask_zyx, expected)
    restored = Session(model)
    restored.set_image(volume)
    state = json.loads(json.dumps(winding.to_dict()))
    np.testing.assert_array_equal(restored.restore(state).mask_zyx, expected)
    assert restored.prompts == winding.prompts
    restored.undo()
    assert not restored.result.mask_zyx.any()


def test_box_and_mask_prompts(session):
    volume = session.volume
    lower, upper = centre_of(volume, (-9, -9, -9)), centre_of(volume, (9, 9, 9))
    session.add_box(lower, upper)
    assert len(session.prompts) == 1
    start = np.zeros(volume.grid.size_zyx, bool)
    start[10:20, 10:20, 10:20] = True
    result = session.set_mask(start)
    np.testing.assert_array_equal(result.mask_zyx, start)
    assert session.prompts == ()
    state = session.to_dict()
    refined = session.add_point(centre_of(volume), positive=True).mask_zyx
    session.undo()
    session.undo()
    assert len(session.prompts) == 1
    np.testing.assert_array_equal(session.restore(state).mask_zyx, start)
    np.testing.assert_array_equal(session.add_point(centre_of(volume), positive=True).mask_zyx, refined)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: s.add_point((1e4, 0, 0)), "inside the image"),
        (lambda s: s.add_point((float("nan"), 0, 0)), "finite"),
        (lambda s: s.add_point((1, 2)), "three numbers"),
        (lambda s: s.add_point("abc"), "three numbers"),
        (lambda s: s.add_box((20, 20, 20), (10, 10, 20)), "flat in no direction"),
        (lambda s: s.add_box((900, 900, 900), (990, 990, 990)), "overlaps the image"),
        (lambda s: s.set_mask(np.zeros((3, 3, 3), bool)), "image's shape"),
        (lambda s: s.set_mask(np.full((40, 44, 48), "a")), "bools or numbers"),
        (lambda s: s.move_point(5, (10, 10, 10)), "index of one of"),
        (lambda s: s.remove_point(-1), "index of one of"),
        (lambda s: s.restore({"version": 1}), "damaged"),
        (lambda s: s.restore({**s.to_dict(), "image": {"size_zyx": [1], "ras_from_ijk": [10**400]}}), "damaged"),
        (lambda s: s.restore({**s.to_dict(), "version": 99}), "version 99"),
        (lambda s: s.restore({**s.to_dict(), "prompts": [{"type": "spell"}]}), "spell"),
    ],
)
def test_bad_prompts_are_refused_and_change_nothing(session, call, message):
    session.add_point(centre_of(session.volume))
    state, mask = session.to_dict(), session.result.mask_zyx
    with pytest.raises(PromptError, match=message):
        call(session)
    assert session.to_dict() == state and not session.can_redo
    np.testing.assert_array_equal(session.result.mask_zyx, mask)


def test_nan_in_a_mask_to_start_from_is_background(session):
    start = np.full((40, 44, 48), np.nan, np.float32)
    start[10:20, 10:20, 10:20] = 1
    np.testing.assert_array_equal(session.set_mask(start).mask_zyx, start == 1)


def test_prompts_for_another_volume_are_refused(model, session):
    session.add_point(centre_of(session.volume))
    other = Session(model)
    other.set_image(ball_volume((30, 30, 30)))
    with pytest.raises(PromptError, match="another one"):
        other.restore(session.to_dict())


def test_verbs_before_an_image_say_so(model):
    session = Session(model)
    for verb in (lambda: session.add_point((0, 0, 0)), session.undo, session.reset, session.to_dict):
        with pytest.raises(SessionError, match="set_image"):
            verb()
    with pytest.raises(SessionError, match=r"famsam\.Volume"):
        session.set_image(np.zeros((4, 4, 4)))


def test_a_failing_model_leaves_the_session_as_it_was(session, monkeypatch):
    session.add_point(centre_of(session.volume))
    state, mask = session.to_dict(), session.result.mask_zyx

    def broken(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(session.model, "decode", broken)
        session.add_point(centre_of(session.volume, (2, 2, 2)))
    assert session.to_dict() == state
    np.testing.assert_array_equal(session.result.mask_zyx, mask)


@pytest.mark.parametrize("verb", ["undo", "redo"])
def test_a_step_along_the_history_that_fails_is_not_made(session, monkeypatch, verb):
    session.add_point((0, 0, 0))
    session.add_point((5, 5, 5), positive=False)
    session.undo()
    before = session.to_dict(), session.can_undo, session.can_redo
    with monkeypatch.context() as patch:
        patch.setattr(CompactMask, "changed_box", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            getattr(session, verb)()
    assert (session.to_dict(), session.can_undo, session.can_redo) == before
    getattr(session, verb)()


@pytest.mark.parametrize("size_zyx", [(1, 60, 60), (30, 30, 30), (5, 200, 30)])
def test_slices_tiny_and_flat_volumes(model, size_zyx):
    session = Session(model)
    session.set_image(ball_volume(size_zyx, np.diag([0.4, 0.4, 6.0, 1])))
    point = centre_of(session.volume)
    assert session.add_point(point).mask_zyx[voxel_of(session.volume, point)]


def test_geometry_of_the_image_does_not_matter(model):
    """The same scan stored in another order and direction gives the same mask at the same places."""
    plain = ball_volume(ras_from_ijk=np.diag([1.0, 1.2, 1.5, 1]))
    flipped_voxels = plain.voxels_zyx.transpose(2, 0, 1)[:, ::-1, :]
    matrix = np.zeros((4, 4))
    # New (i, j, k) = old (y, flipped z, x).
    matrix[1, 0], matrix[2, 1], matrix[0, 2], matrix[3, 3] = 1.2, -1.5, 1.0, 1
    matrix[2, 3] = 1.5 * (plain.grid.size_zyx[0] - 1)
    turned = Volume(flipped_voxels, matrix)
    point, other = centre_of(plain), centre_of(plain, (0, 8, 0))
    masks = []
    for volume in (plain, turned):
        session = Session(model)
        session.set_image(volume)
        session.add_point(point)
        masks.append(session.add_point(other, positive=False).mask_zyx)
    np.testing.assert_array_equal(masks[0], masks[1][:, ::-1, :].transpose(1, 2, 0))


def test_many_random_interactions_keep_the_invariants(model):
    """Prompts and mask stay in step through any sequence of verbs."""
    rng = np.random.default_rng(5)
    volume = ball_volume((24, 24, 24))
    session = Session(model)
    session.set_image(volume)
    for _ in range(15):
        verb = rng.integers(0, 6)
        index = rng.integers(0, 24, 3)
        ras = tuple(volume.grid.ras_from_zyx_points([index])[0])
        if verb <= 2:
            session.add_point(ras, positive=bool(rng.integers(0, 2)))
        elif verb == 3 and session.can_undo:
            session.undo()
        elif verb == 4 and session.can_redo:
            session.redo()
        elif verb == 5 and session.prompts:
            session.remove_point(int(rng.integers(0, len(session.prompts))))
        mask = session.result.mask_zyx
        said = {voxel_of(volume, p.ras_mm): p.positive for p in session.prompts}
        assert all(mask[voxel] == positive for voxel, positive in said.items())
    fresh = Session(model)
    fresh.set_image(volume)
    np.testing.assert_array_equal(fresh.restore(session.to_dict()).mask_zyx, session.result.mask_zyx)
