"""Who may talk to the server: the token, the Host and Origin of a request, and how large its body may be.

A page on the web can make a browser send requests to a server on loopback, and can point a name of its own at 127.0.0.1
(DNS rebinding). So a server on loopback answers only to loopback names, and no server answers to another page's Origin.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, Optional
from urllib.parse import urlsplit

from .limits import MIB, Limits

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
UPLOAD_PATH = "/v1/volumes"

_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
RESPONSE_HEADERS = {
    "content-security-policy": _CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        token: what the Authorization header must bear; None asks for none.
        hosts: names that the Host header may give, without port; None allows any (the token protects then).
    """

    token: Optional[str] = None
    hosts: Optional[FrozenSet[str]] = LOOPBACK_NAMES


class Guard:
    """ASGI middleware in front of everything."""

    def __init__(self, app: Any, access: Access, limits: Limits) -> None:
        self._app = app
        self._access = access
        self._limits = limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        started = False

        async def send_guarded(message: Dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(name.encode(), value.encode()) for name, value in RESPONSE_HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send_guarded, *refusal)
            return
        is_upload = scope["path"] == UPLOAD_PATH and scope["method"] == "POST"
        allowed = self._limits.upload_bytes if is_upload else self._limits.body_bytes
        too_large = (413, "too_large", f"the request's body may have at most {allowed / MIB:g} MiB")
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > allowed:
            await _answer(send_guarded, *too_large)
            return
        received = 0

        async def receive_counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > allowed:
                raise BodyTooLarge
            return message

        try:
            await self._app(scope, receive_counted, send_guarded)
        except BodyTooLarge:
            if not started:
                await _answer(send_guarded, *too_large)

    def _refusal(self, scope: Any, headers: Dict[str, str]) -> Any:
        host = headers.get("host", "")
        name = _hostname(f"//{host}")
        if name is None or (self._access.hosts is not None and name not in self._access.hosts):
            return (
                421,
                "wrong_host",
                "this server does not answer to that host name; use the address it printed at start",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return 403, "wrong_origin", "pages of other sites may not use this server"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope["path"].startswith("/v1"):
            return 403, "wrong_origin", "pages of other sites may not use this server"
        if self._access.token is not None and scope["path"].startswith("/v1"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            expected = self._access.token.encode("utf-8")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), expected):
                return 401, "wrong_token", "this server asks for its token: Authorization: Bearer TOKEN"
        return None


class BodyTooLarge(Exception):
    """More bytes came than the request may have."""


def _hostname(address: str) -> Optional[str]:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _answer(send: Any, status: int, code: str, detail: str) -> None:
    body = json.dumps({"detail": detail, "code": code}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
