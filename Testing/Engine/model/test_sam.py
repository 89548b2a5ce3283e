from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conformance import conformance_folder, relative_error
from famsam.checkpoints import load_model
from famsam.errors import PromptError, VolumeError
from famsam.model import AttentionPattern, attention_ablation, build_model, with_attention
from famsam.model.sam import Sam3D
from famsam.model.sam_config import FASTSAM3D, SAM_MED3D
from famsam.runtime import autocast
from tiny_models import CROP_B1ZYX, LABELS_BN, POINTS_BN3, TINY, answer, tiny_model

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=sorted(TINY))
def model(request) -> Sam3D:
    return tiny_model(request.param)


# --- the published networks, on the published figures ---

FIXTURES = [
    ("sam_med3d", "sam_med3d_small.pth", None, "teacher_encoder.npz", ""),
    ("fastsam3d", "fastsam3d_full_small.pth", None, "student_encoder.npz", "_student"),
    ("fastsam3d", "fastsam3d_student_encoder_small.pth", "sam_med3d_small.pth", "student_encoder.npz", "_student"),
]


@pytest.mark.parametrize(("name", "checkpoint", "teacher", "encoder_arrays", "suffix"), FIXTURES)
def test_published_outputs_are_reproduced(name, checkpoint, teacher, encoder_arrays, suffix):
    folder = conformance_folder()
    model = load_model(folder / checkpoint, "cpu", teacher=teacher and folder / teacher)
    assert (model.name, model.precision) == (name, "fp32")

    found = {}
    parts = {"patch": model.image_encoder.patch_embed}
    parts.update({f"block{i}": block for i, block in enumerate(model.image_encoder.blocks)})
    for part, module in parts.items():
        module.register_forward_hook(lambda module, inputs, output, part=part: found.update({part: output}))
    with np.load(folder / "input.npz") as arrays, torch.inference_mode():
        embedding = model.encode(torch.from_numpy(arrays["image"]))
    found["embedding"] = embedding.tokens
    with np.load(folder / encoder_arrays) as expected:
        assert set(expected.files) == set(found)
        errors = {key: relative_error(found[key], expected[key]) for key in expected.files}

    with np.load(folder / "prompt_decoder.npz") as expected, torch.inference_mode():
        grid_code = model.prompt_encoder.grid_code().movedim(-1, 0)[None]
        errors["dense_pe"] = relative_error(grid_code, expected["dense_pe"])
        for case in sorted({key.split("/")[0] for key in expected.files if "/" in key}):
            arrays = {key.split("/")[1]: expected[key] for key in expected.files if key.startswith(case + "/")}
            errors.update(decoder_errors(model, embedding, case, arrays, suffix))
    assert len(errors) >= 6 + 8 * 5
    assert max(errors.values()) <= 1e-5, errors


def decoder_errors(model, embedding, case, arrays, suffix):
    points = torch.from_numpy(arrays.get("points", np.zeros((1, 0, 3))))
    labels = torch.from_numpy(arrays.get("labels", np.zeros((1, 0))))
    mask = torch.from_numpy(arrays["mask_in"]) if "mask_in" in arrays else None
    tokens, dense = model.prompt_encoder(points, labels, mask)
    found = {"sparse": tokens, "dense": dense.movedim(-1, 1)}
    for multimask in (False, True):
        logits, iou = model.decode(embedding, points, labels, mask, multimask)
        found[f"lowres{suffix}_mm{int(multimask)}"] = logits
        found[f"iou{suffix}_mm{int(multimask)}"] = iou
    return {f"{case}/{key}": relative_error(found[key], arrays[key]) for key in found if key in arrays}


@pytest.mark.parametrize(("name", "config"), [("sam_med3d", SAM_MED3D), ("fastsam3d", FASTSAM3D)])
def test_full_size_tensors_have_the_published_names_and_shapes(name, config):
    layout = (conformance_folder() / f"keys_{name.replace('fastsam3d', 'fastsam3d_full')}.txt").read_text()
    published = dict(line.split("\t")[:2] for line in layout.splitlines() if not line.startswith("#"))
    with torch.device("meta"):
        state = build_model(name, config).state_dict()
    assert {key: str(tuple(tensor.shape)) for key, tensor in state.items()} == published


