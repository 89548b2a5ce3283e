"""Convolutions where PyTorch has no oneDNN: the same numbers, by products of matrices."""

from __future__ import annotations

from typing import Tuple

import pytest
import torch
import torch.nn.functional as F
from famsam.model import int8
from famsam.model.convolution import as_products
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.runtime import compute_in

SMALL = FamsamConfig(stem_channels=(8, 16, 32, 16), token_channels=64, depth=2, decoder_channels=(16, 32, 64))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel, padding", [((3, 3, 3), (1, 1, 1)), ((1, 1, 1), (0, 0, 0)), ((1, 2, 3), (0, 1, 2))])
def test_products_are_the_convolution(
    batch: int, bias: bool, kernel: Tuple[int, ...], padding: Tuple[int, ...]
) -> None:
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 5, 6, 7, 8, generator=dice)
    weight = torch.randn(4, 5, *kernel, generator=dice)
    offsets = torch.randn(4, generator=dice) if bias else None
    found = as_products(x, weight, offsets, padding)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found, F.conv3d(x, weight, offsets, padding=padding), atol=1e-4, rtol=1e-4)


def test_the_model_says_the_same_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Famsam(SMALL).eval().requires_grad_(False)
    crop, points, labels = torch.randn(1, 1, 32, 32, 32), torch.tensor([[[16.0, 15.0, 14.0]]]), torch.tensor([[1]])

    def answer() -> Tuple[torch.Tensor, torch.Tensor]:
        compute_in("fp32", model)
        return model.decode(model.encode(crop), points, labels)

    expected = answer()
    called = []

    def counted(*args: object) -> torch.Tensor:
        called.append(args)
        return as_products(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(int8, "as_products", counted)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    found = answer()
    assert called
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
