"""The relative-position bias that the published checkpoints were trained with.

Shape legend: B batch, H heads, z y x the place of a query, i j m the place of a key (i along z, j along y, m along x),
G = grid size, N = G**3 tokens, D channels a head.

The published code adds to the score of query (z, y, x) and key (i, j, m), with q not scaled,

    q[z, y, x] . Rd[z - m]  +  q[z, y, i] . Rh[y - m]  +  q[z, y, j] . Rw[j - m]

and not the decomposed bias of the textbook, q[z, y, x] . (Rd[z - i] + Rh[y - j] + Rw[x - m]). Row ``t`` of a table for
windows of W tokens stands for the offset ``t - (W - 1)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor


class Tables(NamedTuple):
    """The learnt tables of one layer, (T, D) each, T = 2 W - 1 for windows of W tokens."""

    d_TD: Tensor
    h_TD: Tensor
    w_TD: Tensor
    rows_DS: Optional[Tensor] = None
    """``all_rows`` of the three, if they are at hand; for a GPU."""


def position_bias(q_BHND: Tensor, tables: Tables, grid_size: int) -> Tensor:
    """(B, H, N, N): the bias on the scores of all queries and keys of one grid."""
    return _add_terms(*_terms(q_BHND, tables, grid_size))


def padded_window_bias(q_BHND: Tensor, pad_q_HD: Tensor, tables: Tables, grid_size: int) -> Tensor:
    """(B, H, N, N + 1): the bias of real queries on the real keys and on one key that stands for all padded ones.

    The published code pads the grid with zeros to a window of W > G tokens along each edge and lets the padded tokens
    take part. Their queries, keys and values are all alike (the projection's bias), so that in a softmax they act as
    one key whose bias is the log of the sum of the exponentials of theirs. For a fixed m the sum over i and j splits
    into products of sums over i and over j, and (i, j, m) is padded if any of the three is G or more.

    Args:
        pad_q_HD: query of a padded token.
    """
    z_term, y_term, x_term = _terms(q_BHND, tables, grid_size)
    window = (tables.d_TD.shape[0] + 1) // 2
    y_pad_Hym = torch.einsum("hd,ymd->hym", pad_q_HD, _rows(tables.h_TD, 0, grid_size)) + math.log(window - grid_size)
    x_pad_Hm = torch.einsum("hd,jmd->hjm", pad_q_HD, _rows(tables.w_TD, grid_size, window)).logsumexp(dim=1)

    # Sums over i and over j, real and padded, as functions of (z, y, m).
    y_real, y_pad = y_term.logsumexp(dim=4), y_pad_Hym[:, None]
    x_real, x_pad = x_term.logsumexp(dim=4), x_pad_Hm[:, None, None]
    x_all = torch.logaddexp(x_real, x_pad)
    m_is_real = torch.arange(window, device=q_BHND.device) < grid_size
    padded_BHzym = torch.logaddexp(y_pad + x_all, y_real + torch.where(m_is_real, x_pad, x_all))
    virtual_BHzyx = (z_term + padded_BHzym[:, :, :, :, None]).logsumexp(dim=-1)

    real = _add_terms(z_term[..., :grid_size], y_term[..., :grid_size], x_term[..., :grid_size])
    return torch.cat([real, virtual_BHzyx.flatten(2)[..., None].to(real.dtype)], dim=-1)


def _terms(q_BHND: Tensor, tables: Tables, grid_size: int) -> Tuple[Tensor, Tensor, Tensor]:
    """The three products with the tables: (z, y, x, m), (z, y, i, m) and (z, y, j, m) after B and H."""
    if q_BHND.is_cuda:
        return terms_at_once(q_BHND, all_rows(tables) if tables.rows_DS is None else tables.rows_DS, grid_size)
    q_BHzyxD = q_BHND.unflatten(2, (grid_size, grid_size, grid_size))
    z_term = torch.einsum("bhzyxd,zmd->bhzyxm", q_BHzyxD, _rows(tables.d_TD, 0, grid_size))
    y_term = torch.einsum("bhzyid,ymd->bhzyim", q_BHzyxD, _rows(tables.h_TD, 0, grid_size))
    x_term = torch.einsum("bhzyjd,jmd->bhzyjm", q_BHzyxD, _rows(tables.w_TD, 0, grid_size))
    return z_term, y_term, x_term


def all_rows(tables: Tables) -> Tensor:
    """The rows of all tables as columns (D, S), each table's in reverse: those of d, then those of h and w."""
    return torch.cat([tables.w_TD, tables.h_TD, tables.d_TD]).flip(0).T


def terms_at_once(q_BHND: Tensor, rows_DS: Tensor, grid_size: int) -> Tuple[Tensor, Tensor, Tensor]:
    """The three products as views of one with all rows of all tables: a tenth of the kernels, more arithmetic.

    With the rows in reverse, the one for position p and position m of the window is row m - p + W - 1, so that p runs
    backwards along the rows as it runs forwards along its own axis.

    Args:
        rows_DS: see ``all_rows``.
    """
    window = (rows_DS.shape[1] // 3 + 1) // 2
    products_BHzyxS = (q_BHND @ rows_DS).unflatten(2, (grid_size, grid_size, grid_size))
    z_term, y_term, x_term = (
        part.as_strided(
            (*part.shape[:5], window),
            [stride - (at == axis) for at, stride in enumerate(part.stride())],
            part.storage_offset() + window - 1,
        )
        for axis, part in zip((2, 3, 4), products_BHzyxS.chunk(3, dim=-1))
    )
    return z_term, y_term, x_term


def _rows(rel_TD: Tensor, start: int, stop: int) -> Tensor:
    """Rows for the offsets from positions ``start`` to ``stop`` to every position m of the window: (., W, D)."""
    window = (rel_TD.shape[0] + 1) // 2
    positions = torch.arange(start, stop, device=rel_TD.device)
    return rel_TD[positions[:, None] - torch.arange(window, device=rel_TD.device) + window - 1]


def _add_terms(z_term: Tensor, y_term: Tensor, x_term: Tensor) -> Tensor:
    """The sum of the three over real keys: (B, H, N, N)."""
    of_row_BHzyijm = y_term[:, :, :, :, :, None] + x_term[:, :, :, :, None]
    bias = z_term[:, :, :, :, :, None, None] + of_row_BHzyijm[:, :, :, :, None]
    return bias.flatten(5).flatten(2, 4)
