"""How many synthetic volumes a second the data engine makes, on the device and the threads given.

    python Testing/Benchmarks/train_data.py --count 24 --threads 1
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import torch
from famsam.runtime import choose_device
from famsam.training.synthetic import synthetic_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--size", type=int, default=128, help="edge in voxels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    synthetic_sample(args.size, args.count, device)
    wall, cpu = time.perf_counter(), time.process_time()
    for seed in range(args.count):
        sample = synthetic_sample(args.size, seed, device)
    float(sample.image_ZYX.sum())  # waits for the device
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({
        "volumes": args.count,
        "size": args.size,
        "per_second": round(args.count / wall, 2),
        "per_cpu_second": round(args.count / cpu, 2),
        "device": str(device),
        "threads": args.threads,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
