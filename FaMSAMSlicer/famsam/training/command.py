"""``famsam train``, ``distill``, ``compare`` and ``gallery``: arguments, and what each answers with.

Each command returns its summary (JSON-able) and the lines to print, or nothing in a process that does not lead.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from ..errors import ConfigError, MissingDependencyError
from ..outputs import PLOT_SUFFIXES, check_output_file, check_output_folder

if TYPE_CHECKING:
    import torch

    from .config import TrainConfig
    from .sample import Source
    from .trainer import Trainer

_LOG = logging.getLogger(__name__)

Answer = Optional[Tuple[Dict[str, Any], List[str]]]

TRAIN_EXAMPLE = """famsam train runs/first --steps 6000 --labelled cases/ --time-limit-min 120

Several GPUs: torchrun --nproc-per-node 4 -m -- famsam.cli train runs/first
Of several machines, each started with its own --node-rank, the folder of the first counts."""
DISTILL_EXAMPLE = "famsam distill runs/student --teacher sam_med3d_turbo.pth --labelled cases/"
COMPARE_EXAMPLE = """famsam compare adamw.json muon.json focal.json -o comparison/

A variant's weights afterwards: famsam train comparison/muon"""


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam train``."""
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("--start", help='weights that a new run starts from, a file or "default"; the network is '
                        "theirs, unless --config names one")
    _add_run_arguments(parser)
    _add_source_arguments(parser)


def add_distill_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam distill``."""
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("--teacher", type=Path, help="weights of any network of the family; kept by the run's folder")
    parser.add_argument("--student", choices=("famsam", "fastsam3d"), help="default: the teacher's kind, half as deep")
    parser.add_argument("--layer-fraction", type=float, help="share of the run for the layers, before the logits")
    _add_run_arguments(parser)
    _add_source_arguments(parser)


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam compare``."""
    parser.add_argument("configs", type=Path, nargs="+", help="JSON files like a run's config.json, a variant each")
    parser.add_argument("-o", "--output", type=Path, default=Path("comparison"), help="folder for runs, table, curves")
    parser.add_argument("--steps", type=int, help="budget of every variant")
    _add_machine_arguments(parser)
    _add_source_arguments(parser)


def add_gallery_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam gallery``."""
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--size", type=int, default=96, help="edge of the crops in voxels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="JSON like a run's config.json, complete or in part; by default "
                        "the run's own if it has been begun; the options below go before it")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--time-limit-min", type=float, default=float("inf"), help="stop with a checkpoint after so "
                        "long")
    parser.add_argument("--optimiser", choices=("adamw", "muon"))
    parser.add_argument("--precision", choices=("bf16", "fp32"))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw the crops, where a GPU "
                        "would wait for them; see also ahead in the configuration")
    _add_machine_arguments(parser)


def _add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labelled", type=Path, action="append", default=[], help="folder of labelled cases; "
                        "repeatable")
    parser.add_argument("--include", action="append", default=[], help="pattern of labelled cases to train on")
    parser.add_argument("--unlabelled", type=Path, action="append", default=[], help="folder of scans (supervoxels)")
    parser.add_argument("--label-maps", type=Path, action="append", default=[], help="folder of label maps "
                        "(synthesised)")
    parser.add_argument("--synthetic-weight", type=float, default=0.45, help="share of synthetic crops")
    parser.add_argument("--labelled-weight", type=float, action="append", help="share of each --labelled folder, or "
                        "one for all (default 0.08)")
    parser.add_argument("--unlabelled-weight", type=float, default=0.2, help="share of each --unlabelled folder")
    parser.add_argument("--label-map-weight", type=float, default=0.2, help="share of each --label-maps folder")


def train(args: argparse.Namespace) -> Answer:
    """Train to the end or to the time limit, and leave the averaged weights and the curve beside the checkpoint."""
    from ..checkpoints import load_model
    from . import team
    from .config import CONFIG_NAME, check_begun_by, config_of_run, read_config, read_model
    from .plots import learning_curve
    from .trainer import Trainer

    check_begun_by("train", args.run_directory)
    device = team.join(_machine(args))
    begun = args.run_directory / CONFIG_NAME
    path = args.config or (begun if begun.exists() else None)
    config, model_config = read_config(path) if path else config_of_run(args.run_directory)
    if args.start is not None and (path is None or read_model(path) is None):
        model_config = load_model(args.start, "cpu", "fp32").config
    config, model_config = team.given((_chosen(config, args), model_config))
    trainer = Trainer(args.run_directory, _source(args), config, model_config, device, args.start, args.workers)
    try:
        return _run(trainer, args, learning_curve)
    finally:
        trainer.pool.close()
        team.leave()


