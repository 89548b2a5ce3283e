"""Whole clicks on a large synthetic CT, and the stages around the model: reading, resampling, pasting, undo."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from ..geometry import box_slices
from ..guided_filter import guide_of, paste_guided
from ..model.base import PromptableModel
from ..resample import CPU, CropBox, extract_crop, held_on, mask_to_crop, paste_logits
from ..session import Session
from ..volume import Volume, read_volume
from .machine import Limits, Work
from .models import MIB
from .timing import Call, Timing, once_ms

SPACING_ZYX_MM = np.array([1.0, 0.7, 0.7])
SessionTimes = Dict[str, List[float]]


def synthetic_ct(size_zyx: Tuple[int, int, int]) -> Volume:
    """An organ-like ellipsoid in the middle of a noisy int16 scan of 0.7 x 0.7 x 1 mm voxels."""
    noise = np.random.default_rng(0).normal(0, 20, (64, 67, 61)).astype(np.int16)
    voxels = np.empty(size_zyx, dtype=np.int16)
    repeats = [math.ceil(n / m) for n, m in zip(size_zyx[1:], noise.shape[1:])]
    inside = _ellipsoid(size_zyx)
    for z in range(size_zyx[0]):
        voxels[z] = np.tile(noise[z % len(noise)], repeats)[: size_zyx[1], : size_zyx[2]]
        voxels[z][inside(z)] += 150
    return Volume(voxels, np.diag([0.7, 0.7, 1.0, 1.0]), name="synthetic CT")


def clicks_on(volume: Volume, count: int, seed: int) -> Iterator[Tuple[float, float, float]]:
    """RAS points well inside the synthetic CT's ellipsoid."""
    size = np.array(volume.grid.size_zyx)
    reach = 0.2 * _radii(volume.grid.size_zyx)
    for offset in np.random.default_rng(seed).uniform(-1, 1, (count, 3)) * reach:
        r, a, s = volume.grid.ras_from_zyx_points([(size - 1) / 2 + offset])[0]
        yield float(r), float(a), float(s)


def time_clicks(model: PromptableModel, volume: Volume, runs: int) -> Dict[str, Any]:
    """First and next clicks, previews, undo and redo, as a user has them: from the call to the result."""
    times: SessionTimes = {}
    stages: Dict[str, float] = {}
    one_session(model, volume, 0, {})  # warms up
    for run in range(1, runs + 1):
        stages = one_session(model, volume, run, times)
    return {
        "volume_xyz": list(volume.grid.size_zyx[::-1]),
        "model": model.name,
        "precision": model.precision,
        **{name: Timing.of(values).to_dict() for name, values in times.items()},
        "last_next_click_stages_ms": {name: round(value, 2) for name, value in stages.items()},
    }


def one_session(model: PromptableModel, volume: Volume, seed: int, times: SessionTimes) -> Dict[str, float]:
    """A short session on a scan; its latencies are added to ``times``. Returns the stages of the last click.

    "first_encoded_ahead" is a first click one voxel beside the place that was prepared for.
    """
    session = Session(model)

    def timed(name: str, call: Call) -> Any:
        result: List[Any] = []
        elapsed_ms = once_ms(lambda: result.append(call()), model.device)
        times.setdefault(name, []).append(elapsed_ms)
        return result[0]

    first, second, third, previewed = clicks_on(volume, 4, seed)
    timed("set_image", lambda: session.set_image(volume))
    timed("first", lambda: session.add_point(first))
    timed("next", lambda: session.add_point(second))
    last = timed("next", lambda: session.add_point(third))
    timed("mask", lambda: session.result.mask_zyx)
    timed("preview", lambda: session.preview(previewed))
    timed("undo", session.undo)
    timed("redo", session.redo)
    prepared = Session(model)
    prepared.set_image(volume)
    while prepared.encode_ahead(first):
        pass
    r, a, s = first
    timed("first_encoded_ahead", lambda: prepared.add_point((r + SPACING_ZYX_MM[2], a, s)))
    return dict(last.timings_ms)


