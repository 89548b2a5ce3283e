"""Convolutions and linear layers that may compute in 8-bit integers on a CPU.

Weights are quantised once, symmetrically and per output channel; activations at every call, asymmetrically and per
tensor, over the range they have then (dynamic quantisation: nothing to calibrate, nothing is clipped). Sums are exact
32-bit integers and come out as fp32. Processors with VNNI instructions multiply 8-bit integers twice as fast as bf16,
and four times as fast as the fp32 that is left where there is no bf16. Those without add two products in 16 bits, which
weights of 7 bits fit into, and are still faster than in fp32.

Shape legend: B batch, C channels, Z Y X voxels.
"""

from __future__ import annotations

import functools
import logging
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import as_products

WORTHWHILE_SPEEDUP = 1.3
"""A convolution in int8 must be this much faster than in the next best precision."""
SMALL_PRODUCT = 2**23
"""A linear layer of fewer multiplications is as fast in floats, since its input need not be quantised."""
TOLERATED_ERROR = 0.02
"""Relative L2 error that 8 bits may cost one layer; more means that the operator is not what it is taken for."""

MOST, MOST_WITHOUT_VNNI = 127, 63
"""The largest weight, and the largest of which two products with bytes add up to no more than 16 bits hold."""

logger = logging.getLogger(__name__)

_AS_FP32: Tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
"""How the operators are to return their sums: scale, zero point, type, and no function to apply."""