def distill(args: argparse.Namespace) -> Answer:
    """Distil to the end or to the time limit; leaves what ``train`` does.

    Raises:
        ConfigError: no teacher, or networks that do not go together.
    """
    from ..model.registry import default_config
    from . import team
    from .config import CONFIG_NAME, TrainConfig, check_begun_by, read_model, read_part
    from .distill import DistillConfig, Distiller
    from .plots import distillation_curve

    check_begun_by("distill", args.run_directory)
    device = team.join(_machine(args))
    begun = args.run_directory / CONFIG_NAME
    path = args.config or (begun if begun.exists() else None)
    config = TrainConfig(sizes=((1.0, 128, 1),))  # the only size that the published networks take
    student, how = None, DistillConfig()
    if path is not None:
        config, student, how = read_part(path, "train", config), read_model(path), read_part(path, "distill", how)
    if args.student is not None:
        student = default_config(args.student)
    chosen = {"teacher": args.teacher and str(args.teacher), "layer_fraction": args.layer_fraction}
    how = replace(how, **{name: value for name, value in chosen.items() if value is not None})
    config, student, how = team.given((_chosen(config, args), student, how))
    distiller = Distiller(args.run_directory, _source(args), how, config, student, device, args.workers)
    try:
        return _run(distiller, args, distillation_curve)
    finally:
        distiller.pool.close()
        team.leave()


def compare(args: argparse.Namespace) -> Answer:
    """Train every variant on the same budget, and draw up table and curves."""
    from .compare import compare as run_comparison
    from .config import read_config

    check_output_folder(args.output)
    device = _machine(args)
    variants: Dict[str, Tuple[TrainConfig, Any]] = {}
    for path in args.configs:
        if path.stem.lower() in map(str.lower, variants):  # their folders may be one on Windows and macOS
            raise ConfigError(f"Expected files of different names, which name the variants; got {path.stem} twice.")
        config, model_config = read_config(path)
        variants[path.stem] = (config if args.steps is None else replace(config, steps=args.steps), model_config)
    comparison = run_comparison(variants, args.output, _source(args), device, progress=not args.quiet)
    return vars(comparison), [comparison.to_markdown(), f"curves: {args.output / 'comparison.png'}"]


def gallery(args: argparse.Namespace) -> Answer:
    """Draw synthetic samples."""
    from ..runtime import choose_device
    from .plots import gallery as draw

    check_output_file(args.output, PLOT_SUFFIXES)
    draw(args.output, args.count, args.size, args.seed, choose_device(args.device))
    return {"picture": str(args.output)}, [f"picture: {args.output}"]


def _run(trainer: Trainer, args: argparse.Namespace, draw_curve: Any) -> Answer:
    from ..checkpoints import save_model
    from . import team

    trainer.run(args.time_limit_min * 60, progress=not args.quiet)
    if not team.leads():
        return None
    weights = Path(args.run_directory) / f"{trainer.model.name}.safetensors"
    provenance = {"steps": trainer.step, "seconds": round(trainer.seconds), "seed": trainer.config.seed}
    text = {name: str(value) for name, value in provenance.items()}
    save_model(trainer.averaged_model(), weights, text, stored="fp16")
    try:
        curve = draw_curve(args.run_directory)
    except MissingDependencyError as error:  # the run is worth more than its picture
        _LOG.warning("%s", error)
        curve = None
    steps = trainer.config.steps
    summary = {"step": trainer.step, "steps": steps, "weights": str(weights), "curve": curve and str(curve)}
    return summary, [f"step {trainer.step} of {steps}; weights: {weights}; curve: {curve}"]


def _machine(args: argparse.Namespace) -> torch.device:
    from ..runtime import choose_device, keep_threads

    keep_threads(args.threads)
    return choose_device(args.device)


def _chosen(config: TrainConfig, args: argparse.Namespace) -> TrainConfig:
    """A configuration with what the command line says in place of what it holds."""
    chosen = {"steps": args.steps, "optimiser": args.optimiser, "seed": args.seed, "precision": args.precision}
    return replace(config, **{name: value for name, value in chosen.items() if value is not None})


def _source(args: argparse.Namespace) -> Source:
    from .trainer import MixedSource, synthetic_source

    sources, weights = [synthetic_source], [args.synthetic_weight]
    if args.labelled or args.unlabelled or args.label_maps:
        from .scans import load_label_maps, load_labelled, load_unlabelled

        for directory in args.label_maps:
            sources.append(load_label_maps(directory).draw)
            weights.append(args.label_map_weight)
        for directory, weight in zip(args.labelled, _for_each(args.labelled_weight or [0.08], args.labelled)):
            sources.append(load_labelled(directory, args.include).draw)
            weights.append(weight)
        for directory in args.unlabelled:
            sources.append(load_unlabelled(directory).draw)
            weights.append(args.unlabelled_weight)
    return MixedSource(sources, weights)


def _for_each(weights: List[float], folders: List[Path]) -> List[float]:
    """A weight for every folder: those given, or the one given for all."""
    if len(weights) not in (1, len(folders)):
        raise ConfigError(
            f"Expected --labelled-weight once, or once for each of {len(folders)} --labelled, got {len(weights)}."
        )
    return weights * (len(folders) if len(weights) == 1 else 1)
