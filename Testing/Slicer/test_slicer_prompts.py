"""Prompts live in their segment: saved with it, undone with its mask, kept apart from other segments'."""

from __future__ import annotations

import json

import host
import numpy as np
import pytest
import slicer
from FaMSAMSlicerLib.prompts import TAG, Place, SegmentState, moved, read_state, write_state

POINT = {"type": "point", "ras_mm": [1.0, -2.5, 3.0], "positive": False}
BOX = {"type": "box", "lower_ras_mm": [0.0, 0.0, 0.0], "upper_ras_mm": [1.0, 2.0, 3.0]}


def test_state_survives_json_and_the_tag():
    place = Place((0.0, 1.0, 2.0, 3.0, 4.5, 5.0), (0.0, 1.0, 2.0, 3.0, 4.5, 5.5), "0123abcd")
    state = SegmentState((POINT, BOX), {"bits": "eA=="}, "abc", "1x2x3-00", 0.75, place)
    assert SegmentState.from_json(state.to_json()) == state
    assert "|" not in state.to_json(), "Slicer separates tags by it"
    segment = slicer.vtkSegment()
    write_state(segment, state)
    assert read_state(segment) == state
    write_state(segment, SegmentState())
    assert not segment.HasTag(TAG) and read_state(segment) == SegmentState()


def test_states_of_before_places_were_kept_are_read():
    content = json.loads(SegmentState((POINT,), token="abc").to_json())
    del content["place"]
    assert SegmentState.from_json(json.dumps(content)) == SegmentState((POINT,), token="abc")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version": 9}',
        SegmentState((POINT,)).to_json().replace("-2.5", '"x"'),
        SegmentState((POINT,)).to_json().replace("point", "line"),
        SegmentState((POINT,)).to_json().replace("false", "3"),
        SegmentState((POINT,), place=Place((1.0,), (2.0,), "")).to_json(),
    ],
)
def test_damaged_tag_counts_as_none_and_is_logged(text, caplog):
    segment = slicer.vtkSegment()
    segment.SetTag(TAG, text)
    assert read_state(segment) == SegmentState()
    assert "left out" in caplog.text


def test_moved_takes_every_position_along():
    matrix = np.array([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    point, box = moved((POINT, BOX), matrix)
    assert point == {"type": "point", "ras_mm": [7.5, 1.0, 3.0], "positive": False}
    assert box["upper_ras_mm"] == [3.0, 1.0, 3.0]


def clicked(world):
    world.click(world.centre(0))
    world.click(world.centre(1), positive=False)
    world.select("second")
    world.click(world.centre(1))
    states = {name: read_state(world.segmentation.GetSegmentation().GetSegment(name)) for name in ("first", "second")}
    assert [len(state.prompts) for state in states.values()] == [2, 1]
    return states, {name: world.mask(name) for name in states}


def check_and_go_on(world, segmentation, volume, states, masks):
    for name, state in states.items():
        assert read_state(segmentation.GetSegmentation().GetSegment(name)) == state
        np.testing.assert_array_equal(host.segment_mask(segmentation, name, world.size_zyx), masks[name])
    world.effect = world.controller.effect = host.Effect(segmentation, volume, "first")
    world.segmentation, world.volume = segmentation, volume
    world.controller.sync()
    assert world.controller.points.node.GetNumberOfControlPoints() == 2
    world.click(world.centre(0, (1, 0, 0)))
    assert len(world.controller.state.prompts) == 3, "the next click goes on from the restored ones"
    assert world.controller.state.base is None


def test_saved_in_seg_nrrd(world, tmp_path):
    states, masks = clicked(world)
    assert host.write(world.segmentation, tmp_path / "a.seg.nrrd")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "back")
    node.CreateDefaultDisplayNodes()
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "a.seg.nrrd"))
    assert storage.ReadData(node)
    check_and_go_on(world, node, world.volume, states, masks)


def test_saved_in_mrb_without_our_own_nodes(world, tmp_path):
    states, masks = clicked(world)
    world.controller.preview(world.centre(0, (0, 2, 0)))
    world.settle()
    for node in (world.volume, world.segmentation):
        node.AddDefaultStorageNode()
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    world.controller.close()
    scene = host.scene()
    assert scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    names = [scene.GetNthNode(i).GetName() for i in range(scene.GetNumberOfNodes())]
    assert not [name for name in names if name and name.startswith("FaM-SAM")]
    segmentation = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    volume = scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    check_and_go_on(world, segmentation, volume, states, masks)


def test_saved_in_mrml(world, tmp_path):
    states, masks = clicked(world)
    for node, name in ((world.volume, "scan.nrrd"), (world.segmentation, "a.seg.nrrd")):
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(tmp_path / name))
        assert node.GetStorageNode().WriteData(node)
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    world.controller.close()
    scene = host.scene()
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.SetRootDirectory(str(tmp_path))
    assert scene.Connect()
    names = [scene.GetNthNode(i).GetName() for i in range(scene.GetNumberOfNodes())]
    assert not [name for name in names if name and name.startswith("FaM-SAM")]
    segmentation = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    check_and_go_on(world, segmentation, scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode"), states, masks)


def test_undo_and_redo_take_points_and_mask_together(world):
    seen = [(0, world.mask())]
    for step in range(8):
        world.click(world.centre(step % 2, (0, step // 2, 0)), positive=step % 3 != 2)
        seen.append((step + 1, world.mask()))
    for count, mask in seen[-2::-1]:
        world.effect.undo()
        world.controller.sync()
        assert world.controller.points.node.GetNumberOfControlPoints() == count
        np.testing.assert_array_equal(world.mask(), mask)
    for count, mask in seen[1:5]:
        world.effect.redo()
        world.controller.sync()
        assert len(world.controller.state.prompts) == count
        np.testing.assert_array_equal(world.mask(), mask)
    world.click(world.centre(0, (0, 0, 2)))
    assert len(world.controller.state.prompts) == 5


def test_click_after_undo_is_as_if_the_undone_one_had_never_been(make_world):
    masks = []
    for undone in (False, True):
        world = make_world()
        world.click(world.centre(0))
        if undone:
            world.click(world.centre(1))
            world.effect.undo()
        world.click(world.centre(0, (0, 0, 3)), positive=False)
        masks.append(world.mask())
    np.testing.assert_array_equal(*masks)


def test_each_segment_keeps_its_own_points(world):
    world.click(world.centre(0))
    first = world.mask("first")
    world.select("second")
    assert world.controller.points.node.GetNumberOfControlPoints() == 0
    world.click(world.centre(1))
    world.click(world.centre(1, (1, 0, 0)))
    np.testing.assert_array_equal(world.mask("first"), first)
    world.select("first")
    assert world.controller.points.node.GetNumberOfControlPoints() == 1
    world.click(world.centre(0, (1, 0, 0)))
    assert len(world.controller.state.prompts) == 2
    assert world.mask("second").any(), "two segments do not erase each other where they do not meet"
