"""From the prompts of one scan to a mask: choose a view, encode it once, decode, refine, paste.

Everything here lives in the scan's canonical frame (axes z, y, x closest to superior, anterior, right). A prediction
depends only on the scan, the prompts and the prediction before it, never on what happens to be cached.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Dict, Generator, List, Optional, Sequence, Tuple, TypeVar, Union

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .calling import ModelCaller
from .compact_mask import CompactMask
from .contrast import cut_around, intensity_at, level_step
from .embeddings import Embeddings
from .geometry import Box, Grid, bounding_box, box_slices, union
from .guided_filter import guide_of, paste_guided
from .model.base import Embedding, PromptableModel
from .model.prompt_maps import BOX_LOWER, BOX_UPPER, NEGATIVE, POSITIVE, one_way, restrained
from .pieces import bounds_of_piece_nearest, piece_at, pieces_of
from .resample import CropBox, extract_crop, held_on, mask_to_crop, paste_logits
from .tiling import Tiling, is_thin
from .views import ViewChooser, ViewOptions, thickened
from .volume import Volume

if TYPE_CHECKING:
    from .embeddings import Seen

_T = TypeVar("_T")

PRIOR_LOGIT = 4.0
"""Logit of a voxel wholly inside a mask that is given as the previous one; the opposite outside."""
ROUNDING = 1e-6
"""So many voxels beyond a face of a view a click on the scan's face may seem to lie, where the view ends there, too."""


@dataclass(frozen=True)
class SegmenterOptions:
    """How the segmenter trades speed for quality."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """How views are chosen."""
    looks: int = 4
    """At most so many views are followed for one prompt."""
    enough_trust: float = 0.65
    """A structure that a first look shows whole, with at least this predicted IoU, needs no others, and a full look at
    it no other contrast."""
    wider_trust: float = 0.8
    """A wider view is taken if its predicted IoU is at least this share of the narrower one's."""
    closer_trust: float = 0.8
    """A closer view is taken if its predicted IoU is at least this share of the wider one's."""
    as_sure: float = 0.8
    """A scout with at least this share of the best one's predicted IoU is about as sure as it; so is a look in another
    contrast with that share of the first one's."""
    scout_trust: float = 0.5
    """A full look with less than this share of the predicted IoU that a small crop of the same view had is doubted."""
    refine_above: float = 1.3
    """Views coarser than this many times the first spacing get their borders refined by finer tiles."""
    most_tiles: int = 12
    """At most so many tiles refine one prediction."""
    thin_share: float = 0.4
    """A mask of which less than this share lies deeper than a voxel of the logits is thin, and looked at twice as
    closely around every further prompt."""
    thin_tiles: int = 2
    """At most so many tiles do that."""
    thin_voxels: float = 0.5
    """No such tile is finer than this share of the scan's median voxel spacing."""
    cached_embeddings: int = 16
    """Embeddings kept, least recently used ones dropped first (about 10 MB each)."""


@dataclass(frozen=True)
class Prompts:
    """All prompts so far, in canonical voxel indices.

    Attributes:
        points_zyx: (N, 3); a box is two points.
        labels: N of POSITIVE, NEGATIVE, BOX_LOWER, BOX_UPPER.
        chosen: whether somebody chose these places: then what lies there is what the structure looks like.
    """

    points_zyx: NDArray[np.float64]
    labels: Tuple[int, ...]
    chosen: bool = True


@dataclass(frozen=True)
class Prediction:
    """What the session keeps of one step.

    Attributes:
        mask: on the canonical grid.
        view, logits: the last view and its (1, 1, n, n, n) half-precision logits; None before the first prompt.
        quality: predicted IoU, 0..1.
        timings_ms: "crop", "encode", "decode", "paste", "total".
    """

    mask: CompactMask
    view: Optional[CropBox] = None
    logits: Optional[Tensor] = None
    quality: float = 0.0
    timings_ms: Dict[str, float] = field(default_factory=dict)


Steps = Generator[None, None, Prediction]
"""The way to a prediction, with a halt after each view that had to be encoded."""


