"""Distillation with teachers and students as small as they get."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from famsam.checkpoints import load_model, save_model
from famsam.errors import CheckpointError, ConfigError
from famsam.model import build_model
from famsam.model.famsam import FamsamConfig
from famsam.model.sam_config import FASTSAM3D, SAM_MED3D, DecoderConfig, Sam3DConfig, VitConfig
from famsam.training import prompting
from famsam.training.config import CONFIG_NAME, TrainConfig, config_of_run, read_part
from famsam.training.distill import (
    DistillConfig,
    Distiller,
    DistillLearner,
    copy_parameters,
    encode_with_layers,
    encoder_blocks,
    imitation_loss,
    layer_distance,
    layers_to_match,
    student_of,
    teacher_layers,
)
from famsam.training.plots import distillation_curve
from famsam.training.sample import Dice
from famsam.training.trainer import Trainer, read_log, synthetic_source

FAMSAM_TEACHER = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=4, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)
SAM_TEACHER = Sam3DConfig(
    name="sam_med3d",
    encoder=VitConfig(
        width=24,
        heads=4,
        mlp_width=32,
        out_width=48,
        blocks=("window", "global") * 3,
        window_size=3,
        patch_size=16,
        grid_size=2,
    ),
    decoder=DecoderConfig(mlp_width=16, mask_channels=8, iou_width=8),
)
TEACHERS = {"famsam": FAMSAM_TEACHER, "sam_med3d": SAM_TEACHER}
SHORT = TrainConfig(
    steps=8,
    sizes=((1.0, 32, 2),),
    targets=1,
    round_weights=(0.5, 0.5),
    warmup_steps=1,
    pool=4,
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


@pytest.fixture(scope="module", params=list(TEACHERS))
def teacher_file(request, tmp_path_factory):
    torch.manual_seed(3)
    model = build_model(request.param, TEACHERS[request.param])
    with torch.no_grad():
        for parameter in model.parameters():  # so that its answers differ from place to place
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("teachers") / f"{request.param}.safetensors"
    save_model(model, path)
    return path


@pytest.fixture
def famsam_file(tmp_path):
    torch.manual_seed(3)
    save_model(build_model("famsam", FAMSAM_TEACHER), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# --- eq. 1 and 2 ---


def test_the_schedule_of_k_is_the_papers():
    """Eq. 2 with the paper's 36 iterations and 6 layers: six of each k."""
    assert [layers_to_match(n, 36, 6) for n in range(1, 37)] == [k for k in range(1, 7) for _ in range(6)]
    for total in (7, 100):
        schedule = [layers_to_match(n, total, 6) for n in range(1, total + 1)]
        assert schedule == [math.ceil(n * 6 / total) for n in range(1, total + 1)]


def test_a_student_layer_learns_every_other_teacher_layer():
    assert teacher_layers(6, 12) == [2, 4, 6, 8, 10, 12]
    assert teacher_layers(3, 3) == [1, 2, 3] and teacher_layers(2, 5) == [2, 5]
    with pytest.raises(ConfigError, match="at least as deep"):
        teacher_layers(6, 4)


