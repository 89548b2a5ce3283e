from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from famsam import resample
from famsam.geometry import CanonicalFrame, Grid, bounding_box, box_slices
from famsam.resample import (
    CropBox,
    _applied_on_device,
    _logit_taps,
    extract_crop,
    held_on,
    mask_to_crop,
    paste_logits,
    sample_logits,
)
from grids import affine, affines, sizes_zyx
from hypothesis import given
from hypothesis import strategies as st

CT_LIKE = Grid((20, 24, 28), affine((0.7, 0.7, 1)))
THICK = Grid((6, 40, 44), affine((0.4, 0.5, 7.5)))
ISOTROPIC = Grid((20, 22, 24), np.eye(4))
GRIDS = {"ct_like": CT_LIKE, "thick": THICK, "isotropic": ISOTROPIC}

boxes = st.builds(
    CropBox,
    center_zyx=st.tuples(*[st.floats(-4, 12)] * 3),
    spacing_mm=st.floats(0.3, 8),
    size=st.integers(1, 12),
)


def noise(size_zyx, seed=0):
    return np.random.default_rng(seed).normal(size=size_zyx).astype(np.float32)


def crop_points_zyx(box, grid):
    """(size, size, size, 3) canonical index of every crop voxel."""
    return box.points_from_crop(np.stack(np.meshgrid(*[np.arange(box.size)] * 3, indexing="ij"), -1), grid)


def linear_by_simpleitk(values_zyx, points_zyx):
    """Linear interpolation at (..., 3) indices that lie between the outer voxels' centres."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values_zyx, dtype=np.float64))
    flat = points_zyx.reshape(-1, 3)[:, ::-1]
    results = [image.EvaluateAtContinuousIndex(point.tolist(), sitk.sitkLinear) for point in flat]
    return np.reshape(results, points_zyx.shape[:-1])


def ramp(size_zyx, slopes_zyx=(2, -0.5, 0.25)):
    z, y, x = np.meshgrid(*[np.arange(n) for n in size_zyx], indexing="ij")
    return (slopes_zyx[0] * z + slopes_zyx[1] * y + slopes_zyx[2] * x).astype(np.float32)


def ball_logits(n, radius):
    """(n, n, n) distance to the surface of a centred ball, positive inside; in shares of the cube's edge."""
    centres = (np.arange(n) + 0.5) / n - 0.5
    return torch.from_numpy(radius - np.sqrt(centres[:, None, None] ** 2 + centres[:, None] ** 2 + centres**2)).float()


# Boxes


@given(boxes, affines(), st.tuples(*[st.floats(-99, 99)] * 3))
def test_points_survive_the_way_to_the_crop_and_back(box, ras_from_ijk, point_zyx):
    grid = CanonicalFrame(Grid((9, 9, 9), ras_from_ijk)).grid
    np.testing.assert_allclose(box.points_from_crop(box.points_to_crop(point_zyx, grid), grid), point_zyx, atol=1e-9)
    centre = (box.size - 1) / 2
    np.testing.assert_allclose(box.points_to_crop([box.center_zyx], grid), [[centre] * 3], atol=1e-9)


def test_crop_voxels_have_the_spacing_that_was_asked_for():
    box = CropBox((10, 11, 12), 1.5, size=16)
    a, b = THICK.ras_from_zyx_points(box.points_from_crop([(3, 4, 5), (4, 5, 6)], THICK))
    np.testing.assert_allclose(np.abs(a - b), (1.5, 1.5, 1.5))


@given(boxes, sizes_zyx(12), affines())
def test_image_box_holds_the_voxels_whose_centres_lie_in_the_cube(box, size_zyx, ras_from_ijk):
    grid = CanonicalFrame(Grid(size_zyx, ras_from_ijk)).grid
    indices = np.array(list(np.ndindex(*grid.size_zyx)))
    at = box.points_to_crop(indices, grid)
    depth = np.minimum(at + 0.5, box.size - 0.5 - at).min(axis=1)  # into the cube, in crop voxels
    inside = np.zeros(grid.size_zyx, dtype=bool)
    found = box.image_box(grid)
    if found is not None:
        inside[box_slices(found)] = True
    decided = np.abs(depth) > 1e-9
    np.testing.assert_array_equal(inside.ravel()[decided], (depth > 0)[decided])


