"""Recordings on the CPU: what is "recorded" there is called again, and its result put where the first one was, as a
CUDA graph would."""

from __future__ import annotations

import pytest
import torch
from famsam.calling import PROMPT_COUNTS, padded
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.recordings import Recordings, _tensors, record_calls, unrecorded

TINY = FamsamConfig(stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16))


class Recorder:
    """Counts what it recorded and what was replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, call):
        self.recorded += 1
        result = call()

        def replay():
            self.replayed += 1
            for kept, new in zip(_tensors(result), _tensors(call())):
                kept.copy_(new)

        return replay, result


def test_every_set_of_shapes_is_recorded_once():
    recorder = Recorder()
    doubled = Recordings(lambda x, extra: 2 * x if extra is None else x + extra, recorder)
    for value in (1.0, 2.0, 3.0):
        assert doubled(torch.full((2,), value), None).tolist() == [2 * value] * 2
    assert doubled(torch.ones(2), torch.ones(2)).tolist() == [2, 2], "another function of the arguments' kinds"
    assert doubled(torch.ones(3), None).tolist() == [2] * 3
    assert (recorder.recorded, recorder.replayed) == (3, 5)


def test_results_and_arguments_are_not_written_over_by_later_calls():
    doubled = Recordings(lambda x: 2 * x, Recorder())
    given = torch.ones(2)
    first = doubled(given)
    doubled(torch.full((2,), 5.0))
    assert first.tolist() == [2, 2] and given.tolist() == [1, 1]


def test_the_least_recently_used_recording_goes_first():
    recorder = Recorder()
    doubled = Recordings(lambda x: 2 * x, recorder, most=2)
    for size in (1, 2, 1, 3, 1, 2):
        doubled(torch.ones(size))
    assert recorder.recorded == 4, "the second is made again"


def test_what_cannot_be_recorded_is_called(caplog):
    def refuses(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    doubled = Recordings(lambda x: 2 * x, refuses)
    assert [doubled(torch.ones(1)).item() for _ in range(2)] == [2, 2]
    assert len(caplog.records) == 1 and "not permitted" in caplog.text


@pytest.mark.parametrize("clicks", [0, 1, 3, 4, 7])
def test_a_recorded_model_gives_what_it_gives_unrecorded(clicks):
    torch.manual_seed(0)
    model = Famsam(TINY).eval().requires_grad_(False)
    recorder = Recorder()
    crops = torch.rand(2, 1, 1, 32, 32, 32) * 2 - 1
    points, labels = torch.rand(clicks, 3) * 31, torch.randint(0, 2, (clicks,))
    prior = torch.randn(1, 1, 16, 16, 16)
    expected = [model.decode(model.encode(crop), points[None], labels[None], prior) for crop in crops]
    record_calls(model, recorder)
    more, of_them = padded(points, labels)
    assert len(of_them) in PROMPT_COUNTS
    embeddings = [model.encode(crop) for crop in crops]
    for embedding, (logits, quality) in zip(embeddings, expected):
        found = model.decode(embedding, more[None], of_them[None], prior)
        torch.testing.assert_close(found[0], logits)
        torch.testing.assert_close(found[1], quality)
    assert recorder.recorded == 2 and recorder.replayed == 4
    with unrecorded(model):
        model.encode(crops[0])
    assert recorder.replayed == 4
    model.encode(crops[0])
    assert recorder.replayed == 5


def test_more_prompts_than_are_recorded_stay_as_they_are():
    points, labels = padded(torch.zeros(65, 3), torch.ones(65, dtype=torch.long))
    assert len(points) == len(labels) == 65
