"""``famsam serve`` and ``famsam view``: the server with and without a browser in front of it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
import socket
import ssl
import sys
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

from ..errors import ConfigError, MissingDependencyError
from .limits import MIB, Limits

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8765
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN_VARIABLE = "FAMSAM_TOKEN"

SERVE_EXAMPLE = """example:
  famsam serve                                    # for this machine alone, at http://127.0.0.1:8765/
  FAMSAM_TOKEN=... famsam serve --host 0.0.0.0 --tls-certificate cert.pem --tls-key key.pem
"""
VIEW_EXAMPLE = """example:
  famsam view scan.nii.gz
  famsam view --no-browser                        # prints the address and opens nothing
"""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model computes, and where."""
    parser.add_argument("--model", default="default", metavar="FILE", help="weights file; by default those that ship")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16, int8 (default: auto)")


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam serve``."""
    limits = Limits()
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; other than loopback needs a token")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--token", help=f"what clients must present; better given in the variable {TOKEN_VARIABLE}")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that a proxy in front is reached by"
    )
    parser.add_argument("--allow-paths", action="store_true", help="open files of this user by path (loopback, token)")
    parser.add_argument(
        "--tls-certificate", metavar="FILE", help="certificate chain (PEM), to speak TLS without a proxy"
    )
    parser.add_argument("--tls-key", metavar="FILE", help="the certificate's private key (PEM)")
    parser.add_argument("--max-upload-mib", type=int, default=limits.upload_bytes // MIB, help="(default: %(default)s)")
    parser.add_argument("--max-volume-mib", type=int, default=limits.volume_bytes // MIB, help="(default: %(default)s)")
    parser.add_argument("--max-volumes", type=int, default=limits.volumes, help="open at once (default: %(default)s)")
    parser.add_argument("--max-sessions", type=int, default=limits.sessions, help="open at once (default: %(default)s)")
    parser.add_argument("--idle-minutes", type=float, default=limits.idle_s / 60, help="until an unused scan is closed")


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam view``."""
    add_model_arguments(parser)
    parser.add_argument("image", nargs="?", help="the scan: a file or a DICOM folder; without it, the sample")
    parser.add_argument("--port", type=int, help=f"by default {DEFAULT_PORT}, or a free one where that is taken")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    parser.add_argument("--if-screen", action="store_true", help="end at once where there is no screen to open it on")


def serve(args: argparse.Namespace) -> int:
    """Run the server until it is interrupted.

    Raises:
        ConfigError: what was asked for is not safe, or the address is taken.
    """
    token = args.token or os.environ.get(TOKEN_VARIABLE) or None
    loopback = args.host in LOOPBACK
    if not loopback and token is None:
        raise ConfigError(
            f"listening on {args.host} lets others in, so it needs a token: set {TOKEN_VARIABLE} to a long random "
            'text, such as what python -c "import secrets; print(secrets.token_urlsafe(24))" prints'
        )
    if args.allow_host and token is None:
        raise ConfigError(f"--allow-host lets others in through a proxy, so it needs a token: set {TOKEN_VARIABLE}")
    if args.allow_paths and not (loopback and token is not None and not args.allow_host):
        raise ConfigError("--allow-paths opens files of this user, so it needs loopback, a token and no proxy")
    if token is not None and (len(token) < 16 or not token.isascii() or not token.isprintable()):
        raise ConfigError("a token needs at least 16 printable ASCII characters, so that it cannot be guessed")
    if (args.tls_certificate is None) != (args.tls_key is None):
        raise ConfigError("TLS needs both --tls-certificate and --tls-key")
    if args.tls_certificate is not None:
        _check_certificate(args.tls_certificate, args.tls_key)
    limits = Limits(
        upload_bytes=args.max_upload_mib * MIB,
        volume_bytes=args.max_volume_mib * MIB,
        all_volumes_bytes=max(Limits.all_volumes_bytes, args.max_volume_mib * MIB),
        volumes=args.max_volumes,
        sessions=args.max_sessions,
        idle_s=args.idle_minutes * 60,
    )
    server = Server(args, host=args.host, port=args.port, token=token, limits=limits, paths_allowed=args.allow_paths)
    _say(
        f"FaM-SAM serves {server.address} with the model {server.model.name} on {server.model.device}; Ctrl+C ends it."
    )
    if not loopback and args.tls_certificate is None:
        _say(
            "Scans and the token travel unencrypted. Use --tls-certificate and --tls-key, or leave --host at 127.0.0.1 "
            "and put a proxy with TLS in front, such as\n"
            f"    caddy reverse-proxy --from scans.example.org --to 127.0.0.1:{server.port}\n"
            "with --allow-host scans.example.org here."
        )
    return server.run()


