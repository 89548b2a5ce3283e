"""Encoded views that are kept, and shared between sessions."""

from __future__ import annotations

from typing import Any, List

import numpy as np
import pytest
from famsam import Session, Volume
from famsam.embeddings import Embeddings
from famsam.resample import CropBox

POINTS = [(0.0, 0.0, 0.0), (6.0, 2.0, 1.0)]


def view(z: float) -> CropBox:
    return CropBox((z, 0.0, 0.0), 1.5, 128)


def test_the_least_recently_used_is_dropped_first() -> None:
    kept: Any = Embeddings(2)
    kept.keep(view(1), "one")
    kept.keep(view(2), "two")
    assert kept.get(view(1)) == "one"
    kept.keep(view(3), "three")
    assert list(kept) == [view(1), view(3)] and len(kept) == 2
    assert kept.get(view(2)) is None and view(2) not in kept
    kept.clear()
    assert list(kept) == []


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from famsam.model.famsam import Famsam

    torch.manual_seed(0)
    return Famsam().eval()


class Counting:
    """The real model, with the number of its encodes."""

    def __init__(self, model: Any) -> None:
        self._model, self.encodes = model, 0

    def encode(self, crop: Any) -> Any:
        self.encodes += 1
        return self._model.encode(crop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def ball() -> Volume:
    z, y, x = np.indices((24, 28, 32))
    inside = (z - 12) ** 2 + (y - 14) ** 2 + (x - 16) ** 2 < 49
    matrix = np.diag([1.5, 1.5, 1.5, 1.0])
    matrix[:3, 3] = [-24, -21, -18]
    return Volume((inside * 300 + z + x).astype(np.int16), matrix)


def masks(session: Session) -> List[np.ndarray]:
    return [session.add_point(point).mask_zyx for point in POINTS]


def test_sessions_that_share_encode_once_and_see_the_same(model: Any) -> None:
    counting: Any = Counting(model)
    alone = Session(counting)
    alone.set_image(ball())
    expected = masks(alone)
    assert counting.encodes > 0
    shared, volume, encodes = Embeddings(16), ball(), []
    for _ in range(2):
        counting.encodes = 0
        session = Session(counting)
        session.set_image(volume, shared)
        for seen, meant in zip(masks(session), expected):
            np.testing.assert_array_equal(seen, meant)
        encodes.append(counting.encodes)
    assert encodes[0] > 0 and encodes[1] == 0
