"""Several processes that train one network together, as ``torchrun`` starts them; one process is a team of one.

The processes may be on several machines. What the leading process is told, and the run's folder that it sees, counts.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, List, Optional, Tuple, TypeVar, Union

import torch
import torch.distributed as dist
from torch import nn

from ..errors import CheckpointError

_T = TypeVar("_T")


def join(device: torch.device) -> torch.device:
    """Join the team that ``torchrun`` started, if it did; the device that this process is to train on.

    Args:
        device: what was asked for; of GPUs, each process of a machine takes its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Leave the team, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def part() -> Tuple[int, int]:
    """(index of this process, processes in the team)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def leads() -> bool:
    """Whether this is the process that writes files and speaks."""
    return part()[0] == 0


def shared(learner: nn.Module) -> nn.Module:
    """The module to call so that gradients become the team's mean."""
    if part()[1] == 1:
        return learner
    # Which parameters a step needs depends on its prompts.
    return nn.parallel.DistributedDataParallel(learner, find_unused_parameters=True)


def agreed(value: bool, device: torch.device) -> bool:
    """What the leading process thinks."""
    return bool(told(float(value), device))


def told(value: float, device: torch.device) -> float:
    """The leading process's number."""
    if part()[1] == 1:
        return value
    number = torch.tensor(value, device=device)
    dist.broadcast(number, 0)
    return float(number)


def given(value: _T) -> _T:
    """The leading process's value, of any kind."""
    if part()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def file_of_leader(path: Path) -> Optional[Union[Path, BinaryIO]]:
    """Where to read the file that the leading process sees at a path; None if it sees none.

    Raises:
        CheckpointError: the leading process sees none, and another one does; in all processes.
    """
    rank, count = part()
    if count == 1:
        return path if path.exists() else None
    seen: List[bool] = [False] * count
    dist.all_gather_object(seen, path.exists())
    if any(seen) and not seen[0]:
        raise CheckpointError(
            f"Expected {path} where the leading process (rank 0) runs, got it on rank {seen.index(True)} only. Start "
            "with that machine as node rank 0, copy the run's folder, or give another one."
        )
    content = given(path.read_bytes() if seen[0] and rank == 0 else None)
    return None if content is None else io.BytesIO(content)
