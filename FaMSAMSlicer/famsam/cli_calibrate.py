"""``famsam calibrate``: judge, and correct, what a model says about its own results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, List, Tuple

from .errors import ConfigError
from .outputs import WEIGHTS_SUFFIXES, check_output_file, check_output_folder

if TYPE_CHECKING:
    from .evaluation.calibrate import CalibrationReport
    from .model.base import PromptableModel


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam calibrate``, but for those that choose the model."""
    parser.add_argument("directory", type=Path, help="folder of labelled cases, as for evaluate")
    parser.add_argument("-o", "--output", type=Path, default=Path("calibration"), help="folder for the report")
    parser.add_argument("--fit", action="append", default=[], metavar="PATTERN",
                        help="names of cases to fit on, the others are judged on; repeatable. Without it, the model's "
                        "own calibration is judged on all cases")
    parser.add_argument("--save", type=Path,
                        help="write the model with its new calibration as .safetensors; needs --fit")
    parser.add_argument("--store", default="fp32", choices=("fp32", "fp16", "int8", "int6", "int5"),
                        help="how to keep its parameters")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--include", action="append", default=[], help="pattern of case names")
    parser.add_argument("--exclude", action="append", default=[], help="pattern of case names")
    parser.add_argument("--exclude-file", type=Path, help="case names to leave out, one a line (those trained on)")
    parser.add_argument("--max-structures", type=int, default=3, help="at most so many structures a case")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def calibrate(args: argparse.Namespace) -> Tuple[PromptableModel, CalibrationReport]:
    """Run ``famsam calibrate``; returns the model with the calibration that the report is on, and saves nothing yet."""
    from .checkpoints import load_model
    from .evaluation.calibrate import CalibrationOptions, CalibrationReport, fit_calibration, observe, split_cases
    from .evaluation.dataset import DatasetOptions, find_cases, read_exclude_file

    check_output_folder(args.output)
    args.output.mkdir(parents=True, exist_ok=True)  # the weights may go there as well
    check_output_file(args.save, WEIGHTS_SUFFIXES)
    if args.save is not None and not args.fit:
        raise ConfigError(
            "Expected --fit with --save: without cases to fit on there is no new calibration to save. "
            "Give patterns of their names, or leave --save out."
        )
    exclude = tuple(args.exclude) + (read_exclude_file(args.exclude_file) if args.exclude_file else ())
    dataset = DatasetOptions(tuple(args.include), exclude, args.max_structures)
    options = CalibrationOptions(dataset, args.clicks, progress=not args.quiet)
    fitted, judged = split_cases(find_cases(args.directory, dataset), args.fit)
    model = load_model(args.model, args.device, args.precision)
    fitted_on: List[str] = []
    if fitted:
        observations = observe(model, fitted, options)
        model.calibration = fit_calibration(observations)
        fitted_on = list(dict.fromkeys(observation.case for observation in observations))
    return model, CalibrationReport(model.calibration, observe(model, judged, options), fitted_on)


def save_calibration(args: argparse.Namespace, model: PromptableModel, report: CalibrationReport) -> List[Path]:
    """Write the report, and the weights if it is asked for; the names of the report's files."""
    from .checkpoints import save_model

    try:
        return report.write(args.output)
    finally:  # a report that cannot be drawn must not cost the weights
        if args.save is not None:
            save_model(model, args.save, {"calibrated_on": ", ".join(report.fitted_on)}, args.store)
