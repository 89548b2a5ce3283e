from __future__ import annotations

import argparse
import json
import os
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conformance import conformance_folder
from famsam import checkpoints
from famsam.checkpoints import convert, load_model, save_model
from famsam.errors import CheckpointError, ConfigError
from famsam.model import AttentionPattern, build_model, int8, with_attention
from famsam.model.famsam import FamsamConfig
from famsam.model.registry import config_to_dict
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import TINY, answer, tiny_model

SMALL_FAMSAM = FamsamConfig(stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, decoder_channels=(8, 8, 8))


@pytest.fixture(params=sorted(TINY))
def model(request):
    return tiny_model(request.param)


def training_checkpoint(state: dict) -> dict:
    """What the published training scripts save beside the weights."""
    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimiser = torch.optim.AdamW(parameters)
    parameters[0].sum().backward()
    optimiser.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [120, 180])
    return {
        "epoch": 84,
        "model_state_dict": state,
        "optimizer_state_dict": optimiser.state_dict(),
        "lr_scheduler_state_dict": scheduler.state_dict(),
        "losses": [0.5, 0.25],
        "best_loss": float("inf"),
        "args": argparse.Namespace(task_name="union_train", click_type="random", lr=8e-4, step_size=[120, 180]),
        "used_datas": ["data/train/liver/ct"],
    }


