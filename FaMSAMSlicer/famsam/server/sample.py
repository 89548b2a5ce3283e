"""The sample scan: the MNI152 T1 average brain that nilearn ships, real anatomy without any download."""

from __future__ import annotations

import numpy as np

from ..errors import MissingDependencyError
from ..volume import Volume
from .intake import Intake


def open_sample() -> Intake:
    """The sample scan.

    Raises:
        MissingDependencyError: nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise MissingDependencyError("the sample comes with nilearn: pip install 'famsam[demo]'") from error
    image = load_mni152_template(resolution=1)
    voxels = np.asarray(image.dataobj, np.float32).transpose(2, 1, 0)
    return Intake(Volume(voxels, image.affine), "MR", None)
