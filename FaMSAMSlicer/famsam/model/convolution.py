"""A 3D convolution as products of matrices, for builds of PyTorch without oneDNN, as those for Apple's processors are.

Shape legend: B batch, C input and O output channels, Z Y X voxels, k kernel.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch.nn.functional as F
from torch import Tensor


def as_products(x_BCZYX: Tensor, weight_OCkkk: Tensor, bias_O: Optional[Tensor], padding: Tuple[int, ...]) -> Tensor:
    """What ``F.conv3d`` of stride 1 returns, channels last; not for gradients.

    Without oneDNN PyTorch copies every voxel's whole neighbourhood first, k times as many numbers as here, where only
    neighbours along x are laid side by side: for each place of the kernel in z and y, the rows of the image that meet
    it are then one block of memory, and what they give is added up in place.
    """
    (batch, _, depth, height, width), (out, _, kz, ky, kx) = x_BCZYX.shape, weight_OCkkk.shape
    pz, py, px = padding
    padded_BZYXC = F.pad(x_BCZYX.movedim(1, -1), (0, 0, px, px, py, py, pz, pz))
    depth, height, width = depth + 2 * pz - kz + 1, height + 2 * py - ky + 1, width + 2 * px - kx + 1
    beside_BZRK = padded_BZYXC.unfold(3, kx, 1).movedim(-1, -2).flatten(4).flatten(2, 3)  # K: kx neighbours' channels
    shape = (batch, depth, height * width, out)
    sums_BZRO = x_BCZYX.new_zeros(shape) if bias_O is None else bias_O.expand(shape).contiguous()
    kernel_zyKO = weight_OCkkk.permute(2, 3, 4, 1, 0).flatten(2, 3)
    for sums, beside in zip(sums_BZRO, beside_BZRK):
        for z in range(kz):
            for y in range(ky):
                met = beside[z : z + depth, y * width : (y + height) * width]
                sums.baddbmm_(met, kernel_zyKO[z, y].expand(depth, -1, -1))
    return sums_BZRO.view(batch, depth, height, width, out).movedim(-1, 1)
