"""From what the user does to the segment: the behaviour behind the Segment Editor effect, without widgets.

Every interaction becomes a step. One request at a time is with the worker; what comes meanwhile waits and goes with
the next one, so that nothing is lost and a newer click never queues behind an older one's mask. ``poll`` (called by a
timer) lets the worker run, takes what is ready and writes it: undo state, mask, points, in that order and all at once.
Where a server computes and cannot be reached, what was done waits until it is back.
"""

from __future__ import annotations

import contextlib
import logging
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, Optional, Tuple

import numpy as np
from famsam.client import ConnectionLostError
from famsam.errors import FamsamError, PromptError

from .aiming import Aim
from .asking import Question, fingerprint, question
from .doubt import DoubtView
from .engine import Engine, ModelChoice, Outcome, Request, Step
from .overlay import PREVIEW, Overlay
from .placing import box_in_seg, is_in_scan, point_in_seg
from .points_view import PointsView
from .prompts import Prompts, SegmentState, write_state
from .proposals import Proposals
from .scans import scan_of
from .segments import mask_print
from .selection import Selection, segment_of
from .spaces import Point3
from .status import Status
from .translation import tr as _
from .waiting import Asked, Waiting
from .writing import write_nothing, write_outcome

RETRY_S = 2.0
"""So often a server that cannot be reached is asked again while something waits for it."""

