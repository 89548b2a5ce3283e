"""From the bytes that a client sent to a volume, in a process of its own.

Image files come from anywhere, and the libraries that read them are written in C++: a damaged or hostile file may take
all memory, never end, or bring its process down. So a child process reads it, under limits of memory and time, and the
server only loads the plain array that it leaves behind.

    python -m famsam.server.intake REQUEST.json     # what the server starts; the answer is one line of JSON
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import FamsamError, VolumeError
from ..image_files import name_for_itk
from ..volume import Volume, read_volume
from .limits import MIB, Limits

logger = logging.getLogger(__name__)

ACCEPTED = "NIfTI (.nii, .nii.gz), NRRD (.nrrd), MetaImage (.mha), a DICOM file, or a zipped DICOM series (.zip)"
_HEADER_BYTES = MIB


class Intake:
    """A scan as it was read.

    Attributes:
        volume: the scan.
        modality: "CT", "MR" and so on where DICOM says so, else "".
        dicom_folder: the series' files, for a DICOM SEG that refers to them; None for other formats.
        notes: sentences that the user should read, such as that slices seem to be missing.
    """

    def __init__(
        self, volume: Volume, modality: str, dicom_folder: Optional[Path], notes: Sequence[str] = ()
    ) -> None:
        self.volume = volume
        self.modality = modality
        self.dicom_folder = dicom_folder
        self.notes = list(notes)


def take_in(path: Path, folder: Path, limits: Limits) -> Intake:
    """Read a file or a DICOM folder in a child process.

    Args:
        path: what to read; its name does not matter, its content tells the format.
        folder: private scratch space; a DICOM series stays there.
        limits: of size, memory and time.

    Raises:
        VolumeError: what was wrong with it, in a sentence that holds no path and nothing of the scan.
    """
    request = folder / "request.json"
    wanted = {"volume_bytes": limits.volume_bytes, "files_in_zip": limits.files_in_zip}
    request.write_text(json.dumps({"path": str(path), "folder": str(folder), "limits": wanted}))
    package_root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    try:
        child = subprocess.run(
            [sys.executable, "-m", "famsam.server.intake", str(request)],
            env={
                **os.environ,
                "PYTHONPATH": search,
                "OMP_NUM_THREADS": "1",
                "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limits.read_timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise VolumeError(f"reading the scan took more than {limits.read_timeout_s:g} s and was given up") from None
    lines = child.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        logger.warning("the process that read a scan ended with code %d", child.returncode)
        raise VolumeError("the scan could not be read: its file is damaged, or asks for too much memory") from None
    if "error" in answer:
        raise VolumeError(answer["error"])
    stored = folder / "voxels.npy"
    voxels_zyx = np.load(stored, allow_pickle=False)
    for left in [stored, request] if answer["dicom_folder"] else list(folder.iterdir()):
        left.unlink()  # what a DICOM SEG refers to stays
    volume = Volume(voxels_zyx, answer["ras_from_ijk"], source_header=_header_from_text(answer["nifti_header"]))
    dicom_folder = Path(answer["dicom_folder"]) if answer["dicom_folder"] else None
    return Intake(volume, answer["modality"], dicom_folder, answer["notes"])


def read_request(request: Dict[str, Any]) -> Dict[str, Any]:
    """The child's work: check, read, leave the voxels as ``voxels.npy``."""
    source, folder = Path(request["path"]), Path(request["folder"])
    max_bytes = int(request["limits"]["volume_bytes"])
    if not source.exists():
        raise VolumeError("there is no such file or folder on the server")
    kind = "folder" if source.is_dir() else _kind(source)
    dicom = kind in ("folder", "zip", "dcm")
    if kind == "folder":
        files = sorted(entry for entry in source.iterdir() if entry.is_file())
    elif kind == "zip":
        files = _unzip(source, folder / "series", max_bytes, int(request["limits"]["files_in_zip"]))
        if source.parent == folder:
            source.unlink()
    else:
        files = [source]
    modality = _check_dicom(files, max_bytes) if dicom else ""
    if kind == "folder":
        readable = source
    elif kind == "zip":
        readable = folder / "series"
    else:
        readable = _with_suffix(source, folder, kind)
        if not dicom:
            _check_header(readable, kind, max_bytes)
    try:
        with _noted() as noted:
            volume = read_volume(readable)
    except FamsamError as error:
        raise VolumeError(_without_path(str(error), readable)) from None
    if volume.voxels_zyx.nbytes > max_bytes:
        raise VolumeError(_too_large(volume.voxels_zyx.nbytes, max_bytes))
    np.save(folder / "voxels.npy", volume.voxels_zyx)
    header = volume.source_header
    return {
        "ras_from_ijk": volume.grid.ras_from_ijk.tolist(),
        "nifti_header": base64.b64encode(header.binaryblock).decode("ascii") if header is not None else None,
        "modality": modality,
        "notes": [_without_path(text, readable) for text in noted],
        "dicom_folder": str(readable if readable.is_dir() else readable.parent) if dicom else None,
    }