# Crops


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_fine_crops_interpolate_linearly(grid):
    voxels = noise(grid.size_zyx)
    box = CropBox(tuple((n - 1) / 2 + 0.3 for n in grid.size_zyx), 0.35, size=8)
    crop, inside = extract_crop(voxels, grid, box)
    assert crop.dtype == torch.float32
    assert inside.dtype == torch.bool
    assert inside.all()
    np.testing.assert_allclose(crop, linear_by_simpleitk(voxels, crop_points_zyx(box, grid)), atol=1e-5)


@pytest.mark.parametrize("rounding", [0, -1e-7, 1e-7, 1e-6])
def test_crop_voxels_that_are_the_scans_take_nothing_of_others(rounding):
    """A background of 0 stays 0, whatever lies beside it: the published networks are normalised by what is above 0."""
    voxels = np.where(noise((12, 12, 12)) > 0, 1000, 0).astype(np.int16)
    grid = Grid(voxels.shape, np.diag([1.5 * (1 + rounding)] * 3 + [1]))
    crop, _ = extract_crop(voxels, grid, CropBox((5.5, 5.5, 5.5), 1.5, size=16))
    np.testing.assert_array_equal(crop, np.pad(voxels, 2))


@pytest.mark.parametrize("spacing_mm", [0.4, 1.0, 1.9, 3.3])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_ramps_are_reproduced_exactly_at_any_spacing(grid, spacing_mm):
    voxels = ramp(grid.size_zyx)
    box = CropBox(tuple((n - 1) / 2 + 0.2 for n in grid.size_zyx), spacing_mm, size=12)
    crop, _ = extract_crop(voxels, grid, box)
    points = crop_points_zyx(box, grid)
    reach = 1.5 * np.maximum(1, spacing_mm / grid.spacing_zyx_mm)  # of the averaging, in voxels
    deep = np.all((points >= reach) & (points <= np.array(grid.size_zyx) - 1 - reach), axis=-1)
    assert deep.any()
    expected = points @ (2, -0.5, 0.25)
    np.testing.assert_allclose(crop[deep], expected[deep], atol=1e-4)


def test_very_coarse_crops_read_a_part_of_the_voxels_and_keep_ramps():
    grid = Grid((90, 90, 90), np.eye(4) * (0.1, 0.1, 0.1, 1))
    box = CropBox((44.3, 45.1, 44.9), 0.63, size=9)
    voxels = ramp(grid.size_zyx)
    unread = np.ones(grid.size_zyx, dtype=bool)
    unread[::3, ::3, ::3] = False
    voxels[unread] = np.nan
    crop, inside = extract_crop(voxels, grid, box)
    assert inside.all()
    np.testing.assert_allclose(crop, crop_points_zyx(box, grid) @ (2, -0.5, 0.25), atol=1e-4)


def test_coarse_crops_average_instead_of_picking():
    checkerboard = (np.indices(CT_LIKE.size_zyx).sum(axis=0) % 2).astype(np.int16) * 100
    crop, _ = extract_crop(checkerboard, CT_LIKE, CropBox((9.5, 11.5, 13.5), 2.1, size=5))
    np.testing.assert_allclose(crop, 50, atol=1.5)

    voxels = noise((40, 40, 40))
    grid = Grid(voxels.shape, np.eye(4))
    spread = [extract_crop(voxels, grid, CropBox((19.5, 19.5, 19.5), s, size=8))[0].std() for s in (1, 2, 3)]
    assert spread[1] < 0.5 * spread[0]
    assert spread[2] < 0.6 * spread[1]


@given(sizes_zyx(7), boxes, st.integers(-5, 5))
def test_constant_images_stay_constant(size_zyx, box, value):
    grid = Grid(size_zyx, affine((0.8, 1, 2.5)))
    crop, inside = extract_crop(np.full(size_zyx, value, dtype=np.int16), grid, box)
    np.testing.assert_allclose(crop, torch.where(inside, float(value), 0.0), atol=1e-5)


