"""The simulated user: where somebody who knows the truth clicks next.

The first click goes to the centre of the target, every further one to the centre of the largest error region. The
centre of a region is its voxel farthest from the region's outside, in mm; the outside of the scan counts as outside.
Everything is deterministic: of several such voxels the one nearest to the middle of them is taken, of several regions
of one size the one that comes first in (z, y, x) order. A user whose hand is unsteady clicks on any voxel that is at
least half as far from the outside, drawn at random.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

import cc3d
import edt
import numpy as np

from ..errors import DatasetError
from ..geometry import bounding_box, box_slices

MISSING, EXCESS = 1, 2
UNSTEADY_DEPTH = 0.5
"""An unsteady hand hits voxels at least so deep in a region, as a share of its deepest one's."""
Hand = Optional[np.random.Generator]
"""Where an unsteady hand draws its clicks from, which moves on with each; None: the hand is steady."""


class Click(NamedTuple):
    """A click on a voxel."""

    zyx: Tuple[int, int, int]
    """The voxel's index."""
    positive: bool
    """True: this belongs to the target. False: it does not."""


def first_click(truth_zyx: np.ndarray, spacing_zyx_mm: Tuple[float, float, float], hand: Hand = None) -> Click:
    """A positive click at the centre of the target.

    Args:
        truth_zyx: bool (z, y, x), the target; if it has several pieces, the thickest one is clicked.
        spacing_zyx_mm: voxel spacing along the three axes of the array.
        hand: the user's, see ``Hand``.

    Raises:
        DatasetError: the target is empty.
    """
    box = bounding_box(truth_zyx)
    if box is None:
        raise DatasetError("Expected a target of at least one voxel to click on, got an empty mask.")
    return Click(_offset(region_centre(truth_zyx[box_slices(box)], spacing_zyx_mm, hand), box[0]), positive=True)


def next_click(
    truth_zyx: np.ndarray, result_zyx: np.ndarray, spacing_zyx_mm: Tuple[float, float, float], hand: Hand = None
) -> Optional[Click]:
    """A click at the centre of the largest region where the result is wrong, or None if it is right everywhere.

    Error regions are the 26-connected components of the missing voxels (a positive click) and of the excess voxels
    (a negative click); the largest one is the one of largest volume.

    Args:
        truth_zyx: bool (z, y, x), the target.
        result_zyx: bool (z, y, x), the mask so far.
        spacing_zyx_mm: voxel spacing along the three axes of the array.
        hand: the user's, see ``Hand``.
    """
    box = bounding_box(truth_zyx ^ result_zyx)
    if box is None:
        return None
    truth, result = truth_zyx[box_slices(box)], result_zyx[box_slices(box)]
    errors = np.zeros(truth.shape, np.uint8)
    errors[truth & ~result] = MISSING
    errors[result & ~truth] = EXCESS
    regions = cc3d.connected_components(errors, connectivity=26)  # regions of different values stay apart
    statistics = cc3d.statistics(regions)
    largest = 1 + int(np.argmax(statistics["voxel_counts"][1:]))
    region_box = statistics["bounding_boxes"][largest]
    centre = region_centre(regions[region_box] == largest, spacing_zyx_mm, hand)
    centre = _offset(centre, tuple(axis.start for axis in region_box))
    return Click(_offset(centre, box[0]), positive=bool(errors[centre] == MISSING))


def region_centre(
    region_zyx: np.ndarray, spacing_zyx_mm: Tuple[float, float, float], hand: Hand = None
) -> Tuple[int, int, int]:
    """Index of the region's voxel that is farthest from its outside in mm, or what an unsteady hand hits instead; the
    array's border is outside, too.

    Args:
        region_zyx: bool (z, y, x) with at least one true voxel.
        spacing_zyx_mm: voxel spacing along the three axes of the array.
        hand: the user's, see ``Hand``.
    """
    spacing = np.asarray(spacing_zyx_mm, dtype=float)
    depth_mm = edt.edt(region_zyx, anisotropy=tuple(spacing.tolist()), black_border=True)
    if hand is not None:
        z, y, x = hand.choice(np.argwhere(depth_mm >= UNSTEADY_DEPTH * depth_mm.max())).tolist()
        return z, y, x
    deepest = np.argwhere(depth_mm >= depth_mm.max() * (1 - 1e-6))
    off_middle_mm = np.linalg.norm((deepest - deepest.mean(axis=0)) * spacing, axis=1)
    z, y, x = deepest[np.argmin(off_middle_mm.round(6))].tolist()
    return z, y, x


def _offset(index_zyx: Tuple[int, int, int], origin_zyx: Tuple[int, ...]) -> Tuple[int, int, int]:
    z, y, x = (index + origin for index, origin in zip(index_zyx, origin_zyx))
    return z, y, x
