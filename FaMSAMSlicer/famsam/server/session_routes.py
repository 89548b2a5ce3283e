"""The API's routes of sessions: the verbs of ``famsam.Session``, whose answers carry only the box that changed."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Optional

import numpy as np
from fastapi import APIRouter, Query, Request
from typing_extensions import Annotated

from ..compact_mask import CompactMask
from ..errors import ConfigError, PromptError
from ..geometry import Box, clip, union
from ..proposing import Candidate, ProposalOptions
from ..session import Result, Session
from .fairness import ModelBusyError
from .hub import LOOK, Hub, OpenSession, ServerError, hub_of
from .packing import pack_bits, pack_probabilities, unpack_bits
from .problems import PROBLEMS
from .wire import (
    AheadAnswer,
    AheadRequest,
    BoxRequest,
    CandidateAnswer,
    MaskRequest,
    MoveRequest,
    PointRequest,
    ProposalRequest,
    ProposalsAnswer,
    SessionInfo,
    StateAnswer,
    StateRequest,
    UncertaintyAnswer,
    Update,
)

_STEP_BYTES = 600_000  # of a step in a session's history: mostly its low-resolution logits

router = APIRouter(prefix="/v1", responses=PROBLEMS)


@router.post("/volumes/{volume_id}/sessions", status_code=201)
async def open_session(request: Request, volume_id: str) -> SessionInfo:
    """Open a session on a scan, for one segment."""
    hub = hub_of(request.app)
    opened = await hub.open_session(hub.scan(volume_id))
    return SessionInfo(id=opened.id, volume_id=opened.scan.id)


@router.delete("/sessions/{session_id}", status_code=204)
async def close_session(request: Request, session_id: str) -> None:
    """Close a session."""
    hub_of(request.app).close_session(session_id)


@router.post("/sessions/{session_id}/leave", status_code=204)
async def leave_session(request: Request, session_id: str) -> None:
    """Close a session in a minute, unless anything is asked of it before, as by a page that was only reloaded."""
    hub_of(request.app).leave_session(session_id)


@router.get("/sessions/{session_id}/mask")
async def current_mask(request: Request, session_id: str) -> Update:
    """The whole mask, as the box that holds it."""

    def work(opened: OpenSession) -> Update:
        result = opened.session.result
        return _update(opened, result, box=result.box_zyx, steps=0)

    return await hub_of(request.app).ask(session_id, work)


@router.post("/sessions/{session_id}/points")
async def add_point(request: Request, session_id: str, body: PointRequest) -> Update:
    """Click: include (positive) or exclude (negative) what is there."""
    return await _verb(request, session_id, lambda s: s.add_point(body.point_ras_mm, body.positive), adds=1)


@router.put("/sessions/{session_id}/points/{index}")
async def move_point(request: Request, session_id: str, index: int, body: MoveRequest) -> Update:
    """Move a point to another place; index counts all prompts from 0. Its next move supersedes a waiting one (409)."""

    def work(opened: OpenSession) -> Update:
        session = opened.session
        if not body.continues:
            return _update(opened, session.move_point(index, body.point_ras_mm))
        undone = session.undo()
        try:
            moved = session.move_point(index, body.point_ras_mm)
        except BaseException:
            session.redo()
            raise
        return _update(opened, moved, box=union(undone.changed_box_zyx, moved.changed_box_zyx), steps=0)

    return await hub_of(request.app).ask(session_id, work, kind=f"move {index} {body.continues}")


@router.delete("/sessions/{session_id}/points/{index}")
async def remove_point(request: Request, session_id: str, index: int) -> Update:
    """Take back a prompt, point or box."""
    return await _verb(request, session_id, lambda s: s.remove_point(index))


@router.post("/sessions/{session_id}/boxes")
async def add_box(request: Request, session_id: str, body: BoxRequest) -> Update:
    """Frame the structure."""
    corner, opposite = body.corners_ras_mm
    return await _verb(request, session_id, lambda s: s.add_box(corner, opposite, body.along_scan), adds=1)


@router.put("/sessions/{session_id}/mask")
async def set_mask(request: Request, session_id: str, body: MaskRequest) -> Update:
    """Start from a mask that is already there; earlier prompts end (undo returns)."""

    def work(session: Session) -> Result:
        size = session.volume.grid.size_zyx
        given = body.box_zyx or [[0, 0, 0], list(size)]
        box: Any = tuple(tuple(corner) for corner in given)
        if clip(box, size) != box:
            raise PromptError(f"the box must lie in the image, (z, y, x) from 0 to {size}, got {box}")
        mask = np.zeros(size, dtype=bool)
        where = tuple(slice(low, high) for low, high in zip(*box))
        mask[where] = unpack_bits(body.bits, mask[where].shape)
        if not body.quality or not mask.any():
            return session.set_mask(mask)
        frame = session.volume.canonical
        canonical = frame.to_canonical(mask)
        return session.take(Candidate(CompactMask.of(frame.grid.size_zyx, canonical), body.quality, frame))

    return await _verb(request, session_id, work)


@router.post("/sessions/{session_id}/preview")
async def preview(request: Request, session_id: str, body: PointRequest) -> Update:
    """As if clicked; changes nothing. Any newer request of the session supersedes a waiting preview (409)."""

    def work(opened: OpenSession) -> Update:
        _check_prompts(hub, opened.session, 1)
        return _update(opened, opened.session.preview(body.point_ras_mm, body.positive), steps=0, with_state=False)

    hub = hub_of(request.app)
    return await hub.ask(session_id, work, kind=LOOK)


@router.post("/sessions/{session_id}/encode-ahead")
async def encode_ahead(request: Request, session_id: str, body: AheadRequest) -> AheadAnswer:
    """Prepare one view for a click at a point, while nothing else is to be done; changes nothing.

    Waits a while until nobody has anything else to do here. Any newer request of the session supersedes it (409).
    """

    def work(opened: OpenSession) -> bool:
        with opened.model.without_waiting():
            return opened.session.encode_ahead(body.point_ras_mm)

    try:
        return AheadAnswer(more=await hub_of(request.app).ask_when_idle(session_id, work))
    except ModelBusyError:
        return AheadAnswer(more=True)


@router.get("/sessions/{session_id}/uncertainty")
async def uncertainty(
    request: Request, session_id: str, decodes: Annotated[int, Query(ge=1, le=16)] = 6
) -> UncertaintyAnswer:
    """How sure the model is of the result as it stands. Any newer request of the session supersedes it (409)."""

    def work(opened: OpenSession) -> UncertaintyAnswer:
        found = opened.session.uncertainty(decodes)
        box = found.box_zyx
        return UncertaintyAnswer(
            box_zyx=None if box is None else [list(corner) for corner in box],
            probabilities="" if box is None else pack_probabilities(found.probability_zyx),
            expected_ml=found.expected_ml,
        )

    return await hub_of(request.app).ask(session_id, work, kind=LOOK)


@router.post("/sessions/{session_id}/proposals")
async def propose(request: Request, session_id: str, body: ProposalRequest) -> ProposalsAnswer:
    """Candidate masks without any prompt; changes nothing. Any newer request of the session supersedes it (409)."""

    def work(opened: OpenSession) -> ProposalsAnswer:
        try:
            found = opened.session.propose(ProposalOptions(**body.model_dump()))
        except ConfigError as error:
            raise ServerError(422, "not_this_model", str(error)) from None
        return ProposalsAnswer(
            candidates=[
                CandidateAnswer(
                    box_zyx=[list(corner) for corner in one.box_zyx],
                    bits=pack_bits(one.mask_in(one.box_zyx)),
                    quality=one.quality,
                )
                for one in found
            ]
        )

    return await hub_of(request.app).ask(session_id, work, kind=LOOK)


@router.post("/sessions/{session_id}/undo")
async def undo(request: Request, session_id: str) -> Update:
    """Back to before the last verb that changed something."""
    return await _verb(request, session_id, lambda s: s.undo(), steps=0)


@router.post("/sessions/{session_id}/redo")
async def redo(request: Request, session_id: str) -> Update:
    """Forward again after an undo."""
    return await _verb(request, session_id, lambda s: s.redo(), steps=0)


@router.post("/sessions/{session_id}/reset")
async def reset(request: Request, session_id: str) -> Update:
    """No prompts, no mask; undo returns."""
    return await _verb(request, session_id, lambda s: s.reset())


@router.get("/sessions/{session_id}/state")
async def state(request: Request, session_id: str) -> StateAnswer:
    """The session's prompts, to be restored later."""
    return await hub_of(request.app).ask(session_id, lambda opened: StateAnswer(state=opened.session.to_dict()))