@given(sizes_zyx(7), boxes)
def test_inside_reaches_to_the_outer_faces(size_zyx, box):
    grid = Grid(size_zyx, affine((0.8, 1, 2.5)))
    _, inside = extract_crop(np.zeros(size_zyx, dtype=np.int16), grid, box)
    points = crop_points_zyx(box, grid)
    depth = np.minimum(points + 0.5, np.array(size_zyx) - 0.5 - points).min(axis=-1)
    decided = np.abs(depth) > 1e-9
    np.testing.assert_array_equal(inside.numpy()[decided], (depth > 0)[decided])


def test_a_single_slice_fills_its_thickness():
    grid = Grid((1, 30, 30), affine((1, 1, 5)))
    voxels = noise(grid.size_zyx)
    crop, inside = extract_crop(voxels, grid, CropBox((0, 15, 15), 1, size=9))
    assert inside.any(dim=2).any(dim=1).tolist() == [False] * 2 + [True] * 5 + [False] * 2
    for k in range(2, 7):
        np.testing.assert_allclose(crop[k], voxels[0, 11:20, 11:20], atol=1e-5)
    assert not crop[:2].any()
    assert not crop[7:].any()


def test_the_outermost_values_hold_up_to_the_face():
    grid = Grid((2, 2, 4), np.eye(4))
    voxels = np.broadcast_to(np.array([10, 20, 30, 40], dtype=np.uint8), grid.size_zyx)
    crop, inside = extract_crop(voxels, grid, CropBox((0.5, 0.5, -0.4), 0.2, size=5))
    np.testing.assert_allclose(crop[2, 2], [0, 0, 10, 10, 10], rtol=1e-5)
    assert inside[2, 2].tolist() == [False, False, True, True, True]


def test_a_crop_beside_the_scan_is_empty():
    crop, inside = extract_crop(noise((5, 5, 5)), Grid((5, 5, 5), np.eye(4)), CropBox((2, 2, 99), 1, size=6))
    assert crop.shape == inside.shape == (6, 6, 6)
    assert not crop.any()
    assert not inside.any()


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "uint16", "int32", "int64", "float32", "float64", "bool"])
@pytest.mark.parametrize("writeable", [True, False])
def test_any_number_type_and_a_read_only_array(dtype, writeable):
    voxels = (noise(CT_LIKE.size_zyx) > 0).astype(dtype)
    voxels.flags.writeable = writeable
    box = CropBox((9, 11, 13), 1, size=10)
    torch.testing.assert_close(
        extract_crop(voxels, CT_LIKE, box)[0], extract_crop(voxels.astype(np.float32), CT_LIKE, box)[0]
    )


@given(affines(), sizes_zyx(8), st.floats(0.5, 4))
def test_crops_do_not_depend_on_how_the_scan_is_stored(ras_from_ijk, size_zyx, spacing_mm):
    frame = CanonicalFrame(Grid(size_zyx, ras_from_ijk))
    view = frame.to_canonical(noise(size_zyx))
    box = CropBox(tuple((n - 1) / 3 for n in view.shape), spacing_mm, size=7)
    crop, inside = extract_crop(view, frame.grid, box)
    again, inside_again = extract_crop(np.ascontiguousarray(view), frame.grid, box)
    torch.testing.assert_close(crop, again, atol=1e-5, rtol=1e-5)
    assert torch.equal(inside, inside_again)


def test_work_in_small_pieces_gives_the_same(monkeypatch):
    voxels, box = noise(CT_LIKE.size_zyx), CropBox((8, 13, 12), 1.3, size=17)
    whole, _ = extract_crop(voxels, CT_LIKE, box)
    for name, value in {"_ROWS": 3, "_COLUMNS": 5, "_VOXELS": 1500}.items():
        monkeypatch.setattr(resample, name, value)
    torch.testing.assert_close(extract_crop(voxels, CT_LIKE, box)[0], whole, atol=1e-5, rtol=1e-5)


