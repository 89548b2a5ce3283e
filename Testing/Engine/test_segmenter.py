"""The segmenter with a model whose answer is known: a threshold at half of the clicked intensity.

The model below is a whole ``PromptableModel`` that takes any view, reads what it segments from the crop alone, and has
no weights. What is tested is therefore the choice of views, the coordinates, the refinement and the pasting.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Tuple

import edt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from famsam import segmenter as segmenter_module
from famsam.compact_mask import CompactMask
from famsam.embeddings import Embeddings
from famsam.geometry import Grid
from famsam.model.base import Embedding, PromptableModel
from famsam.model.famsam import Famsam
from famsam.model.prompt_maps import BOX_LOWER, BOX_UPPER, NEGATIVE, POSITIVE, box_map, gather_points, point_masks
from famsam.resample import CropBox
from famsam.segmenter import Prompts, Segmenter, SegmenterOptions
from famsam.views import ViewOptions
from famsam.volume import Volume
from torch import Tensor


class ThresholdModel(PromptableModel):
    """Everything in the crop that is as bright as what was clicked on, up to half of it, and unlike negative clicks.

    Without a positive click in the crop, the previous mask tells what is meant; a box keeps what is outside out.
    """

    name = "threshold"
    takes_boxes = True

    def __init__(self, **how_crops_are_made) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))  # where it is, there the crops must be
        for name, value in how_crops_are_made.items():
            setattr(self, name, value)

    def normalise(self, crop_B1ZYX: Tensor, inside_B1ZYX: Tensor) -> Tensor:
        return torch.where(inside_B1ZYX, crop_B1ZYX / 1000, torch.full_like(crop_B1ZYX, -1.0))

    def encode(self, crop_B1ZYX: Tensor) -> Embedding:
        return Embedding(F.avg_pool3d(crop_B1ZYX, self.crop_size // self.mask_size))

    def decode(
        self,
        embedding: Embedding,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits_B1zyx: Optional[Tensor] = None,
        multimask: bool = False,
    ) -> Tuple[Tensor, Tensor]:
        image = embedding.tokens
        step = self.crop_size / self.mask_size
        points = (points_BN3 + 0.5) / step - 0.5
        at_clicks = gather_points(image, points)[0, :, 0]
        positive, negative = (which[0] for which in point_masks(labels_BN))
        boxes = box_map(points, labels_BN, tuple(image.shape[2:]))[0]
        if positive.any():
            meant = at_clicks[positive]
        elif boxes.any():
            meant = image[0, 0][boxes > 0].max()[None]
        elif mask_logits_B1zyx is not None and (mask_logits_B1zyx > 0).any():
            meant = image[mask_logits_B1zyx > 0].median()[None]
        else:
            return torch.full_like(image, -4.0), torch.zeros(1, 1)
        likeness = torch.stack([0.5 - (image / m.clamp_min(0.05) - 1).abs() for m in meant]).amax(0)
        if negative.any():
            unlike = torch.stack([(image - m).abs() for m in at_clicks[negative]]).amin(0)
            alike = torch.stack([(image - m).abs() for m in meant]).amin(0)
            likeness = torch.minimum(likeness, unlike - alike)
        logits = 8 * likeness
        if boxes.any():
            logits = torch.where(boxes > 0, logits, torch.full_like(logits, -4.0))
        return logits, torch.full((1, 1), 0.9)

    def first_mask_logits(self, batch: int = 1) -> Optional[Tensor]:
        return torch.zeros(batch, 1, *(self.mask_size,) * 3) if self.newest_point_only else None


def published_style(**changes) -> ThresholdModel:
    """One spacing, axes reversed, no boxes, only the newest click with the previous logits, coarse logits."""
    how = {"spacing_mm": 1.5, "crop_axes": "xyz", "takes_boxes": False, "newest_point_only": True, "mask_size": 32}
    return ThresholdModel(**{**how, **changes})


# --- scans ---


def scan_of(truth_zyx, spacing_xyz, brightness=1000) -> Volume:
    """Bright structures with partial volume at nothing, in a little noise."""
    noise = np.random.default_rng(0).normal(0, 15, truth_zyx.shape)
    return Volume((brightness * truth_zyx + noise).astype(np.int16), np.diag([*spacing_xyz, 1.0]))


def mm_of(size_zyx, spacing_xyz):
    """(3, z, y, x) position of every voxel's centre in mm from the first, axes z, y, x."""
    return np.indices(size_zyx) * np.array(spacing_xyz[::-1]).reshape(3, 1, 1, 1)


def ball(mm, centre_mm, radius_mm):
    return ((mm - np.array(centre_mm, dtype=float).reshape(3, 1, 1, 1)) ** 2).sum(0) < radius_mm**2


def vessel(mm, length_mm=300.0, radius_mm=8.0, start_mm=30.0):
    """A tube that winds along z."""
    along = np.clip(mm[0], start_mm, start_mm + length_mm)
    y, x = 100 + 40 * np.sin(along / 45), 100 + 35 * np.cos(along / 60)
    return ((mm[0] - along) ** 2 + (mm[1] - y) ** 2 + (mm[2] - x) ** 2) < radius_mm**2


def liver(mm):
    """A lobed body, 300 mm long."""
    z, y, x = mm[0] - 180, mm[1] - 110, mm[2] - 100
    lobes = 1 + 0.12 * np.sin(z / 25) * np.cos(y / 30)
    return (z / 150) ** 2 + (y / (80 * lobes)) ** 2 + (x / (60 * lobes)) ** 2 < 1


# --- clicking ---


