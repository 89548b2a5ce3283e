"""Where a model runs and in which precision: decided by what is there and by measurement."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import logging
import os
import platform
import time
from typing import TYPE_CHECKING, Any, Callable, ContextManager, Dict, List, Optional, Sequence

import torch
from torch import nn

from .errors import ConfigError
from .model import int8

if TYPE_CHECKING:
    from .model.base import PromptableModel

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORTHWHILE_SPEEDUP = 1.5
"""bf16 must multiply matrices this much faster than fp32 on a CPU to pay for the casts."""

FEWER_THREADS_SPEEDUP = 1.5
"""So much faster work must be with fewer threads for them to be chosen; what passes must not decide."""
SLOW_CALL_S = 0.5
"""A call to a model on the CPU that takes longer makes the number of threads be measured again,"""
MEASURED_AGAIN_S = 10.0
"""but not so soon after the last time; three times as long after it, more threads may be taken again in any case."""
SHORT_OPERATIONS = 40
"""In that work, beside a convolution."""

_STANDARD_THREADS = torch.get_num_threads()  # as PyTorch chose, unless somebody has already chosen
_measured_threads = {"count": _STANDARD_THREADS, "at_s": 0.0}  # the last measurement's choice, and when
_kept_threads = {"count": 0}  # what a user asked for; 0: nothing

logger = logging.getLogger(__name__)


def choose_device(device: str = "auto") -> torch.device:
    """The device to run on.

    Args:
        device: "auto" (a CUDA GPU that works, else the CPU), "cpu", "cuda", "cuda:1", "mps". Apple's GPU is taken only
            when asked for, since some 3D operators are still missing there.

    Raises:
        ConfigError: for another name, and for a device that is not there or does not work.
    """
    if device == "auto":
        try:
            return _usable(torch.device("cuda", 0)) if torch.cuda.is_available() else torch.device("cpu")
        except ConfigError as error:
            logger.warning("Falling back to the CPU: %s", error)
            return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(_unknown_device(device)) from error
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type == "cuda":
        return _usable(_existing_gpu(chosen))
    if chosen.type == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError(f"No Apple GPU can be used with PyTorch {torch.__version__} here; use device 'cpu'.")
        return _usable(chosen)
    raise ConfigError(_unknown_device(device))


def choose_precision(precision: str, device: torch.device, on_cpu: Sequence[str] = ("bf16",)) -> str:
    """The precision to compute in on ``device``: "fp32", "bf16", "fp16" or "int8".

    "auto" means bf16 (fp16 before compute capability 8.0) on a CUDA GPU, fp32 on Apple's, and on a CPU that of
    ``on_cpu`` which short measurements, made once a process, find worth its casts: int8 before bf16 before fp32.

    Raises:
        ConfigError: for another name, for fp16 on a CPU, and for int8 elsewhere or where its operators are missing.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        return _fastest_on_cpu(on_cpu) if device.type == "cpu" else "fp32"
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be 'auto' or one of {PRECISIONS}, got {precision!r}.")
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 is for GPUs; on the CPU use precision 'bf16' or 'fp32', or 'auto' to have it measured.")
    if precision == "int8" and (device.type != "cpu" or not int8.usable()):
        raise ConfigError(
            f"int8 needs a CPU and oneDNN's operators in PyTorch; device {str(device)!r} is none, or they are missing "
            "or wrong there. Use precision 'bf16' or 'fp32', or 'auto' to have it measured."
        )
    return precision


def compute_in(precision: str, model: PromptableModel) -> None:
    """Have a model whose weights are complete compute in a precision from now on.

    Args:
        precision: see ``choose_precision``; ``model.precision`` holds the choice.

    Raises:
        ConfigError: as ``choose_precision`` does.
    """
    if model.device.type == "cpu":
        _keep_memory_for_reuse()
    model.precision = choose_precision(precision, model.device, model.fast_on_cpu)
    if model.precision == "int8":
        int8.pack(model)
    if model.precision == "fp32" and model.device.type == "cpu":
        int8.compute_fp32_fast(model)


def use_fastest_threads() -> None:
    """Have PyTorch compute with ``thread_count()`` threads on the CPU from now on."""
    torch.set_num_threads(thread_count(torch.get_num_threads()))


