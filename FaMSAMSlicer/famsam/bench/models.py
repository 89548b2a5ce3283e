"""Encode and decode of the three configurations, in batches and as CUDA graphs, and FastSAM3D's ablation."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Sequence

import torch
from torch import Tensor

from ..checkpoints import DEFAULT_WEIGHTS, load_model
from ..model import int8
from ..model.base import Embedding, PromptableModel
from ..model.config import attention_ablation
from ..model.famsam import Famsam
from ..model.registry import build_model, default_config
from ..recordings import cuda_graph, unrecorded
from ..runtime import autocast, cast_once, choose_precision, compute_in
from .machine import Limits, Work
from .timing import Call, Timing, gflop, measure

CONFIGS = ("famsam", "fastsam3d", "sam_med3d")
MIB = 2**20


def bundled_model(device: torch.device, precision: str, source: str = "default") -> PromptableModel:
    """The model whose clicks are timed; where the bundled weights are missing, one with untrained weights."""
    if source != "default" or DEFAULT_WEIGHTS.exists():
        return load_model(source, str(device), precision)
    return untrained_model("famsam", device, precision)


def untrained_model(name: str, device: torch.device, precision: str, config: Any = None) -> PromptableModel:
    """A configuration with untrained weights, as fast as trained ones; "auto" is what loading would choose."""
    model = build_model(name, config).to(device).eval().requires_grad_(False)
    compute_in(precision, model)
    return model


class ModelCalls:
    """One model with fixed inputs: the calls that are timed, and the least work in them.

    Args:
        model: in the precision that is to be timed.
        crop_B1ZYX: raw intensities, (batch, 1, 128, 128, 128); three clicks a crop are decoded, with previous logits.
    """

    def __init__(self, model: PromptableModel, crop_B1ZYX: Tensor) -> None:
        self.model, batch = model, len(crop_B1ZYX)
        with unrecorded(model):
            self._computing = cast_once(model) if model.device.type == "cuda" else model  # as recorded calls have it
        generator = torch.Generator().manual_seed(0)
        points = torch.rand(batch, 3, 3, generator=generator) * (model.crop_size - 1)
        self.points, self.labels = points.to(model.device), torch.tensor([[1, 1, 0]] * batch, device=model.device)
        self.raw, self.inside = crop_B1ZYX.to(model.device), torch.ones_like(crop_B1ZYX, dtype=torch.bool)
        self.inside = self.inside.to(model.device)
        self.crop = self.normalise()
        self.embedding = self.encode()
        self.previous = torch.zeros(batch, 1, *(model.mask_size,) * 3, device=model.device)
        self.previous = self.decode()[0].float()

    @torch.inference_mode()
    def normalise(self) -> Tensor:
        return self.model.normalise(self.raw, self.inside)

    @torch.inference_mode()
    def encode(self) -> Embedding:
        with autocast(self.model.device, self.model.precision), unrecorded(self._computing):
            return self._computing.encode(self.crop)

    def decode(self) -> Any:
        return self.decode_points(self.points, self.labels)

    @torch.inference_mode()
    def decode_points(self, points_BN3: Tensor, labels_BN: Tensor) -> Any:
        with autocast(self.model.device, self.model.precision), unrecorded(self._computing):
            return self._computing.decode(self.embedding, points_BN3, labels_BN, self.previous)

    def calls(self) -> Dict[str, Call]:
        return {"normalise": self.normalise, "encode": self.encode, "decode": self.decode}

    def work(self) -> Dict[str, Work]:
        """The least work of each call: its input, its output and the parameters of its half of the model, once."""
        model, precision = self.model, self.model.precision
        crop, embedding = self.crop.nbytes, _bytes_of(self.embedding)
        half = {"encode": 0, "decode": 0}
        for name, parameter in model.named_parameters():
            half["encode" if name.startswith(("encoder.", "image_encoder.")) else "decode"] += parameter.nbytes
        encode_mib = (crop + embedding + half["encode"]) / MIB
        decode_mib = (embedding + 2 * self.previous.nbytes + half["decode"]) / MIB
        with int8.in_floats(model), unrecorded(model):  # the operators for int8 are not known to what counts
            encode_gflop = gflop(lambda: model.encode(self.crop))
            both_gflop = gflop(lambda: model.decode(model.encode(self.crop), self.points, self.labels, self.previous))
        return {
            "normalise": Work((self.raw.nbytes + self.inside.nbytes + crop) / MIB),
            "encode": Work(encode_mib, encode_gflop, precision),
            "decode": Work(decode_mib, round(both_gflop - encode_gflop, 4), precision),
        }

    def found(self, timings: Mapping[str, Timing], limits: Limits) -> Dict[str, Any]:
        """What the report says about this model."""
        work = self.work()
        return {
            "precision": self.model.precision,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "paused_share": self.model.pausing.share if isinstance(self.model, Famsam) else 0.0,
            **{stage: limits.judged(timings[stage], work[stage]) for stage in work},
        }


def throughput(model: PromptableModel, crop_11ZYX: Tensor, batches: Sequence[int], runs: int) -> Dict[str, Any]:
    """Volumes a second, encode and decode, by batch size; on a CUDA device also as replayed CUDA graphs.

    What does not fit into memory, or cannot be captured, is reported as such.
    """
    found: Dict[str, Any] = {}
    for batch in batches:
        try:
            found[str(batch)] = _batch(model, crop_11ZYX, batch, runs)
        except torch.cuda.OutOfMemoryError as error:
            found[str(batch)] = {"failed": str(error).splitlines()[0]}
            torch.cuda.empty_cache()
    return found


def _batch(model: PromptableModel, crop_11ZYX: Tensor, batch: int, runs: int) -> Dict[str, Any]:
    on_gpu = model.device.type == "cuda"
    others = torch.cuda.memory_allocated(model.device) - sum(p.nbytes for p in model.parameters()) if on_gpu else 0
    calls = ModelCalls(model, crop_11ZYX.expand(batch, -1, -1, -1, -1).contiguous())
    timed: Dict[str, Call] = {"encode": calls.encode, "decode": calls.decode}
    failed: Dict[str, str] = {}
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
        for stage in ("encode", "decode"):
            try:
                timed[f"{stage} as a CUDA graph"] = captured(timed[stage], model.device)
            except RuntimeError as error:
                failed[stage] = str(error).splitlines()[0]
                torch.cuda.synchronize(model.device)
    timings = measure(timed, runs, model.device)
    rows = {name: {**t.to_dict(), "per_second": round(1000 * batch / t.median_ms, 2)} for name, t in timings.items()}
    peak = round((torch.cuda.max_memory_allocated(model.device) - others) / MIB, 1) if on_gpu else None
    return {**rows, "device_mib": peak, **({"not_captured": failed} if failed else {})}


def captured(call: Call, device: torch.device) -> Call:
    """A call recorded as a CUDA graph; what comes back replays it on the same tensors.

    Raises:
        RuntimeError: the call synchronises, or allocates in a way that cannot be captured.
    """
    replay, kept = cuda_graph(call, device)

    def replayed() -> Any:
        replay()
        return kept

    return replayed


def ablation(device: torch.device, crop_11ZYX: Tensor, limits: Limits, runs: int) -> Dict[str, Any]:
    """FastSAM3D's encoder with and without sparse and flash attention (the paper's Table 4): time and FLOPs.

    In fp32 on a CPU and in bf16 on a GPU, since flash attention needs half precision there; and there as CUDA graphs,
    since the names of the kernels take longer than the kernels.
    """
    precision = choose_precision("bf16" if device.type == "cuda" else "fp32", device)
    variants: Dict[str, ModelCalls] = {}
    for name, config in attention_ablation(default_config("fastsam3d")).items():
        variants[name] = ModelCalls(untrained_model("fastsam3d", device, precision, config), crop_11ZYX)
    calls: Dict[str, Call] = {name: variant.encode for name, variant in variants.items()}
    recorded: Dict[str, bool] = dict.fromkeys(calls, False)
    for name in calls if device.type == "cuda" else ():
        try:
            calls[name], recorded[name] = captured(calls[name], device), True
        except RuntimeError:
            torch.cuda.synchronize(device)
    timings = measure(calls, runs, device)
    return {
        name: {
            "precision": precision,
            "as_cuda_graph": recorded[name],
            **limits.judged(timings[name], variant.work()["encode"]),
        }
        for name, variant in variants.items()
    }


def _bytes_of(value: Any) -> int:
    """Of all tensors in a structure of dataclasses, tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes_of(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return sum(_bytes_of(item) for item in value)
    return _bytes_of(vars(value)) if hasattr(value, "__dict__") else 0
