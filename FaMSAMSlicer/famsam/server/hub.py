"""What is open on the server: scans, the sessions on them, and in which order their requests are answered."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, Iterator, List, Optional, TypeVar

import anyio
import anyio.to_thread

from ..embeddings import Embeddings
from ..errors import FamsamError
from ..session import Session
from .fairness import FairTurns, ModelBusyError, ModelThread, SharedModel
from .intake import Intake, take_in
from .limits import MIB, Limits
from .scratch import Scratch

logger = logging.getLogger(__name__)

T = TypeVar("T")
WORKERS = 8
IDLE_PATIENCE_S = 0.2  # of work that waits for nothing else to be done; its client may have a click next
CHANGE, LOOK, AHEAD = "change", "look", "ahead"  # kinds of requests; any other is a change that outdates its like
ABANDONED_S = 60.0  # so long a scan without a session keeps its place for one, and a session that was left stays open


class ServerError(FamsamError):
    """A request that cannot be answered now; ``status`` is its HTTP status, ``code`` a word for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(eq=False)
class OpenScan:
    """A scan in memory, the private folder that it was read from, and what its sessions have encoded of it."""

    id: str
    intake: Intake
    folder: Path
    embeddings: Embeddings
    used_s: float = field(default_factory=time.monotonic)

    @property
    def volume(self) -> Any:
        return self.intake.volume


@dataclass(eq=False)
class Asked:
    """A request of a session, from its arrival on."""

    kind: str
    superseded: bool = False


@dataclass(eq=False)
class OpenSession:
    """One segment's session; its requests are answered one after the other, in the order in which they came."""

    id: str
    scan: OpenScan
    model: SharedModel
    session: Session
    used_s: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    last_ahead: Optional[Asked] = None
    last_look: Optional[Asked] = None
    last_change: Optional[Asked] = None
    history_bytes: int = 0

    def arrived(self, kind: str) -> Asked:
        """Note a request, and which older ones give way to it if they still wait.

        Work ahead gives way to anything, a look to anything else, a move of a point to that point's next one if nothing
        else is changed in between, and other changes to nothing.
        """
        asked = Asked(kind)
        outdated = [self.last_ahead] if kind == AHEAD else [self.last_ahead, self.last_look]
        if kind == AHEAD:
            self.last_ahead = asked
        elif kind == LOOK:
            self.last_look = asked
        else:
            if self.last_change is not None and self.last_change.kind == kind != CHANGE:
                outdated.append(self.last_change)
            self.last_change = asked
        for older in outdated:
            if older is not None:
                older.superseded = True
        return asked


