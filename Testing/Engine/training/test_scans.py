"""Training crops from scans and label maps that the tests write themselves."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from famsam.errors import DatasetError
from famsam.geometry import Grid
from famsam.resample import CropBox
from famsam.training.sample import Dice
from famsam.training.scans import (
    SUPERVOXEL_LEVELS,
    TISSUE_THRESHOLDS,
    Anatomy,
    LabelledScans,
    SynthesisedLabelMaps,
    crop_labels,
    load_label_maps,
    load_labelled,
    load_unlabelled,
    pseudo_labels,
)

CPU = torch.device("cpu")
AFFINE = np.diag([-1.5, 1.5, 2.0, 1.0])  # stored from right to left: the canonical axes are flipped


def anatomy_zyx(size=(28, 36, 40)):
    """A block with a smaller one in it, and a bar beside."""
    labels = np.zeros(size, np.uint16)
    labels[5:20, 6:26, 5:25] = 3
    labels[9:14, 10:18, 10:18] = 7
    labels[4:24, 28:34, 30:36] = 12
    return labels


def scan_zyx():
    levels = np.array([0, 0, 0, 400, 0, 0, 0, 900, 0, 0, 0, 0, 700])
    noise = np.random.default_rng(0).normal(0, 15, anatomy_zyx().shape)
    return (levels[anatomy_zyx()] + noise).astype(np.int16)


def save(path, array_zyx):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_zyx.transpose(2, 1, 0), AFFINE), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for case in ("a", "b"):
        save(root / "cases" / case / "image.nii.gz", scan_zyx())
        save(root / "cases" / case / "labels.nii.gz", anatomy_zyx())
    save(root / "scans" / "one.nii.gz", scan_zyx())
    save(root / "maps" / "one.nii.gz", anatomy_zyx())
    (root / "empty").mkdir()
    return root


GRID = Grid(anatomy_zyx().shape, np.diag([1.5, 1.5, 2.0, 1.0]))


# --- anatomy ---


def test_pieces_with_their_centres_and_extents():
    anatomy = Anatomy.of(anatomy_zyx(), GRID)
    assert len(anatomy.weights) == 3 and (anatomy.weights > 0).all()
    by_extent = dict(zip(np.round(anatomy.extents_mm, 1).tolist(), anatomy.centres_zyx))
    assert set(by_extent) == {30.0, 12.0, 40.0}
    np.testing.assert_allclose(by_extent[40.0], (13.5, 30.5, 32.5))
    np.testing.assert_allclose(by_extent[12.0], (11, 13.5, 13.5))


def test_separate_pieces_of_one_label_count_separately():
    labels = np.zeros((20, 20, 20), np.uint16)
    labels[1:5, 1:5, 1:5] = labels[10:18, 10:18, 10:18] = 1
    labels[0, 19, 19] = 2  # too small to learn from
    assert len(Anatomy.of(labels, Grid(labels.shape, np.eye(4))).weights) == 2


def test_an_empty_label_map_is_refused():
    with pytest.raises(DatasetError, match="found none"):
        Anatomy.of(np.zeros((8, 8, 8), np.uint16), Grid((8, 8, 8), np.eye(4)))


@pytest.mark.parametrize("seed", range(20))
def test_drawn_boxes_show_a_piece_at_a_useful_size(seed):
    anatomy = Anatomy.of(anatomy_zyx(), GRID)
    box = anatomy.draw_box(32, Dice(seed, CPU))
    assert box.size == 32 and 0.4 * 1.5 <= box.spacing_mm <= 5.0
    assert (crop_labels(anatomy.labels_zyx, GRID, box) > 0).any()


def test_labels_of_a_crop_against_a_loop():
    labels = anatomy_zyx()
    box = CropBox((3.2, 30.1, 33.7), 2.3, 16)
    crop = crop_labels(labels, GRID, box)
    assert crop.dtype == np.int64
    rng = np.random.default_rng(0)
    for voxel in rng.integers(0, 16, (200, 3)):
        index = np.rint(box.points_from_crop(voxel, GRID)).astype(int)
        inside = (index >= 0).all() and (index < labels.shape).all()
        assert crop[tuple(voxel)] == (labels[tuple(index)] if inside else 0)
    assert (crop == 0).any() and (crop > 0).any()


# --- sources ---


def test_labelled_scans(folder):
    source = load_labelled(folder / "cases")
    assert isinstance(source, LabelledScans) and len(source.scans) == 2
    assert len(load_labelled(folder / "cases", include=["a"]).scans) == 1
    bright = []
    for seed in range(12):
        sample = source.draw(32, Dice(seed, CPU))
        assert sample.image_ZYX.shape == sample.labels_ZYX.shape == sample.inside_ZYX.shape == (32,) * 3
        assert sample.image_ZYX.dtype == torch.float32 and sample.labels_ZYX.dtype == torch.int64
        assert torch.isfinite(sample.image_ZYX).all() and (sample.labels_ZYX > 0).any()
        assert set(sample.labels_ZYX.unique().tolist()) <= {0, 3, 7, 12}
        assert (sample.labels_ZYX[~sample.inside_ZYX] == 0).all()
        inner, outer = sample.labels_ZYX == 7, sample.labels_ZYX == 3
        if inner.sum() > 50 and outer.sum() > 50:
            bright.append(float((sample.image_ZYX[inner].mean() - sample.image_ZYX[outer].mean()).abs()))
    assert bright and np.median(bright) > 0.2, "image and labels lie on one another although the scan is stored flipped"


def test_a_case_without_structures_is_left_out(tmp_path, caplog):
    for case, labels in (("a", 0 * anatomy_zyx()), ("b", anatomy_zyx())):
        save(tmp_path / case / "image.nii.gz", scan_zyx())
        save(tmp_path / case / "labels.nii.gz", labels)
    assert len(load_labelled(tmp_path).scans) == 1
    assert "Case a is left out" in caplog.text
    with pytest.raises(DatasetError, match="Expected cases with labelled structures"):
        load_labelled(tmp_path, include=["a"])


LOADED = [(load_labelled, "cases"), (load_unlabelled, "scans"), (load_label_maps, "maps")]


@pytest.mark.parametrize("load, name", LOADED)
def test_what_cannot_be_used_does_not_cost_the_use_of_the_others(folder, tmp_path, load, name, caplog):
    own = shutil.copytree(folder / name, tmp_path / name)
    damaged = own / ("a/labels.nii.gz" if load is load_labelled else "another.nii.gz")
    damaged.write_bytes(next(own.rglob("*.nii.gz")).read_bytes()[:200])
    (own / "._one.nii.gz").write_bytes(b"what macOS leaves beside a file")
    source = load(own)
    assert len(source.anatomies if load is load_label_maps else source.scans) == 1
    assert caplog.text.count("is left out") == 1


@pytest.mark.parametrize("change", [lambda z: z * -1, lambda z: z * 0.5, lambda z: z.astype(np.int32) * 65537])
def test_label_maps_hold_whole_numbers(tmp_path, change, caplog):
    labels = change(anatomy_zyx().astype(np.float32))
    save(tmp_path / "one.nii.gz", labels if labels.dtype.kind == "i" else labels.astype(np.float32))
    with pytest.raises(DatasetError, match="Expected label maps with structures"):
        load_label_maps(tmp_path)
    assert "whole numbers from 0 to 65535" in caplog.text


def test_nothing_known_is_no_structure_of_a_label_map(tmp_path):
    save(tmp_path / "one.nii.gz", np.where(anatomy_zyx() > 0, anatomy_zyx(), np.nan).astype(np.float32))
    np.testing.assert_array_equal(np.unique(load_label_maps(tmp_path).anatomies[0].labels_zyx), [0, 3, 7, 12])


@pytest.mark.parametrize("axis, count", [(0, 1), (2, 3)])
def test_single_slices_have_pseudo_labels(axis, count):
    slices = scan_zyx().take(range(10, 10 + count), axis)
    anatomies = pseudo_labels(slices, Grid(slices.shape, np.diag([1.5, 1.5, 2.0, 1.0])))
    assert anatomies and all(anatomy.labels_zyx.shape == slices.shape for anatomy in anatomies)


def test_labelled_scans_are_drawn_by_the_seed(folder):
    source = load_labelled(folder / "cases")
    a, b = (source.draw(32, Dice(3, CPU)) for _ in range(2))
    torch.testing.assert_close(a.image_ZYX, b.image_ZYX)
    torch.testing.assert_close(a.labels_ZYX, b.labels_ZYX)


def test_label_maps_are_rendered_anew_each_time(folder):
    source = load_label_maps(folder / "maps")
    assert isinstance(source, SynthesisedLabelMaps)
    for seed in range(6):
        sample = source.draw(32, Dice(seed, CPU))
        present = sample.labels_ZYX.unique().tolist()
        assert max(present) < len(sample.parents) and len(present) > 1
        assert torch.isfinite(sample.image_ZYX).all() and sample.image_ZYX.shape == (32,) * 3
    a, b = (source.draw(32, Dice(seed, CPU)).image_ZYX for seed in (0, 1))
    assert not torch.allclose(a, b)


def test_a_crop_without_background_keeps_its_labels_apart():
    labels = np.ones((20, 20, 20), np.uint16)
    labels[:, :, 10:] = 5
    source = SynthesisedLabelMaps([Anatomy.of(labels, Grid(labels.shape, np.eye(4)))])
    values = set()
    for seed in range(6):
        values |= set(source.draw(16, Dice(seed, CPU)).labels_ZYX.unique().tolist())
    assert values <= {0, 1, 2} and {1, 2} <= values


def test_pseudo_labels_follow_the_edges_of_the_scan():
    anatomies = pseudo_labels(scan_zyx(), GRID)
    assert len(anatomies) <= len(SUPERVOXEL_LEVELS) + len(TISSUE_THRESHOLDS)
    assert len(anatomies[0].weights) >= len(anatomies[2].weights), "shallow watersheds leave more and smaller pieces"
    truth = anatomy_zyx() == 12
    best = 0.0
    for anatomy in anatomies:
        assert anatomy.labels_zyx.shape == truth.shape
        for label in np.unique(anatomy.labels_zyx[truth]):
            piece = anatomy.labels_zyx == label
            if label:
                best = max(best, 2 * (piece & truth).sum() / (piece.sum() + truth.sum()))
    assert best > 0.8, "the bar is found without having been labelled"


def test_unlabelled_scans(folder):
    source = load_unlabelled(folder / "scans")
    sample = source.draw(32, Dice(0, CPU))
    assert sample.labels_ZYX.shape == (32, 32, 32) and torch.isfinite(sample.image_ZYX).all()
    assert len(source.scans) == 1 and len(source.scans[0][1]) > len(SUPERVOXEL_LEVELS), "supervoxels and tissues"


def test_a_scan_that_shows_nothing_gives_no_structures():
    with pytest.raises(DatasetError, match="found none"):
        pseudo_labels(np.zeros((20, 20, 20), np.int16), Grid((20, 20, 20), np.eye(4)))


def test_files_are_chosen_by_their_names(folder):
    assert len(load_label_maps(folder / "maps", ["*"]).anatomies) == len(load_label_maps(folder / "maps").anatomies)
    for load, name in ((load_unlabelled, "scans"), (load_label_maps, "maps")):
        with pytest.raises(DatasetError, match=r"named like other_\*"):
            load(folder / name, ["other_*"])


@pytest.mark.parametrize("load", [load_unlabelled, load_label_maps, load_labelled])
@pytest.mark.parametrize("name", ["empty", "absent"])
def test_folders_without_data_are_refused(folder, load, name):
    with pytest.raises(DatasetError):
        load(folder / name)