def thread_count(standing: int) -> int:
    """With how many threads to compute on the CPU: fewer than standing where they are measured to be clearly faster.

    PyTorch takes one for every core it sees, too many where a container may use a part of them, where slow cores hold
    up fast ones, or where something else is busy. Measured once a process, in some tens of milliseconds.

    Args:
        standing: what ``torch.get_num_threads()`` is; a number chosen there, by ``keep_threads`` or by OMP_NUM_THREADS
            stays.
    """
    if standing != _STANDARD_THREADS or _is_kept(standing):
        return standing
    return _fastest_threads()


def keep_threads(count: int) -> None:
    """Have PyTorch compute with so many threads on the CPU, however many are measured to be faster.

    Args:
        count: of threads; 0: from now on as many as standing or measured, as if this had never been called.

    Raises:
        ConfigError: a negative number.
    """
    if count < 0:
        raise ConfigError(f"Expected 0 or more threads, got {count}.")
    _kept_threads["count"] = count
    if count:
        torch.set_num_threads(count)


def _is_kept(threads: int) -> bool:
    return threads == _kept_threads["count"] or "OMP_NUM_THREADS" in os.environ


def reconsider_threads(call_s: float) -> None:
    """Measure again with how many threads to compute, where something else may have begun or ceased to use the cores.

    Threads that wait for one another at every operation take ten times as long where one of them has to wait for its
    core. A number that somebody else chose stays, as for ``thread_count``.

    Args:
        call_s: seconds that a call to a model has just taken on the CPU.
    """
    standing, waited_s = torch.get_num_threads(), time.monotonic() - _measured_threads["at_s"]
    if standing not in (_STANDARD_THREADS, _measured_threads["count"]) or _is_kept(standing):
        return
    could_be_more = standing < _STANDARD_THREADS and waited_s > 3 * MEASURED_AGAIN_S
    if could_be_more or (standing > 1 and call_s > SLOW_CALL_S and waited_s > MEASURED_AGAIN_S):
        _fastest_threads.cache_clear()
        torch.set_num_threads(_fastest_threads())


def autocast(device: torch.device, precision: str) -> ContextManager[Any]:
    """A context in which matrix products and convolutions run in ``precision``; parameters keep their own.

    "int8" leaves it to the layers that were packed for it (see ``model.int8``), and gives the rest what is fastest.
    """
    if precision == "int8":
        precision = "bf16" if _bf16_pays_on_cpu() else "fp32"
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def cast_once(model: PromptableModel) -> PromptableModel:
    """A model that computes the same in its precision, but leaves ``autocast`` no weights to cast at every call.

    In half precision a copy that shares all but the weights of linear layers and convolutions with the model; else the
    model itself. Tables that its layers would turn before every product, they keep turned (``keep_rows``).
    """
    if model.precision not in ("bf16", "fp16"):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    for layer in copied.modules():
        if isinstance(layer, (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)):
            for name, weights in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(weights.detach().to(DTYPES[model.precision]), requires_grad=False))
        keep_rows = getattr(layer, "keep_rows", None)
        if keep_rows is not None:
            keep_rows(DTYPES[model.precision])
    return copied


def matmul_gflops(device: torch.device, precision: str, size: int = 512) -> float:
    """Measured speed of (size/2, size) @ (size, 2 size) matrix products in GFLOP/s, the best of four."""
    a = torch.randn(size // 2, size, device=device).to(DTYPES[precision])
    b = torch.randn(size, 2 * size, device=device).to(DTYPES[precision])
    seconds = []
    for _ in range(4):
        _synchronise(device)
        start = time.perf_counter()
        a @ b
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def describe() -> Dict[str, Any]:
    """What is installed, which device and precision would be used, and how fast they are (JSON-able)."""
    import famsam

    from .model.famsam import Famsam

    device = choose_device("auto")
    if device.type == "cpu":
        use_fastest_threads()
    devices = _devices()
    for entry in devices:
        here = torch.device(entry["device"])
        precisions = ("fp32", "bf16") if here.type == "cpu" else tuple(DTYPES)
        size = 1024 if here.type == "cpu" else 4096
        entry["matmul_gflops"] = {p: round(matmul_gflops(here, p, size), 1) for p in precisions}
    return {
        "famsam": {"version": famsam.__version__, "file": famsam.__file__},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("torch", "numpy", "SimpleITK", "nibabel", "flash_attn")},
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": choose_precision("auto", device, Famsam.fast_on_cpu),
        "devices": devices,
    }


