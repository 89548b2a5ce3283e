"""The command line: ``famsam segment``, ``view``, ``serve``, ``evaluate``, ``train``, ``convert``, ``bench`` and more.

Exit codes: 0 done, 1 an error that the engine explains, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from . import __version__
from .cli_calibrate import add_calibrate_arguments, calibrate, save_calibration
from .cli_proposals import add_propose_arguments, add_train_proposals_arguments, propose, train_proposals
from .errors import ConfigError, FamsamError
from .outputs import PLOT_SUFFIXES, WEIGHTS_SUFFIXES, check_output_file, check_output_folder
from .server.command import add_serve_arguments, add_view_arguments, serve, view
from .training import command as training

Row = Dict[str, Any]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(_with_negative_numbers(sys.argv[1:] if arguments is None else arguments))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not fit the encoding of what it goes to
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return int(args.run(args) or 0)
    except (FamsamError, OSError) as error:
        print(f"famsam {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"famsam {args.command}: interrupted", file=sys.stderr)
        return 130


def _with_negative_numbers(arguments: Sequence[str]) -> List[str]:
    """``--point -35,12,60`` as ``--point=-35,12,60``: argparse would take the number for another option."""
    joined: List[str] = []
    for argument in arguments:
        is_numbers = re.match(r"^-[\d.][^=]*,", argument) is not None
        if is_numbers and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


# --- segment ---


class _AppendPrompt(argparse.Action):
    """Keeps points, negative points and boxes in one list, in the order given."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        namespace.prompts = [*(namespace.prompts or []), (self.const, values)]


def _numbers(count: int, form: str) -> Any:
    def parse(text: str) -> Tuple[float, ...]:
        parts = text.replace("[", "").replace("]", "").split(",")
        try:
            values = tuple(float(part) for part in parts)
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"expected {form} in millimetres, got {text!r}")
        return values

    return parse


def _segment(args: argparse.Namespace) -> None:
    from .checkpoints import load_model
    from .session import Session
    from .volume import read_mask, write_mask

    _check_segment(args)
    volume = _read_image(args.image)
    session = Session(load_model(args.model, args.device, args.precision, paused_share=args.pause))
    session.set_image(volume)
    if args.start is not None:
        session.set_mask(read_mask(args.start, volume))
    if args.restore is not None:
        session.restore(_read_json(args.restore))
    result = session.result
    steps: List[Row] = []
    for kind, values in args.prompts or []:
        if kind == "box":
            result = session.add_box(values[:3], values[3:])
        else:
            result = session.add_point(values, positive=kind == "positive")
        prompt = session.prompts[-1].to_dict()
        steps.append({"prompt": prompt, "quality": result.quality, "timings_ms": result.timings_ms})
    mask = result.mask_zyx
    write_mask(mask, volume, args.output)
    if args.save_prompts is not None:
        Path(args.save_prompts).write_text(json.dumps(session.to_dict()), encoding="utf-8")
    if args.picture is not None:
        from .picture import three_plane_picture
        from .prompts import PointPrompt

        points = [p for p in session.prompts if isinstance(p, PointPrompt)]
        three_plane_picture(volume, mask, [p.ras_mm for p in points], [p.positive for p in points], args.picture)
    summary = {
        "mask": str(args.output),
        "picture": None if args.picture is None else str(args.picture),
        "voxels": int(mask.sum()),
        "volume_ml": float(mask.sum()) * volume.grid.voxel_ml,
        "predicted_iou": result.quality,
        "steps": steps,
    }
    _report(args, summary, [
        f"{summary['voxels']} voxels, {summary['volume_ml']:.2f} ml, predicted IoU {result.quality:.2f}",
        *(f"{step['prompt']['type']}: {step['timings_ms']['total']:.0f} ms" for step in steps),
        f"mask: {args.output}",
        *([f"picture: {args.picture}"] if args.picture else []),
    ])


