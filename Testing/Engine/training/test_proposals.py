"""Training of the proposal head: it learns, and nothing but it."""

from __future__ import annotations

import pytest
import torch
from famsam import cli
from famsam.checkpoints import load_model, save_model
from famsam.errors import ConfigError, DatasetError
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.training.proposals import ProposalTraining, train_proposals
from famsam.training.sample import Sample
from tiny_models import tiny_model

TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)
SHORT = ProposalTraining(
    steps=60, size=32, batch=2, structures=2, seeds=6, steps_per_crop=6, pool=10, validation_crops=3
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def slabs(size, dice):
    """A bright block against one face of a dark crop."""
    labels = torch.zeros(size, size, size, dtype=torch.int64)
    labels[: dice.integer(12, 20)] = 1
    image = labels * 1.0 + 0.05 * dice.normal(size, size, size)
    return Sample(image, torch.ones_like(image, dtype=torch.bool), labels)


def nothing(size, dice):
    image = dice.normal(size, size, size)
    return Sample(image, image > -99, torch.zeros(size, size, size, dtype=torch.int64))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Famsam(TINY).eval().requires_grad_(False)


def test_the_head_learns_and_the_rest_stays(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, untrained = train_proposals(model, slabs, ProposalTraining(**{**vars(SHORT), "steps": 1}))
    trained, scores = train_proposals(model, slabs, SHORT)
    assert scores["steps"] == 60 and scores["seeded_iou"] > max(0.5, untrained["seeded_iou"] + 0.2)
    assert scores["iou"] > 0.5 and scores["recall"] == 1.0
    assert trained.proposes and not model.proposes and not any(p.requires_grad for p in trained.parameters())
    for name, value in trained.state_dict().items():
        if name in before:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
            torch.testing.assert_close(model.state_dict()[name], before[name], rtol=0, atol=0)


def test_a_seed_gives_the_same_head(model):
    short = ProposalTraining(**{**vars(SHORT), "steps": 3})
    heads = [train_proposals(model, slabs, short)[0].proposal_head.state_dict() for _ in range(2)]
    for one, other in zip(heads[0].values(), heads[1].values()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_head_that_is_there_is_trained_anew(model):
    short = ProposalTraining(**{**vars(SHORT), "steps": 2})
    once = train_proposals(model, slabs, short)[0]
    again = train_proposals(once, slabs, short)[0]
    for one, other in zip(once.state_dict().values(), again.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_impossible_runs_are_explained(model):
    with pytest.raises(DatasetError, match="no"):
        train_proposals(model, nothing, SHORT)
    for wrong in ({"steps": 0}, {"size": 40}, {"pool": 1}):
        with pytest.raises(ConfigError, match="counts from 1"):
            ProposalTraining(**{**vars(SHORT), **wrong})
    with pytest.raises(ConfigError, match=r"got 0\.001 seconds"):
        train_proposals(model, slabs, SHORT, time_limit_s=0.001)


def test_the_command(model, tmp_path, capsys):
    save_model(model, tmp_path / "plain.safetensors")
    save_model(tiny_model("sam_med3d"), tmp_path / "other.safetensors")
    output = tmp_path / "with.safetensors"
    fixed = ["train-proposals", str(output), "--steps", "1", "--size", "32", "--quiet", "--device", "cpu"]
    assert cli.main([*fixed, "--model", str(tmp_path / "plain.safetensors"), "--store", "fp16"]) == 0
    assert "recall" in capsys.readouterr().out
    assert load_model(output, device="cpu").proposes
    assert cli.main([*fixed, "--model", str(tmp_path / "other.safetensors")]) == 1
    assert "sam_med3d" in capsys.readouterr().err
