"""The application: every route of the API, and the page.

    app = create_app(model)          # any ASGI server runs it; ``famsam serve`` uses uvicorn

An image goes in by ``POST /v1/volumes``; ``POST /v1/volumes/{id}/sessions`` opens a session for each segment; the
session's verbs are those of ``famsam.Session``. Answers carry only the box that changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Optional

import anyio
import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

from .. import __version__
from ..errors import PromptError
from ..geometry import Box, clip, union
from ..sample_data import sample_volume
from ..session import Result, Session
from .export import MEDIA_TYPES, Segment, export
from .hub import Hub, OpenScan, OpenSession, ServerError, hub_of
from .intake import Intake
from .limits import Limits
from .packing import pack_bits, unpack_bits
from .problems import PROBLEMS, handle_errors
from .security import Access, Guard
from .voxels import nifti_chunks
from .wire import (
    BoxRequest,
    ExportRequest,
    MaskRequest,
    MoveRequest,
    PathRequest,
    PointRequest,
    ServerInfo,
    SessionInfo,
    StateAnswer,
    StateRequest,
    Update,
    VolumeInfo,
)

PAGE_FOLDER = Path(__file__).parent / "page"
_NO_PAGE = (
    "<!doctype html><title>FaM-SAM</title><p>The server runs, but its page has not been built. "
    "Build it with <code>python setup.py build_page</code> in a checkout, or install the package with pip.</p>"
)
_STEP_BYTES = 600_000  # of a step in a session's history: mostly its low-resolution logits
_BINARY: Dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

router = APIRouter(prefix="/v1", responses=PROBLEMS)


@router.get("/server")
async def server_info(request: Request) -> ServerInfo:
    """What runs here, and its limits."""
    hub = hub_of(request.app)
    limits = {name: float(value) for name, value in vars(hub.limits).items()}
    return ServerInfo(
        version=__version__,
        model=hub.model.name,
        device=str(hub.model.device),
        paths_allowed=request.app.state.paths_allowed,
        limits=limits,
    )


@router.post(
    "/volumes",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": _BINARY}}},
)
async def upload_volume(request: Request) -> VolumeInfo:
    """Open a scan from a file's bytes: NIfTI, NRRD, MetaImage, DICOM, or a zipped DICOM series; no name is needed."""
    hub = hub_of(request.app)
    async with hub.arrival() as folder:
        path = folder / "upload"
        with path.open("wb") as file:
            chunks = request.stream().__aiter__()
            while True:
                try:
                    chunk = await asyncio.wait_for(chunks.__anext__(), hub.limits.read_timeout_s)
                except StopAsyncIteration:
                    break
                except asyncio.TimeoutError:
                    raise ServerError(
                        400, "upload_stalled", "the upload stalled and was given up; send it again"
                    ) from None
                await anyio.to_thread.run_sync(file.write, chunk)
        return _volume_info(await hub.open_scan(path, folder))


@router.post("/volumes/path", status_code=201)
async def open_path(request: Request, body: PathRequest) -> VolumeInfo:
    """Open a scan of the server's own user; only where the server runs for that user on loopback."""
    if not request.app.state.paths_allowed:
        raise ServerError(403, "paths_refused", "this server opens no paths; upload the scan instead")
    hub = hub_of(request.app)
    if "\0" in body.path:
        raise ServerError(422, "invalid", "a path holds no null characters")
    async with hub.arrival() as folder:
        return _volume_info(await hub.open_scan(Path(body.path).expanduser().absolute(), folder))


@router.post("/volumes/sample", status_code=201)
async def open_sample_volume(request: Request) -> VolumeInfo:
    """Open the sample scan."""
    hub = hub_of(request.app)
    async with hub.arrival() as folder:
        sample = await hub.in_thread(sample_volume)
        return _volume_info(hub.add_scan(Intake(sample, "MR", None), folder))


@router.get("/volumes/{volume_id}")
async def volume_info(request: Request, volume_id: str) -> VolumeInfo:
    """An open scan's grid."""
    return _volume_info(hub_of(request.app).scan(volume_id))


@router.get(
    "/volumes/{volume_id}/image.nii",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": _BINARY}}},
)
async def volume_image(request: Request, volume_id: str) -> Response:
    """The scan as NIfTI for display, its axes permuted and flipped to run closest to right, anterior, superior."""
    volume = hub_of(request.app).scan(volume_id).volume
    length, chunks = nifti_chunks(volume)
    return StreamingResponse(chunks, media_type="application/octet-stream", headers={"content-length": str(length)})


@router.delete("/volumes/{volume_id}", status_code=204)
async def close_volume(request: Request, volume_id: str) -> None:
    """Close a scan with its sessions; nothing of it stays."""
    hub_of(request.app).close_scan(volume_id)


@router.post(
    "/volumes/{volume_id}/export",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": _BINARY}}},
)
async def export_masks(request: Request, volume_id: str, body: ExportRequest) -> Response:
    """The masks of some sessions of a scan, as one file."""
    hub = hub_of(request.app)
    scan = hub.scan(volume_id)
    segments = []
    for wanted in body.segments:
        if hub.session(wanted.session_id).scan is not scan:
            raise ServerError(422, "invalid", f"the session of {wanted.name!r} belongs to another scan")
        result = await hub.ask(wanted.session_id, lambda opened: opened.session.result)
        segments.append(Segment(wanted.name, wanted.colour, result))
    content = await hub.in_thread(export, scan.intake, segments, body.format)
    return Response(content, media_type=MEDIA_TYPES[body.format])


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


