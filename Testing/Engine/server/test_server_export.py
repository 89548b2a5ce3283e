"""Saved files are read back with the libraries that others read them with."""

from __future__ import annotations

import gzip
import io
import zipfile
from typing import Any, Dict, List, Sequence

import nibabel
import numpy as np
import pytest
from famsam.server.packing import pack_bits
from server_fixtures import RAS_FROM_IJK, SIZE_ZYX, ball_zyx, dicom_zip, upload


def mask_of(low: Sequence[int], high: Sequence[int]) -> np.ndarray:
    mask = np.zeros(SIZE_ZYX, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return mask


FIRST, BESIDE, OVER = mask_of((2, 3, 4), (9, 10, 11)), mask_of((12, 3, 4), (15, 8, 9)), mask_of((5, 6, 7), (12, 13, 14))


def export(client: Any, volume_id: str, masks: Dict[str, np.ndarray], file_format: str) -> Any:
    segments: List[Dict[str, str]] = []
    for number, (name, mask) in enumerate(masks.items()):
        session = client.post(f"/v1/volumes/{volume_id}/sessions").json()["id"]
        if mask.any():
            assert client.put(f"/v1/sessions/{session}/mask", json={"bits": pack_bits(mask)}).status_code == 200
        segments.append({"session_id": session, "name": name, "colour": ["#ff8000", "#0040ff", "#00ff00"][number]})
    answer = client.post(f"/v1/volumes/{volume_id}/export", json={"format": file_format, "segments": segments})
    for segment in segments:
        client.delete(f"/v1/sessions/{segment['session_id']}")
    return answer


def test_nifti_label_map(client: Any, volume: Any) -> None:
    content = export(client, volume["id"], {"one": FIRST, "two": BESIDE}, "nii.gz").content
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, FIRST + 2 * BESIDE)
    np.testing.assert_array_equal(image.affine, RAS_FROM_IJK)


@pytest.mark.parametrize(
    "masks",
    [
        {"Left kidney": FIRST, "tumour π": BESIDE},
        {"a": FIRST, "b": OVER, "c": BESIDE},
        {r"left\nucleus": FIRST, r"a\\b\c": BESIDE},
    ],
)
def test_seg_nrrd_opens_in_slicer_with_names_colours_and_overlaps(
    client: Any, volume: Any, masks: Dict[str, np.ndarray], tmp_path: Any
) -> None:
    slicer = pytest.importorskip("slicer", reason="reading back .seg.nrrd needs slicer-core (Python 3.10 or newer)")
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    path = tmp_path / "saved.seg.nrrd"
    path.write_bytes(export(client, volume["id"], masks, "seg.nrrd").content)
    scene = slicer.vtkMRMLScene()
    scene.RegisterNodeClass(slicer.vtkMRMLSegmentationNode())
    scene.RegisterNodeClass(slicer.vtkMRMLSegmentationStorageNode())
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    segmentation = node.GetSegmentation()
    assert [segmentation.GetNthSegment(k).GetName() for k in range(len(masks))] == list(masks)
    np.testing.assert_allclose(segmentation.GetNthSegment(0).GetColor(), (1, 128 / 255, 0), atol=1e-3)
    for k, mask in enumerate(masks.values()):
        image = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(k), image)
        ijk_to_world = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(ijk_to_world)
        x0, x1, y0, y1, z0, z1 = image.GetExtent()
        voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(z1 - z0 + 1, y1 - y0 + 1, x1 - x0 + 1)
        found = np.add(np.argwhere(voxels), (z0, y0, x0))
        np.testing.assert_array_equal(found, np.argwhere(mask))
        matrix = np.array([[ijk_to_world.GetElement(r, c) for c in range(4)] for r in range(4)])
        np.testing.assert_allclose(matrix, RAS_FROM_IJK, atol=1e-6)


def test_dicom_series_in_and_dicom_seg_out(client: Any) -> None:
    highdicom = pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom (Python 3.10 or newer)")
    import pydicom

    opened = upload(client, dicom_zip(ball_zyx()))
    assert opened.status_code == 201, opened.text
    info = opened.json()
    assert info["is_dicom"] and info["modality"] == "CT"
    np.testing.assert_allclose(
        info["ras_from_ijk"], [[-1.5, 0, 0, 20], [0, -2, 0, -25], [0, 0, 2.5, 5], [0, 0, 0, 1]], atol=1e-5
    )
    answer = export(client, info["id"], {"kidney": FIRST, "empty": mask_of((0, 0, 0), (0, 0, 0)), "cyst": OVER}, "dcm")
    assert answer.status_code == 200, answer.text
    dataset = pydicom.dcmread(io.BytesIO(answer.content))
    saved = highdicom.seg.Segmentation.from_dataset(dataset)
    assert [saved.get_segment_description(k).segment_label for k in (1, 2)] == ["kidney", "cyst"]
    assert dataset.PatientID == "secret-7"
    volume = saved.get_volume(combine_segments=False)
    voxels = np.moveaxis(volume.array, -1, 0) > 0  # (segment, slice, row, column)
    positions_lps = [volume.affine @ (z, 0, 0, 1) for z in range(voxels.shape[1])]
    for mask, seen in zip((FIRST, OVER), voxels):
        rebuilt = np.zeros(SIZE_ZYX, bool)
        for position, frame in zip(positions_lps, seen):
            rebuilt[round((position[2] - 5) / 2.5)] = frame
        np.testing.assert_array_equal(rebuilt, mask)
    client.delete(f"/v1/volumes/{info['id']}")


