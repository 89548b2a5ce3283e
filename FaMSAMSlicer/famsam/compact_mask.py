"""A mask kept as the box that holds its foreground, packed to bits: cheap to keep many of, for undo of any depth."""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Dict, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .errors import PromptError
from .geometry import Box, bounding_box, box_slices, intersect, union

Size = Tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class CompactMask:
    """An immutable bool mask on a grid of ``size_zyx`` voxels.

    Attributes:
        size_zyx: the whole grid.
        box_zyx: half-open box that holds the foreground; None if there is none.
        bits: the box's voxels in C order, packed.
    """

    size_zyx: Size
    box_zyx: Optional[Box]
    bits: bytes = b""

    @classmethod
    def empty(cls, size_zyx: Size) -> CompactMask:
        return cls(size_zyx, None)

    @classmethod
    def of(cls, size_zyx: Size, voxels_zyx: NDArray[np.bool_], origin_zyx: Size = (0, 0, 0)) -> CompactMask:
        """From the bool voxels of a part of the grid that begins at ``origin_zyx``; the rest is background."""
        box = bounding_box(voxels_zyx)
        if box is None:
            return cls.empty(size_zyx)
        tight = voxels_zyx[box_slices(box)]
        low, high = (tuple(int(a + b) for a, b in zip(corner, origin_zyx)) for corner in box)
        return cls(size_zyx, (low, high), np.packbits(tight).tobytes())  # type: ignore[arg-type]

    @property
    def box_size_zyx(self) -> Size:
        if self.box_zyx is None:
            return (0, 0, 0)
        return tuple(high - low for low, high in zip(*self.box_zyx))  # type: ignore[return-value]

    @cached_property
    def count(self) -> int:
        """How many voxels are foreground."""
        return int(np.count_nonzero(self.voxels()))

    def voxels(self) -> NDArray[np.bool_]:
        """The box's voxels, (z, y, x) bool, a new array."""
        size = self.box_size_zyx
        count = math.prod(size)
        packed = np.frombuffer(self.bits, dtype=np.uint8)
        return np.unpackbits(packed, count=count).view(np.bool_).reshape(size)

    def at(self, index_zyx: Size) -> bool:
        """One voxel, without unpacking the rest."""
        if self.box_zyx is None or not all(a <= i < b for i, a, b in zip(index_zyx, *self.box_zyx)):
            return False
        offset = int(np.ravel_multi_index(tuple(i - a for i, a in zip(index_zyx, self.box_zyx[0])), self.box_size_zyx))
        return bool(self.bits[offset >> 3] >> (7 - (offset & 7)) & 1)

    def within(self, box_zyx: Box) -> NDArray[np.bool_]:
        """The voxels of any box of the grid, a new array."""
        out = np.zeros(tuple(high - low for low, high in zip(*box_zyx)), dtype=bool)
        shared = intersect(self.box_zyx, box_zyx) if self.box_zyx else None
        if shared is not None and self.box_zyx is not None:
            out[_slices(shared, box_zyx[0])] = self.voxels()[_slices(shared, self.box_zyx[0])]
        return out

    def dense(self) -> NDArray[np.bool_]:
        """The whole grid, a new array; untouched pages cost no memory."""
        out = np.zeros(self.size_zyx, dtype=bool)
        if self.box_zyx is not None:
            out[box_slices(self.box_zyx)] = self.voxels()
        return out

    def replaced(self, region_zyx: Box, voxels_zyx: NDArray[np.bool_], origin_zyx: Size) -> CompactMask:
        """This mask with ``region_zyx`` replaced by voxels (of a part of the region that begins at ``origin_zyx``)."""
        end = tuple(o + n for o, n in zip(origin_zyx, voxels_zyx.shape))
        whole = union(self.box_zyx, (origin_zyx, end) if voxels_zyx.size else None)
        if whole is None:
            return self
        out = self.within(whole)
        cleared = intersect(region_zyx, whole)
        if cleared is not None:
            out[_slices(cleared, whole[0])] = False
        if voxels_zyx.size:
            out[_slices((origin_zyx, end), whole[0])] = voxels_zyx
        return CompactMask.of(self.size_zyx, out, whole[0])

    def united(self, other: CompactMask) -> CompactMask:
        """What is in this mask or in another on the same grid."""
        whole = union(self.box_zyx, other.box_zyx)
        if whole is None:
            return self
        return CompactMask.of(self.size_zyx, self.within(whole) | other.within(whole), whole[0])

    def shared(self, other: CompactMask) -> CompactMask:
        """What is in both this mask and another on the same grid."""
        both = intersect(self.box_zyx, other.box_zyx) if self.box_zyx and other.box_zyx else None
        if both is None:
            return CompactMask.empty(self.size_zyx)
        return CompactMask.of(self.size_zyx, self.within(both) & other.within(both), both[0])

    def overlaps(self, other: CompactMask, iou: float) -> bool:
        """Whether intersection over union with another mask on the same grid is larger than ``iou``."""
        both = intersect(self.box_zyx, other.box_zyx) if self.box_zyx and other.box_zyx else None
        fewer, more = sorted((self.count, other.count))
        if both is None or fewer <= iou * more:  # one within the other has fewer / more
            return False
        shared = np.count_nonzero(self.within(both) & other.within(both))
        return bool(shared > iou * (fewer + more - shared))

    def changed_box(self, other: CompactMask) -> Optional[Box]:
        """The smallest box outside of which this mask and another on the same grid agree; None if they are equal."""
        whole = union(self.box_zyx, other.box_zyx)
        if whole is None or (self.box_zyx == other.box_zyx and self.bits == other.bits):
            return None
        found = bounding_box(self.within(whole) ^ other.within(whole))
        if found is None:
            return None
        low, high = (tuple(int(a + b) for a, b in zip(corner, whole[0])) for corner in found)
        return low, high  # type: ignore[return-value]

    def to_dict(self) -> Dict[str, Any]:
        """JSON-able form."""
        box = None if self.box_zyx is None else [list(corner) for corner in self.box_zyx]
        return {"size_zyx": list(self.size_zyx), "box_zyx": box, "bits": self._compressed}

    @cached_property
    def _compressed(self) -> str:
        """Made once: a host asks for it after every click."""
        return base64.b64encode(zlib.compress(self.bits, 6)).decode("ascii")

    @classmethod
    def from_dict(cls, state: Dict[str, Any]) -> CompactMask:
        """Inverse of ``to_dict``.

        Raises:
            PromptError: the state is damaged.
        """
        try:
            size = tuple(int(n) for n in state["size_zyx"])
            if len(size) != 3 or min(size) < 1:
                raise ValueError(f"size {size}")
            if state["box_zyx"] is None:
                return cls.empty(size)
            low, high = (tuple(int(v) for v in corner) for corner in state["box_zyx"])
            if not len(low) == len(high) == 3 or not all(0 <= a < h <= n for a, h, n in zip(low, high, size)):
                raise ValueError(f"box {low} to {high} of {size}")
            count = (math.prod(h - a for a, h in zip(low, high)) + 7) // 8
            bits = zlib.decompressobj().decompress(base64.b64decode(state["bits"]), count + 1)
            if len(bits) != count:
                raise ValueError(f"box {low} to {high} with {len(bits)} bytes of voxels")
        except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
            raise PromptError(f"Expected a mask as CompactMask.to_dict writes it, got {error!r}.") from error
        return cls(size, (low, high), bits)


def _slices(box_zyx: Box, origin_zyx: Size) -> Tuple[slice, ...]:
    return tuple(slice(low - o, high - o) for low, high, o in zip(*box_zyx, origin_zyx))
