"""The trainer on a network and crops as small as they get."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from famsam.checkpoints import load_model, save_model
from famsam.errors import CheckpointError, ConfigError, DatasetError
from famsam.model.base import Embedding
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.model.sam_config import FASTSAM3D, SAM_MED3D
from famsam.training.config import TrainConfig, config_of_run, config_to_dict, read_config
from famsam.training.learner import Plan, label_loss, rounds_of_clicks, training_loss, validation_scores
from famsam.training.pool import CropPool, _turned
from famsam.training.prompting import expand
from famsam.training.sample import Dice, Sample
from famsam.training.trainer import MixedSource, Trainer, read_log, synthetic_source

CPU = torch.device("cpu")
TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)
SHORT = TrainConfig(
    steps=6,
    sizes=((1.0, 32, 2),),
    targets=2,
    round_weights=(0.5, 0.5),
    warmup_steps=2,
    pool=8,
    fresh=0.5,
    precision="fp32",
    validate_every=100,
    validation_batches=1,
    checkpoint_every=3,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def averaged(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.averaged_model().parameters()])


def ball_source(size, dice):
    """A bright ball somewhere in the dark."""
    z, y, x = torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")
    centre = [dice.uniform(0.35 * size, 0.65 * size) for _ in range(3)]
    labels = ((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < (0.22 * size) ** 2).long()
    image = labels + 0.05 * dice.normal(size, size, size)
    return Sample(image, torch.ones_like(labels, dtype=torch.bool), labels, [0, 0])


# --- resuming ---


class PowerCut(Exception):
    """What ends a run at any moment."""


def cut_off(trainer, after_steps):
    """Run as usual until the power fails in the step after so many."""
    step = trainer._one_step

    def failing():
        if trainer.step >= after_steps:
            raise PowerCut
        return step()

    trainer._one_step = failing
    with pytest.raises(PowerCut):
        trainer.run()


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path, optimiser):
    config = dataclasses.replace(SHORT, optimiser=optimiser, sizes=((0.7, 32, 2), (1.0, 64, 1)), validate_every=2)
    whole = Trainer(tmp_path / "whole", synthetic_source, config, TINY)
    whole.run()
    cut_off(Trainer(tmp_path / "cut", synthetic_source, config, TINY), after_steps=4)
    resumed = Trainer(tmp_path / "cut", synthetic_source)
    assert resumed.step == 3 and resumed.config == config and resumed.model.config == TINY
    resumed.run()
    assert resumed.step == whole.step == 6
    torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0, atol=1e-7)
    torch.testing.assert_close(averaged(resumed), averaged(whole), rtol=0, atol=1e-7)
    curves = [[{**row, "seconds": 0} for row in read_log(tmp_path / name)] for name in ("whole", "cut")]
    assert curves[0] == curves[1] and [row["step"] for row in curves[0]] == [2, 4, 6], "step 4 was logged, then lost"


def test_muon_learns_kernels_and_adamw_the_rest(tmp_path):
    trainer = Trainer(tmp_path, ball_source, dataclasses.replace(SHORT, optimiser="muon"), TINY)
    adamw, muon = trainer.optimisers
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    learnt = [{names[id(p)] for group in o.param_groups for p in group["params"]} for o in (adamw, muon)]
    assert learnt[0] | learnt[1] == set(names.values()) and not learnt[0] & learnt[1]
    assert {"encoder.blocks.0.mlp.0.weight", "decoder.maps4.weight"} <= learnt[1]
    assert all("weight" in name for name in learnt[1]) and "decoder.masks.bias" in learnt[0]
    assert {"encoder.blocks.0.position.weight", "decoder.quality.0.weight"} <= learnt[0], "depthwise; a judge"


def test_a_run_may_start_from_weights_of_a_smaller_network(tmp_path):
    before = Famsam(dataclasses.replace(TINY, far_reaching=False)).eval()
    save_model(before, tmp_path / "before.safetensors")
    trainer = Trainer(tmp_path / "run", ball_source, SHORT, TINY, start=tmp_path / "before.safetensors")
    crop = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clicks, labels = torch.tensor([[[8.0, 20.0, 12.0], [25.0, 3.0, 9.0]]]), torch.tensor([[1, 0]])
    found = [m.decode(m.encode(crop), clicks, labels) for m in (before, trainer.model.eval(), trainer.averaged_model())]
    for logits, quality in found[1:]:
        torch.testing.assert_close(logits, found[0][0])
        torch.testing.assert_close(quality, found[0][1])
    trainer.run()
    assert (trainer.model.decoder.maps4.weight[:, -4:] != 0).any(), "the further channels learn"


def test_weights_of_another_network_are_no_start(tmp_path):
    save_model(Famsam(dataclasses.replace(TINY, token_channels=32)), tmp_path / "wider.safetensors")
    with pytest.raises(ConfigError, match="a network that this one contains, got encoder"):
        Trainer(tmp_path / "run", ball_source, SHORT, TINY, start=tmp_path / "wider.safetensors")


def test_the_seed_decides_everything(tmp_path):
    two_steps = dataclasses.replace(SHORT, steps=2)
    ends = []
    for name, config in (("a", two_steps), ("b", two_steps), ("c", dataclasses.replace(two_steps, seed=1))):
        trainer = Trainer(tmp_path / name, ball_source, config, TINY)
        trainer.run()
        ends.append(parameters(trainer))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-7)
    assert (ends[0] - ends[2]).abs().max() > 1e-4


def test_checkpoints_without_a_pool_still_load(tmp_path):
    trainer = Trainer(tmp_path, ball_source, SHORT, TINY)
    trainer.run()
    state = torch.load(trainer.checkpoint_path, weights_only=True)
    del state["pool"]
    torch.save(state, trainer.checkpoint_path)
    resumed = Trainer(tmp_path, ball_source, dataclasses.replace(SHORT, steps=7))
    resumed.run()
    assert resumed.step == 7


def test_a_time_limit_leaves_a_checkpoint(tmp_path):
    trainer = Trainer(tmp_path, ball_source, SHORT, TINY)
    trainer.run(time_limit_s=0)
    assert trainer.step == 0 and trainer.checkpoint_path.exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    Trainer(tmp_path, ball_source, SHORT, TINY).save()
    other = dataclasses.replace(TINY, token_channels=32)
    with pytest.raises(CheckpointError, match="another folder"):
        Trainer(tmp_path, ball_source, SHORT, other)


# --- learning ---


def test_a_few_steps_on_one_batch_reduce_the_loss():
    torch.manual_seed(0)
    model = Famsam(TINY)
    pool = CropPool(ball_source, SHORT, model.normalise, CPU, seed=0)
    crops, targets = pool.batch(32, 2, Dice(4, CPU))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, scores = [], []
    for _ in range(25):
        loss, first, _ = training_loss(model, crops, targets, Plan(1), SHORT, Dice(3, CPU))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        scores.append(float(first))
    assert losses[-1] < 0.6 * losses[0]
    assert scores[-1] > scores[0] + 0.3


@pytest.mark.parametrize("plan", [Plan(3), Plan(3, mask=True), Plan(3, mask=True, waits=True), Plan(3, boxes=True)])
def test_every_part_that_decodes_learns(plan):
    torch.manual_seed(0)
    model = Famsam(TINY)
    crops, targets = CropPool(ball_source, SHORT, model.normalise, CPU, seed=0).batch(32, 2, Dice(0, CPU))
    loss, first, last = training_loss(model, crops, targets, plan, SHORT, Dice(1, CPU))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []
    assert 0 <= first <= 1 and 0 <= last <= 1


def test_recomputing_gives_the_same_gradients_and_keeps_less():
    """Of two decodings' activations only one is held at a time, so what is saved for the backward pass shrinks."""
    torch.manual_seed(0)
    model = Famsam(TINY)
    crops, targets = CropPool(ball_source, SHORT, model.normalise, CPU, seed=0).batch(32, 2, Dice(0, CPU))
    gradients, saved = [], []
    for recompute in (False, True):
        config = dataclasses.replace(SHORT, recompute=recompute)
        model.zero_grad(set_to_none=True)
        held: dict = {}

        def keep(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _, _ = training_loss(model, crops, targets, Plan(2), config, Dice(1, CPU))
        saved.append(sum(held.values()))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)
    assert gradients[0].abs().max() > 1e-3
    assert saved[1] < 0.5 * saved[0]


