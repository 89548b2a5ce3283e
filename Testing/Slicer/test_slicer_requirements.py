"""Installing: asked for by name and size, torch by the PyTorch extension, a readable error without a network."""

from __future__ import annotations

import sys
import types

import pytest
import slicer
from famsam.errors import MissingDependencyError
from FaMSAMSlicerLib import requirements

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
    assert installed == [("pip_ensure", "einops>=0.7")]


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
