"""The Triton kernel behind ``line_minimum``; importing it needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def line_minimum(  # type: ignore[no-untyped-def]
    value_pointer,
    cost_pointer,
    lines,
    length,
    inner,
    choices,
    per_cost,
    SQUARED: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Replace values by the minimum over their line of value + |difference of cost|, or of place, squared.

    Lines of ``length`` voxels, ``inner`` elements apart. Each ``per_cost`` times ``inner`` lines have costs of their
    own, shared by ``choices`` such groups one after another.
    """
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.arange(0, PADDED)
    outer, within = line // inner, line % inner
    step = place[None, :] * inner
    inside = (line < lines)[:, None] & (place < length)[None, :]
    at = (outer * length * inner + within)[:, None] + step
    value = tl.load(value_pointer + at, mask=inside, other=float("inf"))
    if SQUARED:
        apart = (place[:, None] - place[None, :]).to(tl.float32)
        between = (apart * apart)[None, :, :]
    else:
        owner = outer // (choices * per_cost) * per_cost + outer % per_cost
        cost = tl.load(cost_pointer + (owner * length * inner + within)[:, None] + step, mask=inside, other=0.0)
        between = tl.abs(cost[:, :, None] - cost[:, None, :])
    least = tl.min(value[:, None, :] + between, axis=2)
    tl.store(value_pointer + at, least, mask=inside)