def run(segmenter, points, labels=None, base=None):
    """The prediction after each of the prompts; a box takes two points and gives one prediction."""
    labels = [POSITIVE] * len(points) if labels is None else labels
    base = base or CompactMask.empty(segmenter.grid.size_zyx)
    predictions = [segmenter.start(base)]
    for n in range(1, len(points) + 1):
        if labels[n - 1] != BOX_LOWER:
            prompts = Prompts(np.array(points[:n], dtype=float), tuple(labels[:n]))
            predictions.append(segmenter.step(prompts, predictions[-1], base))
    return predictions[1:]


def segmented(model, volume, points, labels=None, options=None):
    return run(Segmenter(model, volume, options), points, labels)[-1].mask.dense()


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def worst_slice(mask, truth, least=30):
    """The lowest Dice of any slice across any axis in which the truth has an area: a cut edge shows in it."""
    worst = 1.0
    for axis in range(3):
        for k in range(truth.shape[axis]):
            of_mask, of_truth = mask.take(k, axis), truth.take(k, axis)
            if of_truth.sum() >= least:
                worst = min(worst, dice(of_mask, of_truth))
    return worst


def errors_near_faces(mask, truth, views, grid):
    """Share of the truth's voxels within 2 voxels of any view's faces that the mask has wrong."""
    wrong = total = 0
    for view in views:
        low, high = view.points_from_crop([[-0.5] * 3, [view.size - 0.5] * 3], grid)
        for axis in range(3):
            for face in (low[axis], high[axis]):
                where = [slice(max(0, round(a)), max(0, round(b))) for a, b in zip(low, high)]
                where[axis] = slice(max(0, round(face) - 2), max(0, round(face) + 3))
                where = tuple(where)
                wrong += int((mask[where] ^ truth[where]).sum())
                total += int(truth[where].sum())
    return wrong / total if total else 0.0


def inner_voxel(truth, z):
    """The voxel of a slice that lies deepest in the structure."""
    depth = edt.edt(truth[z])
    return (z, *np.unravel_index(int(depth.argmax()), depth.shape))


# --- large structures ---


@pytest.mark.parametrize("scout_size", [None, 64])
@pytest.mark.parametrize("shape, z", [(vessel, 20), (vessel, 100), (liver, 90)])
def test_structures_of_300_mm_are_segmented_whole(shape, z, scout_size):
    size, spacing = (180, 110, 100), (2.0, 2.0, 2.0)
    truth = shape(mm_of(size, spacing))
    segmenter = Segmenter(ThresholdModel(scout_size=scout_size), scan_of(truth, spacing))
    prediction = run(segmenter, [inner_voxel(truth, z)])[-1]
    mask = prediction.mask.dense()
    assert dice(mask, truth) > 0.95
    assert worst_slice(mask, truth) > 0.9
    views = list(segmenter._embeddings)
    assert prediction.view.spacing_mm > 1.5 and views[-1].spacing_mm < 1.6, "seen from afar, refined from close by"
    assert errors_near_faces(mask, truth, views, segmenter.grid) < 0.05


@pytest.mark.parametrize("trust, looks", [(0.7, 1), (0.4, 3)])
def test_a_first_look_that_is_trusted_enough_is_the_only_one(monkeypatch, trust, looks):
    size, spacing = (110, 110, 110), (2.0, 2.0, 2.0)
    truth = ball(mm_of(size, spacing), (110, 110, 110), 35)
    segmenter = Segmenter(ThresholdModel(), scan_of(truth, spacing))
    seen, decode = [], segmenter.decode

    def doubting(embedding, view, *rest):
        seen.append(view)
        return decode(embedding, view, *rest)[0], trust

    monkeypatch.setattr(segmenter, "decode", doubting)
    prediction = run(segmenter, [(55, 55, 55)])[-1]
    assert len(seen) == len(set(seen)) == looks and prediction.view == seen[0]
    assert dice(prediction.mask.dense(), truth) > 0.95


@pytest.mark.parametrize("trust, scouts, full", [(0.7, 1, 1), (0.4, 3, 2)])
def test_a_view_is_chosen_in_small_crops_and_looked_at_once_or_beside_another(monkeypatch, trust, scouts, full):
    size, spacing = (110, 110, 110), (2.0, 2.0, 2.0)
    truth = ball(mm_of(size, spacing), (110, 110, 110), 35)
    segmenter = Segmenter(ThresholdModel(scout_size=64), scan_of(truth, spacing))
    seen, decode = [], segmenter.decode

    def doubting(embedding, view, *rest):
        seen.append(view)
        return decode(embedding, view, *rest)[0], trust

    monkeypatch.setattr(segmenter, "decode", doubting)
    first, second = run(segmenter, [(55, 55, 55), (60, 55, 55)])
    assert [view.size for view in seen] == [64] * scouts + [128] * full + [128]
    assert len(set(seen[:scouts])) == scouts and seen[scouts] == seen[-1] == first.view == second.view
    scout = seen[0]
    assert scout.center_zyx == first.view.center_zyx and scout.spacing_mm == 2 * first.view.spacing_mm
    assert dice(first.mask.dense(), truth) > 0.95


