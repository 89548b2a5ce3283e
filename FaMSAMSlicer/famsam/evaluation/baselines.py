"""Classical methods that segment from the same clicks: what a learned one has to beat.

Both work in boxes of 96 mm around the clicks, as the background of such methods has to begin somewhere, and neither
knows anything but the scan's intensities.
"""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import SimpleITK as sitk

from ..errors import MissingDependencyError
from ..geometry import Grid
from ..volume import Volume
from .segmenters import ClickSegmenter

BOX_EDGE_MM = 96.0
BALL_RADIUS_MM = 3.0

ClickZyx = Tuple[Tuple[int, int, int], bool]


class GrowCut:
    """Slicer's "Grow from seeds" (``vtkImageGrowCutSegment``, from the package slicer-core).

    Every click is a seed ball. The background also has seeds on the faces of the box around all clicks; a face at the
    scan's own border counts, except along axes of fewer than ten voxels, where it would leave no room.

    L. Zhu, I. Kolesov, Y. Gao, R. Kikinis, A. Tannenbaum, "An Effective Interactive Medical Image Segmentation Method
    using Fast GrowCut", MICCAI Workshop on Interactive Medical Image Computing, 2014.

    Raises:
        MissingDependencyError: slicer-core is not installed.
    """

    name = "GrowCut"
    _FOREGROUND, _BACKGROUND = 1, 2
    _FEWEST_VOXELS_BETWEEN_FACES = 10

    def __init__(self) -> None:
        try:
            # by name: the engine itself holds no import of Slicer or VTK
            self._grow_cut = importlib.import_module("slicer_core.vtkSlicerSegmentationsModuleLogic")
            self._data_model = importlib.import_module("vtkmodules.vtkCommonDataModel")
            self._numpy_support = importlib.import_module("vtkmodules.util.numpy_support")
        except ImportError as error:
            raise MissingDependencyError(
                "GrowCut needs the package slicer-core (Python 3.10 and newer), which is not installed: "
                f'pip install "famsam[peers]" ({error})'
            ) from error

    def start(self, volume: Volume) -> None:
        """See ClickSegmenter."""
        self._volume = volume
        self._clicks: List[ClickZyx] = []

    def click(self, point_ras_mm: Tuple[float, float, float], positive: bool) -> np.ndarray:
        """See ClickSegmenter."""
        grid = self._volume.grid
        self._clicks.append((_voxel(grid, point_ras_mm), positive))
        box = _box_around(grid, [zyx for zyx, _ in self._clicks])
        seeds_zyx = np.zeros(grid.size_zyx, np.uint8)
        self._seed_faces(seeds_zyx[box])
        for zyx, is_positive in self._clicks:
            _paint_ball(seeds_zyx, grid, zyx, self._FOREGROUND if is_positive else self._BACKGROUND)
        mask_zyx = np.zeros(grid.size_zyx, bool)
        mask_zyx[box] = self._grow(self._volume.voxels_zyx[box], seeds_zyx[box]) == self._FOREGROUND
        return mask_zyx

    def _seed_faces(self, seeds_zyx: np.ndarray) -> None:
        for axis in range(3):
            if seeds_zyx.shape[axis] >= self._FEWEST_VOXELS_BETWEEN_FACES:
                faces = np.moveaxis(seeds_zyx, axis, 0)
                faces[0] = faces[-1] = self._BACKGROUND

    def _grow(self, voxels_zyx: np.ndarray, seeds_zyx: np.ndarray) -> np.ndarray:
        """Intensities and seeds (0 = none) of a box -> a label for every voxel, uint8 (z, y, x)."""
        # one more voxel on each side: the filter lets nothing grow from or into an image's outermost voxels
        grow_cut = self._grow_cut.vtkImageGrowCutSegment()
        grow_cut.SetIntensityVolume(self._vtk_image(np.pad(voxels_zyx, 1, mode="edge")))
        grow_cut.SetSeedLabelVolume(self._vtk_image(np.pad(seeds_zyx, 1)))
        grow_cut.Update()
        labels = self._numpy_support.vtk_to_numpy(grow_cut.GetOutput().GetPointData().GetScalars())
        return labels.reshape([size + 2 for size in seeds_zyx.shape])[1:-1, 1:-1, 1:-1]

    def _vtk_image(self, array_zyx: np.ndarray) -> Any:
        image = self._data_model.vtkImageData()
        image.SetDimensions(*array_zyx.shape[::-1])
        image.SetSpacing(*self._volume.spacing_xyz_mm)
        flat = np.ascontiguousarray(array_zyx).ravel()
        image.GetPointData().SetScalars(self._numpy_support.numpy_to_vtk(flat, deep=True))
        return image


