"""Candidate masks without any prompt: where the proposal head sees something, a click is tried, and the best are kept.

The whole scan is looked at once from afar, and piece by piece at half that distance, as far as there is something to
gain. In each view the head tells seeds: where the quality that it promises has a peak, and those with the best coarse
masks that differ. Each is scouted as a click there would be; the most trusted that differ are looked at in full; of
candidates that are nearly the same, the one that the model trusts most stays.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import List, NamedTuple, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .compact_mask import CompactMask
from .errors import ConfigError
from .geometry import Box, CanonicalFrame, box_slices
from .model.prompt_maps import POSITIVE
from .model.proposal_head import local_maxima, pick_seeds
from .resample import CropBox
from .runtime import autocast
from .segmenter import Prompts, Segmenter

SAME_FOR_SCOUTS = 0.8
"""Of two masks of scouts that overlap (IoU) by more, one is looked at in full; coarse ones may yet differ."""


@dataclass(frozen=True)
class ProposalOptions:
    """How candidates are looked for."""

    most: int = 10
    """At most so many candidates."""
    views: int = 9
    """At most so many views are looked at; the first one shows the whole scan."""
    per_view: int = 12
    """At most so many peaks of the promised quality are scouted in a view, and two thirds as many coarse masks."""
    closely: int = 16
    """At most so many of the masks that scouts have seen are looked at in full."""
    least_promise: float = 0.1
    """Places for which the head promises a smaller IoU are not scouted."""
    least_quality: float = 0.25
    """Candidates of which the model predicts a smaller IoU are left out; in the development scans none was right."""
    overlap: float = 0.6
    """Of two candidates that overlap (IoU) by more, the better one stays."""
    least_voxels: int = 20
    """Candidates of fewer voxels are left out."""
    finest_voxels: float = 0.5
    """Seeds are looked for in views no finer than this share of the scan's median voxel spacing: noise that is enlarged
    looks like structures."""

    def __post_init__(self) -> None:
        if min(self.most, self.views, self.per_view, self.closely) < 1 or not 0 < self.overlap <= 1:
            raise ConfigError(f"Expected most, views, per_view and closely from 1 and an overlap in 0..1, got {self}.")


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


class _Found(NamedTuple):
    quality: float
    mask: CompactMask
    seed: Prompts


@torch.inference_mode()
def candidates_of(segmenter: Segmenter, frame: CanonicalFrame, options: ProposalOptions) -> List[Candidate]:
    """Candidates of a scan, the most trusted first; see ``Session.propose``."""
    scouted: List[_Found] = []
    for view in _views(segmenter, options):
        for seed in _seeds(view, segmenter, options):
            scouted.append(_Found(*segmenter.scouted(seed), seed))
    looked: List[_Found] = []
    nothing = segmenter.start()
    for found in _distinct(scouted, options.closely, SAME_FOR_SCOUTS):
        prediction = segmenter.step(found.seed, nothing, nothing.mask)
        if prediction.mask.count >= options.least_voxels and prediction.quality >= options.least_quality:
            looked.append(_Found(prediction.quality, prediction.mask, found.seed))
    best = _distinct(looked, options.most, options.overlap)
    return [Candidate(found.mask, found.quality, frame) for found in best]


def _distinct(found: Sequence[_Found], most: int, overlap: float) -> List[_Found]:
    """The most trusted masks, none of which overlaps (IoU) by more with a more trusted one."""
    kept: List[_Found] = []
    for one in sorted(found, key=lambda one: -one.quality):
        if len(kept) == most:
            break
        if one.mask.box_zyx is not None and not any(one.mask.overlaps(other.mask, overlap) for other in kept):
            kept.append(one)
    return kept


def _views(segmenter: Segmenter, options: ProposalOptions) -> List[CropBox]:
    """The whole scan, and a regular cover of it by views of half the spacing."""
    chooser, grid = segmenter.chooser, segmenter.grid
    middle = (np.asarray(grid.size_zyx) - 1) / 2
    views = [chooser.around(middle, chooser.coarsest_mm, middle)]
    spacing = max(views[0].spacing_mm / 2, options.finest_voxels * chooser.voxel_mm)
    if spacing < 0.75 * views[0].spacing_mm:
        reach = chooser.size * spacing / grid.spacing_zyx_mm
        counts = [max(1, math.ceil(n / r - 0.1)) for n, r in zip(grid.size_zyx, reach)]
        places = [(np.arange(count) + 0.5) / count * n - 0.5 for count, n in zip(counts, grid.size_zyx)]
        for centre in itertools.product(*places):
            views.append(chooser.around(np.asarray(centre), spacing, centre))
    return list(dict.fromkeys(views))[: options.views]


def _seeds(view: CropBox, segmenter: Segmenter, options: ProposalOptions) -> List[Prompts]:
    """Where the head sees something in a view, each place as a click."""
    model = segmenter.model
    embedding = segmenter.embedding(view)
    with autocast(model.device, model.precision):
        maps = model.propose(embedding)
    everywhere_N = torch.arange(maps.quality_Bzyx[0].numel(), device=model.device)
    places_N3 = view.points_from_crop(maps.seed_positions(everywhere_N[None])[0].cpu().numpy(), segmenter.grid)
    in_scan_N = np.all((places_N3 > -0.5) & (places_N3 < np.asarray(segmenter.grid.size_zyx) - 0.5), axis=1)
    allowed_N = torch.from_numpy(in_scan_N).to(model.device)
    peaks_S = local_maxima(maps, options.per_view, allowed_N, options.least_promise)
    coarse_S, _ = pick_seeds(maps, math.ceil(2 / 3 * options.per_view), allowed_N, options.least_promise)
    chosen = dict.fromkeys([*peaks_S.tolist(), *coarse_S.tolist()])
    return [Prompts(places_N3[index][None], (POSITIVE,), chosen=False) for index in chosen]