@router.put("/sessions/{session_id}/state")
async def restore(request: Request, session_id: str, body: StateRequest) -> Update:
    """Prompts that were saved for this scan; undo returns to what was there before."""

    def work(session: Session) -> Result:
        _check_saved_mask(body.state, session)
        saved = body.state.get("prompts")
        if isinstance(saved, list) and len(saved) > hub.limits.prompts:
            raise _too_many_prompts(hub)
        try:
            return session.restore(body.state)
        except OverflowError:
            raise PromptError("the state holds a number that is too large for a coordinate") from None

    hub = hub_of(request.app)
    return await _verb(request, session_id, work)


async def _verb(
    request: Request, session_id: str, verb: Callable[[Session], Result], *, adds: int = 0, steps: int = 1
) -> Update:
    hub = hub_of(request.app)

    def work(opened: OpenSession) -> Update:
        _check_prompts(hub, opened.session, adds)
        return _update(opened, verb(opened.session), steps=steps)

    return await hub.ask(session_id, work)


def _check_prompts(hub: Hub, session: Session, more: int) -> None:
    if more and len(session.prompts) + more > hub.limits.prompts:
        raise _too_many_prompts(hub)


def _too_many_prompts(hub: Hub) -> ServerError:
    return ServerError(422, "invalid", f"a session may have at most {hub.limits.prompts} prompts; remove some")


