"""A scan's voxels for display: NIfTI on the canonical axes, sent slab by slab so that no copy of the whole is made."""

from __future__ import annotations

from typing import Any, Iterator, Tuple

import numpy as np

from ..volume import Volume

_CHUNK_BYTES = 4 << 20
_DISPLAYABLE = ("uint8", "int16", "uint16", "int32", "float32")


def nifti_chunks(volume: Volume) -> Tuple[int, Iterator[bytes]]:
    """The length in bytes of a NIfTI file, and its bytes.

    Its axes are the scan's own, permuted and flipped to run closest to right, anterior and superior; values of a type
    that browsers cannot draw become float32.
    """
    import nibabel

    canonical_zyx = volume.canonical.to_canonical(volume.voxels_zyx)
    dtype = canonical_zyx.dtype
    if dtype == np.int8:
        dtype = np.dtype(np.int16)
    elif dtype.name not in _DISPLAYABLE:
        dtype = np.dtype(np.float32)
    header: Any = nibabel.Nifti1Header()
    header.set_data_shape(canonical_zyx.shape[::-1])
    header.set_data_dtype(dtype)
    header.set_sform(volume.canonical.grid.ras_from_ijk, code="scanner")
    header.set_zooms(volume.canonical.grid.spacing_xyz_mm)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    start = header.binaryblock + b"\0\0\0\0"
    wire = dtype.newbyteorder("<")

    def chunks() -> Iterator[bytes]:
        yield start
        step = max(1, _CHUNK_BYTES // max(1, canonical_zyx[0].size * wire.itemsize))
        for first in range(0, len(canonical_zyx), step):
            yield np.ascontiguousarray(canonical_zyx[first : first + step], wire).tobytes()

    return len(start) + canonical_zyx.size * wire.itemsize, chunks()
