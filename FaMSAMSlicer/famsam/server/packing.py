"""Masks on the wire: one bit a voxel, zlib-compressed, in base64 text.

A 128 x 128 x 128 box takes a few kilobytes. Bits run x fastest, then y, then z; the first voxel is the lowest bit.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

from ..errors import PromptError


def pack_bits(mask_zyx: NDArray[Any]) -> str:
    """(z, y, x) bool -> text."""
    bits = np.packbits(np.ascontiguousarray(mask_zyx).reshape(-1), bitorder="little")
    return base64.b64encode(zlib.compress(bits.tobytes(), 1)).decode("ascii")


def unpack_bits(text: str, size_zyx: Tuple[int, int, int]) -> NDArray[np.bool_]:
    """Text -> (z, y, x) bool. Never decompresses more than the size calls for.

    Raises:
        PromptError: the text is no base64 or zlib, or holds another number of bits.
    """
    voxels = int(np.prod([int(n) for n in size_zyx], dtype=object))
    expected = (voxels + 7) // 8
    try:
        unzip = zlib.decompressobj()
        packed = unzip.decompress(base64.b64decode(text, validate=True), expected + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise PromptError(
            f"the mask's bits must be zlib-compressed and in base64, which these are not: {error}"
        ) from None
    if len(packed) != expected or not unzip.eof:
        more = "more" if len(packed) > expected or not unzip.eof else f"{len(packed)} bytes"
        raise PromptError(f"a mask of {tuple(size_zyx)} voxels (z, y, x) packs to {expected} bytes, these are {more}")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=voxels, bitorder="little")
    return bits.view(np.bool_).reshape(size_zyx)
