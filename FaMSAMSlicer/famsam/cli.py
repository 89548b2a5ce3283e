"""The command line: ``famsam segment``, ``view``, ``serve``, ``evaluate``, ``train``, ``convert``, ``bench`` and more.

Exit codes: 0 done, 1 an error that the engine explains, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import __version__
from .cli_calibrate import add_calibrate_arguments, calibrate
from .errors import FamsamError
from .server.command import add_serve_arguments, add_view_arguments, serve, view

Row = Dict[str, Any]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(_with_negative_numbers(sys.argv[1:] if arguments is None else arguments))
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

    volume = _read_image(args.image)
    session = Session(load_model(args.model, args.device, args.precision))
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
        from .session import PointPrompt

        points = [p for p in session.prompts if isinstance(p, PointPrompt)]
        three_plane_picture(volume, mask, [p.ras_mm for p in points], [p.positive for p in points], args.picture)
    voxel_ml = abs(float(_determinant(volume))) / 1000
    summary = {
        "mask": str(args.output),
        "picture": None if args.picture is None else str(args.picture),
        "voxels": int(mask.sum()),
        "volume_ml": float(mask.sum()) * voxel_ml,
        "predicted_iou": result.quality,
        "steps": steps,
    }
    _report(args, summary, [
        f"{summary['voxels']} voxels, {summary['volume_ml']:.2f} ml, predicted IoU {result.quality:.2f}",
        *(f"{step['prompt']['type']}: {step['timings_ms']['total']:.0f} ms" for step in steps),
        f"mask: {args.output}",
        *([f"picture: {args.picture}"] if args.picture else []),
    ])


def _read_image(source: str) -> Any:
    from .sample_data import sample_volume
    from .volume import read_volume

    return sample_volume() if source == "sample" else read_volume(source)


def _determinant(volume: Any) -> float:
    import numpy as np

    return float(np.linalg.det(volume.grid.ras_from_ijk[:3, :3]))


# --- evaluate ---


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation import BASELINES
    from .evaluation.dataset import DatasetOptions, read_exclude_file
    from .evaluation.harness import EvaluationOptions, evaluate
    from .evaluation.segmenters import ClickSegmenter, SessionSegmenter

    exclude = tuple(args.exclude) + (read_exclude_file(args.exclude_file) if args.exclude_file else ())
    dataset = DatasetOptions(tuple(args.include), exclude, args.max_structures, args.min_voxels)
    methods: List[ClickSegmenter] = []
    for name in args.method or ["default"]:
        if name in BASELINES:
            methods.append(BASELINES[name]())
        else:
            from .checkpoints import load_model

            label = None if name == "default" else Path(name).stem
            methods.append(SessionSegmenter(load_model(name, args.device, args.precision), label))
    options = EvaluationOptions(dataset, args.clicks, args.tolerance_mm, args.pictures, progress=not args.quiet)
    report = evaluate(args.directory, methods, options)
    report.write(args.output)
    if args.json:
        print(json.dumps(report.to_dict()))
    else:
        print(report.to_markdown())


def _calibrate(args: argparse.Namespace) -> None:
    _report(args, *calibrate(args))


# --- train ---


def _train(args: argparse.Namespace) -> None:
    import torch

    from .checkpoints import save_model
    from .runtime import choose_device
    from .training.config import config_of_run, read_config
    from .training.plots import learning_curve
    from .training.trainer import MixedSource, Trainer, synthetic_source

    sources, weights = [synthetic_source], [args.synthetic_weight]
    if args.labelled or args.unlabelled or args.label_maps:
        from .training.scans import load_label_maps, load_labelled, load_unlabelled

        for directory in args.label_maps:
            sources.append(load_label_maps(directory).draw)
            weights.append(args.label_map_weight)
        for directory in args.labelled:
            sources.append(load_labelled(directory, args.include).draw)
            weights.append(args.labelled_weight)
        for directory in args.unlabelled:
            sources.append(load_unlabelled(directory).draw)
            weights.append(args.unlabelled_weight)
    if args.threads:
        torch.set_num_threads(args.threads)
    config, model_config = read_config(args.config) if args.config else config_of_run(args.run_directory)
    chosen = {"steps": args.steps, "optimiser": args.optimiser, "seed": args.seed, "precision": args.precision}
    config = replace(config, **{name: value for name, value in chosen.items() if value is not None})
    source = MixedSource(sources, weights)
    trainer = Trainer(args.run_directory, source, config, model_config, choose_device(args.device))
    trainer.run(args.time_limit_min * 60, progress=not args.quiet)
    weights_path = Path(args.run_directory) / "famsam.safetensors"
    provenance = {"steps": str(trainer.step), "seconds": str(round(trainer.seconds)), "seed": str(config.seed)}
    save_model(trainer.averaged_model(), weights_path, provenance, half=True)
    curve = learning_curve(args.run_directory)
    summary = {"step": trainer.step, "steps": config.steps, "weights": str(weights_path), "curve": curve and str(curve)}
    _report(args, summary, [f"step {trainer.step} of {config.steps}; weights: {weights_path}; curve: {curve}"])


def _gallery(args: argparse.Namespace) -> None:
    from .runtime import choose_device
    from .training.plots import gallery

    gallery(args.output, args.count, args.size, args.seed, choose_device(args.device))
    _report(args, {"picture": str(args.output)}, [f"picture: {args.output}"])


# --- convert, bench, doctor ---


def _convert(args: argparse.Namespace) -> None:
    from .checkpoints import convert

    provenance = convert(args.source, args.destination, args.teacher, args.half)
    _report(args, {"destination": str(args.destination), **provenance}, [f"weights: {args.destination}"])


def _bench(args: argparse.Namespace) -> None:
    from .bench import CONFIGS, BenchOptions, ScalingOptions, comparison_lines, read_report, run_bench

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
    report = run_bench(options)
    found = report.to_dict()
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        from .bench.plot import draw_scaling

        draw_scaling(report.scaling, args.plot)
    _report(args, found, report.lines() + (comparison_lines(found, older) if older else []))


def _doctor(args: argparse.Namespace) -> None:
    from .checkpoints import DEFAULT_WEIGHTS
    from .runtime import describe

    found = describe()
    found["default_weights"] = str(DEFAULT_WEIGHTS) if DEFAULT_WEIGHTS.exists() else "missing"
    _report(args, found, [f"{name}: {value}" for name, value in found.items()])


# --- the parser ---


def _report(args: argparse.Namespace, summary: Row, lines: Sequence[str]) -> None:
    print(json.dumps(summary, default=str) if args.json else "\n".join(lines))


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
                   type=_numbers(6, "R0,A0,S0,R1,A1,S1"), metavar="R0,A0,S0,R1,A1,S1", help="a box around it")
    p.add_argument("--start", type=Path, help="a mask on the image's grid to refine")
    p.add_argument("--restore", type=Path, help="prompts that --save-prompts wrote")
    p.add_argument("--save-prompts", type=Path, help="write the prompts as JSON")
    p.add_argument("--picture", type=Path, help="write a PNG with three planes, the outline and the clicks")
    _model_options(p)

    p = _command(commands, "evaluate", _evaluate, "measure accuracy and latency with simulated clicks",
                 "famsam evaluate cases/ -o report/ --method default --method growcut")
    p.add_argument("directory", type=Path, help="folder of cases: CASE/image.nii.gz, CASE/labels.nii.gz; or nnU-Net's")
    p.add_argument("-o", "--output", type=Path, default=Path("evaluation"), help="folder for JSON, Markdown and plot")
    p.add_argument("--method", action="append",
                   help='"default", a weights file, "growcut" or "region-growing"; repeatable')
    p.add_argument("--clicks", type=int, default=10)
    p.add_argument("--tolerance-mm", type=float, default=2.0, help="of the normalised surface distance")
    p.add_argument("--include", action="append", default=[], help="pattern of case names")
    p.add_argument("--exclude", action="append", default=[], help="pattern of case names")
    p.add_argument("--exclude-file", type=Path, help="case names to leave out, one a line (those trained on)")
    p.add_argument("--max-structures", type=int, help="at most so many structures a case")
    p.add_argument("--min-voxels", type=int, default=20)
    p.add_argument("--pictures", type=Path, help="folder for a picture of every result")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    _model_options(p, with_model=False)

    p = _command(commands, "calibrate", _calibrate, "judge and correct probabilities and predicted IoU",
                 "famsam calibrate cases/ --fit 'sts_*' -o calibration/ --save calibrated.safetensors --half")
    add_calibrate_arguments(p)
    _model_options(p)

    p = _command(commands, "train", _train, "train the default network; resumes what was cut off",
                 "famsam train runs/first --steps 6000 --labelled cases/ --time-limit-min 120")
    p.add_argument("run_directory", type=Path)
    p.add_argument("--config", type=Path, help="JSON like a run's config.json, complete or in part; by default "
                   "the run's own if it has been begun; the options below go before it")
    p.add_argument("--steps", type=int)
    p.add_argument("--time-limit-min", type=float, default=float("inf"), help="stop with a checkpoint after so long")
    p.add_argument("--labelled", type=Path, action="append", default=[], help="folder of labelled cases; repeatable")
    p.add_argument("--include", action="append", default=[], help="pattern of labelled cases to train on")
    p.add_argument("--unlabelled", type=Path, action="append", default=[], help="folder of scans (supervoxels)")
    p.add_argument("--label-maps", type=Path, action="append", default=[], help="folder of label maps (synthesised)")
    p.add_argument("--synthetic-weight", type=float, default=0.45, help="share of synthetic crops")
    p.add_argument("--labelled-weight", type=float, default=0.08, help="share of each --labelled folder")
    p.add_argument("--unlabelled-weight", type=float, default=0.2, help="share of each --unlabelled folder")
    p.add_argument("--label-map-weight", type=float, default=0.2, help="share of each --label-maps folder")
    p.add_argument("--optimiser", choices=("adamw", "muon"))
    p.add_argument("--precision", choices=("bf16", "fp32"))
    p.add_argument("--seed", type=int)
    p.add_argument("--device", default="auto")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--quiet", action="store_true", help="no progress bar")

    p = _command(commands, "gallery", _gallery, "draw what the synthetic data generator makes",
                 "famsam gallery gallery.png --count 12")
    p.add_argument("output", type=Path)
    p.add_argument("--count", type=int, default=12)
    p.add_argument("--size", type=int, default=96, help="edge of the crops in voxels")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")

    p = _command(commands, "convert", _convert, "published checkpoints to safetensors",
                 "famsam convert fastsam3d.pth fastsam3d.safetensors --teacher sam_med3d_turbo.pth")
    p.add_argument("source", type=Path)
    p.add_argument("destination", type=Path)
    p.add_argument("--teacher", type=Path, help="prompt encoder and decoder for a checkpoint that is an encoder alone")
    p.add_argument("--half", action="store_true", help="store the parameters as fp16")

    p = _command(commands, "bench", _bench, "time the three models and whole clicks beside the machine's limits",
                 "famsam bench --output bench.json --compare older.json\n"
                 "a GPU:   famsam bench --device cuda --runs 30 --ablation --batch 1 --batch 8 --batch 32")
    p.add_argument("--config", action="append", choices=("famsam", "fastsam3d", "sam_med3d"), help="only this one; "
                   "repeatable")
    p.add_argument("--runs", type=int, default=7)
    p.add_argument("--threads", type=int, default=0, help="torch threads; 0: as torch chooses")
    p.add_argument("--volume", type=int, nargs=3, default=(512, 512, 300), metavar=("X", "Y", "Z"))
    p.add_argument("--ablation", action="store_true", help="also FastSAM3D's encoder, sparse x flash attention")
    p.add_argument("--batch", type=int, action="append", default=[], help="also volumes a second with so many crops at "
                   "a time, on a GPU as CUDA graphs too; repeatable")
    p.add_argument("--scaling", action="store_true", help="also latency by size of the scan, points and segments "
                   "(takes minutes)")
    p.add_argument("--plot", type=Path, help="draw the scaling as a PNG")
    p.add_argument("--output", type=Path, help="write the JSON here as well")
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
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))


if __name__ == "__main__":
    sys.exit(main())
