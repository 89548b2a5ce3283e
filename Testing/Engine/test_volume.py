from __future__ import annotations

import ctypes
import gzip
import logging
import shutil
import sys
from types import SimpleNamespace
from typing import Sequence

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom import write_dicom_frames, write_dicom_series
from famsam.errors import MissingDependencyError, VolumeError
from famsam.geometry import Grid, bounding_box
from famsam.volume import Volume, foreground, read_mask, read_volume, write_mask
from grids import affine, affines, sizes_zyx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

LPS = affine((0.5, 0.6, 2), (100, 80, -30), signs=(-1, -1, 1))
OBLIQUE = affine((0.3, 0.3, 7.5), (20, -5, 40), angles_rad=(0.2, -0.4, 0.3))
TILTED = affine((0.5, 0.5, 3), (60, 70, -80), signs=(-1, -1, 1), shear=0.27)
SAGITTAL = affine((0.9, 0.9, 4), (-20, 100, 90), permutation=(1, 2, 0), signs=(-1, -1, 1))
GEOMETRIES = {"lps": LPS, "oblique": OBLIQUE, "tilted": TILTED, "sagittal": SAGITTAL}


@pytest.fixture
def ramp_zyx():
    return np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)


def landmark_file(path, size_zyx, ras_from_ijk, index_zyx):
    """A scan with one bright voxel, written without the code under test."""
    voxels = np.zeros(size_zyx, dtype=np.int16)
    voxels[index_zyx] = 1000
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image(voxels.T, ras_from_ijk)
        image.set_qform(None, code=0)
        nib.save(image, path)
    else:
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras_from_ijk
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image = sitk.GetImageFromArray(voxels)
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(image, str(path))
    return path


def landmark_by_nibabel(path):
    image = nib.load(path)
    (index_xyz,) = np.argwhere(np.asarray(image.dataobj) > 0)
    return nib.affines.apply_affine(image.affine, index_xyz)


def landmark_by_simpleitk(path):
    image = sitk.ReadImage(str(path))
    ((z, y, x),) = np.argwhere(sitk.GetArrayFromImage(image) > 0)
    return np.array(image.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))) * (-1, -1, 1)


# In memory


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_voxels_are_shared_not_copied(ramp_zyx, dtype):
    voxels = ramp_zyx.astype(dtype)
    volume = Volume(voxels, LPS, name="scan")
    assert volume.voxels_zyx is voxels
    assert volume.value_range == (0, 59)
    assert volume.grid.size_zyx == (3, 4, 5)
    assert volume.canonical is volume.canonical
    np.testing.assert_allclose(volume.spacing_xyz_mm, (0.5, 0.6, 2))
    assert "scan" in repr(volume)


@pytest.mark.parametrize(("given_dtype", "kept"), [(">i2", "int16"), ("float64", "float32"), (">f4", "float32")])
def test_unusual_number_types_are_converted(ramp_zyx, given_dtype, kept):
    volume = Volume(ramp_zyx.astype(given_dtype), LPS)
    assert volume.voxels_zyx.dtype == np.dtype(kept)
    assert volume.voxels_zyx.dtype.isnative
    np.testing.assert_array_equal(volume.voxels_zyx, ramp_zyx)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_voxels_that_are_not_finite_become_the_minimum(ramp_zyx, dtype, caplog):
    voxels = ramp_zyx.astype(dtype) - 7
    voxels[0] = np.nan
    voxels[1, 0, 0], voxels[2, 0, 0] = np.inf, -np.inf
    voxels[1, 0, 1], voxels[2, 0, 1] = np.finfo(np.float32).max, np.finfo(np.float32).min  # what is filled with those
    before = voxels.copy()
    with caplog.at_level(logging.WARNING, "famsam"):
        volume = Volume(voxels, LPS)
    assert "24 voxels" in caplog.text
    assert volume.value_range == (15, 52)
    np.testing.assert_array_equal(volume.voxels_zyx, np.where(np.abs(before) < 1e30, before, 15))
    np.testing.assert_array_equal(voxels, before)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.zeros((2, 3, 4, 5)), r"three axes.*\(2, 3, 4, 5\); pick one"),
        (np.zeros((3, 4)), r"voxels\[None\]"),
        (np.zeros((0, 3, 4)), "no voxels"),
        (np.zeros((2, 3, 4), bool), "bool"),
        (np.zeros((2, 3, 4), complex), "complex"),
        (np.full((2, 3, 4), "x"), "integers or floating-point"),
        (np.full((2, 3, 4), None), "object"),
        (np.zeros((2, 3, 4)), "every voxel .* is 0: there is nothing to segment"),
        (np.full((2, 3, 4), np.nan), "no finite value"),
        (np.where(np.arange(24).reshape(2, 3, 4) > 5, 3.0, np.nan), "every voxel .* is 3"),
    ],
)
def test_unusable_voxels_are_refused(voxels, message):
    with pytest.raises(VolumeError, match=message):
        Volume(voxels, LPS, name="scan")


def test_singular_geometry_is_refused(ramp_zyx):
    with pytest.raises(VolumeError, match="singular"):
        Volume(ramp_zyx, np.diag([1, 0, 1, 1]))


