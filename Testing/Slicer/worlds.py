"""A scene with two balls in it: what most tests here click on."""

from __future__ import annotations

import time

import host
import numpy as np
from FaMSAMSlicerLib.controller import Controller
from FaMSAMSlicerLib.engine import Engine
from region_model import RegionModel

SIZE_ZYX = (30, 36, 40)


def two_balls(size_zyx=SIZE_ZYX, ras_from_ijk=None):
    """int16 voxels with two bright balls of 7 mm radius, in the left and the right half of x; and their masks."""
    matrix = np.eye(4) if ras_from_ijk is None else ras_from_ijk
    z, y, x = np.indices(size_zyx)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    masks = []
    for where in (0.27, 0.73):
        centre = np.array([size_zyx[0] / 2, size_zyx[1] / 2, size_zyx[2] * where]).astype(int)
        offsets = [(i - c) * s for i, c, s in zip((z, y, x), centre, spacing[::-1])]
        masks.append(sum(o**2 for o in offsets) < 7.0**2)
    noise = np.random.default_rng(1).normal(0, 3, size_zyx)
    return (noise + 300 * masks[0] + 500 * masks[1]).astype(np.int16), masks


class World:
    """A scene with two balls, a segmentation with two segments, and a controller on it."""

    def __init__(self, ras_from_ijk=None, transforms=(None, None), size_zyx=SIZE_ZYX):
        host.scene()
        self.matrix = np.diag([1.0, 1.0, 1.0, 1.0]) if ras_from_ijk is None else np.asarray(ras_from_ijk, float)
        voxels, self.balls = two_balls(size_zyx, self.matrix)
        self.size_zyx = size_zyx
        self.volume = host.volume(voxels, self.matrix)
        self.segmentation = host.segmentation(self.volume, "first", "second")
        for node, matrix in zip((self.volume, self.segmentation), transforms):
            if matrix is not None:
                host.transform(matrix, node)
        self.world_from_scan = np.eye(4) if transforms[0] is None else np.asarray(transforms[0])
        self.effect = host.Effect(self.segmentation, self.volume, "first")
        self.engine = Engine(lambda choice: RegionModel())
        self.said = []
        self.controller = Controller(self.effect, self.engine, self.said.append)

    def world(self, index_zyx):
        """Index in the scan -> world."""
        point = self.world_from_scan @ self.matrix @ np.append(np.asarray(index_zyx, float)[::-1], 1)
        return tuple(float(v) for v in point[:3])

    def centre(self, ball, offset_zyx=(0, 0, 0)):
        return self.world(np.argwhere(self.balls[ball]).mean(0).round() + offset_zyx)

    def settle(self):
        """Let the worker finish and take what it has."""
        deadline = time.monotonic() + 60
        while self.controller.poll():
            assert time.monotonic() < deadline, self.controller.status
            running = self.controller._running
            if running is not None:
                running.future.exception(timeout=60)
            else:
                time.sleep(0.01)

    def click(self, point, positive=True):
        self.controller.click(point, positive)
        self.settle()

    def mask(self, segment_id="first"):
        return host.segment_mask(self.segmentation, segment_id, self.size_zyx)

    def select(self, segment_id):
        self.effect.logic.SetCurrentSegmentID(segment_id)
        self.controller.sync()


def dice(first, second):
    """Overlap of two masks, 0..1."""
    return 2.0 * (first & second).sum() / max(1, first.sum() + second.sum())
