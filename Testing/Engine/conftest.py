"""Property tests draw the same examples in every run and are never failed for being slow on a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("engine", deadline=None, derandomize=True, database=None)
settings.load_profile("engine")
