from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from Engine.evaluation.samples import labels_of_case_a, labels_of_case_b, save_image
from famsam.errors import ConfigError, DatasetError
from famsam.evaluation.dataset import DatasetOptions, Structure, find_cases, read_exclude_file


def names(directory, **options):
    return [case.name for case in find_cases(directory, DatasetOptions(**options))]


def test_a_folder_for_every_case(two_cases):
    (two_cases / "notes").mkdir()
    (two_cases / "README.txt").write_text("not a case")
    case_a, case_b = find_cases(two_cases)
    assert (case_a.name, case_b.name) == ("case_a", "case_b")
    loaded = case_a.load()
    assert loaded.structures == (Structure(1, "cube", 27), Structure(4, "label 4", 81))
    assert np.array_equal(loaded.labels_zyx, labels_of_case_a())
    assert np.array_equal(loaded.truth_zyx(loaded.structures[1]), labels_of_case_a() == 4)
    assert loaded.volume.spacing_xyz_mm.tolist() == [1, 1, 2]


@pytest.mark.parametrize("channel", ["_0000", ""])
def test_layout_of_nnu_net(tmp_path, channel):
    image = labels_of_case_b().astype(np.int16) * 10
    save_image(tmp_path / "imagesTr" / f"liver_7{channel}.nii.gz", image)
    if channel:
        save_image(tmp_path / "imagesTr" / "liver_7_0001.nii.gz", image)
    save_image(tmp_path / "labelsTr" / "liver_7.nii.gz", labels_of_case_b())
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 2}}))
    (case,) = find_cases(tmp_path)
    assert case.name == "liver_7"
    assert case.load().structures == (Structure(2, "tumour", 125),)


def test_images_and_labels_of_equal_names_in_any_format(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for folder, voxels in (("images", labels_of_case_b() * 10.5), ("labels", labels_of_case_b())):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / folder / "one.nrrd"))
    (case,) = find_cases(tmp_path)
    assert case.name == "one"
    assert case.load().structures == (Structure(2, "label 2", 125),)


def test_include_and_exclude_patterns(two_cases):
    assert names(two_cases, include=("*_b",)) == ["case_b"]
    assert names(two_cases, exclude=("case_b", "unknown")) == ["case_a"]
    assert names(two_cases, include=("case_?",), exclude=("*a",)) == ["case_b"]
    with pytest.raises(DatasetError, match=r"None of the 2 cases .* case_a, case_b"):
        find_cases(two_cases, DatasetOptions(exclude=("case*",)))


def test_exclude_file(tmp_path):
    path = tmp_path / "trained_on.txt"
    path.write_text("# trained on\ncase_b\n\n  sts_*   # all of them\n")
    assert read_exclude_file(path) == ("case_b", "sts_*")
    path.write_text("case_b\nsts_*\n", encoding="utf-8-sig")
    assert read_exclude_file(path) == ("case_b", "sts_*"), "a byte order mark is no part of the first name"
    with pytest.raises(DatasetError, match="one case name a line"):
        read_exclude_file(tmp_path / "absent.txt")


def test_choice_of_structures_is_even_over_sizes(tmp_path):
    labels = np.zeros((9, 10, 30), np.uint16)
    sizes = {3: 2, 5: 3, 300: 4, 7: 5, 8: 6}
    for column, (label, size) in enumerate(sizes.items()):
        labels[0, :size, 6 * column : 6 * column + 6] = label
    save_image(tmp_path / "many" / "image.nii.gz", labels.astype(np.float32) + 0.5)
    save_image(tmp_path / "many" / "labels.nii.gz", labels)
    (case,) = find_cases(tmp_path)

    def chosen(**options):
        return [structure.label for structure in case.load(DatasetOptions(**options)).structures]

    assert chosen(min_voxels=1) == [3, 5, 7, 8, 300]
    assert chosen() == [7, 8, 300]  # at least 20 voxels
    assert chosen(min_voxels=1, max_structures=3) == [3, 8, 300]  # largest, middle, smallest
    assert chosen(min_voxels=1, max_structures=1) == [8]
    assert chosen(min_voxels=99) == []


def test_labels_on_another_grid(two_cases):
    shifted = np.diag([1.0, 1.0, 2.0, 1.0])
    shifted[0, 3] = 0.5
    save_image(two_cases / "case_b" / "labels.nii.gz", labels_of_case_b(), shifted)
    with pytest.raises(DatasetError, match=r"case_b: expected labels on the image's grid, 12 x 11 x 10 voxels"):
        find_cases(two_cases)[1].load()


@pytest.mark.parametrize(("factor", "words"), [(0.25, "from 0 to 0.5"), (-1, "from -2 to 0")])
def test_labels_that_are_no_label_map(two_cases, factor, words):
    save_image(two_cases / "case_b" / "labels.nii.gz", (labels_of_case_b() * np.float32(factor)) + 0)
    with pytest.raises(DatasetError, match="whole numbers from 0 to 65535, got values " + words):
        find_cases(two_cases)[1].load()


@pytest.mark.parametrize("nothing", [0, np.nan])
def test_labels_of_one_value(two_cases, nothing, caplog):
    save_image(two_cases / "case_b" / "labels.nii.gz", np.full(labels_of_case_b().shape, nothing, np.float32))
    loaded = find_cases(two_cases)[1].load()
    assert loaded.structures == () and not loaded.labels_zyx.any()
    assert "case_b has no structure of at least 20 voxels" in caplog.text
    save_image(two_cases / "case_b" / "labels.nii.gz", np.ones(labels_of_case_b().shape, np.uint8))
    assert find_cases(two_cases)[1].load().structures == (Structure(1, "label 1", 1320),)


def test_nan_in_labels_is_background(two_cases):
    labels = np.where(labels_of_case_b() > 0, np.float32(2), np.float32(np.nan))
    save_image(two_cases / "case_b" / "labels.nii.gz", labels)
    np.testing.assert_array_equal(find_cases(two_cases)[1].load().labels_zyx, labels_of_case_b())
    save_image(two_cases / "case_b" / "labels.nii.gz", labels * np.inf)
    with pytest.raises(DatasetError, match="got values from 0 to inf"):
        find_cases(two_cases)[1].load()


def test_unusable_files_and_folders(two_cases, tmp_path_factory):
    with pytest.raises(DatasetError, match="Found no case"):
        find_cases(tmp_path_factory.mktemp("empty"))
    with pytest.raises(DatasetError, match="is no folder"):
        find_cases(two_cases / "absent")
    (two_cases / "case_b" / "image.nii.gz").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"Case case_b: image\.nii\.gz cannot be used"):
        find_cases(two_cases)[1].load()
    (two_cases / "case_b" / "labels.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"Case case_b: expected image\.nii\.gz and labels\.nii\.gz"):
        find_cases(two_cases)


def test_missing_labels_and_unreadable_names(tmp_path):
    save_image(tmp_path / "images" / "one.nii.gz", labels_of_case_b())
    (tmp_path / "labels").mkdir()
    with pytest.raises(DatasetError, match=r"expected labels/one.nii.gz beside images/one.nii.gz"):
        find_cases(tmp_path)
    save_image(tmp_path / "labels" / "one.nii.gz", labels_of_case_b())
    (tmp_path / "dataset.json").write_text("[1, 2]")
    with pytest.raises(DatasetError, match="label names"):
        find_cases(tmp_path)


def test_options_out_of_range():
    with pytest.raises(ConfigError, match="max_structures"):
        DatasetOptions(max_structures=0)
    with pytest.raises(ConfigError, match="min_voxels"):
        DatasetOptions(min_voxels=0)
