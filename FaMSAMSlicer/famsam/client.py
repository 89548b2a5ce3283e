"""A session on a famsam server, with the verbs of ``famsam.Session``, for programs that have no torch.

    connection = Connection("http://127.0.0.1:8765", token=None)
    session = RemoteSession(connection)
    session.set_image(volume)
    result = session.add_point((r, a, s))

Only numpy, nibabel (through ``Volume``) and the standard library are needed. A session keeps its scan and its prompts
here: when the server is back after a lost connection, or was restarted, the next verb sends both again and goes on.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .answers import RemoteCandidate, RemotePrompt, RemoteResult, box_of
from .compact_mask import CompactMask
from .connection import Connection, ConnectionLostError, ServerRefusal
from .errors import ConfigError, FamsamError, PromptError, SessionError, VolumeError
from .geometry import bounding_box, box_slices
from .server.limits import MIB
from .server.nrrd import nrrd_chunks
from .server.packing import pack_bits, unpack_probabilities
from .uncertainty_map import Uncertainty
from .volume import Volume, foreground

if TYPE_CHECKING:
    from .proposing import ProposalOptions

FORGET_S = 2.0
"""So long a server is given to forget a session: it does so by itself in the end."""

Point3 = Sequence[float]
Request = Tuple[str, str, Any]  # method, path below the session's, body


class Superseded(FamsamError):
    """A newer request of the same session took the place of this preview, move or work ahead."""


class RemoteSession:
    """``famsam.Session`` on a server: the same verbs, the same errors.

    Besides ``PromptError`` and ``SessionError``, every verb may raise ``ConnectionLostError`` (try again later) and
    ``ServerRefusal``; moves and what changes nothing may raise ``Superseded``. Undo and redo reach across a restart of
    the server: the prompts of every step are kept here.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._volume: Optional[Volume] = None
        self._volume_id: Optional[str] = None
        self._session_id: Optional[str] = None
        self._left_id: Optional[str] = None  # a session that may have done what its answer did not get here to tell
        self._history: List[Optional[Dict[str, Any]]] = [None]  # the state after every step; None: before the first
        self._at = 0
        self._known = (0, 0)  # the steps that the server's own history holds, first and last
        self._mask = CompactMask.empty((1, 1, 1))
        self._quality = 0.0
        self._lock = threading.RLock()

    # --- the scan ---

    def set_image(self, volume: Volume) -> None:
        """Send a scan; prompts, mask and history of an earlier one are gone."""
        if not isinstance(volume, Volume):
            raise SessionError(f"Expected a famsam.Volume (see famsam.read_volume), got {type(volume).__name__}.")
        with self._lock:
            self.close()
            self._volume, self._quality = volume, 0.0
            self._history, self._at, self._known = [None], 0, (0, 0)
            self._mask = CompactMask.empty(volume.grid.size_zyx)
            self._open()

    @property
    def volume(self) -> Volume:
        """The scan."""
        if self._volume is None:
            raise SessionError("Expected an image before prompts: call set_image(volume) first.")
        return self._volume

    def another(self) -> RemoteSession:
        """A session for another segment of the same scan, which is not sent again."""
        with self._lock:
            sibling = RemoteSession(self.connection)
            sibling._volume, sibling._volume_id = self.volume, self._volume_id
            sibling._mask = CompactMask.empty(self.volume.grid.size_zyx)
            return sibling

    def close(self) -> None:
        """Let the server forget the session; its scan goes when nobody uses it any more."""
        with self._lock:
            session_id, self._session_id, self._volume_id = self._session_id, None, None
            self._end(session_id)

    def _end(self, session_id: Optional[str]) -> None:
        self._left_id = None
        if session_id is not None:
            try:
                self.connection.request("DELETE", f"/v1/sessions/{session_id}", timeout_s=FORGET_S)
            except (ServerRefusal, ConnectionLostError):
                return  # it is gone already, or will expire

    # --- what is there ---

    @property
    def prompts(self) -> Tuple[RemotePrompt, ...]:
        """All prompts in force, in order."""
        state = self._history[self._at]
        listed: List[Dict[str, Any]] = state["prompts"] if state else []
        return tuple(RemotePrompt(entry) for entry in listed)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to redo."""
        return self._at + 1 < len(self._history)

    @property
    def result(self) -> RemoteResult:
        """The result as it stands, without a changed box."""
        return RemoteResult(self._mask, None, {"quality": self._quality, "timings_ms": {}})

    def uncertainty(self, decodes: int = 6) -> Uncertainty:
        """How sure the model is of the result as it stands, voxel by voxel, in steps of 1/255.

        Args:
            decodes: at most 16; see ``famsam.Session.uncertainty``.

        Raises:
            SessionError: there is no prompt.
            PromptError: ``decodes`` is below 1 or above 16.
        """
        answer = self._ask(lambda: ("GET", f"/uncertainty?decodes={int(decodes)}", None))
        if answer["box_zyx"] is None:
            return Uncertainty(None, np.zeros((0, 0, 0), dtype=np.float32), grid=self.volume.grid)
        box, size = box_of(answer)
        return Uncertainty(box, unpack_probabilities(answer["probabilities"], size), grid=self.volume.grid)

    def propose(self, options: Optional[ProposalOptions] = None) -> List[RemoteCandidate]:
        """Masks of whatever the model takes for a structure, without any prompt, the most trusted first.

        Nothing is changed; ``take`` one of them.

        Args:
            options: a ``famsam.proposing.ProposalOptions``, or anything with some of its attributes.

        Raises:
            ConfigError: the weights of the server's model have no proposal head.
        """
        found = self._ask(lambda: ("POST", "/proposals", vars(options) if options is not None else {}))
        return [RemoteCandidate(one, self.volume.grid.size_zyx) for one in found["candidates"]]

    def take(self, candidate: RemoteCandidate) -> RemoteResult:
        """Start from a candidate, as from any mask (see ``set_mask``): clicks refine it, undo returns."""
        if candidate.size_zyx != self.volume.grid.size_zyx:
            raise PromptError(
                f"Expected a candidate of this image ({self.volume.grid.size_zyx} voxels), got one of an image of "
                f"{candidate.size_zyx}. Call propose() again."
            )
        body = {"box_zyx": candidate.box_zyx, "bits": candidate.bits, "quality": candidate.quality}
        return self._verb("PUT", "/mask", body)

    # --- prompts ---

    def add_point(self, point_ras_mm: Point3, positive: bool = True) -> RemoteResult:
        """Click at a point: include (positive) or exclude (negative) what is there."""
        return self._verb("POST", "/points", {"point_ras_mm": _numbers(point_ras_mm), "positive": bool(positive)})

    def add_box(self, corner_ras_mm: Point3, opposite_ras_mm: Point3, along_scan: bool = False) -> RemoteResult:
        """Frame the structure by two opposite corners, in any order, of a box along the RAS axes or the scan's own."""
        body: Dict[str, Any] = {"corners_ras_mm": [_numbers(corner_ras_mm), _numbers(opposite_ras_mm)]}
        if along_scan:
            body["along_scan"] = True
        return self._verb("POST", "/boxes", body)

    def set_mask(self, mask_zyx: Any) -> RemoteResult:
        """Start from a mask that is already there, (z, y, x) on the image grid; earlier prompts end (undo returns)."""
        mask = np.asarray(mask_zyx)
        if mask.shape != self.volume.grid.size_zyx:
            raise PromptError(
                f"Expected a mask of the image's shape (z, y, x) = {self.volume.grid.size_zyx}, got {mask.shape}."
            )
        if mask.dtype.kind not in "biuf":
            raise PromptError(f"Expected a mask of bools or numbers, got {mask.dtype}.")
        inside = foreground(mask)
        box = bounding_box(inside) or ((0, 0, 0), (1, 1, 1))
        return self._verb("PUT", "/mask", {"box_zyx": box, "bits": pack_bits(inside[box_slices(box)])})

    def preview(self, point_ras_mm: Point3, positive: bool = True) -> RemoteResult:
        """The result as if clicked; nothing is changed."""
        body = {"point_ras_mm": _numbers(point_ras_mm), "positive": bool(positive)}
        return RemoteResult.after(self._mask, self._ask(lambda: ("POST", "/preview", body)))

    def encode_ahead(self, point_ras_mm: Point3) -> bool:
        """Prepare for a click where the pointer rests; the server does so when it has nothing else to do.

        Returns:
            True if there may be more to prepare: call again; False if all is there.
        """
        body = {"point_ras_mm": _numbers(point_ras_mm)}
        return bool(self._ask(lambda: ("POST", "/encode-ahead", body))["more"])

    def move_point(self, index: int, point_ras_mm: Point3) -> RemoteResult:
        """Move the point prompt ``prompts[index]``."""
        return self._verb("PUT", f"/points/{int(index)}", {"point_ras_mm": _numbers(point_ras_mm)})

    def remove_point(self, index: int) -> RemoteResult:
        """Take back ``prompts[index]``, point or box."""
        return self._verb("DELETE", f"/points/{int(index)}")

    # --- history ---

    def undo(self) -> RemoteResult:
        """Back to before the last verb that changed something."""
        if self._volume is not None and not self.can_undo:
            raise SessionError("Nothing to undo.")
        return self._walk(-1)

    def redo(self) -> RemoteResult:
        """Forward again after an undo."""
        if self._volume is not None and not self.can_redo:
            raise SessionError("Nothing to redo.")
        return self._walk(+1)

    def reset(self) -> RemoteResult:
        """No prompts, no mask; undo returns."""
        return self._verb("POST", "/reset")

    # --- persistence ---

    def to_dict(self) -> Dict[str, Any]:
        """What ``famsam.Session.to_dict`` gives; a local session restores from it as well."""
        state = self._history[self._at]
        if state is None:
            state = self._ask(lambda: ("GET", "/state", None))["state"]
            self._history[self._at] = state
        return dict(state)

    def restore(self, state: Dict[str, Any]) -> RemoteResult:
        """Prompts that ``to_dict`` wrote for this image."""
        return self._verb("PUT", "/state", {"state": state})

    # --- inside ---

    def _verb(self, method: str, path: str, body: Any = None) -> RemoteResult:
        with self._lock:
            update = self._ask(lambda: (method, path, body))
            self._history[self._at + 1 :] = [update["state"]]
            self._at += 1
            self._known = (self._known[0], self._at)
            return self._took(update)

    def _walk(self, step: int) -> RemoteResult:
        """Along the server's history where it reaches, else by restoring the prompts of that step."""

        def request() -> Request:
            if self._known[0] <= target <= self._known[1]:
                return "POST", "/undo" if step < 0 else "/redo", None
            return "PUT", "/state", {"state": self._history[target] or self._empty_state()}

        with self._lock:
            target = self._at + step
            update = self._ask(request)
            if not self._known[0] <= target <= self._known[1]:
                self._known = (target, target)
            self._at = target
            return self._took(update)

    def _took(self, update: Dict[str, Any]) -> RemoteResult:
        result = RemoteResult.after(self._mask, update)
        self._mask, self._quality = result.mask, result.quality
        return result

    def _empty_state(self) -> Dict[str, Any]:
        known = next(state for state in self._history if state is not None)
        return {**known, "mask": None, "prompts": []}

    def _ask(self, request: Callable[[], Request]) -> Any:
        """One request; a session that the server forgot is opened again first, from the scan and the prompts."""
        if self._volume is None:
            raise SessionError("Expected an image before prompts: call set_image(volume) first.")
        if self._session_id is None:
            with self._lock:
                self._open()
        try:
            return self._sent(self._session_id, request())
        except ServerRefusal as refusal:
            if refusal.code != "not_found":
                raise
            with self._lock:
                self._open()
            return self._sent(self._session_id, request())

    def _sent(self, session_id: Optional[str], request: Request) -> Any:
        method, path, body = request
        try:
            return self.connection.request(method, f"/v1/sessions/{session_id}{path}", body)
        except ServerRefusal as refusal:
            if refusal.code == "superseded":
                raise Superseded(str(refusal)) from None
            if refusal.code == "invalid":
                raise PromptError(str(refusal)) from None
            if refusal.code == "not_now":
                raise SessionError(str(refusal)) from None
            if refusal.code == "not_this_model":
                raise ConfigError(str(refusal)) from None
            raise
        except BaseException:  # lost or interrupted: the next verb begins anew from the prompts
            self._left_id, self._session_id = session_id, None
            raise

    def _open(self) -> None:
        volume, self._session_id = self.volume, None
        opened = None
        if self._volume_id is not None:
            try:
                opened = self.connection.request("POST", f"/v1/volumes/{self._volume_id}/sessions")
            except ServerRefusal as refusal:
                if refusal.code != "not_found":
                    raise
        if opened is None:
            self._volume_id = self._upload(volume)
            opened = self.connection.request("POST", f"/v1/volumes/{self._volume_id}/sessions")
        self._end(self._left_id)
        self._left_id = opened["id"]  # until it has the prompts
        state = self._history[self._at]
        if state is not None:
            update = self._sent(opened["id"], ("PUT", "/state", {"state": state}))
            self._mask = RemoteResult.after(CompactMask.empty(volume.grid.size_zyx), update).mask
        self._known = (self._at, self._at)
        self._session_id, self._left_id = opened["id"], None

    def _upload(self, volume: Volume) -> str:
        """Send a scan; one that is too large is not begun with, since the server would hang up in the middle of it."""
        limits, compress = self.connection.get("/v1/server")["limits"], not self.connection.is_local
        most = limits["volume_bytes"] if compress else min(limits["volume_bytes"], limits["upload_bytes"])
        if volume.voxels_zyx.nbytes > most:
            raise VolumeError(
                f"the scan's voxels take {volume.voxels_zyx.nbytes / MIB:.0f} MiB, the server at "
                f"{self.connection.address} opens at most {most / MIB:.0f} MiB. Crop or resample the scan, or start "
                "the server with a higher --max-volume-mib and --max-upload-mib."
            )
        chunks = nrrd_chunks(volume.voxels_zyx, volume.grid.ras_from_ijk, {}, compress=compress)
        return str(self.connection.request("POST", "/v1/volumes", chunks=chunks)["id"])


def session_on(model: Any) -> Any:
    """A session wherever the model is: a ``RemoteSession`` for a ``Connection``, else a ``famsam.Session``."""
    if isinstance(model, Connection):
        return RemoteSession(model)
    from .session import Session

    return Session(model)


def _numbers(point_ras_mm: Point3) -> List[float]:
    try:
        r, a, s = (float(v) for v in point_ras_mm)
    except (TypeError, ValueError) as error:
        raise PromptError(f"Expected three numbers (R, A, S) in millimetres, got {point_ras_mm!r}.") from error
    if not np.isfinite([r, a, s]).all():
        raise PromptError(f"Expected finite coordinates (R, A, S) in millimetres, got {(r, a, s)}.")
    return [r, a, s]