def test_the_layers_loss_is_the_mean_norm_of_the_first_k_differences(famsam_file):
    teacher = load_model(famsam_file, "cpu", "fp32")
    torch.manual_seed(0)
    student = build_model("famsam", student_of(teacher.config))
    learner = DistillLearner(student, teacher, dataclasses.replace(SHORT, steps=4), DistillConfig(layer_fraction=1.0))
    crops = torch.randn(2, 2, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    outputs = []
    with torch.no_grad():
        for model, channel in ((student, 0), (teacher, 1)):
            _, _, _, x = model.encoder.stem(crops[:, channel : channel + 1])
            outputs.append([x := block(x) for block in model.encoder.blocks])
        norms = [(outputs[0][i] - outputs[1][2 * i + 1]).flatten(1).norm(dim=1).mean() for i in range(2)]
        scale = math.sqrt(outputs[0][0][0].numel())
        for step, k in enumerate((1, 1, 2, 2)):
            loss, values = learner(crops, torch.zeros(2, 1, 16, 16, 16), Dice(0, torch.device("cpu")), step)
            assert learner.matched_layers(step) == k
            assert float(loss) == pytest.approx(float(sum(norms[:k])) / k / scale, rel=1e-4)
            assert values["layer2"] == pytest.approx(float(norms[1]) / scale, rel=1e-4), "measured before it is learnt"


def test_only_the_first_k_blocks_learn(famsam_file):
    teacher = load_model(famsam_file, "cpu", "fp32")
    student = build_model("famsam", student_of(teacher.config))
    learner = DistillLearner(student, teacher, dataclasses.replace(SHORT, steps=4), DistillConfig(layer_fraction=1.0))
    crops, dice = torch.randn(1, 2, 32, 32, 32), Dice(0, torch.device("cpu"))
    for step, learning in ((0, [True, False]), (3, [True, True])):
        learner.zero_grad(set_to_none=True)
        learner(crops, torch.zeros(1, 1, 16, 16, 16), dice, step)[0].backward()
        found = [any(p.grad is not None for p in block.parameters()) for block in encoder_blocks(student)]
        assert found == learning
        assert all(p.grad is None for p in teacher.parameters())


def test_distance_to_itself_is_nothing_and_has_a_gradient():
    layer = torch.randn(2, 2, 2, 2, 8, requires_grad=True)
    distance = layer_distance(layer.detach(), layer)
    distance.backward()
    assert float(distance.detach()) == 0 and torch.isfinite(layer.grad).all()
    zeros, threes = torch.zeros(1, 2, 2, 2, 8), torch.full((1, 2, 2, 2, 8), 3.0)
    assert float(layer_distance(zeros, threes)) == pytest.approx(3)
    assert float(layer_distance(threes, -threes, unit_scale=True)) == pytest.approx(2)
    assert float(layer_distance(10 * threes, threes, unit_scale=True)) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(layer_distance(threes, zeros, unit_scale=True))


def test_imitation_is_least_where_the_logits_agree():
    generator = torch.Generator().manual_seed(0)
    wanted = 4 * torch.randn(2, 3, 8, 8, 8, generator=generator)
    assert imitation_loss(wanted, wanted).abs().max() < 1e-6
    assert (imitation_loss(wanted + 0.5, wanted) > 1e-3).all()
    assert (imitation_loss(-wanted, wanted) > imitation_loss(wanted + 0.5, wanted)).all()
    logits = wanted.clone().requires_grad_(True)
    imitation_loss(logits, wanted).sum().backward()
    assert logits.grad.abs().max() < 1e-6


# --- students ---


def test_the_published_student_is_what_suits_the_published_teacher():
    assert student_of(SAM_MED3D) == FASTSAM3D
    assert student_of(dataclasses.replace(FamsamConfig(), depth=12)) == FamsamConfig()


def test_what_lies_outside_the_blocks_is_copied(teacher_file):
    teacher = load_model(teacher_file, "cpu", "fp32")
    student = prompting.build(student_of(teacher.config))
    copied = copy_parameters(teacher, student)
    theirs, own = teacher.state_dict(), student.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in copied)
    left = set(own) - set(copied)
    assert left and all("encoder.blocks." in name for name in left)


def test_a_student_of_another_width_is_projected_in_the_same_axes(tmp_path):
    teacher = prompting.build(SAM_TEACHER)
    _, layers = encode_with_layers(teacher, torch.randn(1, 1, 32, 32, 32))
    assert len(layers) == 6 and layers[0].shape == (1, 2, 2, 2, 24)
    student = prompting.build(dataclasses.replace(FAMSAM_TEACHER, depth=3))
    learner = DistillLearner(student, teacher, SHORT, DistillConfig())
    assert [tuple(p.weight.shape) for p in learner.projections] == [(24, 16)] * 3
    crop = torch.zeros(1, 1, 32, 32, 32)
    crop[:, :, 16:, :16, :16] = 1  # the published encoder gets the axes x, y, z
    with torch.no_grad():
        change = encode_with_layers(teacher, crop)[1][0] - encode_with_layers(teacher, torch.zeros_like(crop))[1][0]
    assert change.abs().sum(-1).argmax() == 4, "the token at z = 1, y = 0, x = 0"


