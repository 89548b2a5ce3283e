"""The image files: what a format holds, turned to (z, y, x) arrays and RAS millimetres, and masks back to files.

NIfTI and MGH go through nibabel, which keeps any affine as it is; NRRD, MetaImage and DICOM go through SimpleITK, whose
LPS coordinates are turned to RAS here. Nothing is judged here: ``volume`` decides what can be used.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from numpy.typing import NDArray

from .dicom_frames import read_frames, rescaled
from .errors import FamsamError, VolumeError
from .geometry import Grid
from .outputs import put_in_place

logger = logging.getLogger(__name__)

NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mgz", ".mgh")
SIMPLEITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
NUMPY_SUFFIXES = (".npz", ".npy")
WRITABLE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")

PICK_ONE = "pick one volume of a series, or one channel, with voxels[k] or voxels[..., k]"
_MIXED = "{} mixes several sizes or orientations, such as localisers; it is no volume"

_DICOM_SLICE_THICKNESS, _DICOM_FRAME_COUNT, _DICOM_INSTANCE = "0018|0050", "0028|0008", "0008|0018"
_DICOM_ASSUMED = {
    "distance between pixels; 1 mm is taken": ("0028|0030", "0018|1164", "0018|2010"),
    "orientation; axial is taken, check the sides": ("0020|0037",),
}
"""What ITK assumes without a word where a slice has none of these tags."""
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UTF8_CODE_PAGE, _LONGEST_NAME = 65001, 32768  # of Windows
_MM_PER_NIFTI_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # metres, millimetres, micrometres; any other number is no unit


class StoredImage(NamedTuple):
    """What a file holds, not yet judged."""

    voxels_zyx: NDArray[Any]
    ras_from_ijk: NDArray[np.float64]
    nifti_header: Any = None


def read_image(path: Path, *, series_uid: Optional[str] = None, ras_from_ijk: Any = None) -> StoredImage:
    """Read a file, or a folder with a DICOM series; ``read_volume`` tells what the arguments mean.

    Raises:
        VolumeError: the file is missing, damaged, of another kind, or has more than three axes.
    """
    if not path.exists():
        raise VolumeError(f"there is no file or folder {str(path)!r}")
    try:
        if path.is_dir():
            with _no_itk_warnings():
                return _read_dicom_folder(path, series_uid)
        if _is_dicom(path):  # whatever its name ends in: IM0001, .IMA, .img
            return _read_simpleitk(path)
        suffix = _suffix(path, NIBABEL_SUFFIXES + SIMPLEITK_SUFFIXES + NUMPY_SUFFIXES)
        if suffix in NUMPY_SUFFIXES:
            return _read_numpy(path, ras_from_ijk)
        return _read_nibabel(path) if suffix in NIBABEL_SUFFIXES else _read_simpleitk(path)
    except FamsamError:
        raise
    except MemoryError as error:
        raise VolumeError(
            f"{str(path)!r} needs more memory than there is: it is too large, or its header is damaged"
        ) from error
    except Exception as error:  # the libraries have no common root for what a damaged file may cause
        raise VolumeError(
            f"cannot read {str(path)!r}, which may be damaged or of another kind: {_cause(error)}"
        ) from error


def _read_nibabel(path: Path) -> StoredImage:
    import nibabel

    image: Any = nibabel.load(path, mmap=False)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    dtype = image.get_data_dtype()
    if len(shape) > 3 or dtype.fields:
        what = "colour values" if dtype.fields else f"the shape {image.shape}"
        raise VolumeError(f"{str(path)!r} must hold one value a voxel on three axes (x, y, z), got {what}; {PICK_ONE}")
    if len(shape) < 3:
        shape = (*shape, *(1,) * (3 - len(shape)))

    data = image.dataobj
    slope, intercept = getattr(data, "slope", 1.0), getattr(data, "inter", 0.0)
    voxels = np.asarray(data.get_unscaled())
    if (slope, intercept) != (1.0, 0.0):
        voxels = voxels.astype(np.float32)
        voxels *= np.float32(slope)
        voxels += np.float32(intercept)

    header = image.header if isinstance(image.header, nibabel.Nifti1Header) else None
    matrix = np.array(image.affine if header is None else _nifti_matrix(header, path), dtype=np.float64)
    unit_mm = _MM_PER_NIFTI_UNIT.get(int(header["xyzt_units"]) & 7, 1.0) if header is not None else 1.0
    repaired = _with_slice_axis(matrix, shape)
    if unit_mm != 1.0 or repaired is not matrix:
        header = None  # the mask gets millimetres and an invertible matrix, not the original fields
        matrix = np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ repaired
    return StoredImage(voxels.reshape(shape, order="F").transpose(2, 1, 0), matrix, header)


def _nifti_matrix(header: Any, path: Path) -> NDArray[np.float64]:
    """ras_from_ijk of a NIfTI header as ITK has it, and with it 3D Slicer: of two forms that conflict the one of the
    scanner's coordinates, the qform in doubt; and LPS axes from 0 if there is none. Only a sheared sform stays, which
    no qform can hold, and ITK does not take."""
    sform, qform = header.get_sform(coded=True)[0], _qform(header)
    if sform is None and qform is None:
        logger.warning(
            "%s has no orientation: its header has neither a qform nor an sform. It is taken as 3D Slicer takes it, "
            "with axes to the left, posterior and superior; check the sides",
            path,
        )
        x_mm, y_mm, z_mm = [*np.abs(header.get_zooms()[:3]), 1.0, 1.0][:3]
        return np.diag([-x_mm, -y_mm, z_mm, 1.0])
    if sform is None or qform is None:
        return np.asarray(qform if sform is None else sform)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array([*header.get_data_shape()[:3], 1, 1][:3]) - 1)
    apart_mm = np.linalg.norm(corners @ (sform - qform)[:3, :3].T + (sform - qform)[:3, 3], axis=1).max()
    if apart_mm <= 0.1 * np.abs(header.get_zooms()[:3]).min():
        return sform
    axes = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
    perpendicular = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    taken = "sform" if header["sform_code"] == 1 or not perpendicular else "qform"
    logger.warning(
        "the qform and the sform of %s put its voxels up to %.3g mm apart; the %s is taken%s",
        path,
        apart_mm,
        taken,
        ", as 3D Slicer does" if perpendicular else ", 3D Slicer takes the qform",
    )
    return sform if taken == "sform" else qform


def _qform(header: Any) -> Optional[NDArray[np.float64]]:
    """None if there is none, or a damaged one."""
    try:
        return header.get_qform(coded=True)[0]
    except Exception:  # nibabel has no common root for what a damaged header may cause
        return None


def _with_slice_axis(ras_from_ijk: NDArray[np.float64], shape_xyz: Sequence[int]) -> NDArray[np.float64]:
    """A single slice stored without a thickness gets 1 along its normal; every other matrix is returned as it is."""
    lengths = np.linalg.norm(ras_from_ijk[:3, :3], axis=0)
    if shape_xyz[2] != 1 or lengths[2] > 0 or not np.all(lengths[:2] > 0):
        return ras_from_ijk
    repaired = ras_from_ijk.copy()
    normal = np.cross(ras_from_ijk[:3, 0], ras_from_ijk[:3, 1])
    repaired[:3, 2] = normal / max(float(np.linalg.norm(normal)), np.finfo(float).tiny)
    return repaired


def _read_simpleitk(path: Path) -> StoredImage:
    import SimpleITK as sitk

    _refuse_what_is_misread(path, sitk.Version_VersionString())
    reader = sitk.ImageFileReader()
    reader.SetFileName(name_for_itk(path))
    reader.ReadImageInformation()
    size_xyz = list(reader.GetSize())
    components = reader.GetNumberOfComponents()
    if components > 1 or any(n > 1 for n in size_xyz[3:]):
        raise VolumeError(
            f"{str(path)!r} must hold one value a voxel on three axes (x, y, z), got {components} values a voxel and "
            f"the size {tuple(size_xyz)}; {PICK_ONE}"
        )
    image = reader.Execute()
    voxels_zyx, matrix = sitk.GetArrayFromImage(image).reshape([*size_xyz, 1][2::-1]), _ras_from_ijk(image)
    if len(voxels_zyx) > 1 and reader.HasMetaDataKey(_DICOM_FRAME_COUNT) and _is_dicom(path):
        return _with_own_frames(path, StoredImage(voxels_zyx, matrix))
    thickness = reader.GetMetaData(_DICOM_SLICE_THICKNESS) if reader.HasMetaDataKey(_DICOM_SLICE_THICKNESS) else ""
    if size_xyz[2:] == [1] and float(thickness.strip() or 0) > 0:  # ITK makes a lone slice 1 mm thick
        matrix[:3, 2] *= float(thickness) / np.linalg.norm(matrix[:3, 2])
    return StoredImage(voxels_zyx, matrix)


def _with_own_frames(path: Path, stored: StoredImage) -> StoredImage:
    """What ITK has made of a DICOM file of many frames, with each where it lies and scaled by its own numbers."""
    frames = read_frames(path)
    if frames is None:
        return stored
    if len(frames.scales_N2) != len(stored.voxels_zyx):
        raise VolumeError(
            f"{str(path)!r} holds {len(stored.voxels_zyx)} frames and tells the places of {len(frames.scales_N2)}; "
            "it is damaged"
        )
    order, matrix = _stacked(_LPS_FROM_RAS @ frames.lps_from_ijk_N44, repr(str(path)))
    voxels_zyx = rescaled(stored.voxels_zyx, frames.scales_N2)
    return StoredImage(voxels_zyx if (np.diff(order) == 1).all() else voxels_zyx[order], matrix)


def _refuse_what_is_misread(path: Path, version: str) -> None:
    """Of an NRRD file in the space left-anterior-superior an old SimpleITK turns the wrong axis around."""
    if path.suffix.lower() not in (".nrrd", ".nhdr") or tuple(map(int, re.findall(r"\d+", version)[:3])) >= (2, 5, 6):
        return
    with path.open("rb") as file:
        header = re.split(rb"\r?\n\r?\n", file.read(1 << 16), maxsplit=1)[0]
    if re.search(rb"^space:\s*(left-anterior-superior|LAS)\s*$", header, re.MULTILINE | re.IGNORECASE):
        raise VolumeError(
            f"{str(path)!r} is in the space left-anterior-superior, of which SimpleITK {version} confuses the sides; "
            "update it (pip install -U SimpleITK), or save the scan as NIfTI"
        )


def _ras_from_ijk(image: Any) -> NDArray[np.float64]:
    """The geometry of a SimpleITK image or reader, LPS turned to RAS; a 2-D image lies at z = 0, 1 mm thick."""
    dimension = image.GetDimension()
    n = min(dimension, 3)
    lps_from_ijk = np.eye(4)
    lps_from_ijk[:n, :n] = np.reshape(image.GetDirection(), (dimension, dimension))[:n, :n] * image.GetSpacing()[:n]
    lps_from_ijk[:n, 3] = image.GetOrigin()[:n]
    return _LPS_FROM_RAS @ lps_from_ijk


def _read_dicom_folder(folder: Path, series_uid: Optional[str]) -> StoredImage:
    import SimpleITK as sitk

    find, called = sitk.ImageSeriesReader, name_for_itk(folder)
    listed_by_uid = {uid: find.GetGDCMSeriesFileNames(called, uid) for uid in find.GetGDCMSeriesIDs(called)}
    series = {uid: [folder / Path(name).name for name in names] for uid, names in listed_by_uid.items()}
    if not series:
        raise VolumeError(f"the folder {str(folder)!r} holds no DICOM images; name the folder with the series' files")
    found = {file.name for files in series.values() for file in files}
    left_out = sorted(file.name for file in folder.iterdir() if file.name not in found and _is_dicom(file))
    if left_out:
        logger.warning("%s: DICOM files that cannot be read are left out: %s", folder, ", ".join(left_out))
    listed = ", ".join(f"{uid} ({len(files)} files)" for uid, files in series.items())
    if series_uid is None:
        series_uid = max(series, key=lambda uid: len(series[uid]))
        if len(series) > 1:
            logger.warning("%s holds %d series, reading %s of: %s", folder, len(series), series_uid, listed)
    elif series_uid not in series:
        raise VolumeError(f"the folder {str(folder)!r} has no series {series_uid!r}; it has {listed}")

    files = series[series_uid]
    if len(files) > 1:
        files, matrix, pixel_types = _ordered_slices(files, f"the series {series_uid}")
    if len(files) == 1:
        return _read_simpleitk(files[0])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([name_for_itk(file) for file in files])
    if len(pixel_types) > 1:  # ITK would read all slices in the type that suits the first one's rescaling
        reader.SetOutputPixelType(sitk.sitkFloat32)
    return StoredImage(sitk.GetArrayFromImage(reader.Execute()), matrix)


@contextmanager
def _no_itk_warnings() -> Iterator[None]:
    """ITK writes to the console what is reported here, in words, to the log."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _is_dicom(path: Path) -> bool:
    if not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _ordered_slices(files: Sequence[Path], called: str) -> Tuple[List[Path], NDArray[np.float64], Set[int]]:
    """A series' files along the slices' normal without copies, ras_from_ijk, and the pixel types that hold each slice's
    values as its own slope and intercept make them."""
    import SimpleITK as sitk

    slices: Dict[Tuple[str, bytes], Tuple[Path, NDArray[np.float64]]] = {}
    sizes, pixel_types = set(), set()
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name_for_itk(file))
        reader.ReadImageInformation()
        matrix = _ras_from_ijk(reader)
        instance = reader.GetMetaData(_DICOM_INSTANCE) if reader.HasMetaDataKey(_DICOM_INSTANCE) else ""
        first, _ = slices.setdefault((instance or file.name, matrix.tobytes()), (file, matrix))
        if first != file and not _hold_the_same(first, file):  # whoever wrote them gave several images one identity
            slices[file.name, b""] = file, matrix
        sizes.add(tuple(reader.GetSize()))
        pixel_types.add(reader.GetPixelID())
    if any(size[2:] > (1,) for size in sizes):
        raise VolumeError(f"{called} has {len(files)} files of many frames each; name one, such as {str(files[0])!r}")
    if len(sizes) > 1:
        raise VolumeError(_MIXED.format(called))
    for what, tags in _DICOM_ASSUMED.items():
        if not any(reader.HasMetaDataKey(tag) for tag in tags):
            logger.warning("%s does not tell its %s", called, what)
    if len(slices) < len(files):
        logger.warning("%s: %d files are copies of others and left out", called, len(files) - len(slices))
    files, matrices = [file for file, _ in slices.values()], [matrix for _, matrix in slices.values()]
    if len(files) == 1:
        return files, matrices[0], pixel_types
    order, matrix = _stacked(np.stack(matrices), called)
    return [files[k] for k in order], matrix, pixel_types


