from __future__ import annotations

import math

import numpy as np
import pytest
from Engine.evaluation.samples import Failing, Painter, Stubborn, labels_of_case_b, save_image
from famsam.errors import ConfigError, DatasetError
from famsam.evaluation.dataset import DatasetOptions
from famsam.evaluation.harness import EvaluationOptions, evaluate


def of(report, method, case, label):
    return next(
        result for result in report.results if (result.method, result.case, result.label) == (method, case, label)
    )


def test_a_perfect_and_a_stubborn_method_side_by_side(two_cases, oracle):
    report = evaluate(two_cases, [oracle, Stubborn()], EvaluationOptions(clicks=4))
    assert report.methods == ["oracle", "stubborn"]
    assert report.cases == ["case_a", "case_b"]
    assert len(report.results) == 2 * 3

    perfect = of(report, "oracle", "case_a", 1)
    assert (perfect.structure, perfect.voxels, perfect.volume_ml) == ("cube", 27, pytest.approx(0.054))
    assert perfect.dice == perfect.nsd == [1, 1, 1, 1]
    assert perfect.hausdorff95_mm == [0, 0, 0, 0]
    assert len(perfect.clicks) == 1  # nothing is left to correct
    assert perfect.clicks[0].point_ras_mm == (3, 3, 6)  # the centre voxel (3, 3, 3) at a spacing of 1 x 1 x 2 mm
    assert perfect.clicks[0].positive
    assert perfect.clicks[0].latency_ms >= 0
    assert perfect.clicks_to_dice == {"0.80": 1, "0.90": 1}

    wrong = of(report, "stubborn", "case_b", 2)
    assert wrong.dice == [0, 0, 0, 0]
    assert len(wrong.clicks) == 4
    assert {click.point_ras_mm for click in wrong.clicks} == {(5, 5, 10)}
    assert wrong.clicks_to_dice == {"0.80": 5, "0.90": 5}
    assert wrong.failure is None


def test_unsteady_clicks_are_the_same_for_every_method_and_in_every_run(two_cases):
    class Other(Stubborn):
        name = "other"

    methods = [Stubborn(), Other()]
    steady, first, again, second = (
        evaluate(two_cases, methods, EvaluationOptions(clicks=2, unsteady=seed)) for seed in (None, 1, 1, 2)
    )
    places = [
        [[click.point_ras_mm for click in result.clicks] for result in report.results]
        for report in (steady, first, again, second)
    ]
    assert places[1] == places[2] and places[0] != places[1] != places[3]
    assert places[1][0::2] == places[1][1::2]
    assert first.options["unsteady"] == 1


def test_every_click_is_scored_and_corrects_what_is_wrong(two_cases):
    report = evaluate(two_cases, [Painter()], EvaluationOptions(clicks=10, tolerance_mm=0.5))
    bar = of(report, "painter", "case_a", 4)  # 3 x 3 x 9 voxels: three cubes of the painter's
    assert bar.dice == pytest.approx([2 * 27 / (27 + 81), 2 * 54 / (54 + 81), 1, *[1] * 7])
    assert all(click.positive for click in bar.clicks)
    assert bar.clicks_to_dice == {"0.80": 2, "0.90": 3}
    assert bar.nsd[0] < bar.nsd[1] < bar.nsd[2] == 1
    assert bar.hausdorff95_mm == pytest.approx([3, 3, *[0] * 8])


def test_what_is_painted_too_much_is_taken_back(two_cases):
    class Generous(Painter):
        name = "generous"

        def click(self, point_ras_mm, positive):
            if not self._mask_zyx.any():
                self._mask_zyx[:, 8:11] = True  # the bar of label 4 and what lies beside it
                return self._mask_zyx.copy()
            return super().click(point_ras_mm, positive)

    options = EvaluationOptions(dataset=DatasetOptions(include=("case_a",)), clicks=4)
    bar = of(evaluate(two_cases, [Generous()], options), "generous", "case_a", 4)
    assert [click.positive for click in bar.clicks] == [True, False, False, False]
    assert bar.dice == sorted(bar.dice)
    assert bar.dice[0] == pytest.approx(2 * 81 / (81 + 12 * 3 * 16))
    assert bar.dice[1] == pytest.approx(2 * 81 / (81 + 12 * 3 * 16 - 27))