@pytest.mark.parametrize("change", [{"focal_gamma": 2.0}, {"dice_weight": 0.0}, {"foreground_weight": 4.0}])
def test_the_loss_is_the_one_that_the_configuration_names(change):
    torch.manual_seed(0)
    model = Famsam(TINY)
    crops, targets = CropPool(ball_source, SHORT, model.normalise, CPU, seed=0).batch(32, 1, Dice(0, CPU))
    with torch.no_grad():
        losses = [
            float(training_loss(model, crops, targets, Plan(1), config, Dice(1, CPU))[0])
            for config in (SHORT, dataclasses.replace(SHORT, **change))
        ]
    assert losses[0] > losses[1] + 1e-3


def test_few_targets_are_as_small_as_a_session_would_look_more_closely_at():
    def two_balls(size, dice):
        axes = torch.arange(size).float()
        labels = torch.zeros(size, size, size, dtype=torch.long)
        for label, (middle, radius) in enumerate(((10.0, 7.0), (26.0, 2.2)), 1):
            z, y, x = ((axes - middle).square().view([-1 if a == axis else 1 for a in range(3)]) for axis in range(3))
            labels[z + y + x < radius**2] = label
        return Sample(labels.float(), torch.ones_like(labels, dtype=torch.bool), labels)

    pool = CropPool(two_balls, SHORT, Famsam(TINY).normalise, CPU, seed=0)
    targets = torch.cat([pool.maker(32, number, CPU)[1] for number in range(60)])
    small = (targets.float().sum((1, 2, 3, 4)) < 20).float().mean()
    assert 0 < small < 0.3, "both were drawn equally often"