# Files


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size_zyx=sizes_zyx(),
    ras_from_ijk=affines(),
    suffix=st.sampled_from((".nii", ".nii.gz", ".nrrd", ".mha")),
    mask_suffix=st.sampled_from((".nii", ".nii.gz", ".nrrd", ".mha")),
    data=st.data(),
)
def test_a_landmark_keeps_its_place(tmp_path, size_zyx, ras_from_ijk, suffix, mask_suffix, data):
    """Read, go to the canonical frame, mark, write, read with other programs."""
    index_zyx = data.draw(st.tuples(*[st.integers(0, n - 1) for n in size_zyx]))
    expected_ras_mm = ras_from_ijk[:3, :3] @ index_zyx[::-1] + ras_from_ijk[:3, 3]
    volume = read_volume(landmark_file(tmp_path / f"image{suffix}", size_zyx, ras_from_ijk, index_zyx))

    frame = volume.canonical
    canonical_zyx = frame.to_canonical(volume.voxels_zyx)
    point_zyx = frame.grid.zyx_from_ras_points(expected_ras_mm)
    low_zyx, _ = bounding_box(canonical_zyx)
    np.testing.assert_allclose(point_zyx, low_zyx, atol=1e-3)
    mask = np.zeros(frame.grid.size_zyx, dtype=bool)
    mask[tuple(np.round(point_zyx).astype(int))] = True

    path = tmp_path / f"mask{mask_suffix}"
    write_mask(frame.from_canonical(mask), volume, path)
    if ".nii" in mask_suffix:
        np.testing.assert_allclose(landmark_by_nibabel(path), expected_ras_mm, atol=1e-3)
    if ".nii" not in mask_suffix or not np.any(volume_shear(ras_from_ijk)):
        # ITK reads a NIfTI file only if its axes are perpendicular
        np.testing.assert_allclose(landmark_by_simpleitk(path), expected_ras_mm, atol=1e-3)
    np.testing.assert_array_equal(read_mask(path, volume), volume.voxels_zyx > 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({f"image{suffix}", f"mask{mask_suffix}"})
    for used in tmp_path.iterdir():
        used.unlink()


def volume_shear(ras_from_ijk):
    axes = ras_from_ijk[:3, :3] / np.linalg.norm(ras_from_ijk[:3, :3], axis=0)
    return np.abs(axes.T @ axes - np.eye(3)) > 1e-6


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_mask_without_a_source_file_is_written_on_its_grid(tmp_path, geometry, suffix, ramp_zyx):
    grid = Grid(ramp_zyx.shape, GEOMETRIES[geometry])
    write_mask(ramp_zyx > 30, grid, tmp_path / f"mask{suffix}")
    again = read_volume(tmp_path / f"mask{suffix}")
    assert again.grid.matches(grid, 1e-4)
    assert again.voxels_zyx.dtype == np.uint8
    np.testing.assert_array_equal(again.voxels_zyx, ramp_zyx > 30)


def test_nifti_masks_keep_the_images_geometry_fields_bit_for_bit(tmp_path, ramp_zyx):
    image = nib.Nifti1Image(ramp_zyx.T, None)
    image.set_sform(OBLIQUE, code="mni")
    image.set_qform(affine((0.3, 0.3, 7.5), (1, 2, 3), angles_rad=(0.1, 0, 0)), code="aligned")
    image.header["descrip"] = b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "image.nii")
    write_mask(ramp_zyx > 30, read_volume(tmp_path / "image.nii"), tmp_path / "mask.nii.gz")

    before, after = nib.load(tmp_path / "image.nii").header, nib.load(tmp_path / "mask.nii.gz").header
    fields = "pixdim qform_code sform_code srow_x srow_y srow_z quatern_b quatern_c quatern_d qoffset_x qoffset_z"
    for field in fields.split():
        assert before[field].tobytes() == after[field].tobytes(), field
    assert after.get_data_dtype() == np.uint8
    assert b"Jane" not in gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())


@pytest.mark.parametrize(("image_class", "byte_order"), [(nib.Nifti1Image, ">"), (nib.Nifti2Image, "<")])
def test_big_endian_and_nifti2(tmp_path, ramp_zyx, image_class, byte_order):
    header = image_class.header_class(endianness=byte_order)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(byte_order))
    nib.save(image_class(ramp_zyx.T, OBLIQUE, header), tmp_path / "image.nii")
    volume = read_volume(tmp_path / "image.nii")
    assert volume.voxels_zyx.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels_zyx, ramp_zyx)
    write_mask(ramp_zyx > 30, volume, tmp_path / "mask.nii")
    assert type(nib.load(tmp_path / "mask.nii")) is image_class
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").affine, nib.load(tmp_path / "image.nii").affine)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii", volume), ramp_zyx > 30)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_scaled_integers(tmp_path, ramp_zyx, suffix):
    image = nib.Nifti1Image(ramp_zyx.T, LPS)
    image.header.set_slope_inter(0.5, -1000)
    nib.save(image, tmp_path / f"image{suffix}")
    volume = read_volume(tmp_path / f"image{suffix}")
    assert volume.voxels_zyx.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels_zyx, nib.load(tmp_path / f"image{suffix}").get_fdata().T)
    assert volume.voxels_zyx.max() > volume.voxels_zyx.min()
    write_mask(ramp_zyx > 30, volume, tmp_path / "mask.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").get_fdata().T, ramp_zyx > 30)