def test_only_the_part_under_the_crop_is_read():
    """An image of 16 terabytes, all of whose voxels share one place in memory."""
    voxels = np.broadcast_to(np.int16(7), (20_000, 20_000, 20_000))
    grid = Grid(voxels.shape, np.eye(4))
    crop, inside = extract_crop(voxels, grid, CropBox((9_000, 10_000, 11_000), 1.5, size=16))
    assert inside.all()
    np.testing.assert_allclose(crop, 7, rtol=1e-6)
    share = mask_to_crop(np.broadcast_to(np.bool_(True), voxels.shape), grid, CropBox((9_000, 8_000, 7_000), 1.5, 16))
    np.testing.assert_allclose(share, 1, rtol=1e-6)
    mask, box = paste_logits(ball_logits(8, 0.3), grid, CropBox((9_000, 10_000, 11_000), 1.5, size=16))
    assert mask.shape == tuple(b - a for a, b in zip(*box))
    assert mask.size < 16**3 * 4


# Logits


@pytest.mark.parametrize("n", [4, 8, 16])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_logits_are_interpolated_between_their_centres(grid, n):
    logits = torch.from_numpy(noise((n, n, n)))
    box = CropBox(tuple(n * 0.45 for n in grid.size_zyx), 1.1, size=16)
    region = box.image_box(grid)
    values = sample_logits(logits, grid, box)
    indices = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(*region)], indexing="ij"), -1)
    at = (box.points_to_crop(indices, grid) + 0.5) * n / box.size - 0.5
    expected = linear_by_simpleitk(logits.numpy(), np.clip(at, 0, n - 1))
    np.testing.assert_allclose(values, expected, atol=1e-5)
    part = tuple((low + 1, high) for low, high in zip(*region))
    part_box = tuple(zip(*part))
    np.testing.assert_allclose(sample_logits(logits, grid, box, part_box), expected[1:, 1:, 1:], atol=1e-5)


@given(sizes_zyx(12), boxes, st.sampled_from((1, 2, 5)), st.integers(0, 9), st.sampled_from((0.0, 0.7, -0.7)))
def test_pasting_keeps_all_that_lies_above_the_threshold(size_zyx, box, n, seed, threshold):
    grid = Grid(size_zyx, affine((0.8, 1, 2.5)))
    logits = torch.from_numpy(noise((n, n, n), seed)) - 0.5
    whole = np.zeros(size_zyx, dtype=bool)
    region = box.image_box(grid)
    if region is not None:
        whole[box_slices(region)] = (sample_logits(logits, grid, box) > threshold).numpy()
    pasted = np.zeros(size_zyx, dtype=bool)
    mask, found = paste_logits(logits, grid, box, threshold=threshold)
    if found is not None:
        pasted[box_slices(found)] = mask
    else:
        assert mask.shape == (0, 0, 0)
    np.testing.assert_array_equal(pasted, whole)


@given(sizes_zyx(12), boxes, st.sampled_from((1, 2, 5)), st.integers(0, 9))
def test_logits_are_interpolated_alike_where_a_gpu_pastes(size_zyx, box, n, seed):
    grid = Grid(size_zyx, affine((0.8, 1, 2.5)))
    logits = torch.from_numpy(noise((n, n, n), seed)) - 0.5
    region = box.image_box(grid)
    if region is not None:
        found = _applied_on_device(logits, _logit_taps(n, grid, box, region))
        np.testing.assert_allclose(found, sample_logits(logits, grid, box), atol=1e-5)


def test_pasting_small_objects_touches_little_of_the_image():
    grid = Grid((128, 128, 128), np.eye(4))
    mask, _ = paste_logits(ball_logits(64, 0.05), grid, CropBox((63.5, 63.5, 63.5), 1))
    assert mask.any()
    assert max(mask.shape) <= 18
    tight = bounding_box(mask)
    assert min(tight[0]) > 0, "a margin is left around the object"
    assert paste_logits(ball_logits(64, -1), grid, CropBox((63.5, 63.5, 63.5), 1))[1] is None
    assert paste_logits(ball_logits(64, 0.4), grid, CropBox((63.5, 999, 63.5), 1))[1] is None