def _existing_gpu(device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(
            f"Device {str(device)!r} was asked for, but there is no usable NVIDIA GPU: PyTorch {torch.__version__} "
            f"{build}. Use device 'cpu' or 'auto', or install a driver and a CUDA build of PyTorch."
        )
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise ConfigError(f"There is no 'cuda:{index}': the {count} GPUs here are 'cuda:0' to 'cuda:{count - 1}'.")
    return torch.device("cuda", index)


def _usable(device: torch.device) -> torch.device:
    """``device`` if a small product on it comes out right; a GPU may be too old for this build of PyTorch, or full."""
    try:
        ones = torch.ones(8, 8, device=device)
        if float((ones @ ones).sum()) == 512:
            return device
        problem = "a product of small matrices came out wrong"
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    raise ConfigError(f"Device {str(device)!r} is there but does not work with PyTorch {torch.__version__}: {problem}")


def _unknown_device(device: object) -> str:
    return f"device must be 'auto', 'cpu', 'cuda', 'cuda:<index>' or 'mps', got {device!r}."


def _fastest_on_cpu(allowed: Sequence[str]) -> str:
    half = "bf16" in allowed and _bf16_pays_on_cpu()
    if "int8" in allowed and int8.pays(torch.bfloat16 if half else torch.float32):
        return "int8"
    return "bf16" if half else "fp32"


@functools.cache
def _bf16_pays_on_cpu() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False  # convolutions in bf16 are slow without oneDNN, however fast products are
    cpu = torch.device("cpu")
    speeds = {"fp32": 0.0, "bf16": 0.0}
    for _ in range(4):  # in turns, so that what else runs for a moment does not decide
        for precision, speed in speeds.items():
            speeds[precision] = max(speed, matmul_gflops(cpu, precision))
    logger.info("Matrix products on the CPU, GFLOP/s: %s", speeds)
    return speeds["bf16"] >= WORTHWHILE_SPEEDUP * speeds["fp32"]


@functools.cache
def _fastest_threads() -> int:
    """The number of threads, of the standard one and its halves, with which work like a decode's takes least.

    That is a convolution and many short operations: the threads meet after each, which takes them milliseconds where
    something else keeps a core busy.
    """
    convolution = torch.nn.Conv3d(32, 32, 3, padding=1)
    x = torch.zeros(1, 32, 32, 32, 32)
    plane = torch.zeros(2**17)

    def work() -> None:
        convolution(x)
        for _ in range(SHORT_OPERATIONS):
            plane.add_(1.0)

    seconds: Dict[int, float] = {}
    count = _STANDARD_THREADS
    try:
        while count:
            torch.set_num_threads(count)
            seconds[count] = _seconds_of(work)
            count //= 2
    finally:
        torch.set_num_threads(_STANDARD_THREADS)
    best = min(seconds, key=lambda count: seconds[count])
    logger.info("A convolution and short operations on the CPU, seconds by threads: %s", seconds)
    clearly = FEWER_THREADS_SPEEDUP * seconds[best] <= seconds[_STANDARD_THREADS]
    _measured_threads.update(count=best if clearly else _STANDARD_THREADS, at_s=time.monotonic())
    return best if clearly else _STANDARD_THREADS


@torch.inference_mode()
def _seconds_of(work: Callable[[], Any]) -> float:
    """The least of several calls, of fewer if they take long; the first one does not count."""
    work()
    seconds: List[float] = []
    while len(seconds) < 6 and sum(seconds) < 0.1:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _keep_memory_for_reuse() -> None:
    """Have glibc keep blocks of some megabytes that are freed, up to about 60 MiB in all, for the next tensors.

    It adapts to the largest block that was freed, if that was below 32 MiB. Without one, it returns such blocks to the
    system and every tensor pays for fresh pages, a tenth of the time of a click. Nothing is touched here.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _devices() -> List[Dict[str, Any]]:
    found: List[Dict[str, Any]] = [{"device": "cpu", "name": platform.processor() or platform.machine()}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory_gib = round(properties.total_memory / 2**30, 1)
        found.append({"device": f"cuda:{index}", "name": properties.name, "memory_gib": memory_gib})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": platform.processor() or platform.machine()})
    return found


def _version(package: str) -> Optional[str]:
    """Version of an importable package, or None; asked of the package itself (Slicer hides some metadata)."""
    if importlib.util.find_spec(package) is None:
        return None
    return str(getattr(importlib.import_module(package), "__version__", "unknown"))
