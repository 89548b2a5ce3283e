"""Which part of a scan the model looks at, and how closely: the choice of crops.

A view is a ``CropBox`` with a spacing from a fixed ladder and a centre on a coarse lattice, so that clicks close to one
another look through the same view and share its embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Tuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError
from .geometry import Grid
from .resample import CropBox

FloatArray = NDArray[np.float64]

THINNEST_VOXELS = 4
"""So many voxels of a view that shows the whole scan any axis of the scan should span."""


@dataclass(frozen=True)
class ViewOptions:
    """How views are chosen; lengths of objects are shares of the view's edge."""

    first_spacing_mm: float = 1.5
    """Spacing of the first look at an unknown structure, and the origin of the ladder."""
    first_factors: Tuple[float, ...] = (1.0, 2**-1.5, 2.0)
    """The first looks' spacings over ``first_spacing_mm``."""
    ladder_ratio: float = math.sqrt(2.0)
    """Ratio of neighbouring spacings."""
    wanted_share: float = 0.45
    """How much of the view's edge an object should span when a view is made for it."""
    smallest_share: float = 0.25
    """An object that spans less is looked at more closely."""
    border_share: float = 0.03
    """An object this close to a face of the view is taken to go on behind it."""
    lattice_share: float = 0.125
    """Centres lie on a lattice of this share of the view's edge."""
    finest_voxels: float = 0.25
    """No view is finer than this share of the scan's median voxel spacing: below 1, what spans few voxels is enlarged
    to the size that the model has learnt to see."""

    def __post_init__(self) -> None:
        if not 0 < self.smallest_share < self.wanted_share < 1 or self.ladder_ratio <= 1:
            raise ConfigError("Expected 0 < smallest_share < wanted_share < 1 and a ladder_ratio above 1.")


