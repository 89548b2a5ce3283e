"""The prompts of a segment, kept as JSON in a tag of the segment itself.

So they are saved in ``.seg.nrrd``, ``.mrb`` and ``.mrml``, and the Segment Editor's undo and redo take them along with
the mask. Coordinates are the segmentation's own RAS mm: prompts follow the segment when it is transformed.

A prompt is a dict as the engine's sessions write it:
    {"type": "point", "ras_mm": [r, a, s], "positive": true}
    {"type": "box", "lower_ras_mm": [r, a, s], "upper_ras_mm": [r, a, s]}
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np
import vtk

from .spaces import transformed

TAG = "FaM-SAM.Prompts"
_SAME_MM = 1e-4
FORMAT_VERSION = 1

Prompt = Mapping[str, Any]
Prompts = Tuple[Prompt, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a mask lies, and where the scan in which it was found: RAS mm of two opposite corners."""

    ends: Tuple[float, ...]
    """Six numbers, in the segmentation's own coordinates."""
    scan_ends: Tuple[float, ...]
    """The same in the scan's."""
    grid: str
    """A print of the scan's grid."""

    def is_still(self, now: Place) -> bool:
        """False if the mask has been moved: by hardening a transform, or by one that the scan is not under."""
        same_scan = self.grid == now.grid
        return _near(self.ends, now.ends) and (not same_scan or _near(self.scan_ends, now.scan_ends))


def _near(first: Tuple[float, ...], second: Tuple[float, ...]) -> bool:
    return np.allclose(first, second, rtol=1e-6, atol=_SAME_MM)


@dataclass(frozen=True)
class SegmentState:
    """What a segment's tag holds."""

    prompts: Prompts = ()
    """In the order in which they were given."""
    base: Optional[Dict[str, Any]] = None
    """The mask that the prompts refine, as the engine writes it, and under "image" the grid on which it lies. Under
    "found" the same as it was on the segmentation's own grid, where that is another one."""
    token: str = ""
    """Names this state, so that the worker knows whether its session is there already; empty for no prompts."""
    mask_print: str = ""
    """``segments.mask_print`` of the segment as written: another one means that something else has edited it."""
    quality: float = 0.0
    """Predicted IoU, 0..1."""
    place: Optional[Place] = None
    """Where the mask lay as written: another one means that something else has moved it. None if that is not known."""

    def to_json(self) -> str:
        content = {
            "version": FORMAT_VERSION,
            "prompts": [dict(prompt) for prompt in self.prompts],
            "base": self.base,
            "token": self.token,
            "mask": self.mask_print,
            "quality": round(self.quality, 4),
            "place": None if self.place is None else asdict(self.place),
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SegmentState:
        """Raises:
        ValueError: it is not what ``to_json`` writes.
        """
        content = json.loads(text)
        try:
            if content["version"] != FORMAT_VERSION:
                raise ValueError(f"version {content['version']!r}")
            prompts = tuple(_checked(prompt) for prompt in content["prompts"])
            base, token, printed = content["base"], str(content["token"]), str(content["mask"])
            return cls(prompts, base, token, printed, float(content["quality"]), _place(content.get("place")))
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged: {error!r}") from error


def tag_text(segment: Any) -> str:
    """What a segment's tag says; empty if there is none."""
    text = vtk.reference("")
    return str(text) if segment.GetTag(TAG, text) else ""


def read_state(segment: Any) -> SegmentState:
    """The state in a segment's tag; the empty one if there is none, or none that can be read."""
    text = tag_text(segment)
    if not text:
        return SegmentState()
    try:
        return SegmentState.from_json(text)
    except ValueError as error:
        logger.warning('The points of segment "%s" cannot be read and are left out (%s).', segment.GetName(), error)
        return SegmentState()


def write_state(segment: Any, state: SegmentState) -> None:
    """Set the tag; the empty state takes it away."""
    if state == SegmentState():
        segment.RemoveTag(TAG)
    else:
        segment.SetTag(TAG, state.to_json())


def moved(prompts: Prompts, matrix: np.ndarray) -> Prompts:
    """The prompts with every position taken through a 4x4 matrix."""
    return tuple({key: _moved_value(key, value, matrix) for key, value in prompt.items()} for prompt in prompts)


def _moved_value(key: str, value: Any, matrix: np.ndarray) -> Any:
    return list(transformed(matrix, value)) if key.endswith("ras_mm") else value


def _place(content: Any) -> Optional[Place]:
    if content is None:  # as earlier versions wrote it
        return None
    ends, scan_ends = (tuple(float(value) for value in content[key]) for key in ("ends", "scan_ends"))
    if len(ends) != 6 or len(scan_ends) != 6:
        raise ValueError(f"place is {content!r}")
    return Place(ends, scan_ends, str(content["grid"]))


def _checked(prompt: Dict[str, Any]) -> Prompt:
    keys = {"point": ("ras_mm",), "box": ("lower_ras_mm", "upper_ras_mm")}[prompt["type"]]
    for key in keys:
        if len(prompt[key]) != 3 or not np.isfinite(np.asarray(prompt[key], dtype=float)).all():
            raise ValueError(f"{key} is {prompt[key]!r}")
    if prompt["type"] == "point" and not isinstance(prompt["positive"], bool):
        raise ValueError(f"positive is {prompt['positive']!r}")
    return prompt