def test_scaling_is_read_from_the_header(tmp_path, ramp_zyx):
    """Written by hand, since nibabel chooses scale factors of its own when it writes."""
    header = nib.Nifti1Header()
    header.set_data_shape((5, 4, 3))
    header.set_data_dtype(np.int16)
    header.set_sform(LPS, code=1)
    for slope, intercept, expected, dtype in [(0.5, -100, ramp_zyx * 0.5 - 100, "float32"), (1, 0, ramp_zyx, "int16")]:
        header["scl_slope"], header["scl_inter"], header["magic"], header["vox_offset"] = slope, intercept, b"n+1", 352
        (tmp_path / "image.nii").write_bytes(header.binaryblock + b"\0" * 4 + ramp_zyx.tobytes())
        volume = read_volume(tmp_path / "image.nii")
        np.testing.assert_array_equal(volume.voxels_zyx, expected)
        assert volume.voxels_zyx.dtype == np.dtype(dtype)


FORMS = {
    "qform": affine((0.3, 0.3, 7.5), (20, -5, 40), angles_rad=(0.2, -0.4, 0.3)),
    "sform": affine((0.3, 0.3, 7.5), (1, 2, 3), angles_rad=(0.1, 0, 0)),
}


def nifti_with_forms(path, voxels_zyx, qform_code, sform_code, sform=FORMS["sform"]):
    image = nib.Nifti1Image(voxels_zyx.T, None)
    image.set_qform(FORMS["qform"], code=qform_code)
    image.set_sform(sform, code=sform_code)
    nib.save(image, path)
    header = nib.load(path).header
    assert (header["qform_code"], header["sform_code"]) == (qform_code, sform_code)
    return path


@pytest.mark.parametrize(
    ("qform_code", "sform_code", "taken"),
    [
        (0, 0, None),
        (0, 2, "sform"),
        (1, 0, "qform"),
        (1, 1, "sform"),
        (4, 1, "sform"),
        (1, 4, "qform"),
        (2, 2, "qform"),
    ],
)
def test_of_two_nifti_forms_the_one_of_itk_is_taken(tmp_path, ramp_zyx, caplog, qform_code, sform_code, taken):
    path = nifti_with_forms(tmp_path / "image.nii", ramp_zyx, qform_code, sform_code)
    volume = read_volume(path)
    expected = FORMS[taken] if taken else affine((0.3, 0.3, 7.5), signs=(-1, -1, 1))
    np.testing.assert_allclose(volume.grid.ras_from_ijk, expected, atol=1e-5)
    image = sitk.ReadImage(str(path))
    last = image.TransformIndexToPhysicalPoint((4, 3, 2)) * np.array((-1, -1, 1))
    np.testing.assert_allclose(volume.grid.ras_from_zyx_points((2, 3, 4)), last, atol=1e-4)
    if qform_code and sform_code:
        assert f"apart; the {taken} is taken, as 3D Slicer does" in caplog.text
    else:
        assert ("has no orientation" in caplog.text) == (taken is None)
    write_mask(ramp_zyx > 30, volume, tmp_path / "mask.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii", volume), ramp_zyx > 30)


def test_nifti_forms_that_agree_and_a_sheared_one(tmp_path, ramp_zyx, caplog):
    agreeing = FORMS["qform"] + 1e-3
    agreeing[3] = 0, 0, 0, 1
    volume = read_volume(nifti_with_forms(tmp_path / "image.nii", ramp_zyx, 1, 4, agreeing))
    np.testing.assert_allclose(volume.grid.ras_from_ijk, agreeing, atol=1e-6)
    assert not caplog.text
    sheared = affine((0.3, 0.3, 7.5), (1, 2, 3), shear=0.27)
    volume = read_volume(nifti_with_forms(tmp_path / "image.nii", ramp_zyx, 1, 4, sheared))
    np.testing.assert_allclose(volume.grid.ras_from_ijk, sheared, atol=1e-6)
    assert "the sform is taken, 3D Slicer takes the qform" in caplog.text


def test_a_header_that_announces_more_than_memory_holds(tmp_path, ramp_zyx):
    nib.save(nib.Nifti1Image(ramp_zyx.T, LPS), tmp_path / "image.nii")
    content = bytearray((tmp_path / "image.nii").read_bytes())
    content[42:48] = np.array([32000] * 3, "<i2").tobytes()
    (tmp_path / "image.nii").write_bytes(content)
    with pytest.raises(VolumeError, match=r"image\.nii' needs more memory than there is"):
        read_volume(tmp_path / "image.nii")


def test_units_other_than_millimetres_are_converted(tmp_path, ramp_zyx):
    image = nib.Nifti1Image(ramp_zyx.T, affine((500, 500, 2000), (1000, 0, 0)))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "image.nii")
    volume = read_volume(tmp_path / "image.nii")
    np.testing.assert_allclose(volume.grid.ras_from_ijk, affine((0.5, 0.5, 2), (1, 0, 0)))
    write_mask(ramp_zyx > 30, volume, tmp_path / "mask.nii")
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii").affine, volume.grid.ras_from_ijk)