def _check_segment(args: argparse.Namespace) -> None:
    """There is something to do, and its results can be written where they are to go.

    The mask may take the place of the one it started from, and the prompts that of those restored.
    """
    from .image_files import WRITABLE_SUFFIXES

    if not args.prompts and args.restore is None:
        raise ConfigError("Expected a prompt to segment by, got none. Give --point, --box or --restore.")
    if args.start is not None and args.restore is not None:
        raise ConfigError(
            "Expected --start or --restore, got both; what is restored has the mask it began from. Leave one out."
        )
    image = None if args.image == "sample" else Path(args.image)
    check_output_file(args.output, WRITABLE_SUFFIXES, apart_from=[image, args.restore])
    check_output_file(args.save_prompts, apart_from=[image, args.start])
    check_output_file(args.picture, apart_from=[image, args.start, args.restore])
    check_output_file(args.picture, (".png",))
    outputs = [path.resolve() for path in (args.output, args.save_prompts, args.picture) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise ConfigError(
            f"Expected a file of its own for each of mask, prompts and picture, got {', '.join(map(str, outputs))}. "
            "One would replace the other; name another one."
        )


def _read_image(source: str) -> Any:
    from .sample_data import sample_volume
    from .volume import read_volume

    return sample_volume() if source == "sample" else read_volume(source)


# --- evaluate ---


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation import BASELINES
    from .evaluation.dataset import DatasetOptions, read_exclude_file
    from .evaluation.harness import EvaluationOptions, evaluate
    from .evaluation.segmenters import ClickSegmenter, SessionSegmenter
    from .evaluation.unfinished import UNFINISHED_NAME

    check_output_folder(args.output)
    check_output_folder(args.pictures)
    exclude = tuple(args.exclude) + (read_exclude_file(args.exclude_file) if args.exclude_file else ())
    dataset = DatasetOptions(tuple(args.include), exclude, args.max_structures, args.min_voxels)
    unfinished = args.output / UNFINISHED_NAME
    options = EvaluationOptions(
        dataset, args.clicks, args.tolerance_mm, args.unsteady, args.pictures, unfinished, progress=not args.quiet
    )
    given = args.method or ["default"]
    methods: List[ClickSegmenter] = []
    for name in given:
        if name in BASELINES:
            methods.append(BASELINES[name]())
        else:
            from .checkpoints import load_model

            label = None if name == "default" else Path(name).stem
            model = load_model(name, args.device, args.precision, paused_share=args.pause)
            methods.append(SessionSegmenter(model, label))
    names = [method.name for method in methods]
    for method, name in zip(methods, given):
        if names.count(method.name) > 1:  # every run's weights are called like their model
            method.name = name
    report = evaluate(args.directory, methods, options)
    try:
        report.write(args.output)
        unfinished.unlink(missing_ok=True)
    finally:  # what was found is worth more than its files
        print(json.dumps(report.to_dict()) if args.json else report.to_markdown())


def _calibrate(args: argparse.Namespace) -> None:
    model, report = calibrate(args)
    summary, lines = report.to_dict(), [report.to_markdown()]
    try:
        files = [str(path) for path in save_calibration(args, model, report)]
        weights = [] if args.save is None else [str(args.save)]
        summary.update(files=files, weights=weights[0] if weights else None)
        lines += [f"wrote {path}" for path in [*files, *weights]]
    finally:  # what was found is worth more than its files
        _report(args, summary, lines)


def _propose(args: argparse.Namespace) -> None:
    _report(args, *propose(args))


def _train_proposals(args: argparse.Namespace) -> None:
    _report(args, *train_proposals(args))


# --- convert, bench, doctor ---


def _convert(args: argparse.Namespace) -> None:
    from .checkpoints import DEFAULT_WEIGHTS, convert

    source = DEFAULT_WEIGHTS if str(args.source) == "default" else args.source
    check_output_file(args.destination, WEIGHTS_SUFFIXES, apart_from=[source, args.teacher])
    provenance = convert(args.source, args.destination, args.teacher, args.store)
    _report(args, {"destination": str(args.destination), **provenance}, [f"weights: {args.destination}"])


def _bench(args: argparse.Namespace) -> None:
    from .bench import (
        CONFIGS,
        BenchOptions,
        BenchReport,
        ScalingOptions,
        compare,
        comparison_lines,
        read_report,
        run_bench,
    )

    check_output_file(args.output)
    check_output_file(args.plot, PLOT_SUFFIXES)
    older = None if args.compare is None else read_report(args.compare)
    options = BenchOptions(
        args.device,
        args.precision,
        args.threads,
        args.runs,
        tuple(args.volume),
        tuple(args.config or CONFIGS),
        args.model,
        args.ablation,
        tuple(args.batch),
        ScalingOptions(volume_xyz=tuple(args.volume)) if args.scaling or args.plot else None,
        not args.quiet,
    )

    def keep(report: BenchReport) -> None:
        if args.output is not None:
            args.output.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")

    report = run_bench(options, keep)
    found, lines = report.to_dict(), report.lines()
    if older is not None:
        lines += comparison_lines(found, older)
        found["comparison"] = compare(found, older)
    _report(args, found, lines)
    if args.plot is not None:
        from .bench.plot import draw_scaling

        draw_scaling(report.scaling, args.plot)


def _doctor(args: argparse.Namespace) -> None:
    from .checkpoints import DEFAULT_WEIGHTS
    from .runtime import describe

    found = describe()
    found["default_weights"] = str(DEFAULT_WEIGHTS) if DEFAULT_WEIGHTS.exists() else "missing"
    _report(args, found, [f"{name}: {value}" for name, value in found.items()])


# --- the parser ---


def _report(args: argparse.Namespace, summary: Row, lines: Sequence[str]) -> None:
    print(json.dumps(summary, default=str) if args.json else "\n".join(lines))


def _answering(command: Callable[[argparse.Namespace], training.Answer]) -> Callable[[argparse.Namespace], None]:
    """A command of ``training.command`` that prints what it answers."""

    def run(args: argparse.Namespace) -> None:
        answer = command(args)
        if answer is not None:
            _report(args, *answer)

    return run


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FamsamError(f"Expected prompts saved as JSON in {path}; {error}.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="famsam", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--version", action="version", version=f"famsam {__version__}")
    parser.set_defaults(verbose=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = _command(commands, "segment", _segment, "segment one structure by clicks",
                 "famsam segment scan.nii.gz -o mask.nii.gz --point=-35,12,60 --negative=-50,12,60 --picture out.png")
    p.add_argument("image", help='NIfTI, NRRD, MHA, a DICOM series folder, or "sample" (a head MR, extra "demo")')
    p.add_argument("-o", "--output", type=Path, required=True, help="the mask file: .nii, .nii.gz, .nrrd or .mha")
    triple = _numbers(3, "R,A,S")
    p.add_argument("--point", action=_AppendPrompt, const="positive", dest="prompts", type=triple, metavar="R,A,S",
                   help="a click on the structure, RAS mm; repeat at will, order counts")
    p.add_argument("--negative", action=_AppendPrompt, const="negative", dest="prompts", type=triple, metavar="R,A,S",
                   help="a click beside the structure")
    p.add_argument("--box", action=_AppendPrompt, const="box", dest="prompts",
                   type=_numbers(6, "R0,A0,S0,R1,A1,S1"), metavar="R0,A0,S0,R1,A1,S1",
                   help="two opposite corners of a box around it")
    p.add_argument("--start", type=Path, help="a mask on the image's grid to refine")
    p.add_argument("--restore", type=Path, help="prompts that --save-prompts wrote")
    p.add_argument("--save-prompts", type=Path, help="write the prompts as JSON")
    p.add_argument("--picture", type=Path, help="write a PNG with three planes, the outline and the clicks")
    _pause_option(p)
    _model_options(p)

    p = _command(commands, "propose", _propose, "masks of what there is to segment, without a click",
                 "famsam propose scan.nii.gz -o candidates/ --model with-proposals.safetensors")
    add_propose_arguments(p)
    _pause_option(p)
    _model_options(p)

    p = _command(commands, "evaluate", _evaluate,
                 "measure accuracy and latency with simulated clicks; resumes what was cut off",
                 "famsam evaluate cases/ -o report/ --method default --method growcut")
    p.add_argument("directory", type=Path, help="folder of cases: CASE/image.nii.gz, CASE/labels.nii.gz; or nnU-Net's")
    p.add_argument("-o", "--output", type=Path, default=Path("evaluation"), help="folder for JSON, Markdown and plot")
    p.add_argument("--method", action="append",
                   help='"default", a weights file, "growcut" or "region-growing"; repeatable')
    p.add_argument("--clicks", type=int, default=10)
    p.add_argument("--unsteady", type=int, metavar="SEED", help="click beside the centre of what is wrong, at random")
    p.add_argument("--tolerance-mm", type=float, default=2.0, help="of the normalised surface distance")
    p.add_argument("--include", action="append", default=[], help="pattern of case names")
    p.add_argument("--exclude", action="append", default=[], help="pattern of case names")
    p.add_argument("--exclude-file", type=Path, help="case names to leave out, one a line (those trained on)")
    p.add_argument("--max-structures", type=int, help="at most so many structures a case")
    p.add_argument("--min-voxels", type=int, default=20)
    p.add_argument("--pictures", type=Path, help="folder for a picture of every result")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    _pause_option(p)
    _model_options(p, with_model=False)

    p = _command(commands, "calibrate", _calibrate, "judge and correct probabilities and predicted IoU",
                 "famsam calibrate cases/ --fit 'sts_*' -o calibration/ --save calibrated.safetensors --store fp16")
    add_calibrate_arguments(p)
    _model_options(p)

    p = _command(commands, "train", _answering(training.train), "train a network; resumes what was cut off",
                 training.TRAIN_EXAMPLE)
    training.add_train_arguments(p)
    p = _command(commands, "train-proposals", _train_proposals, "add a trained proposal head to a model",
                 "famsam train-proposals with-proposals.safetensors --time-limit-min 10 --label-maps maps/")
    add_train_proposals_arguments(p)
    _model_options(p)
    p = _command(commands, "distill", _answering(training.distill), "train a shallow network to be like a deep one",
                 training.DISTILL_EXAMPLE)
    training.add_distill_arguments(p)
    p = _command(commands, "compare", _answering(training.compare), "train variants on the same budget and compare",
                 training.COMPARE_EXAMPLE)
    training.add_compare_arguments(p)
    p = _command(commands, "gallery", _answering(training.gallery), "draw what the synthetic data generator makes",
                 "famsam gallery gallery.png --count 12")
    training.add_gallery_arguments(p)

    p = _command(commands, "convert", _convert, "published checkpoints to safetensors",
                 "famsam convert fastsam3d.pth fastsam3d.safetensors --teacher sam_med3d_turbo.pth")
    p.add_argument("source", type=Path)
    p.add_argument("destination", type=Path)
    p.add_argument("--teacher", type=Path, help="prompt encoder and decoder for a checkpoint that is an encoder alone")
    p.add_argument("--store", default="fp32", choices=("fp32", "fp16", "int8", "int6", "int5"),
                   help="how to keep the parameters")

    p = _command(commands, "bench", _bench, "time the three models and whole clicks beside the machine's limits",
                 "famsam bench --output bench.json --compare older.json\n"
                 "a GPU:   famsam bench --device cuda --runs 30 --ablation --batch 1 --batch 8 --batch 32")
    p.add_argument("--config", action="append", choices=("famsam", "fastsam3d", "sam_med3d"), help="only this one; "
                   "repeatable")
    p.add_argument("--runs", type=int, default=7)
    p.add_argument("--threads", type=int, default=0, help="torch threads; 0: as many as are fastest")
    p.add_argument("--volume", type=int, nargs=3, default=(512, 512, 300), metavar=("X", "Y", "Z"))
    p.add_argument("--ablation", action="store_true", help="also FastSAM3D's encoder, sparse x flash attention")
    p.add_argument("--batch", type=int, action="append", default=[], help="also volumes a second with so many crops at "
                   "a time, on a GPU as CUDA graphs too; repeatable")
    p.add_argument("--scaling", action="store_true", help="also latency by size of the scan, points and segments "
                   "(takes minutes)")
    p.add_argument("--plot", type=Path, help="draw the scaling as a PNG")
    p.add_argument("--output", type=Path, help="write the JSON here as well, what there is of it after each part")
    p.add_argument("--compare", type=Path, metavar="OLD.json", help="an older run's JSON: what became faster or slower")
    p.add_argument("--quiet", action="store_true", help="no progress")
    _model_options(p)

    p = _command(commands, "view", view, "click in the browser", "famsam view scan.nii.gz")
    add_view_arguments(p)
    p = _command(commands, "serve", serve, "serve the page and the API to this machine or others", "famsam serve")
    add_serve_arguments(p)

    _command(commands, "doctor", _doctor, "what is installed, which device and precision, how fast", "famsam doctor")
    return parser


def _command(commands: Any, name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    parser.set_defaults(run=run)
    return parser


def _model_options(parser: argparse.ArgumentParser, with_model: bool = True) -> None:
    if with_model:
        parser.add_argument("--model", default="default", help='"default", a .safetensors or a .pth file')
    parser.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", "cuda:1", "mps"')
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16", "int8"))


def _pause_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pause", type=float, metavar="SHARE",
                        help="share of the encoder's tokens that pause in its later blocks: faster, less exact; "
                        "default: as the shipped weights were measured with, 0 for others")


if __name__ == "__main__":
    sys.exit(main())
