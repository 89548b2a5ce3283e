"""``famsam propose`` and ``famsam train-proposals``: candidate masks without a prompt, and the head that makes them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Dict, List, Tuple

from .errors import ConfigError
from .outputs import WEIGHTS_SUFFIXES, check_output_file, check_output_folder


def add_propose_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam propose``, but for those that choose the model."""
    parser.add_argument("image", help='NIfTI, NRRD, MHA, a DICOM series folder, or "sample" (a head MR, extra "demo")')
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for masks and pictures, with no "
                        "candidates in it yet")
    parser.add_argument("--most", type=int, default=10, help="at most so many candidates")
    parser.add_argument("--views", type=int, default=9, help="views of the scan to look at; 1 for the whole scan only")
    parser.add_argument("--no-pictures", action="store_true", help="write the masks only")


def propose(args: argparse.Namespace) -> Tuple[Dict[str, Any], List[str]]:
    """Run ``famsam propose``; returns what it found as JSON-able data and as lines of text."""
    from .checkpoints import load_model
    from .picture import three_plane_picture
    from .proposing import ProposalOptions
    from .sample_data import sample_volume
    from .session import Session
    from .volume import read_volume, write_mask

    check_output_folder(args.output)
    earlier = sorted(path.name for path in args.output.glob("candidate_*"))
    if earlier:
        raise ConfigError(
            f"Expected a folder without candidates to write to, got {args.output}, which holds {len(earlier)} files of "
            f"them, such as {earlier[0]}. Name another folder, or remove them."
        )
    options = ProposalOptions(most=args.most, views=args.views)
    session = Session(load_model(args.model, args.device, args.precision, paused_share=args.pause))
    volume = sample_volume() if args.image == "sample" else read_volume(args.image)
    session.set_image(volume)
    candidates = session.propose(options)
    args.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, candidate in enumerate(candidates, 1):
        path = args.output / f"candidate_{number:02d}.nii.gz"
        write_mask(candidate.mask_zyx, volume, path)
        volume_ml = float(candidate.mask_zyx.sum()) * volume.grid.voxel_ml
        rows.append({"mask": str(path), "predicted_iou": candidate.quality, "volume_ml": volume_ml})
    if not args.no_pictures:  # what cannot be drawn must not cost the masks
        for number, (row, candidate) in enumerate(zip(rows, candidates), 1):
            picture = args.output / f"candidate_{number:02d}.png"
            title = f"candidate {number}: predicted IoU {candidate.quality:.2f}"
            three_plane_picture(volume, candidate.mask_zyx, [], [], picture, title=title)
            row["picture"] = str(picture)
    lines = [f"{row['mask']}: predicted IoU {row['predicted_iou']:.2f}, {row['volume_ml']:.1f} ml" for row in rows]
    return {"candidates": rows}, lines or ["The model found nothing to propose."]


def add_train_proposals_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``famsam train-proposals``, but for those that choose the model."""
    parser.add_argument("output", type=Path, help="the .safetensors file to write: the model with its new head")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--time-limit-min", type=float, default=math.inf, help="end the schedule after so long")
    parser.add_argument("--size", type=int, default=96, help="edge of the crops in voxels")
    parser.add_argument("--label-maps", type=Path, action="append", default=[], help="folder of label maps; repeatable")
    parser.add_argument("--labelled", type=Path, action="append", default=[], help="folder of labelled cases")
    parser.add_argument("--include", action="append", default=[], help="pattern of labelled cases to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: as many as are fastest")
    parser.add_argument("--store", default="fp32", choices=("fp32", "fp16", "int8", "int6", "int5"),
                        help="how to keep the parameters")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def train_proposals(args: argparse.Namespace) -> Tuple[Dict[str, Any], List[str]]:
    """Run ``famsam train-proposals``; returns what it found as JSON-able data and as lines of text."""
    from .checkpoints import load_model, save_model
    from .model.famsam import Famsam
    from .runtime import keep_threads
    from .training.proposals import ProposalTraining
    from .training.proposals import train_proposals as train
    from .training.trainer import MixedSource, synthetic_source

    check_output_file(args.output, WEIGHTS_SUFFIXES)
    keep_threads(args.threads)
    model = load_model(args.model, args.device, args.precision, paused_share=0.0)
    if not isinstance(model, Famsam):
        raise ConfigError(f"Expected a famsam model to train a proposal head on, got {model.name}.")
    config = ProposalTraining(steps=args.steps, size=args.size, seed=args.seed)
    sources, weights = [synthetic_source], [1.0]
    if args.label_maps or args.labelled:
        from .training.scans import load_label_maps, load_labelled

        sources += [load_label_maps(directory).draw for directory in args.label_maps]
        sources += [load_labelled(directory, args.include).draw for directory in args.labelled]
        weights += [0.6] * len(args.label_maps) + [0.4] * len(args.labelled)
    source = MixedSource(sources, weights)
    trained, scores = train(model, source, config, args.time_limit_min * 60, progress=not args.quiet)
    provenance = {"proposals": ", ".join(f"{name} {value:.3f}" for name, value in scores.items())}
    save_model(trained, args.output, provenance, args.store)
    summary = {"weights": str(args.output), **scores}
    return summary, [f"weights: {args.output}; on crops set aside: {provenance['proposals']}"]
