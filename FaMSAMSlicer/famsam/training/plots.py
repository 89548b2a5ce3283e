"""Pictures of training: the learning curves of runs and a gallery of what the generator makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np
import torch

from ..errors import ConfigError, MissingDependencyError
from ..model.famsam_encoder import contrast_limited_equalisation
from .sample import Dice
from .synthetic import synthetic_sample
from .targets import draw_targets
from .trainer import read_log

GALLERY_COLUMNS = 8


def learning_curve(run_directory: Union[str, Path]) -> Optional[Path]:
    """Draw ``curve.png`` from a run's log: loss, and Dice after 1, 3 and 5 clicks on the validation crops.

    Returns:
        The file, or None if the run has not been validated yet.
    """
    rows = _rows(run_directory)
    if not rows:
        return None
    figure = _figure((9, 4))
    losses, scores = figure.subplots(1, 2)
    losses.plot(*_points(rows, "loss"), color="tab:gray")
    losses.set(xlabel="step", ylabel="training loss (running mean)")
    _draw_scores(scores, rows)
    return _saved(figure, Path(run_directory) / "curve.png")


def distillation_curve(run_directory: Union[str, Path]) -> Optional[Path]:
    """Draw ``distillation.png`` from a distillation's log: the distance of each layer, k, and Dice.

    Returns:
        The file, or None if the run has not been validated yet.
    """
    rows = _rows(run_directory)
    if not rows:
        return None
    figure = _figure((13, 4))
    layers, matched, scores = figure.subplots(1, 3)
    for name in (name for name in rows[0] if name.startswith("layer")):
        layers.plot(*_points(rows, name), label=name)
    layers.set(xlabel="step", ylabel="distance to the teacher's layer (running mean)", ylim=(0, None))
    layers.legend(fontsize="small")
    matched.step(*_points(rows, "k"), where="post", color="black")
    matched.set(xlabel="step", ylabel="k: layers that learn (0: logits)")
    logits = matched.twinx()
    logits.plot(*_points(rows, "logits"), color="tab:red")
    logits.set_ylabel("divergence from the teacher's masks", color="tab:red")
    _draw_scores(scores, rows)
    return _saved(figure, Path(run_directory) / "distillation.png")


def comparison_curves(runs: Mapping[str, Union[str, Path]], path: Union[str, Path]) -> Path:
    """Draw the loss and the Dice after 1 and 5 clicks of several runs into one picture.

    Args:
        runs: their folders by name; one that has not been validated yet is left out.
    """
    figure = _figure((13, 4))
    panels = figure.subplots(1, 3)
    names = ("loss", "dice1", "dice5")
    labels = ("training loss (running mean)", "Dice after 1 click", "Dice after 5 clicks")
    for axes, name, label in zip(panels, names, labels):
        for run, directory in runs.items():
            axes.plot(*_points(_rows(directory), name), label=run)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
    panels[-1].legend(fontsize="small")
    return _saved(figure, Path(path))


def gallery(path: Union[str, Path], count: int, size: int, seed: int, device: torch.device) -> None:
    """Write a PNG of ``count`` synthetic samples: the normalised image, its anatomy, and the structures to click on.

    Args:
        size: edge of the crops in voxels.
        seed: of the first sample; the others follow.

    Raises:
        ConfigError: no samples are asked for, or an odd or tiny edge.
        MissingDependencyError: matplotlib is not installed.
    """
    if count < 1 or size < 16 or size % 2:
        raise ConfigError(f"Expected at least 1 sample with an even edge of at least 16 voxels, got {count}, {size}.")
    columns = min(count, GALLERY_COLUMNS)
    bands = -(-count // columns)
    figure = _figure((1.6 * columns, 5 * bands))
    panels = figure.subplots(3 * bands, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number in range(count):
        sample = synthetic_sample(size, seed + number, device)
        image = contrast_limited_equalisation(sample.image_ZYX[None, None], sample.inside_ZYX[None, None])[0, 0]
        targets = draw_targets(sample, 3, Dice(seed + number, device))
        outlines = sum((t.long() * (i + 1) for i, t in enumerate(targets)), torch.zeros_like(sample.labels_ZYX))
        busy = outlines.flatten(1).bool().sum(1)
        plane = int(busy.argmax()) if bool(busy.any()) else size // 2
        shown = panels[3 * (number // columns) :, number % columns]
        _show(shown[0], image[plane], "gray", (-1, 1))
        _show(shown[1], sample.labels_ZYX[plane] % 20, "tab20", (0, 19))
        _show(shown[2], outlines[plane], "viridis", (0, 3))
    for row, axes in enumerate(panels[:, 0]):
        axes.set_ylabel(("image", "anatomy", "targets")[row % 3])
    _saved(figure, Path(path))


def _rows(run_directory: Union[str, Path]) -> List[Dict[str, float]]:
    return list(read_log(run_directory)) if (Path(run_directory) / "log.csv").exists() else []


def _points(rows: List[Dict[str, float]], name: str) -> Tuple[List[float], List[float]]:
    return [row["step"] for row in rows], [row[name] for row in rows]


def _draw_scores(axes: Any, rows: List[Dict[str, float]]) -> None:
    for clicks in (1, 3, 5):
        axes.plot(*_points(rows, f"dice{clicks}"), label=f"{clicks} click{'s' if clicks > 1 else ''}")
    axes.set(xlabel="step", ylabel="Dice on validation crops", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def _show(axes: Any, plane_YX: torch.Tensor, colours: str, limits: Tuple[float, float]) -> None:
    axes.set_axis_on()
    axes.imshow(np.asarray(plane_YX.cpu()), cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _figure(size: Tuple[float, float]) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f'The picture needs matplotlib, which is not installed: pip install "famsam[plots]" ({error})'
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
