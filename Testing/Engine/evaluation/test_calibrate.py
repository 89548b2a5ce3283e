"""Observing a model's figures, fitting a calibration to them, and the report on it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from Engine.evaluation.samples import save_image
from famsam.checkpoints import load_model, save_model
from famsam.cli import main
from famsam.errors import DatasetError, MissingDependencyError
from famsam.evaluation.calibrate import (
    CalibrationOptions,
    CalibrationReport,
    Observation,
    expected_error,
    fit_calibration,
    observe,
    reliability,
    split_cases,
)
from famsam.evaluation.dataset import find_cases
from famsam.model.calibration import Calibration, logistic, logit
from famsam.model.config import to_plain
from famsam.model.famsam import Famsam, FamsamConfig

TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)


def overconfident(count=12, seed=0):
    """Observations of a model whose logits are twice too large and whose predicted IoU is too low."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        logits = random.normal(-1, 3, 2000)
        truth = random.random(2000) < logistic(logits / 2)
        true_iou = random.uniform(0.3, 0.9)
        made.append(
            Observation(f"case{number}", "organ", 1, float(logistic(logit(true_iou) - 1)), true_iou, logits, truth)
        )
    return made


def test_reliability_and_expected_error_by_hand():
    predicted, happened = np.array([0.05, 0.15, 0.15, 1.0]), np.array([0, 0, 1, 1])
    assert reliability(predicted, happened) == [(1, 0.05, 0.0), (2, pytest.approx(0.15), 0.5), (1, 1.0, 1.0)]
    assert expected_error(predicted, happened) == pytest.approx((0.05 + 2 * 0.35 + 0) / 4)


def test_a_calibration_fitted_on_some_helps_on_others():
    calibration = fit_calibration(overconfident(seed=0))
    assert calibration.mask_scale == pytest.approx(0.5, abs=0.05) and calibration.mask_shift == pytest.approx(
        0, abs=0.1
    )
    assert calibration.quality_shift > 0.7
    report = CalibrationReport(calibration, overconfident(seed=1))
    before, after = report.scores(False), report.scores(True)
    assert after["probability_ece"] < 0.3 * before["probability_ece"]
    assert after["probability_brier"] < before["probability_brier"]
    assert after["iou_mean_error"] < 0.3 * before["iou_mean_error"]
    assert after["iou_correlation"] > 0.95 < before["iou_correlation"]


def test_every_case_weighs_the_same():
    one, other = overconfident(1, seed=0)[0], overconfident(1, seed=1)[0]
    other = dataclasses.replace(other, case="other", true_iou=0.2)
    assert to_plain(fit_calibration([one] * 9 + [other])) == pytest.approx(to_plain(fit_calibration([one, other])))


def test_the_report_is_written_with_its_numbers(tmp_path):
    report = CalibrationReport(Calibration(0.5), overconfident(), ["a", "b"])
    written = report.write(tmp_path / "report")
    assert [path.suffix for path in written] == [".json", ".md", ".png"] and all(
        path.stat().st_size for path in written
    )
    data = json.loads(written[0].read_text())
    assert data["calibration"]["mask_scale"] == 0.5 and data["fitted_on"] == ["a", "b"]
    assert data["after"]["probability_ece"] < data["before"]["probability_ece"]
    assert sum(count for count, _, _ in data["reliability"]["probability"]) == 12 * 2000
    assert f"{data['after']['probability_ece']:.3f}" in written[1].read_text()


def test_cases_are_split_by_pattern(two_cases):
    cases = find_cases(two_cases)
    fitted, judged = split_cases(cases, ["*_a"])
    assert [c.name for c in fitted] == ["case_a"] and [c.name for c in judged] == ["case_b"]
    assert split_cases(cases, []) == ([], cases)
    for patterns in (["nobody"], ["*"]):
        with pytest.raises(DatasetError, match="case_a"):
            split_cases(cases, patterns)


