from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from famsam.errors import ConfigError
from famsam.model import (
    MODEL_NAMES,
    AttentionPattern,
    attention_ablation,
    build_model,
    config_from_dict,
    config_to_dict,
    default_config,
    with_attention,
)
from famsam.model.famsam import FamsamConfig
from famsam.model.sam_config import FASTSAM3D, SAM_MED3D, DecoderConfig, Sam3DConfig, VitConfig


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_config_survives_json(name):
    config = with_attention(default_config(name), AttentionPattern(64, 2, "reference"))
    text = json.dumps(config_to_dict(name, config))
    assert config_from_dict(json.loads(text)) == (name, config)
    assert config != default_config(name)


def edited(path: str, value: object) -> dict:
    data = json.loads(json.dumps(config_to_dict("fastsam3d", FASTSAM3D)))
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", "sam_4d", "sam_4d"),
        ("model", ["famsam"], "famsam"),
        ("model", None, "keys 'model' and 'config'"),
        ("config", 3, "config must be a dictionary"),
        ("config.encoder.width", None, r"config\.encoder.*missing: \['width'\]"),
        ("config.encoder.colour", "red", r"unknown: \['colour'\]"),
        ("config.encoder.width", "wide", r"config\.encoder\.width must be of type int, got 'wide'"),
        ("config.encoder.width", True, "must be of type int"),
        ("config.encoder.blocks", "global", "must be a list"),
        ("config.encoder.blocks", [1], r"blocks\[0\] must be of type str"),
        ("config.encoder.attention.dilation", 0, "dilation"),
        ("config.encoder.heads", 7, "multiple of heads"),
    ],
)
def test_what_is_no_config_is_refused(path, value, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(edited(path, value))


def test_tuples_of_fixed_length_are_checked():
    data = config_to_dict("famsam", default_config("famsam"))
    data["config"]["decoder_channels"] = [32, 64]
    with pytest.raises(ConfigError, match="must be a list of 3 values"):
        config_from_dict(data)


def test_the_ablation_is_two_by_two():
    configs = attention_ablation(FASTSAM3D, group_size=64, dilation=2)
    patterns = {name: (config.encoder.attention, config.decoder.attention) for name, config in configs.items()}
    assert patterns == {
        "dense": (AttentionPattern(0, 1, "reference"),) * 2,
        "dense+flash": (AttentionPattern(0, 1, "auto"),) * 2,
        "sparse": (AttentionPattern(64, 2, "reference"),) * 2,
        "sparse+flash": (AttentionPattern(64, 2, "auto"),) * 2,
    }
    assert all(
        replace(config.encoder, attention=AttentionPattern()) == FASTSAM3D.encoder for config in configs.values()
    )


def test_the_ablation_runs_on_the_default_model():
    small = FamsamConfig(stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, decoder_channels=(8, 8, 8))
    crop = torch.rand(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    weights = build_model("famsam", small).state_dict()
    tokens = {}
    for name, config in attention_ablation(small).items():
        model = build_model("famsam", config).eval()
        model.load_state_dict(weights)
        with torch.inference_mode():
            tokens[name] = model.encode(crop).tokens
        assert tokens[name].shape == (1, 16, 8, 8, 8)
    torch.testing.assert_close(tokens["dense"], tokens["dense+flash"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens["sparse"], tokens["sparse+flash"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sam", "", "SAM_MED3D"])
def test_unknown_models_are_refused(name):
    with pytest.raises(ConfigError, match="must be one of"):
        build_model(name)


def test_a_config_of_another_model_is_refused():
    with pytest.raises(ConfigError, match="fastsam3d takes a Sam3DConfig"):
        build_model("fastsam3d", SAM_MED3D)
    with pytest.raises(ConfigError, match="famsam takes a FamsamConfig"):
        build_model("famsam", FASTSAM3D)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VitConfig(width=0), "width must be at least 1"),
        (lambda: VitConfig(heads=5), "multiple of heads"),
        (lambda: VitConfig(blocks=()), "blocks"),
        (lambda: VitConfig(blocks=("local",)), "blocks"),
        (lambda: VitConfig(window_size=7), "window_size"),
        (lambda: DecoderConfig(mask_channels=6), "mask_channels"),
        (lambda: DecoderConfig(depth=0), "depth must be at least 1"),
        (lambda: Sam3DConfig(name="sam"), "name must be"),
        (lambda: Sam3DConfig(encoder=VitConfig(out_width=100)), "multiple of 3"),
        (lambda: Sam3DConfig(encoder=VitConfig(out_width=12)), "multiple of 8"),
        (lambda: Sam3DConfig(decoder=DecoderConfig(heads=5)), "downsample"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