def test_pasting_within_a_region():
    grid, box = Grid((32, 32, 32), np.eye(4)), CropBox((15.5, 15.5, 15.5), 1, size=32)
    mask, found = paste_logits(ball_logits(16, 0.4), grid, box)
    region = ((10, -5, 12), (14, 99, 15))
    part, part_box = paste_logits(ball_logits(16, 0.4), grid, box, region_zyx=region)
    assert part_box == ((10, found[0][1], 12), (14, found[1][1], 15))
    whole = np.zeros(grid.size_zyx, dtype=bool)
    whole[box_slices(found)] = mask
    np.testing.assert_array_equal(part, whole[box_slices(part_box)])
    nowhere = ((0, 0, 0), (1, 1, 1))
    assert paste_logits(ball_logits(16, 0.4), grid, box, region_zyx=nowhere)[1] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_precision_and_with_gradients(dtype):
    logits = ball_logits(16, 0.3).to(dtype).requires_grad_()
    mask, _ = paste_logits(logits, ISOTROPIC, CropBox((9, 9, 9), 1, size=16))
    expected = ball_logits(16, 0.3).to(dtype).float()
    assert mask.sum() == paste_logits(expected, ISOTROPIC, CropBox((9, 9, 9), 1, size=16))[0].sum() > 0


def test_a_pasted_ball_has_its_volume():
    grid = Grid((60, 86, 86), affine((0.7, 0.7, 1)))
    mask, _ = paste_logits(ball_logits(32, 0.35), grid, CropBox((29.6, 42.4, 42.7), 1.5, size=32))
    radius_mm = 0.35 * 48
    assert mask.sum() * 0.49 == pytest.approx(4 / 3 * np.pi * radius_mm**3, rel=0.02)


# Masks as prompts


@given(sizes_zyx(7), boxes, st.integers(1, 8), st.integers(0, 9))
def test_shares_are_the_overlap_with_the_masks_voxels(size_zyx, box, size, seed):
    grid = Grid(size_zyx, affine((0.8, 1, 2.5)))
    mask = noise(size_zyx, seed) > 0.3
    share = mask_to_crop(mask, grid, box, size)
    assert share.shape == (size, size, size)
    assert share.dtype == torch.float32
    edges = box.points_from_crop(np.linspace(-0.5, box.size - 0.5, size + 1)[:, None].repeat(3, 1), grid).T
    weights = []
    for n, e in zip(size_zyx, edges):
        low, high = np.maximum(e[:-1, None], np.arange(n) - 0.5), np.minimum(e[1:, None], np.arange(n) + 0.5)
        weights.append(np.maximum(0, high - low) / (e[1:, None] - e[:-1, None]))
    np.testing.assert_allclose(share, np.einsum("az,by,cx,zyx->abc", *weights, mask.astype(float)), atol=1e-5)


def test_a_mask_survives_the_way_to_the_crop_and_back():
    grid = Grid((60, 86, 86), affine((0.7, 0.7, 1)))
    box = CropBox((29.6, 42.4, 42.7), 1.5, size=32)
    part, found = paste_logits(ball_logits(32, 0.35), grid, box)
    mask = np.zeros(grid.size_zyx, dtype=bool)
    mask[box_slices(found)] = part
    share = mask_to_crop(mask, grid, box, size=32)
    agreement = (share > 0.5) == (ball_logits(32, 0.35) > 0)
    assert agreement.float().mean() > 0.995
    assert float(share.sum()) * 1.5**3 == pytest.approx(mask.sum() * 0.49, rel=1e-5)


def test_an_empty_mask_has_no_share():
    share = mask_to_crop(np.zeros((5, 5, 5), dtype=bool), Grid((5, 5, 5), np.eye(4)), CropBox((2, 2, 2), 1, 8), size=4)
    assert share.shape == (4, 4, 4)
    assert not share.any()


# On a device


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.float64, ">i2"])
@pytest.mark.parametrize("name", GRIDS)
def test_a_crop_made_on_a_device_is_that_of_the_array(name, dtype):
    grid = GRIDS[name]
    voxels = (100 * noise(grid.size_zyx) + 200).clip(0, 255).astype(dtype)[::-1]
    held = held_on(torch.device("cpu"), voxels)
    assert held.dtype == (torch.int16 if np.dtype(dtype).itemsize < 3 and dtype != np.uint16 else torch.float32)
    for box in (CropBox((9.5, 11.5, 13.5), 0.4, 8), CropBox((3, 20, 1), 3.1, 7), CropBox((2, 2, 99), 1, 6)):
        for found, expected in zip(extract_crop(held, grid, box), extract_crop(voxels, grid, box)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
