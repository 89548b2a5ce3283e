"""The application: the API and the page.

    app = create_app(model)          # any ASGI server runs it; ``famsam serve`` uses uvicorn

An image goes in by ``POST /v1/volumes``; ``POST /v1/volumes/{id}/sessions`` opens a session for each segment; the
session's verbs are those of ``famsam.Session``. Answers carry only the box that changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Optional

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from .. import __version__
from . import session_routes, volume_routes
from .entrance import Entrance
from .hub import Hub, hub_of
from .limits import Limits
from .problems import PROBLEMS, handle_errors
from .security import Access, Guard
from .wire import ServerInfo

PAGE_FOLDER = Path(__file__).parent / "page"
_PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Windows' registry may have others, for scripts one with which a browser refuses them."""
_NO_PAGE = (
    "<!doctype html><title>FaM-SAM</title><p>The server runs, but its page has not been built. "
    "Build it with <code>python setup.py build_page</code> in a checkout, or install the package with pip.</p>"
)

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
        proposes=hub.model.proposes,
        paths_allowed=request.app.state.paths_allowed,
        limits=limits,
    )


def create_app(
    model: Any,
    *,
    access: Optional[Access] = None,
    limits: Optional[Limits] = None,
    paths_allowed: bool = False,
    when_ready: Optional[Callable[[], Awaitable[None]]] = None,
    entrance: Optional[Entrance] = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model: what ``famsam.load_model`` returns; all sessions share it.
        access: token and host names; by default no token, and only loopback names.
        limits: see ``Limits``.
        paths_allowed: whether clients may open files of the server's user by path.
        when_ready: awaited once, after start.
        entrance: an address that leads to the page once.
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
    for part in (router, volume_routes.router, session_routes.router):
        app.include_router(part)
    if entrance is not None:
        app.include_router(entrance.router())
    app.add_middleware(Guard, access=access or Access(), limits=chosen)
    handle_errors(app)
    if (PAGE_FOLDER / "index.html").is_file():
        for suffix, kind in _PAGE_TYPES.items():
            mimetypes.add_type(kind, suffix)
        app.mount("/", StaticFiles(directory=PAGE_FOLDER, html=True))
    else:
        app.add_api_route("/", lambda: HTMLResponse(_NO_PAGE), include_in_schema=False)
    return app
