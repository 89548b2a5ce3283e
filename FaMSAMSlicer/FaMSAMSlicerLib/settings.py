"""What the user has chosen, in the module's typed parameter node: saved with the scene, one for module and effect.

The server is no part of it but kept in the application's settings, as its token is: no scene that comes from elsewhere
can make this application send scans anywhere.

The annotations are evaluated: Slicer reads the parameters' types from them.
"""

from typing import Any, Tuple

import slicer
from slicer.parameterNodeWrapper import parameterNodeWrapper

from .engine import ModelChoice

MODULE = "FaMSAMSlicer"
_ADDRESS_KEY, _TOKEN_KEY = f"{MODULE}/ServerAddress", f"{MODULE}/ServerToken"


@parameterNodeWrapper
class Settings:
    """
    modelFile - weights file; empty for the bundled model.
    device - "auto", "cpu", "cuda", "cuda:1", "mps".
    precision - "auto", "fp32", "bf16", "fp16", "int8".
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


def server() -> Tuple[str, str]:
    """Address and token of the server that computes; both empty if this machine does."""
    kept = slicer.app.userSettings()
    return str(kept.value(_ADDRESS_KEY) or ""), str(kept.value(_TOKEN_KEY) or "")


def set_server(address: str, token: str) -> None:
    """Have a server compute, or this machine again if the address is empty; kept for this user."""
    kept = slicer.app.userSettings()
    for key, value in ((_ADDRESS_KEY, address.strip()), (_TOKEN_KEY, token.strip())):
        kept.setValue(key, value) if value else kept.remove(key)


def model_choice(chosen: Settings) -> ModelChoice:
    """The model that the settings name, or the server that has one."""
    address, token = server()
    return ModelChoice(chosen.modelFile or "default", chosen.device, chosen.precision, address, token)