class ViewChooser:
    """Views of one scan.

    Args:
        grid: the scan's canonical grid.
        options: see ``ViewOptions``.
        fixed_spacing_mm: the only spacing a model takes, or None.
    """

    def __init__(self, grid: Grid, options: ViewOptions, fixed_spacing_mm: Optional[float], size: int) -> None:
        self.grid, self.options, self.fixed, self.size = grid, options, fixed_spacing_mm, size
        self.extent_mm = np.asarray(grid.size_zyx) * grid.spacing_zyx_mm
        self.voxel_mm = float(np.median(grid.spacing_zyx_mm))
        self.finest_mm = self._on_ladder(options.finest_voxels * self.voxel_mm, math.ceil)
        self.coarsest_mm = max(self.finest_mm, self._on_ladder(float(self.extent_mm.max()) / (0.9 * size), math.ceil))

    def first(self, point_zyx: ArrayLike) -> List[CropBox]:
        """The first looks at whatever is at a point (canonical index), all different."""
        spacings = [self.options.first_spacing_mm * factor for factor in self.options.first_factors]
        return list(dict.fromkeys(self.around(np.asarray(point_zyx), spacing, point_zyx) for spacing in spacings))

    def for_object(self, low_zyx: FloatArray, high_zyx: FloatArray, must_see_zyx: ArrayLike) -> CropBox:
        """A view in which the object in an index box spans the wanted share; ``must_see_zyx`` is well inside."""
        extent_mm = float(((high_zyx - low_zyx) * self.grid.spacing_zyx_mm).max())
        spacing = extent_mm / (self.options.wanted_share * self.size)
        return self.around((low_zyx + high_zyx - 1) / 2, spacing, must_see_zyx)

    def around(self, centre_zyx: FloatArray, spacing_mm: float, must_see_zyx: ArrayLike) -> CropBox:
        """A view of about this centre and spacing.

        Along an axis that the view covers wholly it is centred on the scan; elsewhere the centre lies on the lattice,
        pulled towards ``must_see_zyx`` and back into the scan.
        """
        spacing = self.fixed or self._on_ladder(min(max(spacing_mm, self.finest_mm), self.coarsest_mm), round)
        voxel_mm = self.grid.spacing_zyx_mm
        reach_mm = self.size * spacing / 2
        centre_mm = np.asarray(centre_zyx, dtype=float) * voxel_mm
        must_mm = np.asarray(must_see_zyx, dtype=float) * voxel_mm
        lattice_mm = self.options.lattice_share * self.size * spacing
        centre_mm = np.clip(centre_mm, must_mm - 0.75 * reach_mm, must_mm + 0.75 * reach_mm)
        centre_mm = np.round(centre_mm / lattice_mm) * lattice_mm
        middle_mm = (np.asarray(self.grid.size_zyx) - 1) / 2 * voxel_mm
        slack_mm = np.maximum(self.extent_mm / 2 - reach_mm, 0.0)
        centre_mm = np.clip(centre_mm, middle_mm - slack_mm, middle_mm + slack_mm)
        return CropBox(tuple(float(c) for c in centre_mm / voxel_mm), float(spacing), self.size)  # type: ignore[arg-type]

    def better(self, view: CropBox, low: FloatArray, high: FloatArray, must_see_zyx: ArrayLike) -> Optional[CropBox]:
        """Another view for an object that spans ``low`` to ``high`` of this view, or None if this one will do.

        Args:
            low, high: bounds along z, y, x as shares (0..1) of the view's edge.
        """
        if self.fixed:
            return None
        share = float((high - low).max())
        scale, offset = view.index_from_crop(self.grid)
        low_zyx, high_zyx = (offset + scale * (edge * view.size - 0.5) for edge in (low, high))
        image_high = np.asarray(self.grid.size_zyx)
        beyond_low = (low < self.options.border_share) & (low_zyx > 0.5)
        beyond_high = (high > 1 - self.options.border_share) & (high_zyx < image_high - 0.5)
        if beyond_low.any() or beyond_high.any():
            if view.spacing_mm >= self.coarsest_mm * 0.99:
                return None
            # It goes on for an unknown length: see half as much again, shifted to where it goes.
            shift = 0.25 * view.size * scale * (beyond_high.astype(float) - beyond_low.astype(float))
            centre = (low_zyx + high_zyx) / 2 + shift
            return self.around(centre, view.spacing_mm * self.options.ladder_ratio**2, must_see_zyx)
        if share < self.options.smallest_share and view.spacing_mm > self.finest_mm * 1.01:
            return self.for_object(low_zyx, high_zyx, must_see_zyx)
        return None

    def fits(self, view: CropBox, low_zyx: FloatArray, high_zyx: FloatArray) -> bool:
        """True if an index box lies in the view, with a margin wherever the scan goes on, and is not tiny in it."""
        scale, offset = view.index_from_crop(self.grid)
        low, high = ((edge - offset + 0.5 * scale) / scale / view.size for edge in (low_zyx - 0.5, high_zyx - 0.5))
        margin = self.options.border_share
        at_start, at_end = low_zyx <= 0, high_zyx >= np.asarray(self.grid.size_zyx)
        inside = ((low >= margin) | at_start).all() and ((high <= 1 - margin) | at_end).all()
        share = float((high - low).max())
        close_enough = share >= self.options.smallest_share or view.spacing_mm <= self.finest_mm * 1.01
        return bool(inside and (close_enough or self.fixed))

    def _on_ladder(self, spacing_mm: float, rounding) -> float:  # type: ignore[no-untyped-def]
        ratio, first = self.options.ladder_ratio, self.options.first_spacing_mm
        return float(first * ratio ** rounding(round(math.log(spacing_mm / first, ratio), 6)))


def thickened(grid: Grid, size: int) -> Grid:
    """The grid, its spacing larger along axes on which the scan is too thin to be seen by views of ``size`` voxels.

    A model that only knows volumes makes little of a plane of voxels in nothing; of a slab it makes a section.
    """
    extent_mm = np.asarray(grid.size_zyx) * grid.spacing_zyx_mm
    factors_zyx = np.maximum(1.0, THINNEST_VOXELS * extent_mm.max() / size / extent_mm)
    return Grid(grid.size_zyx, grid.ras_from_ijk @ np.diag([*factors_zyx[::-1], 1.0]))
