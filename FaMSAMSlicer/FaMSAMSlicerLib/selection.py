"""What is selected in a Segment Editor."""

from __future__ import annotations

from typing import Any

from .prompts import SegmentState, read_state


class Selection:
    """The nodes and the segment that a Segment Editor is set to.

    Args:
        effect: the ``scriptedEffect`` of Slicer, which knows its editor.
    """

    def __init__(self, effect: Any) -> None:
        self.effect = effect

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
        return segment_of(self.segmentation_node, self.segment_id)

    @property
    def state(self) -> SegmentState:
        """What the selected segment's tag holds."""
        return read_state(self.segment) if self.segment is not None else SegmentState()


def segment_of(node: Any, segment_id: str) -> Any:
    """A segment by its ID; None if it, or the segmentation's scene, is gone."""
    if node is None or node.GetScene() is None or not segment_id:
        return None
    return node.GetSegmentation().GetSegment(segment_id)
