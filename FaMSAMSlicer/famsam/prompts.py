"""Prompts as a host gives them: points and boxes in RAS millimetres, checked against the scan they are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .errors import PromptError
from .model.prompt_maps import BOX_LOWER, BOX_UPPER, NEGATIVE, POSITIVE
from .segmenter import Prompts
from .volume import Volume

Point3 = Sequence[float]

_FLAT = 1e-6
"""A side shorter than this, in millimetres or voxels, is no side."""
_ROUNDING = 1e-7
"""So many voxels beyond the scan a click on one of its faces may seem to lie."""


@dataclass(frozen=True)
class PointPrompt:
    """A click."""

    ras_mm: Tuple[float, float, float]
    """Where, in RAS millimetres."""
    positive: bool
    """True to include what is there, False to exclude it."""

    @classmethod
    def at(cls, point_ras_mm: Point3, positive: bool, volume: Volume) -> PointPrompt:
        """A click on a scan.

        Raises:
            PromptError: it lies beside the scan, or is no point at all.
        """
        point = _coordinates(point_ras_mm)
        grid = volume.canonical.grid
        if not grid.contains_zyx(grid.zyx_from_ras_points([point])[0], margin=0.5 + _ROUNDING):
            low, high = _extent_ras_mm(volume)
            raise PromptError(
                f"Expected a click inside the image, which spans RAS {low} to {high} mm; got {point}. "
                "Click on the scan."
            )
        return cls(point, bool(positive))

    def to_dict(self) -> Dict[str, Any]:
        return {"type": "point", "ras_mm": list(self.ras_mm), "positive": self.positive}


@dataclass(frozen=True)
class BoxPrompt:
    """A box around the structure, along the scan's own axes."""

    lower_ras_mm: Tuple[float, float, float]
    upper_ras_mm: Tuple[float, float, float]
    """Two opposite corners, RAS millimetres. Only if the scan lies along the RAS axes do all coordinates grow."""

    @classmethod
    def between(
        cls, corner_ras_mm: Point3, opposite_ras_mm: Point3, volume: Volume, along_scan: bool = False
    ) -> BoxPrompt:
        """The smallest box on a scan that holds the one between two opposite corners, which may come in any order.

        Args:
            corner_ras_mm, opposite_ras_mm: the corners.
            volume: the scan.
            along_scan: the box between them lies along the scan's own axes, as drawn on the scan's slices, instead of
                along the RAS axes.

        Raises:
            PromptError: it does not overlap the scan, is flat, or has no corners at all.
        """
        given = np.array([_coordinates(corner_ras_mm), _coordinates(opposite_ras_mm)])
        corners = given if along_scan else np.sort(given, axis=0)
        grid = volume.canonical.grid
        seen = grid.zyx_from_ras_points(corners)
        sides = np.ptp(seen if along_scan else corners, axis=0)
        if sides.min() < _FLAT:
            raise PromptError(
                f"Expected two opposite corners of a box that is flat in no direction; got {_listed(given)}. Give two "
                "that differ in every coordinate."
            )
        if not along_scan:
            seen = grid.zyx_from_ras_points(np.stack(np.meshgrid(*corners.T), axis=-1).reshape(8, 3))
        lower, upper = seen.min(0), seen.max(0)
        if (upper < -0.5).any() or (lower > np.asarray(grid.size_zyx) - 0.5).any():
            low, high = _extent_ras_mm(volume)
            raise PromptError(
                f"Expected a box that overlaps the image, which spans RAS {low} to {high} mm; got {_listed(given)}."
            )
        if not np.allclose(np.ptp(grid.zyx_from_ras_points(corners), axis=0), upper - lower, rtol=0, atol=_FLAT):
            corners = grid.ras_from_zyx_points([lower, upper]).round(6)
        return cls(*(_coordinates(corner) for corner in corners))

    def to_dict(self) -> Dict[str, Any]:
        return {"type": "box", "lower_ras_mm": list(self.lower_ras_mm), "upper_ras_mm": list(self.upper_ras_mm)}


Prompt = Union[PointPrompt, BoxPrompt]


def prompt_from_dict(entry: Dict[str, Any], volume: Volume) -> Prompt:
    """What ``to_dict`` wrote.

    Raises:
        PromptError: it is of another type, or does not fit the scan.
        KeyError, TypeError: something is missing, or it is no dictionary.
    """
    if entry["type"] == "point":
        return PointPrompt.at(entry["ras_mm"], entry["positive"], volume)
    if entry["type"] == "box":
        return BoxPrompt.between(entry["lower_ras_mm"], entry["upper_ras_mm"], volume, along_scan=True)
    raise PromptError(f'Expected a prompt of type "point" or "box", got {entry["type"]!r}.')


def canonical_prompts(prompts: Sequence[Prompt], volume: Volume) -> Prompts:
    """RAS millimetres -> canonical voxel indices; a box is its lower and upper corner, within the scan."""
    grid = volume.canonical.grid
    points: List[NDArray[np.float64]] = []
    labels: List[int] = []
    for prompt in prompts:
        if isinstance(prompt, PointPrompt):
            points.append(grid.zyx_from_ras_points([prompt.ras_mm])[0])
            labels.append(POSITIVE if prompt.positive else NEGATIVE)
        else:
            corners = grid.zyx_from_ras_points([prompt.lower_ras_mm, prompt.upper_ras_mm])
            limit = np.asarray(grid.size_zyx) - 1
            points += [corners.min(0).clip(0, limit), corners.max(0).clip(0, limit)]
            labels += [BOX_LOWER, BOX_UPPER]
    return Prompts(np.stack(points), tuple(labels))


def _coordinates(point_ras_mm: Point3) -> Tuple[float, float, float]:
    try:
        r, a, s = (float(v) for v in point_ras_mm)
    except OverflowError as error:
        raise PromptError("Expected three numbers (R, A, S) in millimetres, got one that is too large.") from error
    except (TypeError, ValueError) as error:
        raise PromptError(f"Expected three numbers (R, A, S) in millimetres, got {point_ras_mm!r}.") from error
    if not np.isfinite([r, a, s]).all():
        raise PromptError(f"Expected finite coordinates (R, A, S) in millimetres, got {(r, a, s)}.")
    return r, a, s


def _listed(points_ras_mm: NDArray[np.float64]) -> str:
    return " and ".join(str(tuple(point)) for point in points_ras_mm.tolist())


def _extent_ras_mm(volume: Volume) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    corners = volume.grid.corners_ras_mm
    low, high = (tuple(round(float(v), 1) for v in bound) for bound in (corners.min(0), corners.max(0)))
    return low, high