# --- runs ---


def measured(distiller, step):
    """What the log would hold for four fixed crops, in the part of the run that ``step`` belongs to."""
    crops, targets = distiller.pool.batch(32, 4, Dice(7, torch.device("cpu")))
    with torch.no_grad():
        return distiller.learner(crops, targets, Dice(1, torch.device("cpu")), step)[1]


LEARNING = dataclasses.replace(
    SHORT, steps=40, fresh=0.001, round_weights=(1.0,), mask_chance=0.0, checkpoint_every=100
)


def test_layers_come_close_to_the_teachers_which_is_left_alone(teacher_file, tmp_path):
    config = dataclasses.replace(LEARNING, learning_rate=0.005, steps=60)
    if teacher_file.stem == "sam_med3d":
        config = dataclasses.replace(LEARNING, learning_rate=0.02, steps=80)
    distill = DistillConfig(teacher=str(teacher_file), layer_fraction=1.0)
    distiller = Distiller(tmp_path, synthetic_source, distill, config)
    teacher, start = parameters(distiller.teacher).clone(), measured(distiller, 0)
    distiller.run()
    torch.testing.assert_close(parameters(distiller.teacher), teacher, rtol=0, atol=0)
    end = measured(distiller, 0)
    layers = [name for name in end if name.startswith("layer")]
    assert len(layers) == len(encoder_blocks(distiller.model))
    assert end["layer1"] < 0.92 * start["layer1"] and all(end[name] < start[name] for name in layers)


def test_masks_come_close_to_the_teachers(teacher_file, tmp_path):
    distill = DistillConfig(teacher=str(teacher_file), layer_fraction=0.0, label_weight=0.0, copy=False)
    config = dataclasses.replace(LEARNING, steps=25, learning_rate=0.005)
    distiller = Distiller(tmp_path, synthetic_source, distill, config)
    start = measured(distiller, 0)
    distiller.run()
    assert 0 < measured(distiller, 0)["logits"] < 0.6 * start["logits"]


def test_a_run_logs_k_and_every_layer_and_leaves_a_student_that_loads(teacher_file, tmp_path):
    config = dataclasses.replace(SHORT, validate_every=2)
    distiller = Distiller(tmp_path / "run", synthetic_source, DistillConfig(teacher=str(teacher_file)), config)
    distiller.run()
    rows = list(read_log(tmp_path / "run"))
    depth = len(encoder_blocks(distiller.model))
    assert [row["k"] for row in rows] == [layers_to_match(2, 4, depth), depth, 0, 0]
    assert all(math.isnan(row["logits"]) and row[f"layer{depth}"] > 0 for row in rows[:2])
    assert all(math.isfinite(value) for row in rows[2:] for value in row.values())
    assert distillation_curve(tmp_path / "run").read_bytes().startswith(b"\x89PNG")
    save_model(distiller.averaged_model(), tmp_path / "student.safetensors", stored="fp16")
    student = load_model(tmp_path / "student.safetensors", "cpu")
    assert student.config == student_of(distiller.teacher.config)
    assert config_of_run(tmp_path / "run") == (config, student.config)


def test_the_layers_have_their_share_of_a_budget_of_time(teacher_file, tmp_path):
    config = dataclasses.replace(SHORT, steps=1000, minutes=1.0, validate_every=1)
    distiller = Distiller(tmp_path / "run", synthetic_source, DistillConfig(teacher=str(teacher_file)), config)
    depth = len(encoder_blocks(distiller.model))
    step = distiller._one_step

    def ten_seconds():
        values = step()
        distiller.seconds = 10.0 * (distiller.step + 1)
        return values

    distiller._one_step = ten_seconds
    distiller.run()
    assert [row["k"] for row in read_log(tmp_path / "run")] == [
        *(layers_to_match(tenth_of_second, 300, depth) for tenth_of_second in (1, 101, 201)),
        *(0, 0, 0),
    ]