def test_what_a_click_asks_for_counts_from_the_second_click_on():
    torch.manual_seed(0)
    model = Famsam(TINY)
    crops, targets = CropPool(ball_source, SHORT, model.normalise, CPU, seed=0).batch(32, 1, Dice(0, CPU))
    with torch.no_grad():
        losses = {
            (rounds, weight): float(training_loss(
                model, crops, targets, Plan(rounds), dataclasses.replace(SHORT, clicked_weight=weight), Dice(1, CPU)
            )[0])
            for rounds in (1, 2) for weight in (0.0, 1.0)
        }
    assert losses[1, 1.0] == losses[1, 0.0]
    assert losses[2, 1.0] > losses[2, 0.0] + 1e-3


def test_what_a_session_would_not_show_is_not_learnt_from():
    """Where clicks go one way, lower logits in what was found cost nothing after a positive click elsewhere."""
    target = torch.zeros(1, 1, 16, 16, 16)
    target[..., 4:12, 4:12, 2:14] = 1
    found = torch.where(target > 0, 4.0, -4.0)
    found[..., 8:] = -4.0

    def later_loss(logits, one_way):
        answers = iter([found, logits])
        model = Famsam(TINY)
        model.decode_raw = lambda *_: (next(answers), torch.zeros(1, 1))
        embedding = Embedding(torch.zeros(1, 1, 2, 2, 2))
        config = dataclasses.replace(SHORT, one_way=one_way, clicked_weight=0.0)
        loss = label_loss(config, target)
        return float(rounds_of_clicks(model, embedding, target, Plan(2), config, Dice(0, CPU), loss)[0])

    kept = torch.where(target > 0, 4.0, -4.0)
    lost = torch.where(found > 0, -4.0, kept)
    assert later_loss(lost, one_way=True) == pytest.approx(later_loss(kept, one_way=True), abs=1e-5)
    assert later_loss(lost, one_way=False) > later_loss(kept, one_way=False) + 0.1


def test_the_foreground_may_weigh_less_in_later_rounds():
    target = torch.zeros(1, 1, 8, 8, 8)
    target[..., 4:, 4:] = 1
    decoded = torch.ones_like(target), torch.ones(1, 1)
    config = dataclasses.replace(SHORT, foreground_weight=4.0, later_foreground_weight=1.0)
    loss = label_loss(config, target)
    first, later = (float(loss(decoded, None, first)[0]) for first in (True, False))
    assert later > first + 0.1, "background that was taken for the structure counts for more"


