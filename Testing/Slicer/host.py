"""As much of 3D Slicer as runs without its windows: the real MRML scene, module logics and Segment Editor logic.

``scene()`` starts it. ``Effect`` is what a scripted Segment Editor effect sees as ``self.scriptedEffect``: the methods
and enum values are those of Slicer's class, and what they do is done by the real ``vtkSlicerSegmentEditorLogic``.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import tempfile
import types
from pathlib import Path
from typing import Any, Optional

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

_LOGICS = {
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
}
_keep: list = []
_cache = tempfile.mkdtemp(prefix="slicer-cache-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)


def scene() -> Any:
    """A fresh scene as ``slicer.mrmlScene``, with the modules' logics around it."""
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    colors = application.GetColorLogic()
    colors.SetMRMLScene(scene)
    colors.AddDefaultColorNodes()
    application.SetModuleLogic("Colors", colors)
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    slicer.modules = types.SimpleNamespace()
    logics = []
    for name, class_name in _LOGICS.items():
        logic = getattr(slicer, class_name)()
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(name, logic)
        setattr(slicer.modules, name.lower(), types.SimpleNamespace(logic=lambda logic=logic: logic))
        logics.append(logic)
    # Reading an .mrb needs a cache folder, which the remote reader's logic holds.
    remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    remote.SetMRMLScene(scene)
    remote.SetMRMLApplicationLogic(application)
    remote.GetCacheManager().SetRemoteCacheDirectory(_cache)
    data.SetMRMLScene(scene)
    data.SetMRMLApplicationLogic(application)
    data.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    slicer.mrmlScene = scene
    _keep[:] = [application, logics, remote, data]
    return scene


def application_logic() -> Any:
    return _keep[0]


def wait_for_events(milliseconds: int) -> None:
    """As Slicer's main thread waits for them: with Python's interpreter lock in its hands."""
    if os.name == "nt":
        ctypes.PyDLL("kernel32").Sleep(milliseconds)
    else:
        ctypes.PyDLL(None).usleep(1000 * milliseconds)


def volume(voxels_zyx: np.ndarray, ras_from_ijk: np.ndarray, name: str = "scan", components: int = 1) -> Any:
    """A volume node with these voxels."""
    image = vtk.vtkImageData()
    image.SetDimensions(*voxels_zyx.shape[2::-1])
    flat = np.ascontiguousarray(voxels_zyx).reshape(-1, components) if components > 1 else voxels_zyx.ravel()
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    kind = "vtkMRMLVectorVolumeNode" if components > 1 else "vtkMRMLScalarVolumeNode"
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    node.SetAndObserveImageData(image)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(ras_from_ijk, float).ravel().tolist())
    node.SetIJKToRASMatrix(matrix)
    return node


def segmentation(volume_node: Any, *segment_names: str) -> Any:
    """A segmentation node with empty segments on the volume's grid; each segment's ID is its name."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    for name in segment_names:
        node.GetSegmentation().AddEmptySegment(name, name)
    return node


def transform(matrix: np.ndarray, *nodes: Any) -> Any:
    """Put nodes under a new linear transform."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    vtk_matrix = vtk.vtkMatrix4x4()
    vtk_matrix.DeepCopy(np.asarray(matrix, float).ravel().tolist())
    node.SetMatrixTransformToParent(vtk_matrix)
    for child in nodes:
        child.SetAndObserveTransformNodeID(node.GetID())
    return node


def segment_mask(node: Any, segment_id: str, size_zyx: tuple) -> np.ndarray:
    """A segment's voxels in the segmentation's reference grid, by extents alone: (z, y, x) bool."""
    out = np.zeros(size_zyx, dtype=bool)
    segment = node.GetSegmentation().GetSegment(segment_id)
    image = segment.GetRepresentation("Binary labelmap")
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        return out
    x0, x1, y0, y1, z0, z1 = image.GetExtent()
    scalars = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(z1 - z0 + 1, y1 - y0 + 1, x1 - x0 + 1)
    found = np.argwhere(scalars == segment.GetLabelValue())
    if found.size:
        out[tuple((found + np.array([z0, y0, x0])).T)] = True
    return out


