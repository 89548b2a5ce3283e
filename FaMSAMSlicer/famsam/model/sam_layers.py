"""Layers that the published networks are made of, on channels-last grids: (B, Z, Y, X, C).

Every layer keeps the parameter names and shapes of the published checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from . import int8


class PatchConv3d(nn.Conv3d):
    """A convolution whose stride is its kernel size, channels last: exact, and faster as one matrix product."""

    def __init__(self, in_channels: int, out_channels: int, size: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=size, stride=size, bias=bias)

    def forward(self, x_BZYXC: Tensor) -> Tensor:
        size = self.kernel_size[0]
        blocks = x_BZYXC.unflatten(3, (-1, size)).unflatten(2, (-1, size)).unflatten(1, (-1, size))
        patches_BzyxP = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)
        return F.linear(patches_BzyxP, self.weight.flatten(1), self.bias)


class PatchConvTranspose3d(nn.ConvTranspose3d):
    """A transposed convolution whose stride is its kernel size, channels last, as one matrix product."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=size, stride=size)

    def forward(self, x_BZYXC: Tensor) -> Tensor:  # type: ignore[override]
        size = self.kernel_size[0]
        weight_PC = self.weight.permute(2, 3, 4, 1, 0).flatten(0, 3)
        patches_BZYXP = F.linear(x_BZYXC, weight_PC) + self.bias.repeat(size**3)  # type: ignore[union-attr]
        blocks = patches_BZYXP.unflatten(4, (size, size, size, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return blocks.flatten(5, 6).flatten(3, 4).flatten(1, 2)


class Conv3dLast(nn.Conv3d):
    """An ordinary 3D convolution that takes and gives channels-last grids."""

    def forward(self, x_BZYXC: Tensor) -> Tensor:
        return super().forward(x_BZYXC.movedim(-1, 1)).movedim(1, -1)


class MlpBlock(nn.Module):
    """The two-layer MLP of a transformer block."""

    def __init__(self, width: int, hidden_width: int, activation: nn.Module) -> None:
        super().__init__()
        self.lin1 = int8.Linear(width, hidden_width)
        self.lin2 = int8.Linear(hidden_width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.activation(self.lin1(x)))


class MlpHead(nn.Module):
    """An MLP of ``depth`` layers with ReLU between them."""

    def __init__(self, width: int, hidden_width: int, out_width: int, depth: int) -> None:
        super().__init__()
        widths = [width] + [hidden_width] * (depth - 1) + [out_width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(F.relu(x) if index else x)
        return x
