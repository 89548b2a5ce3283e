"""One of the processes that test_team starts by torchrun: a short run that leaves its gradients and parameters.

    team_member.py FOLDER [STEPS]
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from famsam.model.famsam import FamsamConfig
from famsam.training import team
from famsam.training.config import TrainConfig
from famsam.training.sample import Sample
from famsam.training.trainer import Trainer

MODEL = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)
SHARED = TrainConfig(
    steps=3,
    sizes=((1.0, 32, 2),),
    targets=2,
    round_weights=(0.0, 1.0),
    warmup_steps=1,
    pool=8,
    precision="fp32",
    validate_every=100,
    validation_batches=1,
)
ALONE = dataclasses.replace(SHARED, sizes=((1.0, 32, 4),))


def source(size, dice):
    """A bright ball somewhere in the dark, with a brighter one in it."""
    z, y, x = torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")
    centre = [dice.uniform(0.35 * size, 0.65 * size) for _ in range(3)]
    squared = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
    labels = (squared < (0.3 * size) ** 2).long() + (squared < (0.15 * size) ** 2).long()
    image = labels + 0.05 * dice.normal(size, size, size)
    return Sample(image, torch.ones_like(labels, dtype=torch.bool), labels, [0, 0, 1])


def main(folder: Path, steps: int = SHARED.steps) -> None:
    torch.set_num_threads(1)
    device = team.join(torch.device("cpu"))
    trainer = Trainer(folder / "run", source, dataclasses.replace(SHARED, steps=steps), MODEL, device)
    rank, _ = team.part()
    trainer._gradients()
    torch.save({name: p.grad for name, p in trainer.model.named_parameters()}, folder / f"gradients{rank}.pt")
    trainer.learner.zero_grad()
    trainer.run()
    torch.save({n: p.detach() for n, p in trainer.model.named_parameters()}, folder / f"parameters{rank}.pt")
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
