"""Masks whose border follows the scan's edges between the logits' voxels: a guided filter.

Around every voxel of the logits they are fitted by a linear function of the intensities, and that function is evaluated
at the scan's own voxels (guided filter, He, Sun and Tang 2013, eq. 5, 6 and 8; coefficients at a lower resolution than
the result, He and Sun 2015). Where intensities do not tell the two sides of a border apart, the fit is a constant: the
result is that of interpolating smoothed logits.

Shape legend: n logits' voxels along each edge of a view, m of a cube within it; z y x the scan's voxels.
"""

from __future__ import annotations

import itertools
from typing import Any, Optional, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .geometry import Box, Grid, bounding_box, box_slices
from .model.fusion_decoder import halved
from .pieces import pieces_of
from .resample import CPU, CropBox, copy_as_floats, logit_blocks

SMOOTHNESS = 0.1
"""The filter's epsilon, in units of the intensities' variance at the border: fits to contrasts below a third of their
standard deviation flatten."""
DECIDED = 3.0
"""Logits beyond this, of either sign, stay as they are."""
MOST = 4.0
"""What larger logits count for in the fits."""
CRUMB = 12
"""A piece of fewer voxels is one that noise may have made."""
REACH = 3
"""The logits' voxels around the undecided ones that are looked at."""


def guide_of(crop_ZYX: Tensor, inside_ZYX: Tensor, n: int) -> Tensor:
    """A view's crop -> the intensities where its logits are (n, n, n): means over the voxels inside the scan.

    Args:
        crop_ZYX, inside_ZYX: see ``extract_crop``; their edge is n times a power of two.
    """
    if not inside_ZYX.is_cuda and bool(inside_ZYX.all()):
        return _coarsened(crop_ZYX, n)
    return _coarsened(crop_ZYX, n) / _coarsened(inside_ZYX.float(), n).clamp_min(1e-6)


def _coarsened(cube_ZYX: Tensor, n: int) -> Tensor:
    """Means over blocks, n along each edge of the cube."""
    while len(cube_ZYX) > n:
        cube_ZYX = halved(cube_ZYX[None, None])[0, 0]
    return cube_ZYX


def paste_guided(
    logits_nnn: Tensor,
    guide_nnn: Tensor,
    scan_zyx: Union[NDArray[Any], Tensor],
    grid: Grid,
    view: CropBox,
    device: torch.device = CPU,
) -> Tuple[NDArray[np.bool_], Optional[Box]]:
    """Logits of a view -> the mask of what the filter makes positive, on the scan's voxels.

    Args:
        logits_nnn: (n, n, n) float, axes z, y, x.
        guide_nnn: (n, n, n) float, ``guide_of`` the view.
        scan_zyx: the whole scan's intensities on the canonical axes.
        grid: the scan's canonical grid.
        view: the cube that the logits divide.
        device: where to compute; the scan's, if it is a tensor.

    Returns:
        mask_zyx: bool, of the box's size.
        box_zyx: where it belongs in the scan; all foreground lies in it. None, with an empty mask, if no logit is
            positive or nothing of the scan lies there.
    """
    logits_nnn = logits_nnn.detach().to("cpu", torch.float32).clamp(-MOST, MOST)
    nothing = np.zeros((0, 0, 0), dtype=bool), None
    bounds = bounding_box((logits_nnn > -DECIDED).numpy()) if bool((logits_nnn > 0).any()) else None
    if bounds is None:
        return nothing
    region = view.voxels_reached(grid, bounds, len(logits_nnn))
    if region is None:
        return nothing
    cube, part = _cube_around(bounds, len(logits_nnn), view, grid)
    fields = _linear_fits(logits_nnn[part].to(device), guide_nnn[part].to(device))
    mask_zyx = _evaluated(*fields, scan_zyx, grid, cube, region, device)
    _drop_crumbs(mask_zyx, region, logits_nnn, view, grid)
    return mask_zyx, region


def _evaluated(
    slope_mmm: Tensor,
    offset_mmm: Tensor,
    mean: Tensor,
    scan_zyx: Union[NDArray[Any], Tensor],
    grid: Grid,
    cube: CropBox,
    region: Box,
    device: torch.device,
) -> NDArray[np.bool_]:
    """Where offset + slope * (intensity - mean) is positive, at the scan's voxels in a box."""
    part = scan_zyx[box_slices(region)]
    mask_zyx = torch.empty(tuple(part.shape), dtype=torch.bool, device=device)
    for rows, (slope, offset) in logit_blocks((slope_mmm, offset_mmm), grid, cube, region, device):
        if isinstance(part, Tensor):
            intensities = part[rows].to(device, torch.float32, copy=True)
        else:
            intensities = copy_as_floats(part[rows], torch.empty(slope.shape)).to(device)
        torch.gt(offset.addcmul_(slope, intensities.sub_(mean)), 0, out=mask_zyx[rows])
    return mask_zyx.cpu().numpy()


