from __future__ import annotations

import pytest
import torch
from famsam.errors import ConfigError, MissingDependencyError
from famsam.model.attention import AttentionPattern, attend, flash_attn_usable, sparse_attention

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def qkv(batch: int, heads: int, tokens: int, channels: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, tokens, channels, generator=generator) for _ in range(3)]


def by_definition(q, k, v, group_size, dilation, bias=None):
    """Eq. 3 token by token: a token's group is its segment's tokens of the same remainder."""
    tokens = q.shape[2]
    index = torch.arange(tokens)
    segment, remainder = index // (group_size * dilation), index % dilation
    alike = (segment[:, None] == segment) & (remainder[:, None] == remainder)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.masked_fill(~alike, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize(
    ("tokens", "group_size", "dilation"),
    [(24, 4, 3), (24, 12, 2), (24, 24, 1), (24, 6, 1), (23, 4, 3), (25, 4, 3), (7, 4, 2), (13, 2, 6)],
)
def test_sparse_attention_is_equation_3_put_back_in_place(tokens, group_size, dilation, backend):
    q, k, v = qkv(2, 3, tokens, 8)
    found = sparse_attention(q, k, v, AttentionPattern(group_size, dilation, backend))
    torch.testing.assert_close(found, by_definition(q, k, v, group_size, dilation), **CLOSE)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("tokens", "group_size", "dilation"), [(24, 4, 3), (23, 4, 3), (24, 24, 1)])
def test_groups_take_their_part_of_a_bias(tokens, group_size, dilation, backend):
    q, k, v = qkv(2, 3, tokens, 8)
    bias = torch.randn(2, 3, tokens, tokens, generator=torch.Generator().manual_seed(1))
    found = sparse_attention(q, k, v, AttentionPattern(group_size, dilation, backend), bias_BHNN=bias)
    torch.testing.assert_close(found, by_definition(q, k, v, group_size, dilation, bias), **CLOSE)


def test_all_tokens_without_dilation_is_dense():
    q, k, v = qkv(1, 2, 16, 4)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for pattern in (AttentionPattern(), AttentionPattern(16, 1), AttentionPattern(16, 1, "reference")):
        torch.testing.assert_close(sparse_attention(q, k, v, pattern), dense, **CLOSE)


def test_a_known_sparse_pattern():
    # Two segments of four tokens, every second token alike; all scores 0, so that each output is its group's mean.
    v = torch.tensor([1.0, 10.0, 3.0, 30.0, 5.0, 50.0, 7.0, 70.0]).view(1, 1, 8, 1)
    zero = torch.zeros_like(v)
    found = sparse_attention(zero, zero, v, AttentionPattern(2, 2)).flatten().tolist()
    assert found == [2.0, 20.0, 2.0, 20.0, 6.0, 60.0, 6.0, 60.0]


def test_padding_of_a_last_segment_has_no_influence():
    q, k, v = qkv(1, 1, 10, 4)
    whole = sparse_attention(q, k, v, AttentionPattern(4, 2))
    first = sparse_attention(q[:, :, :8], k[:, :, :8], v[:, :, :8], AttentionPattern(4, 2))
    torch.testing.assert_close(whole[:, :, :8], first, **CLOSE)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(whole[:, :, 8:], v[:, :, 8:], **CLOSE)  # each alone in its group


@pytest.mark.parametrize("tokens", [24, 23])
def test_gradients_agree_between_backends(tokens):
    bias = torch.randn(1, 2, tokens, tokens, generator=torch.Generator().manual_seed(3))
    gradients = []
    for backend in ("sdpa", "reference"):
        inputs = [t.requires_grad_() for t in (*qkv(1, 2, tokens, 8), bias.clone())]
        sparse_attention(*inputs[:3], AttentionPattern(4, 3, backend), bias_BHNN=inputs[3]).square().sum().backward()
        gradients.append([t.grad for t in inputs])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_scale_is_used():
    q, k, v = qkv(1, 1, 6, 4)
    found = [attend(q, k, v, None, backend, scale=0.1) for backend in ("sdpa", "reference")]
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    torch.testing.assert_close(found[0], (q @ k.transpose(-2, -1) * 0.1).softmax(-1) @ v, **CLOSE)


def test_bf16_agrees_within_its_precision():
    q, k, v = (t.bfloat16() for t in qkv(1, 2, 24, 8))
    exact = sparse_attention(q.float(), k.float(), v.float(), AttentionPattern(4, 3, "reference"))
    found = sparse_attention(q, k, v, AttentionPattern(4, 3))
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)


def test_flash_attn_backend_says_what_it_needs_on_a_cpu():
    q, k, v = qkv(1, 1, 8, 4)
    assert not flash_attn_usable(q)
    with pytest.raises(MissingDependencyError, match="pip install flash-attn"):
        sparse_attention(q, k, v, AttentionPattern(4, 2, "flash_attn"))


@pytest.mark.skipif(
    not torch.cuda.is_available() or not flash_attn_usable(torch.zeros(1, 1, 1, 8, device="cuda").half()),
    reason="needs flash-attn and a CUDA GPU of compute capability 8.0 or newer",
)
@pytest.mark.parametrize(("group_size", "dilation"), [(0, 1), (16, 4)])
def test_flash_attn_agrees_with_the_reference(group_size, dilation):
    q, k, v = (t.cuda().bfloat16() for t in qkv(2, 4, 128, 32))
    found = sparse_attention(q, k, v, AttentionPattern(group_size, dilation, "flash_attn"))
    exact = sparse_attention(q.float(), k.float(), v.float(), AttentionPattern(group_size, dilation, "reference"))
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("values", "word"), [((-1, 1), "group_size"), ((4, 0), "dilation"), ((4, 1, "magic"), "magic")]
)
def test_impossible_patterns_are_refused(values, word):
    with pytest.raises(ConfigError, match=word):
        AttentionPattern(*values)
