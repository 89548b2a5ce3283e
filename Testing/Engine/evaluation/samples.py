"""Methods and a dataset with known answers, for the tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SPACING_XYZ_MM = (1.0, 1.0, 2.0)


class Oracle:
    """Knows the labels and answers with the structure that was clicked."""

    def __init__(self, labels_by_size, name="oracle"):
        self.name = name
        self._labels_by_size = labels_by_size

    def start(self, volume):
        self._grid = volume.grid
        self._labels_zyx = self._labels_by_size[volume.grid.size_zyx]

    def click(self, point_ras_mm, positive):
        assert positive
        index = tuple(np.rint(self._grid.zyx_from_ras_points(point_ras_mm)).astype(int))
        return self._labels_zyx == self._labels_zyx[index]


class Stubborn:
    """Answers the first voxel of the scan, whatever is clicked."""

    name = "stubborn"

    def start(self, volume):
        self._mask_zyx = np.zeros(volume.grid.size_zyx, bool)
        self._mask_zyx[0, 0, 0] = True

    def click(self, point_ras_mm, positive):
        return self._mask_zyx


class Painter:
    """Paints or erases a cube of three voxels at every click."""

    name = "painter"

    def start(self, volume):
        self._grid = volume.grid
        self._mask_zyx = np.zeros(volume.grid.size_zyx, bool)

    def click(self, point_ras_mm, positive):
        z, y, x = np.rint(self._grid.zyx_from_ras_points(point_ras_mm)).astype(int)
        self._mask_zyx[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = positive
        return self._mask_zyx.copy()


class Failing(Painter):
    """Paints once, then raises."""

    name = "failing"

    def click(self, point_ras_mm, positive):
        if self._mask_zyx.any():
            raise RuntimeError("out of paint")
        return super().click(point_ras_mm, positive)


def save_image(path: Path, array_zyx: np.ndarray, affine: np.ndarray = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING_XYZ_MM, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array_zyx.transpose(2, 1, 0)), affine), str(path))


def labels_of_case_a() -> np.ndarray:
    """A cube of 3³ and a bar of 3x3x9 voxels."""
    labels = np.zeros((12, 14, 16), np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    labels[7:10, 8:11, 4:13] = 4
    return labels


def labels_of_case_b() -> np.ndarray:
    """A single cube of 5³ voxels."""
    labels = np.zeros((10, 11, 12), np.uint8)
    labels[3:8, 3:8, 3:8] = 2
    return labels
