"""How well a mask agrees with the truth: overlap and distance between surfaces.

All functions take boolean masks of one shape, axes (z, y, x), raise a VolumeError for anything else, and look at the
whole image. Conventions for empty
masks: two empty masks agree perfectly (Dice, IoU and NSD 1, Hausdorff 0 mm); if only one of them is empty, the
overlap and the NSD are 0 and the Hausdorff distance is infinite.

Surfaces live on the lattice of voxel corners, as in S. Nikolov et al., "Clinically Applicable Segmentation of Head
and Neck Anatomy for Radiotherapy: Deep Learning Algorithm Development and Validation Study", J. Med. Internet Res.
2021;23(7):e26151 (arXiv:1809.04430, 2018), which defines the surface Dice at a tolerance, called normalised surface
distance (NSD) here: a corner whose eight voxels are neither all inside nor all outside carries a surface element.
That paper takes an element's area from a table of triangulated cubes; here it is the length of the area vector

    1/4 (g_z s_y s_x,  g_y s_z s_x,  g_x s_z s_y)   with g = number of voxels inside on the upper minus the lower side,

for spacings s in mm. Summed over a plane along the grid or diagonal to it that is exact, and over a sphere's staircase
of voxels 8 % too much, about the same everywhere, so that shares of a surface hold. The border of the scan counts as a
border of the mask.
"""

from __future__ import annotations

from typing import NamedTuple, Tuple

import edt
import numpy as np

from ..errors import VolumeError
from ..geometry import bounding_box, box_slices, union


class SurfaceScores(NamedTuple):
    """Agreement of two surfaces."""

    nsd: float
    """Normalised surface distance, 0..1: the share of both surfaces that lies within the tolerance of the other."""
    hausdorff95_mm: float
    """The larger of the two directed 95 % Hausdorff distances, in mm, weighted by area; may be infinite."""


def dice(truth_zyx: np.ndarray, result_zyx: np.ndarray) -> float:
    """Dice coefficient 2 |A ∩ B| / (|A| + |B|) of two boolean masks, 0..1; 1 if both are empty."""
    overlap, truth, result = _counts(truth_zyx, result_zyx)
    return 2.0 * overlap / (truth + result) if truth + result else 1.0


def iou(truth_zyx: np.ndarray, result_zyx: np.ndarray) -> float:
    """Intersection over union |A ∩ B| / |A ∪ B| of two boolean masks, 0..1; 1 if both are empty."""
    overlap, truth, result = _counts(truth_zyx, result_zyx)
    return overlap / (truth + result - overlap) if truth + result else 1.0


def normalised_surface_distance(
    truth_zyx: np.ndarray,
    result_zyx: np.ndarray,
    spacing_zyx_mm: Tuple[float, float, float],
    tolerance_mm: float = 2.0,
) -> float:
    """The share of both surfaces within ``tolerance_mm`` of the other one, 0..1 (see the head of this file)."""
    return surface_scores(truth_zyx, result_zyx, spacing_zyx_mm, tolerance_mm).nsd


def hausdorff95_mm(truth_zyx: np.ndarray, result_zyx: np.ndarray, spacing_zyx_mm: Tuple[float, float, float]) -> float:
    """The larger directed 95 % Hausdorff distance between the surfaces in mm; infinite if one mask is empty."""
    return surface_scores(truth_zyx, result_zyx, spacing_zyx_mm).hausdorff95_mm


