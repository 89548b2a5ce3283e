"""What can go wrong, as answers: always a status, a word for programs and a sentence for people."""

from __future__ import annotations

import logging
from typing import Any, Dict, List, Sequence, Tuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import FamsamError, SessionError
from .hub import ServerError
from .security import BodyTooLarge
from .wire import Problem

logger = logging.getLogger(__name__)

PROBLEMS: Dict[Any, Dict[str, Any]] = {
    status: {"model": Problem, "description": meaning}
    for status, meaning in {
        400: "the request is no valid HTTP or JSON",
        401: "the token is missing or wrong",
        403: "another site's page, or something this server does not allow",
        404: "no such scan, session or path is open here",
        409: "the session's state does not allow it, or a newer request took its place",
        413: "the body is too large",
        421: "the Host header names another server",
        422: "the request, the scan or the prompt cannot be used; the sentence says why",
        429: "too many requests of one session wait",
        503: "too much is open; try later",
    }.items()
}


def handle_errors(app: FastAPI) -> None:
    """Have an application answer errors so."""

    @app.exception_handler(FamsamError)
    async def expected(_: Request, error: FamsamError) -> JSONResponse:
        if isinstance(error, ServerError):
            return _problem(error.status, error.code, str(error))
        if isinstance(error, SessionError):
            return _problem(409, "not_now", str(error))
        return _problem(422, "invalid", str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(422, "invalid", _sentence(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, BodyTooLarge):
            return _problem(413, "too_large", "the request's body is too large")
        return _problem(error.status_code, "http", str(error.detail), error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return _problem(400, "gone", "the request ended before all of it was here")  # nobody reads it

    @app.exception_handler(MemoryError)
    async def no_memory(_: Request, error: MemoryError) -> JSONResponse:
        logger.error("out of memory while answering a request")
        return _problem(503, "busy", "the server has too little memory for this now; close a scan, or try later")

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        detail = "something unexpected went wrong in the server; its log says what"
        return _problem(500, "internal", detail, {"connection": "close"})  # uvicorn closes it: not to be used again


def _problem(status: int, code: str, detail: str, headers: Any = None) -> JSONResponse:
    extra = {"retry-after": "2"} if status in (429, 503) else {}
    return JSONResponse({"detail": detail, "code": code}, status, headers={**(headers or {}), **extra})


def _sentence(errors: Sequence[Any]) -> str:
    """What pydantic found, in one line and without repeating what was sent."""
    found: List[Tuple[str, str]] = [
        (".".join(str(part) for part in error["loc"] if part != "body"), str(error["msg"])) for error in errors[:3]
    ]
    return "the request does not fit: " + "; ".join(f"{where}: {what}" if where else what for where, what in found)
