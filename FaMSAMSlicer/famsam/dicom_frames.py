"""The frames of a DICOM file that holds many (enhanced MR, CT, PET): where each one lies and how it is scaled.

ITK scales all of them as the first one, and takes them for evenly spaced, in the order of the file; where it sees that
they are not, it makes all voxels 1 mm wide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from .errors import MissingDependencyError

_TAG_OF_FRAMES = b"\x00\x52\x30\x92"
"""Begins PerFrameFunctionalGroupsSequence, (5200,9230), little endian."""


class Frames(NamedTuple):
    """What the functional groups of N frames tell, in the order of the file."""

    lps_from_ijk_N44: NDArray[np.float64]
    """Of each frame, homogeneous; z by 1 mm to the side on which the last frame lies."""
    scales_N2: NDArray[np.float64]
    """Slope and intercept of each frame's values."""


def read_frames(path: Path) -> Optional[Frames]:
    """What a DICOM file tells of its frames; None if that is nothing, as in ultrasound and nuclear medicine.

    Raises:
        MissingDependencyError: it tells something, and pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        if _TAG_OF_FRAMES not in path.read_bytes():
            return None
        raise MissingDependencyError(
            f"{str(path)!r} is a DICOM file of many frames, whose places are read by pydicom; install it with: "
            "pip install pydicom"
        ) from error
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    matrices, scales = [], []
    for frame in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        position = _told(frame, shared, "PlanePositionSequence", "ImagePositionPatient")
        cosines = _told(frame, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing_yx = _told(frame, shared, "PixelMeasuresSequence", "PixelSpacing")
        if not (position and cosines and spacing_yx):
            return None
        slope = _told(frame, shared, "PixelValueTransformationSequence", "RescaleSlope")
        intercept = _told(frame, shared, "PixelValueTransformationSequence", "RescaleIntercept")
        x_axis, y_axis = np.array(cosines, dtype=np.float64).reshape(2, 3)
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1] = x_axis * float(spacing_yx[1]), y_axis * float(spacing_yx[0])
        matrix[:3, 2], matrix[:3, 3] = np.cross(x_axis, y_axis), np.array(position, dtype=np.float64)
        matrices.append(matrix)
        scales.append((1.0 if slope is None else float(slope), float(intercept or 0.0)))
    if not matrices:
        return None
    lps_from_ijk_N44 = np.stack(matrices)
    along = lps_from_ijk_N44[0, :3, 2]
    if (lps_from_ijk_N44[-1, :3, 3] - lps_from_ijk_N44[0, :3, 3]) @ along < 0:
        lps_from_ijk_N44[:, :3, 2] *= -1
    return Frames(lps_from_ijk_N44, np.array(scales))


def rescaled(voxels_zyx: NDArray[Any], scales_N2: NDArray[np.float64]) -> NDArray[Any]:
    """Voxels (z, y, x) that were all scaled as the first frame, with each frame's own slope and intercept."""
    if (scales_N2 == scales_N2[0]).all():
        return voxels_zyx
    factors, shift = scales_N2[:, 0] / scales_N2[0, 0], scales_N2[0, 1]
    scaled = (voxels_zyx - shift) * factors[:, None, None] + scales_N2[:, 1, None, None]
    return scaled.astype(np.float32)


def _told(frame: Any, shared: Any, group: str, name: str) -> Any:
    """What a frame's functional group tells, or the one that all frames share; None if neither does."""
    for groups in (frame, shared):
        for item in groups.get(group) or []:
            if item.get(name) is not None:
                return item.get(name)
    return None
