"""3D sparse flash attention (FastSAM3D, Shen et al. 2024, eq. 3) behind one function with three backends.

Shape legend: B batch, H heads, N tokens (raster order of the z, y, x grid), D channels a head, W tokens a group,
R dilation, S segments.

The token sequence is cut into segments of ``W * R`` tokens. Inside a segment, group ``i`` holds the tokens
``S_i, S_{i+R}, ..., S_{i+(W-1)R}`` (eq. 3); all groups of all segments run as one batched attention call, and the
recomposition writes each output back to the place of its token. ``W = N, R = 1`` is dense attention.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, MissingDependencyError

BACKENDS = ("auto", "flash_attn", "sdpa", "reference")


@dataclass(frozen=True)
class AttentionPattern:
    """Which tokens attend to which, and what computes it; the paper's 2x2 ablation is four of these values."""

    group_size: int = 0
    """W of eq. 3: tokens a sparse group; 0 means all tokens (dense when ``dilation`` is 1)."""
    dilation: int = 1
    """R of eq. 3: a group takes every R-th token of its segment."""
    backend: str = "auto"
    """One of ``BACKENDS``; "auto" takes flash-attn where it can run, else SDPA."""

    def __post_init__(self) -> None:
        if self.group_size < 0:
            raise ConfigError(f"group_size must be 0 (all tokens) or positive, got {self.group_size}.")
        if self.dilation < 1:
            raise ConfigError(f"dilation must be at least 1, got {self.dilation}.")
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend must be one of {BACKENDS}, got {self.backend!r}.")

    def is_dense(self, token_count: int) -> bool:
        """True if every token attends to every token in a sequence of ``token_count``."""
        return self.dilation == 1 and (self.group_size == 0 or self.group_size >= token_count)


DENSE = AttentionPattern()


def sparse_attention(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    pattern: AttentionPattern = DENSE,
    scale: Optional[float] = None,
    bias_BHNN: Optional[Tensor] = None,
) -> Tensor:
    """Self-attention within the sparse groups of ``pattern`` (FastSAM3D eq. 3), recomposed to the input's order.

    Args:
        q_BHND, k_BHND, v_BHND: queries, keys and values, (B, H, N, D) each, tokens in raster order.
        pattern: group size W, dilation R and backend.
        scale: factor on the scores, ``1 / sqrt(D)`` if None.
        bias_BHNN: added to the scores (a position bias); each group takes the part of its own tokens.

    Returns:
        (B, H, N, D): the output of every token at that token's place.

    A last segment that N leaves incomplete is padded; padding is never attended to.
    """
    token_count = q_BHND.shape[2]
    if pattern.is_dense(token_count):
        return attend(q_BHND, k_BHND, v_BHND, bias_BHNN, pattern.backend, scale)
    dilation = min(pattern.dilation, token_count)
    group_size = min(pattern.group_size or token_count, math.ceil(token_count / dilation))
    padding = -token_count % (group_size * dilation)
    bias = None
    if bias_BHNN is not None:
        bias = _bias_to_groups(F.pad(bias_BHNN, (0, padding, 0, padding)), group_size, dilation)
    if padding:
        q_BHND, k_BHND, v_BHND = (F.pad(t, (0, 0, 0, padding)) for t in (q_BHND, k_BHND, v_BHND))
        is_padding_N = torch.arange(token_count + padding, device=q_BHND.device) >= token_count
        # A group made of padding only still needs something to attend to; its output is cut off below.
        groups_GW = _to_groups(is_padding_N[None, None, :, None], group_size, dilation)[:, 0, :, 0]
        blocked_GW = groups_GW & ~groups_GW.all(dim=1, keepdim=True)
        bias_GW = torch.zeros(blocked_GW.shape, device=q_BHND.device, dtype=q_BHND.dtype)
        bias_GW = bias_GW.masked_fill(blocked_GW, float("-inf"))
        padding_bias = bias_GW.repeat(q_BHND.shape[0], 1)[:, None, None, :]
        bias = padding_bias if bias is None else bias + padding_bias
    q_GHWD, k_GHWD, v_GHWD = (_to_groups(t, group_size, dilation) for t in (q_BHND, k_BHND, v_BHND))
    out_GHWD = attend(q_GHWD, k_GHWD, v_GHWD, bias, pattern.backend, scale)
    return _from_groups(out_GHWD, q_BHND.shape[0], group_size, dilation)[:, :, :token_count]


