"""Evaluate methods that segment by clicks on labelled scans, side by side, with the same simulated user."""

from __future__ import annotations

import logging
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
from ..picture import three_plane_picture
from ..volume import Volume
from .clicks import Click, first_click, next_click
from .dataset import Case, DatasetOptions, LoadedCase, Structure, find_cases
from .metrics import dice, surface_scores
from .report import DICE_TARGETS, ClickRecord, Report, StructureResult, describe_environment
from .segmenters import ClickSegmenter, setup_of
from .unfinished import Unfinished

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationOptions:
    """How an evaluation is done."""

    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    """Which cases and structures."""
    clicks: int = 10
    """Clicks a structure."""
    tolerance_mm: float = 2.0
    """How far apart two surfaces may be to agree in the NSD."""
    unsteady: Optional[int] = None
    """The seed of clicks beside the centre of what is wrong, see ``clicks``; None: right at it."""
    pictures: Optional[Path] = None
    """A folder for a picture of every structure's last result by every method; made if need be."""
    unfinished: Optional[Path] = None
    """A file to keep finished cases in; an evaluation that was cut off goes on from there if all is as it was begun:
    methods, weights, options and versions. It stays, and is to be removed with the report written. None: none."""
    progress: bool = False
    """Show a progress bar on the standard error stream."""

    def __post_init__(self) -> None:
        if self.clicks < 1:
            raise ConfigError(f"Expected at least 1 click a structure, got {self.clicks}.")
        if not self.tolerance_mm > 0:
            raise ConfigError(f"Expected a tolerance above 0 mm, got {self.tolerance_mm}.")
        if self.unsteady is not None and self.unsteady < 0:
            raise ConfigError(f"Expected a seed of unsteady clicks of at least 0, or none, got {self.unsteady}.")


def evaluate(
    directory: Union[str, Path],
    segmenters: Sequence[ClickSegmenter],
    options: Optional[EvaluationOptions] = None,
) -> Report:
    """Let every method segment every structure of every case of a folder by simulated clicks.

    Dice and NSD are measured on the whole image after every click. Where a method has reached the truth exactly, there
    is nothing left to click on and its scores stay at 1. Where a method raises an exception, the structure counts as
    failed: its scores are 0 from that click on, the reason is in the report, and the evaluation goes on. A case that
    cannot be read is left out of all means, and the report says why.

    Args:
        directory: a folder of cases, see ``famsam.evaluation.dataset``.
        segmenters: the methods, each with a name of its own.
        options: how it is done; the defaults if None.

    Raises:
        DatasetError: the folder holds no usable case or structure.
        ConfigError: no method, or two of one name.
    """
    options = options or EvaluationOptions()
    names = [segmenter.name for segmenter in segmenters]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"Expected at least one method and different names, got {names}. Name each method once.")
    cases = find_cases(directory, options.dataset)
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    chosen = {
        "directory": str(directory),
        "include": list(options.dataset.include),
        "exclude": list(options.dataset.exclude),
        "max_structures": options.dataset.max_structures,
        "min_voxels": options.dataset.min_voxels,
        "unsteady": options.unsteady,
    }
    unfinished, known = _gone_on_with(cases, segmenters, options, chosen)

    results: List[StructureResult] = []
    unread: Dict[str, str] = {}
    bar = tqdm(cases, unit="case", file=sys.stderr, disable=not options.progress)
    for case in bar:
        if case.name in known:
            results += known[case.name]
            continue
        try:
            loaded = case.load(options.dataset)
        except Exception as error:  # whatever is wrong with one case, the work on the others is not lost
            unread[case.name] = str(error) or type(error).__name__
            _LOG.warning("Case %s is left out: %s", case.name, unread[case.name])
            continue
        found: List[StructureResult] = []
        for structure in loaded.structures:
            truth_zyx = loaded.truth_zyx(structure)
            for segmenter in segmenters:
                bar.set_postfix_str(f"{case.name}, {structure.name}: {segmenter.name}")
                found.append(_evaluate_structure(segmenter, case.name, loaded, structure, truth_zyx, options))
        results += found
        if unfinished is not None:
            unfinished.keep(case, found)
    if len(unread) == len(cases):
        raise DatasetError(f"None of the {len(cases)} cases of {directory} can be read. {next(iter(unread.values()))}")
    if not results:
        raise DatasetError(
            f"No structure of at least {options.dataset.min_voxels} voxels in the {len(cases)} cases of {directory}."
        )
    return Report(
        results=results,
        clicks=options.clicks,
        tolerance_mm=options.tolerance_mm,
        options=chosen,
        environment=describe_environment(),
        unread=unread,
    )