_Packed = Tuple[Tensor, Tensor, Tensor, Optional[Tensor]]
"""Reordered int8 weights, their scales, their zero points (all 0), the bias."""


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` that computes in int8 once ``pack`` was called, unless gradients are wanted."""

    _packed: Optional[_Packed] = None
    direct = False
    """Whether fp32 goes to oneDNN at once, or becomes products of matrices where there is none: PyTorch takes a slow
    operator of its own there, and where the input is small."""

    def pack(self) -> None:
        """Quantise the weights as they are now."""
        weights, scales = quantised_weights(self.weight, largest_weight())
        assert not isinstance(self.padding, str)
        geometry = [list(self.stride), list(self.padding), list(self.dilation), self.groups]
        reordered = torch.ops.onednn.qconv_prepack(weights, scales, 1.0, 0, *geometry, None)
        self._packed = (reordered, scales, torch.zeros_like(scales, dtype=torch.int64), _plain(self.bias))

    def forward(self, input: Tensor) -> Tensor:
        if self._packed is None or _learns(self.weight, input):
            return self._in_floats(input)
        weights, scales, zeros, bias = self._packed
        assert not isinstance(self.padding, str)
        values, scale, zero = quantised(input.float().contiguous(memory_format=torch.channels_last_3d))
        geometry = [list(self.stride), list(self.padding), list(self.dilation), self.groups]
        result: Tensor = _convolution()(values, scale, zero, weights, scales, zeros, bias, *geometry, *_AS_FP32)
        return result

    def _in_floats(self, input: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same that ``nn.Conv3d`` returns, see ``direct``."""
        if not self.direct or _learns(self.weight, input):
            return super().forward(input)
        assert not isinstance(self.padding, str)
        if not torch.backends.mkldnn.is_available():
            return as_products(input, self.weight, self.bias, self.padding)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        result: Tensor = torch.ops.aten.mkldnn_convolution(input, self.weight, self.bias, *geometry)
        return result


class Linear(nn.Linear):
    """``nn.Linear`` that computes in int8 once ``pack`` was called, unless gradients are wanted or work is little."""

    _packed: Optional[_Packed] = None

    def pack(self) -> None:
        """Quantise the weights as they are now."""
        weights, scales = quantised_weights(self.weight, largest_weight())
        reordered = torch.ops.onednn.qlinear_prepack(weights, None)
        self._packed = (reordered, scales, torch.zeros_like(scales, dtype=torch.int64), _plain(self.bias))

    def forward(self, input: Tensor) -> Tensor:
        small = input.numel() * self.out_features < SMALL_PRODUCT
        if self._packed is None or small or _learns(self.weight, input):
            return super().forward(input)
        rows = input.float().reshape(-1, input.shape[-1])  # older versions of the operator lose further axes
        return self.product(*quantised(rows)).view(*input.shape[:-1], -1)

    def product(self, values: Tensor, scale: float, zero: int) -> Tensor:
        """The layer on quantised rows (N, in) -> (N, out) fp32; it must have been packed."""
        assert self._packed is not None
        operator = torch.ops.onednn.qlinear_pointwise
        weights, scales, zeros, bias = self._packed
        result: Tensor = operator(values, scale, zero, weights, scales, zeros, bias, *_AS_FP32)
        return result


def pack(model: nn.Module) -> None:
    """Quantise every layer of a model that may compute in int8; to be repeated when weights have changed."""
    for module in model.modules():
        if isinstance(module, (Conv3d, Linear)):
            module.pack()


def compute_fp32_fast(model: nn.Module) -> None:
    """Have a model that will not be called under autocast compute in fp32 on a CPU as fast as that goes."""
    for module in model.modules():
        if isinstance(module, Conv3d):
            dense = module.stride == module.dilation == (1, 1, 1) and module.groups == 1
            module.direct = dense or torch.backends.mkldnn.is_available()


@contextmanager
def in_floats(model: nn.Module) -> Iterator[None]:
    """Within the ``with`` block, the layers of a model compute as if they had not been packed."""
    packed = {module: module._packed for module in model.modules() if isinstance(module, (Conv3d, Linear))}
    for module in packed:
        module._packed = None
    try:
        yield
    finally:
        for module, as_it_was in packed.items():
            module._packed = as_it_was


def quantised(x: Tensor) -> Tuple[Tensor, float, int]:
    """(values, scale, zero point) with ``x`` = scale * (values - zero point), up to half a scale.

    Args:
        x: fp32, of any shape and strides without gaps.

    Returns:
        uint8 of the same shape and strides, and the two numbers; 0 is met exactly, since convolutions pad with it.
    """
    low, high = min(float(x.amin()), 0.0), max(float(x.amax()), 0.0)
    scale = max((high - low) / 254, 1e-12)  # one step less than there are, for rounding at both ends
    zero = round(-low / scale)
    # Through signed bytes, to which PyTorch converts in vectors; flipping the top bit then adds 128.
    signed = torch.add(torch.tensor(zero - 128.0), x, alpha=1 / scale).round_().to(torch.int8)
    values = signed.view(torch.uint8).bitwise_xor_(128)
    return values, scale, zero


def quantised_weights(weight: Tensor, largest: int = MOST) -> Tuple[Tensor, Tensor]:
    """int8 weights of the same shape, up to ``largest``, and the scale of each output channel (the first axis), fp32.

    Quantising what comes of their product gives the same integers again.
    """
    flat = weight.detach().float().flatten(1)
    scales = (flat.abs().amax(1) / largest).clamp_min(1e-12)
    values = (flat / scales[:, None]).round().to(torch.int8)
    return values.view(weight.shape), scales


@functools.cache
def largest_weight() -> int:
    """The largest weight with which this processor's sums come out right; the operators must be there."""
    x, weight = torch.full((1, 16, 4, 4, 4), 255.0), torch.full((16, 16, 1, 1, 1), float(MOST))
    values, scale, zero = quantised(x)
    once, none = [1, 1, 1], [0, 0, 0]
    geometry = [once, none, once, 1]
    reordered = torch.ops.onednn.qconv_prepack(weight.to(torch.int8), torch.ones(16), 1.0, 0, *geometry, None)
    zeros = torch.zeros(16, dtype=torch.int64)
    found = _convolution()(values, scale, zero, reordered, torch.ones(16), zeros, None, *geometry, *_AS_FP32)
    right = bool(((found - 16 * 255 * MOST).abs() < 0.01 * found).all())
    return MOST if right else MOST_WITHOUT_VNNI


@functools.cache
def usable() -> bool:
    """True if this build of PyTorch has the operators and they compute what they should on this processor."""
    try:
        with torch.inference_mode():
            return all(error < TOLERATED_ERROR for error in (_error(layer, x) for layer, x in _samples(size=8)))
    except (AttributeError, RuntimeError, TypeError) as error:
        logger.info("int8 cannot be used here: %s", error)
        return False


@functools.cache
def pays(rival: torch.dtype) -> bool:
    """True if a convolution in int8, its input quantised on the way, is clearly faster than one in ``rival``.

    Measured once a process, on a layer like those that take most of the default model's time.
    """
    if not usable():
        return False
    layer, x = _samples(size=16)[0]
    plain = nn.Conv3d(layer.in_channels, layer.out_channels, 3, padding=1).to(rival)
    plain = plain.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    with torch.inference_mode():
        layer.pack()
        speeds = {"int8": 0.0, "rival": 0.0}
        for _ in range(4):  # in turns, so that what else runs for a moment does not decide
            speeds["int8"] = max(speeds["int8"], 1 / _fastest(lambda: layer(x)))
            speeds["rival"] = max(speeds["rival"], 1 / _fastest(lambda: plain(x.to(rival))))
    logger.info("Convolutions on the CPU, per second: %s (rival: %s)", speeds, rival)
    return speeds["int8"] >= WORTHWHILE_SPEEDUP * speeds["rival"]


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _plain(bias: Optional[Tensor]) -> Optional[Tensor]:
    return None if bias is None else bias.detach().float()


def _convolution() -> Callable[..., Any]:
    """The operator, under the name that this version of PyTorch has for it."""
    operators = torch.ops.onednn
    return operators.qconv_pointwise if hasattr(operators, "qconv_pointwise") else operators.qconv3d_pointwise


def _samples(size: int) -> Sequence[Tuple[Any, Tensor]]:
    """A layer of each kind with an input, the same at every call."""
    dice = torch.Generator().manual_seed(0)
    crop = F.silu(torch.randn(1, 64, size, size, size, generator=dice))
    crop = crop.contiguous(memory_format=torch.channels_last_3d)
    tokens = torch.randn(1, max(64, SMALL_PRODUCT // (256 * 64)), 256, generator=dice) + 1
    return [(Conv3d(64, 64, 3, padding=1), crop), (Linear(256, 64), tokens)]


def _error(layer: Any, x: Tensor) -> float:
    """Relative L2 error of a layer's output in int8."""
    exact = layer(x)
    layer.pack()
    return float((layer(x) - exact).norm() / exact.norm())


def _fastest(function: Callable[[], Any], times: int = 3) -> float:
    """Seconds of the fastest of several calls, after a first one that does not count."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
