"""The set-ups that the benchmarks come with can be read, and compared with each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from famsam.model.config import to_plain
from famsam.training.compare import BUDGET
from famsam.training.config import TrainConfig, read_config, read_model, read_part

BENCHMARKS = Path(__file__).parents[2] / "Benchmarks"
VARIANTS = sorted((BENCHMARKS / "train_variants").glob("*.json"))


def test_the_variants_share_a_budget_and_differ_in_something():
    setups = {path.stem: read_config(path) for path in VARIANTS}
    assert len(setups) >= 8 and "base" in setups
    budgets = [{key: to_plain(train)[key] for key in BUDGET} for train, _ in setups.values()]
    assert all(budget == budgets[0] for budget in budgets)
    assert len(set(map(repr, setups.values()))) == len(setups)


@pytest.mark.parametrize("path", [p for p in VARIANTS if p.stem != "base"], ids=lambda p: p.stem)
def test_a_variant_changes_one_thing(path):
    pairs = zip(read_config(path), read_config(path.with_name("base.json")))
    changed = [name for own, base in pairs for name, value in to_plain(own).items() if value != to_plain(base)[name]]
    assert len(changed) == 1


def test_the_distillations_budget_can_be_read():
    path = BENCHMARKS / "train_distillation.json"
    assert read_part(path, "train", TrainConfig()).steps > 0 and read_model(path).depth == 6