@pytest.mark.parametrize("as_sure, chosen", [(0.35, 1), (0.25, 0)])
def test_of_two_scouts_about_as_sure_the_one_counts_that_is_trusted_in_full(monkeypatch, as_sure, chosen):
    size, spacing = (110, 110, 110), (2.0, 2.0, 2.0)
    truth = ball(mm_of(size, spacing), (110, 110, 110), 35)
    segmenter = Segmenter(ThresholdModel(scout_size=64), scan_of(truth, spacing))
    decode, scouts, full = segmenter.decode, [], []

    def trusting(embedding, view, *rest):
        logits = decode(embedding, view, *rest)[0]
        if view.size == 64:
            scouts.append(view)
            return logits, 0.4 if len(scouts) == 1 else as_sure if len(scouts) == 2 else 0.1
        full.append(view)
        return logits, 0.3 if len(full) == 1 else 0.7

    monkeypatch.setattr(segmenter, "decode", trusting)
    (first,) = run(segmenter, [(55, 55, 55)])
    assert len(full) == 1 + chosen and first.view == full[chosen]



@pytest.mark.parametrize("again, counts", [(0.8, "the look again"), (0.2, "the scout")])
def test_a_full_look_that_loses_what_the_scout_saw_is_doubted(monkeypatch, again, counts):
    size, spacing = (110, 110, 110), (2.0, 2.0, 2.0)
    truth = ball(mm_of(size, spacing), (110, 110, 110), 35)
    segmenter = Segmenter(ThresholdModel(scout_size=64), scan_of(truth, spacing))
    seen, decode = [], segmenter.decode

    def blind_in_full(embedding, view, prompts, prior, several=False):
        logits, _ = decode(embedding, view, prompts, prior)
        seen.append((view.size, prior is not None))
        if view.size == 64:
            return logits, 0.7
        return (logits, again) if prior is not None else (torch.full_like(logits, -4.0), 0.1)

    monkeypatch.setattr(segmenter, "decode", blind_in_full)
    first = run(segmenter, [(55, 55, 55)])[-1]
    assert seen == [(64, False), (128, False), (128, True)]
    assert dice(first.mask.dense(), truth) > 0.9
    assert first.quality == pytest.approx(max(again, 0.7)), counts
    assert first.logits.shape[-1] == segmenter.model.mask_size


def test_what_one_tile_shows_whole_is_looked_at_through_it_from_then_on(monkeypatch):
    size, spacing = (110, 110, 110), (3.0, 3.0, 3.0)
    truth = ball(mm_of(size, spacing), (160, 170, 150), 55)
    segmenter = Segmenter(
        ThresholdModel(), scan_of(truth, spacing), SegmenterOptions(ViewOptions(first_factors=(2.0,)))
    )
    seen = []
    decode = segmenter.decode
    monkeypatch.setattr(
        segmenter, "decode", lambda e, view, *rest: seen.append(view.spacing_mm) or decode(e, view, *rest)
    )
    first, second, beyond = run(segmenter, [(53, 56, 50), (48, 60, 45), (53, 56, 90)], [POSITIVE, POSITIVE, NEGATIVE])
    assert seen[:3] == pytest.approx([3.0, 1.5, 1.5]), "from afar, through its tile, then through that alone"
    assert first.view == second.view and first.view.spacing_mm == pytest.approx(1.5)
    assert dice(first.mask.dense(), truth) > 0.95 and dice(second.mask.dense(), truth) > 0.95
    assert dice(beyond.mask.dense(), truth) > 0.95, "and a click beyond it is still seen"


@pytest.mark.parametrize("trust, looks", [(0.9, []), (0.1, [(128, 3.0), (128, 1.5)])])
def test_what_one_tile_shows_whole_needs_no_full_look_from_afar(monkeypatch, trust, looks):
    """Unless the tile loses what the scout saw: then it is looked at in full, as everything else."""
    size, spacing = (110, 110, 110), (3.0, 3.0, 3.0)
    truth = ball(mm_of(size, spacing), (160, 170, 150), 55)
    options = SegmenterOptions(ViewOptions(first_factors=(2.0, 1.0)))
    segmenter = Segmenter(ThresholdModel(scout_size=64), scan_of(truth, spacing), options)
    seen, decode = [], segmenter.decode

    def doubting(embedding, view, *rest):
        seen.append((view.size, round(view.spacing_mm, 3)))
        logits, quality = decode(embedding, view, *rest)
        return logits, trust if view.spacing_mm == pytest.approx(1.5) else quality

    monkeypatch.setattr(segmenter, "decode", doubting)
    first = run(segmenter, [(53, 56, 50)])[-1]
    assert seen == [(64, 6.0), (128, 1.5), *looks]
    assert first.view.spacing_mm == pytest.approx(1.5) and dice(first.mask.dense(), truth) > 0.95


@pytest.mark.parametrize("share, closer", [(0.85, True), (0.75, False)])
def test_a_closer_view_may_cost_a_little_trust(monkeypatch, share, closer):
    size, spacing = (100, 100, 100), (1.0, 1.0, 1.0)
    truth = ball(mm_of(size, spacing), (50, 50, 50), 9)
    options = SegmenterOptions(ViewOptions(first_factors=(1.0,)))
    segmenter = Segmenter(ThresholdModel(), scan_of(truth, spacing), options)
    wide, decode = segmenter.chooser.first((50, 50, 50))[0], segmenter.decode
    monkeypatch.setattr(
        segmenter, "decode", lambda e, view, *rest: (decode(e, view, *rest)[0], 0.8 if view == wide else 0.8 * share)
    )
    view = run(segmenter, [(50, 50, 50)])[-1].view
    assert (view.spacing_mm < wide.spacing_mm) == closer and (view == wide) != closer


def test_refinement_is_worth_its_tiles():
    size, spacing = (180, 110, 100), (2.0, 2.0, 2.0)
    truth = vessel(mm_of(size, spacing), radius_mm=6.0)
    volume, point = scan_of(truth, spacing), inner_voxel(truth, 90)
    refined = segmented(ThresholdModel(), volume, [point])
    coarse = segmented(ThresholdModel(), volume, [point], options=SegmenterOptions(refine_above=1000.0))
    assert dice(refined, truth) > dice(coarse, truth) + 0.1