def attend(
    q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, bias: Optional[Tensor], backend: str, scale: Optional[float] = None
) -> Tensor:
    """Attention of every query to every key by the chosen backend; ``bias`` broadcasts to (B, H, N, M).

    flash-attn has no place for a bias: with one, and where queries and keys differ in number, SDPA takes its place.
    """
    if backend == "reference":
        return _reference(q_BHND, k_BHMD, v_BHMD, bias, scale)
    if bias is None and q_BHND.shape == k_BHMD.shape and backend in ("auto", "flash_attn"):
        if flash_attn_usable(q_BHND):
            return _flash_attn(q_BHND, k_BHMD, v_BHMD, scale)
        if backend == "flash_attn":
            raise MissingDependencyError(
                "The flash_attn backend needs the flash-attn package and fp16 or bf16 tensors on a CUDA GPU of compute "
                f"capability 8.0 or newer; got {q_BHND.dtype} on {q_BHND.device}. Use backend 'auto' or 'sdpa', or "
                "install it with: pip install flash-attn --no-build-isolation"
            )
    return F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, attn_mask=bias, scale=scale)


def flash_attn_usable(tensor: Tensor) -> bool:
    """True if flash-attn is installed and can run on this tensor's device, precision and head width."""
    if not tensor.is_cuda or tensor.dtype not in (torch.float16, torch.bfloat16) or tensor.shape[-1] > 256:
        return False
    return torch.cuda.get_device_capability(tensor.device) >= (8, 0) and _flash_attn_function() is not None


@functools.cache
def _flash_attn_function():  # type: ignore[no-untyped-def]
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func


def _flash_attn(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, scale: Optional[float]) -> Tensor:
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q_BHND, k_BHMD, v_BHMD))
    out_BNHD: Tensor = _flash_attn_function()(q, k, v, softmax_scale=scale)
    return out_BNHD.transpose(1, 2)


def _reference(
    q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, bias: Optional[Tensor], scale: Optional[float]
) -> Tensor:
    """softmax(q k^T * scale + bias) v, written out; the yardstick of the tests."""
    scale = q_BHND.shape[-1] ** -0.5 if scale is None else scale
    scores_BHNM = (q_BHND * scale) @ k_BHMD.transpose(-2, -1)
    if bias is not None:
        scores_BHNM = scores_BHNM + bias
    return scores_BHNM.softmax(dim=-1) @ v_BHMD


def _to_groups(t_BHND: Tensor, group_size: int, dilation: int) -> Tensor:
    """(B, H, N, D) -> (B * S * R, H, W, D), N = S * W * R."""
    batch, heads, _, channels = t_BHND.shape
    t_BHSWRD = t_BHND.reshape(batch, heads, -1, group_size, dilation, channels)
    return t_BHSWRD.permute(0, 2, 4, 1, 3, 5).reshape(-1, heads, group_size, channels)


def _from_groups(t_GHWD: Tensor, batch: int, group_size: int, dilation: int) -> Tensor:
    """Inverse of ``_to_groups``: (B * S * R, H, W, D) -> (B, H, N, D)."""
    _, heads, _, channels = t_GHWD.shape
    t_BSRHWD = t_GHWD.reshape(batch, -1, dilation, heads, group_size, channels)
    return t_BSRHWD.permute(0, 3, 1, 4, 2, 5).reshape(batch, heads, -1, channels)


def _bias_to_groups(bias_BHNN: Tensor, group_size: int, dilation: int) -> Tensor:
    """(B, H, N, N) -> (B * S * R, H, W, W), of each group the bias between its own tokens."""
    heads = bias_BHNN.shape[1]
    grid = (-1, group_size, dilation)
    bias_BHSWRSWR = bias_BHNN.unflatten(3, grid).unflatten(2, grid)
    bias_BHWWSR = bias_BHSWRSWR.diagonal(dim1=2, dim2=5).diagonal(dim1=3, dim2=5)
    return bias_BHWWSR.permute(0, 4, 5, 1, 2, 3).reshape(-1, heads, group_size, group_size)
