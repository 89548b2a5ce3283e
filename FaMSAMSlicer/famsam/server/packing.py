"""Masks on the wire: one bit a voxel, zlib-compressed, in base64 text. Probabilities: the same with a byte a voxel.

A 128 x 128 x 128 box takes a few kilobytes. Bits run x fastest, then y, then z; the first voxel is the lowest bit.
"""

from __future__ import annotations

import base64
import binascii
import math
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
    voxels = math.prod(int(n) for n in size_zyx)
    packed = _unpacked(text, (voxels + 7) // 8, f"a mask of {tuple(size_zyx)} voxels (z, y, x)")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=voxels, bitorder="little")
    return bits.view(np.bool_).reshape(size_zyx)


def pack_probabilities(probability_zyx: NDArray[Any]) -> str:
    """(z, y, x) 0 to 1 -> text, in steps of 1/255."""
    steps = np.rint(np.ascontiguousarray(probability_zyx) * 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(steps.tobytes(), 1)).decode("ascii")


def unpack_probabilities(text: str, size_zyx: Tuple[int, int, int]) -> NDArray[np.float32]:
    """Text -> (z, y, x) float32, 0 to 1. Never decompresses more than the size calls for.

    Raises:
        PromptError: the text is no base64 or zlib, or holds another number of voxels.
    """
    packed = _unpacked(text, math.prod(int(n) for n in size_zyx), f"a map of {tuple(size_zyx)} voxels (z, y, x)")
    return (np.frombuffer(packed, np.uint8).reshape(size_zyx) / np.float32(255)).astype(np.float32)


def _unpacked(text: str, expected: int, what: str) -> bytes:
    try:
        unzip = zlib.decompressobj()
        packed = unzip.decompress(base64.b64decode(text, validate=True), expected + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise PromptError(
            f"the voxels of {what} must be zlib-compressed and in base64, which these are not: {error}"
        ) from None
    if len(packed) != expected or not unzip.eof:
        got = "more" if len(packed) > expected else f"{len(packed)}{'' if unzip.eof else ' and cut off'}"
        raise PromptError(f"{what} packs to {expected} bytes, these are {got}")
    return packed