def _drop_crumbs(mask_zyx: NDArray[np.bool_], region: Box, logits_nnn: Tensor, view: CropBox, grid: Grid) -> None:
    """Take from a mask of a box the small pieces that noise has made where no logit is positive."""
    n, positive = len(logits_nnn), (logits_nnn > 0).numpy()
    scale_zyx, offset_zyx = view.index_from_crop(grid)
    for axis in (2, 1, 0):  # the last to grow is the one whose rows are copied whole
        at = (np.arange(region[0][axis], region[1][axis]) - offset_zyx[axis]) / scale_zyx[axis]
        nearest = np.rint((at + 0.5) * n / view.size - 0.5).astype(int).clip(0, n - 1)
        positive = positive.take(nearest, axis)
    added_zyx = mask_zyx > positive
    pieces_zyx, count = pieces_of(added_zyx)
    places_N = np.flatnonzero(added_zyx)
    piece_N = pieces_zyx.ravel()[places_N]
    small = np.bincount(piece_N, minlength=count + 1) < CRUMB
    places_N, piece_N = places_N[small[piece_N]], piece_N[small[piece_N]]
    last_3 = np.array(mask_zyx.shape) - 1
    places_N3 = np.stack(np.unravel_index(places_N, mask_zyx.shape), axis=1)
    belongs_N = np.zeros(len(places_N), dtype=bool)  # to a piece that holds positive logits
    for step_3 in itertools.product((-1, 0, 1), repeat=3):
        beside = tuple((places_N3 + step_3).clip(0, last_3).T)
        belongs_N |= mask_zyx[beside] & positive[beside]
    small[piece_N[belongs_N]] = False
    np.put(mask_zyx, places_N[small[piece_N]], False)


def _cube_around(bounds: Box, n: int, view: CropBox, grid: Grid) -> Tuple[CropBox, Tuple[slice, ...]]:
    """The smallest cube that holds a box of the logits' voxels and ``REACH`` more on each side, as far as the view
    goes, and which logits are in it."""
    low, high = np.maximum(np.array(bounds[0]) - REACH, 0), np.minimum(np.array(bounds[1]) + REACH, n)
    m = int((high - low).max())
    low = np.minimum(low, n - m)
    step = view.size / n
    z, y, x = view.points_from_crop((low + m / 2) * step - 0.5, grid).tolist()
    return CropBox((z, y, x), view.spacing_mm * step, m), tuple(slice(at, at + m) for at in low.tolist())


def _linear_fits(logits_mmm: Tensor, guide_mmm: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Slope and offset (m, m, m) of the logits as functions of the intensity less a mean, and that mean (a number).

    Slope and offset are means over all windows that hold a voxel; where the logits are decided, or of one sign all
    around, the slope is 0 and the offset the logit.
    """
    undecided = logits_mmm.abs() < DECIDED
    weight = undecided.sum().clamp_min(1)
    mean = torch.where(undecided, guide_mmm, 0.0).sum() / weight
    centred = guide_mmm - mean
    spread = (torch.where(undecided, centred, 0.0).square().sum() / weight).sqrt() + 1e-30
    guide, target = (centred / spread).clamp(-4, 4), logits_mmm
    inside = (target > 0).float()
    fields = torch.stack([guide, target, guide * target, guide**2, inside])
    mean_guide, mean_target, product, square, share = _window_means(fields)
    slope = (product - mean_guide * mean_target) / (square - mean_guide**2 + SMOOTHNESS)
    slope, offset = _window_means(torch.stack([slope, mean_target - slope * mean_guide]))
    border = undecided & (share > 0.01) & (share < 0.99)
    return torch.where(border, slope / spread, 0.0), torch.where(border, offset, target), mean


def _window_means(fields_Cmmm: Tensor) -> Tensor:
    """Means over a voxel and its 26 neighbours, (C, m, m, m); beyond the faces their values hold."""
    padded = F.pad(fields_Cmmm, (1,) * 6, mode="replicate")
    for axis in (1, 2, 3):
        m = padded.shape[axis] - 2
        padded = padded.narrow(axis, 0, m) + padded.narrow(axis, 1, m) + padded.narrow(axis, 2, m)
    return padded / 27
