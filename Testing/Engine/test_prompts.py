"""Prompts in RAS millimetres and as canonical voxel indices, on a scan stored with flipped, permuted axes."""

from __future__ import annotations

import numpy as np
import pytest
from famsam.errors import PromptError
from famsam.model.prompt_maps import BOX_LOWER, BOX_UPPER, NEGATIVE, POSITIVE
from famsam.prompts import BoxPrompt, PointPrompt, canonical_prompts, prompt_from_dict
from famsam.volume import Volume

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
        (lambda: BoxPrompt.between((40, 30, 0), (36, 35, 9), SCAN), "inside out or flat"),
        (lambda: BoxPrompt.between((60, 30, 0), (70, 35, 9), SCAN), "overlaps the image"),
        (lambda: prompt_from_dict({"type": "scribble"}, SCAN), '"point" or "box"'),
    ],
)
def test_what_does_not_fit_is_refused(make, expected):
    with pytest.raises(PromptError, match=expected):
        make()