@pytest.mark.parametrize("code", [0, 4, 64, 255])
def test_a_number_that_is_no_unit_stands_for_millimetres(tmp_path, ramp_zyx, code):
    image = nib.Nifti1Image(ramp_zyx.T, LPS)
    image.header["xyzt_units"] = code
    nib.save(image, tmp_path / "image.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "image.nii").grid.ras_from_ijk, LPS, atol=1e-6)


def test_axes_of_one_and_missing_axes(tmp_path, ramp_zyx):
    nib.save(nib.Nifti1Image(ramp_zyx.T[..., None, None], OBLIQUE), tmp_path / "five_axes.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "five_axes.nii").voxels_zyx, ramp_zyx)

    slice_header = nib.Nifti1Header()
    slice_header.set_data_shape((5, 4))
    slice_header["pixdim"][1:4] = 0.5, 0.5, 0
    nib.save(nib.Nifti1Image(ramp_zyx[0].T, None, slice_header), tmp_path / "flat.nii")
    flat = read_volume(tmp_path / "flat.nii")
    np.testing.assert_array_equal(flat.voxels_zyx, ramp_zyx[:1])
    assert flat.spacing_xyz_mm[2] > 0
    write_mask(ramp_zyx[:1] > 3, flat, tmp_path / "mask.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii", flat), ramp_zyx[:1] > 3)

    sitk.WriteImage(sitk.GetImageFromArray(ramp_zyx[0]), str(tmp_path / "flat.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "flat.mha").voxels_zyx, ramp_zyx[:1])
    one_frame = sitk.JoinSeries([sitk.GetImageFromArray(ramp_zyx)])
    sitk.WriteImage(one_frame, str(tmp_path / "one_frame.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "one_frame.mha").voxels_zyx, ramp_zyx)


@pytest.mark.parametrize("size_zyx", [(1, 5, 6), (30, 30, 30), (1, 2, 1)])
def test_tiny_volumes_and_single_slices(tmp_path, size_zyx):
    voxels = np.arange(np.prod(size_zyx), dtype=np.float32).reshape(size_zyx)
    nib.save(nib.Nifti1Image(voxels.T, OBLIQUE), tmp_path / "image.nii")
    volume = read_volume(tmp_path / "image.nii")
    np.testing.assert_array_equal(volume.voxels_zyx, voxels)
    write_mask(voxels > 0, volume, tmp_path / "mask.nrrd")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nrrd", volume), voxels > 0)


@pytest.mark.parametrize(
    ("space", "directions", "origin", "expected"),
    [
        ("right-anterior-superior", "(0.5,0,0) (0,0.6,0) (0,0,2)", "(1,2,3)", affine((0.5, 0.6, 2), (1, 2, 3))),
        ("left-posterior-superior", "(0.5,0,0) (0,0.6,0) (0,0,2)", "(-100,-80,-30)", LPS),
        ("left-anterior-superior", "(0,0.5,0) (-0.6,0,0) (0,0,2)", "(1,2,3)", None),
    ],
)
def test_nrrd_spaces(tmp_path, ramp_zyx, space, directions, origin, expected):
    if expected is None:  # x runs to anterior, y to right
        expected = np.array([[0, 0.6, 0, -1], [0.5, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: 5 4 3\nspace directions: {directions}\n"
        f"kinds: domain domain domain\nendian: big\nencoding: raw\nspace origin: {origin}\n\n"
    )
    (tmp_path / "image.nrrd").write_bytes(header.encode() + ramp_zyx.astype(">i2").tobytes())
    volume = read_volume(tmp_path / "image.nrrd")
    np.testing.assert_allclose(volume.grid.ras_from_ijk, expected, atol=1e-12)
    np.testing.assert_array_equal(volume.voxels_zyx, ramp_zyx)


def test_sides_that_an_old_library_confuses_are_not_guessed(tmp_path, ramp_zyx, monkeypatch):
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: {}\nsizes: 5 4 3\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
        "endian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    for space in ("left-anterior-superior", "RAS"):
        path = tmp_path / f"{space}.nrrd"
        path.write_bytes(header.format(space).encode() + ramp_zyx.astype("<i2").tobytes())
        read_volume(path)
    monkeypatch.setattr("SimpleITK.Version_VersionString", lambda: "2.5.3")
    read_volume(tmp_path / "RAS.nrrd")
    with pytest.raises(VolumeError, match=r"SimpleITK 2\.5\.3 confuses the sides; update it"):
        read_volume(tmp_path / "left-anterior-superior.nrrd")


def test_numpy_files(tmp_path, ramp_zyx):
    np.savez(tmp_path / "image.npz", voxels_zyx=ramp_zyx, ras_from_ijk=TILTED)
    np.save(tmp_path / "image.npy", ramp_zyx)
    for volume in (read_volume(tmp_path / "image.npz"), read_volume(tmp_path / "image.npy", ras_from_ijk=TILTED)):
        np.testing.assert_array_equal(volume.voxels_zyx, ramp_zyx)
        np.testing.assert_array_equal(volume.grid.ras_from_ijk, TILTED)
    with pytest.raises(VolumeError, match="give ras_from_ijk"):
        read_volume(tmp_path / "image.npy")
    np.savez(tmp_path / "image.npz", voxels_zyx=ramp_zyx)
    with pytest.raises(VolumeError, match=r"lacks the array ras_from_ijk; it has \['voxels_zyx'\]"):
        read_volume(tmp_path / "image.npz")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(VolumeError, match="cannot read"):
        read_volume(tmp_path / "objects.npy", ras_from_ijk=TILTED)


def test_images_of_several_values_a_voxel_are_refused(tmp_path, ramp_zyx):
    nib.save(nib.Nifti1Image(np.stack([ramp_zyx.T] * 2, -1), LPS), tmp_path / "series.nii")
    vectors = nib.Nifti1Image(np.stack([ramp_zyx.T] * 3, -1)[..., None, :], LPS)
    vectors.header.set_intent("vector")
    nib.save(vectors, tmp_path / "vectors.nii")
    rgb = np.zeros((5, 4, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, LPS), tmp_path / "rgb.nii")
    nib.save(nib.Nifti1Image(ramp_zyx.T.astype(np.complex64), LPS), tmp_path / "complex.nii")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([ramp_zyx] * 3, -1), isVector=True), str(tmp_path / "rgb.nrrd"))
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(ramp_zyx)] * 2), str(tmp_path / "series.mha"))
    for name, message in {
        "series.nii": r"\(5, 4, 3, 2\); pick one",
        "vectors.nii": r"\(5, 4, 3, 1, 3\); pick one",
        "rgb.nii": "colour",
        "complex.nii": "complex64",
        "rgb.nrrd": "3 values a voxel",
        "series.mha": r"\(5, 4, 3, 2\); pick one",
    }.items():
        with pytest.raises(VolumeError, match=message):
            read_volume(tmp_path / name)


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, LPS), tmp_path / "whole.nii.gz")
    nib.save(nib.Nifti1Image(noise, LPS), tmp_path / "whole.nii")
    write_mask(noise > 500, Grid(noise.shape, LPS), tmp_path / "whole.nrrd")
    for name in ("whole.nii.gz", "whole.nii", "whole.nrrd"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name.replace("whole", "half")).write_bytes(content[: len(content) // 2])
        (tmp_path / name.replace("whole", "empty")).write_bytes(b"")
        (tmp_path / name.replace("whole", "foreign")).write_bytes(b"This is a text.\n" * 100)
    for kind in ("half", "empty", "foreign"):
        for suffix in (".nii.gz", ".nii", ".nrrd"):
            with pytest.raises(VolumeError, match=f"cannot read .*{kind}"):
                read_volume(tmp_path / f"{kind}{suffix}")
    with pytest.raises(VolumeError, match="there is no file or folder"):
        read_volume(tmp_path / "missing.nii.gz")
    (tmp_path / "report.pdf").write_bytes(b"%PDF")
    with pytest.raises(VolumeError, match=r"'report.pdf' does not end .*\.nii\.gz"):
        read_volume(tmp_path / "report.pdf")


# DICOM


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("file_order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_dicom_series(tmp_path, ramp_zyx, geometry, file_order, caplog):
    ras_from_ijk = GEOMETRIES[geometry]
    folder = write_dicom_series(tmp_path / "series", ramp_zyx, ras_from_ijk, file_order=file_order)
    (folder / "readme.txt").write_text("not an image")
    volume = read_volume(folder)
    assert not caplog.text
    assert volume.voxels_zyx.dtype == np.int16
    # Slices are sorted along their normal, which may be the other way round than they were made.
    grid = Grid(ramp_zyx.shape, ras_from_ijk)
    if not volume.grid.matches(grid):
        ras_from_ijk = ras_from_ijk @ affine(origin_mm=(0, 0, 2), signs=(1, 1, -1))
        ramp_zyx = ramp_zyx[::-1]
    np.testing.assert_allclose(volume.grid.ras_from_ijk, ras_from_ijk, atol=1e-6)
    np.testing.assert_array_equal(volume.voxels_zyx, ramp_zyx)

    write_mask(ramp_zyx > 30, volume, tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, volume.grid.ras_from_ijk, atol=1e-4)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz", volume), ramp_zyx > 30)


def test_dicom_rescaling(tmp_path, ramp_zyx):
    tags = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
    tags.update({"0028|1053": "0.5", "0028|1052": "-3"})
    folder = write_dicom_series(tmp_path, ramp_zyx * 0.5, LPS, tags=tags)
    np.testing.assert_allclose(read_volume(folder).voxels_zyx, ramp_zyx * 0.5)


@pytest.mark.parametrize("scalings", [((1, 0), (0.25, 0)), ((1, 0), (300, 0)), ((1, 0), (1, 9000)), ((0.5, 0), (2, 7))])
def test_dicom_slices_that_are_rescaled_differently(tmp_path, ramp_zyx, scalings):
    """As in PET: every slice has a slope of its own."""
    expected = []
    for k, (slope, intercept) in enumerate((scalings[0], scalings[1], scalings[1])):
        expected.append(401 * ramp_zyx[k] * float(slope) + intercept)
        tags = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1", "0008|0018": f"1.2.3.{k}"}
        tags.update({"0028|1053": str(slope), "0028|1052": str(intercept)})
        here = LPS @ affine(origin_mm=(0, 0, k))
        write_dicom_series(tmp_path, expected[k][None], here, file_order=(k,), tags=tags)
    np.testing.assert_allclose(read_volume(tmp_path).voxels_zyx, expected)


def test_a_dicom_folder_with_several_series(tmp_path, ramp_zyx, caplog):
    write_dicom_series(tmp_path, ramp_zyx[:2], SAGITTAL, uid="1.2.3")
    write_dicom_series(tmp_path, ramp_zyx, LPS, uid="1.2.4")
    assert read_volume(tmp_path).grid.size_zyx == (3, 4, 5)
    assert "1.2.3 (2 files)" in caplog.text
    assert read_volume(tmp_path, series_uid="1.2.3").grid.size_zyx == (2, 4, 5)
    with pytest.raises(VolumeError, match=r"no series '9'; it has 1\.2\.3"):
        read_volume(tmp_path, series_uid="9")


def test_missing_dicom_slices_are_reported(tmp_path, ramp_zyx, caplog, capfd):
    voxels = np.concatenate([ramp_zyx, ramp_zyx + 1])
    write_dicom_series(tmp_path, voxels, LPS, uid="1.2.3")
    (tmp_path / "1.2.3-0002.dcm").unlink()
    volume = read_volume(tmp_path)
    assert "uneven distances between its slices (2 to 4 mm)" in caplog.text
    assert volume.spacing_xyz_mm[2] == pytest.approx(2.5)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("slices", [1, 3])
def test_copies_of_dicom_files_are_left_out(tmp_path, ramp_zyx, caplog, slices):
    write_dicom_series(tmp_path, ramp_zyx[:slices], OBLIQUE, uid="1.2.3")
    shutil.copy(tmp_path / "1.2.3-0000.dcm", tmp_path / "copy of 1.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels_zyx, ramp_zyx[:slices])
    np.testing.assert_allclose(volume.grid.ras_from_ijk, OBLIQUE, atol=1e-6)
    assert "1 files are copies of others and left out" in caplog.text


@pytest.mark.parametrize("position", [{}, {"0020|0032": "0\\0\\0"}])
def test_dicom_slices_that_share_an_identity_are_no_copies(tmp_path, ramp_zyx, position):
    """As programs write them that fill in one template, or anonymise carelessly: two phases, no positions."""
    tags = {"0008|0018": "1.2.3.9", **position}
    write_dicom_series(tmp_path, ramp_zyx, LPS, tags=tags)
    if not position:
        np.testing.assert_array_equal(read_volume(tmp_path).voxels_zyx, ramp_zyx)
        write_dicom_series(tmp_path, ramp_zyx + 1, LPS, tags=tags, file_order=range(100, 100 + len(ramp_zyx)))
    with pytest.raises(VolumeError, match="several images at one position"):
        read_volume(tmp_path)


@pytest.mark.parametrize("tag, message", [("PixelSpacing", "1 mm is taken"), ("ImageOrientationPatient", "axial is")])
def test_what_is_assumed_of_dicom_slices_is_told(tmp_path, ramp_zyx, caplog, tag, message):
    pydicom = pytest.importorskip("pydicom", reason="a file is changed by pydicom (Python 3.10)")
    read_volume(write_dicom_series(tmp_path, ramp_zyx, LPS))
    assert "does not tell" not in caplog.text
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        delattr(dataset, tag)
        dataset.save_as(path)
    read_volume(tmp_path)
    assert "does not tell its" in caplog.text and message in caplog.text


def test_a_single_dicom_slice(tmp_path, ramp_zyx):
    write_dicom_series(tmp_path, ramp_zyx[:1], OBLIQUE, uid="1.2.3")
    files = [tmp_path / name for name in ("1.2.3-0000.dcm", "IM0001", "1.2.3.IMA", "slice.img", "slice.nii")]
    for path in (tmp_path, *files):
        next(tmp_path.iterdir()).rename(files[0] if path == tmp_path else path)
        volume = read_volume(path)
        np.testing.assert_allclose(volume.grid.ras_from_ijk, OBLIQUE, atol=1e-6)
        np.testing.assert_array_equal(volume.voxels_zyx, ramp_zyx[:1])


def test_a_lone_dicom_slice_without_a_thickness_is_1_mm_thick(tmp_path, ramp_zyx):
    write_dicom_series(tmp_path, ramp_zyx[:1], LPS, tags={"0018|0050": "0"})
    assert read_volume(tmp_path).spacing_xyz_mm[2] == 1


@pytest.mark.parametrize("ras_from_ijk", [*GEOMETRIES.values(), LPS @ affine(signs=(1, 1, -1))])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 3, 1, 4, 2)])
def test_dicom_frames_lie_where_the_file_says(tmp_path, ramp_zyx, ras_from_ijk, order):
    voxels = np.concatenate([ramp_zyx, ramp_zyx[:2] + 1000]).astype(np.int16)
    path = write_dicom_frames(tmp_path / "frames.dcm", voxels[list(order)], ras_from_ijk, heights=order)
    for volume in (read_volume(path), read_volume(tmp_path)):
        np.testing.assert_allclose(volume.grid.ras_from_ijk, ras_from_ijk, atol=1e-6)
        np.testing.assert_array_equal(volume.voxels_zyx, voxels)


@pytest.mark.parametrize("scales", [((0.5, 3), (2, -1), (1, 0)), ((1, 0), (300, 9000), (0.25, 0))])
def test_dicom_frames_that_are_rescaled_differently(tmp_path, ramp_zyx, scales):
    path = write_dicom_frames(tmp_path / "frames.dcm", ramp_zyx, LPS, scales=scales)
    expected = [plane * float(slope) + intercept for plane, (slope, intercept) in zip(ramp_zyx, scales)]
    np.testing.assert_allclose(read_volume(path).voxels_zyx, expected)


def test_dicom_frames_of_which_the_file_tells_nothing_lie_where_itk_has_them(tmp_path, ramp_zyx, monkeypatch):
    path = write_dicom_frames(tmp_path / "frames.dcm", ramp_zyx, LPS)
    dataset = pytest.importorskip("pydicom").dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(path).voxels_zyx, ramp_zyx)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    np.testing.assert_array_equal(read_volume(path).voxels_zyx, ramp_zyx)


