"""DICOM as a scanner would send it: one file an image, or one of many frames; positions and orientations in LPS."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
import pytest
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


def write_dicom_frames(
    path: Path,
    voxels_zyx: np.ndarray,
    ras_from_ijk: np.ndarray,
    *,
    heights: Optional[Sequence[float]] = None,
    scales: Optional[Sequence[Tuple[float, float]]] = None,
) -> Path:
    """Write one enhanced MR file; frame k lies at the index z = ``heights[k]``, scaled by a slope and an intercept."""
    pydicom = pytest.importorskip("pydicom", minversion="3", reason="the file is written by pydicom 3 (Python 3.10)")
    lps_from_ijk = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras_from_ijk
    spacing = np.linalg.norm(lps_from_ijk[:3, :3], axis=0)

    def group(**values):
        item = pydicom.Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        return pydicom.Sequence([item])

    frames = []
    for k in range(len(voxels_zyx)):
        position = lps_from_ijk[:3, 3] + lps_from_ijk[:3, 2] * (k if heights is None else heights[k])
        slope, intercept = (1, 0) if scales is None else scales[k]
        frames += group(
            PlanePositionSequence=group(ImagePositionPatient=[f"{value:.10g}" for value in position]),
            PixelValueTransformationSequence=group(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US"),
        )
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "MR", "1.2.3", "1.2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = voxels_zyx.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    cosines = (lps_from_ijk[:3, :2] / spacing[:2]).T.ravel()
    dataset.SharedFunctionalGroupsSequence = group(
        PlaneOrientationSequence=group(ImageOrientationPatient=[f"{value:.10g}" for value in cosines]),
        PixelMeasuresSequence=group(PixelSpacing=spacing[1::-1].tolist(), SliceThickness=spacing[2]),
    )
    dataset.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    dataset.PixelData = voxels_zyx.astype("<i2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path