class RegionGrowing:
    """Region growing by confidence intervals (``ConfidenceConnected`` of SimpleITK).

    A positive click adds the region grown from it, a negative one carves out the region grown from it; later clicks
    have the last word. Of the settings tried, these did best on scans for development.
    """

    name = "region growing"
    _ITERATIONS = 1
    _MULTIPLIER = 3.0
    _SEED_RADIUS_VOXELS = 2

    def start(self, volume: Volume) -> None:
        """See ClickSegmenter."""
        self._volume = volume
        self._mask_zyx = np.zeros(volume.grid.size_zyx, bool)

    def click(self, point_ras_mm: Tuple[float, float, float], positive: bool) -> np.ndarray:
        """See ClickSegmenter."""
        zyx = _voxel(self._volume.grid, point_ras_mm)
        box = _box_around(self._volume.grid, [zyx])
        seed_xyz = [index - axis.start for index, axis in zip(zyx, box)][::-1]
        region = sitk.ConfidenceConnected(
            sitk.GetImageFromArray(self._volume.voxels_zyx[box].astype(np.float32)),
            seedList=[seed_xyz],
            numberOfIterations=self._ITERATIONS,
            multiplier=self._MULTIPLIER,
            initialNeighborhoodRadius=self._SEED_RADIUS_VOXELS,
        )
        self._mask_zyx[box][sitk.GetArrayViewFromImage(region) > 0] = positive
        self._mask_zyx[zyx] = positive
        return self._mask_zyx.copy()


BASELINES: Dict[str, Callable[[], ClickSegmenter]] = {"growcut": GrowCut, "region-growing": RegionGrowing}
"""The classical methods by the names that the command line knows them by."""


def _voxel(grid: Grid, point_ras_mm: Tuple[float, float, float]) -> Tuple[int, int, int]:
    """The voxel that holds a point, as an index (z, y, x)."""
    index = np.rint(grid.zyx_from_ras_points(point_ras_mm)).astype(int)
    z, y, x = np.clip(index, 0, np.array(grid.size_zyx) - 1).tolist()
    return z, y, x


def _box_around(grid: Grid, voxels_zyx: List[Tuple[int, int, int]]) -> Tuple[slice, slice, slice]:
    """The box that reaches half an edge beyond all voxels along each of the image's axes, clipped to the scan."""
    reach = np.ceil(BOX_EDGE_MM / 2 / grid.spacing_zyx_mm).astype(int)
    lower = np.maximum(np.min(voxels_zyx, axis=0) - reach, 0)
    upper = np.minimum(np.max(voxels_zyx, axis=0) + reach + 1, grid.size_zyx)
    z, y, x = (slice(int(start), int(stop)) for start, stop in zip(lower, upper))
    return z, y, x


def _paint_ball(seeds_zyx: np.ndarray, grid: Grid, centre_zyx: Tuple[int, int, int], value: int) -> None:
    """Set the voxels within the ball's radius of a voxel, in mm along the image's axes; at least that voxel."""
    reach = np.floor(BALL_RADIUS_MM / grid.spacing_zyx_mm).astype(int)
    around = tuple(
        np.arange(max(centre - extent, 0), min(centre + extent + 1, size))
        for centre, extent, size in zip(centre_zyx, reach, seeds_zyx.shape)
    )
    distances = (
        ((index - centre) * step) ** 2 for index, centre, step in zip(np.ix_(*around), centre_zyx, grid.spacing_zyx_mm)
    )
    ball = sum(distances) <= BALL_RADIUS_MM**2
    seeds_zyx[np.ix_(*around)] = np.where(ball, value, seeds_zyx[np.ix_(*around)])