def _with_suffix(source: Path, folder: Path, kind: str) -> Path:
    """The file under a name in the private folder, since the readers go by the suffix; a user's own stays in place."""
    readable = folder / f"scan.{kind}"
    if source.parent == folder:
        return source.rename(readable)
    try:
        readable.symlink_to(source.resolve())
    except OSError:  # Windows lets few users make links
        shutil.copyfile(source, readable)
    return readable


def _without_path(text: str, path: Path) -> str:
    """A reader's sentence without the name of what it read, and with the ends of long ids alone."""
    for spelt in (repr(str(path)), repr(str(path))[1:-1], str(path)):  # on Windows the second differs from the third
        text = text.replace(f"folder {spelt}", "folder").replace(spelt, "the scan" if path.is_dir() else "the file")
    return re.sub(r"\b[\d.]{12,}(\d{4})\b", r"...\1", text)


@contextmanager
def _noted() -> Iterator[List[str]]:
    """What famsam warns of meanwhile."""
    noted: List[str] = []
    collector = logging.Handler(logging.WARNING)
    collector.emit = lambda record: noted.append(record.getMessage())  # type: ignore[method-assign]
    famsam_logger = logging.getLogger("famsam")
    famsam_logger.addHandler(collector)
    try:
        yield noted
    finally:
        famsam_logger.removeHandler(collector)


