"""How far a model's own figures can be trusted: predicted IoU against the true one, probabilities against frequencies.

Sessions with the simulated user give observations: after every click the predicted and the true IoU, and a sample of
voxels with their probability and the truth. A logistic correction is fitted on some cases and judged on the others.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import ConfigError, DatasetError, FamsamError, MissingDependencyError
from ..geometry import box_slices
from ..model.base import PromptableModel
from ..model.calibration import Calibration, fit_logistic, logistic, logit
from ..model.config import to_plain
from .clicks import Click, first_click, next_click
from .dataset import Case, DatasetOptions, LoadedCase, matches

_LOG = logging.getLogger(__name__)

BINS = 10


@dataclass(frozen=True)
class CalibrationOptions:
    """How observations are made."""

    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    """Which cases and structures."""
    clicks: int = 5
    """Clicks a structure; every click is an observation."""
    voxels: int = 20_000
    """At most so many voxels of the uncertainty map, at random, are kept of an observation."""
    progress: bool = False
    """Show a progress bar on the standard error stream."""

    def __post_init__(self) -> None:
        if self.clicks < 1 or self.voxels < 1:
            raise ConfigError(
                f"Expected at least 1 click a structure and 1 voxel a result, got {self.clicks} and {self.voxels}."
            )


@dataclass(frozen=True)
class Observation:
    """One result and what it should have been.

    Attributes:
        case, structure, clicks: what it is a result of.
        predicted_iou, true_iou: 0..1, on the whole image.
        logits_N, truth_N: of sampled voxels, the logit of their probability (float) and whether they are in the truth.
    """

    case: str
    structure: str
    clicks: int
    predicted_iou: float
    true_iou: float
    logits_N: NDArray[np.float64]
    truth_N: NDArray[np.bool_]


def observe(model: PromptableModel, cases: Sequence[Case], options: CalibrationOptions) -> List[Observation]:
    """Observations of a model without any calibration; a case that cannot be read is left out with a warning.

    Raises:
        DatasetError: no case has a structure.
    """
    fitted, model.calibration = model.calibration, Calibration()
    observations: List[Observation] = []
    unread = ""
    try:
        for case in tqdm(cases, unit="case", file=sys.stderr, disable=not options.progress):
            try:
                loaded = case.load(options.dataset)
            except FamsamError as error:
                _LOG.warning("Case %s is left out: %s", case.name, error)
                unread = unread or str(error)
                continue
            observations += _observe_case(model, case.name, loaded, options)
    finally:
        model.calibration = fitted
    if not observations:
        raise DatasetError(
            f"None of {len(cases)} cases can be read and has a structure of at least {options.dataset.min_voxels} "
            f"voxels to observe. {unread}"
        )
    return observations


def _observe_case(
    model: PromptableModel, name: str, loaded: LoadedCase, options: CalibrationOptions
) -> List[Observation]:
    from ..session import Session

    volume, found = loaded.volume, []
    spacing_z, spacing_y, spacing_x = volume.grid.spacing_zyx_mm.tolist()
    random = np.random.default_rng(0)
    for structure in loaded.structures:
        truth_zyx = loaded.truth_zyx(structure)
        session = Session(model)
        session.set_image(volume)
        click: Optional[Click] = first_click(truth_zyx, (spacing_z, spacing_y, spacing_x))
        for number in range(1, options.clicks + 1):
            if click is None:
                break
            r, a, s = volume.grid.ras_from_zyx_points(click.zyx).tolist()
            result = session.add_point((r, a, s), click.positive)
            mask_zyx, uncertainty = result.mask_zyx, session.uncertainty()
            iou = (mask_zyx & truth_zyx).sum() / (mask_zyx | truth_zyx).sum()
            if uncertainty.box_zyx is not None:
                probability = uncertainty.probability_zyx.ravel()
                picks = random.permutation(probability.size)[: options.voxels]
                truth = truth_zyx[box_slices(uncertainty.box_zyx)].ravel()[picks]
                sample = logit(probability[picks]), truth
                found.append(Observation(name, structure.name, number, result.quality, float(iou), *sample))
            click = next_click(truth_zyx, mask_zyx, (spacing_z, spacing_y, spacing_x))
    return found


def fit_calibration(observations: Sequence[Observation]) -> Calibration:
    """The calibration that suits these observations best; every case weighs the same, however much there is of it.

    Raises:
        ConfigError: there are no observations.
    """
    results = Counter(o.case for o in observations)
    voxels: Counter[str] = Counter()
    for o in observations:
        voxels[o.case] += len(o.logits_N)
    quality = fit_logistic(
        logit([o.predicted_iou for o in observations]),
        [o.true_iou for o in observations],
        [1 / results[o.case] for o in observations],
    )
    parts = [(o.logits_N, o.truth_N, np.full(len(o.logits_N), 1 / voxels[o.case])) for o in observations]
    logits, truth, weights = (np.concatenate(part) for part in zip(*parts))
    return Calibration(*fit_logistic(logits, truth, weights), *quality)


def split_cases(cases: Sequence[Case], fit_patterns: Sequence[str]) -> Tuple[List[Case], List[Case]]:
    """(cases to fit on, cases to judge on): those that match one of the patterns, and the others.

    Raises:
        DatasetError: there are patterns and no case matches, or no case is left to judge on.
    """
    fitted = [case for case in cases if matches(case.name, fit_patterns)]
    judged = [case for case in cases if case not in fitted]
    if (fit_patterns and not fitted) or not judged:
        raise DatasetError(
            f"Expected the patterns {list(fit_patterns)} to match some of the {len(cases)} cases and leave others to "
            f"judge on; they match {len(fitted)}. The cases are called "
            f"{', '.join(case.name for case in cases[:5])}, …"
        )
    return fitted, judged


def expected_error(predicted: NDArray[Any], happened: NDArray[Any], bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): the mean over samples of |mean predicted - mean happened| in
    their bin of the predicted value, 0..1."""
    return float(sum(count * abs(p - t) for count, p, t in reliability(predicted, happened, bins)) / len(predicted))


