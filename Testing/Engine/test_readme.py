"""What the README shows is true: its Python runs, its files exist, its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from famsam.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_begins_with_a_picture_of_a_result_and_two_commands():
    assert re.match(r"# FaMSAMSlicer\n\n!\[", README)
    commands = [line for line in blocks("sh")[0].splitlines() if line]
    assert [line.split()[:2] for line in commands] == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.M)


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+?)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_python_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("nilearn", reason="the sample scan comes with nilearn")
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "mask.nii.gz").stat().st_size > 0


def test_commands_parse():
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("famsam ")]
    assert lines
    for line in lines:
        _parser().parse_args(shlex.split(line, comments=True)[1:])
