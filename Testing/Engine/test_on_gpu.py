"""What only a GPU can show: the same results as on a CPU, and calls that are recorded. Skipped where there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from famsam import Session
from famsam.bench.clicks import clicks_on, synthetic_ct
from famsam.checkpoints import load_model, save_model
from famsam.model import line_minimum
from famsam.model.famsam import FamsamConfig
from famsam.model.registry import build_model
from famsam.recordings import RECORDED
from famsam.runtime import autocast
from famsam.training.clicks_at_once import ClicksAtOnce
from famsam.training.config import TrainConfig
from famsam.training.learner import Plan
from famsam.training.sample import Dice
from famsam.training.trainer import Trainer, synthetic_source

GPU = torch.device("cuda", 0)
TINY = FamsamConfig((8, 8, 8, 8), token_channels=32, depth=2, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1)
TRAINING = TrainConfig(
    steps=5, sizes=((1.0, 64, 2),), pool=4, validate_every=2, validation_batches=1, optimiser="muon", every_round=True,
    clicked_weight=1.0, round_weights=(0, 1), mask_chance=0.0, box_chance=0.0,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")


def weights_of(name, folder):
    """The shipped weights, or random ones."""
    if name == "famsam":
        return "default"
    torch.manual_seed(0)
    save_model(build_model(name), folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def inputs_of(model):
    generator = torch.Generator().manual_seed(1)
    crop = torch.randn(1, 1, *(model.crop_size,) * 3, generator=generator)
    points = torch.tensor([[[64.0, 60, 66], [20, 20, 30]]])
    prior = torch.randn(1, 1, *(model.mask_size,) * 3, generator=generator)
    return crop, points, torch.tensor([[1, 0]]), prior


@torch.inference_mode()
def answer(model, crop, points, labels, prior):
    crop, points, labels, prior = (t.to(model.device) for t in (crop, points, labels, prior))
    with autocast(model.device, model.precision):
        embedding = model.encode(crop)
        logits, quality = model.decode(embedding, points, labels, prior)
    return embedding.tokens.float().cpu().clone(), logits.float().cpu().clone(), quality.float().cpu().clone()


def apart(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["famsam", "fastsam3d", "sam_med3d"])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 2e-3), ("bf16", 0.15)])
def test_results_are_those_of_a_cpu_and_calls_are_recorded(name, precision, tolerance, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which fp32 convolutions otherwise may be
    weights = weights_of(name, tmp_path)
    model = load_model(weights, "cpu", "fp32", paused_share=0.0)
    given = inputs_of(model)
    expected = answer(model, *given)
    model = load_model(weights, "cuda", precision, paused_share=0.0)
    for _ in range(3):
        found = answer(model, *given)
    for part, wanted in zip(found, expected):
        assert apart(part, wanted) < tolerance
    for call in RECORDED:
        kept = getattr(model, call)._kept
        assert kept and all(recording is not None for recording in kept.values()), f"{call} was not recorded"


@pytest.mark.parametrize("precision, least", [("fp32", 0.99), ("bf16", 0.97)])
def test_a_session_segments_as_on_a_cpu(precision, least):
    volume = synthetic_ct((96, 160, 160))
    masks = {}
    for device, computed in (("cpu", "fp32"), ("cuda", precision)):
        session = Session(load_model("default", device, computed, paused_share=0.0))
        session.set_image(volume)
        masks[device] = [session.add_point(point).mask_zyx.copy() for point in clicks_on(volume, 5, seed=1)]
    for found, expected in zip(masks["cuda"], masks["cpu"]):
        assert 2 * np.logical_and(found, expected).sum() >= least * (found.sum() + expected.sum())


def test_line_minima_are_exact():
    generator = torch.Generator().manual_seed(0)
    for size in ((16, 16, 16), (24, 24, 24), (5, 64, 7)):
        distance = torch.rand(2, 3, 4, *size, generator=generator) * 50
        for axis in range(3):
            cost = torch.rand(2, 4, *size, generator=generator).cumsum(2 + axis)
            found = distance.to(GPU)
            line_minimum.cheapest_runs(found, cost.to(GPU), axis)
            line_minimum.cheapest_runs(distance, cost, axis)
            torch.testing.assert_close(found.cpu(), distance)


def test_clicks_lie_in_what_is_wrong():
    targets = torch.zeros(3, 1, 32, 32, 32, device=GPU)
    targets[:, :, 8:20, 8:20, 8:20] = 1
    clicks = ClicksAtOnce(targets, Dice(0, GPU))
    clicks.click(None)
    assert clicks.labels_BN.tolist() == [[1]] * 3 and clicks.points_BN3.is_cuda
    assert ((clicks.points_BN3 > 16) & (clicks.points_BN3 < 40)).all()
    assert torch.equal(clicks.clicked_error(), targets > 0)


def test_a_run_trains_there_and_goes_on(tmp_path):
    trainer = Trainer(tmp_path, synthetic_source, TRAINING, TINY, GPU, workers=2)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    try:
        trainer.run()
    finally:
        trainer.pool.close()
    assert any(not torch.equal(new, old) for new, old in zip(trainer.model.parameters(), before))
    recordings = trainer.recorded.replays._kept
    assert len(recordings) == 2 and all(recording is not None for recording in recordings.values())
    resumed = Trainer(tmp_path, synthetic_source, dataclasses.replace(TRAINING, steps=6), device=GPU)
    resumed.run()
    assert resumed.step == 6


def test_recorded_gradients_are_those_computed(tmp_path):
    """Twice the same crops, prompts that do not depend on chance: a corner of a cube that fills its only voxel."""
    config = dataclasses.replace(TRAINING, precision="fp32", targets=1)
    trainer = Trainer(tmp_path, synthetic_source, config, TINY, GPU)
    targets = torch.zeros(2, 1, 32, 32, 32, device=GPU)
    targets[:, :, 9, 9, 9] = 1
    crops = torch.randn(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0)).to(GPU)
    found = []
    with trainer.recorded.running():
        for _ in range(4):
            values = trainer.recorded.gradients(crops, targets, Plan(1), Dice(0, GPU))
            gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
            found.append((torch.cat(gradients).cpu(), float(values["loss"])))
    for gradient, loss in found[1:]:
        assert apart(gradient, found[0][0]) < 1e-3 and loss == pytest.approx(found[0][1], rel=1e-4)