def test_copies_of_an_embedding_lie_side_by_side():
    model = Famsam(TINY).eval()
    with torch.no_grad():
        embedding = model.encode(torch.rand(2, 1, 32, 32, 32))
    copies = expand(embedding, 3)
    assert copies.tokens.shape[0] == 6
    for field in dataclasses.fields(embedding.finer):
        one, three = getattr(embedding.finer, field.name), getattr(copies.finer, field.name)
        torch.testing.assert_close(three[:3], one[:1].expand(3, *one.shape[1:]))
        torch.testing.assert_close(three[3:], one[1:].expand(3, *one.shape[1:]))


def test_validation_gives_a_dice_a_click_and_is_repeatable():
    torch.manual_seed(0)
    model = Famsam(TINY).eval()
    batches = [CropPool(ball_source, SHORT, model.normalise, CPU, seed=5).batch(32, 2, Dice(0, CPU))]
    scores = validation_scores(model, batches, SHORT, clicks=3)
    assert len(scores) == 3 and all(0 <= score <= 1 for score in scores)
    assert scores == validation_scores(model, batches, SHORT, clicks=3)


def test_a_run_leaves_its_log_settings_and_weights_that_load(tmp_path):
    trainer = Trainer(tmp_path, ball_source, dataclasses.replace(SHORT, validate_every=4), TINY)
    trainer.run()
    rows = list(read_log(tmp_path))
    assert [row["step"] for row in rows] == [4, 6]
    assert {"loss", "first", "last", "dice1", "dice5", "seconds"} <= set(rows[0])
    assert config_of_run(tmp_path) == (trainer.config, TINY)
    save_model(trainer.averaged_model(), tmp_path / "weights.safetensors", stored="fp16")
    assert load_model(tmp_path / "weights.safetensors", "cpu").config == TINY


def test_learning_rate_warms_up_holds_and_falls_to_nothing(tmp_path):
    config = dataclasses.replace(SHORT, steps=100, warmup_steps=10, decay_fraction=0.2)
    trainer = Trainer(tmp_path, ball_source, config, TINY)
    factors = []
    for trainer.step in range(100):
        factors.append(trainer._schedule())
    assert factors[0] == pytest.approx(0.1) and factors[9:81] == pytest.approx([1.0] * 72)
    assert factors[-1] == pytest.approx(0.05) and all(b < a for a, b in zip(factors[81:], factors[82:]))


# --- the pool ---


