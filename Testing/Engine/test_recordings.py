"""Recordings on the CPU: what is "recorded" there is called again, and its result put where the first one was, as a
CUDA graph would."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

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


def test_every_set_of_shapes_that_comes_again_is_recorded_once():
    recorder = Recorder()
    doubled = Recordings(lambda x, extra: 2 * x if extra is None else x + extra, recorder)
    for value in (1.0, 2.0, 3.0):
        assert doubled(torch.full((2,), value), None).tolist() == [2 * value] * 2
    for _ in range(2):
        assert doubled(torch.ones(2), torch.ones(2)).tolist() == [2, 2], "another function of the arguments' kinds"
    assert (recorder.recorded, recorder.replayed) == (2, 3)
    for size in (3, 4, 5):
        assert doubled(torch.ones(size), None).tolist() == [2] * size
    assert recorder.recorded == 2, "what may never come again is only called"


def test_results_and_arguments_are_not_written_over_by_later_calls():
    doubled = Recordings(lambda x: 2 * x, Recorder())
    given = torch.ones(2)
    results = [doubled(given) for _ in range(2)]
    doubled(torch.full((2,), 5.0))
    assert [result.tolist() for result in results] == [[2, 2]] * 2 and given.tolist() == [1, 1]


def test_one_function_at_a_time_plays_since_all_share_memory():
    """Two recordings whose results lie in the same memory, as those of one pool of CUDA graphs may."""
    memory = torch.zeros(1)

    def recorder(call):
        def replay():
            memory.copy_(call())
            time.sleep(0.002)

        return replay, memory

    functions = [Recordings(lambda x, add=add: x + add, recorder) for add in (1, 2)]
    for function in functions:
        function(torch.zeros(1))  # seen
    with ThreadPoolExecutor(2) as threads:
        sums = list(threads.map(lambda n: functions[n % 2](torch.zeros(1)).item(), range(20)))
    assert sums == [1, 2] * 10


def test_the_least_recently_used_recording_goes_first():
    recorder = Recorder()
    doubled = Recordings(lambda x: 2 * x, recorder, most=2)
    for size in (1, 2, 3, 1, 2, 1, 3, 1, 2):
        doubled(torch.ones(size))
    assert recorder.recorded == 4, "the second is made again"


def test_what_cannot_be_recorded_is_called(caplog):
    def refuses(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    doubled = Recordings(lambda x: 2 * x, refuses)
    assert [doubled(torch.ones(1)).item() for _ in range(3)] == [2, 2, 2]
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
    for _ in range(2):
        embeddings = [model.encode(crop) for crop in crops]
        for embedding, (logits, quality) in zip(embeddings, expected):
            found = model.decode(embedding, more[None], of_them[None], prior)
            torch.testing.assert_close(found[0], logits)
            torch.testing.assert_close(found[1], quality)
    assert recorder.recorded == 2 and recorder.replayed == 6
    with unrecorded(model):
        model.encode(crops[0])
    assert recorder.replayed == 6
    model.encode(crops[0])
    assert recorder.replayed == 7


@pytest.mark.parametrize("count, wanted", [(64, 64), (65, 128), (128, 128), (129, 192)])
def test_many_prompts_come_in_few_numbers_too(count, wanted):
    points, labels = padded(torch.ones(count, 3), torch.ones(count, dtype=torch.long))
    assert len(points) == len(labels) == wanted
    assert int((labels == -1).sum()) == wanted - count