def view(args: argparse.Namespace) -> int:
    """Run the server for this user alone and open the page on a scan, or on the sample.

    Raises:
        ConfigError: the image does not exist.
    """
    if args.image is not None and not Path(args.image).exists():
        raise ConfigError(f"there is no file or folder {args.image!r}")
    if args.if_screen and not _has_screen():
        _say("There is no screen here, so the page is not opened; famsam view serves it to another machine's browser.")
        return 0
    token = secrets.token_urlsafe(24)
    args.allow_host, args.tls_certificate, args.tls_key = [], None, None
    wanted = "sample" if args.image is None else f"path={quote(str(Path(args.image).absolute()), safe='/')}"
    page = f"/#token={token}&{wanted}"
    opens = _has_screen() and not args.no_browser
    server = Server(
        args,
        host="127.0.0.1",
        port=_view_port(args),
        token=token,
        limits=Limits(),
        paths_allowed=True,
        opened_page=page if opens else None,
    )
    shown = "the sample" if args.image is None else args.image
    _say(f"FaM-SAM shows {shown} at\n    {server.address}{page[1:]}\nCtrl+C ends it.")
    if not _has_screen():
        _say(
            "There is no screen here. To open the address on a machine that has one, first run there:\n"
            f"    ssh -N -L {server.port}:127.0.0.1:{server.port} {socket.gethostname()}"
        )
    return server.run()


class Server:
    """The application bound to its address; opens ``opened_page``, a path with its fragment, in the browser."""

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        host: str,
        port: int,
        token: Optional[str],
        limits: Limits,
        paths_allowed: bool,
        opened_page: Optional[str] = None,
    ) -> None:
        try:
            import uvicorn

            from .app import create_app
            from .entrance import Entrance
            from .security import LOOPBACK_NAMES, Access
        except ImportError as error:
            raise MissingDependencyError(f"the server needs {error.name}: pip install 'famsam[server]'") from error
        from ..checkpoints import load_model

        self._socket = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        scheme = "http" if args.tls_certificate is None else "https"
        name = socket.gethostname() if host in ("0.0.0.0", "::") else host
        self.address = f"{scheme}://{f'[{name}]' if ':' in name else name}:{self.port}/"
        with ThreadPoolExecutor(1) as loading:  # see fairness.ModelThread: this thread must not use several cores
            self.model = loading.submit(load_model, args.model, args.device, args.precision).result()
        hosts = None if host not in LOOPBACK else LOOPBACK_NAMES | {name.lower() for name in args.allow_host}
        entrance = None if opened_page is None else Entrance(opened_page)
        self._browse = None if entrance is None else self.address.rstrip("/") + entrance.path
        app = create_app(
            self.model,
            access=Access(token, hosts),
            limits=limits,
            paths_allowed=paths_allowed,
            when_ready=self._open_browser,
            entrance=entrance,
        )
        config = uvicorn.Config(
            app,
            http=_protocol(),
            log_level="warning",
            access_log=False,  # addresses hold ids of sessions
            server_header=False,
            limit_concurrency=limits.waiting * 2,
            timeout_keep_alive=60,
            ssl_certfile=args.tls_certificate,
            ssl_keyfile=args.tls_key,
        )
        self._uvicorn: Any = uvicorn.Server(config)

    def run(self) -> int:
        """Serve until interrupted."""
        try:
            self._uvicorn.run(sockets=[self._socket])
        except KeyboardInterrupt:
            pass
        finally:
            self._socket.close()
        return 0

    async def _open_browser(self) -> None:
        if self._browse is not None and not webbrowser.open(self._browse):
            _say("No browser was found here; open the address above in one.")


def _view_port(args: argparse.Namespace) -> int:
    """The port asked for; else the usual one if it is free, so that the page of an earlier run finds the server."""
    if args.port is not None:
        return int(args.port)
    with socket.socket() as probe:
        probe.settimeout(0.3)  # where nobody listens Windows tries again and again, for two seconds
        return DEFAULT_PORT if probe.connect_ex(("127.0.0.1", DEFAULT_PORT)) else 0


def _has_screen() -> bool:
    """Whether somebody would see a browser that is opened here."""
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _check_certificate(certificate: str, key: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"expected a certificate chain and its private key as PEM files, got {certificate!r} and {key!r}: {error}"
        ) from None


def _protocol() -> Any:
    """uvicorn's own, which sends at once what there is: else each answer waits for an acknowledgement of its head, 40
    ms and more. asyncio sees to that itself where an accepted socket tells its protocol, which none does on Windows."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class AtOnce(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
        def connection_made(self, transport: Any) -> None:
            with contextlib.suppress(OSError):  # it may be gone already
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().connection_made(transport)

    return AtOnce


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name != "nt":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if host == "::":
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # of Windows' own accord no IPv4 comes in
    try:
        listener.bind((host, port))
        listener.listen()  # a browser that is quicker than the server's start waits instead of being turned away
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error}; choose another --port or --host") from None
    return listener


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
