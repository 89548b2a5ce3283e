"""DICOM series as a scanner would send them: one file an image, positions and orientations in LPS."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional, Sequence

import numpy as np
import SimpleITK as sitk


def write_dicom_series(
    folder: Path,
    voxels_zyx: np.ndarray,
    ras_from_ijk: np.ndarray,
    *,
    uid: str = "1.2.826.0.1.1",
    file_order: Optional[Sequence[int]] = None,
    tags: Optional[Dict[str, str]] = None,
) -> Path:
    """Write one file a slice; slice k goes to the file whose name has the number ``file_order[k]``."""
    folder.mkdir(parents=True, exist_ok=True)
    lps_from_ijk = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras_from_ijk
    spacing = np.linalg.norm(lps_from_ijk[:3, :3], axis=0)
    cosines = (lps_from_ijk[:3, :2] / spacing[:2]).T.ravel()
    numbers = range(len(voxels_zyx)) if file_order is None else file_order
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, (plane, number) in enumerate(zip(voxels_zyx, numbers)):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing(spacing[:2].tolist())
        position = lps_from_ijk[:3, 3] + k * lps_from_ijk[:3, 2]
        values = {
            "0008|0018": f"{uid}.{k + 1}",
            "0008|0060": "CT",
            "0018|0050": f"{spacing[2]:.10g}",
            "0020|000d": "1.2.826.0.1",
            "0020|000e": uid,
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{value:.10g}" for value in position),
            "0020|0037": "\\".join(f"{value:.10g}" for value in cosines),
            **(tags or {}),
        }
        for tag, value in values.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}-{number:04d}.dcm"))
        writer.Execute(image)
    return folder