def surface_scores(
    truth_zyx: np.ndarray,
    result_zyx: np.ndarray,
    spacing_zyx_mm: Tuple[float, float, float],
    tolerance_mm: float = 2.0,
) -> SurfaceScores:
    """Both surface measures of two boolean (z, y, x) masks from one pair of distance transforms.

    Only the box that holds both masks is looked at, so that a small structure in a large scan costs little.
    """
    _require_same_shape(truth_zyx, result_zyx)
    box = union(bounding_box(truth_zyx), bounding_box(result_zyx))
    if box is None:
        return SurfaceScores(1.0, 0.0)
    truth, result = truth_zyx[box_slices(box)], result_zyx[box_slices(box)]
    if not truth.any() or not result.any():
        return SurfaceScores(0.0, float("inf"))

    truth_surface, truth_areas = _surface(truth, spacing_zyx_mm)
    result_surface, result_areas = _surface(result, spacing_zyx_mm)
    to_truth = _distance_mm(truth_surface, spacing_zyx_mm)[result_surface]
    to_result = _distance_mm(result_surface, spacing_zyx_mm)[truth_surface]

    # distances of whole voxels come out of a square root: allow for its rounding at exactly the tolerance
    reach_mm = tolerance_mm * (1 + 1e-5)
    near = truth_areas[to_result <= reach_mm].sum() + result_areas[to_truth <= reach_mm].sum()
    return SurfaceScores(
        nsd=float(near / (truth_areas.sum() + result_areas.sum())),
        hausdorff95_mm=max(_percentile95(to_result, truth_areas), _percentile95(to_truth, result_areas)),
    )


def _counts(truth_zyx: np.ndarray, result_zyx: np.ndarray) -> Tuple[int, int, int]:
    _require_same_shape(truth_zyx, result_zyx)
    count = np.count_nonzero
    return int(count(truth_zyx & result_zyx)), int(count(truth_zyx)), int(count(result_zyx))


def _require_same_shape(truth_zyx: np.ndarray, result_zyx: np.ndarray) -> None:
    for mask in (truth_zyx, result_zyx):
        if mask.dtype != np.bool_ or mask.ndim != 3 or mask.shape != truth_zyx.shape:
            raise VolumeError(
                "Expected two boolean masks of one (z, y, x) shape, got "
                f"{truth_zyx.dtype} {truth_zyx.shape} and {result_zyx.dtype} {result_zyx.shape}."
            )


def _surface(mask_zyx: np.ndarray, spacing_zyx_mm: Tuple[float, float, float]) -> Tuple[np.ndarray, np.ndarray]:
    """(Z, Y, X) mask -> (Z+1, Y+1, X+1) bool: which corners carry a surface element, and the (N,) areas in mm²."""
    voxels = np.pad(mask_zyx, 1).view(np.int8)
    sum_x, step_x = voxels[..., 1:] + voxels[..., :-1], voxels[..., 1:] - voxels[..., :-1]
    sum_yx, step_y = sum_x[:, 1:] + sum_x[:, :-1], sum_x[:, 1:] - sum_x[:, :-1]
    step_x = step_x[:, 1:] + step_x[:, :-1]
    inside = sum_yx[1:] + sum_yx[:-1]
    surface = (inside > 0) & (inside < 8)
    spacing_z, spacing_y, spacing_x = spacing_zyx_mm
    squares = np.zeros(np.count_nonzero(surface))
    for steps, face_mm2 in (
        (sum_yx[1:] - sum_yx[:-1], spacing_y * spacing_x),
        (step_y[1:] + step_y[:-1], spacing_z * spacing_x),
        (step_x[1:] + step_x[:-1], spacing_z * spacing_y),
    ):
        squares += (steps[surface] * (face_mm2 / 4)) ** 2
    return surface, np.sqrt(squares)


def _distance_mm(surface: np.ndarray, spacing_zyx_mm: Tuple[float, float, float]) -> np.ndarray:
    """Distance of every corner to the nearest surface element, float32, in mm."""
    return edt.edt(~surface, anisotropy=tuple(spacing_zyx_mm), black_border=False)


def _percentile95(distances_mm: np.ndarray, areas: np.ndarray) -> float:
    """The smallest distance below which at least 95 % of the area lies."""
    order = np.argsort(distances_mm)
    covered = np.cumsum(areas[order])
    return float(distances_mm[order][np.searchsorted(covered, 0.95 * covered[-1])])
