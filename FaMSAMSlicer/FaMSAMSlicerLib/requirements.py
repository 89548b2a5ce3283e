"""What the engine needs that Slicer does not bring, and how it is installed: only when the user has agreed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import platform
import re
import sys
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

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
    """What is installed: a name, and in which versions (>=oldest, or <first that is too new)."""
    size_mb: int
    """About how much is downloaded."""

    @property
    def is_there(self) -> bool:
        """Whether it is installed in any version; nothing is imported to find out."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def is_met(self) -> bool:
        """Whether it is installed in a version that will do."""
        if not self.is_there:
            return False
        package, *bound = re.split("(>=|<)", self.package)
        version = _version(package)
        if version is None or not bound:
            return True
        return (version >= tuple(map(int, bound[1].split(".")))) == (bound[0] == ">=")

    @property
    def name(self) -> str:
        """What the user is told: which version is asked for where there is another one."""
        return self.package if self.is_there and not self.is_met else self.module


TORCH = Requirement("torch", f"torch{TORCH_VERSION}", 200)
REQUIREMENTS = (
    TORCH,
    Requirement("einops", "einops>=0.7", 1),
    Requirement("safetensors", "safetensors>=0.4", 1),
    Requirement("cc3d", "connected-components-3d>=3.12", 6),
)
OLD_NUMPY = Requirement("numpy", "numpy<2", 20)
_FIRST_TORCH_FOR_NUMPY_2 = (2, 3)
_FIRST_ON_WINDOWS = (2, 4, 1)
_LAST_TORCH_FOR_INTEL_MACS = (2, 2)
"""Slicer for macOS is built for them."""
_replaced: List[str] = []  # what there is to say where an imported package was replaced


def missing(server: str = "") -> List[Requirement]:
    """What is not installed, or too old. A server, if one computes, brings all of it."""
    if server:
        return []
    importlib.invalidate_caches()
    unmet = [requirement for requirement in REQUIREMENTS if not requirement.is_met]
    return [*unmet, OLD_NUMPY] if _numpy_is_too_new() else unmet


def check_restarted() -> None:
    """Raises:
    MissingDependencyError: what had been imported was replaced since; only a restart brings in the new one.
    """
    if _replaced:
        raise MissingDependencyError(_replaced[-1])


def _numpy_is_too_new() -> bool:
    """Torch then cannot take an array, nor make one."""
    torch = _version("torch")
    if torch is None or not TORCH.is_met:  # the newest one that can be had is installed
        is_intel_mac = (sys.platform, platform.machine()) == ("darwin", "x86_64")
        torch = _LAST_TORCH_FOR_INTEL_MACS if is_intel_mac else None
    first = _FIRST_ON_WINDOWS if sys.platform == "win32" else _FIRST_TORCH_FOR_NUMPY_2
    return torch is not None and torch < first and not OLD_NUMPY.is_met


def _version(package: str) -> Optional[Tuple[int, ...]]:
    """Of what is installed, which may not be what has been imported; None if nothing is."""
    found = re.match(r"\d+\.\d+(\.\d+)?", _version_text(package))
    return tuple(map(int, found.group().split("."))) if found else None


def _version_text(package: str) -> str:
    try:
        return importlib.metadata.version(package) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _imported() -> Dict[str, str]:
    """The installed versions of what is imported by now, and would stay what it is until a restart."""
    used = [re.split("[<>]", r.package)[0] for r in (*REQUIREMENTS, OLD_NUMPY) if r.module in sys.modules]
    return {package: version for package, version in zip(used, map(_version_text, used)) if version}


def question(requirements: Sequence[Requirement]) -> str:
    """What the user is asked before anything is downloaded."""
    line = _("{module}: about {size} MB")
    listed = "\n".join("    " + line.format(module=r.name, size=r.size_mb) for r in requirements)
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
    before = _imported()
    for index, requirement in enumerate(requirements):
        say(_("Installing {module}…").format(module=requirement.name), 100 * index // len(requirements))
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
            raise MissingDependencyError(text.format(module=requirement.name, error=error)) from error
    replaced = ", ".join(package for package, version in before.items() if _version_text(package) != version)
    if replaced:
        _replaced.append(_("Another version of {names} has been installed. Restart Slicer.").format(names=replaced))
    left = [requirement for requirement in missing() if requirement in requirements]
    if left:
        names = ", ".join(requirement.name for requirement in left)
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
        packaging.pip_ensure([_parsed(package)], prompt_install=False, requester="FaMSAMSlicer")


def _parsed(package: str) -> Any:
    """What every ``pip_ensure`` takes: the first ones take no text."""
    try:
        from packaging.requirements import Requirement as Parsed
    except ImportError:
        return package
    return Parsed(package)
