"""How many synthetic volumes a second the data engine makes, on the device, the processes and the threads given.

    python Testing/Benchmarks/train_data.py --count 24 --threads 1
    python Testing/Benchmarks/train_data.py --count 200 --device cuda --processes 4

A GPU waits most of the time for one process to name the next operation, so that several of them share it well.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from typing import Any, Tuple

import torch
import torch.multiprocessing
from famsam.runtime import choose_device
from famsam.training.synthetic import synthetic_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="volumes of each process")
    parser.add_argument("--size", type=int, default=128, help="edge in voxels")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    context = torch.multiprocessing.get_context("spawn")
    ready, times = context.Barrier(args.processes), context.SimpleQueue()
    makers = [context.Process(target=make, args=(args, part, ready, times)) for part in range(args.processes)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    if any(maker.exitcode for maker in makers):
        raise SystemExit("A process failed, see above.")
    walls, cpus = zip(*(times.get() for _ in makers))
    made = args.count * args.processes
    print(json.dumps({
        "volumes": made,
        "size": args.size,
        "per_second": round(made / max(walls), 2),
        "per_cpu_second": round(made / sum(cpus), 2),
        "device": str(choose_device(args.device)),
        "processes": args.processes,
        "threads": args.threads,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }))


def make(args: argparse.Namespace, part: int, ready: Any, times: Any) -> None:
    """One process: makes its volumes once all are ready, and tells the seconds (elapsed, of the processor)."""
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    float(synthetic_sample(args.size, -1, device).image_ZYX.sum())
    ready.wait(300)
    start = _now()
    for number in range(args.count):
        sample = synthetic_sample(args.size, part * args.count + number, device)
    float(sample.image_ZYX.sum())  # waits for the device
    times.put(tuple(end - begun for begun, end in zip(start, _now())))


def _now() -> Tuple[float, float]:
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
