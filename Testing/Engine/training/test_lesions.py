"""Gliomas and plaques in the label map of a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from famsam.training import heads, lesions, scans
from famsam.training.lesions import CORE, ENHANCING, LESION_LABELS, NECROSIS, OEDEMA, PLAQUE, Lesions, parents_of
from famsam.training.sample import Dice
from test_heads import grid_of, head

CPU = torch.device("cpu")
SIZE = 64


def mostly_white():
    """A head whose nuclei are small and whose ventricle is not."""
    labels_zyx = head(SIZE)
    inside = labels_zyx[12:-12, 12:-12, 12:-12]
    for thalamus, white in ((10, 2), (49, 41)):
        nucleus = inside == thalamus
        nucleus[:, 8:] = False
        inside[(inside == thalamus) & ~nucleus] = white
    labels_zyx[14:18, 14:18, 14:18] = 2
    labels_zyx[26:38, 30:42, 30:34] = 4
    return labels_zyx


@pytest.fixture(scope="module")
def labels():
    return torch.from_numpy(mostly_white().astype(np.int64))


def drawn(labels, glioma, width_mm, spacing_mm, seed):
    dice = Dice(seed, CPU)
    lesion = Lesions(dice)
    lesion.glioma, lesion.width_mm = glioma, width_mm
    return lesion.draw(labels, spacing_mm, dice)


@pytest.mark.parametrize("glioma", [True, False])
def test_lesions_stay_in_the_brain_and_change_nothing_else(labels, glioma):
    found = set()
    outside = (labels >= heads.FIRST_OUTSIDE) | (labels == 0)
    for seed in range(12):
        changed = drawn(labels, glioma, 30.0, 1.0, seed)
        ill = torch.isin(changed, torch.tensor(LESION_LABELS))
        assert torch.equal(changed[~ill], labels[~ill]) and not (ill & outside).any()
        found |= set(changed[ill].tolist())
    assert found == ({OEDEMA, ENHANCING, CORE, NECROSIS} if glioma else {PLAQUE})


def test_a_glioma_is_about_as_wide_as_asked(labels):
    """Whatever the spacing of the crop; the lobes and the shapes of tissue take their share."""
    for spacing_mm in (0.7, 1.4):
        widths = []
        for seed in range(16):
            ill = torch.isin(drawn(labels, True, 20.0, spacing_mm, seed), torch.tensor(LESION_LABELS))
            places = torch.nonzero(ill)
            widths.append(float((places.amax(0) - places.amin(0) + 1).float().mean()) * spacing_mm)
        assert 14 < np.median(widths) < 30


def test_the_core_lies_in_what_surrounds_it_and_fills_the_folds_it_has_grown_into(labels):
    folded = labels.clone()
    folded[:, :, 16:-16:8] = heads.SUBARACHNOID_FLUID  # a voxel wide
    filled = 0
    for seed in range(8):
        changed = drawn(folded, True, 36.0, 1.0, seed)
        core = torch.isin(changed, torch.tensor([ENHANCING, CORE, NECROSIS]))
        filled += int((core & (folded == heads.SUBARACHNOID_FLUID)).sum())
        oedema = changed == OEDEMA
        assert not (oedema & (folded == heads.SUBARACHNOID_FLUID)).any()
    assert filled > 100


def test_plaques_are_nearest_to_the_ventricles(labels):
    """More of the white matter within 4 mm of them than elsewhere."""
    near = torch.nn.functional.max_pool3d((labels == 4)[None].float(), 9, stride=1, padding=4)[0] > 0
    white = torch.isin(labels, torch.tensor(lesions.WHITE_MATTER))
    shares = []
    for seed in range(12):
        plaque = drawn(labels, False, 60.0, 1.0, seed) == PLAQUE
        shares.append([float(plaque[white & part].float().mean()) for part in (near, ~near)])
    close, far = np.mean(shares, axis=0)
    assert close > 1.5 * far > 0


def test_a_crop_without_white_matter_stays_as_it_is(labels):
    bare = labels.masked_fill(torch.isin(labels, torch.tensor(lesions.WHITE_MATTER)), 3)
    for glioma in (True, False):
        assert torch.equal(drawn(bare, glioma, 30.0, 1.0, 0), bare)


def test_what_each_part_lies_in():
    assert parents_of([0, 2, 3, OEDEMA, ENHANCING, CORE, NECROSIS]) == [0, 0, 0, 0, 3, 4, 4]
    assert parents_of([0, 2, OEDEMA, CORE]) == [0, 0, 0, 2], "without an enhancing part, the oedema"
    assert parents_of([0, CORE, PLAQUE]) == [0, 0, 0]


def test_intensities_of_lesions(monkeypatch):
    """Contrast medium is bright, oedema and plaques are on FLAIR, dead parts are dark on T1."""
    present = [0, 2, 3, 41, 42, OEDEMA, ENHANCING, NECROSIS, PLAQUE]
    kinds = list(heads.CONTRASTS)

    def levels(kind):
        chances = [float(name == kind) for name in kinds]
        monkeypatch.setattr(heads, "CONTRAST_CHANCES_OF_PATIENTS", chances)
        means = torch.stack([heads.tissue_means(present, Dice(seed, CPU)) for seed in range(32)]).mean(0)
        return dict(zip(present, means.tolist()))

    with_contrast, flair = levels("T1 with contrast"), levels("FLAIR")
    assert with_contrast[ENHANCING] > with_contrast[2] + 0.1 > with_contrast[NECROSIS] + 0.3
    assert min(flair[OEDEMA], flair[PLAQUE]) > max(flair[2], flair[3]) + 0.1


def test_crops_of_patients_show_lesions_and_mostly_nothing_else_to_click_on(monkeypatch):
    monkeypatch.setattr(scans, "LIFELIKE_CHANCE", 1.0)
    monkeypatch.setattr(scans, "DISEASED_CHANCE", 1.0)
    labels_zyx = mostly_white()
    source = scans.SynthesisedLabelMaps([scans.Anatomy.of(labels_zyx, grid_of(labels_zyx))])
    structures = []
    for seed in range(12):
        first, again = (source.draw(48, Dice(seed, CPU)) for _ in range(2))
        assert torch.equal(first.image_ZYX, again.image_ZYX) and torch.equal(first.labels_ZYX, again.labels_ZYX)
        assert len(first.parents) > int(first.labels_ZYX.max())
        structures.append(len(torch.unique(first.labels_ZYX[first.labels_ZYX > 0])))
    assert all(structures) and np.median(structures) <= 4 < max(structures)
