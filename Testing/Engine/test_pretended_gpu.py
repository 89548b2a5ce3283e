"""Calls on a GPU, where there is none: nothing mixes tensors of both devices, recorded calls never wait for it, and
the results are a CPU's. What only a GPU can show is in ``test_on_gpu.py``."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from famsam import Session
from famsam.bench.clicks import clicks_on, synthetic_ct
from famsam.checkpoints import load_model, save_model
from famsam.model import line_minimum
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.proposing import ProposalOptions
from famsam.recordings import RECORDED
from famsam.training.config import TrainConfig
from famsam.training.learner import Learner, Plan
from famsam.training.recorded_steps import DeviceDice
from famsam.training.synthetic import synthetic_sample
from pretended_gpu import CPU, GPU, OnGpu, PretendedGpu
from tiny_models import tiny_model

pytestmark = [
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="PyTorch is built for GPUs here, see test_on_gpu.py"),
    pytest.mark.skipif(sys.platform == "win32", reason="PyTorch's libraries have other names for their parts there"),
]

TINY = FamsamConfig(
    (8, 8, 8, 8), token_channels=32, depth=2, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1, proposals=True,
    newest=True, residual=True,
)


def test_it_refuses_what_a_gpu_refuses():
    with PretendedGpu() as gpu:
        there = torch.arange(6.0).to("cuda")
        assert there.is_cuda and isinstance(there + 1, OnGpu) and gpu.waits == ["to the GPU"]
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(6)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(6)[there > 2] = there[there > 2]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        gpu.waits.clear()
        assert float(there[1:].mul_(2).max()) == 10 and there.tolist() == [0, 2, 4, 6, 8, 10]
        assert there[there > 3].cpu().tolist() == [4, 6, 8, 10] and len(gpu.waits) == 4
        gpu.record(lambda: there + torch.zeros(6, device=GPU), GPU)
        with pytest.raises(RuntimeError, match="cannot be recorded"):
            gpu.record(lambda: there + float(there.max()), GPU)
        with pytest.raises(RuntimeError, match="cannot be recorded"):
            gpu.record(lambda: there + torch.ones(6).to(GPU, non_blocking=True), GPU)
    assert not torch.cuda.is_available()


def clicked(source, device, volume, waits):
    """A session's masks: three clicks, a preview, a box, its doubt, and what is proposed where the model proposes.

    Of ``waits`` those of the third click are left.
    """
    session = Session(load_model(source, device, "fp32"))
    session.set_image(volume)
    masks, points = [], np.array(list(clicks_on(volume, 3, seed=1)))
    for number, point in enumerate(points):
        waits.clear()
        masks.append(session.add_point(point, positive=number != 1).mask_zyx.copy())
    of_a_click = list(waits)
    masks.append(session.preview(points[0]).mask_zyx.copy())
    masks.append(session.add_box(points[0] - 12, points[0] + 12).mask_zyx.copy())
    masks.append(np.asarray(session.uncertainty().probability_zyx) > 0.5)
    if session.model.proposes:
        candidates = session.propose(ProposalOptions(views=2, per_view=2, closely=2))
        masks += [candidate.mask_zyx.copy() for candidate in candidates]
    waits[:] = of_a_click
    return session.model, masks


@pytest.mark.parametrize("name", ["default", "fastsam3d", "sam_med3d"])
def test_a_session_there_is_one_on_a_cpu(name, tmp_path):
    source = name
    if name != "default":
        source = tmp_path / f"{name}.safetensors"
        save_model(tiny_model(name), source)
    volume = synthetic_ct((28, 56, 56))
    _, expected = clicked(source, "cpu", volume, [])
    with PretendedGpu() as gpu:
        model, found = clicked(source, "cuda", volume, gpu.waits)
        assert next(model.parameters()).is_cuda
        recordings = [recording for call in RECORDED for recording in getattr(model, call)._kept.values()]
        assert recordings and all(recording is not None for recording in recordings)
        # A further click waits for the logits that it decodes, and for the mask that it makes of them.
        places = ["paste_guided", "_evaluated"] if name == "default" else ["paste_logits"] * 2
        assert [wait.split(", ")[-1] for wait in gpu.waits] == ["decode", *places]
    assert len(found) == len(expected) and sum(mask.sum() for mask in expected) > 0
    for mask, wanted in zip(found, expected):
        assert np.mean(mask != wanted) < 0.002


def test_a_scan_that_the_gpu_has_no_room_for_stays_on_the_cpu(monkeypatch):
    volume = synthetic_ct((28, 56, 56))
    _, expected = clicked("default", "cpu", volume, [])
    with PretendedGpu() as gpu:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1024, 2**36))
        _, found = clicked("default", "cuda", volume, gpu.waits)
    assert len(found) == len(expected)
    for mask, wanted in zip(found, expected):
        assert np.mean(mask != wanted) < 0.002


def test_synthetic_scans_are_drawn_there():
    for seed in range(12):
        expected = synthetic_sample(24, seed, CPU)
        with PretendedGpu():
            found = synthetic_sample(24, seed, GPU)
            assert found.image_ZYX.is_cuda and found.inside_ZYX.is_cuda and found.labels_ZYX.is_cuda
            torch.testing.assert_close(found.image_ZYX.cpu(), expected.image_ZYX, rtol=1e-3, atol=1e-3)
            assert (found.labels_ZYX.cpu() != expected.labels_ZYX).float().mean() < 0.001


@pytest.mark.parametrize("plan", [Plan(3), Plan(2, boxes=True)])
def test_the_loss_of_a_training_step_can_be_recorded(plan, monkeypatch):
    """With Triton's kernels, which are tested by themselves; here what they give is computed on the CPU."""

    def kernel(values, axis, cost):
        line_minimum._run(values.inner, axis, None if cost is None else cost.inner)

    monkeypatch.setattr(line_minimum, "_run_kernel", kernel)
    monkeypatch.setattr(line_minimum, "is_fast_on", lambda tensor: tensor.is_cuda)
    config = TrainConfig(every_round=True, one_way=True, clicked_weight=1.0, click_styles=(0.6, 0.2, 0.2))
    torch.manual_seed(0)
    crops, targets = torch.randn(2, 1, 32, 32, 32), torch.zeros(4, 1, 16, 16, 16)
    targets[:, :, 4:10, 3:12, 5:11] = 1
    with PretendedGpu() as gpu, torch.no_grad():
        learner = Learner(Famsam(TINY).to("cuda"), config)
        crops, targets, dice = crops.to("cuda"), targets.to("cuda"), DeviceDice(GPU)
        replay, (loss, values) = gpu.record(lambda: learner.planned(crops, targets, plan, dice), GPU)
        replay()
        assert 0 < float(loss) < 100 and 0 <= float(values["last"]) <= 1
