"""The family of errors that the engine raises on purpose.

Every message says what was expected, what came and what to do about it, so that a host may show it as it is.
"""

from __future__ import annotations


class FamsamError(Exception):
    """Root of every error that the engine raises on purpose."""


class VolumeError(FamsamError):
    """An image cannot be read, has an unusable shape, content or geometry."""


class PromptError(FamsamError):
    """A point, box or mask prompt does not fit the image or the session's state."""


class SessionError(FamsamError):
    """A session verb was used in a state that does not allow it (no image set, nothing to undo)."""


class CheckpointError(FamsamError):
    """A weights file is truncated, foreign, unsafe to read, or does not fit the configuration."""


class ConfigError(FamsamError, ValueError):
    """A configuration value is out of its range or at odds with another."""


class MissingDependencyError(FamsamError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class DatasetError(FamsamError):
    """A dataset folder holds no cases, or a case's labels do not lie on its image's grid."""