def test_clicking_again_on_a_large_structure_keeps_it_whole():
    size, spacing = (180, 110, 100), (2.0, 2.0, 2.0)
    truth = vessel(mm_of(size, spacing))
    points = [inner_voxel(truth, z) for z in (20, 100, 160)]
    for prediction in run(Segmenter(ThresholdModel(), scan_of(truth, spacing)), points):
        assert dice(prediction.mask.dense(), truth) > 0.95


def thin_and_compact():
    """A shell 3 mm thick of 80 mm across, and a ball of that size; two voxels in each."""
    size, spacing = (120, 120, 120), (1.0, 1.0, 1.0)
    mm = mm_of(size, spacing)
    whole = ball(mm, (60, 60, 60), 40)
    shell = whole & ~ball(mm, (60, 60, 60), 37)
    on_shell, on_whole = [(22, 60, 60), (60, 22, 60)], [(60, 60, 60), (40, 40, 60)]
    return (shell, scan_of(shell, spacing), on_shell), (whole, scan_of(whole, spacing), on_whole)


def test_a_thin_structure_is_looked_at_closely_around_further_clicks():
    (truth, volume, points), _ = thin_and_compact()
    model = ThresholdModel(one_way=True)
    closely = run(Segmenter(model, volume), points)
    coarsely = run(Segmenter(model, volume, SegmenterOptions(thin_share=0.0)), points)
    assert closely[0].mask.dense().tolist() == coarsely[0].mask.dense().tolist(), "of a first click nothing is known"
    around = (slice(None), slice(0, 60), slice(None))
    wrong = [1 - dice(one[1].mask.dense()[around], truth[around]) for one in (closely, coarsely)]
    assert wrong[0] < 0.7 * wrong[1]
    assert closely[1].view == coarsely[1].view, "the view stays"
    assert not torch.equal(closely[1].logits, coarsely[1].logits), "and goes on from what the tiles found"


def views_of_a_second_click(volume, points, options=None, one_way=True):
    segmenter = Segmenter(ThresholdModel(one_way=one_way), volume, options)
    first, _ = run(segmenter, points)
    seen, decode = [], segmenter.decode
    segmenter.decode = lambda embedding, view, *rest: seen.append(view) or decode(embedding, view, *rest)
    prompts = Prompts(np.array(points, dtype=float), (POSITIVE,) * 2)
    segmenter.step(prompts, first, CompactMask.empty(segmenter.grid.size_zyx))
    return seen


def test_that_costs_two_more_views_at_most_and_none_of_a_compact_structure():
    (_, thin, on_thin), (_, compact, on_compact) = thin_and_compact()
    view, *closer = views_of_a_second_click(thin, on_thin)
    assert [tile.spacing_mm for tile in closer] == [view.spacing_mm / 2] * 2
    assert views_of_a_second_click(thin, on_thin, SegmenterOptions(thin_share=0.0)) == [view]
    assert len(views_of_a_second_click(compact, on_compact)) == 1
    assert len(views_of_a_second_click(thin, on_thin, one_way=False)) == 1, "what was drawn by hand would be lost"


# --- small structures ---


def test_a_structure_of_5_mm_is_found_by_zooming_in():
    size, spacing = (160, 200, 200), (0.8, 0.8, 1.0)
    mm = mm_of(size, spacing)
    truth = ball(mm, (70, 60, 90), 2.5)
    segmenter = Segmenter(ThresholdModel(), scan_of(truth, spacing))
    prediction = run(segmenter, [(70, 75, 112)])[-1]
    assert prediction.view.spacing_mm < 0.5 * segmenter.options.views.first_spacing_mm
    assert dice(prediction.mask.dense(), truth) > 0.8


def test_a_small_structure_beside_a_large_one_does_not_become_it():
    size, spacing = (120, 120, 120), (1.0, 1.0, 1.0)
    mm = mm_of(size, spacing)
    small, large = ball(mm, (60, 60, 20), 5), ball(mm, (60, 60, 70), 35)
    mask = segmented(ThresholdModel(), scan_of(small | large, spacing), [(60, 60, 20)])
    assert dice(mask, small) > 0.8
    assert not (mask & large).any(), "an island without a click is dropped"


# --- several clicks ---


def two_balls():
    size, spacing = (150, 60, 60), (2.0, 2.0, 2.0)
    mm = mm_of(size, spacing)
    first, second = ball(mm, (40, 60, 60), 20), ball(mm, (250, 60, 50), 15)
    return first, second, scan_of(first | second, spacing)


def test_islands_belong_to_the_mask_once_they_are_clicked():
    size, spacing = (60, 60, 120), (1.5, 1.5, 1.5)
    mm = mm_of(size, spacing)
    left, right = ball(mm, (45, 45, 50), 20), ball(mm, (45, 45, 120), 20)
    volume = scan_of(left | right, spacing)
    one, both = run(Segmenter(ThresholdModel(), volume), [(30, 30, 33), (30, 30, 80)])
    assert dice(one.mask.dense(), left) > 0.95 and not (one.mask.dense() & right).any()
    assert dice(both.mask.dense(), left | right) > 0.95


