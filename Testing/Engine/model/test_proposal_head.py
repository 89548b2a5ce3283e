"""The proposal head: geometry of seeds and coarse masks, choice of seeds, and its place in the model and its files."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from famsam.checkpoints import DEFAULT_WEIGHTS, load_model, save_model
from famsam.errors import ConfigError
from famsam.model.config import from_plain, to_plain
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.model.proposal_head import MASK_CHANNELS, USUAL_RADIUS, ProposalMaps, local_maxima, pick_seeds
from tiny_models import tiny_model

TINY = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)
TINY_WITH_HEAD = FamsamConfig(**{**vars(TINY), "proposals": True})

EVERYWHERE = torch.ones(64, dtype=torch.bool)


def gaussian_maps(quality, bias=2.0, shift=(0.0, 0.0, 0.0), spread=-1.0, grid=4):
    """Maps of a crop of 8 * grid voxels whose masks are balls around the seeds, displaced by ``shift`` usual radii."""
    kernel = torch.tensor([*[0.0] * MASK_CHANNELS, bias, -20.0, *shift, *[spread] * 3])
    kernels = kernel[None, :, None, None, None].expand(1, -1, grid, grid, grid)
    similarity = F.normalize(torch.randn(1, 4, *[2 * grid] * 3), dim=1)
    return ProposalMaps(quality, kernels, torch.randn(1, MASK_CHANNELS, *[2 * grid] * 3), similarity)


def test_seeds_lie_in_the_middle_of_their_cells():
    maps = gaussian_maps(torch.zeros(1, 4, 4, 4))
    positions = maps.seed_positions(torch.tensor([[0, 1 * 16 + 2 * 4 + 3]]))
    assert positions.tolist() == [[[3.5, 3.5, 3.5], [11.5, 19.5, 27.5]]]


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.5, 0.0, -0.5)])
def test_a_mask_is_held_together_around_the_centre_that_the_kernel_names(shift):
    maps = gaussian_maps(torch.zeros(1, 4, 4, 4), shift=shift)
    logits = maps.coarse_logits(torch.tensor([[2 * 16 + 1 * 4 + 2]]))
    assert logits.shape == (1, 1, 8, 8, 8)
    centre = torch.nonzero(logits[0, 0] > 0).float().mean(0) * 4 + 1.5
    expected = torch.tensor([19.5, 11.5, 19.5]) + USUAL_RADIUS * torch.tensor(shift)
    torch.testing.assert_close(centre, expected, atol=2.1, rtol=0)
    assert 0 < int((logits > 0).sum()) < 8**3 / 4


def test_features_shape_the_mask():
    maps = gaussian_maps(torch.zeros(1, 4, 4, 4), spread=2.5)
    maps.kernels_BKzyx = maps.kernels_BKzyx.clone()
    maps.kernels_BKzyx[:, 0], maps.kernels_BKzyx[:, MASK_CHANNELS] = 5.0, 0.0
    maps.features_BCzyx[:, 0] = -1.0
    maps.features_BCzyx[:, 0, :, :, 4:] = 1.0
    logits = maps.coarse_logits(torch.tensor([[42]]))[0, 0]
    assert (logits[..., 4:] > 0).all() and (logits[..., :4] < 0).all()


def test_likeness_to_the_seed_shapes_the_mask():
    maps = gaussian_maps(torch.zeros(1, 4, 4, 4), bias=1.0, spread=2.5)
    maps.kernels_BKzyx = maps.kernels_BKzyx.clone()
    maps.kernels_BKzyx[:, MASK_CHANNELS + 1] = 8.0
    maps.similarity_BDzyx = torch.zeros(1, 2, 8, 8, 8)
    maps.similarity_BDzyx[:, 0, :4], maps.similarity_BDzyx[:, 1, 4:] = 1.0, 1.0
    low, high = maps.coarse_logits(torch.tensor([[0, 63]]))[0]
    assert (low[:4] > 0).all() and (low[4:] < 0).all() and (high[4:] > 0).all() and (high[:4] < 0).all()


def test_peaks_of_the_promised_quality_are_found():
    quality = torch.full((1, 4, 4, 4), -9.0)
    quality[0, 0, 0, 0], quality[0, 0, 0, 1], quality[0, 3, 3, 3], quality[0, 0, 3, 0] = 2.0, 1.0, 0.0, -2.0
    maps = gaussian_maps(quality)
    assert local_maxima(maps, 5, EVERYWHERE, 0.02).tolist() == [0, 63, 12], "the neighbour of the best one is no peak"
    assert local_maxima(maps, 2, EVERYWHERE, 0.02).tolist() == [0, 63]
    assert local_maxima(maps, 5, EVERYWHERE, least_quality=0.3).tolist() == [0, 63]
    assert local_maxima(maps, 5, torch.arange(64) > 0, 0.02).tolist() == [1, 63, 12], "only where seeds are allowed"


def test_the_best_seeds_that_differ_are_picked():
    quality = torch.full((1, 4, 4, 4), -9.0)
    best, beside, far = (0, 0, 0), (0, 0, 1), (3, 3, 3)
    quality[0][best], quality[0][beside], quality[0][far] = 2.0, 1.0, 0.0
    wide = gaussian_maps(quality, spread=-0.5)
    seeds, logits = pick_seeds(wide, 5, EVERYWHERE, overlap=0.4)
    assert seeds.tolist() == [0, 63], "the one beside covers the same; the others promise nothing"
    assert logits.shape == (2, 8, 8, 8)
    narrow = gaussian_maps(quality, spread=-1.5)
    assert pick_seeds(narrow, 5, EVERYWHERE)[0].tolist() == [0, 1, 63]
    assert pick_seeds(narrow, 2, EVERYWHERE)[0].tolist() == [0, 1]
    assert pick_seeds(narrow, 5, torch.arange(64) > 0)[0].tolist() == [1, 63], "only where seeds are allowed"
    assert len(pick_seeds(narrow, 5, EVERYWHERE, least_quality=0.99)[0]) == 0
    assert len(pick_seeds(gaussian_maps(quality, bias=-1.0), 5, EVERYWHERE)[0]) == 0, "empty masks propose nothing"


@pytest.mark.parametrize("size", [64, 128])
@torch.inference_mode()
def test_shapes_in_the_model(size):
    torch.manual_seed(0)
    model = Famsam(TINY_WITH_HEAD).eval()
    maps = model.propose(model.encode(torch.randn(2, 1, size, size, size)))
    assert maps.quality_Bzyx.shape == (2, *[size // 8] * 3)
    logits = maps.coarse_logits(torch.zeros(2, 5, dtype=torch.long))
    assert logits.shape == (2, 5, *[size // 4] * 3) and torch.isfinite(logits).all()


def test_budget_with_the_head(tmp_path):
    model = Famsam(FamsamConfig(proposals=True))
    assert sum(p.numel() for p in model.parameters()) <= 6_500_000
    save_model(model, tmp_path / "model.safetensors", stored="fp16")
    assert (tmp_path / "model.safetensors").stat().st_size <= 13_000_000


def test_the_head_changes_nothing_else_and_is_kept_in_files(tmp_path):
    torch.manual_seed(0)
    model = Famsam(TINY_WITH_HEAD).eval()
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", device="cpu", precision="fp32")
    assert loaded.proposes and loaded.config == TINY_WITH_HEAD
    plain = Famsam(TINY).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("proposal_head.")})
    save_model(plain, tmp_path / "plain.safetensors")
    plain = load_model(tmp_path / "plain.safetensors", device="cpu", precision="fp32")
    crop = torch.randn(1, 1, 32, 32, 32)
    points, labels = torch.tensor([[[10.0, 20.0, 5.0]]]), torch.tensor([[1]])
    with torch.inference_mode():
        answers = [m.decode(m.encode(crop), points, labels)[0] for m in (plain, loaded)]
    torch.testing.assert_close(*answers, rtol=0, atol=0)


def test_files_from_before_the_head_load_without_one():
    data = json.loads(json.dumps(to_plain(TINY)))
    del data["proposals"]
    assert from_plain(FamsamConfig, data) == TINY
    del data["depth"]
    with pytest.raises(ConfigError, match="missing: \\['depth'\\]"):
        from_plain(FamsamConfig, data)
    assert load_model(DEFAULT_WEIGHTS, device="cpu", precision="fp32").name == "famsam"


@pytest.mark.parametrize("model", [Famsam(TINY), tiny_model("sam_med3d")])
def test_a_model_without_the_head_says_what_to_do(model):
    assert not model.proposes
    with pytest.raises(ConfigError, match="famsam train-proposals"):
        model.propose(None)