def test_observations_are_uncalibrated_and_leave_the_model_as_it_was(two_cases, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on a busy machine the number would change in between, and sums with it
    torch.manual_seed(0)
    model = Famsam(TINY).eval().requires_grad_(False)
    cases, options = find_cases(two_cases), CalibrationOptions(clicks=2, voxels=50)
    plain = observe(model, cases, options)
    model.calibration = Calibration(0.1, 3.0, 0.1, 3.0)
    again = observe(model, cases, options)
    assert model.calibration == Calibration(0.1, 3.0, 0.1, 3.0)
    assert [o.predicted_iou for o in again] == [o.predicted_iou for o in plain]
    assert {o.case for o in plain} == {"case_a", "case_b"} and {o.clicks for o in plain} == {1, 2}
    for o, p in zip(plain, again):
        np.testing.assert_array_equal(o.logits_N, p.logits_N)
        assert len(o.logits_N) == len(o.truth_N) <= 50 and 0 <= o.true_iou <= 1


def test_cases_that_cannot_be_used_do_not_stop_the_others(two_cases, caplog):
    torch.manual_seed(0)
    model, options = Famsam(TINY).eval().requires_grad_(False), CalibrationOptions(clicks=1, voxels=50)
    save_image(two_cases / "case_a" / "labels.nii.gz", np.zeros((12, 14, 16), np.uint8))
    (two_cases / "case_0").mkdir()
    for name in ("image.nii.gz", "labels.nii.gz"):
        (two_cases / "case_0" / name).write_bytes(b"not an image")
    cases = find_cases(two_cases)
    assert {o.case for o in observe(model, cases, options)} == {"case_b"}
    assert "Case case_0 is left out" in caplog.text and "Case case_a has no structure" in caplog.text
    with pytest.raises(DatasetError, match=r"None of 2 cases can be read .* 20 voxels.*case_0.* is not a gzip file"):
        observe(model, cases[:2], options)


def test_the_command_fits_judges_and_saves(two_cases, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    weights, calibrated = tmp_path / "tiny.safetensors", tmp_path / "out" / "calibrated.safetensors"
    save_model(Famsam(TINY), weights)
    command = [
        "calibrate",
        two_cases,
        "-o",
        tmp_path / "out",
        "--fit",
        "case_a",
        "--clicks",
        2,
        "--quiet",
        "--json",
        "--model",
        weights,
        "--save",
        calibrated,
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    assert main([str(part) for part in command]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["fitted_on"] == ["case_a"] and {o["case"] for o in summary["observations"]} == {"case_b"}
    assert load_model(calibrated, device="cpu").calibration.mask_scale == summary["calibration"]["mask_scale"] != 1.0
    assert main([str(part) for part in [*command[:4], "--fit", "nobody", "--model", weights]]) == 1
    assert "nobody" in capsys.readouterr().err
    unfitted = [*command[:4], "--model", weights, "--save", tmp_path / "same.safetensors"]
    assert main([str(part) for part in unfitted]) == 1
    assert "--fit" in capsys.readouterr().err and not (tmp_path / "same.safetensors").exists()

    (two_cases / "case_0").mkdir()
    for name in ("image.nii.gz", "labels.nii.gz"):
        (two_cases / "case_0" / name).write_bytes(b"not an image")
    assert main([str(part) for part in [*command, "--fit", "case_0"]]) == 0
    assert json.loads(capsys.readouterr().out)["fitted_on"] == ["case_a"], "what could not be read was not fitted on"
    assert main([str(part) for part in [*command, "--clicks", 0]]) == 1
    assert "at least 1 click" in capsys.readouterr().err

    def missing(*_args):
        raise MissingDependencyError("matplotlib is not installed")

    calibrated.unlink()
    monkeypatch.setattr(CalibrationReport, "_plot", missing)
    assert main([str(part) for part in command]) == 1
    assert calibrated.exists(), "a plot that cannot be drawn does not cost the weights"