def test_dicom_frames_that_are_no_volume(tmp_path, ramp_zyx, caplog, monkeypatch):
    twice = np.concatenate([ramp_zyx, ramp_zyx])
    phases = write_dicom_frames(tmp_path / "phases.dcm", twice, LPS, heights=(0, 1, 2, 0, 1, 2))
    with pytest.raises(VolumeError, match="several images at one position"):
        read_volume(phases)
    gap = write_dicom_frames(tmp_path / "gap.dcm", ramp_zyx, LPS, heights=(0, 1, 3))
    assert read_volume(gap).spacing_xyz_mm[2] == pytest.approx(1.5 * Grid((1, 1, 1), LPS).spacing_xyz_mm[2])
    assert "uneven distances between its slices" in caplog.text
    with pytest.raises(VolumeError, match="2 files of"):
        read_volume(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingDependencyError, match="pip install pydicom"):
        read_volume(gap)


def test_dicom_folders_that_hold_no_volume(tmp_path, ramp_zyx):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeError, match="no DICOM images"):
        read_volume(tmp_path / "empty")
    with pytest.raises(VolumeError, match="several images at one position"):
        read_volume(write_dicom_series(tmp_path / "phases", ramp_zyx, LPS, tags={"0020|0032": "0\\0\\0"}))
    write_dicom_series(tmp_path / "mixed", ramp_zyx, LPS, uid="1.2.3")
    write_dicom_series(tmp_path / "mixed", ramp_zyx, SAGITTAL, uid="1.2.3", file_order=(5, 6, 7))
    with pytest.raises(VolumeError, match="several sizes or orientations"):
        read_volume(tmp_path / "mixed")


