"""A Slicer volume as the engine wants it, without copying its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
import vtk
from famsam.errors import PromptError, VolumeError
from vtk.util.numpy_support import vtk_to_numpy

from .spaces import Point3, matrix_from_vtk, transformed
from .translation import tr as _

_FLAT = 1e-6
"""Voxels: a side shorter than this is no side."""


@dataclass(frozen=True, eq=False)
class Scan:
    """The voxels of a volume node at one moment.

    Attributes:
        key: equal for the same, unchanged volume; another one as soon as its voxels or its geometry change.
        name: the node's name.
        voxels_zyx: (z, y, x), shared with the node.
        ras_from_ijk: (4, 4), index (x, y, z) -> RAS mm of the volume itself, before its parent transform.
    """

    key: Tuple[Any, ...]
    name: str
    voxels_zyx: np.ndarray
    ras_from_ijk: np.ndarray

    def check_inside(self, point_ras_mm: Point3) -> None:
        """Raises:
        PromptError: the point lies outside the scan.
        """
        if not self.contains(point_ras_mm):
            text = _('That click lies outside the volume "{name}". Click on the scan itself.')
            raise PromptError(text.format(name=self.name))

    def contains(self, point_ras_mm: Point3) -> bool:
        """Whether a point lies in the scan."""
        index = transformed(np.linalg.inv(self.ras_from_ijk), point_ras_mm)
        return all(-0.5 <= i <= n - 0.5 for i, n in zip(index, self.voxels_zyx.shape[::-1]))

    def overlaps(self, corner_ras_mm: Point3, opposite_ras_mm: Point3) -> bool:
        """Whether a box along the scan's own axes, between these corners, is not flat and lies in the scan in part."""
        ijk = _affine(np.linalg.inv(self.ras_from_ijk), np.array([corner_ras_mm, opposite_ras_mm], dtype=float))
        low, high, size_xyz = ijk.min(0), ijk.max(0), np.array(self.voxels_zyx.shape[::-1])
        return bool((high - low > _FLAT).all() and (high >= -0.5).all() and (low <= size_xyz - 0.5).all())

    def box_around(self, points_ras_mm: np.ndarray) -> Tuple[Point3, Point3]:
        """The smallest box along the scan's own axes around some points.

        Args:
            points_ras_mm: (N, 3).

        Returns:
            two opposite corners, RAS mm.
        """
        ijk = _affine(np.linalg.inv(self.ras_from_ijk), np.asarray(points_ras_mm, dtype=float))
        return _point(_affine(self.ras_from_ijk, ijk.min(0))), _point(_affine(self.ras_from_ijk, ijk.max(0)))


def _affine(matrix: np.ndarray, points_N3: np.ndarray) -> np.ndarray:
    return points_N3 @ matrix[:3, :3].T + matrix[:3, 3]


def _point(values: np.ndarray) -> Point3:
    r, a, s = (float(v) for v in values)
    return r, a, s


def scan_of(volume_node: Any) -> Scan:
    """The scan in a volume node.

    Raises:
        VolumeError: no volume, no voxels, or several values a voxel.
    """
    if volume_node is None:
        raise VolumeError(_("No source volume is chosen. Load a scan and choose it as source volume."))
    name = volume_node.GetName()
    image = volume_node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise VolumeError(_('The volume "{name}" holds no voxels. Choose another source volume.').format(name=name))
    components = image.GetNumberOfScalarComponents()
    if components != 1:
        text = _(
            'The volume "{name}" has {components} values in each voxel (a colour, vector or 4-D image); one is '
            "needed. Make a scalar volume of it (module Vector to Scalar Volume, or extract one frame) and choose that."
        )
        raise VolumeError(text.format(name=name, components=components))
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    ras_from_ijk = matrix_from_vtk(matrix)
    scalars = image.GetPointData().GetScalars()
    key = (volume_node.GetID(), image.GetMTime(), scalars.GetMTime(), ras_from_ijk.tobytes())
    voxels_zyx = vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1])
    return Scan(key, name, voxels_zyx, ras_from_ijk)
