"""Where things lie: 4x4 matrices between the spaces that Slicer's nodes live in.

Spaces:
    world   RAS mm as the views show it, after all parent transforms
    scan    RAS mm of a volume node itself, before its parent transform (its IJKToRAS leads here)
    seg     RAS mm of a segmentation node itself, before its parent transform (its labelmaps lie here)
    ijk     voxel index (x, y, z)

Names say from right to left what a matrix does: ``world_from_seg @ point_in_seg``.
"""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

import numpy as np
import vtk
from famsam.errors import VolumeError

from .translation import tr as _

Point3 = Tuple[float, float, float]


def matrix_from_vtk(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """(4, 4) float64 copy."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtk_from_matrix(matrix: np.ndarray) -> vtk.vtkMatrix4x4:
    """The other way round."""
    out = vtk.vtkMatrix4x4()
    out.DeepCopy(np.asarray(matrix, dtype=float).ravel().tolist())
    return out


def world_from_node(node: Any) -> np.ndarray:
    """(4, 4): from the node's own coordinates to world, through all its parent transforms.

    Raises:
        VolumeError: one of them is not linear.
    """
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        text = _(
            '"{node}" lies under the transform "{transform}", which is not linear. Click-to-segment works under linear '
            "transforms: harden the transform (right-click the node in the Data module)."
        )
        raise VolumeError(text.format(node=node.GetName(), transform=parent.GetName()))
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    return matrix_from_vtk(matrix)


def seg_from_world(segmentation_node: Any) -> np.ndarray:
    """(4, 4): world -> the segmentation's own coordinates."""
    return np.linalg.inv(world_from_node(segmentation_node))


def scan_from_seg(volume_node: Any, segmentation_node: Any) -> np.ndarray:
    """(4, 4): the segmentation's own coordinates -> the volume's own coordinates; exactly I under one transform."""
    if volume_node.GetParentTransformNode() is segmentation_node.GetParentTransformNode():
        return np.eye(4)
    return np.linalg.inv(world_from_node(volume_node)) @ world_from_node(segmentation_node)


def transformed(matrix: np.ndarray, point: Sequence[float]) -> Point3:
    """A point through a 4x4 matrix."""
    x, y, z = (float(v) for v in matrix[:3, :3] @ np.asarray(point, dtype=float) + matrix[:3, 3])
    return x, y, z


def integer_shift(ijk_from_ijk: np.ndarray, size_xyz: Sequence[int], tolerance: float = 1e-2) -> Optional[np.ndarray]:
    """The whole number of voxels (x, y, z) by which two grids differ; None if they differ by anything else.

    Args:
        ijk_from_ijk: (4, 4), index in one grid -> index in the other.
        size_xyz: voxels over which they have to agree.
        tolerance: voxels by which a corner may be off.
    """
    shift = np.round(ijk_from_ijk[:3, 3])
    corners = np.array(list(np.ndindex(2, 2, 2))) * np.asarray(size_xyz, dtype=float)
    moved = corners @ ijk_from_ijk[:3, :3].T + ijk_from_ijk[:3, 3]
    return shift.astype(int) if np.abs(moved - corners - shift).max() <= tolerance else None
