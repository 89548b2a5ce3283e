"""A small scan in several formats, and a live server."""

from __future__ import annotations

import io
import socket
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from typing import Any, Iterator, List, Sequence

import httpx
import nibabel
import numpy as np
import pytest
from famsam.server.limits import MIB, Limits

TEST_LIMITS = Limits(
    upload_bytes=8 * MIB,
    volume_bytes=4 * MIB,
    body_bytes=1 * MIB,
    volumes=6,
    sessions=8,
    prompts=6,
    read_timeout_s=60.0,
)
SIZE_ZYX = (20, 24, 28)
RAS_FROM_IJK = np.array([[-1.5, 0, 0, 20], [0, 2, 0, -25], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])  # left to right is reversed
CENTRE_RAS_MM = (RAS_FROM_IJK @ (14, 12, 10, 1))[:3].tolist()


def ball_zyx() -> np.ndarray:
    """int16, a bright ball in a dark, slightly graded surrounding."""
    z, y, x = np.indices(SIZE_ZYX)
    inside = (z - 10) ** 2 + (y - 12) ** 2 + (x - 14) ** 2 < 36
    return (inside * 300 + z + y + x).astype(np.int16)


def nifti_bytes(voxels_zyx: np.ndarray, ras_from_ijk: Any = RAS_FROM_IJK) -> bytes:
    return nibabel.Nifti1Image(voxels_zyx.T, ras_from_ijk).to_bytes()


def dicom_zip(
    voxels_zyx: np.ndarray, *, transfer: str = "1.2.840.10008.1.2.1", without: Sequence[str] = ()
) -> bytes:
    """A series of axial CT slices, in a zip in shuffled order, with a file that is no DICOM beside them.

    Args:
        without: names of the elements that the slices lack.
    """
    pydicom = pytest.importorskip("pydicom", minversion="3", reason="the series is written by pydicom 3 (Python 3.10)")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, generate_uid

    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("series/readme.txt", "no image")
        for z in np.random.default_rng(0).permutation(len(voxels_zyx)):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
            meta.TransferSyntaxUID = pydicom.uid.UID(transfer)
            slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
            slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            slice_.PatientName, slice_.PatientID = "Doe^Jane", "secret-7"
            slice_.PatientBirthDate = slice_.PatientSex = slice_.StudyDate = slice_.StudyTime = slice_.StudyID = ""
            slice_.AccessionNumber = slice_.ReferringPhysicianName = ""
            slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "CT", 1, int(z) + 1
            slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
            slice_.PixelSpacing, slice_.SliceThickness = [2.0, 1.5], 2.5
            slice_.ImagePositionPatient = [-20.0, 25.0, 5 + 2.5 * int(z)]
            slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            slice_.PositionReferenceIndicator = ""
            slice_.Rows, slice_.Columns = voxels_zyx.shape[1:]
            slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
            slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
            slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
            for name in without:
                delattr(slice_, name)
            slice_.PixelData = voxels_zyx[z].astype("<i2").tobytes()
            file = io.BytesIO()
            slice_.save_as(file, enforce_file_format=True)
            archive.writestr(f"series/{int(z) * 7 % 97}/IM{int(z)}", file.getvalue())
    return packed.getvalue()


@contextmanager
def live(app: Any, **headers: str) -> Iterator[httpx.Client]:
    """A client of the application, served by uvicorn on a free port of loopback."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def upload(client: httpx.Client, content: Any) -> httpx.Response:
    return client.post("/v1/volumes", content=content, headers={"content-type": "application/octet-stream"})


class Relay:
    """A listener in front of a server that can drop connections, with or without the answers that are on their way."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: List[socket.socket] = []
        self.swallows_next_answer = False
        threading.Thread(target=self._accept, daemon=True).start()

    def drop_connections(self) -> None:
        for end in self._open:
            with suppress(OSError):  # it is closed already
                end.shutdown(socket.SHUT_RDWR)
        self._open = []

    def close(self) -> None:
        self.drop_connections()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: over
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with source, suppress(OSError):
            while True:
                data = source.recv(1 << 16)
                if answers and data and self.swallows_next_answer:
                    self.swallows_next_answer = False
                    data = b""
                if not data:
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)
