"""Logistic calibration: fits that recover what made the data, and corrections that keep the order."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from famsam.checkpoints import load_model, save_model
from famsam.errors import CheckpointError, ConfigError
from famsam.model.calibration import Calibration, fit_logistic, logistic, logit
from famsam.model.config import from_plain, to_plain
from famsam.model.famsam import Famsam, FamsamConfig
from safetensors import safe_open
from safetensors.torch import save_file

TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)


def test_the_default_changes_nothing():
    logits = torch.tensor([-3.0, 0.0, 1.5])
    torch.testing.assert_close(Calibration().probability(logits), logits.sigmoid())
    assert [Calibration().iou(q) for q in (0.0, 0.3, 1.0)] == [0.0, 0.3, 1.0]


@pytest.mark.parametrize(("scale", "shift"), [(0.5, -1.0), (2.0, 0.7)])
def test_a_fit_recovers_what_made_the_data(scale, shift):
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 40_000)
    happened = random.random(40_000) < logistic(scale * logits + shift)
    assert fit_logistic(logits, happened) == pytest.approx((scale, shift), abs=0.06)


def test_a_fit_takes_shares_as_targets():
    predicted = np.linspace(-2, 2, 50)
    assert fit_logistic(predicted, logistic(0.8 * predicted + 0.4)) == pytest.approx((0.8, 0.4), abs=0.02)


def test_weights_count_like_repetitions():
    logits, happened = np.array([-1.0, 0.5, 2.0, 0.3]), np.array([0, 1, 1, 0])
    repeated = fit_logistic(np.repeat(logits, [1, 3, 1, 2]), np.repeat(happened, [1, 3, 1, 2]))
    assert fit_logistic(logits, happened, [1, 3, 1, 2]) == pytest.approx(repeated)


@pytest.mark.parametrize("targets", [np.ones(8), np.zeros(8), [1, 1, 1, 1, 0, 0, 0, 0]])
def test_a_fit_stays_finite_and_keeps_the_order_whatever_the_data(targets):
    scale, shift = fit_logistic(np.linspace(-1, 1, 8), targets)
    calibration = Calibration(scale, shift, scale, shift)
    calibrated = [calibration.iou(q) for q in (0.1, 0.4, 0.8)]
    assert calibrated == sorted(calibrated) and len(set(calibrated)) == 3


def test_impossible_input_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        fit_logistic([], [])
    with pytest.raises(ConfigError, match="got 2, 1 and 1"):
        fit_logistic([0.0], [0, 1])
    with pytest.raises(ConfigError, match="scales above 0"):
        Calibration(mask_scale=-1.0)
    with pytest.raises(ConfigError, match="finite"):
        Calibration(quality_shift=float("nan"))


def test_logit_is_the_inverse_and_stays_finite():
    np.testing.assert_allclose(logistic(logit([0.1, 0.5, 0.9])), [0.1, 0.5, 0.9])
    assert np.isfinite(logit([0.0, 1.0])).all()


def test_plain_data_and_back():
    calibration = Calibration(0.7, -0.2, 1.3, 0.1)
    assert from_plain(Calibration, json.loads(json.dumps(to_plain(calibration)))) == calibration


def test_a_weights_file_keeps_its_calibration(tmp_path):
    path, plain = tmp_path / "calibrated.safetensors", tmp_path / "plain.safetensors"
    model = Famsam(TINY)
    save_model(model, plain)
    model.calibration = Calibration(0.7, -0.2, 1.3, 0.1)
    save_model(model, path)
    assert load_model(path, device="cpu").calibration == model.calibration
    assert load_model(plain, device="cpu").calibration == Calibration()


def test_a_damaged_calibration_is_explained(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(Famsam(TINY), path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), "famsam_calibration": '{"mask_scale": "large"}'}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="calibration must have exactly"):
        load_model(path, device="cpu")
