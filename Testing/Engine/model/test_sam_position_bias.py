"""The published position bias and the exact rewrite of the padded windows, against the definition, loop by loop."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from famsam.model.attention import attend
from famsam.model.sam_config import VitConfig
from famsam.model.sam_position_bias import Tables, _terms, all_rows, padded_window_bias, position_bias, terms_at_once
from famsam.model.sam_vit import RelativeAttention


def tables(window: int, channels: int, generator: torch.Generator):
    return [torch.randn(2 * window - 1, channels, generator=generator, dtype=torch.float64) for _ in range(3)]


def definition(q_zyxD, rel_d, rel_h, rel_w, size: int):
    """(N, N): q[z,y,x].Rd[z-m] + q[z,y,i].Rh[y-m] + q[z,y,j].Rw[j-m] on a cube of ``size`` tokens an edge."""
    bias = torch.zeros((size,) * 6, dtype=q_zyxD.dtype)
    for z, y, x, i, j, m in itertools.product(range(size), repeat=6):
        bias[z, y, x, i, j, m] = (
            q_zyxD[z, y, x] @ rel_d[z - m + size - 1]
            + q_zyxD[z, y, i] @ rel_h[y - m + size - 1]
            + q_zyxD[z, y, j] @ rel_w[j - m + size - 1]
        )
    return bias.reshape(size**3, size**3)


def test_bias_is_the_published_one():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 2, 27, 4, generator=generator, dtype=torch.float64)
    rel = tables(3, 4, generator)
    found = position_bias(q, Tables(*rel), grid_size=3)
    for b, h in itertools.product(range(2), range(2)):
        torch.testing.assert_close(found[b, h], definition(q[b, h].view(3, 3, 3, 4), *rel, size=3))


@pytest.mark.parametrize("window", [3, 5])
def test_the_terms_of_one_product_are_those_of_three(window):
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 2, 27, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    rel = Tables(*tables(window, 4, generator))
    for found, expected in zip(terms_at_once(q, all_rows(rel), grid_size=3), _terms(q, rel, grid_size=3)):
        torch.testing.assert_close(found, expected)
        weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        gradients = [torch.autograd.grad((term * weights).sum(), q, retain_graph=True)[0] for term in (found, expected)]
        torch.testing.assert_close(*gradients)


def test_one_virtual_key_is_exactly_the_padded_window():
    """Attention on a 2**3 grid padded to 3**3, as the published code does it, against the rewrite."""
    generator = torch.Generator().manual_seed(1)
    grid, window, channels = 2, 3, 4
    rel = tables(window, channels, generator)
    real = torch.randn(3, grid, grid, grid, channels, generator=generator, dtype=torch.float64)
    pad = torch.randn(3, channels, generator=generator, dtype=torch.float64)
    padded = pad.view(3, 1, 1, 1, channels).repeat(1, window, window, window, 1)
    padded[:, :grid, :grid, :grid] = real

    q, k, v = padded.flatten(1, 3)
    scores = q @ k.T / math.sqrt(channels) + definition(padded[0], *rel, size=window)
    expected = (scores.softmax(-1) @ v).view(window, window, window, channels)[:grid, :grid, :grid].flatten(0, 2)

    q, k, v = real.flatten(1, 3)[:, None, None]
    bias = padded_window_bias(q, pad[0][None], Tables(*rel), grid_size=grid)
    k, v = (torch.cat([t, p.view(1, 1, 1, channels)], dim=2) for t, p in ((k, pad[1]), (v, pad[2])))
    for backend in ("reference", "sdpa"):
        torch.testing.assert_close(attend(q, k, v, bias, backend)[0, 0], expected)


@pytest.mark.parametrize("window", [3, 5])
def test_kept_rows_are_those_of_the_tables(window, monkeypatch):
    """What is kept for a GPU: every tensor says that it is on one."""
    torch.manual_seed(0)
    config = VitConfig(width=8, heads=2, mlp_width=8, out_width=8, blocks=("window",), window_size=window, grid_size=3)
    layer = RelativeAttention(config, window).requires_grad_(False)
    for table in (layer.rel_pos_d, layer.rel_pos_h, layer.rel_pos_w):
        table.normal_()
    tokens = torch.randn(2, 3, 3, 3, 8)
    expected = layer(tokens)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    layer.keep_rows(torch.float32)
    torch.testing.assert_close(layer(tokens), expected)
    layer.rel_pos_d.zero_()
    torch.testing.assert_close(layer(tokens), expected)
    layer.keep_rows(torch.float32)
    assert (layer(tokens) - expected).abs().max() > 1e-3