def test_the_pool_serves_crops_with_their_own_targets():
    pool = CropPool(ball_source, SHORT, Famsam(TINY).normalise, CPU, seed=0)
    crops, targets = pool.batch(32, 3, Dice(0, CPU))
    assert crops.shape == (3, 1, 32, 32, 32) and targets.shape == (6, 1, 16, 16, 16)
    bright = torch.nn.functional.avg_pool3d((crops > 0.5).float(), 2)
    for n, target in enumerate(targets):
        overlap = (bright[n // 2] * target).sum() / target.sum()
        assert overlap > 0.6, "turned together"


@pytest.mark.parametrize("turn_chance, ways", [(0.0, 2), (1.0, 48)])
def test_crops_keep_their_orientation_unless_they_are_to_be_turned(turn_chance, ways):
    """Left and right apart: a body may be mirrored, but does not stand on its head."""
    crop = torch.arange(27.0).view(1, 3, 3, 3)
    turned = [_turned(crop, crop[None], Dice(seed, CPU), turn_chance) for seed in range(600)]
    assert all(torch.equal(one, same[0]) for one, same in turned)
    found = {tuple(one.flatten().tolist()) for one, _ in turned}
    assert len(found) == ways
    if ways == 2:
        assert found == {tuple(crop.flatten().tolist()), tuple(crop.flip(3).flatten().tolist())}


def test_the_pool_renews_itself_at_the_asked_rate():
    pool = CropPool(ball_source, dataclasses.replace(SHORT, fresh=0.5, pool=8), Famsam(TINY).normalise, CPU, seed=0)
    made = []
    for n in range(9):
        pool.batch(32, 2, Dice(n, CPU))
        made.append(pool.made)
    assert made == [2, 2, 3, 3, 4, 4, 5, 5, 6]
    for n in range(20):
        pool.batch(32, 2, Dice(n, CPU))
    assert len(pool.shelves[32].items) == 8 and max(pool.shelves[32].items) == pool.made - 1


def test_sizes_that_take_turns_keep_their_crops():
    pool = CropPool(ball_source, dataclasses.replace(SHORT, fresh=0.25, pool=8), Famsam(TINY).normalise, CPU, seed=0)
    assert pool.batch(32, 2, Dice(0, CPU))[0].shape[-1] == 32 and pool.batch(64, 2, Dice(1, CPU))[0].shape[-1] == 64
    kept = pool.shelves[32].items
    pool.batch(32, 2, Dice(2, CPU))
    assert pool.shelves[32].items == kept and set(kept).isdisjoint(pool.shelves[64].items)


def test_entries_of_the_same_fraction_share_that_part_of_the_run():
    config = dataclasses.replace(SHORT, steps=100, sizes=((0.25, 32, 4), (1.0, 32, 4), (1.0, 64, 1)))
    assert [config.sizes_at(done) for done in (0, 0.24)] == [[(32, 4)]] * 2
    assert [config.sizes_at(done) for done in (0.25, 0.99)] == [[(32, 4), (64, 1)]] * 2


def test_each_step_draws_one_of_the_sizes(tmp_path):
    sizes = ((1.0, 32, 4), (1.0, 64, 1))
    trainer = Trainer(tmp_path, ball_source, dataclasses.replace(SHORT, steps=8, sizes=sizes), TINY)
    asked, batch = [], trainer.pool.batch
    trainer.pool.batch = lambda size, count, dice: (asked.append((size, count)), batch(size, count, dice))[1]
    trainer.run()
    assert len(asked) == 8 and set(asked) == {(32, 4), (64, 1)}


def test_a_resumed_pool_goes_on_with_the_same_crops():
    pool = CropPool(ball_source, SHORT, Famsam(TINY).normalise, CPU, seed=0)
    for n in range(5):
        pool.batch(32 if n % 2 else 64, 2, Dice(n, CPU))
    resumed = CropPool(ball_source, SHORT, Famsam(TINY).normalise, CPU, seed=0)
    resumed.resume(json.loads(json.dumps(pool.state())))
    for n in range(5, 8):
        torch.testing.assert_close(resumed.batch(32, 2, Dice(n, CPU)), pool.batch(32, 2, Dice(n, CPU)), rtol=0, atol=0)


def test_worker_processes_draw_the_same_crops():
    alone = CropPool(ball_source, SHORT, Famsam(TINY).normalise, CPU, seed=0)
    helped = CropPool(ball_source, SHORT, Famsam(TINY).normalise, CPU, seed=0, workers=2)
    try:
        for n in range(4):
            expected = alone.batch(32, 2, Dice(n, CPU))
            torch.testing.assert_close(helped.batch(32, 2, Dice(n, CPU)), expected, rtol=0, atol=0)
    finally:
        helped.close()


def test_crops_that_workers_have_just_begun_are_not_served():
    config = dataclasses.replace(SHORT, pool=8, ahead=4)
    pool = CropPool(ball_source, config, Famsam(TINY).normalise, CPU, seed=0)
    served = set()
    item = pool._item
    pool._item = lambda size, number: (served.add(number), item(size, number))[1]
    for n in range(12):
        served.clear()
        pool.batch(32, 2, Dice(n, CPU))
        assert max(served) < pool.made - 4
        assert len(pool.shelves[32].items) <= 12


def test_with_little_time_what_is_drawn_is_served_and_no_more_begun_than_there_is_room():
    config = dataclasses.replace(SHORT, pool=8, ahead=3, fresh=4.0, minutes=1.0)
    pool = CropPool(ball_source, config, Famsam(TINY).normalise, CPU, seed=0, workers=1)
    try:
        pool.batch(32, 2, Dice(0, CPU))
        for n in range(1, 10):
            items = pool.shelves[32].items
            waiting = sum(not pool.shelves[32].drawn(number) for number in items)
            before = pool.made
            pool.batch(32, 2, Dice(n, CPU))
            assert pool.made - before <= max(3, 3 - waiting) and len(items) <= 11
    finally:
        pool.close()


def test_with_little_time_crops_are_renewed_even_if_none_are_drawn_ahead():
    config = dataclasses.replace(SHORT, pool=8, ahead=0, fresh=1.0, minutes=1.0)
    pool = CropPool(ball_source, config, Famsam(TINY).normalise, CPU, seed=0, workers=1)
    try:
        for n in range(6):
            pool.batch(32, 2, Dice(n, CPU))
            pool.shelves[32].items[pool.made - 1].result()  # the worker has nothing to do but what is begun next
        assert pool.made >= 2 + 4
    finally:
        pool.close()


def test_a_pool_whose_worker_is_killed_goes_on_with_the_same_crops(caplog):
    config = dataclasses.replace(SHORT, fresh=2.0)
    alone = CropPool(ball_source, config, Famsam(TINY).normalise, CPU, seed=0)
    helped = CropPool(ball_source, config, Famsam(TINY).normalise, CPU, seed=0, workers=1)
    try:
        for n in range(4):
            if n == 2:
                os.kill(helped.workers.submit(os.getpid).result(), signal.SIGTERM)
                time.sleep(0.2)
            expected = alone.batch(32, 2, Dice(n, CPU))
            torch.testing.assert_close(helped.batch(32, 2, Dice(n, CPU)), expected, rtol=0, atol=0)
    finally:
        helped.close()
    assert helped.workers is None and caplog.text.count("fewer workers") == 1


@pytest.mark.parametrize("start_method", multiprocessing.get_all_start_methods())
def test_workers_end_with_a_process_that_is_killed(start_method):
    script = f"""
from test_trainer import *

context = multiprocessing.get_context("{start_method}")
multiprocessing.get_context = lambda _: context
pool = CropPool(ball_source, SHORT, Famsam(TINY).normalise, CPU, seed=0, workers=2)
pool.batch(32, 2, Dice(0, CPU))
os._exit(9)
"""
    # A worker that is left holds the end of the pipe that is waited for.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, env=environment)
    assert ended.returncode == 9, ended.stderr


def test_processes_that_draw_crops_are_given_no_weights(tmp_path):
    trainer = Trainer(tmp_path, ball_source, SHORT, TINY)
    # Those of a GPU could not be sent, and a process that is no fork would wait for all others.
    assert len(pickle.dumps(trainer.pool.maker)) < 10_000


def test_of_the_kept_structures_some_are_served_each_time():
    def striped(size, dice):
        labels = torch.arange(size)[:, None, None].expand(size, size, size) // 8 + 1
        return Sample((labels % 2) * 1.0 + dice.uniform(0, 0.1), torch.ones_like(labels, dtype=torch.bool), labels)

    config = dataclasses.replace(SHORT, targets=1, kept_targets=4, turn_chance=0.0, fresh=0.001)
    pool = CropPool(striped, config, Famsam(TINY).normalise, CPU, seed=0)
    served = {tuple(pool.batch(32, 1, Dice(n, CPU))[1].mean((0, 1, 3, 4)).tolist()) for n in range(40)}
    (_, kept), *others = pool.shelves[32].items.values()
    assert not others and served == {tuple(one.mean((0, 2, 3)).tolist()) for one in kept} and len(served) > 1


def test_a_run_with_a_budget_of_time_ends_with_it_and_its_learning_rate_at_nothing(tmp_path):
    config = dataclasses.replace(SHORT, steps=10_000, minutes=0.02, decay_fraction=0.5, validate_every=10_000)
    trainer = Trainer(tmp_path, ball_source, config, TINY)
    trainer.run()
    assert trainer.step < 10_000 and 1.2 <= trainer.seconds < 30
    assert trainer._schedule() <= 0 and len(list(read_log(tmp_path))) == 1


def test_a_source_without_structures_is_reported():
    def empty(size, dice):
        labels = torch.zeros(size, size, size, dtype=torch.long)
        return Sample(labels.float(), torch.ones_like(labels, dtype=torch.bool), labels)

    with pytest.raises(DatasetError, match="found none"):
        CropPool(empty, SHORT, Famsam(TINY).normalise, CPU, seed=0).batch(32, 1, Dice(0, CPU))


def test_sources_are_mixed_by_weight():
    drawn = {"a": 0, "b": 0, "c": 0}

    def named(name):
        def source(size, dice):
            drawn[name] += 1

        return source

    mixed = MixedSource([named(name) for name in drawn], [0.7, 0.3, 0.0])
    dice = Dice(0, CPU)
    for _ in range(300):
        mixed(32, dice)
    assert 170 < drawn["a"] < 250 and drawn["c"] == 0
    for weights in ([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0], [1.0]):
        with pytest.raises(ConfigError, match="weight"):
            MixedSource([named(name) for name in drawn], weights)


# --- the configuration ---


@pytest.mark.parametrize(
    "change, message",
    [
        ({"optimiser": "sgd"}, "optimiser"),
        ({"precision": "fp16"}, "precision"),
        ({"steps": 0}, "steps"),
        ({"targets": 0}, "targets"),
        ({"pool": 0}, "pool"),
        ({"warmup_steps": 0}, "warmup_steps"),
        ({"validate_every": 0}, "validate_every"),
        ({"validation_batches": 0}, "validation_batches"),
        ({"fresh": 0.0}, "fresh"),
        ({"decay_fraction": 1.5}, "decay_fraction"),
        ({"ema": 1.0}, "ema"),
        ({"round_weights": ()}, "round_weights"),
        ({"round_weights": (0.0, 0.0)}, "round_weights"),
        ({"click_styles": (0.0, 0.0, 0.0)}, "click_styles"),
        ({"dice_weight": -1.0}, "dice_weight"),
        ({"foreground_weight": 0.0}, "foreground_weight"),
        ({"focal_gamma": -0.5}, "focal_gamma"),
        ({"clicked_weight": -1.0}, "clicked_weight"),
        ({"later_foreground_weight": 0.0}, "later_foreground_weight"),
        ({"sizes": ()}, "sizes"),
        ({"sizes": ((0.5, 64, 1),)}, "sizes"),
        ({"sizes": ((1.0, 48, 1),)}, "sizes"),
        ({"sizes": ((1.0, 64, 0),)}, "sizes"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**change)


@pytest.mark.parametrize("model", [TINY, SAM_MED3D, FASTSAM3D])
def test_configurations_survive_json(tmp_path, model):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_to_dict(SHORT, model)))
    assert read_config(path) == (SHORT, model)


def test_a_published_network_takes_crops_of_its_size_only(tmp_path):
    with pytest.raises(ConfigError, match="128 voxels only, got 32"):
        encoder = dataclasses.replace(FASTSAM3D.encoder, width=24, heads=2, mlp_width=8, blocks=("mlp",))
        Trainer(tmp_path, ball_source, SHORT, dataclasses.replace(FASTSAM3D, encoder=encoder))


def test_a_file_may_hold_a_part_of_the_configuration(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"train": {"steps": 3, "sizes": [[1, 32, 1]]}}')
    train, model = read_config(path)
    assert train == TrainConfig(steps=3, sizes=((1.0, 32, 1),)) and model == FamsamConfig()
    assert config_of_run(tmp_path / "not begun") == (TrainConfig(), FamsamConfig())


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "as JSON"),
        ("[]", "keys"),
        ('{"training": {}}', "keys"),
        ('{"train": 3}', "dictionary"),
        ('{"train": {"step": 3}}', "step"),
        ('{"train": {"steps": "three"}}', "steps"),
        ('{"train": {"steps": 0}}', "steps"),
        ('{"model": {"depth": 0}}', "depth"),
    ],
)
def test_damaged_configuration_files_are_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(path)
    with pytest.raises(ConfigError, match="as JSON"):
        read_config(tmp_path / "absent.json")


