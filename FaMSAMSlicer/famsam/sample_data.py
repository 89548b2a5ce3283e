"""A sample scan that needs no download: the MNI152 T1 head template that the nilearn package carries."""

from __future__ import annotations

import numpy as np

from .errors import MissingDependencyError
from .volume import Volume

SAMPLE_NAME = "MNI152 T1"


def sample_volume() -> Volume:
    """The ICBM 2009a nonlinear symmetric T1 template at 1 mm (Fonov et al. 2011), as nilearn ships it.

    Raises:
        MissingDependencyError: nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise MissingDependencyError(
            f'The sample scan comes with nilearn, which is not installed: pip install "famsam[demo]" ({error})'
        ) from error
    image = load_mni152_template(resolution=1)
    voxels_xyz = np.asarray(image.dataobj, dtype=np.float32)
    return Volume(voxels_xyz.transpose(2, 1, 0), image.affine, name=SAMPLE_NAME)
