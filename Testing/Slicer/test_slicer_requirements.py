"""Installing: asked for by name and size, torch by the PyTorch extension, a readable error without a network."""

from __future__ import annotations

import importlib.metadata
import sys
import types

import pytest
import slicer
from famsam.errors import MissingDependencyError
from FaMSAMSlicerLib import requirements
from FaMSAMSlicerLib.engine import Engine, ModelChoice
from packaging.requirements import Requirement as PackagingRequirement

ALL = requirements.REQUIREMENTS


@pytest.fixture
def installed(monkeypatch):
    """What was installed, and how; afterwards nothing is missing."""
    calls = []
    logic = types.SimpleNamespace(installTorch=lambda **options: calls.append(("torch", options)) or "torch")
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=lambda: logic))
    monkeypatch.setattr(slicer.util, "pip_install", lambda package: calls.append(("pip_install", package)))
    monkeypatch.setattr(requirements, "missing", lambda server="": [])
    return calls


def test_with_a_server_nothing_is_needed(monkeypatch):
    monkeypatch.setattr(requirements, "REQUIREMENTS", (requirements.Requirement("no_such_module_anywhere", "x", 1),))
    assert requirements.missing("http://127.0.0.1:8765") == [] and len(requirements.missing("")) == 1


def test_nothing_is_missing_here():
    assert requirements.missing() == []


def test_missing_names_what_cannot_be_imported(monkeypatch):
    absent = requirements.Requirement("no_such_module_anywhere", "x", 1)
    monkeypatch.setattr(requirements, "REQUIREMENTS", (*ALL, absent))
    assert requirements.missing() == [absent]


@pytest.fixture
def versions(monkeypatch):
    """Of the installed packages; what is not in it is not installed."""
    versions = {}

    def version(package):
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(requirements, "_replaced", [])
    return versions


@pytest.mark.parametrize("torch, numpy", [("2.2.2", "2.0.0"), ("2.2.2+cpu", "2.3.1"), ("2.2.0", "2.0.0rc1")])
def test_an_old_torch_needs_an_old_numpy(versions, torch, numpy):
    versions.update(torch=torch, numpy=numpy)
    assert requirements.missing() == [requirements.OLD_NUMPY]
    assert "numpy<2: about" in requirements.question(requirements.missing())
    assert not requirements.missing("http://127.0.0.1:8765")


@pytest.mark.parametrize(
    "torch, numpy", [("2.2.2", "1.26.4"), ("2.3.0", "2.0.0"), ("2.10.0", "2.3.1"), (None, "2.0.0")]
)
def test_any_other_two_agree(versions, torch, numpy):
    versions.update(numpy=numpy, **({} if torch is None else {"torch": torch}))
    assert requirements.missing() == []


@pytest.mark.parametrize("torch, is_too_old", [("2.4.0+cu124", True), ("2.3.1", True), ("2.4.1", False)])
def test_torch_for_windows_took_longer_to_know_a_new_numpy(versions, monkeypatch, torch, is_too_old):
    versions.update(torch=torch, numpy="2.0.0")
    assert not requirements.missing()
    monkeypatch.setattr("sys.platform", "win32")
    assert (requirements.missing() == [requirements.OLD_NUMPY]) == is_too_old


@pytest.mark.parametrize("package, old, new", [("torch", "2.1.2+cu118", "2.2.0"), ("einops", "0.6.1", "0.7.0")])
def test_what_is_too_old_is_missing_and_named_with_its_version(versions, package, old, new):
    versions.update(torch="2.10.0", numpy="2.0.0")
    versions[package] = old
    (missing,) = requirements.missing()
    assert missing.name == missing.package and missing.name.startswith(f"{package}>=")
    versions[package] = new
    assert missing not in requirements.missing() and missing.name == package


