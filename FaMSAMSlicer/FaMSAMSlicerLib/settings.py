"""What the user has chosen, in the module's typed parameter node: saved with the scene, one for module and effect.

The annotations are evaluated: Slicer reads the parameters' types from them.
"""

from typing import Any

import slicer
from slicer.parameterNodeWrapper import parameterNodeWrapper

from .engine import ModelChoice

MODULE = "FaMSAMSlicer"


@parameterNodeWrapper
class Settings:
    """
    modelFile - weights file; empty for the bundled model.
    device - "auto", "cpu", "cuda", "cuda:1", "mps".
    precision - "auto", "fp32", "bf16", "fp16".
    pointsVisible - whether the points are shown in the views.
    """

    modelFile: str = ""
    device: str = "auto"
    precision: str = "auto"
    pointsVisible: bool = True


def parameter_node() -> Any:
    """The module's parameter node; made if the scene has none."""
    node = slicer.mrmlScene.GetSingletonNode(MODULE, "vtkMRMLScriptedModuleNode")
    if node is None:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(MODULE)
        node.SetModuleName(MODULE)
        node.SetName(MODULE)
        node = slicer.mrmlScene.AddNode(node)
    return node


def settings() -> Settings:
    """The settings of the scene."""
    return Settings(parameter_node())  # type: ignore[call-arg]  # Slicer's decorator makes that constructor


def model_choice(chosen: Settings) -> ModelChoice:
    """The model that the settings name."""
    return ModelChoice(chosen.modelFile or "default", chosen.device, chosen.precision)
