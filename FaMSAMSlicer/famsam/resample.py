"""Crops of a scan for the model, and the model's logits back onto the scan.

A crop is a cube of equal voxels whose axes are the image's own canonical axes, so that every resampling here is
separable: along each axis every output row is a weighted sum of a few input rows. Three ways of weighting serve three
purposes:

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
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .geometry import Box, Grid, Index3, bounding_box, intersect, memory_order

CPU = torch.device("cpu")
ONE_VOXEL = 0.999
"""A crop voxel that takes more than this share of its intensity from one voxel of the scan takes all of it: rounding
must lend a background of 0 nothing of the structure beside it, since models tell by the 0 what is background."""

# Sizes of the pieces of work, as measured to be fastest on a CPU; any others give the same result.
_ROWS = 8  # output rows along the slowest axis that are made at a time,
_VOXELS = 1 << 22  # or fewer, so that not many more voxels than these are floats at a time
_COLUMNS = 16  # output columns along the fastest axis that are multiplied at a time: they fill a vector register


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

    def voxels_reached(self, grid: Grid, logits_box: Box, n: int) -> Optional[Box]:
        """The image's voxels between which and a half-open box of the cube's logits, n along each edge of it, no other
        logit's centre lies: beyond that, interpolation leaves nothing of them. None if there are none."""
        step = self.size / n
        low, high = ((np.array(corner) - shift) * step - 0.5 for corner, shift in zip(logits_box, (0.5, -0.5)))
        return self._voxels_between(grid, np.maximum(low, -0.5), np.minimum(high, self.size - 0.5))

    def _voxels_between(self, grid: Grid, low_ZYX: Any, high_ZYX: Any) -> Optional[Box]:
        low = np.ceil(self.points_from_crop(low_ZYX, grid)).astype(int)
        high = np.floor(self.points_from_crop(high_ZYX, grid)).astype(int) + 1
        return intersect((_index3(low), _index3(high)), ((0, 0, 0), grid.size_zyx))


