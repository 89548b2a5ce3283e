"""A connection to a famsam server: JSON and bytes over HTTP or TLS, with the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import selectors
import socket
import ssl
import threading
import weakref
from typing import Any, Dict, Iterator, Optional, Tuple
from urllib.parse import urlsplit

from .errors import FamsamError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PORTS = {"http": 80, "https": 443}
_NOBODY_BEHIND = (502, 503, 504)  # of a proxy; a famsam server's own refusals have a code
CONNECT_S = 10.0
"""So long a machine is waited for that does not answer at all, as behind a firewall or away from its network."""


class ServerRefusal(FamsamError):
    """The server answered, and said no; the message is its sentence.

    Attributes:
        status: of HTTP.
        code: a word for programs, such as "not_found", "superseded", "busy" or "wrong_token".
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ConnectionLostError(FamsamError):
    """The server cannot be reached. A later verb tries again, and goes on from the prompts."""


class Connection:
    """One server; safe to use from several threads, each of which gets a connection of its own.

    Args:
        address: such as ``http://127.0.0.1:8765`` or ``https://scans.example.org``.
        token: what the server asks for, printable ASCII; None if it asks for none.
        timeout_s: of one answer.
        tls: for a certificate that the system does not know; by default the system's own checks.

    Raises:
        ConnectionLostError: the address is no http or https address, or the token cannot be one.
    """

    def __init__(
        self,
        address: str,
        token: Optional[str] = None,
        timeout_s: float = 120.0,
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        text = address.strip()
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname or "", _PORTS[parts.scheme] if parts.port is None else parts.port
            host.encode("idna")
            http.client.HTTPConnection(host, port)  # checks the characters, connects to nothing
        except (KeyError, ValueError, http.client.InvalidURL):
            host = ""
        if not host:
            raise ConnectionLostError(f"expected a server's address such as http://127.0.0.1:8765, got {address!r}")
        token = token and token.strip()
        if token and not (token.isascii() and token.isprintable()):
            raise ConnectionLostError("expected the server's token, which is printable ASCII, got other characters")
        self.address = f"{parts.scheme}://{parts.netloc}"
        self.device = self.address
        """Where the model runs, as a model's own attribute of that name tells it."""
        self.is_local = host in _LOOPBACK
        self._scheme, self._host, self._port = parts.scheme, host, port
        self._token, self._timeout_s, self._tls = token, timeout_s, tls
        self._of_thread = threading.local()
        self._all: weakref.WeakSet[_Kept] = weakref.WeakSet()
        self._all_lock = threading.Lock()

    def get(self, path: str) -> Any:
        """The answer's JSON."""
        return self.request("GET", path)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        chunks: Optional[Iterator[bytes]] = None,
        timeout_s: Optional[float] = None,
    ) -> Any:
        """Send JSON, or bytes chunk by chunk, and return the answer's JSON; b"" if it is empty.

        Args:
            method: of HTTP.
            path: begins with a slash.
            body: what is sent as JSON.
            chunks: what is sent instead.
            timeout_s: of this answer, where it is another one than the connection's.

        Raises:
            ServerRefusal: the server said no.
            ConnectionLostError: there is no server, or it went away.
        """
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        content: Any = None
        if chunks is not None:
            headers["Content-Type"], headers["Transfer-Encoding"] = "application/octet-stream", "chunked"
            content = chunks
        elif body is not None:
            headers["Content-Type"], content = "application/json", json.dumps(body).encode()
        status, kind, answer = self._exchange(method, path, content, headers, timeout_s or self._timeout_s)
        try:
            parsed = json.loads(answer) if kind.startswith("application/json") and answer else answer
        except ValueError:
            parsed = answer
        if status >= 400:
            problem = parsed if isinstance(parsed, dict) else {}
            if status in _NOBODY_BEHIND and "code" not in problem:
                raise self._lost(f"what stands in front of it answered with status {status}")
            detail = problem.get("detail") or f"the server at {self.address} answered with status {status}"
            raise ServerRefusal(status, str(problem.get("code", "")), str(detail))
        if status >= 300 or (parsed and isinstance(parsed, bytes)):
            raise ServerRefusal(
                status, "", f"what answers at {self.address} is no famsam server (status {status}); check the address"
            )
        return parsed

    def close(self) -> None:
        """Close this thread's connection."""
        self._of_thread.kept = None

    def interrupt(self) -> None:
        """For any thread: every ``request`` under way ends with ConnectionLostError; later ones are as before."""
        with self._all_lock:
            kept = list(self._all)
        for one in kept:
            one.interrupt()

    def _exchange(
        self, method: str, path: str, content: Any, headers: Dict[str, str], timeout_s: float
    ) -> Tuple[int, str, bytes]:
        try:
            connection = self._connection()
            connection.sock.settimeout(timeout_s)
            connection.request(
                method, path, body=content, headers=headers, encode_chunked="Transfer-Encoding" in headers
            )
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()
        except BaseException as error:
            self.close()  # however it ended: what is left of this answer is none to the next request
            if isinstance(error, ssl.SSLCertVerificationError):
                raise ConnectionLostError(
                    f"the certificate of {self.address} cannot be trusted: {error.verify_message}. Check the address; "
                    "for a certificate of your own, name its authority's PEM file in the variable SSL_CERT_FILE"
                ) from error
            if isinstance(error, (OSError, http.client.HTTPException)):
                raise self._lost(error or type(error).__name__) from error
            raise

    def _lost(self, why: object) -> ConnectionLostError:
        return ConnectionLostError(
            f"there is no connection to the server at {self.address} ({why}). "
            "Check that it runs and that the address is right; work goes on from the prompts when it is back"
        )

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's, which is open."""
        kept: Optional[_Kept] = getattr(self._of_thread, "kept", None)
        if kept is None or kept.was_closed():
            kept = self._of_thread.kept = _Kept(self._connect())
            with self._all_lock:
                self._all.add(kept)
            kept.connection.connect()
            if kept.interrupted:
                raise ConnectionAbortedError("it was interrupted")
        return kept.connection

    def _connect(self) -> http.client.HTTPConnection:
        timeout_s = min(CONNECT_S, self._timeout_s)
        if self._scheme == "https":
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)


class _Kept:
    """A connection that is closed when its thread, or whoever used it, is gone."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection
        self.interrupted = False

    def was_closed(self) -> bool:
        """Whether it was closed while it was idle; else there is nothing to read yet."""
        if self.interrupted or self.connection.sock is None:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection.sock, selectors.EVENT_READ)
            return bool(selector.select(timeout=0))

    def interrupt(self) -> None:
        """End what is sent and received; whoever does so sees it closed, and whoever connects still, soon after."""
        self.interrupted, kept = True, self.connection.sock
        if kept is not None:
            with contextlib.suppress(OSError):  # it is closed by now
                socket.socket.shutdown(kept, socket.SHUT_RDWR)  # an SSLSocket's own takes away what the other one uses

    def __del__(self) -> None:
        self.connection.close()
