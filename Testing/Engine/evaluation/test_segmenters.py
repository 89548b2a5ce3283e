from __future__ import annotations

import numpy as np
import pytest
import torch
from famsam.evaluation.harness import EvaluationOptions, evaluate
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.model.registry import build_model
from famsam.session import Session
from famsam.volume import Volume


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("famsam").eval().requires_grad_(False)


def test_the_session_answers_as_it_does_without_the_adapter(model):
    voxels = np.random.default_rng(0).normal(100, 10, (12, 14, 16)).astype(np.float32)
    volume = Volume(voxels, np.diag([-1.0, -1.0, 2.0, 1.0]))
    clicks = [((-8.0, -7.0, 12.0), True), ((-3.0, -3.0, 4.0), False)]
    session = Session(model)
    session.set_image(volume)
    expected = [session.add_point(point, positive=positive).mask_zyx for point, positive in clicks]

    segmenter = SessionSegmenter(model)
    assert segmenter.name == "famsam"
    for _ in range(2):  # a new start forgets the clicks before it
        segmenter.start(volume)
        for (point, positive), mask_zyx in zip(clicks, expected):
            answer = segmenter.click(point, positive)
            assert answer.dtype == bool
            assert np.array_equal(answer, mask_zyx)


def test_two_models_in_one_evaluation(two_cases, model):
    segmenters = [SessionSegmenter(model, "first"), SessionSegmenter(model, "second")]
    report = evaluate(two_cases, segmenters, EvaluationOptions(clicks=2))
    assert report.methods == ["first", "second"]
    assert report.summary("first")["failures"] == 0
    assert report.summary("first")["dice"] == report.summary("second")["dice"]
