"""From what the user does to the segment: the behaviour behind the Segment Editor effect, without widgets.

Every interaction becomes a step. One request at a time is with the worker; what comes meanwhile waits and goes with
the next one, so that nothing is lost and a newer click never queues behind an older one's mask. ``poll`` (called by a
timer) takes what is ready and writes it: undo state, mask, points, in that order and all at once.
"""

from __future__ import annotations

import contextlib
import logging
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any, Callable, List, Optional, Sequence, Tuple

import numpy as np
import slicer
from famsam.errors import FamsamError, PromptError

from .engine import Engine, ModelChoice, Outcome, Request, Start, Step
from .points_view import PointsView
from .preview import Preview
from .prompts import SegmentState, moved, read_state, write_state
from .scans import Scan, scan_of
from .segments import mask_print, modifier_labelmap, segment_on_grid
from .spaces import Point3, scan_from_seg, seg_from_world, transformed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """What the panel says."""

    message: str = ""
    is_error: bool = False
    busy: bool = False
    latency_ms: float = 0.0
    """From the interaction to the segment written."""
    quality: float = 0.0
    """Predicted IoU, 0..1."""
    engine_ms: float = 0.0
    """What of the latency the engine itself took."""


@dataclass(frozen=True, eq=False)
class _Running:
    """What the worker is at. The steps in it have the segmentation's own coordinates."""

    future: Future[Outcome]
    node: Any
    segment_id: str
    steps: Tuple[Step, ...]
    scan: Scan
    scan_from_seg: np.ndarray
    before: Tuple[str, str]
    """The segment's tag and its mask's print when it was asked: if either is another by then, ask again."""
    since: float

    @property
    def is_preview(self) -> bool:
        return self.steps[-1].verb == "preview"