# --- the same networks on figures of our own ---


def test_full_sizes_have_the_published_parameter_counts():
    counts = {}
    for name in TINY:
        with torch.device("meta"):
            model = build_model(name)
        parts = (model.image_encoder, model.prompt_encoder, model.mask_decoder)
        counts[name] = [round(sum(p.numel() for p in part.parameters()) / 1e6, 1) for part in parts]
    assert counts == {"sam_med3d": [92.9, 0.0, 7.6], "fastsam3d": [45.6, 0.0, 7.6]}


def test_shapes(model):
    embedding = model.encode(CROP_B1ZYX)
    assert embedding.tokens.shape == (1, 48, 4, 4, 4)
    for multimask, masks in ((False, 1), (True, 3)):
        logits, iou = model.decode(embedding, POINTS_BN3, LABELS_BN, multimask=multimask)
        assert logits.shape == (1, masks, 16, 16, 16)
        assert iou.shape == (1, masks)


def test_blocks_are_wired_as_each_network_has_it(model):
    """The residual of FastSAM3D's blocks starts after the norm; that of SAM-Med3D's before it."""
    block = model.image_encoder.blocks[0]
    x = torch.randn(1, 4, 4, 4, 24)
    if model.name == "fastsam3d":
        assert block.attn is None
        expected = block.norm2(x) + block.mlp(block.norm2(x))
    else:
        x1 = x + block.attn(block.norm1(x))
        expected = x1 + block.mlp(block.norm2(x1))
    torch.testing.assert_close(block(x), expected)


def test_patches_and_upscaling_equal_plain_convolutions(model):
    projection = model.image_encoder.patch_embed.proj
    plain = torch.nn.functional.conv3d(CROP_B1ZYX, projection.weight, projection.bias, stride=4)
    torch.testing.assert_close(model.image_encoder.patch_embed(CROP_B1ZYX), plain.movedim(1, -1), **CLOSE)
    up = model.mask_decoder.output_upscaling[0]
    x = torch.randn(1, 3, 4, 5, 48)
    plain = torch.nn.functional.conv_transpose3d(x.movedim(-1, 1), up.weight, up.bias, stride=2)
    torch.testing.assert_close(up(x), plain.movedim(1, -1), **CLOSE)


KNOWN = {
    # Every quarter of the values of the embedding and of the alternatives' logits, and the alternatives' predicted IoU,
    # from the implementation that reproduces the published outputs.
    "sam_med3d": (
        [-0.04393, -0.40193, 0.60214, 0.69242],
        [-0.41814, -0.40163, -0.1781, -0.5776],
        [0.06896, 0.35541, 0.31343],
    ),
    "fastsam3d": (
        [-0.44595, 0.40002, -0.6015, 0.16637],
        [-0.4121, -0.42827, -0.16553, 0.07809],
        [-0.94362, -1.67518, -0.1567],
    ),
}


