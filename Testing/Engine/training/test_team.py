"""Two processes on one machine train as one process with the doubled batch."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from famsam.training import team
from famsam.training.sample import Dice
from famsam.training.trainer import Trainer
from team_member import ALONE, MODEL, SHARED, source

MEMBER = Path(__file__).with_name("team_member.py")
PACKAGE = Path(team.__file__).parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder in which two processes have trained, started as a user would start them."""
    folder = tmp_path_factory.mktemp("pair")
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(MEMBER), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer = Trainer(tmp_path_factory.mktemp("alone"), source, ALONE, MODEL)
    yield trainer
    torch.set_num_threads(threads)


def test_gradients_are_those_of_the_doubled_batch(pair, alone):
    alone._gradients()
    found = [torch.load(pair / f"gradients{rank}.pt", weights_only=True) for rank in (0, 1)]
    expected = {name: p.grad for name, p in alone.model.named_parameters()}
    assert set(found[0]) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=0)
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-3, atol=1e-6)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3


def test_the_two_stay_the_same_and_one_of_them_writes(pair):
    ends = [torch.load(pair / f"parameters{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, parameter in ends[0].items():
        torch.testing.assert_close(parameter, ends[1][name], rtol=0, atol=0)
    log = (pair / "run" / "log.csv").read_text().splitlines()
    assert len(log) == 2, "a header and one validation, although two processes ran"
    resumed = Trainer(pair / "run", source)
    assert resumed.step == SHARED.steps
    torch.testing.assert_close(dict(resumed.model.named_parameters()), ends[0])


def test_each_thing_gets_its_own_dice_wherever_it_is():
    cpu = torch.device("cpu")
    together = [d.uniform(0, 1) for d in Dice(5, cpu).fork(4)]
    apart = [d.uniform(0, 1) for index in (0, 1) for d in Dice(5, cpu, (index, 2)).fork(2)]
    assert together == apart and len(set(together)) == 4
    first, second = Dice(5, cpu, (0, 2)), Dice(5, cpu, (1, 2))
    first.fork(3), second.fork(3)
    assert first.uniform(0, 1) == second.uniform(0, 1), "what concerns all is the same for all"


def test_one_process_is_a_team_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cpu = torch.device("cpu")
    module = torch.nn.Linear(1, 1)
    assert team.join(cpu) == cpu and team.part() == (0, 1) and team.leads()
    assert team.shared(module) is module and team.agreed(True, cpu) and not team.agreed(False, cpu)
    team.leave()


def test_the_two_halves_are_not_alike(alone, tmp_path):
    """What makes the first test one that can fail: half of the batch alone gives other gradients."""
    half = Trainer(tmp_path, source, dataclasses.replace(ALONE, sizes=SHARED.sizes), MODEL)
    half._gradients()
    alone.learner.zero_grad()
    alone._gradients()
    own = torch.cat([p.grad.flatten() for p in half.model.parameters()])
    whole = torch.cat([p.grad.flatten() for p in alone.model.parameters()])
    assert float((own - whole).norm() / whole.norm()) > 0.05