class Controller:
    """The clicks of one Segment Editor.

    Args:
        effect: the ``scriptedEffect`` of Slicer: the one way in which segments are written.
        engine: the worker.
        on_status: called with a ``Status`` whenever there is something new to say.
    """

    def __init__(self, effect: Any, engine: Engine, on_status: Callable[[Status], None]) -> None:
        self.effect, self.engine = effect, engine
        self.choice = ModelChoice()
        self.status = Status()
        self.points = PointsView(self.move_point, self.remove_point)
        self._on_status = on_status
        self._preview = Preview()
        self._running: Optional[_Running] = None
        self._waiting: List[Step] = []
        self._waiting_since = 0.0
        self._waiting_for: Tuple[Any, str] = (None, "")
        self._undoable_drag = 0

    # --- what is selected ---

    @property
    def volume_node(self) -> Any:
        node = self.effect.parameterSetNode()
        return node.GetSourceVolumeNode() if node else None

    @property
    def segmentation_node(self) -> Any:
        node = self.effect.parameterSetNode()
        return node.GetSegmentationNode() if node else None

    @property
    def segment_id(self) -> str:
        node = self.effect.parameterSetNode()
        return (node.GetSelectedSegmentID() or "") if node else ""

    @property
    def segment(self) -> Any:
        """The selected segment; None if there is none."""
        return _segment(self.segmentation_node, self.segment_id)

    @property
    def state(self) -> SegmentState:
        """What the selected segment's tag holds."""
        return read_state(self.segment) if self.segment is not None else SegmentState()

    @property
    def busy(self) -> bool:
        """Whether ``poll`` has to be called."""
        return self._running is not None or bool(self._waiting)

    # --- what the user does (positions in world RAS mm) ---

    def click(self, world: Point3, positive: bool = True) -> None:
        """Include, or exclude, what is there."""
        self._guarded(lambda: self._enqueue(Step("add_point", (self._checked(world),), positive)))

    def box(self, corner_world: Point3, opposite_world: Point3) -> None:
        """Frame the structure."""
        self._guarded(lambda: self._enqueue(Step("add_box", self._box_corners(corner_world, opposite_world))))

    def preview(self, world: Point3, positive: bool = True) -> None:
        """Show what a click would do; the newest wins, and any click overtakes it."""
        if not self._waiting or self._waiting[-1].verb == "preview":
            self._guarded(lambda: self._enqueue(Step("preview", (self._checked(world),), positive)))

    def end_preview(self) -> None:
        """Take the preview away."""
        self._waiting = [step for step in self._waiting if step.verb != "preview"]
        self._preview.hide()
        if self._running is not None and self._running.is_preview:
            self._running = None
            self._next()

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
        if self.segment is None or not self.state.prompts:
            return
        self.cancel()
        self.effect.saveStateForUndo()
        write_state(self.segment, SegmentState())
        self.sync()
        self._say("Points cleared; the segment stays, and the next click goes on from it.")

    def reset_segment(self) -> None:
        """Forget the prompts and empty the segment."""
        if self.segment is None:
            return
        self.cancel()
        self.effect.saveStateForUndo()
        nothing = modifier_labelmap(
            np.zeros((0, 0, 0), bool), np.zeros(3, int), np.eye(4), self.effect.referenceGeometryImage()
        )
        self._write(self.segmentation_node, self.segment_id, nothing)
        write_state(self.segment, SegmentState())
        self.sync()
        self._say("Segment emptied.")

    def warm_up(self) -> Future[str]:
        """Have the model loaded and the volume taken in before the first click; the future says what runs where."""
        scan = None
        with contextlib.suppress(FamsamError):  # the click will say so
            scan = scan_of(self.volume_node)
        return self.engine.warm_up(self.choice, scan)

    def cancel(self) -> None:
        """Drop what is being computed and what waits."""
        was_busy = self.busy
        self._running, self._waiting = None, []
        self._preview.hide()
        if was_busy:
            self.sync()
            self._say("Cancelled.")

    def finish(self, timeout_s: float) -> None:
        """Wait for clicks that are under way, so that none is lost when the user turns to something else."""
        self.end_preview()
        deadline = time.perf_counter() + timeout_s
        while self.busy and time.perf_counter() < deadline:
            if self._running is not None:
                wait([self._running.future], timeout=max(0.0, deadline - time.perf_counter()))
            self.poll()

    def close(self) -> None:
        """Take everything away that is of use only while the user clicks: points in the views, preview, requests."""
        self._running, self._waiting = None, []
        self._preview.remove()
        self.points.remove()

    # --- what Slicer does ---

    def sync(self) -> None:
        """Bring the views in line with the selected segment: after undo, redo, loading, selecting another one."""
        if self._waiting and self._waiting_for != (self.segmentation_node, self.segment_id):
            self._waiting = []
        prompts = self.state.prompts
        for step in self._pending():
            prompts = step.applied(prompts)
        self.points.show(prompts, self.segmentation_node)

    def poll(self) -> bool:
        """Take what the worker has finished, write it, and hand over what waits; whether there is more to come."""
        running = self._running
        if running is not None and running.future.done():
            self._running = None
            self._guarded(lambda: self._take(running))
        if self._running is None:
            self._next()
        return self.busy

    # --- inside ---

    def _checked(self, world: Point3) -> Point3:
        scan = scan_of(self.volume_node)
        if self.segment is None:
            raise PromptError("No segment is selected. Add one, or select one, then click.")
        seg = transformed(seg_from_world(self.segmentation_node), world)
        scan.check_inside(transformed(scan_from_seg(self.volume_node, self.segmentation_node), seg))
        return seg

    def _box_corners(self, corner_world: Point3, opposite_world: Point3) -> Tuple[Point3, Point3]:
        matrix = seg_from_world(self.segmentation_node) if self.segmentation_node else np.eye(4)
        corners = np.array([transformed(matrix, corner_world), transformed(matrix, opposite_world)])
        self._checked(tuple((np.asarray(corner_world) + np.asarray(opposite_world)) / 2))
        lower, upper = (tuple(float(v) for v in bound) for bound in (corners.min(0), corners.max(0)))
        return lower, upper  # type: ignore[return-value]

    def _prompt_index(self, point_index: int) -> int:
        """Points are numbered among themselves in the views, among all prompts in the session."""
        prompts = self.state.prompts
        for step in self._pending():
            prompts = step.applied(prompts)
        where = [index for index, prompt in enumerate(prompts) if prompt["type"] == "point"]
        return where[point_index] if 0 <= point_index < len(where) else -1

    def _pending(self) -> Sequence[Step]:
        here = (self.segmentation_node, self.segment_id)
        running = self._running
        steps = running.steps if running is not None and (running.node, running.segment_id) == here else ()
        return (*steps, *(self._waiting if self._waiting_for == here else ()))

    def _enqueue(self, step: Step) -> None:
        here = (self.segmentation_node, self.segment_id)
        if self._waiting_for != here:
            self._waiting, self._waiting_for = [], here
        if self._waiting and step.verb in ("preview", "move_point"):
            last = self._waiting[-1]
            if (last.verb, last.index) == (step.verb, step.index):
                self._waiting.pop()
        if step.verb != "preview":
            self._waiting = [waiting for waiting in self._waiting if waiting.verb != "preview"]
        if not self._waiting:
            self._waiting_since = time.perf_counter()
        self._waiting.append(step)
        if self._running is None:
            self._next()
        if step.verb != "preview":
            self.sync()

    def _next(self) -> None:
        if self._running is None and self._waiting:
            steps, self._waiting = tuple(self._waiting), []
            self._guarded(lambda: self._dispatch(*self._waiting_for, steps, self._waiting_since))

    def _dispatch(self, node: Any, segment_id: str, steps: Tuple[Step, ...], since: float) -> None:
        segment = _segment(node, segment_id)
        if segment is None:
            self._say("")
            return
        volume = self.volume_node
        scan = scan_of(volume)
        to_scan = scan_from_seg(volume, node)
        state, printed = read_state(segment), mask_print(segment)
        start = self._start(state, printed, node, segment_id, scan, to_scan)
        ended = len(state.prompts) - len(start.prompts)
        request = Request(scan, self.choice, start, [_session_step(step, to_scan, ended) for step in steps])
        future = self.engine.submit(request)
        before = (state.to_json(), printed)
        self._running = _Running(future, node, segment_id, steps, scan, to_scan, before, since)
        self._tell(replace(self.status, message="Computing…", is_error=False, busy=True))

    def _start(
        self, state: SegmentState, printed: str, node: Any, segment_id: str, scan: Scan, to_scan: np.ndarray
    ) -> Start:
        if printed == state.mask_print and (state.base is None or state.base["image"] == _grid(scan)):
            prompts = moved(state.prompts, to_scan)
            base = None if state.base is None else {k: v for k, v in state.base.items() if k != "image"}
            if all(_is_inside(prompt, scan) for prompt in prompts):
                return Start(state.token, prompts, base)
        if not printed:
            return Start()
        mask = segment_on_grid(node, segment_id, np.linalg.inv(to_scan) @ scan.ras_from_ijk, scan.voxels_zyx.shape)
        return Start() if mask is None else Start(mask_zyx=mask)

    def _take(self, running: _Running) -> None:
        outcome = running.future.result()
        segment = _segment(running.node, running.segment_id)
        if segment is None:
            self._say("")
            return
        if running.is_preview:
            self._preview.show(outcome, running.scan, self.volume_node)
            self._tell(Status("Preview", False, self.busy, _ms_since(running.since), outcome.quality))
            return
        if running.node is not self.segmentation_node:
            raise PromptError("The last click was dropped, because another segmentation was selected meanwhile.")
        if (read_state(segment).to_json(), mask_print(segment)) != running.before:
            self._dispatch(running.node, running.segment_id, running.steps, running.since)
            return
        self._commit(running, outcome, segment)

    def _commit(self, running: _Running, outcome: Outcome, segment: Any) -> None:
        same_drag = self.points.drags == self._undoable_drag and all(s.verb == "move_point" for s in running.steps)
        if not same_drag:
            self.effect.saveStateForUndo()
            self._undoable_drag = self.points.drags
        seg_from_scan = np.linalg.inv(running.scan_from_seg)
        labelmap = modifier_labelmap(
            outcome.mask_zyx,
            outcome.low_xyz,
            seg_from_scan @ running.scan.ras_from_ijk,
            self.effect.referenceGeometryImage(),
        )
        self._preview.hide()
        self._write(running.node, running.segment_id, labelmap)
        base = None if outcome.base is None else {**outcome.base, "image": _grid(running.scan)}
        prompts = moved(outcome.prompts, seg_from_scan)
        write_state(segment, SegmentState(prompts, base, outcome.token, mask_print(segment), outcome.quality))
        self.sync()
        message, is_error = (" ".join(outcome.errors), True) if outcome.errors else ("Ready", False)
        latency_ms, engine_ms = _ms_since(running.since), outcome.timings_ms.get("total", 0.0)
        self._tell(Status(message, is_error, bool(self._waiting), latency_ms, outcome.quality, engine_ms))

    def _write(self, node: Any, segment_id: str, labelmap: Any) -> None:
        mode = slicer.qSlicerSegmentEditorAbstractEffect.ModificationModeSet
        if segment_id == self.segment_id:
            self.effect.modifySelectedSegmentByLabelmap(labelmap, mode)
        else:  # another one was selected while this was computed
            self.effect.modifySegmentByLabelmap(node, segment_id, labelmap, mode)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Whatever goes wrong becomes one message; the next interaction begins anew."""
        try:
            action()
        except FamsamError as error:
            self._failed(str(error))
        except Exception as error:
            logger.exception("An interaction failed")
            self._failed(f"That did not work ({type(error).__name__}: {error}). Details are in the application's log.")

    def _failed(self, message: str) -> None:
        self._preview.hide()
        self.sync()
        self._tell(replace(self.status, message=message, is_error=True, busy=self.busy))

    def _say(self, message: str) -> None:
        self._tell(replace(self.status, message=message, is_error=False, busy=self.busy))

    def _tell(self, status: Status) -> None:
        self.status = status
        self._on_status(status)


def _segment(node: Any, segment_id: str) -> Any:
    if node is None or node.GetScene() is None or not segment_id:
        return None
    return node.GetSegmentation().GetSegment(segment_id)


def _grid(scan: Scan) -> Any:
    return {"size_zyx": list(scan.voxels_zyx.shape), "ras_from_ijk": scan.ras_from_ijk.tolist()}


def _is_inside(prompt: Any, scan: Scan) -> bool:
    try:
        for point in [prompt["ras_mm"]] if prompt["type"] == "point" else []:
            scan.check_inside(point)
    except PromptError:
        return False
    return True


def _session_step(step: Step, matrix: np.ndarray, ended: int) -> Step:
    """The step in the scan's coordinates, and numbered without the prompts that ended when the mask was edited."""
    if 0 <= step.index < ended:
        raise PromptError(
            "The segment has been edited by another tool since that point was placed, so the point cannot be changed "
            "any more. Undo the edit, or click on: new points go on from the segment as it is."
        )
    points = tuple(transformed(matrix, point) for point in step.points)
    return replace(step, points=points, index=step.index - ended if step.index >= 0 else step.index)


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