_NOTHING_WRITTEN = _(
    "Nothing of what was found could be written: it lies outside of the editable area or of the segmentation's "
    "geometry, or is smaller than a voxel there. Look at Masking, and at the button beside the source volume."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Running:
    """What the worker is at."""

    future: Future[Outcome]
    question: Question

    @property
    def asked(self) -> Asked:
        return self.question.asked


class Controller(Selection):
    """The clicks of one Segment Editor.

    Args:
        effect: the ``scriptedEffect`` of Slicer: the one way in which segments are written.
        engine: the worker.
        on_status: called with a ``Status`` whenever there is something new to say.
    """

    def __init__(self, effect: Any, engine: Engine, on_status: Callable[[Status], None]) -> None:
        super().__init__(effect)
        self.engine = engine
        self.choice = ModelChoice()
        self.status = Status()
        self.points = PointsView(self.move_point, self.remove_point, self.clear_points, self.sync)
        self._on_status = on_status
        self.doubt_visible = False  # takes effect with the next ``sync``
        self._preview = Overlay(PREVIEW)
        self._doubt = DoubtView()
        self._proposals = Proposals()
        self._aim = Aim()
        self._warming: Optional[Future[str]] = None
        self._running: Optional[_Running] = None
        self._waiting = Waiting()
        self._offline = ""  # what there is to say while the server cannot be reached
        self._retry_at = 0.0
        self._undoable_drag = 0
        self._is_writing = False

    # --- what there is to do ---

    @property
    def busy(self) -> bool:
        """Whether something that the user has asked for is under way."""
        return self._is_at_work or bool(self._waiting) or self._proposals.is_pending

    @property
    def is_offline(self) -> bool:
        """Whether the server that computes cannot be reached."""
        return bool(self._offline)

    @property
    def has_work(self) -> bool:
        """Whether ``poll`` has to be called."""
        return self.busy or bool(self._aim) or bool(self._doubt)

    @property
    def is_proposing(self) -> bool:
        """Whether a proposal is shown, or one is looked for."""
        return bool(self._proposals)

    # --- what the user does (positions in world RAS mm) ---

    def click(self, world: Point3, positive: bool = True) -> None:
        """Include, or exclude, what is there."""
        self._guarded(lambda: self._enqueue(Step("add_point", (self._checked(world),), positive)))

    def box(self, corners_world: np.ndarray) -> None:
        """Frame the structure: the box around these points, (N, 3), along the scan's own axes."""
        self._guarded(lambda: self._enqueue(self._box_step(corners_world)))

    def preview(self, world: Point3, positive: bool = True, in_3d: bool = False) -> None:
        """Show what a click would do, in the 3D views as well if so; the newest wins, and any click overtakes it.

        Nothing is shown, nor said, for a place outside of the scan: the pointer has only passed there; nor while there
        are proposals to choose from.
        """
        if self._proposals:
            return
        self._preview.in_3d = in_3d
        self._guarded(lambda: self._enqueue_preview(world, positive))

    def end_preview(self) -> None:
        """Take the preview away."""
        self._waiting.drop_preview()
        self._preview.hide()
        if self._running is not None and self._running.asked.is_preview:
            self._drop_running()
            self._go_on()

    def propose(self, step: int = 1, in_3d: bool = False) -> None:
        """Show what the model takes for a structure, the best first; if one is shown, another one.

        Any click, move or box ends that: what the user does comes first.

        Args:
            step: from the one that is shown: 1 for the next, -1 for the one before.
            in_3d: in the 3D views as well.
        """
        self._guarded(lambda: self._propose(step, in_3d))

    def take_proposal(self) -> None:
        """Make the proposal that is shown the segment, as a click would; the clicks that follow refine it."""
        self._end_proposals_of_another_state()
        candidate = self._proposals.take()
        if candidate is not None:
            self._guarded(lambda: self._enqueue(Step("take", candidate=candidate)))

    def end_proposals(self) -> None:
        """Take none."""
        if self._proposals:
            self._proposals.end()
            self._say(_("No proposal was taken."))

    def aim(self, world: Point3) -> None:
        """The pointer rests there: have encoded what a click there will look at, while there is nothing else to do."""
        self._aim.drop()
        if self._offline:  # a click should not have to wait until this has failed, too
            return
        with contextlib.suppress(FamsamError):  # a click there will say so
            self._aim.at(self._request_here(Step("aim", (self._checked(world),))))
            self._go_on()

    def move_point(self, index: int, point_seg: Point3) -> None:
        """A point was dragged to there (in the segmentation's own coordinates); the mask follows."""
        where = self._prompt_index(index)
        self._guarded(lambda: self._enqueue(Step("move_point", (point_seg,), index=where)))

    def remove_point(self, index: int) -> None:
        """A point was deleted."""
        where = self._prompt_index(index)
        self._guarded(lambda: self._enqueue(Step("remove_point", index=where)))

    def clear_points(self) -> None:
        """Forget the prompts and keep the mask: the next click goes on from it."""
        if self.segment is None or not (self.state.prompts or self._prompts()):
            return
        self._forget_here()
        if self.state.prompts:
            self.effect.saveStateForUndo()
            write_state(self.segment, SegmentState())
        self.sync()
        self._say(_("Points cleared; the segment stays, and the next click goes on from it."))

    def reset_segment(self) -> None:
        """Forget the prompts and empty the segment."""
        if self.segment is None:
            return
        self._forget_here()
        self.effect.saveStateForUndo()
        write_nothing(self.effect, self.segmentation_node, self.segment_id, self.segment)
        self.sync()
        self._say(_("Segment emptied."))

    def warm_up(self) -> Future[str]:
        """Have the model loaded and the volume taken in before the first click; the future says what runs where."""
        scan = None
        with contextlib.suppress(FamsamError):  # the click will say so
            scan = scan_of(self.volume_node)
        self._offline = ""
        self._proposals.end()
        self._leave_model()
        self._warming = self.engine.warm_up(self.choice, scan)
        self.sync()
        self._say(_("Connecting…") if self.choice.server else _("Loading the model…"))
        return self._warming

    def cancel(self) -> None:
        """Drop what is being computed and what waits."""
        was_busy = self.busy or self.is_proposing
        self._forget()
        self.engine.stop_waiting()
        self._preview.hide()
        if was_busy:
            self.sync()
            self._say(_("Cancelled."))

    def finish(self, timeout_s: float) -> None:
        """Wait for clicks that are under way, so that none is lost when the user turns to something else."""
        self.end_preview()
        self._proposals.end()
        deadline = time.perf_counter() + timeout_s
        while self._running is not None and time.perf_counter() < deadline:
            wait([self._running.future], timeout=max(0.0, deadline - time.perf_counter()))
            self.poll()
        if self._running is not None or self._waiting:
            logger.warning("Clicks that had not been computed yet were dropped when the effect was left.")

    def close(self) -> None:
        """Take everything away that is of use only while the user clicks: points in the views, preview, requests."""
        self._forget()
        self._preview.remove()
        self._doubt.remove()
        self._proposals.remove()
        self.points.remove()

    # --- what Slicer does ---

    def sync(self) -> None:
        """Bring the views in line with the selected segment: after undo, redo, loading, selecting another one.

        Not while a result is written, which is half there then: that is followed by this.
        """
        if self._is_writing:
            return
        self._end_proposals_of_another_state()
        self.points.show(self._prompts(), self.segmentation_node)
        self._doubt.want(self._doubted_state() if self.doubt_visible else None)

    def poll(self, wait_s: float = 0.0) -> bool:
        """Take what the worker has finished, write it, and hand over what waits; ``has_work`` after that.

        Args:
            wait_s: the worker is waited for at most so long, and runs meanwhile (see ``Engine.wait``).
        """
        self.engine.wait(wait_s)
        warming, running = self._warming, self._running
        if warming is not None and warming.done():
            self._warming = None
            self._guarded(lambda: self._warmed(warming))
        if running is not None and running.future.done():
            self._running = None
            self._guarded(lambda: self._take(running))
        if self._proposals.is_answered:
            self._guarded(self._receive_proposals)
        if not self._offline or time.perf_counter() >= self._retry_at:
            self._go_on()
        return self.has_work

    # --- inside ---

    @property
    def _is_at_work(self) -> bool:
        return self._running is not None or self._warming is not None

    def _forget(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
        self._warming = None
        self._drop_running()
        self._waiting.clear()
        self._proposals.end()
        self._aim.drop()

    def _forget_here(self) -> None:
        """What was done to the selected segment and is not written yet; what was done to others is computed."""
        here = (self.segmentation_node, self.segment_id)
        self._waiting.drop(*here)
        if self._running is not None and self._running.asked.is_for(*here):
            self._drop_running()
        self._proposals.end()
        self._aim.drop()
        self._preview.hide()

    def _drop_running(self) -> None:
        """Wait for it no more; what the worker has not begun it leaves out."""
        if self._running is not None:
            self._running.future.cancel()
        self._running = None

    def _leave_model(self) -> None:
        """Another one may have been chosen: that one is asked what the last one has not told yet."""
        self._aim.drop()
        self._doubt.want(None)
        running = self._running
        if running is not None and running.question.request.choice != self.choice:
            self._drop_running()
            self._waiting.put_back(running.asked)

    def _checked(self, world: Point3) -> Point3:
        self._check_segment()
        return point_in_seg(self.volume_node, self.segmentation_node, world)

    def _box_step(self, corners_world: np.ndarray) -> Step:
        self._check_segment()
        return Step("add_box", box_in_seg(self.volume_node, self.segmentation_node, corners_world))

    def _enqueue_preview(self, world: Point3, positive: bool) -> None:
        if is_in_scan(self.volume_node, world):
            self._enqueue(Step("preview", (self._checked(world),), positive))
        else:
            self.end_preview()

    def _propose(self, step: int, in_3d: bool) -> None:
        self._check_segment()
        self._end_proposals_of_another_state()
        self._proposals.overlay.in_3d = in_3d
        if self._proposals.shown is not None:
            self._proposals.step(step, self.volume_node)
        elif not self._proposals:
            self.end_preview()
            self._aim.drop()
            self._proposals.want(self._proposed_state(), scan_of(self.volume_node), self.choice)
            self._go_on()
        self._tell_proposals()

    def _receive_proposals(self) -> None:
        self._proposals.receive(self.volume_node)
        self._tell_proposals()

    def _tell_proposals(self) -> None:
        quality = self._proposals.shown.quality if self._proposals.shown is not None else 0.0
        self._tell(Status(self._proposals.message, busy=self.busy, quality=quality))

    def _proposed_state(self) -> Optional[Tuple[Any, ...]]:
        """What proposals belong to; None where there can be none."""
        with contextlib.suppress(FamsamError):
            if self.segment is not None:
                return self.segmentation_node, self.segment_id, scan_of(self.volume_node).key, self.choice
        return None

    def _end_proposals_of_another_state(self) -> None:
        if self._proposals and not self._proposals.belong_to(self._proposed_state()):
            self.end_proposals()

    def _check_segment(self) -> None:
        if self.segment is None:
            raise PromptError(_("No segment is selected. Add one, or select one, then click."))

    def _prompt_index(self, point_index: int) -> int:
        """Points are numbered among themselves in the views, among all prompts in the session."""
        where = [index for index, prompt in enumerate(self._prompts()) if prompt["type"] == "point"]
        return where[point_index] if 0 <= point_index < len(where) else -1

    def _prompts(self) -> Prompts:
        """Of the selected segment, with those that are still to be computed."""
        here = (self.segmentation_node, self.segment_id)
        asked = self._running.asked if self._running is not None else None
        steps = asked.steps if asked is not None and asked.is_for(*here) else ()
        prompts = self.state.prompts
        for step in (*steps, *self._waiting.steps(*here)):
            prompts = step.applied(prompts)
        return prompts

    def _enqueue(self, step: Step) -> None:
        self._aim.drop()
        if step.verb != "preview":
            self._proposals.end()
        self._waiting.add(self._asked(step))
        self._go_on()
        if step.verb != "preview":
            self.sync()

    def _asked(self, step: Step) -> Asked:
        return Asked(self.segmentation_node, self.segment_id, self.volume_node, (step,), time.perf_counter())

    def _go_on(self) -> None:
        """Hand over what waits; where nothing does, what is of use before the next click."""
        while self._running is None and self._waiting:
            self._guarded(partial(self._dispatch, self._waiting.take()))
        if self._proposals.is_due and not self._is_at_work:
            self._proposals.ask(self.engine)
        elif not self.busy:
            self._doubt.take()
            if self._doubt.is_due:
                self._doubt.ask(self.engine, self._request_here(Step("doubt")), self.volume_node)
            if not self._doubt:
                self._aim.go_on(self.engine)

    def _request_here(self, step: Step) -> Optional[Request]:
        """On the selected segment; None where that cannot be: what is in the way is said when the user clicks."""
        try:
            return question(self._asked(step), self.segment, self.choice).request
        except Exception:
            logger.debug("Nothing was prepared", exc_info=True)
            return None

    def _doubted_state(self) -> Optional[Tuple[Any, ...]]:
        """What the doubts that are shown belong to; None where there can be none."""
        if self.segment is None or self.volume_node is None or not self.state.prompts:
            return None
        image = self.segment.GetRepresentation("Binary labelmap")
        return self.segment_id, self.volume_node.GetID(), self.state.token, image.GetMTime() if image else 0

    def _dispatch(self, asked: Asked) -> None:
        segment = segment_of(asked.node, asked.segment_id)
        if segment is None:
            self._say("")
            return
        asking = question(asked, segment, self.choice)
        self._running = _Running(self.engine.submit(asking.request), asking)
        self._tell_busy()

    def _warmed(self, warming: Future[str]) -> None:
        try:
            device = warming.result()
        except ConnectionLostError as error:
            self._lost_connection(error)
            return
        if not self.busy:
            self._say(_("Ready on {device}. Click on a structure.").format(device=device))

    def _take(self, running: _Running) -> None:
        asked = running.asked
        try:
            outcome = running.future.result()
        except ConnectionLostError as error:
            self._waiting.put_back(asked)
            self._lost_connection(error)
            return
        self._offline = ""
        segment = segment_of(asked.node, asked.segment_id)
        if segment is None:
            self._say("")
            return
        if asked.is_preview:
            scan = running.question.request.scan
            self._preview.show(outcome.mask_zyx, outcome.low_xyz, scan, asked.volume_node)
            self._tell(Status(_("Preview"), False, self.busy, _ms_since(asked.since), outcome.quality))
            return
        if fingerprint(segment) != running.question.before:
            self._dispatch(asked)
            return
        self._commit(running, outcome, segment)

    def _lost_connection(self, error: Exception) -> None:
        """Said in one line, which stays until the server answers; what was done waits and is asked for again."""
        if not self._offline:
            logger.warning("%s", error)
            text = str(error)
            self._offline = _("{problem}. Clicks made meanwhile are kept.").format(problem=text[:1].upper() + text[1:])
        self._retry_at = time.perf_counter() + RETRY_S
        self._tell_busy()

    def _commit(self, running: _Running, outcome: Outcome, segment: Any) -> None:
        asked = running.asked
        same_drag = self.points.drags == self._undoable_drag and all(s.verb == "move_point" for s in asked.steps)
        if not same_drag and asked.node is self.segmentation_node:  # else it has lost its history by now
            self.effect.saveStateForUndo()
            self._undoable_drag = self.points.drags
        self._preview.hide()
        self._is_writing = True
        try:
            write_outcome(self.effect, running.question, outcome, segment)
        finally:
            self._is_writing = False
        self._waiting.renumber(asked.node, asked.segment_id, running.question.ended)
        self.sync()
        message, is_error = _("Ready"), False
        if outcome.errors:
            message, is_error = " ".join(outcome.errors), True
        elif not outcome.mask_zyx.size:
            message = _("The segment is empty. Click inside the structure.")
        elif not mask_print(segment):
            message, is_error = _NOTHING_WRITTEN, True
        latency_ms, engine_ms = _ms_since(asked.since), outcome.timings_ms.get("total", 0.0)
        self._tell(Status(message, is_error, self.busy, latency_ms, outcome.quality, engine_ms))

    def _guarded(self, action: Callable[[], None]) -> None:
        """Whatever goes wrong becomes one message; the next interaction begins anew."""
        try:
            action()
        except FamsamError as error:
            self._failed(str(error))
        except Exception as error:
            logger.exception("An interaction failed")
            problem = f"{type(error).__name__}: {error}"
            text = _("That did not work ({problem}). Details are in the application's log.")
            self._failed(text.format(problem=problem))

    def _failed(self, message: str) -> None:
        self._preview.hide()
        self.sync()
        self._tell(replace(self.status, message=message, is_error=True, busy=self.busy))

    def _say(self, message: str) -> None:
        self._tell(replace(self.status, message=message, is_error=False, busy=self.busy))

    def _tell_busy(self) -> None:
        message = self._offline or _("Computing…")
        self._tell(replace(self.status, message=message, is_error=bool(self._offline), busy=self.busy))

    def _tell(self, status: Status) -> None:
        self.status = replace(status, proposed=self._proposals.shown is not None)
        self._on_status(self.status)


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
