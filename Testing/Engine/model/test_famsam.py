"""The default network: its budget, its shapes and what holds for any weights. Small crops unless the size matters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from famsam.checkpoints import load_model, save_model
from famsam.errors import ConfigError
from famsam.model import build_model, with_attention
from famsam.model.attention import AttentionPattern
from famsam.model.famsam import SPARSE, Famsam, FamsamConfig
from famsam.model.famsam_encoder import TransformerBlock, _ranked, contrast_limited_equalisation, halving
from famsam.model.fusion_decoder import added_doubled, channels_last, halved

SMALL = FamsamConfig(
    stem_channels=(8, 8, 16, 8), token_channels=16, depth=2, heads=2, decoder_channels=(8, 16, 16), decoder_depth=1
)


def random_crop(size=32, batch=1, seed=0):
    return torch.rand(batch, 1, size, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small_model(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return Famsam(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def full_model():
    torch.manual_seed(0)
    return Famsam().eval().requires_grad_(False)


POINTS = torch.tensor([[[10.0, 20.0, 5.0], [25.0, 3.0, 30.0]]])
LABELS = torch.tensor([[1, 0]])


# --- the default configuration ---


def test_budget(full_model, tmp_path):
    assert sum(p.numel() for p in full_model.parameters()) <= 6_500_000
    path = tmp_path / "famsam.safetensors"
    save_model(full_model, path, stored="fp16")
    assert path.stat().st_size <= 13_000_000


def test_six_blocks_of_sparse_attention(full_model):
    blocks = list(full_model.encoder.blocks)
    assert len(blocks) == 6 and all(isinstance(block, TransformerBlock) for block in blocks)
    patterns = {block.attention.pattern for block in [*blocks, *full_model.decoder.blocks16]}
    assert patterns == {SPARSE}
    assert not SPARSE.is_dense(512), "a crop of 128 voxels has 8 x 8 x 8 tokens"


@torch.inference_mode()
def test_shapes_of_a_whole_crop(full_model):
    embedding = full_model.encode(random_crop(128))
    assert embedding.tokens.shape == (1, 256, 8, 8, 8)
    logits, quality = full_model.decode(embedding, POINTS, LABELS)
    assert logits.shape == (1, 1, 64, 64, 64) and quality.shape == (1, 1)
    assert logits.dtype == quality.dtype == torch.float32
    assert logits.shape[-1] == full_model.mask_size and 2 * full_model.mask_size == full_model.crop_size


@pytest.mark.parametrize("size", [32, 64])
@torch.inference_mode()
def test_smaller_crops_batches_and_alternatives(model, size):
    embedding = model.encode(random_crop(size, batch=2))
    assert embedding.tokens.shape == (2, 16, *[size // 16] * 3)
    points, labels = POINTS.repeat(2, 1, 1), LABELS.repeat(2, 1)
    for several, masks in ((False, 1), (True, 3)):
        logits, quality = model.decode(embedding, points, labels, multimask=several)
        assert logits.shape == (2, masks, *[size // 2] * 3) and quality.shape == (2, masks)
        assert ((quality >= 0) & (quality <= 1)).all()


@torch.inference_mode()
def test_without_fusion_the_stem_reaches_the_decoder_through_prompt_maps_and_tokens_only(tmp_path):
    plain = small_model(dataclasses.replace(SMALL, fusion=False))
    fused = small_model()
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in fused.parameters())
    crop = random_crop(64, batch=2)
    points, labels = POINTS.repeat(2, 1, 1), LABELS.repeat(2, 1)
    for model, matters in ((plain, False), (fused, True)):
        embedding = model.encode(crop)
        logits, _ = model.decode(embedding, points, labels)
        tokens, (detail, f4, f8) = model.encoder(crop, model.pausing)
        others = model.decoder.prepare(crop, tokens, detail + 1, f4, f8)
        changed, _ = model.decode(dataclasses.replace(embedding, finer=others), points, labels)
        assert logits.shape == (2, 1, 32, 32, 32)
        assert (not torch.equal(logits, changed)) == matters
    save_model(plain, tmp_path / "plain.safetensors")
    assert not load_model(tmp_path / "plain.safetensors", device="cpu", precision="fp32").config.fusion


def test_built_by_name():
    assert isinstance(build_model("famsam", SMALL), Famsam)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stem_channels": (16, 32, 60, 64)}, "stem_channels"),
        ({"decoder_channels": (32, 0, 128)}, "decoder_channels"),
        ({"token_channels": 250}, "multiple of heads"),
        ({"heads": 0}, "multiple of heads"),
        ({"token_channels": 192, "heads": 6}, r"decoder_channels \(128\) must be a multiple of heads \(6\)"),
        ({"mlp_ratio": -1.0}, "mlp_ratio"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"depth": 0}, "depth"),
        ({"decoder_depth": -1}, "decoder_depth"),
        ({"mask_count": 0}, "mask_count"),
        ({"proposals": True, "fusion": False}, "fusion"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        FamsamConfig(**change)


# --- prompts ---


@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_clicked_voxels_obey_for_random_weights(seed):
    model = small_model(seed=seed)
    embedding = model.encode(random_crop(32, seed=seed))
    clicks = torch.randint(0, 32, (1, 6, 3), generator=torch.Generator().manual_seed(seed)).float()
    clicks[0, :, 0] = torch.tensor([0.0, 6.0, 12.0, 18.0, 24.0, 31.0])  # far enough apart not to share a voxel
    labels = torch.tensor([[1, 0, 1, 0, 1, 0]])
    logits, _ = model.decode(embedding, clicks, labels, multimask=True)
    for point, label in zip(clicks[0], labels[0]):
        z, y, x = (point / 2).long().tolist()
        at_click = logits[0, :, z, y, x]
        assert (at_click > 1).all() if label == 1 else (at_click < -1).all()


@torch.inference_mode()
def test_no_points_at_all(model):
    embedding = model.encode(random_crop())
    logits, quality = model.decode(embedding, torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long))
    assert logits.shape == (1, 1, 16, 16, 16) and torch.isfinite(logits).all() and torch.isfinite(quality).all()
    padded = model.decode(embedding, torch.zeros(1, 1, 3), torch.tensor([[-1]]))
    torch.testing.assert_close((logits, quality), padded)


@torch.inference_mode()
def test_padded_prompts_equal_unpadded_ones(model):
    embedding = model.encode(random_crop())
    plain = model.decode(embedding, POINTS, LABELS)
    points = torch.cat([torch.full((1, 2, 3), 7.0), POINTS, torch.zeros(1, 1, 3)], dim=1)
    labels = torch.cat([torch.full((1, 2), -1), LABELS, torch.tensor([[-1]])], dim=1)
    torch.testing.assert_close(model.decode(embedding, points, labels), plain, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_order_of_prompts_does_not_matter(model):
    embedding = model.encode(random_crop())
    turned = model.decode(embedding, POINTS.flip(1), LABELS.flip(1))
    torch.testing.assert_close(turned, model.decode(embedding, POINTS, LABELS), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_every_kind_of_prompt_changes_the_answer(model):
    embedding = model.encode(random_crop())

    def answer(points, labels, previous=None):
        return model.decode_raw(embedding, torch.tensor([points]), torch.tensor([labels]), previous)[0]

    click = answer([[9.0, 9.0, 9.0]], [1])
    others = [
        answer([[9.0, 9.0, 9.0]], [0]),
        answer([[9.0, 9.0, 20.0]], [1]),
        answer([[9.0, 9.0, 9.0], [4.0, 4.0, 4.0], [20.0, 20.0, 20.0]], [1, 2, 3]),
        answer([[9.0, 9.0, 9.0]], [1], torch.zeros(1, 1, 16, 16, 16)),
        answer([[9.0, 9.0, 9.0]], [1], torch.full((1, 1, 16, 16, 16), 5.0)),
    ]
    every = [click, *others]
    for i, a in enumerate(every):
        assert all((a - b).abs().max() > 1e-4 for b in every[:i])


@torch.inference_mode()
def test_batch_items_are_independent(model):
    crops = random_crop(batch=2)
    points = torch.cat([POINTS, POINTS.flip(2)])
    labels = torch.tensor([[1, 0], [1, -1]])
    logits, quality = model.decode(model.encode(crops), points, labels)
    for item in range(2):
        one = slice(item, item + 1)
        alone = model.decode(model.encode(crops[one]), points[one], labels[one])
        torch.testing.assert_close((logits[one], quality[one]), alone, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_slice_of_the_masks_equals_that_part_of_all(model):
    embedding = model.encode(random_crop())
    logits, quality = model.decode_raw(embedding, POINTS, LABELS)
    assert logits.shape[1] == quality.shape[1] == SMALL.mask_count
    for masks in (slice(0, 1), slice(1, None), slice(2, 4)):
        part = model.decode_raw(embedding, POINTS, LABELS, masks=masks)
        torch.testing.assert_close(part, (logits[:, masks], quality[:, masks]), atol=1e-5, rtol=1e-5)


# --- attention ---


@torch.inference_mode()
def test_groups_of_all_tokens_without_dilation_are_dense_attention(model):
    crop = random_crop(64)  # 4 x 4 x 4 tokens
    answers = []
    for pattern in (AttentionPattern(64, 1), AttentionPattern(), AttentionPattern(64, 1, "reference")):
        other = Famsam(with_attention(SMALL, pattern)).eval()
        other.load_state_dict(model.state_dict())
        answers.append(other.decode(other.encode(crop), POINTS, LABELS)[0])
    torch.testing.assert_close(answers[1], answers[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answers[2], answers[0], atol=1e-4, rtol=1e-4)
    sparse = Famsam(with_attention(SMALL, AttentionPattern(8, 4))).eval()
    sparse.load_state_dict(model.state_dict())
    assert (sparse.decode(sparse.encode(crop), POINTS, LABELS)[0] - answers[0]).abs().max() > 1e-4


def test_weights_and_configuration_survive_a_file(model, tmp_path):
    path = tmp_path / "small.safetensors"
    save_model(model, path)
    loaded = load_model(path, "cpu", "fp32")
    assert loaded.config == SMALL
    with torch.inference_mode():
        crop = random_crop()
        torch.testing.assert_close(
            loaded.decode(loaded.encode(crop), POINTS, LABELS), model.decode(model.encode(crop), POINTS, LABELS)
        )


def test_loaded_kernels_have_the_layout_that_convolutions_want(model, tmp_path):
    save_model(model, tmp_path / "small.safetensors", stored="fp16")
    loaded = load_model(tmp_path / "small.safetensors", "cpu", "fp32")
    assert [p.stride() for p in loaded.parameters()] == [p.stride() for p in model.parameters()]


# --- what a CPU computes in another way ---


@pytest.mark.parametrize("size", [(32, 32, 32), (6, 10, 4)])
def test_halving_equals_the_convolution_of_one_channel(size):
    torch.manual_seed(0)
    layer, crop = torch.nn.Conv3d(1, 8, 3, stride=2, padding=1), torch.randn(2, 1, *size)
    expected, got = layer(crop), halving(layer, crop)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    gradients = [torch.autograd.grad((out**2).sum(), layer.weight)[0] for out in (expected, got)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("learns", [True, False])
def test_doubled_features_are_added_as_the_transposed_convolution_makes_them(learns):
    torch.manual_seed(0)
    layer = torch.nn.ConvTranspose3d(16, 8, 2, stride=2).requires_grad_(learns)
    coarse = torch.randn(2, 16, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 8, 6, 8, 10).contiguous(memory_format=torch.channels_last_3d).requires_grad_(learns)
    expected = x + layer(coarse)
    got = added_doubled(x, coarse, layer)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    if learns:
        wanted = (x, layer.weight, layer.bias)
        gradients = [torch.autograd.grad((out**2).sum(), wanted) for out in (expected, got)]
        torch.testing.assert_close(*gradients)


def test_channels_last_of_a_single_item_has_the_strides_of_several():
    x = halved(torch.randn(1, 20, 8, 8, 8).contiguous(memory_format=torch.channels_last_3d))
    got = channels_last(x)
    assert torch.equal(got, x) and got.stride() == (20 * 64, 1, 20 * 16, 20 * 4, 20)


# --- normalisation ---


def everywhere(crop):
    return torch.ones_like(crop, dtype=torch.bool)


def test_equalisation_is_monotone_and_within_its_range():
    crop = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0)) ** 3 * 300
    mapped = contrast_limited_equalisation(crop, everywhere(crop))
    assert mapped.min() >= -1 and mapped.max() <= 1
    order = crop.flatten().argsort()
    assert (mapped.flatten()[order].diff() >= -1e-6).all()
    assert mapped.max() - mapped.min() > 1.8, "the range is used"


def test_equalisation_spreads_what_is_crowded():
    soft = 40 + 10 * torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    soft[..., :8] = -1000
    soft[..., -4:] = 1500
    mapped = contrast_limited_equalisation(soft, everywhere(soft))
    before = (soft[..., 8:-4].std() / (soft.max() - soft.min())).item()
    assert mapped[..., 8:-4].std() / 2 > 5 * before


def test_equalisation_gives_a_background_of_one_value_little_of_the_range():
    crop = torch.zeros(1, 1, 32, 32, 32)
    crop[:, :, 10:20, 5:25, 5:25] = torch.linspace(20, 100, 4000).view(10, 20, 20)
    mapped = contrast_limited_equalisation(crop, everywhere(crop))
    share = (crop == 0).float().mean().item()
    darkest_tissue = (mapped[crop > 0].min().item() + 1) / 2
    assert share > 0.85 and darkest_tissue < 0.12


@pytest.mark.parametrize("scale, shift", [(2.0, 0.0), (0.001, 5.0), (37.5, -1024.0), (1e-12, 0.0)])
def test_equalisation_ignores_units_and_offsets(scale, shift):
    crop = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    plain = contrast_limited_equalisation(crop, everywhere(crop))
    other = contrast_limited_equalisation(crop * scale + shift, everywhere(crop))
    torch.testing.assert_close(other, plain, atol=0.03, rtol=0)
    assert (other - plain).abs().mean() < 1e-3


def test_equalisation_outside_the_scan():
    crop = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    inside = everywhere(crop)
    inside[..., :6] = False
    mapped = contrast_limited_equalisation(crop, inside)
    assert (mapped[~inside] == -1).all()
    noisy = torch.where(inside, crop, torch.full_like(crop, 1e6))
    torch.testing.assert_close(contrast_limited_equalisation(noisy, inside)[inside], mapped[inside])
    assert (contrast_limited_equalisation(crop, torch.zeros_like(inside)) == -1).all()


@pytest.mark.parametrize("value", [0.0, 7.0, -1e6, 3e9])
def test_equalisation_of_one_value_is_finite(value):
    crop = torch.full((1, 1, 8, 8, 8), value)
    mapped = contrast_limited_equalisation(crop, everywhere(crop))
    assert torch.isfinite(mapped).all() and mapped.abs().max() <= 1


def test_equalisation_of_a_single_voxel_inside():
    crop = torch.randn(1, 1, 8, 8, 8)
    inside = torch.zeros_like(crop, dtype=torch.bool)
    inside[0, 0, 3, 4, 5] = True
    mapped = contrast_limited_equalisation(crop, inside)
    assert torch.isfinite(mapped).all() and mapped.abs().max() <= 1
    assert (mapped[~inside] == -1).all()


def test_equalisation_of_large_values_and_one_outlier():
    crop = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(4))
    plain = contrast_limited_equalisation(crop, everywhere(crop))
    large = contrast_limited_equalisation(crop * 1e9, everywhere(crop))
    torch.testing.assert_close(large, plain, atol=0.03, rtol=0)
    crop[0, 0, 2, 2, 2] = 1e12  # a metal artefact or a broken voxel
    spoiled = contrast_limited_equalisation(crop, everywhere(crop))
    rest = crop < 1e6
    torch.testing.assert_close(spoiled[rest], plain[rest], atol=0.05, rtol=0)


@pytest.mark.parametrize("values", ["noise", "integers", "one outlier", "one value", "two values", "huge"])
def test_values_of_a_rank_are_those_of_sorting(values):
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    given = {
        "noise": noise,
        "integers": (3 * noise).round(),
        "one outlier": torch.cat([noise, torch.tensor([1e7])]),
        "one value": torch.full((50,), -7.0),
        "two values": (noise > 1).float(),
        "huge": noise.sign() * 3e38,
    }[values]
    in_order = given.sort().values
    for ranks in ((0, len(given) - 1), (5, len(given) - 6), (len(given) // 2,) * 2):
        assert [float(value) for value in _ranked(given, *ranks)] == [float(in_order[rank]) for rank in ranks]


def test_equalisation_of_each_item_by_itself():
    crops = torch.cat([random_crop(16, seed=5), 1000 * random_crop(16, seed=6) ** 3])
    together = contrast_limited_equalisation(crops, everywhere(crops))
    for item in range(2):
        one = crops[item : item + 1]
        torch.testing.assert_close(together[item : item + 1], contrast_limited_equalisation(one, everywhere(one)))


@pytest.mark.parametrize("normed", [True, False])
def test_blocks_that_place_normalised_tokens_do_not_multiply_them(normed):
    """What a block adds for the place does not grow with the tokens, so that attention and MLP keep their part."""
    torch.manual_seed(0)
    block = TransformerBlock(16, 2, AttentionPattern(), normed_position=normed).eval()
    block.position.weight.data.mul_(20)
    x = torch.randn(1, 16, 4, 4, 4)
    with torch.inference_mode():
        small, large = (block._placed(scale * x) - scale * x for scale in (1.0, 100.0))
    growth = float(large.std() / small.std())
    assert growth == pytest.approx(1.0 if normed else 100.0, rel=0.2)


def test_centred_blocks_and_tokens_do_not_see_what_all_have_in_common():
    torch.manual_seed(0)
    block = TransformerBlock(16, 2, AttentionPattern(), normed_position=True, centred=True).eval()
    x, common = torch.randn(2, 16, 4, 4, 4), 50 * torch.randn(1, 16, 1, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(block(x + common) - common, block(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("centred", [False, True])
def test_some_tokens_of_a_block_are_those_of_all_where_all_are_active(centred):
    torch.manual_seed(0)
    block = TransformerBlock(16, 2, AttentionPattern(), normed_position=True, centred=centred).eval()
    x = torch.randn(1, 16, 4, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(block.forward_some(x, torch.arange(64)[None]), block(x))


def test_what_is_kept_between_clicks_does_not_show_in_the_answers():
    """The same clicks on an embedding that has seen others, and with nothing kept: equal to the last bit."""
    remembering, forgetful = small_model(), small_model()
    forgetful.decoder.remembers = False
    points = torch.tensor([[[4.0, 9, 20], [13, 2, 7], [25, 25, 1], [17, 30, 12], [8, 14, 29]]])
    labels = torch.tensor([[1, 0, 1, 1, 0]])
    with torch.inference_mode():
        embedding = remembering.encode(random_crop())
        for count in (1, 2, 3, 2, 5, 4):
            given = points[:, :count], labels[:, :count]
            anew = forgetful.decode(embedding, *given)
            for found, wanted in zip(remembering.decode(embedding, *given), anew):
                assert torch.equal(found, wanted)
    assert len(embedding.finer.paths._kept) == 5, "three sets of positive clicks, two of negative ones"


def test_a_residual_decoder_keeps_what_it_does_not_change():
    """With nothing of its own to add, the share of the previous logits that it keeps is what it answers."""
    model = small_model(dataclasses.replace(SMALL, residual=True))
    torch.nn.init.zeros_(model.decoder.masks.weight)
    torch.nn.init.zeros_(model.decoder.masks.bias)
    points, labels = torch.full((1, 1, 3), 15.0), torch.tensor([[1]])
    previous = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(3)) * 4
    embedding = model.encode(random_crop())
    logits, _ = model.decode_raw(embedding, points, labels, previous)
    torch.testing.assert_close(logits, 0.5 * previous.clamp(-6, 6).expand(-1, model.config.mask_count, -1, -1, -1))
    first, _ = model.decode_raw(embedding, points, labels)
    assert not first.any()
    assert small_model().decoder.kept_share is None, "files of before hold no such share"


def test_only_a_decoder_that_is_told_the_newest_click_depends_on_the_order():
    points = torch.tensor([[[8.0, 9, 10], [20, 21, 22], [5, 25, 14]]])
    labels = torch.tensor([[1, 1, 0]])
    order = [1, 2, 0]
    for newest in (False, True):
        model = small_model(dataclasses.replace(SMALL, newest=newest))
        embedding = model.encode(random_crop())
        logits, _ = model.decode_raw(embedding, points, labels)
        turned, _ = model.decode_raw(embedding, points[:, order], labels[:, order])
        assert torch.allclose(logits, turned, atol=1e-4) != newest
        before = torch.cat([torch.zeros(1, 2, 3), points], dim=1), torch.tensor([[-1, -1, 1, 1, 0]])
        torch.testing.assert_close(model.decode_raw(embedding, *before)[0], logits)


def test_the_newest_clicks_paths_are_the_same_from_memory():
    model = small_model(dataclasses.replace(SMALL, newest=True))
    points = torch.tensor([[[8.0, 9, 10], [20, 21, 22], [5, 25, 14]]])
    labels = torch.tensor([[1, 0, 1]])
    with torch.inference_mode():
        embedding = model.encode(random_crop())
        remembered = [model.decode_raw(embedding, points[:, :n], labels[:, :n])[0] for n in (1, 2, 3)]
        model.decoder.remembers = False
        for n, logits in zip((1, 2, 3), remembered):
            assert torch.equal(model.decode_raw(embedding, points[:, :n], labels[:, :n])[0], logits)
