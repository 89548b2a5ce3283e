"""Runs that differ in what is to be compared and in nothing else, and the table and curves that tell them apart."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch

from ..errors import ConfigError
from ..model.config import to_plain
from .config import CONFIG_NAME, TrainConfig, read_config
from .plots import comparison_curves
from .sample import Source
from .trainer import Trainer, read_log

Setup = Tuple[TrainConfig, Any]
"""How to train, and the network's configuration."""
BUDGET = (
    *("steps", "minutes", "sizes", "targets", "kept_targets", "turn_chance", "pool", "fresh", "ahead", "seed"),
    *("validation_batches", "validate_every"),
)
"""What all runs must have in common: how much they see, of what, and what they are measured on."""


@dataclass
class Comparison:
    """The outcome.

    Attributes:
        rows: a dictionary for each variant: name, parameters, steps, seconds and the Dice after 1 to 5 clicks.
        common: what all variants share.
        hardware: what they ran on.
    """

    rows: List[Dict[str, Any]]
    common: Dict[str, Any]
    hardware: str

    def to_markdown(self) -> str:
        """A table, the best value of each column in bold."""
        columns = ["dice1", "dice3", "dice5"]
        best = {name: max(row[name] for row in self.rows) for name in columns}
        lines = [
            "| variant | parameters | steps | seconds | Dice, 1 click | 3 clicks | 5 clicks |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            scores = [f"**{row[c]:.3f}**" if row[c] == best[c] else f"{row[c]:.3f}" for c in columns]
            cells = [row["name"], f"{row['parameters'] / 1e6:.2f} M", row["steps"], row["seconds"], *scores]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        return "\n".join([*lines, "", f"All runs: {json.dumps(self.common)}; {self.hardware}."])


def compare(
    variants: Mapping[str, Setup],
    directory: Union[str, Path],
    source: Source,
    device: Optional[torch.device] = None,
    progress: bool = False,
) -> Comparison:
    """Train every variant on the same budget; leaves ``comparison.md``, ``.json`` and ``.png`` in ``directory``.

    Each variant has a run's folder of its own in ``directory``; one that was cut off goes on, a finished one is only
    read.

    Raises:
        ConfigError: fewer than two variants, a name that is no folder's, variants that differ in ``BUDGET``, or a run
            in ``directory`` that was begun with another set-up than its variant's.
    """
    if len(variants) < 2:
        raise ConfigError(f"Expected at least two variants to compare, got {len(variants)}.")
    for name in variants:
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ConfigError(f"A variant's name may hold letters, digits and . _ + - only, got {name!r}.")
    budgets = {name: {key: to_plain(train)[key] for key in BUDGET} for name, (train, _) in variants.items()}
    first, common = next(iter(budgets.items()))
    for name, budget in budgets.items():
        different = [key for key in BUDGET if budget[key] != common[key]]
        if different:
            raise ConfigError(f"{name} and {first} differ in {', '.join(different)}, so they cannot be compared.")
    rows, folder = [], Path(directory)
    for name, setup in variants.items():
        begun = folder / name / CONFIG_NAME
        if begun.exists() and read_config(begun) != tuple(setup):
            raise ConfigError(
                f"Expected a new folder, or runs of the same set-ups, got {begun.parent}, which was begun with another "
                f"one than {name} has now. Remove it, or name another folder."
            )
    for name, (train, model) in variants.items():
        trainer = Trainer(folder / name, source, train, model, device)
        trainer.run(progress=progress)
        last = list(read_log(folder / name))[-1]
        rows.append({
            "name": name,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "steps": trainer.step,
            "seconds": round(trainer.seconds),
            **{key: value for key, value in last.items() if key.startswith("dice")},
        })
    where = trainer.device
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    hardware = f"{chip}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    comparison = Comparison(rows, common, hardware)
    (folder / "comparison.md").write_text(comparison.to_markdown() + "\n", encoding="utf-8")
    (folder / "comparison.json").write_text(json.dumps(vars(comparison), indent=1), encoding="utf-8")
    comparison_curves({name: folder / name for name in variants}, folder / "comparison.png")
    return comparison