class Hub:
    """All that is open.

    Args:
        model: shared by all sessions.
        limits: of everything.
    """

    def __init__(self, model: Any, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self._turns = FairTurns()
        self._model_thread = ModelThread()
        self._scans: Dict[str, OpenScan] = {}
        self._sessions: Dict[str, OpenSession] = {}
        self._scratch = Scratch()
        self._root = self._scratch.path
        self._threads = anyio.CapacityLimiter(WORKERS)
        self._session_threads = anyio.CapacityLimiter(limits.sessions)  # one each: they take turns at the model
        self._uploads = asyncio.Semaphore(limits.uploads_at_once)
        self._arriving = 0
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def close(self) -> None:
        """Forget every scan and remove what lies on disk."""
        self._sessions.clear()
        self._scans.clear()
        self._model_thread.close()
        self._scratch.close()

    async def expire(self) -> None:
        """Close what has been idle for too long, again and again."""
        while True:
            await asyncio.sleep(min(30.0, self.limits.idle_s / 4))
            self.close_idle()

    def close_idle(self) -> None:
        """Close sessions and scans that nobody used for the idle time; of abandoned scans, keep no embeddings."""
        oldest_s = time.monotonic() - self.limits.idle_s
        for opened in [s for s in self._sessions.values() if s.used_s < oldest_s and not s.waiting]:
            del self._sessions[opened.id]
        for scan in self._without_sessions(oldest_s):
            self.close_scan(scan.id)
        for scan in self._without_sessions(time.monotonic() - ABANDONED_S):
            scan.embeddings.clear()

    def _without_sessions(self, unused_since_s: float) -> List[OpenScan]:
        in_use = {opened.scan.id for opened in self._sessions.values()}
        return [s for s in self._scans.values() if s.used_s < unused_since_s and s.id not in in_use]

    def _closed_an_abandoned_scan(self) -> bool:
        """Whether room was made: clients close their sessions, and leave the scan to whoever needs its place."""
        abandoned = self._without_sessions(time.monotonic() - ABANDONED_S)
        if abandoned:
            self.close_scan(min(abandoned, key=lambda scan: scan.used_s).id)
        return bool(abandoned)

    # Scans

    @asynccontextmanager
    async def arrival(self) -> AsyncIterator[Path]:
        """A private folder for a scan that is about to be received; few at a time, the others wait unread."""
        while len(self._scans) + self._arriving >= self.limits.volumes:
            if self._closed_an_abandoned_scan():
                continue
            raise ServerError(503, "busy", f"{self.limits.volumes} scans are open already; close one, or try later")
        self._arriving += 1
        try:
            async with self._uploads:
                folder = Path(tempfile.mkdtemp(dir=self._root))
                try:
                    yield folder
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
        finally:
            self._arriving -= 1

    async def open_scan(self, path: Path, folder: Path) -> OpenScan:
        """Read what has arrived; to be called within ``arrival``."""
        intake = await self.in_thread(take_in, path, folder, self.limits)
        return self.add_scan(intake, folder)

    def add_scan(self, intake: Intake, folder: Path) -> OpenScan:
        """Keep a scan that was read."""
        while True:
            held = sum(scan.volume.voxels_zyx.nbytes for scan in self._scans.values())
            if held + intake.volume.voxels_zyx.nbytes <= self.limits.all_volumes_bytes:
                break
            if self._closed_an_abandoned_scan():
                continue
            raise ServerError(
                503,
                "busy",
                f"the open scans take {held // MIB} of {self.limits.all_volumes_bytes // MIB} MiB; close one",
            )
        scan = OpenScan(secrets.token_urlsafe(18), intake, folder, Embeddings(self.limits.cached_embeddings))
        self._scans[scan.id] = scan
        return scan

    def scan(self, scan_id: str) -> OpenScan:
        """The open scan of that id."""
        found = self._scans.get(scan_id)
        if found is None:
            raise ServerError(404, "not_found", "no such scan is open here; it may have been closed after being idle")
        found.used_s = time.monotonic()
        return found

    def close_scan(self, scan_id: str) -> None:
        """Forget a scan, its sessions and its files."""
        scan = self.scan(scan_id)
        for opened in [s for s in self._sessions.values() if s.scan is scan]:
            del self._sessions[opened.id]
        del self._scans[scan.id]
        shutil.rmtree(scan.folder, ignore_errors=True)

    # Sessions

    async def open_session(self, scan: OpenScan) -> OpenSession:
        """A session on a scan."""
        if len(self._sessions) >= self.limits.sessions:
            raise ServerError(503, "busy", f"{self.limits.sessions} sessions are open already; close one, or try later")
        shared: Any = SharedModel(self.model, self._turns, self._model_thread)
        session = Session(shared)
        opened = OpenSession(secrets.token_urlsafe(18), scan, shared, session)
        self._sessions[opened.id] = opened
        try:
            await self.in_thread(session.set_image, scan.volume, scan.embeddings)
        except BaseException:
            del self._sessions[opened.id]
            raise
        return opened

    def session(self, session_id: str) -> OpenSession:
        """The open session of that id, which is used now."""
        found = self._found(session_id)
        found.used_s = found.scan.used_s = time.monotonic()
        return found

    def _found(self, session_id: str) -> OpenSession:
        found = self._sessions.get(session_id)
        if found is None:
            raise ServerError(
                404, "not_found", "no such session is open here; it may have been closed after being idle"
            )
        return found

    def close_session(self, session_id: str) -> None:
        """Forget a session."""
        del self._sessions[self.session(session_id).id]

    def leave_session(self, session_id: str) -> None:
        """Close a session in a minute, unless anything is asked of it before: whoever had it has gone, or reloads."""
        opened = self.session(session_id)
        opened.used_s += min(0.0, ABANDONED_S - self.limits.idle_s)

    async def ask(self, session_id: str, work: Callable[[OpenSession], T], *, kind: str = CHANGE) -> T:
        """Do a session's work when its turn has come, in a thread.

        Args:
            session_id: whose.
            work: called with the session.
            kind: ``LOOK`` is given up (409) if by its turn anything newer of the session has come; a kind other than
                that and ``CHANGE`` if the session's next change is of the same kind.
        """
        opened = self.session(session_id)
        self._refuse_when_crowded(opened)
        asked = opened.arrived(kind)
        with self._counted(opened):
            async with opened.lock:
                _give_way(asked)
                self._found(session_id)  # it may have been closed meanwhile
                if opened.history_bytes > self.limits.history_bytes:
                    self.close_session(session_id)
                    raise ServerError(
                        404, "not_found", "the undo history became too large; go on from the prompts in a new session"
                    )
                return await self._run(self._session_threads, work, opened)

    async def ask_when_idle(self, session_id: str, work: Callable[[OpenSession], T]) -> T:
        """Do a session's work while nobody has anything else to do here; only one such work is done at a time.

        Raises:
            ModelBusyError: there was something else to do all the time.
            ServerError: anything newer of the session has come (409).
        """
        opened = self.session(session_id)
        self._refuse_when_crowded(opened)
        asked = opened.arrived(AHEAD)
        end_s = time.monotonic() + IDLE_PATIENCE_S
        opened.waiting += 1
        try:
            while self._waiting:
                try:
                    await asyncio.wait_for(self._idle.wait(), max(0.0, end_s - time.monotonic()))
                except asyncio.TimeoutError:
                    raise ModelBusyError("the server had other things to do") from None
                _give_way(asked)
        finally:
            opened.waiting -= 1
        with self._counted(opened):
            async with opened.lock:
                self._found(session_id)
                return await self._run(self._session_threads, work, opened)

    def _refuse_when_crowded(self, opened: OpenSession) -> None:
        if opened.waiting >= self.limits.waiting_per_session or self._waiting >= self.limits.waiting:
            raise ServerError(
                429, "busy", "too many requests are waiting already; wait for an answer before asking more"
            )

    @contextmanager
    def _counted(self, opened: OpenSession) -> Iterator[None]:
        """A request that waits or is answered."""
        opened.waiting += 1
        self._waiting += 1
        self._idle.clear()
        try:
            yield
        finally:
            opened.waiting -= 1
            self._waiting -= 1
            if not self._waiting:
                self._idle.set()

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run blocking work on a scan in one of the few threads for that."""
        return await self._run(self._threads, function, *args)

    async def _run(self, threads: anyio.CapacityLimiter, function: Callable[..., T], *args: Any) -> T:
        return await anyio.to_thread.run_sync(self._on_one_core, function, *args, limiter=threads)

    def _on_one_core(self, function: Callable[..., T], *args: Any) -> T:
        self._model_thread.keep_to_one_core()
        return function(*args)


def _give_way(asked: Asked) -> None:
    if asked.superseded:
        raise ServerError(409, "superseded", "a newer request of this session took this one's place")


def hub_of(app: Any) -> Hub:
    """The hub of a running application."""
    hub: Optional[Hub] = getattr(app.state, "hub", None)
    if hub is None:
        raise ServerError(503, "busy", "the server is starting or stopping; try again in a moment")
    return hub