@router.get("/sessions/{session_id}/mask")
async def current_mask(request: Request, session_id: str) -> Update:
    """The whole mask, as the box that holds it."""

    def work(opened: OpenSession) -> Update:
        result = opened.session.result
        return _update(opened, result, box=result.box_zyx)

    return await hub_of(request.app).ask(session_id, work)


@router.post("/sessions/{session_id}/points")
async def add_point(request: Request, session_id: str, body: PointRequest) -> Update:
    """Click: include (positive) or exclude (negative) what is there."""
    return await _verb(request, session_id, lambda s: s.add_point(body.point_ras_mm, body.positive), adds=1)


@router.put("/sessions/{session_id}/points/{index}")
async def move_point(request: Request, session_id: str, index: int, body: MoveRequest) -> Update:
    """Move a point to another place; index counts all prompts from 0. A newer request supersedes a waiting move."""

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
        return _update(opened, moved, box=union(undone.changed_box_zyx, moved.changed_box_zyx))

    return await hub_of(request.app).ask(session_id, work, supersedable=True)


@router.delete("/sessions/{session_id}/points/{index}")
async def remove_point(request: Request, session_id: str, index: int) -> Update:
    """Take back a prompt, point or box."""
    return await _verb(request, session_id, lambda s: s.remove_point(index))


@router.post("/sessions/{session_id}/boxes")
async def add_box(request: Request, session_id: str, body: BoxRequest) -> Update:
    """Frame the structure, along the scan's axes."""
    corners = np.sort(np.array(body.corners_ras_mm), axis=0)
    return await _verb(request, session_id, lambda s: s.add_box(corners[0], corners[1]), adds=1)


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
        return session.set_mask(mask)

    return await _verb(request, session_id, work)


@router.post("/sessions/{session_id}/preview")
async def preview(request: Request, session_id: str, body: PointRequest) -> Update:
    """As if clicked; changes nothing. Any newer request of the session supersedes a waiting preview (409)."""

    def work(opened: OpenSession) -> Update:
        _check_prompts(hub, opened.session, 1)
        return _update(opened, opened.session.preview(body.point_ras_mm, body.positive), with_state=False)

    hub = hub_of(request.app)
    return await hub.ask(session_id, work, supersedable=True)


@router.post("/sessions/{session_id}/undo")
async def undo(request: Request, session_id: str) -> Update:
    """Back to before the last verb that changed something."""
    return await _verb(request, session_id, lambda s: s.undo())


@router.post("/sessions/{session_id}/redo")
async def redo(request: Request, session_id: str) -> Update:
    """Forward again after an undo."""
    return await _verb(request, session_id, lambda s: s.redo())


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
        return session.restore(body.state)

    hub = hub_of(request.app)
    return await _verb(request, session_id, work)


async def _verb(request: Request, session_id: str, verb: Callable[[Session], Result], *, adds: int = 0) -> Update:
    hub = hub_of(request.app)

    def work(opened: OpenSession) -> Update:
        _check_prompts(hub, opened.session, adds)
        return _update(opened, verb(opened.session))

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


def _volume_info(scan: OpenScan) -> VolumeInfo:
    grid = scan.volume.grid
    display_from_ijk = np.round(scan.volume.canonical.grid.ijk_from_ras @ grid.ras_from_ijk)
    return VolumeInfo(
        id=scan.id,
        size_xyz=list(grid.size_zyx[::-1]),
        spacing_mm=grid.spacing_xyz_mm.tolist(),
        ras_from_ijk=grid.ras_from_ijk.tolist(),
        display_from_ijk=display_from_ijk.tolist(),
        value_range=list(scan.volume.value_range),
        modality=scan.intake.modality,
        is_dicom=scan.intake.dicom_folder is not None,
    )


def _update(opened: OpenSession, result: Result, *, box: Optional[Box] = None, with_state: bool = True) -> Update:
    """The answer to an interaction, with the mask in the box (by default, in what changed)."""
    sent, mask_box = box or result.changed_box_zyx, result.box_zyx
    session = opened.session
    voxels_in_box = 0 if mask_box is None else math.prod(high - low for low, high in zip(*mask_box))
    opened.history_bytes += voxels_in_box // 8 + _STEP_BYTES
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


def create_app(
    model: Any,
    *,
    access: Optional[Access] = None,
    limits: Optional[Limits] = None,
    paths_allowed: bool = False,
    when_ready: Optional[Callable[[], Awaitable[None]]] = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model: what ``famsam.load_model`` returns; all sessions share it.
        access: token and host names; by default no token, and only loopback names.
        limits: see ``Limits``.
        paths_allowed: whether clients may open files of the server's user by path.
        when_ready: awaited once, after start.
    """
    chosen = limits or Limits()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        hub = app.state.hub = Hub(model, chosen)
        expiry = asyncio.create_task(hub.expire())
        try:
            if when_ready is not None:
                await when_ready()
            yield
        finally:
            expiry.cancel()
            app.state.hub = None
            hub.close()

    app = FastAPI(
        title="FaM-SAM",
        version=__version__,
        description=__doc__,
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # the usual pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.hub = None
    app.state.paths_allowed = paths_allowed
    app.include_router(router)
    app.add_middleware(Guard, access=access or Access(), limits=chosen)
    handle_errors(app)
    if (PAGE_FOLDER / "index.html").is_file():
        app.mount("/", StaticFiles(directory=PAGE_FOLDER, html=True))
    else:
        app.add_api_route("/", lambda: HTMLResponse(_NO_PAGE), include_in_schema=False)
    return app
