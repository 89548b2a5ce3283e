"""A hundred random interactions, and what must hold after each of them."""

from __future__ import annotations

import random

import host
import numpy as np
import pytest
import slicer
from FaMSAMSlicerLib.controller import Controller
from worlds import World

QUIET = ["click", "cut", "move", "remove", "clear", "look", "aim", "box"]
ACTIONS = [*QUIET, "undo", "redo", "select", "reset", "paint", "doubt"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hundred_random_interactions_break_no_invariant(seed):
    choose = random.Random(seed)
    actions = [(choose.choice(ACTIONS), choose.randint(0, 1), choose.randint(-3, 3)) for _ in range(100)]
    world = World()
    try:
        for action, which, offset in actions:
            segments = {name: world.mask(name) for name in ("first", "second")}
            selected = world.controller.segment_id
            _do(world, action, which, offset)
            world.settle()
            _check(world, selected, segments if action in QUIET else None)
        errors = {status.message for status in world.said if status.is_error}
        assert all("edited by another tool" in error for error in errors), errors
    finally:
        world.controller.close()
        world.engine.close()


def _do(world: World, action: str, which: int, offset: int) -> None:
    controller: Controller = world.controller
    points = controller.points.node
    count = points.GetNumberOfControlPoints() if points else 0
    if action in ("click", "cut"):
        controller.click(world.centre(which, (offset, 0, 0)), positive=action == "click")
    elif action == "look":
        controller.preview(world.centre(which, (offset, 0, 0)))
    elif action == "aim":
        controller.aim(world.centre(which, (offset, 0, 0)))
    elif action == "box":
        controller.box([world.centre(which, (side, side, side)) for side in (-8, 8 + offset)])
    elif action == "doubt":
        controller.doubt_visible = not controller.doubt_visible
        controller.sync()
    elif action in ("undo", "redo"):
        if world.effect.logic.CanUndo() if action == "undo" else world.effect.logic.CanRedo():
            getattr(world.effect, action)()
            controller.sync()
    elif action == "select":
        world.select(("first", "second")[which])
    elif action == "move" and count:
        points.SetNthControlPointPosition(count - 1, *world.centre(which, (0, offset, 0)))
    elif action == "remove" and count:
        points.RemoveNthControlPoint(0)
    elif action == "clear":
        controller.clear_points()
    elif action == "reset":
        controller.reset_segment()
    elif action == "paint":
        mask = world.mask(controller.segment_id)
        mask[1:3, 1:3, 1 + which : 4 + which] = True
        world.effect.saveStateForUndo()
        host.set_segment(world.segmentation, controller.segment_id, mask)


def _check(world: World, selected: str, before) -> None:
    state, points = world.controller.state, world.controller.points.node
    shown = (
        []
        if points is None
        else list(slicer.util.arrayFromMarkupsControlPoints(points))
        if points.GetNumberOfControlPoints()
        else []
    )
    clicks = [prompt for prompt in state.prompts if prompt["type"] == "point"]
    assert len(shown) == len(clicks)
    for where, prompt in zip(shown, clicks):
        np.testing.assert_allclose(where, prompt["ras_mm"], atol=1e-6)
    last = state.prompts[-1:]
    if (
        last
        and last[0]["type"] == "point"
        and before is not None
        and not np.array_equal(before[selected], world.mask(selected))
    ):
        index = tuple(round(v) for v in last[0]["ras_mm"][::-1])
        assert world.mask(selected)[index] == last[0]["positive"], "the newest click always counts"
    if before is not None:
        for name in {"first", "second"} - {selected}:
            assert not (world.mask(name) & ~before[name]).any(), "no other segment ever grows"