def test_the_average_forgets_its_start_and_ends_with_the_given_memory(tmp_path):
    trainer = Trainer(tmp_path, ball_source, dataclasses.replace(SHORT, ema=0.5), TINY)
    generator, expected = torch.Generator().manual_seed(0), None
    for n in range(12):
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        trainer.step = n
        trainer._average()
        share = 1.0 if expected is None else 1 - min(0.5, (1 + n) / (10 + n))
        expected = torch.lerp(parameters(trainer) if expected is None else expected, parameters(trainer), share)
    torch.testing.assert_close(averaged(trainer), expected)


@pytest.mark.parametrize("cut", [0, 500, -100])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path, cut):
    Trainer(tmp_path, ball_source, SHORT, TINY).run()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged or truncated .* delete it to begin"):
        Trainer(tmp_path, ball_source)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="to hold a run of this configuration"):
        Trainer(tmp_path, ball_source)


def test_a_run_that_is_cut_off_before_its_first_checkpoint_logs_each_step_once(tmp_path):
    often = dataclasses.replace(SHORT, steps=4, validate_every=1, checkpoint_every=100)
    cut_off(Trainer(tmp_path, ball_source, often, TINY), after_steps=2)
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]
    Trainer(tmp_path, ball_source).run()
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3, 4]


