"""Evaluations that are cut off go on from the finished cases, if nothing has changed that results depend on."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from Engine.evaluation.samples import Painter, labels_of_case_a, save_image
from famsam.errors import DatasetError
from famsam.evaluation.dataset import DatasetOptions
from famsam.evaluation.harness import EvaluationOptions, evaluate
from famsam.evaluation.segmenters import SessionSegmenter, setup_of
from tiny_models import tiny_model


class Counting(Painter):
    """Counts its first clicks, and can be cut off at one."""

    name = "counting"

    def __init__(self, cut_off_at=None, setup=None):
        self.started, self._cut_off_at, self.setup = 0, cut_off_at, setup

    def start(self, volume):
        self.started += 1
        if self.started == self._cut_off_at:
            raise KeyboardInterrupt
        super().start(volume)


@pytest.fixture
def kept(two_cases):
    """A file of which an evaluation of two clicks was cut off within the second case."""
    path = two_cases.parent / "report" / "unfinished.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(two_cases, [Counting(cut_off_at=3)], EvaluationOptions(clicks=2, unfinished=path))
    return path


def gone_on(folder, path, method=None, **options):
    """(structures evaluated now, the report) of an evaluation that may go on."""
    method = method or Counting()
    report = evaluate(folder, [method], EvaluationOptions(**{"clicks": 2, "unfinished": path, **options}))
    return method.started, report


def without_latencies(report):
    rows = report.to_dict()["structures"]
    for row in rows:
        del row["start_ms"]
        for click in row["clicks"]:
            del click["latency_ms"]
    return rows


def test_it_goes_on_with_the_case_that_was_cut_off_and_says_so(two_cases, kept, caplog):
    started, report = gone_on(two_cases, kept)
    assert started == 1  # case_a has two structures, case_b one
    assert "1 of 2 cases are taken from" in caplog.text
    _, whole = gone_on(two_cases, None)
    assert without_latencies(report) == without_latencies(whole)
    assert report.results[0].clicks[0].point_ras_mm == whole.results[0].clicks[0].point_ras_mm
    assert gone_on(two_cases, kept)[0] == 0


def test_distances_to_nothing_are_kept(two_cases):
    class Erasing(Counting):
        def click(self, point_ras_mm, positive):
            return np.zeros_like(self._mask_zyx)

    path = two_cases.parent / "unfinished.jsonl"
    for expected in (3, 0):
        started, report = gone_on(two_cases, path, Erasing())
        assert started == expected
        assert report.results[0].hausdorff95_mm == [np.inf] * 2


@pytest.mark.parametrize(
    "change, what",
    [
        ({"clicks": 3}, "clicks"),
        ({"unsteady": 1}, "unsteady"),
        ({"tolerance_mm": 1.0}, "tolerance_mm"),
        ({"method": Counting(setup={"weights": "other"})}, "methods"),
    ],
)
def test_with_anything_changed_it_begins_anew_and_says_why(two_cases, kept, caplog, change, what):
    assert gone_on(two_cases, kept, **change)[0] == 3
    assert f"is of an evaluation of other {what}: this one begins anew" in caplog.text
    change.get("method", Counting()).started = 0
    assert gone_on(two_cases, kept, **change)[0] == 0


def test_with_another_version_it_begins_anew(two_cases, kept, monkeypatch, caplog):
    monkeypatch.setattr("famsam.evaluation.report.__version__", "99.0")
    assert gone_on(two_cases, kept)[0] == 3
    assert "of other versions" in caplog.text


def test_what_was_found_stays_until_the_first_case_of_the_new_evaluation(two_cases, kept):
    before = kept.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        gone_on(two_cases, kept, Counting(cut_off_at=2), clicks=3)
    assert kept.read_bytes() == before


def test_a_case_whose_files_have_changed_is_evaluated_anew(two_cases, kept):
    labels = labels_of_case_a()
    labels[labels == 4] = 0
    save_image(two_cases / "case_a" / "labels.nii.gz", labels)
    os.utime(two_cases / "case_a" / "labels.nii.gz", ns=(1, 1))
    started, report = gone_on(two_cases, kept)
    assert started == len(report.results) == 2


def test_a_line_that_was_cut_off_costs_its_case_alone(two_cases, kept):
    gone_on(two_cases, kept)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-20])
    assert gone_on(two_cases, kept)[0] == 1
    assert gone_on(two_cases, kept)[0] == 0
    kept.write_bytes(whole[10:])
    assert gone_on(two_cases, kept)[0] == 3


def test_a_case_in_which_a_method_failed_is_tried_again(two_cases):
    class Failing(Counting):
        def click(self, point_ras_mm, positive):
            if self.started == 3:
                raise MemoryError
            return super().click(point_ras_mm, positive)

    path = two_cases / "unfinished.jsonl"
    assert [gone_on(two_cases, path, Failing())[0] for _ in range(3)] == [3, 1, 0]


def test_nothing_is_kept_of_cases_without_structures(two_cases):
    path = two_cases / "unfinished.jsonl"
    with pytest.raises(DatasetError, match="No structure"):
        gone_on(two_cases, path, dataset=DatasetOptions(min_voxels=9999))
    assert not path.exists()


def test_a_full_disk_does_not_cost_the_scores(two_cases, caplog):
    (two_cases / "file").write_text("no folder")
    _, report = gone_on(two_cases, two_cases / "file" / "unfinished.jsonl")
    assert len(report.results) == 3
    assert "Case case_b is lost if the evaluation is cut off" in caplog.text


def test_a_case_that_is_gone_by_now_does_not_cost_the_scores(two_cases, caplog):
    class Removing(Counting):
        def start(self, volume):
            (two_cases / "case_a" / "image.nii.gz").unlink(missing_ok=True)
            super().start(volume)

    _, report = gone_on(two_cases, two_cases / "unfinished.jsonl", Removing())
    assert len(report.results) == 3
    assert "Case case_a is lost if the evaluation is cut off" in caplog.text


def test_a_finished_case_whose_image_is_a_broken_link_by_now_is_not_read(tmp_path):
    for kind in ("images", "labels"):
        for name in ("a", "b"):
            save_image(tmp_path / kind / f"{name}.nii.gz", labels_of_case_a())
    path = tmp_path / "unfinished.jsonl"
    gone_on(tmp_path, path)
    image = tmp_path / "images" / "a.nii.gz"
    image.rename(tmp_path / "moved.nii.gz")
    image.symlink_to(tmp_path / "nowhere")
    started, report = gone_on(tmp_path, path)
    assert started == 0 and list(report.unread) == ["a"]


def test_what_a_model_answers_with_is_told_by_its_weights_and_how_it_computes():
    model = tiny_model("fastsam3d")
    setups = [setup_of(SessionSegmenter(model))]
    next(model.parameters()).data.view(-1)[0] += 1e-3
    setups.append(setup_of(SessionSegmenter(model)))
    model.precision = "bf16"
    setups.append(setup_of(SessionSegmenter(model)))
    assert len({json.dumps(setup) for setup in setups}) == 3
    assert setup_of(SessionSegmenter(model)) == setups[-1]