def extract_crop(voxels_zyx: Union[NDArray[Any], Tensor], grid: Grid, box: CropBox) -> Tuple[Tensor, Tensor]:
    """Resample a cube of the image.

    Only the part of the image that the cube covers is read; voxels_zyx may be any strided view.

    Args:
        voxels_zyx: (z, y, x) of any integer or floating-point type, on the canonical axes; or a tensor (``held_on``),
            on whose device the cube is then made.
        grid: the image's canonical grid.
        box: the cube.

    Returns:
        crop_ZYX: (size, size, size) float32 intensities, 0 outside the scan.
        inside_ZYX: the same shape, bool: whether the crop voxel's centre lies within the scan, up to the outer faces of
            its outer voxels (beyond their centres, their values hold).
    """
    scale_zyx, offset_zyx = box.index_from_crop(grid)
    inside, taps, read = [], [], []
    for size, scale, offset in zip(grid.size_zyx, scale_zyx, offset_zyx):
        positions = offset + scale * np.arange(box.size)
        inside.append((positions >= -0.5) & (positions <= size - 0.5))
        step = max(1, int(scale // 2))
        read.append(slice(None, None, step))
        taps.append(_intensity_taps(positions / step, scale / step, -(-size // step), inside[-1]))
    inside_z, inside_y, inside_x = inside
    inside_ZYX = torch.from_numpy(inside_z[:, None, None] & inside_y[:, None] & inside_x)
    if isinstance(voxels_zyx, Tensor):
        return _applied_on_device(voxels_zyx[tuple(read)], taps), inside_ZYX.to(voxels_zyx.device, non_blocking=True)
    return _applied(voxels_zyx[tuple(read)], taps), inside_ZYX


def held_on(device: torch.device, voxels_zyx: NDArray[Any]) -> Union[NDArray[Any], Tensor]:
    """A scan's voxels for ``extract_crop``, on a GPU if they take no more than a quarter of its free memory.

    Integers of up to 16 bits keep their size there, all else becomes fp32.
    """
    small = voxels_zyx.dtype.kind in "iu" and np.can_cast(voxels_zyx.dtype, np.int16)
    needed = voxels_zyx.size * (2 if small else 4)
    if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0] // 4:
        return voxels_zyx
    return torch.from_numpy(np.ascontiguousarray(voxels_zyx, dtype=np.int16 if small else np.float32)).to(device)


def mask_to_crop(mask_zyx: NDArray[np.bool_], grid: Grid, box: CropBox, size: int = 64) -> Tensor:
    """A mask on the image -> (size, size, size) float32 on the cube: the share of foreground in each of its voxels.

    Args:
        mask_zyx: (z, y, x) bool on the canonical axes, the whole image.
        grid: the image's canonical grid.
        box: the cube, here divided into ``size`` voxels along each edge.
    """
    scale_zyx, offset_zyx = box.index_from_crop(grid)
    edges = np.linspace(-0.5, box.size - 0.5, size + 1)
    taps = [_share_taps(offset + scale * edges, n) for n, scale, offset in zip(grid.size_zyx, scale_zyx, offset_zyx)]
    covered = [one.used for one in taps]
    found = bounding_box(mask_zyx[tuple(slice(*used) for used in covered)])
    if found is None:
        return torch.zeros((size,) * 3)
    bounds = [(used[0] + low, used[0] + high) for used, low, high in zip(covered, *found)]
    return _applied(mask_zyx, [one.within(low, high) for one, (low, high) in zip(taps, bounds)])


def paste_logits(
    logits_zyx: Tensor,
    grid: Grid,
    box: CropBox,
    region_zyx: Optional[Box] = None,
    threshold: float = 0.0,
    device: torch.device = CPU,
) -> Tuple[NDArray[np.bool_], Optional[Box]]:
    """Logits of a cube -> the mask of what lies above the threshold, on the image's voxels.

    Args:
        logits_zyx: (n, n, n) float; n voxels along each edge of the cube, any n.
        grid: the image's canonical grid.
        box: the cube.
        region_zyx: half-open box of canonical indices to stay within.
        threshold: above it is foreground.
        device: where to interpolate.

    Returns:
        mask_zyx: bool, on the canonical axes, of the box's size.
        box_zyx: where it belongs in the image; all foreground lies in it. None, with an empty mask, if nothing of the
            image in the cube lies above the threshold.
    """
    logits_zyx = logits_zyx.detach().to("cpu", torch.float32)
    found = bounding_box((logits_zyx > threshold).numpy())
    box_zyx = None
    if found is not None:
        box_zyx = box.voxels_reached(grid, found, logits_zyx.shape[0])
    if box_zyx is not None and region_zyx is not None:
        box_zyx = intersect(box_zyx, region_zyx)
    if box_zyx is None:
        return np.zeros((0, 0, 0), dtype=bool), None
    taps = _logit_taps(logits_zyx.shape[0], grid, box, box_zyx)
    if device.type != "cpu":
        return (_applied_on_device(logits_zyx.to(device), taps) > threshold).cpu().numpy(), box_zyx
    mask_zyx = torch.empty(tuple(high - low for low, high in zip(*box_zyx)), dtype=torch.bool)
    for rows, values_zyx in _blocks(logits_zyx.numpy(), taps):
        torch.gt(values_zyx, threshold, out=mask_zyx[rows])
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
    taps = _logit_taps(logits_zyx.shape[0], grid, box, region_zyx)
    return _applied(logits_zyx.detach().to(CPU, torch.float32).numpy(), taps)


def logit_blocks(
    fields_zyx: Sequence[Tensor], grid: Grid, box: CropBox, region_zyx: Box, device: torch.device = CPU
) -> Iterator[Tuple[slice, List[Tensor]]]:
    """``sample_logits`` of several fields at once: (planes of the region, float32 blocks on the device).

    On a CPU a few planes at a time, while they are in the cache; elsewhere all planes.
    """
    n = fields_zyx[0].shape[0]
    z, y, x = _logit_taps(n, grid, box, region_zyx)
    # As one array in which the fields lie beside one another along y.
    index = np.concatenate([y.index_rt + n * number for number in range(len(fields_zyx))])
    beside = _Taps(index, np.tile(y.weights_rt, (len(fields_zyx), 1)))
    together, taps = torch.cat(list(fields_zyx), dim=1).to(device), (z, beside, x)
    on_cpu = device.type == "cpu"
    blocks = _blocks(together.numpy(), taps) if on_cpu else [(slice(None), _applied_on_device(together, taps))]
    for rows, block in blocks:
        yield rows, list(block.chunk(len(fields_zyx), dim=1))


_KNOWN_TO_TORCH = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def copy_as_floats(array: NDArray[Any], target: Tensor) -> Tensor:
    """Copy numbers of any type into a float32 tensor of the same shape on the CPU, which is returned.

    By PyTorch, which uses all threads, where it can look at the array as it lies.
    """
    plain = array.dtype.isnative and array.dtype.name in _KNOWN_TO_TORCH and array.flags.writeable
    if plain and all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides):
        return target.copy_(torch.from_numpy(array))
    np.copyto(target.numpy(), array, casting="unsafe")
    return target


class _Taps(NamedTuple):
    """Weights along one axis: output row r is the sum over t of ``weights_rt[r, t] * input[index_rt[r, t]]``."""

    index_rt: NDArray[np.int64]
    weights_rt: NDArray[np.float32]

    @property
    def used(self) -> Tuple[int, int]:
        """Half-open range of the input's rows with a weight; (0, 0) if there are none."""
        found = self.index_rt[self.weights_rt != 0]
        return (int(found.min()), int(found.max()) + 1) if found.size else (0, 0)

    def within(self, low: int, high: int) -> _Taps:
        """The same for an input that is zero outside of its rows low to high."""
        return _Taps(self.index_rt, self.weights_rt * ((self.index_rt >= low) & (self.index_rt < high)))

    def flipped(self, size: int) -> _Taps:
        """The same for an input of that size that is read backwards."""
        return _Taps(size - 1 - self.index_rt, self.weights_rt)

    def counted_from(self, low: int, high: int) -> _Taps:
        """The same for an input of which only the rows low to high, all that are used, are there."""
        return _Taps(np.clip(self.index_rt - low, 0, high - low - 1), self.weights_rt)


def _intensity_taps(positions: NDArray[np.float64], scale: float, size: int, inside: NDArray[np.bool_]) -> _Taps:
    """Linear interpolation at the positions, averaged over the width that ``scale`` asks for; no weight outside."""
    width = float(np.sqrt(max(scale**2 - 1, 1e-12)))
    low = positions[:, None] - width / 2
    index = np.floor(low) + np.arange(np.ceil(width) + 2)
    weights = (_hat_integral(low + width - index) - _hat_integral(low - index)) / width
    one = weights > ONE_VOXEL
    weights = np.where(one.any(axis=1, keepdims=True), one, weights) * inside[:, None]
    # Beyond the outer voxels their values hold.
    return _Taps(np.clip(index, 0, size - 1).astype(np.int64), weights.astype(np.float32))


def _hat_integral(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integral of max(0, 1 - |t|) up to t."""
    t = np.clip(t, -1, 1)
    return 0.5 + t - 0.5 * t * np.abs(t)


def _share_taps(edges: NDArray[np.float64], size: int) -> _Taps:
    """The share of every image voxel in each interval between neighbouring edges."""
    low, high = edges[:-1, None], edges[1:, None]
    index = np.floor(low + 0.5) + np.arange(np.ceil((high - low).max()) + 1)
    covered = (np.minimum(high, index + 0.5) - np.maximum(low, index - 0.5)).clip(0) * ((index >= 0) & (index < size))
    return _Taps(np.clip(index, 0, size - 1).astype(np.int64), (covered / (high - low)).astype(np.float32))


def _logit_taps(n: int, grid: Grid, box: CropBox, region_zyx: Box) -> List[_Taps]:
    """Linear interpolation between n logit centres along each edge of the cube, at a region's voxels."""
    taps = []
    for low, high, scale, offset in zip(*region_zyx, *box.index_from_crop(grid)):
        crop_positions = (np.arange(low, high) - offset) / scale
        positions = np.clip((crop_positions + 0.5) * n / box.size - 0.5, 0, n - 1)
        index = np.minimum(np.floor(positions)[:, None] + np.arange(2), n - 1)
        upper = positions - np.floor(positions)
        taps.append(_Taps(index.astype(np.int64), np.stack([1 - upper, upper], axis=1).astype(np.float32)))
    return taps


def _applied(array_zyx: NDArray[Any], taps_zyx: Sequence[_Taps]) -> Tensor:
    """Apply taps along each axis of an array of any number type and strides -> float32 tensor.

    Walks the array as memory holds it, its axes called a, b, c from slow to fast.
    """
    order, flips, array_abc = memory_order(array_zyx)
    taps = [taps_zyx[k].flipped(array_zyx.shape[k]) if flip else taps_zyx[k] for k, flip in zip(order, flips)]
    result_abc = torch.zeros([len(one.index_rt) for one in taps])
    for rows, block_abc in _blocks(array_abc, taps):
        result_abc[rows] = block_abc
    return result_abc.permute(*np.argsort(order).tolist()).contiguous()


def _applied_on_device(voxels_zyx: Tensor, taps_zyx: Sequence[_Taps]) -> Tensor:
    """``_applied`` on a tensor where it is: one axis after the other, of which the last shrinks most."""
    ranges = [one.used for one in taps_zyx]
    if not all(high for _, high in ranges):
        return torch.zeros([len(one.index_rt) for one in taps_zyx], device=voxels_zyx.device)
    part = voxels_zyx[tuple(slice(*bounds) for bounds in ranges)]
    growth = [len(one.index_rt) / (high - low) for one, (low, high) in zip(taps_zyx, ranges)]
    for axis in sorted(range(3), key=growth.__getitem__):
        taps = taps_zyx[axis].counted_from(*ranges[axis])
        index_rt = torch.from_numpy(taps.index_rt).to(part.device, non_blocking=True)
        weights_rt = torch.from_numpy(taps.weights_rt).to(part.device, non_blocking=True)[..., None, None]
        slow = part.movedim(axis, 0)
        rows = slow[index_rt[:, 0]].float() * weights_rt[:, 0]
        for t in range(1, index_rt.shape[1]):
            rows.addcmul_(slow[index_rt[:, t]].float(), weights_rt[:, t])
        part = rows.movedim(0, axis)
    return part.contiguous()


def _blocks(array_abc: NDArray[Any], taps_abc: Sequence[_Taps]) -> Iterator[Tuple[slice, Tensor]]:
    """Apply taps along each axis, a few output rows of the first axis at a time: (rows, float32 block).

    The planes of the array that a block needs are converted to float and shrunk or stretched while they are in the
    cache; the whole array never exists as floats. Yields nothing if no voxel has a weight.
    """
    ranges = [one.used for one in taps_abc]
    if not all(high for _, high in ranges):
        return
    array = array_abc[tuple(slice(*bounds) for bounds in ranges)]
    taps_a, taps_b, taps_c = (one.counted_from(*bounds) for one, bounds in zip(taps_abc, ranges))
    rows_a, rows_b, rows_c = (len(one.index_rt) for one in (taps_a, taps_b, taps_c))
    n_b, n_c = array.shape[1:]
    at_once = max(1, min(_ROWS, _VOXELS * rows_a // array.size))
    blocks = [slice(start, start + at_once) for start in range(0, rows_a, at_once)]
    spans = [(int(taps_a.index_rt[rows].min()), int(taps_a.index_rt[rows].max()) + 1) for rows in blocks]
    most = max(high - low for low, high in spans)
    planes = torch.empty((most, n_b, n_c))
    index_b, weights_b = _bags(np.arange(most)[:, None, None] * n_b + taps_b.index_rt, taps_b.weights_rt)
    weights_c = list(_column_weights(taps_c))
    for rows, (low, high) in zip(blocks, spans):
        count_b = (high - low) * rows_b
        index_a = (taps_a.index_rt[rows, None] - low) * rows_b + np.arange(rows_b)[:, None]
        part = copy_as_floats(array[low:high], planes[: high - low]).flatten(0, 1)
        if rows_c > n_c:  # what grows grows late, but products with few columns are slow
            part = _columns(part, weights_c, rows_c)
        part = _row_sums(part, index_b[:count_b], weights_b[:count_b])
        part = _row_sums(part, *_bags(index_a, taps_a.weights_rt[rows, None]))
        if rows_c <= n_c:
            part = _columns(part, weights_c, rows_c)
        yield rows, part.unflatten(0, (-1, rows_b))


def _columns(table: Tensor, weights_c: Sequence[Tuple[slice, slice, Tensor]], rows_c: int) -> Tensor:
    """(N, rows_c): the pieces of ``_column_weights`` applied to a table (N, c)."""
    result = torch.empty((len(table), rows_c))
    for columns, needed, weights in weights_c:
        torch.mm(table[:, needed], weights, out=result[:, columns])
    return result


def _bags(index: NDArray[np.int64], weights: NDArray[np.float32]) -> Tuple[Tensor, Tensor]:
    """What ``_row_sums`` takes, (N, t) each; the weights are broadcast to the index."""
    of_each = np.broadcast_to(weights, index.shape).astype(np.float32, order="C")
    return torch.from_numpy(index).flatten(0, -2), torch.from_numpy(of_each).flatten(0, -2)


def _row_sums(table: Tensor, index_Nt: Tensor, weights_Nt: Tensor) -> Tensor:
    """(N, c): weighted sums of t rows each of a table (M, c)."""
    return F.embedding_bag(index_Nt, table, mode="sum", per_sample_weights=weights_Nt)


def _column_weights(taps: _Taps) -> Iterator[Tuple[slice, slice, Tensor]]:
    """(columns, needed, weights): some columns of the output are the needed ones of the input times the weights."""
    for start in range(0, len(taps.index_rt), _COLUMNS):
        index = taps.index_rt[start : start + _COLUMNS]
        low, high = int(index.min()), int(index.max()) + 1
        weights = np.zeros((len(index), high - low), dtype=np.float32)
        np.add.at(weights, (np.arange(len(index))[:, None], index - low), taps.weights_rt[start : start + _COLUMNS])
        yield slice(start, start + len(index)), slice(low, high), torch.from_numpy(weights).T


def _index3(values: NDArray[np.int_]) -> Index3:
    z, y, x = values.tolist()
    return z, y, x