def _kind(path: Path) -> str:
    """The suffix that fits the file's content."""
    with path.open("rb") as file:
        start = file.read(544)
    if start[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as unzipped:
                start = unzipped.read(544)
        except (OSError, EOFError, ValueError):
            raise VolumeError("the file is compressed with gzip, but it is truncated or damaged") from None
        if _is_nifti(start):
            return "nii.gz"
        raise VolumeError(f"the compressed file holds no NIfTI image; expected {ACCEPTED}")
    if start[:4] == b"NRRD":
        return "nrrd"
    if start[:2] == b"PK":
        return "zip"
    if start[128:132] == b"DICM":
        return "dcm"
    if _is_nifti(start):
        return "nii"
    if re.match(rb"\s*(ObjectType|NDims|Comment|ObjectSubType)\s*=", start):
        return "mha"
    raise VolumeError(f"the file is of no kind that is known here; expected {ACCEPTED}")


def _is_nifti(start: bytes) -> bool:
    return start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0")


def _check_header(path: Path, kind: str, max_bytes: int) -> None:
    """What the header announces fits the limits, and it refers to no other file."""
    if kind in ("nii", "nii.gz"):
        import nibabel

        try:
            image: Any = nibabel.load(path)
        except Exception as error:  # nibabel has no common root for what a damaged header may cause
            raise VolumeError(f"the NIfTI header is damaged: {str(error).splitlines()[0]}") from None
        shape, itemsize = image.shape, image.get_data_dtype().itemsize
        if min(shape, default=0) < 1:
            raise VolumeError(f"the NIfTI header announces the size {tuple(shape)}; every axis needs a voxel at least")
        announced = math.prod(int(n) for n in shape) * itemsize
        if image.dataobj.offset > 16 * MIB:
            raise VolumeError("the NIfTI header announces its voxels at an impossible place in the file")
        stored = path.stat().st_size
        if kind == "nii" and announced + image.dataobj.offset > stored and announced <= max_bytes:
            raise VolumeError(f"the NIfTI header announces {announced} bytes of voxels, the file has {stored} in all")
    else:
        with path.open("rb") as file:
            text = file.read(_HEADER_BYTES)
        if kind == "nrrd":
            text = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0]
            if re.search(rb"^\s*data\s*file\s*:", text, re.IGNORECASE | re.MULTILINE):
                raise VolumeError("the NRRD header refers to another file; send one that holds its voxels itself")
        else:
            places = re.findall(rb"elementdatafile\s*=\s*(\S+)", text, re.IGNORECASE)
            if not places or any(place != b"LOCAL" for place in places):
                raise VolumeError("the MetaImage header must say ElementDataFile = LOCAL: one file, with its voxels")
            sizes = [int(number) for number in re.findall(rb"compresseddatasize\s*=\s*(\d{1,18})", text, re.IGNORECASE)]
            if any(size > path.stat().st_size for size in sizes):
                raise VolumeError("the MetaImage header announces more compressed bytes than the file has")
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetFileName(name_for_itk(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            raise VolumeError(f"the {'NRRD' if kind == 'nrrd' else 'MetaImage'} header is damaged") from None
        itemsize = 8 if "64" in sitk.GetPixelIDValueAsString(reader.GetPixelID()) else 4
        announced = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * itemsize
        max_bytes *= itemsize  # the exact size is known after reading
    if announced > max_bytes:
        raise VolumeError(_too_large(announced, max_bytes))


def _unzip(archive: Path, folder: Path, max_bytes: int, max_files: int) -> List[Path]:
    """The DICOM files of a zip, under names of our own; stops when they grow too large."""
    folder.mkdir()
    kept: List[Path] = []
    budget = max_bytes + 64 * MIB
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > max_files:
                raise VolumeError(f"the zip holds {len(entries)} files; at most {max_files} are read")
            for entry in entries:
                with opened.open(entry) as source:
                    start = source.read(132)
                    if start[128:132] != b"DICM":
                        continue
                    target = folder / f"{len(kept):06d}.dcm"
                    with target.open("wb") as copy:
                        copy.write(start)
                        budget -= len(start)
                        while chunk := source.read(MIB):
                            budget -= len(chunk)
                            if budget < 0:
                                raise VolumeError(f"the zip unpacks to more than {max_bytes // MIB} MiB")
                            copy.write(chunk)
                kept.append(target)
    except VolumeError:
        raise
    except Exception as error:  # zipfile has no common root for what a damaged archive may cause
        locked = "encrypted" in str(error)
        raise VolumeError(f"the zip is {'encrypted: send it unlocked' if locked else 'damaged or truncated'}") from None
    if not kept:
        raise VolumeError("the zip holds no DICOM files; zip the folder of one series")
    return kept


def _check_dicom(files: List[Path], max_bytes: int) -> str:
    """The series' voxels fit the limit; returns its modality."""
    import pydicom

    announced, modality = 0, ""
    for file in files:
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_SIZE_TAGS)
            numbers: Tuple[Any, ...] = tuple(dataset.get(tag) or 1 for tag in _SIZE_TAGS[:4])
            announced += math.prod(int(n) for n in numbers) * max(1, int(dataset.get("BitsAllocated") or 8) // 8)
            modality = modality or str(dataset.get("Modality") or "")
        except Exception:  # no DICOM file, or a damaged one: the reader of the series tells
            continue
    if announced > max_bytes:
        raise VolumeError(_too_large(announced, max_bytes))
    return modality if re.fullmatch(r"[A-Z]{2,16}", modality) else ""


_SIZE_TAGS: List[Any] = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "Modality"]


def _too_large(announced_bytes: int, max_bytes: int) -> str:
    return (
        f"the scan's voxels take {announced_bytes / MIB:.0f} MiB, this server opens at most {max_bytes / MIB:.0f} MiB; "
        "crop or resample it, or start the server with a higher --max-volume-mib"
    )


def _header_from_text(text: Optional[str]) -> Any:
    if text is None:
        return None
    import nibabel

    block = base64.b64decode(text)
    kind = nibabel.Nifti2Header if len(block) == nibabel.Nifti2Header.sizeof_hdr else nibabel.Nifti1Header
    return kind(block, check=False)


def _limit_memory(max_bytes: int) -> None:
    """Keep this process to so much memory, where the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    except (ImportError, ValueError, OSError) as error:  # Windows has none, macOS refuses it, a lower one stays
        logger.info("the memory of a process that reads a scan is not limited: %s", error)


def main() -> int:
    """Answer one request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    _limit_memory(4 * int(request["limits"]["volume_bytes"]) + 2048 * MIB)
    try:
        answer = read_request(request)
    except VolumeError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "the scan needs more memory than this server gives to one"}
    except OSError as error:
        answer = {"error": f"the scan could not be read: {error.strerror or 'its file is damaged'}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