def test_known_answers(model):
    embedding = model.encode(CROP_B1ZYX)
    logits, iou = model.decode(embedding, POINTS_BN3, LABELS_BN, model.first_mask_logits(), multimask=True)
    found = [t.flatten()[:: t.numel() // 4] for t in (embedding.tokens, logits)] + [iou.flatten()]
    for values, known in zip(found, KNOWN[model.name]):
        torch.testing.assert_close(values, torch.tensor(known), rtol=0, atol=5e-5)


def test_the_grid_has_the_code_of_points_with_the_first_two_axes_swapped(model):
    encoder = model.prompt_encoder
    code = encoder.grid_code()
    centre_of_3_1_2 = torch.tensor([[[1, 3, 2]]]) * 4 + 1.5
    token = encoder(centre_of_3_1_2, torch.tensor([[1]]), None)[0][0, 0]
    torch.testing.assert_close(token - encoder.point_embeddings[1].weight[0], code[3, 1, 2], **CLOSE)


def test_position_code_is_sine_cosine_sine(model):
    layer = model.prompt_encoder.pe_layer
    phase = 2 * np.pi * (2 * torch.tensor([0.1, 0.5, 0.8]) - 1) @ layer.positional_encoding_gaussian_matrix
    torch.testing.assert_close(
        layer(torch.tensor([0.1, 0.5, 0.8])), torch.cat([phase.sin(), phase.cos(), phase.sin()]), **CLOSE
    )


def test_the_first_self_attention_replaces_the_tokens(model):
    first, second = model.mask_decoder.transformer.layers
    tokens, codes, image = torch.randn(1, 7, 48), torch.randn(1, 7, 48), torch.randn(1, 64, 48)
    before_norm = []
    for layer in (first, second):
        layer.norm1.register_forward_pre_hook(lambda module, inputs: before_norm.append(inputs[0]))
        layer(tokens, image, codes, torch.zeros(64, 48))
    coded = tokens + codes
    torch.testing.assert_close(before_norm[0], first.self_attn(tokens, tokens, tokens), **CLOSE)
    torch.testing.assert_close(before_norm[1], tokens + second.self_attn(coded, coded, tokens), **CLOSE)


def test_bf16_stays_near_fp32(model):
    exact = answer(model)
    with autocast(torch.device("cpu"), "bf16"):
        found = answer(model)
    assert relative_error(found.float(), exact) < 0.03


def test_no_mask_and_an_empty_mask_differ(model):
    embedding = model.encode(CROP_B1ZYX)
    empty = model.first_mask_logits()
    assert empty.shape == (1, 1, 16, 16, 16) and not empty.any()
    without = model.decode(embedding, POINTS_BN3, LABELS_BN)[0]
    with_empty = model.decode(embedding, POINTS_BN3, LABELS_BN, empty)[0]
    assert not torch.allclose(without, with_empty, atol=1e-3)


def test_a_padding_point_is_a_point_that_is_not_there(model):
    no_point = model.prompt_encoder.not_a_point_embed.weight[0]
    tokens, _ = model.prompt_encoder(POINTS_BN3, torch.tensor([[1, -1]]), None)
    assert tokens.shape == (1, 3, 48)
    torch.testing.assert_close(tokens[0, 1:], torch.stack([no_point, no_point]))
    assert model.prompt_encoder(POINTS_BN3[:, :0], LABELS_BN[:, :0], None)[0].shape == (1, 0, 48)


def test_one_embedding_serves_a_batch_of_prompts(model):
    embedding = model.encode(CROP_B1ZYX)
    points = torch.cat([POINTS_BN3, POINTS_BN3 + 1])
    labels = torch.cat([LABELS_BN, LABELS_BN.flip(1)])
    masks = torch.randn(2, 1, 16, 16, 16)
    for mask, each in ((None, (None, None)), (masks, masks.split(1))):
        logits, iou = model.decode(embedding, points, labels, mask)
        for i in range(2):
            one_logits, one_iou = model.decode(embedding, points[i : i + 1], labels[i : i + 1], each[i])
            torch.testing.assert_close(logits[i : i + 1], one_logits, **CLOSE)
            torch.testing.assert_close(iou[i : i + 1], one_iou, **CLOSE)


def test_the_ablation_runs_and_flash_changes_nothing(model):
    outputs = {}
    for name, config in attention_ablation(model.config, group_size=8, dilation=2).items():
        variant = build_model(model.name, config).eval()
        variant.load_state_dict(model.state_dict())
        logits, _ = variant.decode(variant.encode(CROP_B1ZYX), POINTS_BN3, LABELS_BN)
        assert logits.shape == (1, 1, 16, 16, 16)
        outputs[name] = logits
    torch.testing.assert_close(outputs["dense"], outputs["dense+flash"], **CLOSE)
    torch.testing.assert_close(outputs["sparse"], outputs["sparse+flash"], **CLOSE)
    assert (outputs["dense"] - outputs["sparse"]).abs().max() > 1e-4


def test_a_group_of_all_tokens_is_dense(model):
    dense = model.encode(CROP_B1ZYX).tokens
    variant = build_model(model.name, with_attention(model.config, AttentionPattern(64, 1))).eval()
    variant.load_state_dict(model.state_dict())
    torch.testing.assert_close(variant.encode(CROP_B1ZYX).tokens, dense, **CLOSE)


def test_gradients_reach_every_parameter(model):
    for multimask in (False, True):
        logits, iou = model.decode(
            model.encode(CROP_B1ZYX), POINTS_BN3, LABELS_BN, torch.randn(1, 1, 16, 16, 16), multimask
        )
        (logits.square().sum() + iou.square().sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["prompt_encoder.no_mask_embed.weight"]  # a mask was given


def test_what_does_not_fit_is_refused(model):
    embedding = model.encode(CROP_B1ZYX)
    with pytest.raises(VolumeError, match=r"\(1, 16, 16, 16\).*got \(1, 1, 16, 16, 8\)"):
        model.encode(CROP_B1ZYX[..., :8])
    with pytest.raises(PromptError, match="must be"):
        model.decode(embedding, POINTS_BN3[..., :2], LABELS_BN)
    with pytest.raises(PromptError, match="must be"):
        model.decode(embedding, POINTS_BN3, LABELS_BN[:, :1])
    with pytest.raises(PromptError, match="previous logits"):
        model.decode(embedding, POINTS_BN3, LABELS_BN, torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(PromptError, match="boxes"):
        model.decode(embedding, POINTS_BN3, torch.tensor([[2, 3]]))
    with pytest.raises(PromptError, match="cannot serve"):
        model.decode(replace(embedding, tokens=embedding.tokens.repeat(3, 1, 1, 1, 1)), POINTS_BN3, LABELS_BN)


# --- preprocessing ---


def normalised(values, inside=None):
    crop = torch.tensor(values, dtype=torch.float32).view(1, 1, 1, 1, -1)
    inside = torch.ones_like(crop, dtype=torch.bool) if inside is None else torch.tensor(inside).view_as(crop)
    return tiny_model("fastsam3d").normalise(crop, inside).flatten().tolist()


def test_statistics_come_from_voxels_above_zero_and_apply_to_all():
    # Above 0: 1, 2, 3: mean 2, unbiased standard deviation 1.
    assert normalised([0, 1, 2, 3, -4]) == [-2, -1, 0, 1, -6]


def test_ct_is_clamped():
    assert normalised([-1024, 100, 300, 3000]) == normalised([-1000, 100, 300, 1000])
    assert normalised([0, 100, 300, 3000]) != normalised([0, 100, 300, 1000])


def test_a_crop_with_nothing_above_zero_uses_the_voxels_inside():
    assert normalised([-3, -2, -1, 0], inside=[True, True, True, False]) == [-1, 0, 1, 2]
    assert normalised([7, 7, 7]) == [0, 0, 0]
    assert normalised([0, 0], inside=[False, False]) == [0, 0]


def test_crops_of_a_batch_are_normalised_alone():
    model = tiny_model("sam_med3d")
    crops = torch.rand(2, 1, 4, 4, 4) * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1)
    inside = torch.ones_like(crops, dtype=torch.bool)
    both = model.normalise(crops, inside)
    torch.testing.assert_close(both[1:], model.normalise(crops[1:], inside[1:]))
    assert both.shape == crops.shape


def test_what_the_session_must_know():
    student, teacher = tiny_model("fastsam3d"), tiny_model("sam_med3d")
    for model in (student, teacher):
        assert (model.crop_axes, model.spacing_mm, model.takes_boxes, model.fast_on_cpu) == ("xyz", 1.5, False, ())
        assert model.crop_size == 16 and model.device.type == "cpu"
    assert student.newest_point_only and not teacher.newest_point_only
    for model in (student, teacher):
        assert answer(model).shape[2:] == (model.mask_size,) * 3