@pytest.fixture
def names_of_windows(tmp_path, monkeypatch):
    """ITK knows no name with other than ASCII characters; its folder has a short name that does without."""
    folder, short = tmp_path / "Jörg", tmp_path / "JRG~1"
    folder.mkdir()
    short.symlink_to(folder)

    def short_name(name, buffer, _):
        buffer.value = name.replace(str(folder), str(short))

    def checked(name):
        assert all(one.isascii() for one in ([name] if isinstance(name, str) else name))
        return name

    for reader, verb in ((sitk.ImageFileReader, "SetFileName"), (sitk.ImageSeriesReader, "SetFileNames")):
        kept = getattr(reader, verb)
        monkeypatch.setattr(reader, verb, lambda self, name, kept=kept: kept(self, checked(name)))
    write = sitk.WriteImage
    monkeypatch.setattr(sitk, "WriteImage", lambda image, name, **how: write(image, checked(name), **how))
    kernel32 = SimpleNamespace(GetACP=lambda: 1252, GetShortPathNameW=short_name)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    monkeypatch.setattr("famsam.image_files.sys", SimpleNamespace(platform="win32"))
    return folder


def test_files_in_folders_whose_names_itk_does_not_know(names_of_windows, ramp_zyx):
    folder = names_of_windows
    write_mask(ramp_zyx > 30, Volume(ramp_zyx, LPS), folder / "mask.nrrd")
    np.testing.assert_array_equal(read_volume(folder / "mask.nrrd").voxels_zyx, ramp_zyx > 30)
    (folder / "series").mkdir()
    write_dicom_series(folder / "series", ramp_zyx, LPS)
    np.testing.assert_array_equal(read_volume(folder / "series").voxels_zyx, ramp_zyx)


