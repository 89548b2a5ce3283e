"""What the engine needs that Slicer does not bring, and how it is installed: only when the user has agreed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from typing import Any, Callable, List, Sequence

import slicer
from famsam.errors import MissingDependencyError

from .translation import tr as _

TORCH_VERSION = ">=2.2"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Requirement:
    """One package."""

    module: str
    """What is imported."""
    package: str
    """What is installed."""
    size_mb: int
    """About how much is downloaded."""


REQUIREMENTS = (
    Requirement("torch", "torch", 200),
    Requirement("einops", "einops>=0.7", 1),
    Requirement("safetensors", "safetensors>=0.4", 1),
    Requirement("cc3d", "connected-components-3d>=3.12", 6),
)


def missing(server: str = "") -> List[Requirement]:
    """What is not installed; nothing is imported to find out. A server, if one computes, brings all of it."""
    if server:
        return []
    importlib.invalidate_caches()
    return [requirement for requirement in REQUIREMENTS if importlib.util.find_spec(requirement.module) is None]


def question(requirements: Sequence[Requirement]) -> str:
    """What the user is asked before anything is downloaded."""
    line = _("{module}: about {size} MB")
    listed = "\n".join("    " + line.format(module=r.module, size=r.size_mb) for r in requirements)
    total = sum(r.size_mb for r in requirements)
    torch = any(r.module == "torch" for r in requirements)
    graphics = _(" (up to 3 GB where a CUDA graphics card is used)") if torch else ""
    return _(
        "These Python packages are needed once:\n\n{listed}\n\nabout {total} MB in all{graphics}. "
        "They are downloaded from the internet and installed into this Slicer. Install them now?"
    ).format(listed=listed, total=total, graphics=graphics)


def install(requirements: Sequence[Requirement], say: Callable[[str, int], None]) -> None:
    """Install packages, torch by way of the PyTorch extension, which chooses what fits the machine.

    Args:
        requirements: what ``missing`` returned.
        say: called with a message and how much is done (per cent).

    Raises:
        MissingDependencyError: what could not be installed, and what to do.
    """
    for index, requirement in enumerate(requirements):
        say(_("Installing {module}…").format(module=requirement.module), 100 * index // len(requirements))
        try:
            _install_torch() if requirement.module == "torch" else _install_package(requirement.package)
        except MissingDependencyError:
            raise
        except Exception as error:
            logger.exception("Installing %s failed", requirement.package)
            text = _(
                "{module} could not be installed ({error}). Check the network connection (and the proxy, if there is "
                "one) and press Install again; what pip said is in the Python console."
            )
            raise MissingDependencyError(text.format(module=requirement.module, error=error)) from error
    left = missing()
    if left:
        names = ", ".join(requirement.module for requirement in left)
        text = _("{names} cannot be found after the installation. Restart Slicer and try again.")
        raise MissingDependencyError(text.format(names=names))
    say(_("Installed."), 100)


def _install_torch() -> None:
    try:
        utils: Any = importlib.import_module("PyTorchUtils")
    except ImportError as error:
        raise MissingDependencyError(
            _(
                'The extension "PyTorch" is missing, which installs torch. Install it in the Extensions Manager, '
                "restart Slicer and press Install again."
            )
        ) from error
    if utils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=TORCH_VERSION) is None:
        raise MissingDependencyError(_("torch was not installed. Open the module PyTorch Util to see why."))


def _install_package(package: str) -> None:
    try:
        packaging: Any = importlib.import_module("slicer.packaging")  # Slicer 5.11 and newer
    except ImportError:
        slicer.util.pip_install(package)
    else:
        packaging.pip_ensure([package], prompt_install=False, requester="FaMSAMSlicer")