def reliability(predicted: NDArray[Any], happened: NDArray[Any], bins: int = BINS) -> List[Tuple[int, float, float]]:
    """(samples, mean predicted, mean happened) of each bin of equal width that is not empty, in order."""
    which = np.minimum((np.asarray(predicted) * bins).astype(int), bins - 1)
    chosen = [which == b for b in range(bins) if (which == b).any()]
    return [(int(c.sum()), float(predicted[c].mean()), float(np.mean(happened[c]))) for c in chosen]


@dataclass
class CalibrationReport:
    """What a calibration is worth on cases that it was not fitted on.

    Attributes:
        calibration: the one that is judged.
        observations: uncalibrated ones to judge on.
        fitted_on: names of the cases that it was fitted on; empty if it came with the model.
    """

    calibration: Calibration
    observations: List[Observation]
    fitted_on: List[str] = field(default_factory=list)

    def samples(self, calibrated: bool) -> Dict[str, Tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """(predicted, happened) of "probability" (a voxel each) and "quality" (an observation each)."""
        c = self.calibration if calibrated else Calibration()
        logits = np.concatenate([o.logits_N for o in self.observations])
        truth = np.concatenate([o.truth_N for o in self.observations]).astype(np.float64)
        predicted = np.array([c.iou(o.predicted_iou) for o in self.observations])
        true = np.array([o.true_iou for o in self.observations])
        return {
            "probability": (logistic(c.mask_scale * logits + c.mask_shift), truth),
            "quality": (predicted, true),
        }

    def scores(self, calibrated: bool) -> Dict[str, float]:
        """Errors, all better when smaller, and the correlation of predicted and true IoU."""
        samples = self.samples(calibrated)
        (p, truth), (predicted, true) = samples["probability"], samples["quality"]
        varied = len(true) > 1 and predicted.std() > 0 and true.std() > 0
        return {
            "probability_ece": expected_error(p, truth),
            "probability_brier": float(((p - truth) ** 2).mean()),
            "iou_mean_error": float(np.abs(predicted - true).mean()),
            "iou_bias": float((predicted - true).mean()),
            "iou_ece": expected_error(predicted, true),
            "iou_correlation": float(np.corrcoef(predicted, true)[0, 1]) if varied else 0.0,
        }

    def to_dict(self) -> Dict[str, Any]:
        """Everything but the voxels, JSON-able."""
        return {
            "calibration": to_plain(self.calibration),
            "fitted_on": self.fitted_on,
            "before": self.scores(False),
            "after": self.scores(True),
            "reliability": {key: reliability(*pair) for key, pair in self.samples(True).items()},
            "observations": [
                {
                    "case": o.case,
                    "structure": o.structure,
                    "clicks": o.clicks,
                    "predicted_iou": o.predicted_iou,
                    "calibrated_iou": self.calibration.iou(o.predicted_iou),
                    "true_iou": o.true_iou,
                }
                for o in self.observations
            ],
        }

    def to_markdown(self) -> str:
        """Scores before and after, and the reliability tables, as Markdown."""
        before, after = self.scores(False), self.scores(True)
        cases = len({o.case for o in self.observations})
        lines = [
            f"# Calibration: {len(self.observations)} results on {cases} cases",
            "",
            f"Fitted on: {', '.join(self.fitted_on) or 'nothing here; the calibration came with the model'}.",
            "",
            "| | uncalibrated | calibrated |",
            "| --- | --- | --- |",
            *(f"| {name.replace('_', ' ')} | {before[name]:.3f} | {after[name]:.3f} |" for name in before),
        ]
        for key, pair in self.samples(True).items():
            lines += [
                "",
                f"## Reliability: {key}, calibrated",
                "",
                "| samples | predicted | happened |",
                "| --- | --- | --- |",
            ]
            lines += [f"| {count} | {p:.3f} | {t:.3f} |" for count, p, t in reliability(*pair)]
        return "\n".join([*lines, ""])

    def write(self, folder: Union[str, Path]) -> List[Path]:
        """Write ``calibration.json``, ``calibration.md`` and ``calibration.png`` into a folder, made if need be.

        Raises:
            MissingDependencyError: matplotlib is not installed (the others are written).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"calibration.{suffix}" for suffix in ("json", "md", "png")]
        written[0].write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        written[1].write_text(self.to_markdown(), encoding="utf-8")
        self._plot(written[2])
        return written

    def _plot(self, path: Path) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependencyError(
                f'The plot needs matplotlib, which is not installed: pip install "famsam[plots]" ({error})'
            ) from error
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        titles = {"probability": "voxels: probability", "quality": "results: predicted IoU"}
        for axes, (key, title) in zip(figure.subplots(1, 2), titles.items()):
            axes.plot([0, 1], [0, 1], color="#9aa4b2", linewidth=1)
            for calibrated, name in ((False, "uncalibrated"), (True, "calibrated")):
                predicted, happened = self.samples(calibrated)[key]
                bins = np.array(reliability(predicted, happened))
                axes.plot(
                    bins[:, 1],
                    bins[:, 2],
                    marker="o",
                    markersize=4,
                    label=f"{name}, error {expected_error(predicted, happened):.3f}",
                )
                if key == "quality":
                    axes.scatter(predicted, happened, s=6, alpha=0.4)
            axes.set(title=title, xlabel="predicted", ylabel="happened", xlim=(0, 1), ylim=(0, 1), aspect="equal")
            axes.legend(frameon=False)
        figure.savefig(path, dpi=150)
