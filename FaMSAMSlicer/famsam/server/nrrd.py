"""NRRD files in memory: how the client sends a scan, and how segmentations reach 3D Slicer."""

from __future__ import annotations

import zlib
from typing import Any, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

_TYPES = {
    "int8": "int8",
    "uint8": "uint8",
    "int16": "int16",
    "uint16": "uint16",
    "int32": "int32",
    "uint32": "uint32",
    "int64": "int64",
    "uint64": "uint64",
    "float32": "float",
    "float64": "double",
}
_CHUNK_BYTES = 8 << 20


def nrrd_chunks(
    voxels: NDArray[Any], ras_from_ijk: Any, fields: Mapping[str, str], compress: bool = True
) -> Iterator[bytes]:
    """The bytes of a NRRD file, chunk by chunk, with its geometry in double precision.

    Args:
        voxels: (z, y, x), or (z, y, x, layer) for several label maps on one grid; integers or floats.
        ras_from_ijk: (4, 4), (x, y, z) index -> RAS mm.
        fields: key/value pairs for the header.
        compress: with gzip's fastest level, else raw.
    """
    matrix = np.asarray(ras_from_ijk, np.float64)
    vectors = [_vector(matrix[:3, axis]) for axis in range(3)]
    layered = voxels.ndim == 4
    size = [*voxels.shape[3:], *voxels.shape[2::-1]]
    lines = [
        "NRRD0004",
        f"type: {_TYPES[voxels.dtype.name]}",
        f"dimension: {voxels.ndim}",
        "space: right-anterior-superior",
        f"sizes: {' '.join(str(n) for n in size)}",
        f"space directions: {'none ' if layered else ''}{' '.join(vectors)}",
        f"kinds: {'list ' if layered else ''}domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {_vector(matrix[:3, 3])}",
        *(f"{key}:={_one_line(value)}" for key, value in fields.items()),
    ]
    header = ("\n".join(lines) + "\n\n").encode("utf-8")
    yield header
    zipper = zlib.compressobj(1, zlib.DEFLATED, 31)  # 31: gzip's frame
    slab_bytes = max(1, voxels[0].size * voxels.dtype.itemsize)
    step = max(1, _CHUNK_BYTES // slab_bytes)
    for first in range(0, len(voxels), step):
        raw = np.ascontiguousarray(voxels[first : first + step], voxels.dtype.newbyteorder("<")).tobytes()
        yield zipper.compress(raw) if compress else raw
    if compress:
        yield zipper.flush()


def _vector(numbers: Any) -> str:
    return "(" + ",".join(repr(float(number)) for number in numbers) + ")"


def _one_line(text: str) -> str:
    """A header value is one line, in which a backslash stands before what it changes the meaning of."""
    return " ".join(text.split()).replace("\\", "\\\\")