def test_clicks_outside_the_view_keep_their_effect():
    first, second, volume = two_balls()
    segmenter = Segmenter(ThresholdModel(), volume)
    at_first, at_second = (20, 30, 30), (125, 30, 25)
    one, two, back = run(segmenter, [at_first, at_second, (22, 31, 30)])
    crop_point = two.view.points_to_crop(at_first, segmenter.grid)
    assert (crop_point < 0).any(), "the second view does not see the first click"
    assert dice(one.mask.dense(), first) > 0.95
    assert dice(two.mask.dense(), first | second) > 0.95
    assert dice(back.mask.dense(), first | second) > 0.95


def test_a_closer_look_beside_a_large_structure_takes_no_bite_out_of_it():
    size, spacing = (120, 120, 120), (1.0, 1.0, 1.0)
    mm = mm_of(size, spacing)
    large, small = ball(mm, (60, 60, 70), 30), ball(mm, (60, 60, 33), 4)
    one, two = run(Segmenter(ThresholdModel(), scan_of(large | small, spacing)), [(60, 60, 70), (60, 60, 33)])
    assert dice(one.mask.dense(), large) > 0.95
    assert two.view.spacing_mm < one.view.spacing_mm, "the small one is looked at closely"
    assert dice(two.mask.dense(), large | small) > 0.95
    assert worst_slice(two.mask.dense(), large | small) > 0.9


@pytest.mark.parametrize("model", [ThresholdModel(spacing_mm=1.5), published_style()], ids=["ours", "published"])
def test_branches_that_meet_outside_the_view_stay(model):
    """A U of 250 mm through views of 192 mm: its bottom is clicked first, then the top of one leg."""
    size, spacing = (180, 60, 60), (1.5, 1.5, 1.5)
    mm = mm_of(size, spacing)
    legs = ((mm[1] - 45) ** 2 + (abs(mm[2] - 45) - 20) ** 2 < 64) & (mm[0] > 30) & (mm[0] < 250)
    bend = ((np.hypot(mm[2] - 45, mm[0] - 30) - 20) ** 2 + (mm[1] - 45) ** 2 < 64) & (mm[0] <= 30)
    truth = legs | bend
    bottom, top = (7, 30, 30), (155, 30, 17)
    one, two = run(Segmenter(model, scan_of(truth, spacing)), [bottom, top])
    lost = one.mask.dense() & truth & ~two.mask.dense()
    assert lost.sum() < 0.02 * one.mask.dense().sum()
    assert dice(two.mask.dense(), truth) > 0.85


def test_a_negative_click_takes_away_what_looks_like_it():
    size, spacing = (60, 60, 90), (1.5, 1.5, 1.5)
    mm = mm_of(size, spacing)
    bright, grey = ball(mm, (45, 45, 45), 22), ball(mm, (45, 45, 80), 18)
    voxels = 1000 * bright + 650 * (grey & ~bright)
    volume = Volume(voxels.astype(np.int16), np.diag([*spacing, 1.0]))
    with_it, without_it = run(Segmenter(ThresholdModel(), volume), [(30, 30, 28), (30, 30, 56)], [POSITIVE, NEGATIVE])
    assert dice(with_it.mask.dense(), bright | grey) > 0.95
    assert dice(without_it.mask.dense(), bright) > 0.9


class AmbiguousModel(ThresholdModel):
    """Of alternatives it trusts the second most; it keeps which of its answers were asked for."""

    several_at_first = True

    def __init__(self, **how_crops_are_made) -> None:
        super().__init__(**how_crops_are_made)
        self.asked = []

    def decode(self, embedding, points_BN3, labels_BN, mask_logits_B1zyx=None, multimask=False):
        logits, quality = super().decode(embedding, points_BN3, labels_BN, mask_logits_B1zyx)
        self.asked.append((logits.shape[-1], multimask))
        if multimask:
            return torch.cat([-logits, logits, -logits], dim=1), torch.tensor([[0.3, 0.8, 0.5]])
        return logits, torch.full_like(quality, 0.6)


@pytest.mark.parametrize("scout_size", [None, 64])
def test_one_click_shows_the_most_trusted_alternative(scout_size):
    first, _, volume = two_balls()
    model = AmbiguousModel(scout_size=scout_size)
    one, two = run(Segmenter(model, volume), [(20, 30, 30), (22, 30, 30)])
    assert one.quality == pytest.approx(0.8) and dice(one.mask.dense(), first) > 0.95
    assert two.quality == pytest.approx(0.6), "with a further click there is nothing to choose"
    assert {several for _, several in model.asked} == {True, False}
    model.asked.clear()
    run(Segmenter(model, volume), [(20, 30, 30)], [NEGATIVE])
    model.several_at_first = False
    run(Segmenter(model, volume), [(20, 30, 30)])
    assert not any(several for _, several in model.asked)


class DoubtfulModel(AmbiguousModel):
    """Trusts its alternatives little; what it is shown is remembered."""

    trust = 0.5

    def encode(self, crop_B1ZYX):
        self.asked.append(float(crop_B1ZYX.std()))
        return super().encode(crop_B1ZYX)

    def decode(self, embedding, points_BN3, labels_BN, mask_logits_B1zyx=None, multimask=False):
        logits, quality = super().decode(embedding, points_BN3, labels_BN, mask_logits_B1zyx, multimask)
        return logits, quality * self.trust