def test_a_distillation_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path):
    torch.manual_seed(3)
    save_model(prompting.build(SAM_TEACHER), tmp_path / "teacher.safetensors")
    distill = DistillConfig(teacher=str(tmp_path / "teacher.safetensors"))
    wide = dataclasses.replace(FAMSAM_TEACHER, depth=3)
    whole = Distiller(tmp_path / "whole", synthetic_source, distill, SHORT, wide)
    whole.run()
    cut = Distiller(tmp_path / "cut", synthetic_source, distill, SHORT, wide)
    for _ in range(5):
        cut._one_step()
        cut.step += 1
    cut.save()
    resumed = Distiller(tmp_path / "cut", synthetic_source, distill)
    assert resumed.step == 5 and resumed.model.config == wide and resumed.config == SHORT
    resumed.run()
    torch.testing.assert_close(parameters(resumed.learner), parameters(whole.learner), rtol=0, atol=1e-7)


def test_without_layers_and_logits_it_is_training_from_scratch(famsam_file, tmp_path):
    """The baseline that a distillation is compared with: same student, same budget, no teacher."""
    alone = DistillConfig(teacher=str(famsam_file), layer_fraction=0, logit_weight=0, label_weight=1, copy=False)
    config = dataclasses.replace(SHORT, steps=3)
    distiller = Distiller(tmp_path / "a", synthetic_source, alone, config)
    trainer = Trainer(tmp_path / "b", synthetic_source, config, distiller.model.config)
    start = parameters(trainer.model).clone()
    torch.testing.assert_close(parameters(distiller.model), start, rtol=0, atol=0)
    distiller.run()
    trainer.run()
    torch.testing.assert_close(parameters(distiller.model), parameters(trainer.model), rtol=0, atol=1e-7)
    assert (parameters(trainer.model) - start).abs().max() > 1e-4


def test_networks_that_do_not_go_together_are_refused(famsam_file, tmp_path):
    with pytest.raises(ConfigError, match="weights file"):
        Distiller(tmp_path / "a", synthetic_source, DistillConfig(), SHORT)
    with pytest.raises(CheckpointError, match="no weights file"):
        Distiller(tmp_path / "b", synthetic_source, DistillConfig(teacher=str(tmp_path / "none.pth")), SHORT)
    with pytest.raises(ConfigError, match="crops of 32 voxels only"):
        sizes = ((1.0, 64, 1),)
        config = dataclasses.replace(SHORT, sizes=sizes)
        Distiller(tmp_path / "c", synthetic_source, DistillConfig(teacher=str(famsam_file)), config, SAM_TEACHER)
    encoder = dataclasses.replace(SAM_TEACHER.encoder, patch_size=8, grid_size=4, window_size=4)
    finer = dataclasses.replace(SAM_TEACHER, encoder=dataclasses.replace(encoder, blocks=("global",) * 2))
    with pytest.raises(ConfigError, match="same grid of tokens"):
        Distiller(tmp_path / "d", synthetic_source, DistillConfig(teacher=str(famsam_file)), SHORT, finer).run()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layer_fraction": 1.1}, "layer_fraction"),
        ({"logit_weight": -1.0}, "logit_weight"),
        ({"logit_weight": 0.0, "label_weight": 0.0}, "not both 0"),
    ],
)
def test_impossible_distillations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**change)


def test_the_settings_name_the_teacher(famsam_file, tmp_path):
    distill = DistillConfig(teacher=str(famsam_file), layer_fraction=0.25)
    Distiller(tmp_path / "run", synthetic_source, distill, SHORT)
    assert json.loads((tmp_path / "run" / CONFIG_NAME).read_text())["distill"]["layer_fraction"] == 0.25
    assert read_part(tmp_path / "run" / CONFIG_NAME, "distill", DistillConfig()) == distill
