"""The interactive session: prompts in, masks out, with undo and redo of any depth.

A session is a chain of immutable states, one a prompt; every verb builds a new chain or walks along the history, and
assigns it only when nothing can fail any more, so that an error leaves the session as it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .compact_mask import CompactMask
from .embeddings import Embeddings
from .errors import PromptError, SessionError
from .foresight import Foresight
from .geometry import Box, box_slices
from .history import Recall, State
from .model.base import PromptableModel
from .prompts import BoxPrompt, Point3, PointPrompt, Prompt, canonical_prompts, prompt_from_dict
from .proposing import Candidate, ProposalOptions, candidates_of
from .segmenter import Prediction, Segmenter, SegmenterOptions
from .uncertainty import uncertainty_of
from .uncertainty_map import Uncertainty
from .volume import Volume, foreground

FORMAT_VERSION = 1


class Result:
    """What an interaction led to.

    Attributes:
        changed_box_zyx: ((z0, y0, x0), (z1, y1, x1)), half-open, on the image grid: outside of it the mask is what it
            was before this interaction; None if nothing changed.
        quality: predicted IoU with what was meant, 0..1; 0 without prompts.
        timings_ms: {"crop", "encode", "decode", "paste", "total"}; empty where nothing was computed.
    """

    def __init__(self, prediction: Prediction, changed: Optional[Box], volume: Volume) -> None:
        self._mask, self._frame = prediction.mask, volume.canonical
        self._dense: Optional[NDArray[np.bool_]] = None
        self.changed_box_zyx = None if changed is None else self._frame.native_box(changed)
        self.quality = prediction.quality
        self.timings_ms = dict(prediction.timings_ms)

    @property
    def mask_zyx(self) -> NDArray[np.bool_]:
        """bool (z, y, x), the whole image grid; made when first asked for, and the caller's own."""
        if self._dense is None:
            dense = np.zeros(self._frame.native.size_zyx, dtype=bool)
            if self._mask.box_zyx is not None:
                self._frame.to_canonical(dense)[box_slices(self._mask.box_zyx)] = self._mask.voxels()
            self._dense = dense
        return self._dense

    def mask_in(self, box_zyx: Box) -> NDArray[np.bool_]:
        """The mask within a half-open box of the image grid, (z, y, x) bool; all that a redraw needs."""
        return self._frame.from_canonical(self._mask.within(self._frame.canonical_box(box_zyx)))

    @property
    def box_zyx(self) -> Optional[Box]:
        """The smallest half-open box of the image grid that holds the mask; None if it is empty."""
        return None if self._mask.box_zyx is None else self._frame.native_box(self._mask.box_zyx)