class Segmenter:
    """A model looking at one scan; ``embeddings`` are those that others who look at it through the same model share."""

    def __init__(
        self,
        model: PromptableModel,
        volume: Volume,
        options: Optional[SegmenterOptions] = None,
        embeddings: Optional[Embeddings] = None,
    ) -> None:
        self.model, self.options = model, options or SegmenterOptions()
        self._caller = ModelCaller(model)
        frame = volume.canonical
        self.grid = thickened(frame.grid, model.crop_size)
        self.voxels_zyx = frame.to_canonical(volume.voxels_zyx)
        self.chooser = ViewChooser(self.grid, self.options.views, model.spacing_mm, model.crop_size)
        self._embeddings = Embeddings(self.options.cached_embeddings) if embeddings is None else embeddings
        on_gpu = model.device.type == "cuda"
        self._scan = self._scan_on_gpu() if on_gpu else self.voxels_zyx
        self._pasting = model.device if on_gpu else torch.device("cpu")
        self._crop: Optional[Tuple[CropBox, Tensor, Tensor]] = None  # the last one, with what of it lies in the scan
        self._guide: Optional[Tuple[CropBox, Tensor]] = None  # of the last view whose logits followed the scan's edges
        self._timings = _no_timings()

    def _scan_on_gpu(self) -> Union[NDArray[Any], Tensor]:
        """The scan's voxels for ``extract_crop``, on the GPU once for all who share embeddings, if there is room."""
        if self._embeddings.held_scan is None:
            held = held_on(self.model.device, self.voxels_zyx)
            if not isinstance(held, Tensor):
                return held
            self._embeddings.held_scan = held
        return self._embeddings.held_scan

    def start(self, mask: Optional[CompactMask] = None) -> Prediction:
        """The prediction before any prompt: empty, or a mask to refine."""
        return Prediction(mask or CompactMask.empty(self.grid.size_zyx))

    def step(self, prompts: Prompts, previous: Prediction, base: CompactMask) -> Prediction:
        """The prediction after the newest prompt (the last point of ``prompts``, or the last two for a box).

        Args:
            prompts: all prompts, the newest last.
            previous: the prediction before it.
            base: the mask that the user started from, whose pieces are kept even without a click in them.
        """
        return finished(self.steps(prompts, previous, base))

    @torch.inference_mode()
    def steps(self, prompts: Prompts, previous: Prediction, base: CompactMask) -> Steps:
        """As ``step``, for a caller that may want to stop in between: what was encoded by then is kept."""
        started = time.perf_counter()
        self._timings = _no_timings()
        view, logits, quality = yield from self._best_look(prompts, previous)
        fine, onward = yield from self._refined(view, logits, prompts, previous)
        with _Clock(self._timings, "paste"):
            fine = self.own_pieces(fine, view, prompts, previous.mask, base)
            mask = self.pasted(previous.mask, view, fine)
            mask = self._obeying(mask, prompts, previous.mask)
        if onward is not None and mask.box_zyx is not None:
            low, high = (np.array(corner, dtype=float) for corner in mask.box_zyx)
            if onward[0] == view or self.chooser.fits(onward[0], low, high):
                view, logits = onward
        self._timings["total"] = 1000 * (time.perf_counter() - started)
        return Prediction(mask, view, logits.half(), self.model.calibration.iou(quality), dict(self._timings))

    @torch.inference_mode()
    def scouted(self, prompts: Prompts) -> Tuple[float, CompactMask]:
        """What the scouts of a first prompt see, a third of the work of a ``step``: its predicted IoU, its mask."""
        nothing = self.start()
        views, size = self._start_views(prompts, nothing), self.model.scout_size or self.model.crop_size
        view, looks = finished(self._followed(views, prompts, nothing, size))
        logits = self.own_pieces(looks[view][0], view, prompts, nothing.mask, nothing.mask)
        return self.model.calibration.iou(looks[view][1]), self.pasted(nothing.mask, view, logits)

    def _best_look(
        self, prompts: Prompts, previous: Prediction
    ) -> Generator[None, None, Tuple[CropBox, Tensor, float]]:
        """The view to go by, its logits and predicted IoU.

        A structure seen for the first time is scouted in small crops, an eighth of the work each, where the model takes
        them; what they led to is then looked at in full, or at once through the closer tile that shows it whole. If a
        full look loses what the scout saw, it looks again with that as the previous logits, and the most trusted of the
        three counts. Where that is hardly trusted, and another scout was about as sure, what it leads to is seen, too:
        which of the two is a little surer hangs on a fraction of a voxel.
        """
        views = self._start_views(prompts, previous)
        size, options = self.model.crop_size, self.options
        if len(views) == 1 or self.model.scout_size is None:
            view, looks = yield from self._followed(views, prompts, previous, size)
            return (view, *looks[view])
        view, scouts = yield from self._followed(views, prompts, previous, self.model.scout_size)
        found = yield from self._in_full(view, *scouts[view], prompts, previous)
        others = sorted((other for other in scouts if other != view), key=lambda other: -scouts[other][1])
        if found[2] < options.enough_trust and others and scouts[others[0]][1] >= options.as_sure * scouts[view][1]:
            other = yield from self._in_full(others[0], *scouts[others[0]], prompts, previous)
            found = max(found, other, key=lambda one: one[2])
        return found

    def _in_full(
        self, view: CropBox, seen: Tensor, trust: float, prompts: Prompts, previous: Prediction
    ) -> Generator[None, None, Tuple[CropBox, Tensor, float]]:
        """What a scouted view leads to: the view, its logits and predicted IoU.

        Args:
            seen, trust: logits (1, 1, n, n, n) and predicted IoU of the scouting.
        """
        scouted = F.interpolate(seen, size=(self.model.mask_size,) * 3, mode="trilinear")
        closer = yield from self._in_one_tile(view, scouted, trust, prompts)
        if closer is not None:
            return closer
        logits, quality = yield from self._look(view, prompts, previous, self.model.crop_size)
        if quality < self.options.scout_trust * trust:
            again = self.decode(self.embedding(view), view, prompts, scouted.clamp(-6, 6))
            logits, quality = max((logits, quality), (scouted, trust), again, key=lambda found: found[1])
        return view, logits, quality

    def _in_one_tile(
        self, view: CropBox, scouted: Tensor, trust: float, prompts: Prompts
    ) -> Generator[None, None, Optional[Tuple[CropBox, Tensor, float]]]:
        """The tile that shows what was scouted in a coarse view, its logits and predicted IoU; None if one will not do.

        Args:
            scouted, trust: logits (1, 1, n, n, n) and predicted IoU of the scouting.
        """
        tiling = self._tiling(view, scouted)
        if tiling is None or len(tiling.origins) != 1:
            return None
        tile = tiling.view_of(tiling.origins[0], self.grid)
        embedding = yield from self._encoded(tile)
        logits, quality = self.decode(embedding, tile, prompts, tiling.prior(tiling.origins[0]))
        lost = quality < self.options.scout_trust * trust or not bool((logits > 0).any())
        if lost or self._better_view(tile, logits, prompts.points_zyx[-1]) is not None:
            return None
        return tile, logits, quality

    def _followed(
        self, views: Sequence[CropBox], prompts: Prompts, previous: Prediction, size: int
    ) -> Generator[None, None, Tuple[CropBox, Dict[CropBox, Tuple[Tensor, float]]]]:
        """Of several views the first that will do, else the one that the model trusts most, followed to a better one.

        If the structure goes on behind a face of the view, the view widens; if it is small in it, the view closes in;
        neither if that costs much trust.

        Returns:
            the view, and of all views that were looked at the logits and predicted IoU, from crops of ``size`` voxels
            an edge.
        """
        options, newest = self.options, prompts.points_zyx[-1]
        looks: Dict[CropBox, Tuple[Tensor, float]] = {}
        for best in views:
            logits, quality = looks[best] = yield from self._look(best, prompts, previous, size)
            if len(views) > 1 and quality >= options.enough_trust and self._better_view(best, logits, newest) is None:
                break
        else:
            best = max(looks, key=lambda view: looks[view][1])
        followed = {best}
        while len(followed) < options.looks:
            better = self._better_view(best, looks[best][0], newest)
            if better is None or better in followed:
                break
            wider = better.spacing_mm >= best.spacing_mm
            if better not in looks:
                looks[better] = yield from self._look(better, prompts, previous, size)
            if looks[better][1] < looks[best][1] * (options.wider_trust if wider else options.closer_trust):
                break
            best = better
            followed.add(best)
        return best, looks

    def _start_views(self, prompts: Prompts, previous: Prediction) -> List[CropBox]:
        """The previous view if the newest prompt and the object at it fit, else one made for them, or several."""
        newest = prompts.points_zyx[-1]
        if prompts.labels[-1] == BOX_UPPER:
            low, high = prompts.points_zyx[-2], newest + 1
            return [self.chooser.for_object(low, high, (low + high - 1) / 2)]
        found = piece_at(previous.mask, newest, self.grid.spacing_zyx_mm)
        if found is None:
            if previous.view is not None and self.chooser.fits(previous.view, newest, newest + 1):
                return [previous.view]
            several = self.chooser.first(newest)
            return several if previous.mask.box_zyx is None else several[:1]
        low, high = np.minimum(found[0], newest), np.maximum(found[1], newest + 1)
        if previous.view is not None and self.chooser.fits(previous.view, low, high):
            return [previous.view]
        return [self.chooser.for_object(low, high, newest)]

    def _better_view(self, view: CropBox, logits: Tensor, newest_zyx: NDArray[np.float64]) -> Optional[CropBox]:
        """A view that suits the object found in this one, or None."""
        foreground = (logits[0, 0] > 0).numpy()
        if not foreground.any():
            return None
        n = len(foreground)
        at = (view.points_to_crop(newest_zyx, self.grid) + 0.5) * n / view.size - 0.5
        bounds = bounds_of_piece_nearest(foreground, at)
        return self.chooser.better(view, bounds[0] / n, bounds[1] / n, newest_zyx)

    def _look(
        self, view: CropBox, prompts: Prompts, previous: Prediction, size: int
    ) -> Generator[None, None, Tuple[Tensor, float]]:
        """Logits (1, 1, n, n, n) and the predicted IoU of the object in a view, from a crop of that size.

        What one click shows and is hardly trusted is seen in the click's own contrast, too; the mean counts, if the
        model is about as sure of that.
        """
        view = replace(view, spacing_mm=view.spacing_mm * view.size / size, size=size)
        embedding = yield from self._encoded(view)
        prior = self.prior(view, previous)
        several = size == self.model.crop_size and self.shows_several(prompts, prior)
        logits, quality = self.decode(embedding, view, prompts, prior, several)
        if several and prompts.chosen and quality < self.options.enough_trust:
            embedding = yield from self._encoded(view, self._middle_at(prompts.points_zyx[-1]))
            other, other_quality = self.decode(embedding, view, prompts, prior, several)
            if other_quality >= self.options.as_sure * quality:
                logits, quality = (logits + other) / 2, max(quality, other_quality)
        if self.model.one_way and prior is not None:
            newest = torch.tensor(prompts.labels[-1:])
            at = torch.from_numpy(view.points_to_crop(prompts.points_zyx[-1:], self.grid))
            at = (at + 0.5) * logits.shape[-1] / size - 0.5
            logits = restrained(logits, prior, at, newest, self.model.least_added)
            logits = one_way(logits, prior, newest)
        return logits, quality

    @functools.cached_property
    def _level_step(self) -> float:
        """How far apart contrasts are, in the scan's units; needed for first clicks that are hardly trusted alone."""
        return level_step(self.voxels_zyx)

    def _middle_at(self, point_zyx: NDArray[np.float64]) -> float:
        """The middle of the contrast that a click is seen in, in the scan's units."""
        z, y, x = np.floor(point_zyx + 0.49).astype(int).tolist()  # no tie between two voxels
        return round(intensity_at(self.voxels_zyx, (z, y, x)) / self._level_step) * self._level_step

    def _encoded(self, view: CropBox, middle: Optional[float] = None) -> Generator[None, None, Embedding]:
        """The embedding of a view, with a halt if it was not there."""
        known, timings = _seen(view, middle) in self._embeddings, self._timings
        embedding = self.embedding(view, middle)
        if not known:
            yield
            self._timings = timings  # another prediction may have been made meanwhile
        return embedding

    def prior(self, view: CropBox, previous: Prediction) -> Optional[Tensor]:
        """The previous logits to decode a view with: those of a prediction, or its mask; None if it has none there."""
        if previous.view == view and previous.logits is not None and previous.mask.box_zyx is not None:
            return previous.logits.float()
        return self.as_prior(previous.mask, view)

    def as_prior(self, mask: CompactMask, view: CropBox) -> Optional[Tensor]:
        """A mask as previous logits of a view; None if nothing of it is in the view."""
        if mask.box_zyx is None:
            return None
        origin = mask.box_zyx[0]
        z, y, x = (c - o for c, o in zip(view.center_zyx, origin))
        part = Grid(mask.box_size_zyx, self.grid.ras_from_ijk)
        shifted = CropBox((z, y, x), view.spacing_mm, view.size)
        share = mask_to_crop(mask.voxels(), part, shifted, self.model.mask_size)
        if not bool((share > 0).any()):
            return None
        return (PRIOR_LOGIT * (2 * share - 1))[None, None]

    def embedding(self, view: CropBox, middle: Optional[float] = None) -> Embedding:
        """What the encoder makes of a view, from the cache or anew; of the intensities around a middle alone, if one is
        given (see ``contrast``)."""
        kept = self._embeddings.get(_seen(view, middle))
        if kept is not None:
            return kept
        with _Clock(self._timings, "crop"):
            crop, inside = self._crop_of(view)
            if middle is not None:
                crop = cut_around(crop, inside, middle)
            normalised = self._caller.normalise(crop, inside)
        with _Clock(self._timings, "encode"):
            embedding = self._caller.encode(normalised)
        self._embeddings.keep(_seen(view, middle), embedding)
        return embedding

    def _crop_of(self, view: CropBox) -> Tuple[Tensor, Tensor]:
        """``extract_crop``, once for what is seen in two contrasts or guides its logits."""
        if self._crop is None or self._crop[0] != view:
            self._crop = (view, *extract_crop(self._scan, self.grid, view))
        return self._crop[1:]

    def _guide_of(self, view: CropBox) -> Tensor:
        """``guide_of`` the logits of a view."""
        if self._guide is None or self._guide[0] != view:
            self._guide = view, guide_of(*self._crop_of(view), self.model.mask_size)
        return self._guide[1]

    def decode(
        self, embedding: Embedding, view: CropBox, prompts: Prompts, prior: Optional[Tensor], several: bool = False
    ) -> Tuple[Tensor, float]:
        """Logits (1, 1, n, n, n) and the predicted IoU of one set of prompts, ``prior`` being the previous logits;
        ``several``: the most trusted of the model's alternatives."""
        points, labels = self._points_in(view, prompts)
        with _Clock(self._timings, "decode"):
            return self._caller.decode(embedding, points, labels, prior, several)

    def shows_several(self, prompts: Prompts, prior: Optional[Tensor]) -> bool:
        """Whether the most trusted of the model's alternatives counts: for one click, if the model was trained so."""
        return self.model.several_at_first and prior is None and prompts.labels == (POSITIVE,)

    def _points_in(self, view: CropBox, prompts: Prompts) -> Tuple[Tensor, Tensor]:
        """The prompts that lie in a view: (N, 3) crop voxels, (N,) labels; padding last if the newest does not."""
        points, labels = prompts.points_zyx, np.asarray(prompts.labels)
        if not (self.model.takes_boxes and POSITIVE in labels):
            points, labels = _with_middles(points, labels)
        crop_points = view.points_to_crop(points, self.grid)
        in_view = np.all((crop_points >= -0.5 - ROUNDING) & (crop_points <= view.size - 0.5 + ROUNDING), axis=1)
        is_corner = (labels == BOX_LOWER) | (labels == BOX_UPPER)
        in_view = in_view | is_corner if self.model.takes_boxes else in_view & ~is_corner
        crop_points, labels, newest_seen = crop_points[in_view], labels[in_view], bool(in_view[-1])
        if self.model.ignores_padding and not newest_seen:
            crop_points, labels = np.pad(crop_points, ((0, 1), (0, 0))), np.append(labels, -1)
        points_N3 = torch.from_numpy(np.ascontiguousarray(crop_points, dtype=np.float32))
        return points_N3, torch.from_numpy(labels.astype(np.int64))

    def _refined(
        self, view: CropBox, logits: Tensor, prompts: Prompts, previous: Prediction
    ) -> Generator[None, None, Tuple[Tensor, Optional[Tuple[CropBox, Tensor]]]]:
        """Logits (1, 1, N, N, N) of a view, N its n or, where closer tiles decode its border better, 2 to 4 times that.

        Also what to go on from, a view and its logits, if that is not what was given: the tile if one shows everything
        that a coarse view does, else the view with what the tiles found.
        """
        coarse = self._tiling(view, logits)
        tiling = coarse or self._around_newest(view, logits, prompts, previous)
        if tiling is None or not tiling.origins:
            return logits, None
        for origin in tiling.origins:
            tile = tiling.view_of(origin, self.grid)
            embedding = yield from self._encoded(tile)
            part, _ = self.decode(embedding, tile, prompts, tiling.prior(origin))
            tiling.add(origin, part)
        fine = tiling.blended()
        if coarse is not None and len(tiling.origins) == 1:
            return fine, (tile, part)
        return fine, (view, F.interpolate(fine, size=logits.shape[2:], mode="trilinear"))

    def _tiling(self, view: CropBox, logits: Tensor) -> Optional[Tiling]:
        """The tiles that refine a coarse view; None if it is fine enough, or if the model sees at one spacing only."""
        options = self.options
        if self.model.spacing_mm is not None:
            return None
        factor = min(4, round(view.spacing_mm / max(options.views.first_spacing_mm, self.chooser.finest_mm)))
        if factor < 2 or view.spacing_mm < options.refine_above * options.views.first_spacing_mm:
            return None
        return Tiling(view, logits, factor, options.most_tiles)

    def _around_newest(
        self, view: CropBox, logits: Tensor, prompts: Prompts, previous: Prediction
    ) -> Optional[Tiling]:
        """The tiles that look twice as closely at a thin structure around the newest prompt; None where there is none,
        or before anything was found.

        For models whose clicks go one way, so that what was drawn more finely than they see is not decided anew.
        """
        if self.model.spacing_mm is not None or not self.model.one_way or previous.mask.box_zyx is None:
            return None
        foreground = (logits[0, 0] > 0).numpy()
        too_fine = view.spacing_mm < 1.99 * self.options.thin_voxels * self.chooser.voxel_mm
        if too_fine or not is_thin(foreground, self.options.thin_share):
            return None
        at = (view.points_to_crop(prompts.points_zyx[-1], self.grid) + 0.5) * len(foreground) / view.size - 0.5
        return Tiling(view, logits, 2, self.options.thin_tiles, at)

    def own_pieces(
        self, logits: Tensor, view: CropBox, prompts: Prompts, before: CompactMask, base: CompactMask
    ) -> Tensor:
        """Logits without the pieces that hold neither a positive prompt nor a part of the mask started from.

        A piece that goes on behind a face of the view as part of the mask before is kept: its click may lie out there.
        """
        foreground = (logits[0, 0] > 0).numpy()
        found = bounding_box(foreground)
        if found is None:
            return logits
        n, box, low = len(foreground), box_slices(found), np.array(found[0])
        pieces, count = pieces_of(foreground[box])
        owned = set()
        telling = POSITIVE in prompts.labels or base.box_zyx is not None
        for point, label in zip(prompts.points_zyx, prompts.labels):
            if label == NEGATIVE:
                continue
            at = (view.points_to_crop(point, self.grid) + 0.5) * n / view.size
            if label != POSITIVE:
                return logits
            if ((at >= -ROUNDING) & (at <= n + ROUNDING)).all():
                index = np.floor(at).clip(0, n - 1).astype(int)
                in_box = (index >= low).all() and (index < found[1]).all()
                owned.add(int(pieces[tuple(index - low)]) if in_box else 0)
        telling = telling and owned != {0}  # a click that was not taken tells nothing
        region = view.image_box(self.grid)
        goes_on = union(before.box_zyx, region) != region
        for mask, inner in [(base, slice(0, 0)), (before, slice(1, -1))][: 1 + goes_on]:
            prior = self.as_prior(mask, view)
            if prior is not None:
                kept = F.interpolate(prior, size=(n, n, n), mode="nearest")[0, 0].numpy() > 0
                kept[inner, inner, inner] = False
                owned |= set(np.flatnonzero(np.bincount(pieces[kept[box]])).tolist())
        owned -= {0}
        if len(owned) == count or not (owned or telling):
            return logits
        foreign = np.ones(count + 1, dtype=bool)
        foreign[[0, *owned]] = False
        others = torch.from_numpy(foreign[pieces])
        logits = logits.clone()
        logits[0, 0][box].masked_fill_(others, -PRIOR_LOGIT)
        return logits

    def pasted(self, mask: CompactMask, view: CropBox, logits: Tensor) -> CompactMask:
        """The mask with everything in the view replaced."""
        region = view.image_box(self.grid)
        if region is None:
            return mask
        if self.model.follows_edges and logits.shape[-1] == self.model.mask_size:
            voxels, box = paste_guided(logits[0, 0], self._guide_of(view), self._scan, self.grid, view, self._pasting)
        else:  # what closer tiles found is about as fine as the scan
            voxels, box = paste_logits(logits[0, 0], self.grid, view, device=self._pasting)
        return mask.replaced(region, voxels, box[0] if box else region[0])

    def _obeying(self, mask: CompactMask, prompts: Prompts, before: CompactMask) -> CompactMask:
        """The mask with every clicked voxel as its click says; of two clicks on one voxel the later counts.

        With a model for that, a positive click takes nothing from the mask before, and a negative one adds nothing.
        """
        if self.model.one_way and prompts.labels[-1] == POSITIVE:
            mask = mask.united(before)
        elif self.model.one_way and prompts.labels[-1] == NEGATIVE:
            mask = mask.shared(before)
        said: Dict[Tuple[int, int, int], bool] = {}
        for point, label in zip(prompts.points_zyx, prompts.labels):
            if label in (POSITIVE, NEGATIVE):
                index = np.clip(np.rint(point), 0, np.array(self.grid.size_zyx) - 1).astype(int)
                said[(int(index[0]), int(index[1]), int(index[2]))] = label == POSITIVE
        for index, inside in said.items():
            if mask.at(index) != inside:
                cell: Box = (index, (index[0] + 1, index[1] + 1, index[2] + 1))
                mask = mask.replaced(cell, np.full((1, 1, 1), inside), index)
        return mask


def finished(steps: Generator[None, None, _T]) -> _T:
    """What a generator returns when nobody stops it."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _no_timings() -> Dict[str, float]:
    return dict.fromkeys(("crop", "encode", "decode", "paste"), 0.0)


def _seen(view: CropBox, middle: Optional[float]) -> Seen:
    """What ``Embeddings`` call that."""
    return view if middle is None else (view, middle)


class _Clock:
    """Adds the time spent inside to one entry of a table of milliseconds."""

    def __init__(self, table: Dict[str, float], name: str) -> None:
        self.table, self.name = table, name

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.table[self.name] += 1000 * (time.perf_counter() - self.started)


def _with_middles(
    points_zyx: NDArray[np.float64], labels: NDArray[np.int64]
) -> Tuple[NDArray[np.float64], NDArray[np.int64]]:
    """With a positive click in the middle of each box: models learn boxes beside clicks only, or not at all."""
    lower = np.flatnonzero(labels == BOX_LOWER)
    middles = (points_zyx[lower] + points_zyx[lower + 1]) / 2
    return np.insert(points_zyx, lower + 2, middles, axis=0), np.insert(labels, lower + 2, POSITIVE)
