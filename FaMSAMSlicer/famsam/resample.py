"""Crops of a scan for the model, and the model's logits back onto the scan.

A crop is a cube of equal voxels whose axes are the image's own canonical axes, so that every resampling here is
separable: along each axis a small matrix of weights, most of it zero, is applied to the part of the image that is
needed. Three ways of weighting serve three purposes:

- intensities: linear interpolation, which is averaged over sqrt(s^2 - 1) image voxels where the crop is s times coarser
  than the image; together with the interpolation's own blur this keeps what the crop cannot show from turning into
  false structure. Linear ramps are reproduced exactly. At s >= 4 every (s // 2)-th voxel is taken and the others are
  not read.
- logits: linear interpolation between the logits' centres.
- masks: the exact share of foreground in each low-resolution voxel.

All indices are canonical (see ``geometry``), with integer indices at voxel centres, and (z, y, x).
Shape suffixes: ZYX the crop, zyx the image or a lower resolution of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .geometry import Box, Grid, Index3, bounding_box, intersect, memory_order

# Sizes of the pieces of work, as measured to be fastest on a CPU; any others give the same result.
_BAND_ROWS = 8  # rows of a band that are multiplied at a time, with only the columns that they need
_BAND_ROWS_FROM_RIGHT = 16  # the same where the band is the right-hand factor: its rows fill a vector register
_VOXELS_PER_SLAB = 5 << 17  # voxels converted to float at a time


@dataclass(frozen=True)
class CropBox:
    """A cube in the image's canonical index space.

    Attributes:
        center_zyx: canonical index of the cube's centre, whole or not, inside the image or not.
        spacing_mm: edge of a crop voxel.
        size: crop voxels along each edge.
    """

    center_zyx: Tuple[float, float, float]
    spacing_mm: float
    size: int = 128

    def index_from_crop(self, grid: Grid) -> Tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(scale_zyx, offset_zyx): canonical index = offset + scale * crop index."""
        scale_zyx = self.spacing_mm / grid.spacing_zyx_mm
        return scale_zyx, np.asarray(self.center_zyx, dtype=np.float64) - scale_zyx * (self.size - 1) / 2

    def points_to_crop(self, points_zyx: Any, grid: Grid) -> NDArray[np.float64]:
        """(..., 3) canonical indices -> crop indices."""
        scale_zyx, offset_zyx = self.index_from_crop(grid)
        return (np.asarray(points_zyx, dtype=np.float64) - offset_zyx) / scale_zyx

    def points_from_crop(self, points_ZYX: Any, grid: Grid) -> NDArray[np.float64]:
        """(..., 3) crop indices -> canonical indices."""
        scale_zyx, offset_zyx = self.index_from_crop(grid)
        return np.asarray(points_ZYX, dtype=np.float64) * scale_zyx + offset_zyx

    def image_box(self, grid: Grid) -> Optional[Box]:
        """The image's voxels whose centres lie in the cube; None if there are none."""
        return self._voxels_between(grid, (-0.5,) * 3, (self.size - 0.5,) * 3)

    def _voxels_between(self, grid: Grid, low_ZYX: Any, high_ZYX: Any) -> Optional[Box]:
        low = np.ceil(self.points_from_crop(low_ZYX, grid)).astype(int)
        high = np.floor(self.points_from_crop(high_ZYX, grid)).astype(int) + 1
        return intersect((_index3(low), _index3(high)), ((0, 0, 0), grid.size_zyx))


