"""Grids as scanners make them: oblique, flipped, permuted, sheared and anisotropic; shared by the geometry tests."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def rotation(angles_rad: Sequence[float]) -> np.ndarray:
    """(3, 3) from three angles about the axes x, y, z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles_rad):
        turn = np.eye(3)
        j, k = (axis + 1) % 3, (axis + 2) % 3
        turn[j, j] = turn[k, k] = np.cos(angle)
        turn[j, k], turn[k, j] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def affine(
    spacing_mm: Sequence[float] = (1, 1, 1),
    origin_mm: Sequence[float] = (0, 0, 0),
    angles_rad: Sequence[float] = (0, 0, 0),
    permutation: Sequence[int] = (0, 1, 2),
    signs: Sequence[int] = (1, 1, 1),
    shear: float = 0.0,
) -> np.ndarray:
    """(4, 4) ras_from_ijk; ``shear`` moves slices by that share of their distance along y, as a tilted gantry does."""
    axes = np.eye(3)[:, list(permutation)] * signs
    axes[:, 2] += shear * axes[:, 1]
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(angles_rad) @ axes * spacing_mm
    matrix[:3, 3] = origin_mm
    return matrix


def affines(shear: bool = True) -> Any:
    """Hypothesis: any scanner's ras_from_ijk, spacings 0.3 to 7.5 mm, any storage order, rotation and gantry tilt."""
    angle = st.floats(-np.pi, np.pi)
    sign = st.sampled_from((-1, 1))
    return st.builds(
        affine,
        spacing_mm=st.tuples(*[st.floats(0.3, 7.5)] * 3),
        origin_mm=st.tuples(*[st.floats(-300, 300)] * 3),
        angles_rad=st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(angle, angle, angle)),
        permutation=st.permutations((0, 1, 2)),
        signs=st.tuples(sign, sign, sign),
        shear=st.sampled_from((0.0, 0.27) if shear else (0.0,)),
    )


def sizes_zyx(largest: int = 6) -> Any:
    """Hypothesis: sizes from a single voxel on, all axes different enough to notice a mix-up."""
    return st.tuples(st.integers(1, largest), st.integers(1, largest + 1), st.integers(2, largest + 2))


def masks(size_zyx: Sequence[int]) -> Any:
    """Hypothesis: bool arrays of that size, among them empty and full ones."""
    return arrays(bool, tuple(size_zyx), elements=st.booleans(), fill=st.booleans())