def _check_saved_mask(saved: Dict[str, Any], session: Session) -> None:
    """A saved mask that claims another size than the scan's is refused before anything is unpacked."""
    mask = saved.get("mask")
    if mask is None:
        return
    size = session.volume.canonical.grid.size_zyx
    try:
        claimed = tuple(int(n) for n in mask["size_zyx"])
        low, high = (tuple(int(n) for n in corner) for corner in mask["box_zyx"] or ((0, 0, 0), size))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise PromptError("the state's mask is damaged: expected what Session.to_dict wrote") from None
    if (
        claimed != size
        or len(low) != 3
        or len(high) != 3
        or not all(0 <= a < b <= n for a, b, n in zip(low, high, size))
    ):
        raise PromptError(f"the state's mask belongs to another scan: expected {size} voxels (z, y, x), got {claimed}")


def _update(
    opened: OpenSession, result: Result, *, box: Optional[Box] = None, steps: int = 1, with_state: bool = True
) -> Update:
    """The answer to an interaction, with the mask in the box (by default, in what changed).

    Args:
        opened: whose.
        result: of the interaction.
        box: half-open, (z, y, x).
        steps: that the interaction added to the history.
        with_state: whether the answer holds the prompts.
    """
    sent, mask_box = box or result.changed_box_zyx, result.box_zyx
    session = opened.session
    voxels_in_box = 0 if mask_box is None else math.prod(high - low for low, high in zip(*mask_box))
    opened.history_bytes += steps * (voxels_in_box // 8 + _STEP_BYTES)
    return Update(
        box_zyx=None if sent is None else [list(corner) for corner in sent],
        bits="" if sent is None else pack_bits(result.mask_in(sent)),
        voxels=0 if mask_box is None else int(np.count_nonzero(result.mask_in(mask_box))),
        quality=float(result.quality),
        timings_ms=result.timings_ms,
        can_undo=session.can_undo,
        can_redo=session.can_redo,
        state=session.to_dict() if with_state else None,
    )