def extract_crop(voxels_zyx: NDArray[Any], grid: Grid, box: CropBox) -> Tuple[Tensor, Tensor]:
    """Resample a cube of the image.

    Only the part of the image that the cube covers is read; voxels_zyx may be any strided view.

    Args:
        voxels_zyx: (z, y, x) of any integer or floating-point type, on the canonical axes.
        grid: the image's canonical grid.
        box: the cube.

    Returns:
        crop_ZYX: (size, size, size) float32 intensities, 0 outside the scan.
        inside_ZYX: the same shape, bool: whether the crop voxel's centre lies within the scan, up to the outer faces of
            its outer voxels (beyond their centres, their values hold).
    """
    scale_zyx, offset_zyx = box.index_from_crop(grid)
    inside, bands, read = [], [], []
    for size, scale, offset in zip(grid.size_zyx, scale_zyx, offset_zyx):
        positions = offset + scale * np.arange(box.size)
        inside.append((positions >= -0.5) & (positions <= size - 0.5))
        step = max(1, int(scale // 2))
        read.append(slice(None, None, step))
        bands.append(_intensity_band(positions / step, scale / step, -(-size // step), inside[-1]))
    inside_z, inside_y, inside_x = (torch.from_numpy(flags) for flags in inside)
    inside_ZYX = inside_z[:, None, None] & inside_y[:, None] & inside_x
    return _apply(voxels_zyx[tuple(read)], bands), inside_ZYX


def mask_to_crop(mask_zyx: NDArray[np.bool_], grid: Grid, box: CropBox, size: int = 64) -> Tensor:
    """A mask on the image -> (size, size, size) float32 on the cube: the share of foreground in each of its voxels.

    Args:
        mask_zyx: (z, y, x) bool on the canonical axes, the whole image.
        grid: the image's canonical grid.
        box: the cube, here divided into ``size`` voxels along each edge.
    """
    scale_zyx, offset_zyx = box.index_from_crop(grid)
    edges = np.linspace(-0.5, box.size - 0.5, size + 1)
    bands = [_share_band(offset + scale * edges, n) for n, scale, offset in zip(grid.size_zyx, scale_zyx, offset_zyx)]
    covered = tuple(slice(band.first, band.first + band.weights_rn.shape[1]) for band in bands)
    found = bounding_box(mask_zyx[covered])
    if found is None:
        return torch.zeros((size,) * 3)
    return _apply(mask_zyx, [band.part(low, high) for band, low, high in zip(bands, *found)])


def paste_logits(
    logits_zyx: Tensor, grid: Grid, box: CropBox, region_zyx: Optional[Box] = None, threshold: float = 0.0
) -> Tuple[NDArray[np.bool_], Optional[Box]]:
    """Logits of a cube -> the mask of what lies above the threshold, on the image's voxels.

    Args:
        logits_zyx: (n, n, n) float; n voxels along each edge of the cube, any n.
        grid: the image's canonical grid.
        box: the cube.
        region_zyx: half-open box of canonical indices to stay within.
        threshold: above it is foreground.

    Returns:
        mask_zyx: bool, on the canonical axes, of the box's size.
        box_zyx: where it belongs in the image; all foreground lies in it. None, with an empty mask, if nothing of the
            image in the cube lies above the threshold.
    """
    logits_zyx = logits_zyx.detach().to("cpu", torch.float32)
    found = bounding_box((logits_zyx > threshold).numpy())
    box_zyx = None
    if found is not None:
        # Beyond the next logit's centre, nothing of a positive one is left.
        step = box.size / logits_zyx.shape[0]
        low, high = ((np.array(corner) - shift) * step - 0.5 for corner, shift in zip(found, (0.5, -0.5)))
        box_zyx = box._voxels_between(grid, np.maximum(low, -0.5), np.minimum(high, box.size - 0.5))
    if box_zyx is not None and region_zyx is not None:
        box_zyx = intersect(box_zyx, region_zyx)
    if box_zyx is None:
        return np.zeros((0, 0, 0), dtype=bool), None
    mask_zyx = torch.empty(tuple(high - low for low, high in zip(*box_zyx)), dtype=torch.bool)
    for start, values_zyx in _sampled_slabs(logits_zyx, grid, box, box_zyx):
        torch.gt(values_zyx, threshold, out=mask_zyx[start : start + len(values_zyx)])
    return mask_zyx.numpy(), box_zyx


def sample_logits(logits_zyx: Tensor, grid: Grid, box: CropBox, region_zyx: Optional[Box] = None) -> Tensor:
    """Logits of a cube, interpolated at the image's voxels.

    Args:
        logits_zyx: (n, n, n) float; n voxels along each edge of the cube, any n.
        grid: the image's canonical grid.
        box: the cube.
        region_zyx: half-open box of canonical indices; beyond the cube the values at its faces hold. By default
            ``box.image_box(grid)``.

    Returns:
        float32 on the CPU, of the region's size; (0, 0, 0) if the cube lies outside the image and no region is given.
    """
    region_zyx = region_zyx or box.image_box(grid)
    if region_zyx is None:
        return torch.zeros((0, 0, 0))
    values_zyx = torch.empty(tuple(high - low for low, high in zip(*region_zyx)))
    for start, slab_zyx in _sampled_slabs(logits_zyx.detach().to("cpu", torch.float32), grid, box, region_zyx):
        values_zyx[start : start + len(slab_zyx)] = slab_zyx
    return values_zyx


class _Band(NamedTuple):
    """Weights along one axis: output row r is ``weights_rn[r] @ input[first : first + n]``."""

    first: int
    weights_rn: NDArray[np.float32]

    def part(self, low: int, high: int) -> _Band:
        """Only the columns low to high, counted from the first."""
        return _Band(self.first + low, self.weights_rn[:, low:high])

    def flipped(self, size: int) -> _Band:
        """The same for an input of that size that is read backwards."""
        return _Band(size - self.first - self.weights_rn.shape[1], self.weights_rn[:, ::-1])

    def products(self, size: int) -> Iterator[Tuple[slice, slice, Tensor]]:
        """(rows, columns, weights) of pieces of so many rows that are not zero; columns count from the first."""
        for start in range(0, len(self.weights_rn), size):
            piece = self.weights_rn[start : start + size]
            used = np.flatnonzero(piece.any(axis=0))
            if used.size:
                columns = slice(int(used[0]), int(used[-1]) + 1)
                yield slice(start, start + len(piece)), columns, torch.from_numpy(piece[:, columns].copy())


def _intensity_band(positions: NDArray[np.float64], scale: float, size: int, inside: NDArray[np.bool_]) -> _Band:
    """Linear interpolation at the positions, averaged over the width that ``scale`` asks for; zero rows outside."""
    if not inside.any():
        return _Band(0, np.zeros((len(positions), 0), dtype=np.float32))
    width = float(np.sqrt(max(scale**2 - 1, 1e-12)))
    low, high = positions - width / 2, positions + width / 2
    taps = np.arange(np.floor(low[inside].min()), np.ceil(high[inside].max()) + 1).astype(int)
    weights = (_hat_integral(high[:, None] - taps) - _hat_integral(low[:, None] - taps)) / width * inside[:, None]
    columns = np.clip(taps, 0, size - 1)  # beyond the outer voxels their values hold
    folded = np.zeros((len(positions), columns[-1] - columns[0] + 1))
    np.add.at(folded.T, columns - columns[0], weights.T)
    return _Band(int(columns[0]), folded.astype(np.float32))


def _hat_integral(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integral of max(0, 1 - |t|) up to t."""
    t = np.clip(t, -1, 1)
    return 0.5 + t - 0.5 * t * np.abs(t)


def _share_band(edges: NDArray[np.float64], size: int) -> _Band:
    """The share of every image voxel in each interval between neighbouring edges."""
    first = int(np.clip(np.floor(edges[0] + 0.5), 0, size))
    last = int(np.clip(np.ceil(edges[-1] + 0.5), first, size))
    covered = np.clip(edges[:, None] - np.arange(first, last) + 0.5, 0, 1)
    return _Band(first, (np.diff(covered, axis=0) / np.diff(edges)[:, None]).astype(np.float32))


def _logit_band(positions: NDArray[np.float64], size: int) -> _Band:
    """Linear interpolation at the positions, which are clipped to the outer centres."""
    positions = np.clip(positions, 0, size - 1)
    first = int(positions.min())
    taps = np.arange(first, int(np.ceil(positions.max())) + 1)
    return _Band(first, np.maximum(0, 1 - np.abs(positions[:, None] - taps)).astype(np.float32))


def _apply(array_zyx: NDArray[Any], bands_zyx: Sequence[_Band]) -> Tensor:
    """Apply a band along each axis of an array of any number type and strides -> float32 tensor.

    Walks the array as memory holds it, its axes called a, b, c from slow to fast: in slabs of a, converted to float,
    shrinks b; then a; then c, whose products with few columns are slow, when least is left.
    """
    order, flips, array_abc = memory_order(array_zyx)
    bands = [bands_zyx[k].flipped(array_zyx.shape[k]) if flip else bands_zyx[k] for k, flip in zip(order, flips)]
    rows_a, rows_b, rows_c = (len(band.weights_rn) for band in bands)
    n_a, n_b, n_c = (band.weights_rn.shape[1] for band in bands)
    result_abc = torch.zeros((rows_a, rows_b, rows_c))
    if n_a and n_b and n_c:
        needed = tuple(slice(band.first, band.first + n) for band, n in zip(bands, (n_a, n_b, n_c)))
        shrunk_b = _shrink_middle(array_abc[needed], bands[1])
        shrunk_ab = torch.zeros((rows_a, rows_b, n_c))
        for rows, columns, weights in bands[0].products(_BAND_ROWS):
            torch.mm(weights, shrunk_b[columns].flatten(1), out=shrunk_ab[rows].flatten(1))
        for rows, columns, weights in bands[2].products(_BAND_ROWS_FROM_RIGHT):
            result_abc[:, :, rows] = shrunk_ab[:, :, columns] @ weights.T
    return result_abc.permute(*np.argsort(order).tolist()).contiguous()


def _shrink_middle(array_abc: NDArray[Any], band: _Band) -> Tensor:
    """Apply a band along the second axis, slab by slab: the whole array never exists as floats."""
    n_a, n_b, n_c = array_abc.shape
    shrunk = torch.empty((n_a, len(band.weights_rn), n_c))
    products = list(band.products(_BAND_ROWS))
    per_slab = min(n_a, max(1, _VOXELS_PER_SLAB // (n_b * n_c)))
    slab_bac = torch.empty((n_b, per_slab, n_c))
    shrunk_bac = torch.zeros((len(band.weights_rn), per_slab, n_c))
    for start in range(0, n_a, per_slab):
        planes = array_abc[start : start + per_slab]
        np.copyto(slab_bac.numpy()[:, : len(planes)], planes.transpose(1, 0, 2), casting="unsafe")
        for rows, columns, weights in products:
            torch.mm(weights, slab_bac[columns].flatten(1), out=shrunk_bac[rows].flatten(1))
        shrunk[start : start + len(planes)] = shrunk_bac[:, : len(planes)].transpose(0, 1)
    return shrunk


def _sampled_slabs(logits_zyx: Tensor, grid: Grid, box: CropBox, region_zyx: Box) -> Iterator[Tuple[int, Tensor]]:
    """Interpolate logits at a region's voxels, a few z at a time: (the first z in the region, values_zyx)."""
    step = box.size / logits_zyx.shape[0]
    bands = []
    for low, high, scale, offset in zip(*region_zyx, *box.index_from_crop(grid)):
        crop_positions = (np.arange(low, high) - offset) / scale
        bands.append(_logit_band((crop_positions + 0.5) / step - 0.5, logits_zyx.shape[0]))
    band_z, band_y, band_x = bands
    needed = tuple(slice(band.first, band.first + band.weights_rn.shape[1]) for band in bands)
    weights_y, weights_x = (torch.from_numpy(band.weights_rn) for band in (band_y, band_x))
    planes = weights_y @ (logits_zyx[needed] @ weights_x.T)
    for rows, columns, weights in band_z.products(_BAND_ROWS):
        yield rows.start, (weights @ planes[columns].flatten(1)).unflatten(1, planes.shape[1:])


def _index3(values: NDArray[np.int_]) -> Index3:
    z, y, x = values.tolist()
    return z, y, x
