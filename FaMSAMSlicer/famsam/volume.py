"""Images and masks: in memory, from files, and back to files on the very same grid.

Arrays are (z, y, x) everywhere; matrices map the (x, y, z) index to RAS mm.
"""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .errors import VolumeError
from .geometry import CanonicalFrame, Grid
from .image_files import PICK_ONE, read_image, write_labels

logger = logging.getLogger(__name__)

PathLike = Union[str, "os.PathLike[str]"]

LEAST_MEASURED = -1024.0
"""Air, as the lowest in a CT, whose numbers are whole. Objects end at air, and where there is nothing at 0; what lies
far below is padding."""
SOME_VOXELS = 100_000
"""About so many tell whether a scan may be padded."""
NO_INTENSITY = 1e30
"""Programs fill what they know nothing of with the largest float (3.4e38) or its negative; sums of such overflow."""


class Volume:
    """A scan: voxels and where they lie in the patient.

    Integers are kept as they are; floats become float32. The array is shared with the caller, not copied, unless its
    type or byte order has to change. NaN, infinite voxels and such beyond ``NO_INTENSITY`` become the smallest of the
    others, and padding far below them is brought nearer (``_with_padding_near``).

    Args:
        voxels_zyx: (z, y, x) intensities, integer or floating point.
        ras_from_ijk: (4, 4), homogeneous; (x, y, z) index -> RAS mm. May be oblique, left-handed or sheared.
        name: what messages call it, such as the file's name.
        source_header: the NIfTI header that it was read with; masks are written with its geometry fields.

    Raises:
        VolumeError: not three axes, no voxels, not real numbers, nothing but one value, or a singular matrix.
    """

    def __init__(self, voxels_zyx: Any, ras_from_ijk: Any, *, name: str = "", source_header: Any = None) -> None:
        self.name = name
        self.source_header = source_header
        given = np.asarray(voxels_zyx)
        called = f"the image {name!r}" if name else "the image"
        if given.ndim != 3:
            raise VolumeError(
                f"{called} must have three axes (z, y, x), got shape {given.shape}; "
                + ("add the missing axis with voxels[None]" if given.ndim == 2 else PICK_ONE)
            )
        if given.size == 0:
            raise VolumeError(f"{called} has no voxels: its shape is {given.shape}")
        if given.dtype.kind not in "iuf":
            raise VolumeError(f"{called} must hold integers or floating-point numbers, got {given.dtype}")
        self.grid = Grid(given.shape, np.asarray(ras_from_ijk))
        self.voxels_zyx, self.value_range = _usable_voxels(given, called)
        """(z, y, x) intensities: integers as given or float32, all finite; and the smallest and largest of them."""

    @cached_property
    def canonical(self) -> CanonicalFrame:
        """The image's axes in the order closest to RAS."""
        return CanonicalFrame(self.grid)

    @property
    def spacing_xyz_mm(self) -> NDArray[np.float64]:
        """(3,) distance of neighbouring voxel centres along x, y, z."""
        return self.grid.spacing_xyz_mm

    def __repr__(self) -> str:
        return f"Volume({self.name!r}, {self.voxels_zyx.dtype}, {self.grid})"


def _usable_voxels(given: NDArray[Any], called: str) -> Tuple[NDArray[Any], Tuple[float, float]]:
    """Native byte order, float32 for floats, all finite and no fill values; with the smallest and the largest value."""
    dtype = np.dtype(np.float32) if given.dtype.kind == "f" else given.dtype.newbyteorder("=")
    with np.errstate(over="ignore", invalid="ignore"):
        voxels = given.astype(dtype, copy=False)
        low, high = float(voxels.min()), float(voxels.max())  # either is NaN if any voxel is
    if not (low > -NO_INTENSITY and high < NO_INTENSITY):
        finite_slices = (plane[np.abs(plane) < NO_INTENSITY] for plane in voxels)  # by slices: no large temporaries
        ranges = [(float(plane.min()), float(plane.max()), plane.size) for plane in finite_slices if plane.size]
        if not ranges:
            raise VolumeError(f"{called} holds no finite value: there is nothing to segment in it")
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        logger.warning(
            "%s holds %d voxels that are not finite or fill values; they are taken as %g, its smallest value",
            called,
            voxels.size - sum(r[2] for r in ranges),
            low,
        )
        voxels = voxels.copy() if voxels is given else voxels
        for plane in voxels:
            plane[~(np.abs(plane) < NO_INTENSITY)] = low
    if low == high:
        raise VolumeError(f"every voxel of {called} is {low:g}: there is nothing to segment in it")
    return _with_padding_near(voxels, low, high, voxels is given, called)


