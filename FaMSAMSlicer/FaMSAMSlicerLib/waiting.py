"""What the user has done and the worker has not begun: in the order in which it was done, segment by segment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, List, Sequence, Tuple

from .engine import Step


@dataclass(frozen=True, eq=False)
class Asked:
    """Steps on one segment that go to the worker together."""

    node: Any
    """The segmentation node."""
    segment_id: str
    volume_node: Any
    """Where to look: another one may be chosen by the time the worker has time."""
    steps: Tuple[Step, ...]
    """In the segmentation's own coordinates."""
    since: float
    """When the first of them was done, of ``time.perf_counter``."""

    def is_for(self, node: Any, segment_id: str) -> bool:
        return self.node is node and self.segment_id == segment_id

    def goes_with(self, other: Asked) -> bool:
        """Whether the worker can do both at once."""
        return self.is_for(other.node, other.segment_id) and self.volume_node is other.volume_node

    @property
    def is_preview(self) -> bool:
        return self.steps[-1].verb == "preview"


def without_ended(steps: Sequence[Step], ended: int) -> Tuple[Tuple[Step, ...], int]:
    """The steps when a segment's first prompts have ended.

    Args:
        steps: in their order, numbered with the ended prompts.
        ended: how many those are.

    Returns:
        the steps on others, numbered without the ended prompts, and how many of these are numbered after all steps.
    """
    left: List[Step] = []
    for step in steps:
        if 0 <= step.index < ended:
            ended -= step.verb == "remove_point"
            continue
        left.append(replace(step, index=step.index - ended) if step.index >= 0 else step)
        if step.verb == "take":
            ended = 0
    return tuple(left), ended


class Waiting:
    """The queue. A preview waits only where nothing else does; of a point's moves only the newest waits."""

    def __init__(self) -> None:
        self._asked: List[Asked] = []

    def __bool__(self) -> bool:
        return bool(self._asked)

    def add(self, asked: Asked) -> None:
        """Put one step at the end."""
        self.drop_preview()
        if asked.is_preview and self._asked:
            return
        last = self._asked[-1] if self._asked else None
        if last is None or not last.goes_with(asked):
            self._asked.append(asked)
            return
        steps, (step,) = last.steps, asked.steps
        if step.verb == "move_point" and (steps[-1].verb, steps[-1].index) == (step.verb, step.index):
            steps = steps[:-1]
        self._asked[-1] = replace(last, steps=(*steps, step))

    def put_back(self, asked: Asked) -> None:
        """Put what could not be done to the front again; a preview is not worth it."""
        if asked.is_preview:
            return
        self.drop_preview()
        behind = self._asked[0] if self._asked else None
        if behind is not None and behind.goes_with(asked):
            self._asked[0] = replace(asked, steps=asked.steps + behind.steps)
        else:
            self._asked.insert(0, asked)

    def take(self) -> Asked:
        """The steps that come next."""
        return self._asked.pop(0)

    def drop_preview(self) -> None:
        """No preview any more."""
        self._asked = [asked for asked in self._asked if not asked.is_preview]

    def renumber(self, node: Any, segment_id: str, ended: int) -> None:
        """The first prompts of a segment have ended: what was to be done to them is left out."""
        done = []
        for asked in self._asked:
            if asked.is_for(node, segment_id):
                steps, ended = without_ended(asked.steps, ended)
                asked = replace(asked, steps=steps)
            done.append(asked)
        self._asked = [asked for asked in done if asked.steps]

    def drop(self, node: Any, segment_id: str) -> None:
        """Nothing any more for one segment."""
        self._asked = [asked for asked in self._asked if not asked.is_for(node, segment_id)]

    def clear(self) -> None:
        """Nothing any more."""
        self._asked = []

    def steps(self, node: Any, segment_id: str) -> Tuple[Step, ...]:
        """What waits for one segment."""
        return tuple(step for asked in self._asked if asked.is_for(node, segment_id) for step in asked.steps)