def set_segment(node: Any, segment_id: str, mask_zyx: np.ndarray) -> None:
    """Give a segment voxels on the segmentation's reference grid, as another tool would; other segments are kept."""
    segmentation = node.GetSegmentation()
    image = slicer.vtkOrientedImageData()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(
        segmentation.GetConversionParameter("Reference image geometry"), image
    )
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = mask_zyx.astype(np.uint8).ravel()
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, node, segment_id)


def write(node: Any, path: Path) -> bool:
    """Save a node as Slicer would."""
    storage = node.CreateDefaultStorageNode()
    storage.SetFileName(str(path))
    return bool(storage.WriteData(node))


class AbstractEffect:
    """Enum values of ``slicer.qSlicerSegmentEditorAbstractEffect``."""

    ModificationModeSet, ModificationModeAdd, ModificationModeRemove, ModificationModeRemoveAll = range(4)
    NotConfirmed, ConfirmedWithDialog, ConfirmedWithoutDialog = range(3)


slicer.qSlicerSegmentEditorAbstractEffect = AbstractEffect
_LOGIC = slicer.vtkSlicerSegmentEditorLogic
_MODES = (
    _LOGIC.ModificationModeSet,
    _LOGIC.ModificationModeAdd,
    _LOGIC.ModificationModeRemove,
    _LOGIC.ModificationModeRemoveAll,
)


UNDO_STATES = 10  # as the Segment Editor's widget has it


class Effect(AbstractEffect):
    """``scriptedEffect`` over the real editor logic."""

    perSegment = True

    def __init__(self, segmentation_node: Any = None, volume_node: Any = None, segment_id: str = "") -> None:
        self.name = ""
        self.title = ""
        self.requireSegments = True
        self.showEffectCursorInSliceView = self.showEffectCursorInThreeDView = True
        self.node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(slicer.mrmlScene)
        self.logic.SetMaximumNumberOfUndoStates(UNDO_STATES)
        self.logic.SetSegmentEditorNode(self.node)
        self.select(segmentation_node, volume_node, segment_id)

    def select(self, segmentation_node: Any, volume_node: Any, segment_id: str = "") -> None:
        """Choose in the Segment Editor's selectors."""
        self.logic.SetSegmentationNode(segmentation_node)
        self.logic.SetSourceVolumeNode(volume_node)
        if segment_id:
            self.logic.SetCurrentSegmentID(segment_id)
        if segmentation_node is not None:
            self.logic.UpdateReferenceGeometryImage()

    def parameterSetNode(self) -> Any:
        return self.node

    def scene(self) -> Any:
        return slicer.mrmlScene

    def saveStateForUndo(self) -> None:
        self.logic.SaveStateForUndo()

    def confirmCurrentSegmentVisible(self) -> int:
        return self.ConfirmedWithoutDialog

    def referenceGeometryImage(self) -> Any:
        self.logic.UpdateReferenceGeometryImage()
        return self.logic.GetReferenceGeometryImage()

    def modifySelectedSegmentByLabelmap(self, labelmap: Any, mode: int, extent: Optional[Any] = None) -> None:
        node = self.node.GetSegmentationNode()
        self.modifySegmentByLabelmap(node, self.node.GetSelectedSegmentID(), labelmap, mode)

    def modifySegmentByLabelmap(self, node: Any, segment_id: str, labelmap: Any, mode: int) -> None:
        self.logic.ModifySegmentByLabelmap(node, segment_id, labelmap, _MODES[mode], self.perSegment, False)

    def undo(self) -> None:
        self.logic.Undo()

    def redo(self) -> None:
        self.logic.Redo()