def _with_padding_near(
    voxels: NDArray[Any], low: float, high: float, shared: bool, called: str
) -> Tuple[NDArray[Any], Tuple[float, float]]:
    """Padding as far below all other intensities as these lie apart, where it is farther: next to -2147483648 the
    tissues of a CT are all the same, and next to -1000 standard scores. With the smallest and the largest value.

    Args:
        voxels: (z, y, x), from ``low`` to ``high``.
        shared: whether the array is somebody else's, not to be changed.
    """
    if low >= (LEAST_MEASURED if voxels.dtype.kind in "iu" else 0):
        return voxels, (low, high)

    def is_far_below(lowest: float) -> bool:
        return lowest - low > 1.01 * (high - lowest) > 0  # what was brought nearer stays

    stride = max(1, round((voxels.size / SOME_VOXELS) ** (1 / 3)))
    some = voxels[(slice(None, None, stride),) * 3]
    above = some[some > low]
    if not above.size or not is_far_below(float(above.min())):
        return voxels, (low, high)
    if low >= LEAST_MEASURED and (above == np.rint(above)).all():  # it may be air
        return voxels, (low, high)
    lowest = min(float(plane[plane > low].min()) for plane in voxels if (plane > low).any())
    if not is_far_below(lowest):
        return voxels, (low, high)
    nearer = max(low, lowest - (high - lowest))
    logger.warning("%s is padded with %g, far below all else; that is taken as %g", called, low, nearer)
    voxels = voxels.copy() if shared else voxels
    voxels[voxels == low] = nearer
    return voxels, (nearer, high)


def read_volume(path: PathLike, *, series_uid: Optional[str] = None, ras_from_ijk: Any = None) -> Volume:
    """Read a scan.

    Args:
        path: NIfTI (.nii, .nii.gz, .hdr/.img), MGH, NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), a folder with a DICOM
            series, a DICOM file under any name, or numpy: .npz with the arrays ``voxels_zyx`` and ``ras_from_ijk``, or
            .npy.
        series_uid: which series of a DICOM folder; by default the one with the most files.
        ras_from_ijk: (4, 4), the geometry of a .npy file, which has none of its own.

    Raises:
        VolumeError: the file is missing, damaged, of another kind, or its content is no usable scan.
        MissingDependencyError: a DICOM file of many frames (enhanced MR, CT, PET), and pydicom is not installed.
    """
    stored = read_image(Path(path), series_uid=series_uid, ras_from_ijk=ras_from_ijk)
    name = Path(path).name
    return Volume(stored.voxels_zyx, stored.ras_from_ijk, name=name, source_header=stored.nifti_header)


def read_mask(path: PathLike, volume: Union[Volume, Grid]) -> NDArray[np.bool_]:
    """Read a mask that lies on a scan's grid, from any format of ``read_volume``; see ``foreground`` for what is in it.

    Returns:
        (z, y, x) bool, of the scan's size.

    Raises:
        VolumeError: the file cannot be read, or its corner voxels lie more than 0.001 mm from the scan's.
    """
    grid = volume.grid if isinstance(volume, Volume) else volume
    stored = read_image(Path(path), ras_from_ijk=grid.ras_from_ijk)
    mask_grid = Grid(stored.voxels_zyx.shape, stored.ras_from_ijk)
    if not mask_grid.matches(grid):
        raise VolumeError(
            f"the mask {str(path)!r} does not lie on the image's grid; resample it to the image first.\n"
            f"mask:  {mask_grid}\nimage: {grid}"
        )
    return foreground(stored.voxels_zyx)


def foreground(mask_zyx: NDArray[Any]) -> NDArray[np.bool_]:
    """bool, of the same shape: what is not zero is in a mask. NaN is not: programs write it for "nothing here"."""
    if mask_zyx.dtype == bool:
        return mask_zyx
    inside: NDArray[np.bool_] = mask_zyx != 0
    if mask_zyx.dtype.kind in "fc":
        inside &= ~np.isnan(mask_zyx)
    return inside


def write_mask(mask_zyx: Any, volume: Union[Volume, Grid], path: PathLike, *, value: int = 1) -> None:
    """Write a mask on a scan's own grid, as unsigned bytes.

    A scan that came from a NIfTI file lends its NIfTI mask the very same affine, sform and qform. The file appears
    under its name when it is complete, not before.

    Args:
        mask_zyx: (z, y, x) of the scan's size; see ``foreground`` for what is in it.
        volume: the scan, or just its grid.
        path: .nii, .nii.gz, .nrrd or .mha; an existing file is replaced.
        value: what the mask's voxels get, 1 to 255; the others get 0.

    Raises:
        VolumeError: another size than the scan's, a folder that does not exist, an unknown suffix, a failing disk.
    """
    grid = volume.grid if isinstance(volume, Volume) else volume
    mask = np.asarray(mask_zyx)
    if mask.shape != grid.size_zyx:
        raise VolumeError(f"the mask's size (z, y, x) must be the image's {grid.size_zyx}, got {mask.shape}")
    if not 1 <= value <= 255:
        raise VolumeError(f"a mask's value must be from 1 to 255, got {value}")
    labels = foreground(mask).view(np.uint8)
    header = volume.source_header if isinstance(volume, Volume) else None
    write_labels(labels if value == 1 else labels * np.uint8(value), grid, Path(path), nifti_header=header)
