"""The API's routes of scans: in by upload or by path, out for display, and their segments out as files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import anyio
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from ..sample_data import sample_volume
from .export import MEDIA_TYPES, Segment, export
from .hub import OpenScan, ServerError, hub_of
from .intake import Intake
from .problems import PROBLEMS
from .voxels import nifti_chunks
from .wire import BINARY, ExportRequest, PathRequest, VolumeInfo

router = APIRouter(prefix="/v1", responses=PROBLEMS)


@router.post(
    "/volumes",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": BINARY}}},
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
        return _volume_info(await hub.open_scan(Path(os.path.expanduser(body.path)).absolute(), folder))


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
    responses={200: {"content": {"application/octet-stream": BINARY}}},
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
    responses={200: {"content": {"application/octet-stream": BINARY}}},
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
        notes=scan.intake.notes,
    )
