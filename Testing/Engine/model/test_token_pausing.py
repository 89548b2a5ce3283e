"""Token pausing: off it changes nothing, on it computes what it says, for the tokens that it says."""

from __future__ import annotations

import pytest
import torch
from famsam.checkpoints import DEFAULT_PAUSED_SHARE, load_model, save_model
from famsam.errors import ConfigError
from famsam.model.attention import AttentionPattern
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.model.famsam_encoder import TokenPausing, TransformerBlock, changed_most
from tiny_models import tiny_model

TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=4, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1,
    attention=AttentionPattern(group_size=16, dilation=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Famsam(TINY).eval().requires_grad_(False)


def crop(seed=0, size=64):
    return torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def encoded(model, share, after=1):
    return model.encoder(crop(), TokenPausing(share, after))[0]


def test_only_the_shipped_weights_pause_unless_told(model, tmp_path):
    assert load_model(device="cpu").pausing == TokenPausing(DEFAULT_PAUSED_SHARE)
    assert load_model(device="cpu", paused_share=0.0).pausing == TokenPausing()
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors", device="cpu").pausing == TokenPausing()


def test_off_is_bit_identical(model):
    torch.testing.assert_close(encoded(model, 0.0), model.encoder(crop())[0], rtol=0, atol=0)
    torch.testing.assert_close(encoded(model, 0.0, after=2), model.encoder(crop())[0], rtol=0, atol=0)


def test_as_many_tokens_as_said_keep_their_value(model):
    """Seen before the last normalisation, which every token passes."""
    seen = []
    hook = model.encoder.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    try:
        for block_count in (2, 4):
            kept = model.encoder.blocks
            model.encoder.blocks = kept[:block_count]
            encoded(model, 0.75, after=2)
            model.encoder.blocks = kept
    finally:
        hook.remove()
    same = (seen[0] == seen[1]).all(dim=1).flatten()
    assert len(same) == 64 and int(same.sum()) == 48


def test_it_computes_less(model):
    """Counted in the products of the MLPs, not in seconds."""
    rows = []
    hooks = [
        block.mlp.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[1]))
        for block in model.encoder.blocks
    ]
    encoded(model, 0.5)
    for hook in hooks:
        hook.remove()
    assert rows == [64, 32, 32, 32]


def test_all_tokens_active_is_the_block_itself():
    torch.manual_seed(0)
    block = TransformerBlock(16, 2, AttentionPattern(group_size=16, dilation=4)).eval()
    x = torch.randn(2, 16, 4, 4, 4)
    every = torch.arange(64).expand(2, -1)
    with torch.inference_mode():
        torch.testing.assert_close(block.forward_some(x, every), block(x))


def test_the_tokens_that_changed_most_stay_active_in_every_sparse_group():
    before = torch.ones(1, 4, 2, 2, 2)
    after = before.clone()
    for index, change in ((0, 9.0), (4, 1.0), (1, 1.0), (5, 9.0), (2, 3.0), (6, 2.0), (3, 2.0), (7, 3.0)):
        after.flatten(2)[:, :, index] += change
    assert changed_most(before, after, 0.5, dilation=4).tolist() == [[0, 5, 2, 7]]
    assert changed_most(before, after, 0.25, dilation=1).tolist() == [[0, 5]]
    assert sorted(changed_most(before, after, 1.0, dilation=4)[0].tolist()) == list(range(8))


def test_more_pausing_moves_the_answer_further(model):
    exact = encoded(model, 0.0)
    errors = [float((encoded(model, share) - exact).abs().mean()) for share in (0.25, 0.5, 0.9)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_setting_comes_with_loading(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", device="cpu", precision="fp32", paused_share=0.5)
    assert loaded.pausing == TokenPausing(0.5)
    torch.testing.assert_close(loaded.encode(crop()).tokens, encoded(model, 0.5))
    assert load_model(tmp_path / "model.safetensors", device="cpu").pausing == TokenPausing()
    save_model(tiny_model("sam_med3d"), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="sam_med3d"):
        load_model(tmp_path / "other.safetensors", device="cpu", paused_share=0.5)
    for wrong in ({"share": 1.0}, {"share": -0.1}, {"after": 0}):
        with pytest.raises(ConfigError, match="below 1"):
            TokenPausing(**wrong)