def _hold_the_same(one: Path, other: Path) -> bool:
    """Whether two images of one geometry have equal voxels."""
    import SimpleITK as sitk

    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(name_for_itk(path))) for path in (one, other))
    return np.array_equal(first, second)


def _stacked(slices: NDArray[np.float64], called: str) -> Tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Slices, each with its ras_from_ijk (N, 4, 4), as one image: their order along the first one's z axis, and
    ras_from_ijk of the whole. A tilted gantry shears the matrix, as it should."""
    if np.abs(slices[:, :3, :2] - slices[0, :3, :2]).max() > 1e-3:
        raise VolumeError(_MIXED.format(called))
    normal = slices[0, :3, 2] / np.linalg.norm(slices[0, :3, 2])
    heights_mm = slices[:, :3, 3] @ normal
    order = np.argsort(heights_mm, kind="stable")
    heights_mm = heights_mm[order]
    steps_mm = np.diff(heights_mm)
    if steps_mm.min() < 1e-3:
        raise VolumeError(
            f"{called} has several images at one position (a time series, several echoes, or no positions at all); "
            "write one of them to a folder or file of its own"
        )
    deviation_mm = np.abs(heights_mm - np.linspace(heights_mm[0], heights_mm[-1], len(heights_mm))).max()
    if deviation_mm > 0.1 * np.median(steps_mm):
        logger.warning(
            "%s has uneven distances between its slices (%.3g to %.3g mm): slices may be missing. "
            "They are taken as evenly spaced, which puts some of them up to %.3g mm off",
            called,
            steps_mm.min(),
            steps_mm.max(),
            deviation_mm,
        )
    matrix = slices[order[0]].copy()
    matrix[:3, 2] = (slices[order[-1], :3, 3] - matrix[:3, 3]) / (len(slices) - 1)
    return order, matrix


def _read_numpy(path: Path, ras_from_ijk: Any) -> StoredImage:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        if ras_from_ijk is None:
            raise VolumeError(f"{str(path)!r} has no geometry: give ras_from_ijk, or use .npz, which holds both")
        return StoredImage(loaded, np.asarray(ras_from_ijk, dtype=np.float64))
    with loaded:
        missing = {"voxels_zyx", "ras_from_ijk"} - set(loaded.files)
        if missing:
            raise VolumeError(f"{str(path)!r} lacks the array {' and '.join(sorted(missing))}; it has {loaded.files}")
        return StoredImage(loaded["voxels_zyx"], loaded["ras_from_ijk"])


def write_labels(labels_zyx: NDArray[np.uint8], grid: Grid, path: Path, *, nifti_header: Any = None) -> None:
    """Write bytes on a grid; the file appears under its name when it is complete. NIfTI takes its geometry fields from
    the header, if there is one, which must describe the same grid.

    Raises:
        VolumeError: an unknown suffix, a folder that does not exist, a file that cannot be written.
    """
    suffix = _suffix(path, WRITABLE_SUFFIXES)
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {str(path.parent)!r}"
        raise VolumeError(f"{str(path)!r} {problem}; give the name of a file in an existing folder")
    temporary = path.with_name(f".{secrets.token_hex(8)}{suffix}")
    try:
        if suffix in NIBABEL_SUFFIXES:
            _write_nifti(labels_zyx, grid, nifti_header, temporary)
        else:
            _write_simpleitk(labels_zyx, grid, temporary)
        put_in_place(temporary, path)
    except (OSError, RuntimeError) as error:
        raise VolumeError(f"cannot write {str(path)!r}: {_cause(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_nifti(labels_zyx: NDArray[np.uint8], grid: Grid, source_header: Any, path: Path) -> None:
    import nibabel

    if source_header is None:
        image = nibabel.Nifti1Image(labels_zyx.T, grid.ras_from_ijk)
        image.set_sform(grid.ras_from_ijk, code="scanner")
        axes = grid.ras_from_ijk[:3, :3] / grid.spacing_xyz_mm
        perpendicular = np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)
        image.set_qform(grid.ras_from_ijk if perpendicular else None, code="scanner" if perpendicular else "unknown")
        image.header.set_xyzt_units("mm")
    else:
        single = nibabel.Nifti2Image if isinstance(source_header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        header = single.header_class.from_header(source_header, check=False)
        header.extensions.clear()  # they may describe the patient, and are not about the mask
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header.set_intent("none")
        for field in ("descrip", "aux_file", "cal_min", "cal_max"):
            header[field] = type(header)()[field]
        image = single(labels_zyx.T, header.get_best_affine(), header)
    nibabel.save(image, path)


def _write_simpleitk(labels_zyx: NDArray[np.uint8], grid: Grid, path: Path) -> None:
    import SimpleITK as sitk

    lps_from_ijk = _LPS_FROM_RAS @ grid.ras_from_ijk
    image = sitk.GetImageFromArray(labels_zyx)
    image.SetOrigin(lps_from_ijk[:3, 3].tolist())
    image.SetSpacing(grid.spacing_xyz_mm.tolist())
    image.SetDirection((lps_from_ijk[:3, :3] / grid.spacing_xyz_mm).ravel().tolist())
    sitk.WriteImage(image, os.path.join(name_for_itk(path.parent), path.name), useCompression=True)


def name_for_itk(path: Path) -> str:
    """The name of a file or folder by which ITK finds it.

    On Windows ITK takes names for ones in the system's code page, where no others than ASCII characters are as Python
    sends them. There other parts of the name are replaced by the short ones that Windows gives them.

    Raises:
        VolumeError: they have none.
    """
    name = str(path)
    if sys.platform != "win32" or name.isascii() or ctypes.windll.kernel32.GetACP() == _UTF8_CODE_PAGE:
        return name
    found = os.path.join(_short_name(path.parent), path.name) if path.name.isascii() else _short_name(path)
    kept_suffix = path.is_dir() or Path(found).suffix.lower() == path.suffix.lower()  # short ones have three letters
    if not (found.isascii() and kept_suffix):
        raise VolumeError(
            f"{name!r} cannot be opened by SimpleITK, which on Windows knows names of ASCII characters only; rename it "
            "or its folder, or use NIfTI (.nii.gz)"
        )
    return found


def _short_name(path: Path) -> str:
    """Windows' own (8.3); what has none keeps its name."""
    name, found = str(path), ctypes.create_unicode_buffer(_LONGEST_NAME)
    ctypes.windll.kernel32.GetShortPathNameW(name, found, _LONGEST_NAME)  # type: ignore[attr-defined, unused-ignore]
    return found.value or name


def _suffix(path: Path, known: Sequence[str]) -> str:
    name = path.name.lower()
    for suffix in sorted(known, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    raise VolumeError(f"the name {path.name!r} does not end like a format that is known here: {', '.join(known)}")


def _cause(error: BaseException) -> str:
    """The last line of a message: SimpleITK puts its place in the source before it."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
