"""What of the extension talks to 3D Slicer: prompts in segments, the worker, the Segment Editor effect, the panels.

The effect is exported lazily: Slicer finds it here by name when it registers it, and everything else in this package
can be used (and tested) where there are no widgets.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "SegmentEditorFaMSAMEffect":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    effect_module = importlib.import_module(".SegmentEditorFaMSAMEffect", __name__)
    globals()[name] = effect_module.SegmentEditorFaMSAMEffect
    return globals()[name]
