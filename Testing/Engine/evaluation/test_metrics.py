from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from famsam.errors import VolumeError
from famsam.evaluation.metrics import (
    _surface,
    dice,
    hausdorff95_mm,
    iou,
    normalised_surface_distance,
    surface_scores,
)

SPACING = (1.0, 1.0, 1.0)


def box(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in ranges)] = True
    return mask


def elements(mask, spacing):
    """Positions in mm and areas of the surface elements, from the definition, corner by corner."""
    padded = np.pad(mask, 1).astype(int)
    positions, areas = [], []
    for corner in itertools.product(*(range(n + 1) for n in mask.shape)):
        cell = padded[tuple(slice(i, i + 2) for i in corner)]
        if 0 < cell.sum() < 8:
            steps = [np.take(cell, 1, axis).sum() - np.take(cell, 0, axis).sum() for axis in range(3)]
            faces = [math.prod(spacing) / step for step in spacing]
            positions.append(np.multiply(corner, spacing))
            areas.append(math.sqrt(sum((step * face / 4) ** 2 for step, face in zip(steps, faces))))
    return np.array(positions), np.array(areas)


def test_overlap_of_two_boxes():
    first, second = box((4, 4, 8), (0, 4), (0, 4), (0, 4)), box((4, 4, 8), (0, 4), (0, 4), (2, 6))
    assert dice(first, second) == pytest.approx(0.5)
    assert iou(first, second) == pytest.approx(1 / 3)


def test_conventions_for_empty_masks():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert (dice(empty, empty), iou(empty, empty)) == (1, 1)
    assert surface_scores(empty, empty, SPACING) == (1, 0)
    for first, second in ((empty, full), (full, empty)):
        assert (dice(first, second), iou(first, second)) == (0, 0)
        assert surface_scores(first, second, SPACING) == (0, math.inf)


def test_two_voxels_apart():
    first, second = box((3, 3, 9), (1, 2), (1, 2), (1, 2)), box((3, 3, 9), (1, 2), (1, 2), (6, 7))
    spacing = (1.0, 1.0, 2.0)  # the voxels are 10 mm apart: four corners of each are 8 mm from the other, four 10 mm
    assert normalised_surface_distance(first, second, spacing, 7.9) == 0
    assert normalised_surface_distance(first, second, spacing, 8.0) == pytest.approx(0.5)
    assert normalised_surface_distance(first, second, spacing, 10.0) == pytest.approx(1)
    assert hausdorff95_mm(first, second, spacing) == pytest.approx(10)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 1.2)])
def test_cube_shifted_by_three_voxels_equals_the_definition(spacing):
    first, second = box((6, 7, 12), (1, 5), (2, 6), (2, 6)), box((6, 7, 12), (1, 5), (2, 6), (5, 9))
    tolerance = 2.0
    (positions_a, areas_a), (positions_b, areas_b) = elements(first, spacing), elements(second, spacing)
    distances = np.linalg.norm(positions_a[:, None] - positions_b[None], axis=-1)
    to_b, to_a = distances.min(axis=1), distances.min(axis=0)
    near = areas_a[to_b <= tolerance].sum() + areas_b[to_a <= tolerance].sum()
    expected = near / (areas_a.sum() + areas_b.sum())
    assert 0.2 < expected < 0.9
    scores = surface_scores(first, second, spacing, tolerance)
    assert scores.nsd == pytest.approx(expected)
    assert scores == pytest.approx(surface_scores(second, first, spacing, tolerance))
    # both directions are alike here: the smallest distance that covers 95 % of the area
    covered = min(d for d in to_b if areas_a[to_b <= d + 1e-9].sum() >= 0.95 * areas_a.sum() - 1e-9)
    assert scores.hausdorff95_mm == pytest.approx(covered)


def test_shift_within_the_tolerance_is_forgiven():
    first, second = box((9, 9, 9), (2, 7), (2, 7), (2, 6)), box((9, 9, 9), (2, 7), (2, 7), (3, 7))
    assert normalised_surface_distance(first, second, (1, 1, 2.0), tolerance_mm=2.0) == pytest.approx(1)
    assert normalised_surface_distance(first, second, (1, 1, 2.1), tolerance_mm=2.0) < 0.9


def test_area_of_a_sphere():
    spacing = np.array((1.5, 1.0, 0.8))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (41, 61, 77)), indexing="ij"), axis=-1)
    ball = (((index - (20, 30, 38)) * spacing) ** 2).sum(axis=-1) < 25.0**2
    _, areas = _surface(ball, tuple(spacing))
    assert areas.sum() / (4 * math.pi * 25.0**2) == pytest.approx(1.04, abs=0.05)


def test_areas_of_planes_are_exact():
    spacing = (1.5, 1.0, 0.8)
    surface, areas = _surface(box((9, 9, 9), (0, 9), (0, 9), (0, 4)), spacing)
    face = np.argwhere(surface)
    inner = (face[:, 2] == 4) & (face[:, :2] > 0).all(axis=1) & (face[:, :2] < 9).all(axis=1)
    assert areas[inner] == pytest.approx(np.full(8 * 8, 1.5 * 1.0))

    _, y, x = np.indices((12, 12, 12))
    surface, areas = _surface(x + y < 12, SPACING)
    face = np.argwhere(surface)
    inner = (abs(face[:, 1] + face[:, 2] - 12.5) < 1) & (face[:, 0] == 6) & (face[:, 1:] > 1).all(axis=1)
    inner &= (face[:, 1:] < 11).all(axis=1)
    assert areas[inner].mean() * 2 == pytest.approx(math.sqrt(2))  # two elements a step of the staircase


def test_position_in_the_scan_does_not_matter():
    first, second = box((8, 9, 10), (0, 4), (2, 6), (2, 6)), box((8, 9, 10), (0, 4), (3, 7), (2, 8))
    padding = ((5, 1), (0, 7), (3, 0))
    moved = surface_scores(np.pad(first, padding), np.pad(second, padding), SPACING, 1.0)
    assert surface_scores(first, second, SPACING, 1.0) == pytest.approx(moved)


@pytest.mark.parametrize("result", [np.zeros((3, 3, 4), bool), np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3), bool)])
def test_masks_that_do_not_fit(result):
    for measure in (dice, iou, lambda a, b: surface_scores(a, b, SPACING)):
        with pytest.raises(VolumeError, match=r"Expected two boolean masks .* \(3, 3, 3\) and "):
            measure(np.zeros((3, 3, 3), bool), result)