@pytest.mark.parametrize("trust, chosen, contrasts", [(0.5, True, 2), (0.5, False, 1), (1.0, True, 1)])
def test_one_click_that_is_hardly_trusted_is_seen_in_its_own_contrast_too(trust, chosen, contrasts):
    _, _, volume = two_balls()
    volume.voxels_zyx[-3:] += 30000  # so that there is something to cut off
    model = DoubtfulModel()
    model.trust = trust
    segmenter = Segmenter(model, volume)
    nothing = segmenter.start()
    prompts = Prompts(np.array([[20.0, 30.0, 30.0]]), (POSITIVE,), chosen)
    one = segmenter.step(prompts, nothing, nothing.mask)
    encoded = [asked for asked in model.asked if isinstance(asked, float)]
    assert len(set(encoded)) == len(encoded) and len(encoded) % contrasts == 0
    views = [seen for seen in segmenter._embeddings if isinstance(seen, CropBox)]
    assert len(encoded) == contrasts * len(views), "every full look in as many contrasts"
    assert one.quality == pytest.approx(0.8 * trust, abs=1e-6)
    again = Segmenter(model, volume).step(prompts, nothing, nothing.mask)
    np.testing.assert_array_equal(again.mask.dense(), one.mask.dense())
    model.asked.clear()
    two = replace(prompts, points_zyx=np.array([[20.0, 30.0, 30.0], [22.0, 30.0, 30.0]]), labels=(POSITIVE,) * 2)
    segmenter.step(two, one, nothing.mask)
    assert not any(isinstance(asked, float) for asked in model.asked), "a further click is seen as the scan is"


def test_a_click_beside_another_one_and_as_bright_shares_its_contrast():
    _, _, volume = two_balls()
    volume.voxels_zyx[-3:] += 30000
    model = DoubtfulModel()
    segmenter = Segmenter(model, volume)
    nothing = segmenter.start()
    for offset in (0, 1):
        model.asked.clear()
        prompts = Prompts(np.array([[20.0, 30.0, 30.0 + offset]]), (POSITIVE,))
        segmenter.step(prompts, nothing, nothing.mask)
        encoded = [asked for asked in model.asked if isinstance(asked, float)]
        assert bool(encoded) == (offset == 0)


class ContrastModel(AmbiguousModel):
    """What it shows depends on the contrast, and how sure it is: logits of 1 in a scan as it is, else of -3."""

    def encode(self, crop_B1ZYX):
        return Embedding(super().encode(crop_B1ZYX).tokens, finer=bool(crop_B1ZYX.max() < 20))

    def decode(self, embedding, points_BN3, labels_BN, mask_logits_B1zyx=None, multimask=False):
        shape = (1, 1, *embedding.tokens.shape[2:])
        logit, quality = (-3.0, self.sure_when_cut) if embedding.finer else (1.0, 0.6)
        return torch.full(shape, logit), torch.full((1, 1), quality)


@pytest.mark.parametrize("sure, logit", [(0.6, -1.0), (0.5, -1.0), (0.4, 1.0)])
def test_a_second_contrast_that_the_model_is_less_sure_of_does_not_count(sure, logit):
    _, _, volume = two_balls()
    volume.voxels_zyx[:, :3] += 30000
    model = ContrastModel()
    model.sure_when_cut = sure
    segmenter = Segmenter(model, volume, SegmenterOptions(looks=1))
    view = segmenter.chooser.around(np.array([64.0, 30.0, 30.0]), 1.5, (64.0, 30.0, 30.0))
    prompts = Prompts(np.array([[20.0, 30.0, 30.0]]), (POSITIVE,))
    looking = segmenter._look(view, prompts, segmenter.start(), model.crop_size)
    with pytest.raises(StopIteration) as ended:
        while True:
            next(looking)
    logits, quality = ended.value.value
    assert float(logits[0, 0, 32, 32, 32]) == logit and quality == pytest.approx(0.6)


class EagerModel(ThresholdModel):
    """Takes everything bright where nothing tells it what is meant."""

    def decode(self, embedding, points_BN3, labels_BN, mask_logits_B1zyx=None, multimask=False):
        logits, quality = super().decode(embedding, points_BN3, labels_BN, mask_logits_B1zyx, multimask)
        if mask_logits_B1zyx is None and not (labels_BN == POSITIVE).any():
            logits = 8 * (embedding.tokens - 0.5)
        return logits, quality


def test_a_negative_click_far_away_adds_nothing():
    first, _, volume = two_balls()
    one, two = run(Segmenter(EagerModel(), volume), [(20, 30, 30), (125, 30, 55)], [POSITIVE, NEGATIVE])
    assert dice(one.mask.dense(), first) > 0.95
    np.testing.assert_array_equal(two.mask.dense(), one.mask.dense())


class FickleModel(ThresholdModel):
    """After one click it finds everything bright; after a further one only what lies on that side of the first."""

    def decode(self, embedding, points_BN3, labels_BN, mask_logits_B1zyx=None, multimask=False):
        logits, quality = super().decode(embedding, points_BN3[:, :1], labels_BN[:, :1])
        if points_BN3.shape[1] > 1:
            middle, newest = ((points_BN3[0, n, 0] + 0.5) / 2 - 0.5 for n in (0, -1))
            z = torch.arange(self.mask_size)[:, None, None]
            logits = torch.where((z < middle) == (newest < middle), logits, -4.0)
        return logits, quality


@pytest.mark.parametrize("label", [POSITIVE, NEGATIVE])
def test_a_positive_click_only_adds_and_a_negative_one_only_takes_away(label):
    first, _, volume = two_balls()
    points, labels = [(20, 30, 30), (28, 30, 30)], [POSITIVE, label]
    free = run(Segmenter(FickleModel(), volume), points, labels)[1].mask.dense()
    one, two = run(Segmenter(FickleModel(one_way=True), volume), points, labels)
    whole, bound = one.mask.dense(), two.mask.dense()
    assert dice(whole, first) > 0.95 and (whole & ~free).sum() > 0.4 * whole.sum() and one.view == two.view
    if label == POSITIVE:
        np.testing.assert_array_equal(bound, whole)
        assert (two.logits >= one.logits).all()
    else:
        assert not (bound & ~whole).any() and 0 < bound.sum() < 0.6 * whole.sum()
        assert (two.logits <= one.logits).all()
    empty = run(Segmenter(FickleModel(one_way=True), volume), points[:1], [NEGATIVE])[0]
    assert not empty.mask.dense().any()


