"""Comparisons train every variant alike and tell the truth about them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from famsam.cli import main
from famsam.errors import ConfigError
from famsam.model.famsam import FamsamConfig
from famsam.training.compare import compare
from famsam.training.config import TrainConfig
from famsam.training.trainer import read_log, synthetic_source

TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=0
)
SHORT = TrainConfig(
    steps=4,
    sizes=((1.0, 32, 2),),
    targets=1,
    round_weights=(1.0,),
    warmup_steps=1,
    pool=4,
    precision="fp32",
    validate_every=2,
    validation_batches=1,
)


def test_every_variant_is_trained_and_measured_alike(tmp_path):
    variants = {
        "plain": (SHORT, TINY),
        "fast": (dataclasses.replace(SHORT, learning_rate=1e-2), TINY),
        "deep": (SHORT, dataclasses.replace(TINY, depth=2)),
    }
    comparison = compare(variants, tmp_path, synthetic_source, torch.device("cpu"))
    assert [row["name"] for row in comparison.rows] == list(variants)
    for row in comparison.rows:
        logged = list(read_log(tmp_path / row["name"]))
        assert [entry["step"] for entry in logged] == [2, 4] and row["steps"] == 4
        assert row["dice1"] == logged[-1]["dice1"] and row["dice5"] == logged[-1]["dice5"]
    sizes = [row["parameters"] for row in comparison.rows]
    assert sizes[0] == sizes[1] < sizes[2]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "comparison.md").read_text()
    assert all(f"| {name} |" in table for name in variants) and '"steps": 4' in table
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"] == comparison.rows
    again = compare(variants, tmp_path, synthetic_source, torch.device("cpu"))
    assert again.rows == comparison.rows, "finished runs are only read"


def test_the_best_of_each_column_is_marked(tmp_path):
    comparison = compare({"a": (SHORT, TINY), "b": (SHORT, TINY)}, tmp_path, synthetic_source)
    comparison.rows[0].update(dice1=0.25, dice3=0.5, dice5=0.75)
    comparison.rows[1].update(dice1=0.5, dice3=0.25, dice5=0.75)
    lines = comparison.to_markdown().splitlines()
    assert "| 0.250 | **0.500** | **0.750** |" in lines[2] and "| **0.500** | 0.250 | **0.750** |" in lines[3]


@pytest.mark.parametrize(
    "variants, message",
    [
        ({"a": (SHORT, TINY)}, "at least two"),
        ({"a": (SHORT, TINY), "b/c": (SHORT, TINY)}, "name"),
        ({"a": (SHORT, TINY), "b": (dataclasses.replace(SHORT, steps=5), TINY)}, "differ in steps"),
        ({"a": (SHORT, TINY), "b": (dataclasses.replace(SHORT, minutes=1.0), TINY)}, "differ in minutes"),
        ({"a": (SHORT, TINY), "b": (dataclasses.replace(SHORT, turn_chance=0.5), TINY)}, "differ in turn_chance"),
        ({"a": (SHORT, TINY), "b": (dataclasses.replace(SHORT, seed=5, targets=2), TINY)}, "targets, seed"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, variants, message):
    with pytest.raises(ConfigError, match=message):
        compare(variants, tmp_path, synthetic_source)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_another_setup_are_not_taken_for_the_variants(tmp_path):
    variants = {"a": (SHORT, TINY), "b": (dataclasses.replace(SHORT, learning_rate=1e-2), TINY)}
    compare(variants, tmp_path, synthetic_source)
    before = (tmp_path / "b" / "config.json").read_bytes()
    variants["b"] = (dataclasses.replace(SHORT, learning_rate=1e-4), TINY)
    with pytest.raises(ConfigError, match="begun with another one than b has now"):
        compare(variants, tmp_path, synthetic_source)
    assert (tmp_path / "b" / "config.json").read_bytes() == before


def test_files_of_one_name_are_not_taken_for_one_another(tmp_path, capsys):
    paths = [tmp_path / folder / "base.json" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("{}")
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert main(["compare", *map(str, paths), str(other), "-o", str(tmp_path / "out"), "--steps", "1"]) == 1
    assert "got base twice" in capsys.readouterr().err
    capital = other.with_name("Other.json")
    capital.write_text("{}")
    assert main(["compare", str(other), str(capital), "-o", str(tmp_path / "out"), "--steps", "1"]) == 1
    assert "twice" in capsys.readouterr().err