def test_means_are_over_structures_then_cases(two_cases):
    report = evaluate(two_cases, [Painter()], EvaluationOptions(clicks=2))
    first_click = {(result.case, result.label): result.dice[0] for result in report.results}
    assert first_click[("case_a", 1)] == 1
    mean_a = (1 + first_click[("case_a", 4)]) / 2
    assert report.case_scores("painter")["case_a"]["dice"][0] == pytest.approx(mean_a)
    summary = report.summary("painter")
    assert summary["dice"][0] == pytest.approx((mean_a + first_click[("case_b", 2)]) / 2)
    assert (summary["cases"], summary["structures"], summary["failures"]) == (2, 3, 0)


def test_a_method_that_raises_counts_as_failed_and_the_others_go_on(two_cases, caplog):
    report = evaluate(two_cases, [Failing(), Painter()], EvaluationOptions(clicks=3))
    failed, painted = of(report, "failing", "case_a", 4), of(report, "painter", "case_a", 4)
    assert failed.failure == "RuntimeError at click 2: out of paint"
    assert failed.dice == [painted.dice[0], 0, 0]
    assert failed.nsd == [painted.nsd[0], 0, 0]
    assert failed.hausdorff95_mm[1:] == [math.inf, math.inf]
    assert failed.clicks_to_dice == {"0.80": 4, "0.90": 4}
    assert painted.dice[2] == 1
    assert report.summary("failing")["failures"] == 2
    assert "out of paint" in caplog.text


@pytest.mark.parametrize("answer", [None, np.zeros((2, 2, 2), bool), np.zeros((10, 11, 12), np.uint8)])
def test_an_answer_that_is_no_mask_counts_as_failed(two_cases, answer):
    class Wrong(Stubborn):
        def click(self, point_ras_mm, positive):
            return answer

    options = EvaluationOptions(dataset=DatasetOptions(include=("case_b",)), clicks=2)
    (result,) = evaluate(two_cases, [Wrong()], options).results
    assert "expected a boolean mask of shape (10, 11, 12), got" in result.failure
    assert result.dice == [0, 0]


def test_a_method_that_cannot_start_counts_as_failed(two_cases):
    class Unready(Stubborn):
        def start(self, volume):
            raise OSError("no memory")

    report = evaluate(two_cases, [Unready()], EvaluationOptions(clicks=2))
    assert report.summary("stubborn")["failures"] == 3
    assert report.summary("stubborn")["dice"] == [0, 0]
    assert report.summary("stubborn")["first_click_ms"] == {"median": None, "p95": None}


def test_the_volume_of_a_structure_in_a_tilted_scan(tmp_path):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 1.5  # as a tilted gantry leaves it: slices 2 mm apart, 2.5 mm along their slanted axis
    for name, labels in (("image", labels_of_case_b() + 10), ("labels", labels_of_case_b())):
        save_image(tmp_path / "tilted" / f"{name}.nii.gz", labels, affine)
    (result,) = evaluate(tmp_path, [Painter()], EvaluationOptions(clicks=1)).results
    assert (result.voxels, result.volume_ml) == (125, pytest.approx(125 * 2 / 1000))


def test_a_picture_of_every_result_worst_first(two_cases, oracle):
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib")
    folder = two_cases / "more" / "pictures"
    evaluate(two_cases, [oracle, Stubborn()], EvaluationOptions(clicks=2, pictures=folder))
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == 6
    assert files[0] == "0.00_case_a_1_stubborn.png"
    assert files[-1] == "1.00_case_b_2_oracle.png"