def _gone_on_with(
    cases: Sequence[Case], segmenters: Sequence[ClickSegmenter], options: EvaluationOptions, chosen: Dict[str, Any]
) -> Tuple[Optional[Unfinished], Dict[str, List[StructureResult]]]:
    """Where finished cases are kept, if anywhere, and the results of those kept there before, by name."""
    if options.unfinished is None:
        return None, {}
    setup = {
        "versions": describe_environment()["versions"],
        "methods": [setup_of(segmenter) for segmenter in segmenters],
        "clicks": options.clicks,
        "tolerance_mm": options.tolerance_mm,
        "pictures": None if options.pictures is None else str(options.pictures.resolve()),
        **chosen,
        "directory": str(Path(chosen["directory"]).resolve()),
    }
    unfinished = Unfinished(options.unfinished, setup)
    found = {case.name: unfinished.results_of(case) for case in cases}
    known = {name: results for name, results in found.items() if results is not None}
    if known:
        _LOG.warning(
            "Going on with an evaluation that was cut off: %d of %d cases are taken from %s; remove it to begin anew.",
            len(known),
            len(cases),
            options.unfinished,
        )
    return unfinished, known


def _evaluate_structure(
    segmenter: ClickSegmenter,
    case_name: str,
    loaded: LoadedCase,
    structure: Structure,
    truth_zyx: np.ndarray,
    options: EvaluationOptions,
) -> StructureResult:
    volume = loaded.volume
    spacing_z, spacing_y, spacing_x = volume.grid.spacing_zyx_mm.tolist()
    spacing_zyx_mm = (spacing_z, spacing_y, spacing_x)
    result = StructureResult(
        method=segmenter.name,
        case=case_name,
        label=structure.label,
        structure=structure.name,
        voxels=structure.voxels,
        volume_ml=structure.voxels * volume.grid.voxel_ml,
    )
    mask_zyx = np.zeros_like(truth_zyx)
    hand = None
    if options.unsteady is not None:
        hand = np.random.default_rng([options.unsteady, *f"{case_name}/{structure.label}".encode()])
    try:
        began = time.perf_counter()
        segmenter.start(volume)
        result.start_ms = 1000 * (time.perf_counter() - began)
        click: Optional[Click] = first_click(truth_zyx, spacing_zyx_mm, hand)
        while click is not None and len(result.clicks) < options.clicks:
            r, a, s = volume.grid.ras_from_zyx_points(click.zyx).tolist()
            began = time.perf_counter()
            answer = segmenter.click((r, a, s), click.positive)
            latency_ms = 1000 * (time.perf_counter() - began)
            mask_zyx = _checked(answer, truth_zyx)
            surface = surface_scores(truth_zyx, mask_zyx, spacing_zyx_mm, options.tolerance_mm)
            result.clicks.append(ClickRecord((r, a, s), click.positive, latency_ms))
            result.dice.append(dice(truth_zyx, mask_zyx))
            result.nsd.append(surface.nsd)
            result.hausdorff95_mm.append(surface.hausdorff95_mm)
            click = next_click(truth_zyx, mask_zyx, spacing_zyx_mm, hand)
    except Exception as error:
        result.failure = f"{type(error).__name__} at click {len(result.clicks) + 1}: {error}"
        _LOG.warning("%s, %s, %s: %s", segmenter.name, case_name, structure.name, result.failure, exc_info=True)
    result.fill(options.clicks, DICE_TARGETS)
    if options.pictures is not None:
        try:
            _save_picture(options.pictures, volume, mask_zyx, truth_zyx, result)
        except OSError as error:  # a full disk must not cost the scores
            _LOG.warning("%s, %s, %s has no picture: %s", segmenter.name, case_name, structure.name, error)
    return result


def _checked(answer: np.ndarray, truth_zyx: np.ndarray) -> np.ndarray:
    if not isinstance(answer, np.ndarray) or answer.dtype != np.bool_ or answer.shape != truth_zyx.shape:
        came = f"{answer.dtype} {answer.shape}" if isinstance(answer, np.ndarray) else type(answer).__name__
        raise TypeError(f"expected a boolean mask of shape {truth_zyx.shape}, got {came}")
    return answer


def _save_picture(
    folder: Path, volume: Volume, mask_zyx: np.ndarray, truth_zyx: np.ndarray, result: StructureResult
) -> None:
    """The file names begin with the Dice, so that a listing shows the worst results first."""
    stem = re.sub(r"[^\w.-]+", "-", f"{result.dice[-1]:.2f}_{result.case}_{result.label}_{result.method}")
    three_plane_picture(
        volume,
        mask_zyx,
        [click.point_ras_mm for click in result.clicks],
        [int(click.positive) for click in result.clicks],
        folder / f"{stem}.png",
        truth_zyx=truth_zyx,
        title=f"{result.case} · {result.structure} · {result.method}, "
        f"Dice {result.dice[-1]:.2f} after {len(result.clicks)} clicks",
    )
