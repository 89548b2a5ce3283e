"""The pictures of training are PNG files that show something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from famsam.errors import ConfigError

pytest.importorskip("matplotlib", reason="the pictures need the extra 'plots'")

import matplotlib.image
from famsam.training.plots import gallery, learning_curve

HEADER = "step,seconds,loss,first,last,dice1,dice2,dice3,dice4,dice5\n"


def pixels(path):
    image = matplotlib.image.imread(path)
    assert path.read_bytes().startswith(b"\x89PNG") and min(image.shape[:2]) > 100
    return image[..., :3]


def test_the_learning_curve_of_a_run(tmp_path):
    (tmp_path / "log.csv").write_text(HEADER + "".join(f"{n},9,{1 / n},.1,.2,.3,.4,.5,.6,.{n}\n" for n in range(1, 9)))
    path = learning_curve(tmp_path)
    assert path == tmp_path / "curve.png"
    assert len(np.unique(pixels(path).reshape(-1, 3), axis=0)) > 20
    (tmp_path / "log.csv").write_text(HEADER + "500,9,1.0,.1,.2,.3,.4,.5,.6,.7\n")
    learning_curve(tmp_path)  # a single validation is drawn as well


def test_a_run_without_validation_has_no_curve(tmp_path):
    assert learning_curve(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_gallery_shows_what_the_seed_makes(tmp_path):
    cpu = torch.device("cpu")
    for name, seed in (("a", 0), ("b", 0), ("c", 7)):
        gallery(tmp_path / f"{name}.png", 2, 32, seed, cpu)
    a, b, c = (pixels(tmp_path / f"{name}.png") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert a.shape != c.shape or not np.array_equal(a, c)
    assert len(np.unique(a.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("count, size", [(0, 32), (1, 33), (1, 8)])
def test_an_impossible_gallery_is_refused(tmp_path, count, size):
    with pytest.raises(ConfigError, match="even edge"):
        gallery(tmp_path / "g.png", count, size, 0, torch.device("cpu"))
