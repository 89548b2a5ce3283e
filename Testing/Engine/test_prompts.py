"""Prompts in RAS millimetres and as canonical voxel indices, on a scan stored with flipped, permuted axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from famsam.errors import PromptError
from famsam.model.prompt_maps import BOX_LOWER, BOX_UPPER, NEGATIVE, POSITIVE
from famsam.prompts import BoxPrompt, PointPrompt, canonical_prompts, prompt_from_dict
from famsam.volume import Volume
from grids import affine

# Index x runs to the left in steps of 2 mm, y up in steps of 3, z to the back in steps of 1.
RAS_FROM_IJK = np.array([[-2.0, 0, 0, 50], [0, 0, -1, 40], [0, 3, 0, -20], [0, 0, 0, 1]])
SCAN = Volume(np.arange(6000, dtype=np.float32).reshape(30, 20, 10), RAS_FROM_IJK)


def test_prompts_become_indices_of_the_canonical_axes():
    point, box = PointPrompt.at((46, 37, -11), False, SCAN), BoxPrompt.between((34, 20, -8), (42, 30, 7), SCAN)
    given = canonical_prompts((PointPrompt.at((50, 40, -20), True, SCAN), point, box), SCAN)
    assert given.labels == (POSITIVE, NEGATIVE, BOX_LOWER, BOX_UPPER)
    # superior from -20 in steps of 3, anterior from 11 in steps of 1, right from 32 in steps of 2
    expected = [[0, 29, 9], [3, 26, 7], [4, 9, 1], [9, 19, 5]]
    np.testing.assert_allclose(given.points_zyx, expected, atol=1e-9)
    frame = SCAN.canonical
    np.testing.assert_allclose(frame.grid.ras_from_zyx_points(given.points_zyx[1]), point.ras_mm)


def test_a_box_ends_where_the_scan_ends():
    given = canonical_prompts((BoxPrompt.between((-500, -500, -500), (500, 500, 500), SCAN),), SCAN)
    np.testing.assert_allclose(given.points_zyx, [[0, 0, 0], [19, 29, 9]], atol=1e-9)


def tilted(degrees):
    """A scan of 40 voxels of 1 mm a side, turned about the head-foot axis."""
    matrix = affine(angles_rad=(0, 0, np.deg2rad(degrees)))
    return Volume(np.arange(40**3, dtype=np.float32).reshape(40, 40, 40), matrix)


@pytest.mark.parametrize("degrees", [0, 20, 45, 60, 110, 250])
def test_a_box_on_a_tilted_scan_holds_all_of_what_was_given(degrees):
    scan = tilted(degrees)
    lower, upper = (scan.grid.ras_from_zyx_points((20, 20, 20)) + side for side in ([-5, -6, -7], [5, 6, 7]))
    box = BoxPrompt.between(lower, upper, scan)
    sine, cosine = np.abs([np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))])
    half = np.array([7, 5 * sine + 6 * cosine, 5 * cosine + 6 * sine])
    if degrees in (60, 110, 250):  # the scan's x axis is the one closest to anterior
        half = half[[0, 2, 1]]
    np.testing.assert_allclose(np.ptp(canonical_prompts((box,), scan).points_zyx, axis=0), 2 * half, atol=1e-9)
    for corners in itertools.product(*zip(lower, upper)):
        opposite = lower + upper - corners
        np.testing.assert_allclose(BoxPrompt.between(corners, opposite, scan).lower_ras_mm, box.lower_ras_mm)
    assert prompt_from_dict(box.to_dict(), scan) == box


@pytest.mark.parametrize("degrees", range(0, 90, 7))
def test_the_faces_of_a_scan_belong_to_it_whatever_way_numbers_are_rounded(degrees):
    scan = tilted(degrees)
    for face, axis in itertools.product((-0.5, 39.5), range(3)):
        at_zyx = np.array([10.3, 20.1, 30.7])
        at_zyx[axis] = face
        PointPrompt.at(scan.grid.ras_from_zyx_points(at_zyx), True, scan)
        with pytest.raises(PromptError, match="inside the image"):
            at_zyx[axis] *= 1.0001
            PointPrompt.at(scan.grid.ras_from_zyx_points(at_zyx), True, scan)


def test_a_box_on_a_scan_along_the_axes_keeps_its_numbers():
    box = BoxPrompt.between((34.1, 30, -8), (42, 20, 7.3), SCAN)
    assert box == BoxPrompt((34.1, 20, -8), (42, 30, 7.3))


@pytest.mark.parametrize("degrees", [0, 20, 45, 60])
def test_a_box_along_the_scan_is_taken_as_it_is(degrees):
    scan = tilted(degrees)
    for first, second in (((9, 5, 12), (31, 35, 28)), ((9, 35, 12), (31, 5, 28)), ((31, 35, 12), (9, 5, 28))):
        corners = scan.canonical.grid.ras_from_zyx_points([first, second])
        box = BoxPrompt.between(*corners, scan, along_scan=True)
        expected = [(9, 5, 12), (31, 35, 28)]
        np.testing.assert_allclose(canonical_prompts((box,), scan).points_zyx, expected, atol=1e-9)
        assert prompt_from_dict(box.to_dict(), scan) == box


@pytest.mark.parametrize(
    "prompt", [PointPrompt.at((46, 37, -11), True, SCAN), BoxPrompt.between((34, 20, -8), (42, 30, 7), SCAN)]
)
def test_prompts_come_back_from_json(prompt):
    assert prompt_from_dict(prompt.to_dict(), SCAN) == prompt


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: PointPrompt.at((52, 30, 0), True, SCAN), "inside the image"),
        (lambda: PointPrompt.at((40, float("nan"), 0), True, SCAN), "finite"),
        (lambda: PointPrompt.at("here", True, SCAN), "three numbers"),
        (lambda: PointPrompt.at((10**400, 0, 0), True, SCAN), "too large"),
        (lambda: BoxPrompt.between((40, 30, 0), (40, 35, 9), SCAN), "flat in no direction"),
        (lambda: BoxPrompt.between((40, 40, 0), (50, 50, 9), tilted(45), along_scan=True), "flat in no direction"),
        (lambda: BoxPrompt.between((60, 30, 0), (70, 35, 9), SCAN), "overlaps the image"),
        (lambda: prompt_from_dict({"type": "scribble"}, SCAN), '"point" or "box"'),
    ],
)
def test_what_does_not_fit_is_refused(make, expected):
    with pytest.raises(PromptError, match=expected):
        make()
