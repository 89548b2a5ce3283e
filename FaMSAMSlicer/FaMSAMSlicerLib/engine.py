"""The one worker thread on which the engine runs, and the session that lives there.

In Slicer the main thread keeps Python's interpreter lock while it waits for events: nothing else in Python runs then,
and a worker that has given the lock away, as every operation of torch does, would get it back at the main thread's next
few lines of Python only. So the main thread, for as long as the worker is at work, has to ``wait`` for it again and
again. That is also when garbage is collected: the worker must not.

The main thread hands over a ``Request`` that says everything: which scan, in which state the segment is, what was
done. The worker keeps one session and finds its way to that state: by nothing at all if it is there (the usual case),
along the session's history after an undo or redo, else by replaying the prompts.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import platform
import uuid
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from famsam.client import Connection, ConnectionLostError, RemoteSession, session_on
from famsam.errors import ConfigError, FamsamError

from .garbage import Garbage
from .prompts import Prompt, Prompts
from .requirements import check_restarted
from .scans import Scan
from .spaces import Point3

DOUBTFUL = 0.2
"""A voxel is in doubt where the probability that it has been taken for the wrong side is above this."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelChoice:
    """What ``famsam.load_model`` is asked for, or the server that has a model."""

    source: str = "default"
    """ "default" for the bundled weights, else a weights file."""
    device: str = "auto"
    precision: str = "auto"
    server: str = ""
    """Address of a famsam server that computes instead of this machine, such as http://127.0.0.1:8765; else empty."""
    token: str = field(default="", repr=False)
    """What that server asks for."""


@dataclass(frozen=True)
class Step:
    """One thing that the user did; positions in RAS mm."""

    verb: str
    """add_point, add_box, move_point, remove_point, take, preview; aim: nothing is done, a click may come there"""
    points: Tuple[Point3, ...] = ()
    positive: bool = True
    index: int = -1
    """Of the prompt that is moved or removed."""
    candidate: Any = None
    """What is taken, one of ``Engine.propose``."""

    def run(self, session: Any) -> Any:
        """Do it; the session's result."""
        if self.verb in ("add_point", "preview"):
            return getattr(session, self.verb)(self.points[0], positive=self.positive)
        if self.verb == "add_box":
            return session.add_box(*self.points, along_scan=True)
        if self.verb == "move_point":
            return session.move_point(self.index, self.points[0])
        if self.verb == "take":
            return session.take(self.candidate)
        return session.remove_point(self.index)

    def applied(self, prompts: Prompts) -> Prompts:
        """The prompts after it: what the views show until the mask is there."""
        if self.verb == "add_point":
            return (*prompts, {"type": "point", "ras_mm": list(self.points[0]), "positive": self.positive})
        if self.verb == "add_box":
            lower, upper = (list(p) for p in self.points)
            return (*prompts, {"type": "box", "lower_ras_mm": lower, "upper_ras_mm": upper})
        if self.verb == "take":
            return ()
        if not 0 <= self.index < len(prompts):
            return prompts
        if self.verb == "move_point":
            there: Prompt = {**prompts[self.index], "ras_mm": list(self.points[0])}
            return (*prompts[: self.index], there, *prompts[self.index + 1 :])
        if self.verb == "remove_point":
            return (*prompts[: self.index], *prompts[self.index + 1 :])
        return prompts


@dataclass(frozen=True, eq=False)
class Start:
    """The state to go on from. All positions in the scan's own RAS mm."""

    token: str = ""
    prompts: Prompts = ()
    base: Optional[Dict[str, Any]] = None
    mask: Optional[Tuple[np.ndarray, Tuple[int, int, int]]] = None
    """Begin from this mask, which something else has made, and from no prompts: (z, y, x) bool, a part of the scan's
    grid, and the index (z, y, x) of its first voxel."""


@dataclass(frozen=True, eq=False)
class Request:
    """What the worker is to do."""

    scan: Scan
    choice: ModelChoice
    start: Start
    steps: Sequence[Step]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a request. Positions in the scan's own RAS mm."""

    mask_zyx: np.ndarray
    """(z, y, x) bool, as small as the mask."""
    low_xyz: np.ndarray
    """(3,) index of its first voxel in the scan."""
    prompts: Prompts
    base: Optional[Dict[str, Any]]
    token: str
    quality: float
    timings_ms: Dict[str, float]
    errors: Tuple[str, ...] = field(default=())
    """Of the steps that could not be done; the others were."""


@dataclass(frozen=True, eq=False)
class Doubt:
    """Where the model is not sure of the mask."""

    labels_zyx: np.ndarray
    """(z, y, x) uint8: 1 outside of the mask but perhaps part of the structure, 2 the other way round, else 0."""
    low_xyz: np.ndarray
    """(3,) index of its first voxel in the scan."""