class Session:
    """One model, one scan, one structure.

    Every verb that takes a position takes RAS millimetres. Verbs raise ``SessionError`` before ``set_image`` and
    ``PromptError`` for a prompt that does not fit the image; the session is then as it was.

    Args:
        model: what ``famsam.load_model`` returns; several sessions may share it.
        options: see ``SegmenterOptions``.
    """

    def __init__(self, model: PromptableModel, options: Optional[SegmenterOptions] = None) -> None:
        self.model, self.options = model, options or SegmenterOptions()
        self._volume: Optional[Volume] = None
        self._segmenter: Optional[Segmenter] = None
        self._history: List[State] = []
        self._at = 0
        self._foresight = Foresight()
        self._recall = Recall()

    # --- the scan ---

    def set_image(self, volume: Volume, embeddings: Optional[Embeddings] = None) -> None:
        """Begin with a scan; prompts, mask and history of an earlier one are gone.

        Args:
            volume: the scan.
            embeddings: shared with other sessions of the same model on the same scan, so that each view is encoded
                once for all of them; by default the session's own. Masks do not depend on it.
        """
        if not isinstance(volume, Volume):
            raise SessionError(f"Expected a famsam.Volume (see famsam.read_volume), got {type(volume).__name__}.")
        segmenter = Segmenter(self.model, volume, self.options, embeddings)
        start = segmenter.start()
        self._volume, self._segmenter = volume, segmenter
        self._history, self._at = [State(start.mask, (), (start,))], 0
        self._foresight, self._recall = Foresight(), Recall()

    @property
    def volume(self) -> Volume:
        """The scan."""
        if self._volume is None:
            raise SessionError("Expected an image before prompts: call set_image(volume) first.")
        return self._volume

    # --- what is there ---

    @property
    def prompts(self) -> Tuple[Prompt, ...]:
        """All prompts in force, in order."""
        return self._state.prompts

    @property
    def result(self) -> Result:
        """The result as it stands, without a changed box."""
        return Result(self._state.last, None, self.volume)

    @property
    def can_undo(self) -> bool:
        return self._state is not self._history[0]

    @property
    def can_redo(self) -> bool:
        return self._state is not self._history[-1]

    def uncertainty(self, decodes: int = 6) -> Uncertainty:
        """How sure the model is of the result as it stands, voxel by voxel, where it last looked.

        Args:
            decodes: 1 for the probabilities behind the mask, which cost no decoding; more for their mean over so many
                decodes with clicks moved a little, half of them without the mask before (but for FastSAM3D, which
                knows of earlier clicks by that alone).

        Raises:
            SessionError: no prompt has been given since the scan was set, or the mask was set or reset.
            PromptError: ``decodes`` is below 1.
        """
        state = self._state
        if not state.prompts:
            raise SessionError("Expected a prompt before asking for the uncertainty of its result: click first.")
        if decodes < 1:
            raise PromptError(f"Expected at least 1 decode for the uncertainty, got {decodes}.")
        assert self._segmenter is not None
        prompts, frame = canonical_prompts(state.prompts, self.volume), self.volume.canonical
        return uncertainty_of(self._segmenter, prompts, state.predictions[-2:], state.base, decodes, frame)

    def propose(self, options: Optional[ProposalOptions] = None) -> List[Candidate]:
        """Masks of whatever the model takes for a structure, without any prompt, the most trusted first.

        Nothing is changed; ``take`` one of them. The same scan has the same candidates, whatever the prompts.

        Raises:
            ConfigError: the model's weights have no proposal head.
        """
        frame = self.volume.canonical
        assert self._segmenter is not None
        return candidates_of(self._segmenter, frame, options or ProposalOptions())

    def take(self, candidate: Candidate) -> Result:
        """Start from a candidate, as from any mask (see ``set_mask``): clicks refine it, undo returns."""
        if candidate.mask.size_zyx != self.volume.canonical.grid.size_zyx:
            raise PromptError(
                f"Expected a candidate of this image ({self.volume.canonical.grid.size_zyx} voxels), got one of an "
                f"image of {candidate.mask.size_zyx}. Call propose() again."
            )
        return self._commit(self._begun(candidate.mask, candidate.quality))

    # --- prompts ---

    def add_point(self, point_ras_mm: Point3, positive: bool = True) -> Result:
        """Click at a point: include (positive) or exclude (negative) what is there."""
        return self._commit(self._extended(self._state, PointPrompt.at(point_ras_mm, positive, self.volume)))

    def add_box(self, corner_ras_mm: Point3, opposite_ras_mm: Point3, along_scan: bool = False) -> Result:
        """Frame the structure by two opposite corners, in any order.

        Args:
            corner_ras_mm, opposite_ras_mm: corners of a box along the RAS axes; on a tilted scan the smallest box along
                its own axes that holds it is the prompt.
            along_scan: they are corners of a box along the scan's own axes, as drawn on its slices.
        """
        box = BoxPrompt.between(corner_ras_mm, opposite_ras_mm, self.volume, along_scan)
        return self._commit(self._extended(self._state, box))

    def set_mask(self, mask_zyx: Any) -> Result:
        """Start from a mask that is already there, (z, y, x) on the image grid; earlier prompts end (undo returns).

        What is neither zero nor NaN is in the mask.
        """
        mask = np.asarray(mask_zyx)
        if mask.shape != self.volume.grid.size_zyx:
            raise PromptError(
                f"Expected a mask of the image's shape (z, y, x) = {self.volume.grid.size_zyx}, got {mask.shape}. "
                "Resample it onto the image first."
            )
        if mask.dtype.kind not in "biuf":
            raise PromptError(f"Expected a mask of bools or numbers, got {mask.dtype}.")
        canonical = self.volume.canonical.to_canonical(foreground(mask))
        return self._commit(self._begun(CompactMask.of(canonical.shape, canonical)))

    def preview(self, point_ras_mm: Point3, positive: bool = True) -> Result:
        """The result as if clicked; nothing is changed. A click at the same place that follows costs nothing more."""
        state = self._state
        previewed = self._extended(state, PointPrompt.at(point_ras_mm, positive, self.volume))
        self._foresight.keep(state, previewed.without_timings())
        return self._result(previewed, state)

    def encode_ahead(self, point_ras_mm: Point3) -> bool:
        """Prepare for a click where the pointer rests, while nothing else is to be done; changes nothing.

        Goes the way of a positive click there, one encoded view at a time, so that a click in between waits hardly
        longer than for that. A click nearby then only decodes; the very same click costs nothing more.

        Returns:
            True if something was encoded and there may be more: call again; False if all is there.
        """
        prompt, state, segmenter = PointPrompt.at(point_ras_mm, True, self.volume), self._state, self._segmenter
        assert segmenter is not None
        prompts = canonical_prompts((*state.prompts, prompt), self.volume)
        return self._foresight.go_on(state, prompt, lambda: segmenter.steps(prompts, state.last, state.base))

    def move_point(self, index: int, point_ras_mm: Point3) -> Result:
        """Move the point prompt ``prompts[index]``; what came after it is computed anew."""
        old = self._prompt(index)
        if not isinstance(old, PointPrompt):
            raise PromptError(f"Expected prompt {index} to be a point, got a box. Remove it and add another.")
        moved = PointPrompt.at(point_ras_mm, old.positive, self.volume)
        return self._commit(self._replayed(index, (moved, *self.prompts[index + 1 :])))

    def remove_point(self, index: int) -> Result:
        """Take back ``prompts[index]`` (point or box) as if it had never been given."""
        self._prompt(index)
        return self._commit(self._replayed(index, self.prompts[index + 1 :]))

    # --- history ---

    def undo(self) -> Result:
        """Back to before the last verb that changed something."""
        if not self.can_undo:
            raise SessionError("Nothing to undo.")
        return self._walk(-1)

    def redo(self) -> Result:
        """Forward again after an undo."""
        if not self.can_redo:
            raise SessionError("Nothing to redo.")
        return self._walk(+1)

    def reset(self) -> Result:
        """No prompts, no mask; undo returns."""
        return self._commit(self._begun(CompactMask.empty(self.volume.canonical.grid.size_zyx)))

    # --- persistence ---

    def to_dict(self) -> Dict[str, Any]:
        """JSON-able prompts and the mask started from; ``restore`` makes the same mask of them."""
        grid = self.volume.grid
        base = self._state.base
        return {
            "version": FORMAT_VERSION,
            "image": {"size_zyx": list(grid.size_zyx), "ras_from_ijk": np.asarray(grid.ras_from_ijk).tolist()},
            "mask": None if base.box_zyx is None else base.to_dict(),
            "prompts": [prompt.to_dict() for prompt in self.prompts],
        }

    def restore(self, state: Dict[str, Any]) -> Result:
        """Prompts that ``to_dict`` wrote for this image; undo returns to what was there before.

        What this session itself made of these prompts lately is not computed again.
        """
        base, prompts = self._parsed(state)
        restored = self._recall.resumed(self._begun(base), prompts).without_timings()
        for prompt in prompts[len(restored.prompts) :]:
            restored = self._extended(restored, prompt)
        return self._commit(restored)

    # --- inside ---

    @property
    def _state(self) -> State:
        if not self._history:
            raise SessionError("Expected an image before prompts: call set_image(volume) first.")
        return self._history[self._at]

    def _commit(self, state: State) -> Result:
        result = self._result(state, self._state)
        self._history[self._at + 1 :] = [state]
        self._at += 1
        self._recall.keep(state)
        return result

    def _walk(self, step: int) -> Result:
        result = self._result(self._history[self._at + step].without_timings(), self._state)
        self._at += step
        return result

    def _result(self, state: State, before: State) -> Result:
        return Result(state.last, state.last.mask.changed_box(before.last.mask), self.volume)

    def _begun(self, base: CompactMask, quality: float = 0.0) -> State:
        assert self._segmenter is not None
        return State(base, (), (replace(self._segmenter.start(base), quality=quality),))

    def _extended(self, state: State, prompt: Prompt) -> State:
        known = self._foresight.after(state, prompt)
        if known is not None:
            return known
        assert self._segmenter is not None
        prompts = canonical_prompts((*state.prompts, prompt), self.volume)
        return state.followed_by(prompt, self._segmenter.step(prompts, state.last, state.base))

    def _replayed(self, index: int, tail: Sequence[Prompt]) -> State:
        old = self._state
        state = State(old.base, old.prompts[:index], old.predictions[: index + 1]).without_timings()
        for prompt in tail:
            state = self._extended(state, prompt)
        return state

    def _prompt(self, index: int) -> Prompt:
        if not isinstance(index, (int, np.integer)) or not 0 <= index < len(self.prompts):
            raise PromptError(f"Expected the index of one of {len(self.prompts)} prompts, from 0; got {index!r}.")
        return self.prompts[int(index)]

    def _parsed(self, state: Dict[str, Any]) -> Tuple[CompactMask, List[Prompt]]:
        try:
            version, image = state["version"], state["image"]
            size, matrix = tuple(image["size_zyx"]), np.asarray(image["ras_from_ijk"], dtype=float)
            saved = list(state["prompts"])
            mask = None if state.get("mask") is None else CompactMask.from_dict(state["mask"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PromptError(f"Expected a state that Session.to_dict wrote, got a damaged one ({error!r}).") from error
        if version != FORMAT_VERSION:
            raise PromptError(f"Expected a state of version {FORMAT_VERSION}, got version {version!r}. Update famsam.")
        grid = self.volume.grid
        if size != grid.size_zyx or matrix.shape != (4, 4) or not np.allclose(matrix, grid.ras_from_ijk, atol=1e-3):
            raise PromptError(
                f"Expected prompts for this image (z, y, x = {grid.size_zyx}), got prompts for another one ({size} "
                "voxels, or another geometry). Restore them on the scan they were made on."
            )
        canonical_size = self.volume.canonical.grid.size_zyx
        if mask is not None and mask.size_zyx != canonical_size:
            raise PromptError(f"Expected a mask of {canonical_size} voxels in the state, got {mask.size_zyx}.")
        try:
            prompts = [prompt_from_dict(entry, self.volume) for entry in saved]
        except (KeyError, TypeError) as error:
            raise PromptError(f"Expected prompts as Session.to_dict writes them, got {error!r}.") from error
        return mask or CompactMask.empty(canonical_size), prompts
