"""``tr``: Slicer's own translation of a text, or the text itself where there is only Slicer's data model.

Import it as ``_``: Slicer finds a text's translation by the file from which ``tr`` is called.
"""

from __future__ import annotations

try:
    from slicer.i18n import tr
except ImportError:

    def tr(text: str) -> str:
        """The text as it is."""
        return text


__all__ = ["tr"]
