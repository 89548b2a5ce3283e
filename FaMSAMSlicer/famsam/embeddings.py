"""Encoded views of a scan, kept for the next click."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Iterator, Optional, Tuple, Union

if TYPE_CHECKING:
    from torch import Tensor

    from .model.base import Embedding
    from .resample import CropBox

    Seen = Union[CropBox, Tuple[CropBox, float]]
    """A view as it is, or in the contrast around an intensity (see ``contrast``)."""


class Embeddings:
    """What one model makes of some views of one scan; several sessions, also in several threads, may share it.

    Args:
        most: so many are kept, the least recently used ones dropped first.

    Attributes:
        held_scan: the scan's voxels (z, y, x) on the model's GPU, if they are held there.
    """

    def __init__(self, most: int) -> None:
        self.held_scan: Optional[Tensor] = None
        self._most = most
        self._kept: OrderedDict[Seen, Embedding] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, view: Seen) -> Optional[Embedding]:
        """What is kept of a view."""
        with self._lock:
            found = self._kept.get(view)
            if found is not None:
                self._kept.move_to_end(view)
            return found

    def keep(self, view: Seen, embedding: Embedding) -> None:
        """Keep what was made of a view."""
        with self._lock:
            self._kept[view] = embedding
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()

    def __contains__(self, view: object) -> bool:
        return view in self._kept

    def __iter__(self) -> Iterator[Seen]:
        with self._lock:
            return iter(tuple(self._kept))

    def __len__(self) -> int:
        return len(self._kept)
