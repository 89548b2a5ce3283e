"""Layers in 8-bit integers: exact where they must be, close elsewhere, and out of the way of training."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
from famsam.model import int8
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.runtime import autocast, compute_in
from torch import nn

needs_operators = pytest.mark.skipif(not int8.usable(), reason="this PyTorch or processor has no int8 operators")
SMALL = FamsamConfig(stem_channels=(8, 16, 32, 16), token_channels=64, depth=2, decoder_channels=(16, 32, 64))


@pytest.fixture(autouse=True)
def no_product_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "SMALL_PRODUCT", 0)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (-0.28, 5.0), (0.0, 3.0), (-4.0, 0.0), (2.0, 3.0), (0.0, 0.0)])
def test_quantisation_is_within_half_a_step_and_keeps_zero(low: float, high: float) -> None:
    x = torch.linspace(low, high, 999).view(3, 3, 111)
    values, scale, zero = int8.quantised(x)
    assert values.dtype == torch.uint8 and values.shape == x.shape and 0 <= zero <= 255
    torch.testing.assert_close(scale * (values.float() - zero), x, atol=0.5001 * scale, rtol=1e-5)
    assert int8.quantised(torch.cat([x.flatten(), torch.zeros(1)]))[0][-1] == zero


def test_quantisation_keeps_the_layout() -> None:
    x = torch.randn(2, 8, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert int8.quantised(x)[0].stride() == x.stride()


@needs_operators
@pytest.mark.parametrize("stride, kernel, bias", [(1, 3, True), (2, 3, False), (1, 1, True)])
def test_convolution(stride: int, kernel: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = int8.Conv3d(24, 40, kernel, stride=stride, padding=kernel // 2, bias=bias).requires_grad_(False)
    x = torch.randn(2, 24, 9, 10, 11) + 0.3
    exact = layer(x)
    layer.pack()
    found = layer(x)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last_3d)
    assert 0 < relative_error(found, exact) < 0.02


@needs_operators
def test_integers_are_computed_exactly() -> None:
    """Weights and inputs that 8 bits hold exactly give exact sums, at the padded border too."""
    torch.manual_seed(0)
    layer = int8.Conv3d(32, 32, 3, padding=1, bias=False).requires_grad_(False)
    most = int8.largest_weight()
    layer.weight.copy_(torch.randint(-most, most + 1, layer.weight.shape))
    layer.weight[:, 0, 0, 0, 0] = most
    x = torch.randint(-100, 155, (1, 32, 6, 6, 6)).float()
    x[0, 0, 0, 0, :2] = torch.tensor([-100.0, 154.0])
    exact = layer(x.double().float())
    layer.pack()
    torch.testing.assert_close(layer(x), exact, rtol=1e-6, atol=0.5)


@needs_operators
def test_linear() -> None:
    torch.manual_seed(0)
    layer = int8.Linear(256, 96).requires_grad_(False)
    x = torch.randn(2, 50, 256)
    exact = layer(x)
    layer.pack()
    assert 0 < relative_error(layer(x), exact) < 0.02
    assert layer(x.bfloat16()).dtype == torch.float32


@needs_operators
def test_a_small_product_is_computed_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = int8.Linear(16, 4).requires_grad_(False)
    few, many = torch.randn(3, 16), torch.randn(4, 16)
    exact = layer(few), layer(many)
    layer.pack()
    monkeypatch.setattr(int8, "SMALL_PRODUCT", 4 * 16 * 4)
    assert torch.equal(layer(few), exact[0])
    assert not torch.equal(layer(many), exact[1])


@needs_operators
def test_gradients_flow_through_the_exact_layer() -> None:
    layer = int8.Linear(16, 4)
    x = torch.randn(3, 16)
    exact = layer(x)
    layer.pack()
    learning = layer(x)
    assert torch.equal(learning, exact)
    learning.sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert not torch.equal(layer(x), exact)


@needs_operators
def test_pack_again_follows_the_weights() -> None:
    layer = int8.Conv3d(8, 8, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 8, 4, 4, 4)
    layer.pack()
    before = layer(x)
    layer.weight.mul_(2)
    layer.pack()
    torch.testing.assert_close(layer(x) - layer.bias.view(-1, 1, 1, 1), 2 * (before - layer.bias.view(-1, 1, 1, 1)))


@needs_operators
def test_a_whole_network_stays_close_and_keeps_its_parameters() -> None:
    torch.manual_seed(0)
    exact = Famsam(SMALL).eval().requires_grad_(False)
    packed = copy.deepcopy(exact)
    compute_in("int8", packed)
    assert packed.precision == "int8"
    assert packed.state_dict().keys() == exact.state_dict().keys()
    crop = nn.functional.interpolate(torch.randn(1, 1, 8, 8, 8), size=(64,) * 3, mode="trilinear")
    points, labels = torch.tensor([[[32.0, 32.0, 32.0]]]), torch.tensor([[1]])
    wanted, _ = exact.decode(exact.encode(crop), points, labels)
    with torch.inference_mode(), autocast(torch.device("cpu"), "int8"):
        found, _ = packed.decode(packed.encode(crop), points, labels)
    assert 0 < relative_error(found, wanted) < 0.05


WITHOUT_VNNI = """
import torch
from famsam.model import int8
layer = int8.Conv3d(16, 16, 3, padding=1, bias=False).requires_grad_(False)
torch.nn.init.ones_(layer.weight)
x = torch.full((1, 16, 8, 8, 8), 3.0)
exact = layer(x)
layer.pack()
torch.testing.assert_close(layer(x), exact, rtol=1e-3, atol=0)
assert int8.usable() and int8.largest_weight() == int8.MOST_WITHOUT_VNNI
"""


@needs_operators
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for instructions of x86-64 processors")
def test_sums_do_not_overflow_without_vnni() -> None:
    """oneDNN is told to use no newer instructions than those of most laptops, which add two products in 16 bits."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", WITHOUT_VNNI], env=environment, check=True)


def test_missing_operators_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_samples", lambda size: [(None, torch.zeros(1))])
    int8.usable.cache_clear()
    try:
        assert not int8.usable()
    finally:
        int8.usable.cache_clear()


def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_error", lambda layer, x: 0.5)
    int8.usable.cache_clear()
    try:
        assert not int8.usable()
    finally:
        int8.usable.cache_clear()


@needs_operators
def test_in_floats_for_a_while() -> None:
    layer = int8.Linear(16, 4).requires_grad_(False)
    x = torch.randn(3, 16)
    exact = layer(x)
    layer.pack()
    packed = layer(x)
    with int8.in_floats(nn.Sequential(layer)):
        assert torch.equal(layer(x), exact)
    assert torch.equal(layer(x), packed)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("size, stride", [(16, 1), (16, 2), (5, 1)])
def test_the_direct_operator_computes_the_same(size: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = int8.Conv3d(16, 8, 3, stride=stride, padding=1)
    x = torch.randn(1, 16, size, size, size).contiguous(memory_format=torch.channels_last_3d)
    expected = layer(x).detach()
    int8.compute_fp32_fast(nn.Sequential(layer))
    assert layer.direct and layer(x).requires_grad, "learning goes on as before"
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