def test_a_newer_torch_comes_before_an_older_numpy(versions, monkeypatch):
    versions.update(torch="2.1.2", numpy="2.0.0")
    assert requirements.missing() == [requirements.TORCH]
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert requirements.missing() == [requirements.TORCH, requirements.OLD_NUMPY], "none newer than 2.2 is made"


@pytest.mark.parametrize("machine, is_too_new", [("x86_64", True), ("arm64", False)])
def test_where_only_an_old_torch_can_be_had_both_are_asked_for_at_once(versions, monkeypatch, machine, is_too_new):
    versions["numpy"] = "2.0.0"
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert (requirements.OLD_NUMPY in requirements.missing()) == is_too_new


def test_what_was_replaced_while_in_use_asks_for_a_restart_and_loads_no_model(installed, versions, monkeypatch):
    versions.update(torch="2.2.2", numpy="2.0.0")
    monkeypatch.setattr(slicer.util, "pip_install", lambda package: versions.update(numpy="1.26.4"))
    requirements.check_restarted()
    requirements.install([requirements.OLD_NUMPY], lambda message, percent: None)
    engine = Engine()
    with pytest.raises(MissingDependencyError, match=r"Another version of numpy has been installed\. Restart Slicer"):
        engine.warm_up(ModelChoice()).result(60)
    engine.close()


def test_what_was_not_in_use_needs_no_restart(installed, versions, monkeypatch):
    versions.update(torch="2.2.2", numpy="1.26.4")
    monkeypatch.setattr(slicer.util, "pip_install", lambda package: versions.update(einops="0.8.0"))
    requirements.install(ALL[1:2], lambda message, percent: None)
    requirements.check_restarted()


def test_what_an_installed_torch_needs_is_asked_for_next(installed, monkeypatch):
    monkeypatch.setattr(requirements, "missing", lambda: [requirements.OLD_NUMPY])
    said = []
    requirements.install(ALL[:1], lambda message, percent: said.append(message))
    assert said[-1] == "Installed."


def test_question_says_what_and_how_large():
    text = requirements.question(ALL)
    assert "torch: about 200 MB" in text and "208 MB in all" in text and text.endswith("now?")


def test_old_slicers_use_pip_install(installed):
    said = []
    requirements.install(ALL, lambda message, percent: said.append((message, percent)))
    assert installed[0] == ("torch", {"askConfirmation": False, "torchVersionRequirement": ">=2.2"})
    assert [call[0] for call in installed[1:]] == ["pip_install"] * 3
    assert not any("torch" in str(call[1]) for call in installed[1:]), "torch never comes by plain pip"
    assert said[0] == ("Installing torch…", 0) and said[-1] == ("Installed.", 100)


def test_new_slicers_use_pip_ensure(installed, monkeypatch):
    def ensure(packages, prompt_install, requester):
        installed.append(("pip_ensure", packages[0]))

    monkeypatch.setitem(sys.modules, "slicer.packaging", types.SimpleNamespace(pip_ensure=ensure))
    requirements.install(ALL[1:2], lambda message, percent: None)
    (call,) = installed
    assert call == ("pip_ensure", PackagingRequirement("einops>=0.7")), "the first of them take no text"


def test_without_the_pytorch_extension_the_message_says_where_to_get_it():
    with pytest.raises(MissingDependencyError, match="Extensions Manager"):
        requirements.install(ALL[:1], lambda message, percent: None)


def test_without_a_network_the_message_is_readable(installed, monkeypatch):
    def fail(package):
        raise RuntimeError("Could not find a version that satisfies the requirement")

    monkeypatch.setattr(slicer.util, "pip_install", fail)
    with pytest.raises(MissingDependencyError, match="network connection"):
        requirements.install(ALL[1:], lambda message, percent: None)


def test_what_is_still_missing_afterwards_is_said(installed, monkeypatch):
    monkeypatch.setattr(requirements, "missing", lambda: [ALL[1]])
    with pytest.raises(MissingDependencyError, match="einops cannot be found"):
        requirements.install(ALL[1:2], lambda message, percent: None)