def with_prefix(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def part(state: dict, *prefixes: str) -> dict:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def encoder_alone(state: dict) -> dict:
    return {name[len("image_encoder.") :]: tensor for name, tensor in part(state, "image_encoder.").items()}


def saved(content: object, path):
    torch.save(content, path)
    return path


# --- everything that is published loads ---

WHOLE_FORMATS = {
    "under model_state_dict": lambda state: {"model_state_dict": state},
    "under state_dict": lambda state: {"state_dict": state},
    "plain": lambda state: state,
    "plain dict": dict,
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    "from DataParallel": lambda state: {"model_state_dict": with_prefix(state, "module.")},
    "plain from DataParallel": lambda state: with_prefix(state, "module."),
    "of a training run": training_checkpoint,
    "in half precision": lambda state: {name: tensor.half() for name, tensor in state.items()},
}


@pytest.mark.parametrize("form", WHOLE_FORMATS)
def test_a_whole_network_loads(model, form, tmp_path):
    path = saved(WHOLE_FORMATS[form](model.state_dict()), tmp_path / "checkpoint.pth")
    loaded = load_model(path, "cpu")
    assert (loaded.name, loaded.config) == (model.name, model.config)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    if form == "in half precision":
        model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    torch.testing.assert_close(answer(loaded), answer(model), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["alone", "from DataParallel", "of a training run", "with its prefix"])
def test_an_encoder_loads_with_its_teacher(form, tmp_path):
    student, teacher = tiny_model("fastsam3d", seed=1), tiny_model("sam_med3d", seed=2)
    encoder = encoder_alone(student.state_dict())
    content = {
        "alone": encoder,
        "from DataParallel": with_prefix(encoder, "module."),
        "of a training run": training_checkpoint(encoder),
        "with its prefix": part(student.state_dict(), "image_encoder."),
    }[form]
    loaded = load_model(
        saved(content, tmp_path / "student.pth"),
        "cpu",
        teacher=saved({"model_state_dict": teacher.state_dict()}, tmp_path / "teacher.pth"),
    )
    expected = {**teacher.state_dict(), **part(student.state_dict(), "image_encoder.")}
    expected = {name: tensor for name, tensor in expected.items() if name in student.state_dict()}
    student.load_state_dict(expected)
    assert loaded.name == "fastsam3d"
    torch.testing.assert_close(answer(loaded), answer(student), rtol=0, atol=0)


def test_files_in_the_old_layout_of_pytorch_load(model, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(training_checkpoint(model.state_dict()), path, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(answer(load_model(path, "cpu")), answer(model), rtol=0, atol=0)


def test_published_full_sizes_are_inferred_from_names_and_shapes():
    from famsam.model.sam_config import FASTSAM3D, SAM_MED3D
    from famsam.model.sam_layout import infer_config

    for config in (SAM_MED3D, FASTSAM3D):
        with torch.device("meta"):
            state = build_model(config.name, config).state_dict()
        assert infer_config(state) == config


# --- safetensors of our own ---


def test_own_files_keep_weights_config_and_provenance(model, tmp_path):
    variant = build_model(model.name, with_attention(model.config, AttentionPattern(16, 2))).eval()
    variant.load_state_dict(model.state_dict())
    path = tmp_path / "own.safetensors"
    save_model(variant, path, {"trained_on": "nothing"})
    loaded = load_model(path, "cpu")
    assert loaded.config == variant.config != model.config
    torch.testing.assert_close(answer(loaded), answer(variant), rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert file.metadata()["trained_on"] == "nothing"
        assert json.loads(file.metadata()["famsam_config"])["model"] == model.name
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.safetensors"]


def test_weights_are_for_whoever_may_read_a_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        save_model(build_model("famsam", SMALL_FAMSAM), tmp_path / "W.SafeTensors")
    finally:
        os.umask(before)
    assert (tmp_path / "W.SafeTensors").stat().st_mode & 0o777 == 0o640
    assert load_model(tmp_path / "W.SafeTensors", "cpu").config == SMALL_FAMSAM


@pytest.mark.parametrize("name", ["weights", "weights.txt", "weights.pth"])
def test_weights_are_not_saved_under_a_name_that_is_not_loaded(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"must be a \.safetensors file"):
        save_model(build_model("famsam", SMALL_FAMSAM), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_half_precision_halves_the_file_and_loads_as_fp32(tmp_path):
    torch.manual_seed(0)
    model = build_model("famsam", SMALL_FAMSAM)
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_model(model, whole)
    save_model(model, half, stored="fp16")
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    loaded = load_model(half, "cpu", precision="fp32")
    assert loaded.config == SMALL_FAMSAM
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(loaded.state_dict()[name], tensor.half().float(), rtol=0, atol=0)


def test_int8_quarters_the_file_and_loses_nothing_that_computing_in_int8_does_not(tmp_path):
    torch.manual_seed(0)
    model = build_model("famsam").eval().requires_grad_(False)
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    save_model(model, whole)
    save_model(model, small, stored="int8")
    assert small.stat().st_size < 0.27 * whole.stat().st_size
    loaded = load_model(small, "cpu", precision="fp32")
    rounded = 0
    for name, tensor in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == torch.float32
        if tensor.ndim > 1 and tensor.numel() >= checkpoints.LARGE:
            values, scales = int8.quantised_weights(tensor)
            torch.testing.assert_close(found.flatten(1), values.flatten(1) * scales[:, None])
            assert torch.equal(int8.quantised_weights(found)[0], values)
            rounded += 1
        else:
            torch.testing.assert_close(found, tensor.half().float(), rtol=0, atol=0)
    assert rounded > 40


@pytest.mark.parametrize("stored, share, steps", [("int6", 0.8, 2.6), ("int5", 0.7, 4.6)])
def test_fewer_values_compress_better_and_stay_near(tmp_path, stored, share, steps):
    torch.manual_seed(0)
    model = build_model("famsam").eval().requires_grad_(False)
    sizes = {}
    for name in ("int8", stored):
        save_model(model, tmp_path / f"{name}.safetensors", stored=name)
        sizes[name] = len(zlib.compress((tmp_path / f"{name}.safetensors").read_bytes()))
    assert sizes[stored] < share * sizes["int8"]
    loaded = load_model(tmp_path / f"{stored}.safetensors", "cpu", precision="fp32").state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1 and tensor.numel() >= checkpoints.LARGE:
            error = (loaded[name] - tensor).abs().flatten(1).amax(1)
            assert bool((error <= steps * int8.quantised_weights(tensor)[1]).all()), name
            torch.testing.assert_close(loaded[name].flatten(1).abs().amax(1), tensor.flatten(1).abs().amax(1))


@pytest.mark.parametrize("damage", ["no scales", "other scales"])
def test_int8_without_its_scales_is_refused(tmp_path, damage):
    path = tmp_path / "small.safetensors"
    save_model(build_model("famsam", SMALL_FAMSAM), path, stored="int8")
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(name for name in tensors if name.endswith(checkpoints.SCALES))
    scales = tensors.pop(name)
    if damage == "other scales":
        tensors[name] = scales[:-1].clone()
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="without finite numbers"):
        load_model(path, "cpu")


def test_another_way_to_store_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"fp32.*got .int4"):
        save_model(build_model("famsam", SMALL_FAMSAM), tmp_path / "m.safetensors", stored="int4")
    assert not list(tmp_path.iterdir())


def test_conversion_changes_nothing_and_says_where_it_comes_from(model, tmp_path):
    source = saved(training_checkpoint(model.state_dict()), tmp_path / "published.pth")
    provenance = convert(source, tmp_path / "converted.safetensors")
    assert provenance["source"] == "published.pth" and re.fullmatch("[0-9a-f]{64}", provenance["source_sha256"])
    torch.testing.assert_close(answer(load_model(tmp_path / "converted.safetensors", "cpu")), answer(model))
    with safe_open(tmp_path / "converted.safetensors", "pt") as file:
        assert provenance.items() <= file.metadata().items()


def test_conversion_of_an_encoder_names_both_files(tmp_path):
    student = saved(encoder_alone(tiny_model("fastsam3d").state_dict()), tmp_path / "student.pth")
    teacher = saved(tiny_model("sam_med3d").state_dict(), tmp_path / "teacher.pth")
    provenance = convert(student, tmp_path / "whole.safetensors", teacher=teacher, stored="fp16")
    assert (provenance["source"], provenance["teacher"]) == ("student.pth", "teacher.pth")
    assert load_model(tmp_path / "whole.safetensors", "cpu").name == "fastsam3d"


def test_a_teacher_that_was_kept_as_int8_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "LARGE", 256)
    kept = tmp_path / "teacher.safetensors"
    save_model(tiny_model("sam_med3d"), kept, stored="int8")
    student = saved(encoder_alone(tiny_model("fastsam3d").state_dict()), tmp_path / "student.pth")
    loaded, expected = load_model(student, "cpu", teacher=kept).state_dict(), load_model(kept, "cpu").state_dict()
    assert any(name.startswith("mask_decoder.") for name in loaded)
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded if not name.startswith("image_encoder."))


def test_conversion_of_the_conformance_checkpoints(tmp_path):
    folder = conformance_folder()
    for name, teacher in (
        ("sam_med3d_small", None),
        ("fastsam3d_full_small", None),
        ("fastsam3d_student_encoder_small", folder / "sam_med3d_small.pth"),
    ):
        destination = tmp_path / f"{name}.safetensors"
        convert(folder / f"{name}.pth", destination, teacher)
        expected = load_model(folder / f"{name}.pth", "cpu", teacher=teacher).state_dict()
        found = load_model(destination, "cpu").state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_published_weights_in_a_bare_safetensors_file_load(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    assert load_model(tmp_path / "bare.safetensors", "cpu").config == model.config


def test_the_default_is_the_file_in_the_package(tmp_path, monkeypatch):
    path = tmp_path / "famsam-s.safetensors"
    monkeypatch.setattr(checkpoints, "DEFAULT_WEIGHTS", path)
    with pytest.raises(CheckpointError, match="default weights are missing"):
        load_model()
    save_model(build_model("famsam", SMALL_FAMSAM), path, stored="fp16")
    assert load_model(device="cpu").name == "famsam"


@pytest.mark.parametrize("name", ["default", "famsam-s.safetensors", "link.safetensors"])
def test_the_default_by_any_of_its_names(name, tmp_path, monkeypatch):
    """As a path, too: ``famsam convert default smaller.safetensors``. Its tokens pause as they were measured to."""
    path = tmp_path / "famsam-s.safetensors"
    save_model(build_model("famsam", SMALL_FAMSAM), path)
    (tmp_path / "link.safetensors").symlink_to(path)
    monkeypatch.setattr(checkpoints, "DEFAULT_WEIGHTS", path)
    monkeypatch.chdir(tmp_path)
    assert load_model(Path(name), "cpu", "fp32").pausing.share == checkpoints.DEFAULT_PAUSED_SHARE
    assert convert(Path(name), tmp_path / "smaller.safetensors", stored="fp16")["source"].endswith(".safetensors")
    assert load_model("smaller.safetensors", "cpu", "fp32").pausing.share == 0


# --- precision ---


def test_auto_precision_leaves_the_published_networks_at_fp32_on_a_cpu(model, tmp_path):
    path = saved(model.state_dict(), tmp_path / "m.pth")
    assert load_model(path, "cpu").precision == "fp32"
    assert load_model(path, "cpu", "bf16").precision == "bf16"
    with pytest.raises(ConfigError, match="fp16 is for GPUs"):
        load_model(path, "cpu", "fp16")


# --- what is not a model is refused, with a reason ---


def refused(path, message: str, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path, "cpu", **options)
    assert str(path) in str(caught.value)


def test_missing_files(tmp_path):
    refused(tmp_path / "nothing.pth", "There is no weights file")
    refused(tmp_path, "no .safetensors or .pth is in it")
    for name in ("famsam.safetensors", "sam_med3d.pth"):
        (tmp_path / name).touch()
    refused(tmp_path, "name the file in it, .*famsam.safetensors or .*sam_med3d.pth")
    refused("fastsam3d", "is a model's name")


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_files_that_must_not_be_read(name, tmp_path, monkeypatch):
    (tmp_path / name).touch()

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # whoever runs the tests may read everything
    refused(tmp_path / name, "Cannot read .*: Permission denied")


def test_names_that_no_file_can_have():
    refused("x" * 5000 + ".pth", "Cannot read .*too long|There is no weights file")


@pytest.mark.parametrize("fraction", [0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(fraction, suffix, tmp_path):
    model = tiny_model("fastsam3d")
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_model(model, path)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    refused(path, "damaged|empty")


@pytest.mark.parametrize("content", [b"not weights at all", b"\x1f\x8b" + bytes(400), bytes(1000)])
@pytest.mark.parametrize("name", ["scan.pth", "scan.safetensors"])
def test_foreign_files(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "is no PyTorch checkpoint|no safetensors file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "found list"),
        (torch.zeros(3), "found Tensor"),
        ({}, "expected a state dict"),
        ({"model_state_dict": {}}, "expected a state dict"),
        ({"epoch": 3, "weights": torch.zeros(3)}, r"\['epoch'\] are no tensors"),
        ({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(1)}, "found 2 others: conv1.weight, fc.bias"),
    ],
)
def test_checkpoints_of_something_else(content, message, tmp_path):
    refused(saved(content, tmp_path / "other.pth"), message)


def test_half_a_network(tmp_path):
    state = tiny_model("fastsam3d").state_dict()
    encoder = saved(encoder_alone(state), tmp_path / "encoder.pth")
    decoder = saved(part(state, "prompt_encoder.", "mask_decoder."), tmp_path / "decoder.pth")
    refused(encoder, "give that file as the teacher .famsam convert")
    refused(decoder, "without an image encoder")
    refused(encoder, "has no prompt encoder and mask decoder", teacher=encoder)
    refused(saved(state, tmp_path / "whole.pth"), "takes no teacher", teacher=decoder)
    refused(encoder, "teacher cannot be read", teacher=saved([1], tmp_path / "list.pth"))
    load_model(encoder, "cpu", teacher=decoder)


def test_an_own_file_takes_no_teacher(tmp_path):
    save_model(tiny_model("fastsam3d"), tmp_path / "own.safetensors")
    refused(tmp_path / "own.safetensors", "takes no teacher", teacher=tmp_path / "own.safetensors")


def test_a_teacher_of_another_width(tmp_path):
    encoder = encoder_alone(tiny_model("fastsam3d").state_dict())
    encoder["neck.0.weight"] = torch.zeros(96, 24, 1, 1, 1)
    teacher = saved(tiny_model("sam_med3d").state_dict(), tmp_path / "teacher.pth")
    refused(saved(encoder, tmp_path / "wide.pth"), "with the teacher .*of another shape", teacher=teacher)


def one_of_each_kind() -> list:
    """Names of tensors, one of those that differ in a number only."""
    return sorted({re.sub(r"\d+", "#", name): name for name in tiny_model("sam_med3d").state_dict()}.values())


def refused_in_memory(state: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        checkpoints._published_model(Path("m.pth"), state, None)


def test_any_missing_tensor_is_noticed():
    state = tiny_model("sam_med3d").state_dict()
    for key in one_of_each_kind():
        rest = {other: tensor for other, tensor in state.items() if other != key}
        refused_in_memory(rest, rf"missing.*{re.escape(key)}|{re.escape(key)} is missing|without an image encoder")


def test_any_tensor_of_another_shape_is_noticed():
    state = tiny_model("sam_med3d").state_dict()
    distortions = [lambda t: t.new_zeros(()), lambda t: t[None], lambda t: torch.cat([t, t])]
    for i, key in enumerate(one_of_each_kind()):
        refused_in_memory({**state, key: distortions[i % 3](state[key])}, "does not fit|must")


def test_the_message_names_what_is_wrong(tmp_path):
    state = tiny_model("sam_med3d").state_dict()
    extra = {**state, "mask_decoder.colour": torch.zeros(1)}
    refused(saved(extra, tmp_path / "extra.pth"), r"1 tensors not part of it \(mask_decoder.colour\)")
    key = "image_encoder.blocks.1.mlp.lin2.bias"
    wrong = {**state, key: torch.zeros(25)}
    refused(saved(wrong, tmp_path / "wrong.pth"), rf"{key}: found \(25,\), expected \(24,\)")
    del wrong[key]
    refused(saved(wrong, tmp_path / "less.pth"), rf"1 tensors missing \({key}\)")
    not_finite = [torch.full((24,), float("nan")), torch.full((24,), 1e300, dtype=torch.float64)]
    for value in (*not_finite, torch.zeros(24, dtype=torch.int64)):
        refused(saved({**state, key: value}, tmp_path / "nan.pth"), rf"1 tensors without finite numbers \({key}\)")
    huge = {**state, key: torch.zeros(1).expand(10**6, 10**7)}  # a few bytes in the file
    refused(saved(huge, tmp_path / "huge.pth"), rf"{key}: found \(1000000, 10000000\)")


@pytest.mark.parametrize(
    "config", ["{", "{}", '{"model": "x", "config": {}}', "[" * 100_000, "1" * 10_000], ids=lambda config: config[:9]
)
def test_a_config_that_cannot_be_read(config, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", {"famsam_config": config})
    refused(tmp_path / "m.safetensors", "configuration that this famsam cannot read")


def test_a_config_of_sizes_that_no_tensor_has(tmp_path):
    config = config_to_dict("famsam", replace(SMALL_FAMSAM, token_channels=10**12))
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", {"famsam_config": json.dumps(config)})
    refused(tmp_path / "m.safetensors", "impossible configuration")


def test_a_config_that_does_not_fit_its_tensors(tmp_path):
    model = tiny_model("fastsam3d")
    description = {"famsam_config": json.dumps({"model": "famsam", "config": {}})}
    save_model(model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        description = file.metadata()
    save_file(tiny_model("sam_med3d").state_dict(), tmp_path / "m.safetensors", description)
    refused(tmp_path / "m.safetensors", "does not fit the fastsam3d network")


def test_destinations_that_cannot_be_written(tmp_path):
    source = saved(tiny_model("fastsam3d").state_dict(), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"must be a \.safetensors file"):
        convert(source, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="Cannot write"):
        convert(source, tmp_path / "no_folder" / "m.safetensors")
