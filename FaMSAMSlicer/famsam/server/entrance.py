"""A way into the page that works once.

What opens a browser stands in a list of processes that every user of the machine can read. A token in it would let them
in, too; an address that has been used is worth nothing.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from typing import Optional

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, RedirectResponse, Response

_USED_UP = (
    "This address worked once and has been used. If that was not you, end famsam and start it again; else use the "
    "address that it printed.\n"
)


class Entrance:
    """One address that leads to another, with a fragment that holds secrets, the first time it is asked for.

    Args:
        target: where it leads, such as "/#token=...".
    """

    def __init__(self, target: str) -> None:
        self._code = secrets.token_urlsafe(24)
        self._target: Optional[str] = target
        self._lock = threading.Lock()
        self.path = f"/enter/{self._code}"

    def router(self) -> APIRouter:
        """The route to be part of the server, before any that takes all paths."""
        router = APIRouter()
        router.add_api_route("/enter/{code}", self._enter, include_in_schema=False)
        return router

    def _enter(self, code: str) -> Response:
        with self._lock:
            target = self._target
            if target is None or not hmac.compare_digest(code.encode(), self._code.encode()):
                return PlainTextResponse(_USED_UP, status_code=410)
            self._target = None
        return RedirectResponse(target, status_code=303)