def test_a_name_that_itk_does_not_know_is_explained(names_of_windows, ramp_zyx):
    write_mask(ramp_zyx > 30, Volume(ramp_zyx, LPS), names_of_windows / "Schädel.nrrd")
    with pytest.raises(VolumeError, match="rename it"):
        read_volume(names_of_windows / "Schädel.nrrd")


def test_damaged_dicom_files_are_reported(tmp_path, ramp_zyx, caplog):
    write_dicom_series(tmp_path, ramp_zyx, LPS, uid="1.2.3")
    broken = tmp_path / "1.2.3-0002.dcm"
    broken.write_bytes(broken.read_bytes()[:-30])
    assert read_volume(tmp_path).grid.size_zyx == (2, 4, 5)
    assert "cannot be read are left out: 1.2.3-0002.dcm" in caplog.text


# Masks


def test_mask_values_and_number_types(tmp_path, ramp_zyx):
    grid = Grid(ramp_zyx.shape, LPS)
    write_mask(ramp_zyx, grid, tmp_path / "mask.nii", value=7)
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii").voxels_zyx, 7 * (ramp_zyx > 0))
    for value in (0, 256):
        with pytest.raises(VolumeError, match="from 1 to 255"):
            write_mask(ramp_zyx, grid, tmp_path / "mask.nii", value=value)


