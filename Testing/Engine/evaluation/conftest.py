from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from Engine.evaluation.samples import Oracle, labels_of_case_a, labels_of_case_b, save_image


@pytest.fixture
def two_cases(tmp_path) -> Path:
    """case_a with the structures "cube" (1) and label 4; case_b with label 2."""
    for name, labels in (("case_a", labels_of_case_a()), ("case_b", labels_of_case_b())):
        image = np.where(labels > 0, 100, 10).astype(np.int16)
        save_image(tmp_path / name / "image.nii.gz", image)
        save_image(tmp_path / name / "labels.nii.gz", labels)
    (tmp_path / "case_a" / "source.json").write_text(json.dumps({"label_names": {"1": "cube"}}))
    return tmp_path


@pytest.fixture
def oracle() -> Oracle:
    return Oracle({labels.shape: labels for labels in (labels_of_case_a(), labels_of_case_b())})
