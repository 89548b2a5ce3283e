"""Recorded training steps, on a CPU: a "recording" there is called again, and its result put where the first one was,
as a CUDA graph would."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from famsam.model import line_minimum
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.training import learner as learner_module
from famsam.training.clicks_at_once import ClicksAtOnce
from famsam.training.config import TrainConfig
from famsam.training.learner import Learner, Plan
from famsam.training.pool import CropPool
from famsam.training.recorded_steps import DeviceDice, RecordedSteps, set_rate, with_tensor_rates
from famsam.training.sample import Dice
from famsam.training.trainer import Trainer, _optimisers, synthetic_source
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
TINY = FamsamConfig(
    (8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1, centred=True,
    residual=True, newest=True,
)
CONFIG = TrainConfig(
    steps=9, sizes=((1.0, 32, 2),), targets=1, pool=4, precision="fp32", optimiser="muon", every_round=True,
    clicked_weight=1.0, round_weights=(0, 1, 1), mask_chance=0.3, box_chance=0.2, validation_batches=1,
)


class Recorder:
    """Makes a recording of a call; like a graph's, it computes nothing before it is replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, call):
        self.recorded += 1
        own = {"loss": torch.zeros(()), "first": torch.zeros(()), "last": torch.zeros(())}

        def replay():
            self.replayed += 1
            for name, value in (call() or {}).items():
                own[name].copy_(value)

        return replay, own


@pytest.fixture
def clicks_at_once(monkeypatch):
    monkeypatch.setattr(learner_module, "simulated_clicks", ClicksAtOnce)


def batches(count, size=32, items=2):
    pool = CropPool(synthetic_source, CONFIG, Famsam(TINY).normalise, CPU, seed=0)
    return [pool.batch(size, items, Dice(number, CPU)) for number in range(count)]


def ready(config=CONFIG):
    torch.manual_seed(0)
    learner = Learner(Famsam(TINY), config)
    optimisers = _optimisers(learner, config)
    with_tensor_rates(optimisers, CPU)
    return learner, optimisers


def test_recorded_steps_are_those_that_would_be_computed(clicks_at_once):
    plans = [Plan(2), Plan(2), Plan(3), Plan(2), Plan(2, mask=True), Plan(3), Plan(3, boxes=True), Plan(3)]
    ends, values, recorder = [], [], Recorder()

    def refuses(call):
        raise RuntimeError("not now")

    for record in (recorder, refuses):
        learner, optimisers = ready()
        steps = RecordedSteps(learner, optimisers, CONFIG, CPU, record)
        torch.manual_seed(1)
        values.append([])
        for number, (plan, batch) in enumerate(zip(plans, batches(len(plans)))):
            for optimiser in optimisers:
                set_rate(optimiser.param_groups[0], 1e-2 / (1 + number))
            values[-1].append(steps.gradients(*batch, plan, Dice(number, CPU)))
            steps.update()
        ends.append(torch.cat([p.detach().flatten() for p in learner.parameters()]))
    # Two kinds of clicks, and the optimisers.
    assert recorder.recorded == 3 and recorder.replayed == 2 + 2 + 7
    torch.testing.assert_close(ends[0], ends[1])
    for found, expected in zip(*values):
        assert found.keys() == expected.keys() == {"loss", "first", "last"}
        torch.testing.assert_close(found, expected)


def test_gradients_that_are_not_finite_change_little(clicks_at_once):
    learner, optimisers = ready(dataclasses.replace(CONFIG, weight_decay=0.0))
    steps = RecordedSteps(learner, optimisers, CONFIG, CPU, Recorder())
    (batch,) = batches(1)
    steps.gradients(*batch, Plan(2), Dice(0, CPU))
    for parameter in learner.parameters():
        parameter.grad.fill_(float("nan"))
    steps.update()
    assert all(torch.isfinite(parameter).all() for parameter in learner.parameters())


class Unseen(TorchDispatchMode):
    """Refuses what would have to wait for a GPU, or be sent to it, if the tensors were there."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "_unique2", "lift_fresh", "masked_select", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        looked_up = args[1] if name in ("index", "index_put_") else ()
        if name in self.WAITING or any(t is not None and t.dtype == torch.bool for t in looked_up):
            raise AssertionError(f"{function} waits for the GPU")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("plan", [Plan(2), Plan(3, boxes=True)])
def test_nothing_in_a_step_waits_for_the_gpu(plan, clicks_at_once, monkeypatch):
    """Every tensor says that it is on a GPU, and what then is computed must not look at a value."""
    (batch,) = batches(1)
    learner, optimisers = ready()
    steps = RecordedSteps(learner, optimisers, CONFIG, CPU, Recorder())

    def step():
        steps._forget_gradients()
        steps._computed(*batch, plan, DeviceDice(CPU))

    step()
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    monkeypatch.setattr(line_minimum, "is_fast_on", lambda tensor: tensor.device.type == "cpu")
    monkeypatch.setattr(line_minimum, "_run_kernel", _all_pairs)
    with Unseen():
        step()


def _all_pairs(values, axis, cost):
    lines, last = values.movedim(axis - 3, -1), values.shape[axis - 3]
    at = torch.arange(last, dtype=values.dtype) if cost is None else cost[:, None].movedim(axis - 3, -1)
    apart = at[..., :, None] - at[..., None, :]
    between = apart.square() if cost is None else apart.abs()
    values.copy_((lines[..., None, :] + between).amin(-1).movedim(-1, axis - 3))


def test_a_trainer_steps_by_recordings(tmp_path, clicks_at_once, monkeypatch):
    recorder = Recorder()

    def recorded_steps(trainer):
        with_tensor_rates(trainer.optimisers, trainer.device)
        return RecordedSteps(trainer.learner, trainer.optimisers, trainer.config, trainer.device, recorder)

    monkeypatch.setattr(Trainer, "_recorded_steps", recorded_steps)
    trainer = Trainer(tmp_path, synthetic_source, CONFIG, TINY)
    before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    trainer.run()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert trainer.step == 9 and recorder.replayed > 8 and not torch.equal(before, after)
    assert 0 < trainer.smooth.values["last"] < 1
    monkeypatch.undo()
    resumed = Trainer(tmp_path, synthetic_source, dataclasses.replace(CONFIG, steps=10), TINY)
    assert resumed.recorded is None
    resumed.run()
    assert resumed.step == 10 and isinstance(resumed.optimisers[0].param_groups[0]["lr"], float)


