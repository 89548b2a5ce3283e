"""Candidate masks without any prompt: the proposal head's coarse masks, refined by the decoder and ranked.

The whole scan is looked at once from afar, and piece by piece at half that distance, as far as there is something to
gain. In each view the best coarse masks that differ go to the decoder as dense prompts, each with the seed that it
has grown from; of candidates that are nearly the same, over all views, the one that the model trusts most stays.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import List, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .compact_mask import CompactMask
from .errors import ConfigError
from .geometry import Box, CanonicalFrame, Grid, box_slices, union
from .model.prompt_maps import POSITIVE
from .model.proposal_head import pick_seeds
from .resample import CropBox
from .runtime import autocast
from .segmenter import Prompts, Segmenter


@dataclass(frozen=True)
class ProposalOptions:
    """How candidates are looked for."""

    most: int = 10
    """At most so many candidates."""
    views: int = 9
    """At most so many views are looked at; the first one shows the whole scan."""
    per_view: int = 8
    """At most so many coarse masks of a view are refined."""
    least_quality: float = 0.1
    """Candidates of which the model predicts a smaller IoU are left out."""
    overlap: float = 0.6
    """Of two candidates that overlap (IoU) by more, the better one stays."""
    least_voxels: int = 20
    """Candidates of fewer voxels are left out."""

    def __post_init__(self) -> None:
        if min(self.most, self.views, self.per_view) < 1 or not 0 < self.overlap <= 1:
            raise ConfigError(f"Expected most, views and per_view from 1 and an overlap within 0..1, got {self}.")


class Candidate:
    """A mask that nobody asked for yet: see ``Session.propose`` and ``Session.take``.

    Attributes:
        quality: predicted IoU with the structure that it outlines, 0..1.
        box_zyx: the smallest half-open box of the image grid that holds it.
        mask: on the canonical grid.
    """

    def __init__(self, mask: CompactMask, quality: float, frame: CanonicalFrame) -> None:
        assert mask.box_zyx is not None
        self.mask, self.quality, self._frame = mask, quality, frame
        self.box_zyx: Box = frame.native_box(mask.box_zyx)

    @property
    def mask_zyx(self) -> NDArray[np.bool_]:
        """bool (z, y, x), the whole image grid, a new array."""
        dense = np.zeros(self._frame.native.size_zyx, dtype=bool)
        dense[box_slices(self.box_zyx)] = self.mask_in(self.box_zyx)
        return dense

    def mask_in(self, box_zyx: Box) -> NDArray[np.bool_]:
        """The mask within a half-open box of the image grid, (z, y, x) bool."""
        return self._frame.from_canonical(self.mask.within(self._frame.canonical_box(box_zyx)))


@torch.inference_mode()
def candidates_of(segmenter: Segmenter, frame: CanonicalFrame, options: ProposalOptions) -> List[Candidate]:
    """Candidates of a scan, the most trusted first; see ``Session.propose``."""
    found: List[Tuple[float, CompactMask]] = []
    for view in _views(segmenter, options.views):
        found += _candidates_in(view, segmenter, options)
    kept: List[Candidate] = []
    for quality, mask in sorted(found, key=lambda pair: -pair[0]):
        if len(kept) == options.most:
            break
        if all(overlap_of(mask, other.mask) <= options.overlap for other in kept):
            kept.append(Candidate(mask, quality, frame))
    return kept


def overlap_of(one: CompactMask, other: CompactMask) -> float:
    """Intersection over union of two masks on the same grid; 0 if both are empty."""
    box = union(one.box_zyx, other.box_zyx)
    if box is None:
        return 0.0
    a, b = one.within(box), other.within(box)
    return float((a & b).sum() / max(int((a | b).sum()), 1))


def cut_off(box_zyx: Box, view: CropBox, grid: Grid) -> bool:
    """Whether a mask in this box reaches a face of the view behind which the scan goes on."""
    region = view.image_box(grid)
    assert region is not None
    sides = zip(*box_zyx, *region, grid.size_zyx)
    return any((at <= start + 1 and start > 0) or (end >= stop - 1 and stop < n) for at, end, start, stop, n in sides)


def _views(segmenter: Segmenter, most: int) -> List[CropBox]:
    """The whole scan, and a regular cover of it by views of half the spacing, cut off at ``most``."""
    chooser, grid = segmenter.chooser, segmenter.grid
    middle = (np.asarray(grid.size_zyx) - 1) / 2
    views = [chooser.around(middle, chooser.coarsest_mm, middle)]
    spacing = max(views[0].spacing_mm / 2, chooser.finest_mm)
    if spacing < 0.75 * views[0].spacing_mm:
        reach = chooser.size * spacing / grid.spacing_zyx_mm
        counts = [max(1, math.ceil(n / r - 0.1)) for n, r in zip(grid.size_zyx, reach)]
        places = [(np.arange(count) + 0.5) / count * n - 0.5 for count, n in zip(counts, grid.size_zyx)]
        for centre in itertools.product(*places):
            views.append(chooser.around(np.asarray(centre), spacing, centre))
    return list(dict.fromkeys(views))[:most]


def _candidates_in(view: CropBox, segmenter: Segmenter, options: ProposalOptions) -> List[Tuple[float, CompactMask]]:
    """(predicted IoU, mask) of the coarse masks of one view after the decoder has refined them."""
    model = segmenter.model
    embedding = segmenter.embedding(view)
    with autocast(model.device, model.precision):
        maps = model.propose(embedding)
    everywhere_N = torch.arange(maps.quality_Bzyx[0].numel(), device=model.device)
    places_N3 = view.points_from_crop(maps.seed_positions(everywhere_N[None])[0].cpu().numpy(), segmenter.grid)
    in_scan_N = np.all((places_N3 > -0.5) & (places_N3 < np.asarray(segmenter.grid.size_zyx) - 0.5), axis=1)
    seeds_S, coarse_Szyx = pick_seeds(maps, options.per_view, torch.from_numpy(in_scan_N).to(model.device))
    empty = CompactMask.empty(segmenter.grid.size_zyx)
    found = []
    for place_3, coarse_zyx in zip(places_N3[seeds_S.cpu().numpy()], coarse_Szyx):
        dense = F.interpolate(coarse_zyx[None, None], size=(model.mask_size,) * 3, mode="trilinear").clamp(-6, 6)
        seed = Prompts(place_3[None], (POSITIVE,))
        logits, quality = segmenter.decode(embedding, view, seed, dense)
        quality = model.calibration.iou(quality)
        mask = segmenter.pasted(empty, view, segmenter.own_pieces(logits, view, seed, empty, empty))
        if quality < options.least_quality or mask.box_zyx is None or cut_off(mask.box_zyx, view, segmenter.grid):
            continue  # what goes on behind a face of the view is shown whole by a wider one
        if mask.voxels().sum() >= options.least_voxels:
            found.append((quality, mask))
    return found