def test_dicom_seg_keeps_names_in_every_script(client: Any) -> None:
    pydicom = pytest.importorskip("pydicom", minversion="3", reason="DICOM SEG is written with Python 3.10 or newer")
    pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom (Python 3.10 or newer)")
    series = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dicom_zip(ball_zyx()))) as given, zipfile.ZipFile(series, "w") as latin:
        for name in given.namelist()[1:]:
            slice_ = pydicom.dcmread(io.BytesIO(given.read(name)))
            slice_.SpecificCharacterSet, slice_.PatientName = "ISO_IR 100", "Müller^Jörg"
            file = io.BytesIO()
            slice_.save_as(file)
            latin.writestr(name, file.getvalue())
    info = upload(client, series.getvalue()).json()
    masks = {"左肺": FIRST, r"a\b": BESIDE}
    saved = pydicom.dcmread(io.BytesIO(export(client, info["id"], masks, "dcm").content))
    assert [one.SegmentLabel for one in saved.SegmentSequence] == ["左肺", "a/b"]
    assert saved.PatientName == "Müller^Jörg"
    client.delete(f"/v1/volumes/{info['id']}")


def test_dicom_seg_of_anonymised_slices(client: Any) -> None:
    pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom (Python 3.10 or newer)")
    import pydicom

    patient = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex"]
    study = ["StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"]
    opened = upload(client, dicom_zip(ball_zyx(), without=[*patient, *study])).json()
    answer = export(client, opened["id"], {"kidney": FIRST}, "dcm")
    assert answer.status_code == 200, answer.text
    dataset = pydicom.dcmread(io.BytesIO(answer.content))
    assert all(name in dataset and not dataset.get(name) for name in [*patient, *study])
    client.delete(f"/v1/volumes/{opened['id']}")


@pytest.mark.parametrize(("name", "tag"), [("StudyInstanceUID", "(0020,000d)"), ("FrameOfReferenceUID", "(0020,0052)")])
def test_dicom_seg_does_not_refer_to_what_is_not_there(client: Any, name: str, tag: str) -> None:
    pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom (Python 3.10 or newer)")
    opened = upload(client, dicom_zip(ball_zyx(), without=[name])).json()
    answer = export(client, opened["id"], {"kidney": FIRST}, "dcm")
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"]
    assert name in detail and tag in detail.lower() and "save .seg.nrrd" in detail
    assert export(client, opened["id"], {"kidney": FIRST}, "seg.nrrd").status_code == 200
    client.delete(f"/v1/volumes/{opened['id']}")


def test_a_header_that_highdicom_refuses(client: Any, monkeypatch: Any) -> None:
    highdicom = pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom (Python 3.10 or newer)")

    def refuse(**_: Any) -> Any:
        raise ValueError("'U' is not a valid PatientSexValues")

    monkeypatch.setattr(highdicom.seg, "Segmentation", refuse)
    opened = upload(client, dicom_zip(ball_zyx())).json()
    answer = export(client, opened["id"], {"kidney": FIRST}, "dcm")
    assert answer.status_code == 422 and "'U' is not a valid" in answer.json()["detail"]
    client.delete(f"/v1/volumes/{opened['id']}")


def test_what_cannot_be_exported_is_refused(client: Any, volume: Any) -> None:
    pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom (Python 3.10 or newer)")
    answer = export(client, volume["id"], {"one": FIRST}, "dcm")
    assert answer.status_code == 422 and ".seg.nrrd" in answer.json()["detail"]
    other = upload(client, dicom_zip(ball_zyx())).json()["id"]
    answer = export(client, other, {"one": np.zeros(SIZE_ZYX, bool)}, "dcm")
    assert answer.status_code == 422 and "empty" in answer.json()["detail"]
    session = client.post(f"/v1/volumes/{volume['id']}/sessions").json()["id"]
    foreign = {"format": "nii.gz", "segments": [{"session_id": session, "name": "x", "colour": "#000000"}]}
    assert client.post(f"/v1/volumes/{other}/export", json=foreign).status_code == 422
    client.delete(f"/v1/volumes/{other}")
