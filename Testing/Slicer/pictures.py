"""The pictures of the tutorial: the bundled model on the sample head, in Slicer's real views, and the two panels.

    FAMSAM_TRAME_PYTHON=VENV/views/bin/python VENV/bin/python Testing/Slicer/pictures.py Resources/Screenshots

Needs what the tests of the real views need, and nilearn, which brings the sample (extra "demo").
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

HERE = Path(__file__).parent
VENTRICLE, OTHER_SIDE = (10.0, -15.0, 24.0), (30.0, -15.0, 30.0)
BRAIN_STEM = (0.0, -28.0, -32.0)


def draw(folder: Path) -> None:
    """In the Python that has trame-slicer."""
    import numpy as np
    import vtk
    from PIL import Image
    from real_views import LET_GO_S, SIZE, ViewDirection, ViewLayoutDefinition, open_effect, open_views

    app, views = open_views(
        (ViewLayoutDefinition.coronal_view(), "qMRMLSliceWidget"),
        (ViewLayoutDefinition.threed_view(), "qMRMLThreeDWidget"),
    )
    slice_view, threed_view = views
    import host
    import qt_host
    from famsam.sample_data import sample_volume
    from FaMSAMSlicerLib.engine import Engine

    sample = sample_volume()
    volume = host.volume(np.asarray(sample.voxels_zyx), np.asarray(sample.grid.ras_from_ijk), sample.name)
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    volume.GetDisplayNode().AutoWindowLevelOn()
    segmentation = host.segmentation(volume, "ventricle", "brain stem")
    for name, color in (("ventricle", (0.3, 0.65, 1.0)), ("brain stem", (0.4, 0.8, 0.45))):
        segmentation.GetSegmentation().GetSegment(name).SetColor(*color)
    engine = Engine()
    editor, effect = open_effect(app, views, engine, segmentation, volume)
    controller, panel = effect.controller, effect.panel

    def settle():
        while controller.poll():
            pass
        qt_host.APPLICATION.processEvents()

    def save(name, *pictures):
        Image.fromarray(np.hstack(pictures)).save(folder / f"{name}.png", optimize=True)

    def look_at(place, width_mm):
        node = slice_view.mrmlSliceNode()
        node.SetFieldOfView(width_mm, width_mm * SIZE[1] / SIZE[0], 1.0)
        node.JumpSliceByCentering(*place)

    def click(place, **keys):
        slice_view.click(*slice_view.pixel_of(place), **keys)
        settle()

    slice_view.view.set_background_volume_id(volume.GetID())
    slice_view.view.fit_view_to_content()
    settle()
    look_at(VENTRICLE, 90.0)

    slice_view.key("a", "KeyPressEvent")
    slice_view.move(*slice_view.pixel_of(VENTRICLE))
    settle()
    save("preview", slice_view.pixels())
    slice_view.key("a", "KeyReleaseEvent")
    time.sleep(LET_GO_S)
    settle()

    click(VENTRICLE)
    click(OTHER_SIDE, control=1)
    save("slice_view", slice_view.pixels())
    panel.ui.doubtButton.click()
    settle()
    save("doubt", slice_view.pixels())
    panel.ui.doubtButton.click()

    segmentation.CreateClosedSurfaceRepresentation()
    segmentation.GetDisplayNode().SetVisibility3D(True)
    threed_view.view.reset_focal_point()
    threed_view.view.rotate_to_view_direction(ViewDirection.ANTERIOR)
    threed_view.view.fit_view_to_content()
    save("threed_view", threed_view.pixels())

    editor.setCurrentSegmentID("brain stem")
    look_at(BRAIN_STEM, 130.0)
    panel.ui.boxButton.click()
    interactor = slice_view.view.interactor()
    r, a, s = BRAIN_STEM
    for event, place in (("LeftButtonPressEvent", (r - 17, a, s - 26)), ("MouseMoveEvent", (r + 17, a, s + 22))):
        interactor.SetEventInformation(*slice_view.pixel_of(place), 0, 0)
        interactor.InvokeEvent(vtk.vtkCommand.GetEventIdFromString(event))
    drawn = slice_view.pixels()
    interactor.InvokeEvent(vtk.vtkCommand.LeftButtonReleaseEvent)
    settle()
    save("box", drawn, slice_view.pixels())
    editor.setActiveEffect(None)
    engine.close()


def draw_panels(folder: Path) -> None:
    """In this Python."""
    import pytest
    import qt_host
    from application import Application

    with pytest.MonkeyPatch.context() as patch:
        app = Application(patch)
        app.start()
        app.click(qt_host.SliceView("Axial", app.center(0)), app.center(0))
        for name, widget in (("module_panel", app.parent), ("effect_panel", app.effect.panel.widget)):
            widget.resize(380, widget.sizeHint().height())
            widget.show()
            widget.grab().save(str(folder / f"{name}.png"))
        app.widget.cleanup()
        app.engine.close()


def main(folder: Path) -> None:
    """Lends the other Python this one's packages, as the tests do."""
    sys.path.insert(0, str(HERE.parents[1] / "FaMSAMSlicer"))
    folder.mkdir(parents=True, exist_ok=True)
    draw_panels(folder)
    run = "import sys; sys.path.append(sys.argv[1]); from pathlib import Path; import pictures; "
    run += "pictures.draw(Path(sys.argv[2]))"
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1] / "FaMSAMSlicer")])
    packages = sysconfig.get_paths()["purelib"]
    command = [os.environ["FAMSAM_TRAME_PYTHON"], "-c", run, packages, str(folder)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
