"""What a session works out before it is asked to: previews, and the click where the pointer rests."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

from .history import State
from .segmenter import Steps


class Foresight:
    """The state after the last prompt that was tried on a state, and the one that is being worked out.

    States are told apart by identity: one that was left and computed anew knows of nothing.
    """

    def __init__(self) -> None:
        self._known: Optional[Tuple[State, State]] = None
        self._begun: Optional[Tuple[State, Any, Steps]] = None

    def after(self, state: State, prompt: Any) -> Optional[State]:
        """The state after a prompt, if it is known."""
        if self._known is not None and self._known[0] is state and self._known[1].prompts[-1] == prompt:
            return self._known[1]
        return None

    def keep(self, state: State, following: State) -> None:
        """Keep the state that follows after one more prompt, in place of any other."""
        self._known = (state, following)

    def go_on(self, state: State, prompt: Any, begin: Callable[[], Steps]) -> bool:
        """Work towards the state after a prompt as far as the next view that has to be encoded.

        What was begun for another prompt or state is dropped, and so is this if an error comes in between.

        Returns:
            True if a view was encoded and there may be more to do; False if the state is known now.
        """
        if self.after(state, prompt) is not None:
            return False
        begun, self._begun = self._begun, None
        if begun is None or begun[0] is not state or begun[1] != prompt:
            begun = (state, prompt, begin())
        try:
            next(begun[2])
        except StopIteration as end:
            self.keep(state, state.followed_by(prompt, end.value).without_timings())
            return False
        self._begun = begun
        return True