def test_every_clicked_voxel_obeys_and_the_later_click_counts():
    _, _, volume = two_balls()
    points = [(20, 30, 30), (20, 30, 31), (20, 30, 31), (5, 5, 5), (149, 59, 59), (149, 59, 59)]
    labels = [POSITIVE, NEGATIVE, POSITIVE, NEGATIVE, POSITIVE, NEGATIVE]
    predictions = run(Segmenter(ThresholdModel(), volume), points, labels)
    for n, prediction in enumerate(predictions, start=1):
        said = dict(zip(points[:n], labels[:n]))
        for point, label in said.items():
            assert prediction.mask.dense()[point] == (label == POSITIVE)


def test_a_click_into_nothing_gives_the_clicked_voxel_and_no_error():
    _, _, volume = two_balls()
    mask = segmented(ThresholdModel(), volume, [(75, 30, 30)])
    assert mask[75, 30, 30]


# --- boxes and masks to start from ---


def test_a_box_frames_the_structure_and_keeps_the_rest_out():
    size, spacing = (60, 60, 120), (1.5, 1.5, 1.5)
    mm = mm_of(size, spacing)
    left, right = ball(mm, (45, 45, 50), 20), ball(mm, (45, 45, 120), 20)
    corners, labels = [(14, 14, 17), (46, 46, 49)], [BOX_LOWER, BOX_UPPER]
    mask = segmented(ThresholdModel(), scan_of(left | right, spacing), corners, labels)
    assert dice(mask, left) > 0.95 and not (mask & right).any()


def test_a_box_alone_comes_with_a_click_in_its_middle():
    segmenter = Segmenter(ThresholdModel(), scan_of(np.zeros((40, 40, 40), bool), (1.0, 1.0, 1.0)))
    view = segmenter.chooser.around(np.array([20.0, 20, 20]), 1.0, (20, 20, 20))
    corners = np.array([(10.0, 12, 14), (20.0, 22, 24)])
    points, labels = segmenter._points_in(view, Prompts(corners, (BOX_LOWER, BOX_UPPER)))
    middle = view.points_to_crop((15, 17, 19), segmenter.grid)
    assert labels.tolist() == [BOX_LOWER, BOX_UPPER, POSITIVE]
    np.testing.assert_allclose(points[2].numpy(), middle, atol=1e-4)
    clicked = Prompts(np.concatenate([corners, [(12, 13, 15)]]), (BOX_LOWER, BOX_UPPER, POSITIVE))
    assert segmenter._points_in(view, clicked)[1].tolist() == [BOX_LOWER, BOX_UPPER, POSITIVE]


def test_padding_stands_for_a_newest_click_that_a_view_does_not_show():
    segmenter = Segmenter(Famsam().eval(), scan_of(np.zeros((40, 40, 400), bool), (1.0, 1.0, 1.0)))
    view = segmenter.chooser.around(np.array([20.0, 20, 20]), 1.0, (20, 20, 20))
    clicks = np.array([(10.0, 12, 14), (20.0, 22, 390)])
    points, labels = segmenter._points_in(view, Prompts(clicks, (POSITIVE, NEGATIVE)))
    assert labels.tolist() == [POSITIVE, -1] and len(points) == 2
    points, labels = segmenter._points_in(view, Prompts(clicks[::-1], (NEGATIVE, POSITIVE)))
    assert labels.tolist() == [POSITIVE] and len(points) == 1


def test_a_click_on_a_face_of_a_view_is_seen_whatever_way_numbers_are_rounded():
    segmenter = Segmenter(Famsam().eval(), scan_of(np.zeros((40, 40, 400), bool), (1.0, 1.0, 1.0)))
    view = segmenter.chooser.around(np.array([20.0, 20, 20]), 1.0, (20, 20, 20))
    click = view.points_from_crop((10.0, 10.0, view.size - 0.5), segmenter.grid)[None] + 1e-9
    assert segmenter._points_in(view, Prompts(click, (POSITIVE,)))[1].tolist() == [POSITIVE]


@pytest.mark.parametrize("beyond", [-1e-3, 0.0, 1e-9])
def test_a_click_on_a_face_of_the_scan_takes_what_ends_there(beyond):
    size, spacing = (200, 60, 60), (1.5, 1.5, 1.5)  # longer than a view, which then ends at the face, too
    truth = ball(mm_of(size, spacing), (300, 45, 45), 25)
    mask = segmented(ThresholdModel(), scan_of(truth, spacing), [(199.5 + beyond, 30, 30)])
    assert dice(mask, truth) > 0.95


def test_a_model_without_boxes_gets_a_click_in_the_middle():
    size, spacing = (60, 60, 120), (1.5, 1.5, 1.5)
    mm = mm_of(size, spacing)
    left = ball(mm, (45, 45, 50), 20)
    mask = segmented(published_style(), scan_of(left, spacing), [(14, 14, 17), (46, 46, 49)], [BOX_LOWER, BOX_UPPER])
    assert dice(mask, left) > 0.9


