"""Two processes, on one machine or on two, train as one process with the doubled batch."""

from __future__ import annotations

import dataclasses
import os
import socket
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
SLOW_S = 240


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder in which two processes have trained, started as a user would start them."""
    folder = tmp_path_factory.mktemp("pair")
    launched = launch(folder, "--standalone", "--nproc-per-node", "2")
    _, errors = launched.communicate()
    assert launched.returncode == 0, errors[-3000:]
    return folder


def launch(folder, *options, steps=SHARED.steps):
    """The launcher of a machine's processes."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(MEMBER), str(folder), str(steps)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def on_two_machines(folders, steps):
    """What the launchers of two machines leave, each with its own folder: exit status and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    started = [launch(f, *meeting, "--node-rank", str(n), steps=steps) for n, f in enumerate(folders)]
    try:
        errors = [one.communicate(timeout=SLOW_S)[1] for one in started]
    finally:
        for one in started:
            one.kill()
    return [one.returncode for one in started], errors


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


def test_two_machines_that_share_no_folder_go_on_together(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    for steps in (1, 3):
        statuses, errors = on_two_machines(folders, steps)
        assert statuses == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    ends = [torch.load(folder / f"parameters{n}.pt", weights_only=True) for n, folder in enumerate(folders)]
    for name, parameter in ends[0].items():
        torch.testing.assert_close(parameter, ends[1][name], rtol=0, atol=0)
    assert Trainer(folders[0] / "run", source).step == 3
    assert list((folders[1] / "run").iterdir()) == [], "the first machine writes"
    statuses, errors = on_two_machines(folders[::-1], 4)
    assert 0 not in statuses and all("copy the run's folder" in text for text in errors)
    assert Trainer(folders[0] / "run", source).step == 3


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
