"""What the user has done and the worker has not begun: in the order in which it was done, segment by segment."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, List, Tuple

from .engine import Step


@dataclass(frozen=True, eq=False)
class Asked:
    """Steps on one segment that go to the worker together."""

    node: Any
    """The segmentation node."""
    segment_id: str
    steps: Tuple[Step, ...]
    """In the segmentation's own coordinates."""
    since: float
    """When the first of them was done, of ``time.perf_counter``."""

    def is_for(self, node: Any, segment_id: str) -> bool:
        return self.node is node and self.segment_id == segment_id

    @property
    def is_preview(self) -> bool:
        return self.steps[-1].verb == "preview"


class Waiting:
    """The queue. A preview waits only where nothing else does; of a point's moves only the newest waits.

    Beside it lies what can only be done while its segmentation is selected, until that is so again.
    """

    def __init__(self) -> None:
        self._asked: List[Asked] = []
        self._shelved: List[Asked] = []

    def __bool__(self) -> bool:
        return bool(self._asked)

    def add(self, node: Any, segment_id: str, step: Step) -> None:
        """Put a step at the end."""
        self.drop_preview()
        if step.verb == "preview" and self._asked:
            return
        last = self._asked[-1] if self._asked else None
        if last is None or not last.is_for(node, segment_id):
            self._asked.append(Asked(node, segment_id, (step,), time.perf_counter()))
            return
        steps = last.steps
        if step.verb == "move_point" and (steps[-1].verb, steps[-1].index) == (step.verb, step.index):
            steps = steps[:-1]
        self._asked[-1] = replace(last, steps=(*steps, step))

    def put_back(self, asked: Asked) -> None:
        """Put what could not be done to the front again; a preview is not worth it."""
        if asked.is_preview:
            return
        self.drop_preview()
        behind = self._asked[0] if self._asked else None
        if behind is not None and behind.is_for(asked.node, asked.segment_id):
            self._asked[0] = replace(asked, steps=asked.steps + behind.steps)
        else:
            self._asked.insert(0, asked)

    def shelve(self, asked: Asked) -> None:
        """Lay aside what is for a segmentation that is not selected; a preview is not worth it."""
        if not asked.is_preview:
            self._shelved.append(asked)

    def bring_back(self, node: Any) -> None:
        """Put what was laid aside for a segmentation to the front."""
        self._asked[:0] = [asked for asked in self._shelved if asked.node is node]
        self._shelved = [asked for asked in self._shelved if asked.node is not node]

    @property
    def has_shelved(self) -> bool:
        """Whether anything is laid aside."""
        return bool(self._shelved)

    def take(self) -> Asked:
        """The steps that come next."""
        return self._asked.pop(0)

    def drop_preview(self) -> None:
        """No preview any more."""
        self._asked = [asked for asked in self._asked if not asked.is_preview]

    def clear(self) -> None:
        """Nothing any more."""
        self._asked, self._shelved = [], []

    def steps(self, node: Any, segment_id: str) -> Tuple[Step, ...]:
        """What waits for one segment."""
        here = (asked for asked in (*self._shelved, *self._asked) if asked.is_for(node, segment_id))
        return tuple(step for asked in here for step in asked.steps)