def test_the_mask_started_from_keeps_its_pieces():
    size, spacing = (60, 60, 80), (1.5, 1.5, 1.5)
    mm = mm_of(size, spacing)
    left, right = ball(mm, (45, 45, 36), 6), ball(mm, (45, 45, 51), 6)  # in one view, since there is no closer one
    segmenter = Segmenter(ThresholdModel(), scan_of(left | right, spacing))
    base = CompactMask.of(size, ball(mm, (45, 45, 51), 4))
    mask = run(segmenter, [(30, 30, 24)], base=base)[-1].mask.dense()
    assert dice(mask, left | right) > 0.95, "the piece begun in the mask is refined and stays"


# --- published-style models ---


def test_published_style_models_work_through_the_same_path():
    size, spacing = (100, 120, 90), (1.2, 1.0, 1.5)
    mm = mm_of(size, spacing)
    truth = ball(mm, (60, 45, 70), 25) | ball(mm, (85, 45, 70), 12)
    segmenter = Segmenter(published_style(), scan_of(truth, spacing))
    one, two = run(segmenter, [(40, 45, 58), (56, 45, 58)])
    assert one.view.spacing_mm == two.view.spacing_mm == 1.5
    assert dice(one.mask.dense(), truth) > 0.9
    assert dice(two.mask.dense(), truth) > 0.9
    assert one.logits.shape == (1, 1, 32, 32, 32)


def test_axes_make_no_difference_to_the_result():
    size, spacing = (50, 70, 60), (1.2, 1.0, 1.5)
    mm = mm_of(size, spacing)
    truth = ball(mm, (40, 25, 40), 15) | ball(mm, (50, 40, 55), 12)
    volume = scan_of(truth, spacing)
    masks = [segmented(ThresholdModel(crop_axes=axes), volume, [(27, 25, 33)]) for axes in ("zyx", "xyz")]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert dice(masks[0], truth) > 0.9


# --- what must not matter ---


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_cache_does_not_matter(kept):
    _, _, volume = two_balls()
    points = [(20, 30, 30), (125, 30, 25), (22, 31, 30), (124, 31, 25), (75, 30, 30)]
    labels = [POSITIVE, POSITIVE, POSITIVE, POSITIVE, NEGATIVE]
    plenty = run(Segmenter(ThresholdModel(), volume, SegmenterOptions(cached_embeddings=16)), points, labels)
    scarce = Segmenter(ThresholdModel(), volume, SegmenterOptions(cached_embeddings=kept))
    for a, b in zip(plenty, run(scarce, points, labels)):
        np.testing.assert_array_equal(a.mask.dense(), b.mask.dense())
        assert a.view == b.view and a.quality == b.quality
    assert len(scarce._embeddings) <= kept


def test_a_second_click_in_the_same_view_encodes_nothing():
    _, _, volume = two_balls()
    segmenter = Segmenter(ThresholdModel(), volume)
    one, two = run(segmenter, [(20, 30, 30), (22, 31, 30)])
    assert one.timings_ms["encode"] > 0 and two.timings_ms["encode"] == 0
    assert set(two.timings_ms) == {"crop", "encode", "decode", "paste", "total"}


def test_storage_order_does_not_matter():
    """A scan stored backwards and with other axes first gives the same canonical mask."""
    _, _, volume = two_balls()
    plain = segmented(ThresholdModel(), volume, [(20, 30, 30)])
    # New (i, j, k) = (z backwards, x, y) of the old.
    stored = volume.voxels_zyx.transpose(1, 2, 0)[:, :, ::-1]
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[0, 1], matrix[1, 2], matrix[3, 3] = -2.0, 2.0, 2.0, 1.0
    matrix[2, 3] = 2.0 * (volume.grid.size_zyx[0] - 1)
    turned = Volume(stored, matrix)
    assert turned.canonical.grid.size_zyx == volume.grid.size_zyx
    np.testing.assert_array_equal(segmented(ThresholdModel(), turned, [(20, 30, 30)]), plain)


def test_a_tiny_scan_and_a_single_slice():
    for size, spacing in (((30, 30, 30), (1.0, 1.0, 1.0)), ((1, 90, 80), (1.0, 1.0, 5.0))):
        mm = mm_of(size, spacing)
        middle = mm.reshape(3, -1).mean(1)
        truth = ball(mm, middle, 8)
        mask = segmented(ThresholdModel(), scan_of(truth, spacing), [np.array(size) // 2])
        assert dice(mask, truth) > 0.9


def test_start_is_empty_or_the_mask_given():
    _, _, volume = two_balls()
    segmenter = Segmenter(ThresholdModel(), volume)
    assert segmenter.start().mask.box_zyx is None and segmenter.start().quality == 0
    base = CompactMask.of(volume.grid.size_zyx, np.ones((2, 2, 2), dtype=bool), (3, 4, 5))
    assert segmenter.start(base).mask is base
    assert isinstance(segmenter.grid, Grid)


def test_sessions_that_share_embeddings_hold_the_scan_on_a_gpu_once(monkeypatch):
    monkeypatch.setattr(Famsam, "device", torch.device("cuda"))
    made = []

    def held_on(device, voxels_zyx):
        made.append(torch.from_numpy(voxels_zyx.astype(np.float32)) if room else voxels_zyx)
        return made[-1]

    monkeypatch.setattr(segmenter_module, "held_on", held_on)
    model, scan, shared = Famsam().eval(), scan_of(np.zeros((10, 12, 14), bool), (1.0, 1.0, 1.0)), Embeddings(2)
    room = False
    assert Segmenter(model, scan, embeddings=shared)._scan is made[0], "where there is no room, as it is"
    room = True
    first, second = (Segmenter(model, scan, embeddings=shared)._scan for _ in range(2))
    assert first is second is made[1] and len(made) == 2