def test_a_log_that_a_spreadsheet_keeps_for_itself_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    """As one does on Windows; its rows are written when it lets go."""
    trainer = Trainer(tmp_path, ball_source, dataclasses.replace(SHORT, steps=3, validate_every=1), TINY)
    opened = type(tmp_path).open

    def refuse_once(path, *how, **more):
        if path.name == "log.csv" and trainer.step == 2:
            raise PermissionError(13, "Permission denied")
        return opened(path, *how, **more)

    monkeypatch.setattr(type(tmp_path), "open", refuse_once)
    trainer.run()
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3] and "open elsewhere" in caplog.text


def test_a_full_disk_leaves_the_run_as_it_was(tmp_path):
    resource = pytest.importorskip("resource")
    trainer = Trainer(tmp_path, ball_source, SHORT, TINY)
    trainer.run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (trainer.save, trainer._forget_log, lambda: Trainer(tmp_path, ball_source, SHORT)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(CheckpointError, match="what was there before is kept"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_goes_on_decays_its_weights_as_its_configuration_now_says(tmp_path):
    Trainer(tmp_path, ball_source, dataclasses.replace(SHORT, optimiser="muon", steps=1), TINY).run()
    resumed = Trainer(tmp_path, ball_source, dataclasses.replace(SHORT, optimiser="muon", weight_decay=0.5))
    groups = [group for optimiser in resumed.optimisers for group in optimiser.param_groups]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5]


def test_the_smallest_crops_are_learnt_from_in_full_precision(tmp_path):
    """Half of it gives gradients of up to 1e38 on some processors."""
    found = []
    for precision in ("bf16", "fp32"):
        trainer = Trainer(tmp_path / precision, ball_source, dataclasses.replace(SHORT, precision=precision), TINY)
        trainer._gradients()
        found.append([p.grad for p in trainer.model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_log_that_was_cut_off_is_gone_on_with(tmp_path, caplog):
    often = dataclasses.replace(SHORT, steps=4, validate_every=1, checkpoint_every=1)
    Trainer(tmp_path, ball_source, often, TINY).run()
    log = tmp_path / "log.csv"
    whole = log.read_text()
    log.write_text(whole[:-20])
    Trainer(tmp_path, ball_source, dataclasses.replace(often, steps=5)).run()
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3, 5]
    log.write_text(log.read_text()[:-1])
    Trainer(tmp_path, ball_source, dataclasses.replace(often, steps=5)).save()
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3], "the last number may have lost digits"
    log.write_text("step,seco")
    Trainer(tmp_path, ball_source, dataclasses.replace(often, steps=5))
    assert not log.exists()
    log.write_text("")
    Trainer(tmp_path, ball_source, dataclasses.replace(often, steps=6)).run()
    assert [row["step"] for row in read_log(tmp_path)] == [6]
    assert "log.csv is empty" in caplog.text
    for text in ("a,b\n1,2\n", "step,loss\nx,2\n"):
        log.write_text(text)
        with pytest.raises(ConfigError, match="to be the log of this run"):
            Trainer(tmp_path, ball_source)