class StageCalls:
    """The stages around the model, on one view of 1.5 mm at the middle of a scan.

    Args:
        volume: the scan; written once, uncompressed, into a folder that leaving the ``with`` block removes.
        edge: voxels along each edge of the logits that are pasted.
        device: where they are interpolated.
    """

    def __init__(self, volume: Volume, edge: int = 64, device: torch.device = CPU) -> None:
        self.device = device
        self.volume, self.grid = volume, volume.canonical.grid
        self._folder = tempfile.TemporaryDirectory(prefix="famsam-bench-")
        self.path = Path(self._folder.name) / "scan.nii"
        nib.save(nib.Nifti1Image(volume.voxels_zyx.T, volume.grid.ras_from_ijk), self.path)
        size = np.array(self.grid.size_zyx)
        z, y, x = (float(c) for c in (size - 1) / 2)
        self.view = CropBox((z, y, x), 1.5)
        self.voxels_zyx = volume.canonical.to_canonical(volume.voxels_zyx)
        self.scan = self.voxels_zyx if device.type == "cpu" else held_on(device, self.voxels_zyx)
        self.guide = guide_of(*extract_crop(self.scan, self.grid, self.view), edge)
        squares = np.linspace(-1, 1, edge) ** 2
        ball = 4 - 16 * (squares[:, None, None] + squares[:, None] + squares)  # of half the view's edge
        self.logits = torch.from_numpy(ball).float()
        self.mask_zyx = np.zeros(self.grid.size_zyx, dtype=bool)
        pasted, box_zyx = paste_logits(self.logits, self.grid, self.view)
        assert box_zyx is not None  # the ball lies in the middle of the scan
        self.mask_zyx[box_slices(box_zyx)] = pasted
        self._pasted_bytes = pasted.nbytes

    def __enter__(self) -> StageCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def crop(self) -> torch.Tensor:
        """(1, 1, 128, 128, 128) intensities of the view."""
        return extract_crop(self.voxels_zyx, self.grid, self.view)[0][None, None]

    def calls(self) -> Dict[str, Call]:
        return {
            "read": lambda: read_volume(self.path),
            "open": lambda: Volume(self.volume.voxels_zyx, self.grid.ras_from_ijk),
            "resample": self.crop,
            "prior": lambda: mask_to_crop(self.mask_zyx, self.grid, self.view, len(self.logits)),
            "paste": lambda: paste_logits(self.logits, self.grid, self.view, device=self.device),
            "paste guided": lambda: paste_guided(self.logits, self.guide, self.scan, self.grid, self.view, self.device),
        }

    def work(self) -> Dict[str, Work]:
        """The least each stage has to read and write; "read" twice, since the file's bytes become the voxels'."""
        voxels, seen = self.volume.voxels_zyx, self.view.image_box(self.grid)
        assert seen is not None
        seen_voxels = math.prod(high - low for low, high in zip(*seen))
        crop_bytes = 4 * self.view.size**3
        return {
            "read": Work(2 * voxels.nbytes / MIB),
            "open": Work(voxels.nbytes / MIB),
            "resample": Work((seen_voxels * voxels.itemsize + crop_bytes) / MIB),
            "prior": Work((self._pasted_bytes + self.logits.nbytes) / MIB),
            "paste": Work((self._pasted_bytes + self.logits.nbytes) / MIB),
            "paste guided": Work((self._pasted_bytes * (1 + voxels.itemsize) + self.logits.nbytes) / MIB),
        }

    def found(self, timings: Dict[str, Timing], limits: Limits) -> Dict[str, Any]:
        """What the report says about these stages."""
        return {name: limits.judged(timings[name], work) for name, work in self.work().items()}


def _radii(size_zyx: Tuple[int, int, int]) -> NDArray[np.float64]:
    """Of the ellipsoid, in voxels."""
    return np.minimum(np.array([40.0, 45.0, 60.0]), 0.3 * np.array(size_zyx) * SPACING_ZYX_MM) / SPACING_ZYX_MM


def _ellipsoid(size_zyx: Tuple[int, int, int]) -> Any:
    """A function of z: that plane of the ellipsoid, (y, x) bool."""
    centre, radii = (np.array(size_zyx) - 1) / 2, _radii(size_zyx)
    z, y, x = (((np.arange(n) - c) / r) ** 2 for n, c, r in zip(size_zyx, centre, radii))
    plane_yx = y[:, None] + x
    return lambda index: plane_yx < 1 - z[index]
