"""A session's states, and those computed lately, so that going back to one costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, List, Sequence, Tuple

from .compact_mask import CompactMask
from .segmenter import Prediction

RECALLED_BYTES = 64 << 20
"""Masks and logits of states that are kept in mind besides the history that can be undone."""


@dataclass(frozen=True)
class State:
    """The chain after some prompts: the mask started from, the prompts, and the prediction after each of them."""

    base: CompactMask
    prompts: Tuple[Any, ...] = ()
    predictions: Tuple[Prediction, ...] = ()
    """One more than prompts: the first is the start."""

    @property
    def last(self) -> Prediction:
        return self.predictions[-1]

    def followed_by(self, prompt: Any, prediction: Prediction) -> State:
        """The state after one more prompt."""
        return State(self.base, (*self.prompts, prompt), (*self.predictions, prediction))

    def without_timings(self) -> State:
        """The same with its last prediction's timings emptied: what was gone back to was not computed."""
        return replace(self, predictions=(*self.predictions[:-1], replace(self.last, timings_ms={})))


class Recall:
    """The states of a session that were current lately, also those that no undo or redo leads to any more.

    A host with one session for many segments goes from one to the other by restoring their prompts. Since a prediction
    depends on nothing but the scan, the mask started from and the prompts, what was computed once holds.
    """

    def __init__(self) -> None:
        self._states: List[State] = []

    def keep(self, state: State) -> None:
        """Keep a state in mind, in place of those that it goes on from; the ones kept longest have to go for it."""
        self._states = [old for old in self._states if _shared(state, old.base, old.prompts) < len(old.prompts)]
        self._states.append(state)
        total = 0
        for index in range(len(self._states) - 1, -1, -1):
            total += sum(_bytes_of(prediction) for prediction in self._states[index].predictions)
            if total > RECALLED_BYTES:
                del self._states[: index + 1]
                break

    def resumed(self, start: State, prompts: Sequence[Any]) -> State:
        """From a start without prompts, as far along these prompts as a kept state goes."""
        best, most = start, 0
        for state in self._states:
            shared = _shared(state, start.base, prompts)
            if shared > most:
                most = shared
                best = State(start.base, tuple(prompts[:most]), (start.last, *state.predictions[1 : most + 1]))
        return best


def _shared(state: State, base: CompactMask, prompts: Sequence[Any]) -> int:
    """How many of the prompts, from the first, the state has in common with them; 0 if it began from another mask."""
    if state.base.box_zyx != base.box_zyx or state.base.bits != base.bits:
        return 0
    differing = (index for index, (a, b) in enumerate(zip(state.prompts, prompts)) if a != b)
    return next(differing, min(len(state.prompts), len(prompts)))


def _bytes_of(prediction: Prediction) -> int:
    return len(prediction.mask.bits) + (0 if prediction.logits is None else prediction.logits.nbytes)