def test_pictures_that_cannot_be_written_do_not_cost_the_scores(two_cases, oracle, monkeypatch, caplog):
    def full(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("famsam.evaluation.harness.three_plane_picture", full)
    report = evaluate(two_cases, [oracle], EvaluationOptions(clicks=1, pictures=two_cases / "pictures"))
    assert [result.dice for result in report.results] == [[1], [1], [1]]
    assert "case_b, label 2 has no picture: no space left on device" in caplog.text


def test_weak_targets_are_found_by_their_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib")
    from Benchmarks.weak_targets import weak_pictures

    for name in ("0.70_sts_01_mr_1_famsam", "0.52_b.1_2_famsam", "0.90_b_3_famsam", "0.61_sts_01_mr_1_my_run_2",
                 "0.10_b_12_region-growing"):  # fmt: skip
        (tmp_path / f"{name}.png").touch()
    found = {method: weak_pictures(tmp_path, 0.8, method) for method in ("famsam", "my_run_2", "region growing")}
    assert [(score, case) for score, case, _ in found["famsam"]] == [(0.52, "b.1"), (0.70, "sts_01_mr")]
    assert [(score, case) for score, case, _ in found["my_run_2"]] == [(0.61, "sts_01_mr")]
    assert [(score, case) for score, case, _ in found["region growing"]] == [(0.10, "b")]
    with pytest.raises(SystemExit, match="of the method 'run'"):
        weak_pictures(tmp_path, 0.8, "run")


def test_the_progress_bar_goes_to_standard_error_and_only_if_asked(two_cases, oracle, capsys):
    evaluate(two_cases, [oracle], EvaluationOptions(clicks=1))
    assert capsys.readouterr() == ("", "")
    evaluate(two_cases, [oracle], EvaluationOptions(clicks=1, progress=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err


def test_a_case_that_cannot_be_read_is_left_out_and_the_others_go_on(two_cases, oracle, caplog):
    (two_cases / "case_a" / "image.nii.gz").write_bytes(b"not an image")
    report = evaluate(two_cases, [oracle], EvaluationOptions(clicks=1))
    assert report.cases == ["case_b"] and report.summary("oracle")["cases"] == 1
    assert list(report.unread) == list(report.to_dict()["unread"]) == ["case_a"]
    assert "image.nii.gz cannot be used" in report.unread["case_a"]
    assert "Case case_a is left out: " in caplog.text
    assert "Left out: Case case_a: image.nii.gz cannot be used" in report.to_markdown()
    (two_cases / "case_b" / "labels.nii.gz").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"None of the 2 cases .* can be read\. Case case_a: image\.nii\.gz"):
        evaluate(two_cases, [oracle])


def test_a_case_without_structures_does_not_stop_the_others(two_cases, oracle, caplog):
    save_image(two_cases / "case_a" / "labels.nii.gz", np.zeros((12, 14, 16), np.uint8))
    report = evaluate(two_cases, [oracle], EvaluationOptions(clicks=1))
    assert report.cases == ["case_b"] and report.unread == {}
    assert "Case case_a has no structure" in caplog.text


def test_unusable_requests(two_cases, oracle):
    with pytest.raises(ConfigError, match="at least one method"):
        evaluate(two_cases, [])
    with pytest.raises(ConfigError, match="different names"):
        evaluate(two_cases, [Stubborn(), Stubborn()])
    with pytest.raises(ConfigError, match="at least 1 click"):
        EvaluationOptions(clicks=0)
    with pytest.raises(ConfigError, match="above 0 mm"):
        EvaluationOptions(tolerance_mm=float("nan"))
    with pytest.raises(DatasetError, match="No structure of at least 9999 voxels"):
        evaluate(two_cases, [oracle], EvaluationOptions(dataset=DatasetOptions(min_voxels=9999)))