def test_nan_is_background(tmp_path, ramp_zyx):
    grid = Grid(ramp_zyx.shape, LPS)
    values = np.where(ramp_zyx > 30, np.float32(0.5), np.nan).astype(np.float32)
    values[0] = 0
    np.testing.assert_array_equal(foreground(values), ramp_zyx > 30)
    write_mask(values, grid, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii.gz").voxels_zyx, ramp_zyx > 30)
    nib.save(nib.Nifti1Image(values.T, LPS), tmp_path / "floats.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "floats.nii", grid), ramp_zyx > 30)


def test_empty_masks_are_masks(tmp_path, ramp_zyx):
    grid = Grid(ramp_zyx.shape, LPS)
    write_mask(np.zeros(grid.size_zyx, bool), grid, tmp_path / "mask.nii.gz")
    assert not read_mask(tmp_path / "mask.nii.gz", grid).any()


def test_masks_are_not_written_where_they_cannot_be(tmp_path, ramp_zyx):
    volume = Volume(ramp_zyx, LPS)
    mask = ramp_zyx > 30
    (tmp_path / "folder.nii").mkdir()
    for path, message in [
        (tmp_path / "missing" / "mask.nii", "there is no folder .*missing"),
        (tmp_path / "folder.nii", "is a folder"),
        (tmp_path / "mask.stl", "does not end like"),
    ]:
        with pytest.raises(VolumeError, match=message):
            write_mask(mask, volume, path)
    with pytest.raises(VolumeError, match=r"must be the image's \(3, 4, 5\), got \(5, 4, 3\)"):
        write_mask(mask.T, volume, tmp_path / "mask.nii")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.nii"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_failing_write_leaves_the_old_file(tmp_path, ramp_zyx, suffix, monkeypatch):
    volume, path = Volume(ramp_zyx, LPS), tmp_path / f"mask{suffix}"
    write_mask(ramp_zyx > 30, volume, path)
    before = path.read_bytes()

    def fail(image, name, **_):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", fail)
    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(VolumeError, match=r"cannot write .*No space left"):
        write_mask(ramp_zyx > 10, volume, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_mask_from_another_grid_is_refused(tmp_path, ramp_zyx):
    volume = Volume(ramp_zyx, LPS)
    moved = LPS.copy()
    moved[0, 3] += 0.01
    for grid in (Grid((3, 4, 5), moved), Grid((3, 5, 4), LPS)):
        write_mask(np.ones(grid.size_zyx, bool), grid, tmp_path / "mask.nii")
        with pytest.raises(VolumeError, match=r"(?s)does not lie on the image's grid.*mask: .*image: "):
            read_mask(tmp_path / "mask.nii", volume)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affines(), sizes_zyx(4), st.sampled_from((".nii", ".nrrd", ".mha")), st.data())
def test_masks_survive_writing_and_reading(tmp_path, ras_from_ijk, size_zyx, suffix, data):
    assume(np.prod(size_zyx) > 1)
    grid = Grid(size_zyx, ras_from_ijk)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(size_zyx) > 0.5
    write_mask(mask, grid, tmp_path / f"mask{suffix}")
    np.testing.assert_array_equal(read_mask(tmp_path / f"mask{suffix}", grid), mask)


@pytest.mark.parametrize("padding, dtype", [(-32768, np.int16), (-(2**31), np.int32), (-1e10, np.float32)])
def test_padding_far_below_is_brought_nearer(
    padding: float, dtype: type, caplog: pytest.LogCaptureFixture
) -> None:
    given = np.arange(-1000, 1000, 2).reshape(10, 10, 10).astype(dtype)
    given[:, :3] = padding
    before = given.copy()
    volume = Volume(given, np.eye(4))
    rest = before[:, 3:]
    nearer = 2 * int(rest.min()) - int(rest.max())
    np.testing.assert_array_equal(volume.voxels_zyx[:, 3:], rest)
    assert (volume.voxels_zyx[:, :3] == nearer).all() and volume.voxels_zyx.dtype == given.dtype
    assert volume.value_range == (nearer, rest.max())
    np.testing.assert_array_equal(given, before)
    assert f"{padding:g}" in caplog.text


@pytest.mark.parametrize("padding", [-100, -1000])
def test_padding_of_standard_scores_is_brought_nearer(padding: float) -> None:
    given = np.random.default_rng(0).normal(size=(10, 10, 10)).astype(np.float32)
    low, high = given.min(), given.max()
    given[:, :3] = padding
    assert Volume(given, np.eye(4)).value_range == pytest.approx((low - (high - low), high), rel=0.2)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize(
    "values", [(0, 1), (0, 990, 991, 992), (-1024, 40, 41), (-3024, -1000, 0, 3000), (-2000, -1024, 0, 100)]
)
def test_other_backgrounds_stay(values: Sequence[int], dtype: type) -> None:
    """A mask, a nearly uniform object in nothing and in air, a CT padded as scanners do it."""
    given = np.resize(np.array(values, dtype=dtype), (4, 5, 6))
    assert Volume(given, np.eye(4)).voxels_zyx is given
