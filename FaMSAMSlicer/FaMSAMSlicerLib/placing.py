"""From where the user pointed in the world to where that is in the segmentation, if it is in the scan at all."""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from .scans import scan_of
from .spaces import Point3, scan_from_seg, seg_from_world, transformed, world_from_node


def point_in_seg(volume_node: Any, segmentation_node: Any, world: Point3) -> Point3:
    """A point in the segmentation's own coordinates.

    Raises:
        VolumeError: the volume cannot be used.
        PromptError: the point lies outside the scan.
    """
    scan = scan_of(volume_node)
    seg = transformed(seg_from_world(segmentation_node), world)
    scan.check_inside(transformed(scan_from_seg(volume_node, segmentation_node), seg))
    return seg


def is_in_scan(volume_node: Any, world: Point3) -> bool:
    """Whether a point lies in the scan.

    Raises:
        VolumeError: the volume cannot be used.
    """
    scan = scan_of(volume_node)
    return scan.contains(transformed(np.linalg.inv(world_from_node(volume_node)), world))


def box_in_seg(volume_node: Any, segmentation_node: Any, corners_world: np.ndarray) -> Tuple[Point3, Point3]:
    """Opposite corners of the box along the scan's own axes around some points, (N, 3), in any order.

    Raises:
        VolumeError: the volume cannot be used.
        PromptError: the middle of the points lies outside the scan.
    """
    r, a, s = np.asarray(corners_world, dtype=float).mean(0)
    point_in_seg(volume_node, segmentation_node, (r, a, s))
    to_scan = scan_from_seg(volume_node, segmentation_node)
    scan_from_world = to_scan @ seg_from_world(segmentation_node)
    corners = np.array([transformed(scan_from_world, corner) for corner in corners_world])
    corner, opposite = scan_of(volume_node).box_around(corners)
    seg_from_scan = np.linalg.inv(to_scan)
    return transformed(seg_from_scan, corner), transformed(seg_from_scan, opposite)