class Engine:
    """The worker. One for the whole application: the model is loaded once.

    Args:
        load: makes a model of a choice; ``famsam.load_model`` by default.
    """

    def __init__(self, load: Optional[Callable[[ModelChoice], Any]] = None) -> None:
        self._load = load or _load_model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="FaM-SAM")
        self._asked: List[Future[Any]] = []
        self._garbage = Garbage()
        self._place = _Place()
        self._is_over = False
        self.devices: List[Tuple[str, str]] = []
        """Where a model can run here, and what that is called; known once a model has been loaded on this machine."""

    @property
    def is_at_work(self) -> bool:
        """Whether the worker has anything to do, wanted by now or not.

        For the main thread. Once it has not, Python collects garbage by itself again.
        """
        self._asked = [future for future in self._asked if not future.done()]
        if not self._asked:
            self._garbage.release()
        return bool(self._asked)

    def wait(self, timeout_s: float) -> None:
        """Let the worker run: until it has finished something, at most for so long."""
        if self.is_at_work:
            futures.wait(self._asked, timeout_s, futures.FIRST_COMPLETED)
            self._garbage.collect()

    def stop_waiting(self) -> None:
        """Wait for no answer of a server any more: what the worker is at then fails as if the connection were lost."""
        connection = self._place.connection
        if connection is not None:
            connection.interrupt()

    def submit(self, request: Request) -> Future[Outcome]:
        """Queue a request; its future holds the outcome or the error."""
        return self._ask(self._run, request)

    def warm_up(self, choice: ModelChoice, scan: Optional[Scan] = None) -> Future[str]:
        """Load the model and take the scan in now, so that the first click need not wait for it.

        The future says what runs where. A server that another model was on is not waited for any more.
        """
        if not self._place.has_model_for(choice):
            self.stop_waiting()
        return self._ask(self._warm_up, choice, scan)

    def encode_ahead(self, request: Request) -> Future[bool]:
        """Encode one view of what a click at the request's one step would look at; the future: may there be more?

        A model that is not there yet is not loaded for that.
        """
        return self._ask(self._encode_ahead, request)

    def doubt(self, request: Request) -> Future[Optional[Doubt]]:
        """Where the model is not sure of the state that the request starts from; None where that cannot be told."""
        return self._ask(self._doubt, request)

    def propose(self, scan: Scan, choice: ModelChoice) -> Future[Optional[Sequence[Any]]]:
        """Candidates of a scan, the most trusted first (``famsam.Session.propose``); None if the model cannot.

        They are kept as long as the scan and the model are: asked for again, they are there at once.
        """
        return self._ask(self._propose, scan, choice)

    def close(self) -> None:
        """Let the thread end once it has done what it is doing."""
        self._thread.shutdown(wait=False)
        self._garbage.release()

    def quit(self) -> None:
        """The application ends, which waits for the thread: what the worker has not begun fails, as does what waits."""
        self._is_over = True
        self.stop_waiting()

    def _ask(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        self._garbage.hold()
        future = self._thread.submit(self._do, work, *arguments)
        self._asked.append(future)
        return future

    def _do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if self._is_over:
            raise FamsamError("The application ends.")
        return work(*arguments)

    def _warm_up(self, choice: ModelChoice, scan: Optional[Scan]) -> str:
        model = self._place.model_for(choice, self._load)
        if isinstance(model, Connection):
            model.get("/v1/server")  # tells at once if it is not there, or asks for another token
        if scan is not None:
            self._place.session_for(scan, model)
        if not choice.server:
            self.devices = _devices()
        device, precision = getattr(model, "device", None), getattr(model, "precision", None)
        return " ".join(str(part) for part in (device, precision) if part is not None)

    def _encode_ahead(self, request: Request) -> bool:
        if not self._place.has_model_for(request.choice):
            return False
        return bool(self._session(request).encode_ahead(request.steps[0].points[0]))

    def _doubt(self, request: Request) -> Optional[Doubt]:
        if not self._place.has_model_for(request.choice):
            return None
        session = self._session(request)
        told = session.uncertainty(decodes=1) if session.prompts else None  # 1: nothing is computed anew
        if told is None or told.box_zyx is None:
            return None
        inside, probability = session.result.mask_in(told.box_zyx), told.probability_zyx
        doubted_zyx = np.where(inside, 2 * (probability < 1 - DOUBTFUL), probability > DOUBTFUL)
        return Doubt(doubted_zyx.astype(np.uint8), np.array(told.box_zyx[0][::-1]))

    def _propose(self, scan: Scan, choice: ModelChoice) -> Optional[Sequence[Any]]:
        session = self._place.session_for(scan, self._place.model_for(choice, self._load))
        if self._place.candidates is None:
            try:
                self._place.candidates = session.propose()
            except ConfigError as error:
                logger.info("%s", error)
        return self._place.candidates

    def _session(self, request: Request) -> Any:
        """The session, on the request's scan and in its state."""
        session = self._place.session_for(request.scan, self._place.model_for(request.choice, self._load))
        self._place.go_to(request.start)
        return session

    def _run(self, request: Request) -> Outcome:
        session = self._session(request)
        if request.steps and request.steps[-1].verb == "preview":
            return _outcome(session, request.steps[-1].run(session), "", ())
        result, errors = None, []
        for step in request.steps:
            try:
                result = step.run(session)
            except ConnectionLostError:  # all of it is asked for again when the server is back
                raise
            except FamsamError as error:
                errors.append(str(error))
            else:
                self._place.passed(uuid.uuid4().hex)
        if result is None:
            raise FamsamError(errors[0] if errors else "Nothing was asked for.")
        return _outcome(session, result, self._place.token, tuple(errors))


class _Place:
    """Where the worker's session stands; lives on the worker thread."""

    def __init__(self) -> None:
        self._choice: Optional[ModelChoice] = None
        self._model: Any = None
        self._scan_key: Any = None
        self._session: Any = None
        self._tokens: List[str] = []
        self._at = 0
        self.candidates: Optional[Sequence[Any]] = None
        """What the session has proposed; None before it was asked to."""

    @property
    def token(self) -> str:
        return self._tokens[self._at]

    @property
    def connection(self) -> Optional[Connection]:
        """To the server on which the model is, if it is on one."""
        model = self._model
        return model if isinstance(model, Connection) else None

    def has_model_for(self, choice: ModelChoice) -> bool:
        return self._model is not None and choice == self._choice

    def model_for(self, choice: ModelChoice, load: Callable[[ModelChoice], Any]) -> Any:
        if not self.has_model_for(choice):
            self._end_session()
            self._model = None  # frees the old one first
            self._model, self._choice = load(choice), choice
        return self._model

    def session_for(self, scan: Scan, model: Any) -> Any:
        if self._session is None or self._scan_key != scan.key:
            from famsam import Volume

            self._end_session()
            session = session_on(model)
            session.set_image(Volume(scan.voxels_zyx, scan.ras_from_ijk, name=scan.name))
            self._session, self._scan_key = session, scan.key
            self._tokens, self._at, self.candidates = [""], 0, None
        return self._session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if isinstance(session, RemoteSession):
            session.close()  # else the server would keep the scan until it is found to be idle

    def passed(self, token: str) -> None:
        """The session did something: its history goes on from here, as ``token``."""
        self._tokens[self._at + 1 :] = [token]
        self._at += 1

    def go_to(self, start: Start) -> None:
        token = start.token if start.mask is None else _mask_token(*start.mask)
        if token in self._tokens:
            target = self._tokens.index(token)
            while self._at != target:
                self._session.undo() if self._at > target else self._session.redo()
                self._at += 1 if self._at < target else -1
            return
        if start.mask is not None:
            part, low = start.mask
            mask_zyx = np.zeros(self._session.volume.grid.size_zyx, dtype=bool)
            mask_zyx[tuple(slice(a, a + n) for a, n in zip(low, part.shape))] = part
            self._session.set_mask(mask_zyx)
        else:
            self._session.restore(_session_state(self._session, start))
        self.passed(token)


def _mask_token(part_zyx: np.ndarray, low_zyx: Tuple[int, int, int]) -> str:
    return f"{hashlib.blake2b(np.packbits(part_zyx).tobytes()).hexdigest()} {part_zyx.shape} {low_zyx}"


def _session_state(session: Any, start: Start) -> Dict[str, Any]:
    return {**session.to_dict(), "mask": start.base, "prompts": [dict(prompt) for prompt in start.prompts]}


def _outcome(session: Any, result: Any, token: str, errors: Tuple[str, ...]) -> Outcome:
    box = result.box_zyx or ((0, 0, 0), (0, 0, 0))
    state = session.to_dict()
    return Outcome(
        mask_zyx=np.ascontiguousarray(result.mask_in(box)),
        low_xyz=np.array(box[0][::-1]),
        prompts=tuple(state["prompts"]),
        base=state["mask"],
        token=token,
        quality=float(result.quality),
        timings_ms=dict(result.timings_ms),
        errors=errors,
    )


def _load_model(choice: ModelChoice) -> Any:
    import famsam

    if choice.server:
        return Connection(choice.server, choice.token or None)
    check_restarted()
    logger.info("famsam %s from %s", famsam.__version__, famsam.__file__)
    return famsam.load_model(choice.source, device=choice.device, precision=choice.precision)


def _devices() -> List[Tuple[str, str]]:
    import torch

    found = [("cpu", platform.processor() or platform.machine())]
    found += [(f"cuda:{index}", torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]
    return found + ([("mps", platform.machine())] if torch.backends.mps.is_available() else [])


@functools.lru_cache(maxsize=1)
def shared_engine() -> Engine:
    """The application's engine."""
    return Engine()
