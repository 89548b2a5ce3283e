"""From the click to the segment's modified event, in Slicer's real data model, on a volume of 512×512×300.

    python Testing/Benchmarks/bench_slicer.py [--threads 2] [--repeats 5] [--out FILE.json]

The time of a click is taken from the call that the effect makes for it to the event on which Slicer's views redraw,
with the application's poll of 5 ms in between; drawing is not in it. Each "first" is on a new image with the model
loaded and the image taken in, as the effect has it done when it is activated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "FaMSAMSlicer"), str(ROOT / "Testing" / "Slicer")]
POLL_S = 0.005
SIZE_ZYX = (300, 512, 512)
SPACING_XYZ_MM = (0.75, 0.75, 1.0)


def phantom(seed: int):
    """int16 voxels: a body with noise, and an ellipsoid organ in it; and the organ's centre and radii in mm."""
    import numpy as np

    rng = np.random.default_rng(seed)
    z, y, x = (np.arange(n, dtype=np.float32) * s for n, s in zip(SIZE_ZYX, SPACING_XYZ_MM[::-1]))
    center, radii = rng.uniform((150, 170, 130), (230, 220, 170)), np.array([45.0, 35.0, 40.0])
    noise = rng.normal(0, 12, (8, *SIZE_ZYX[1:])).astype(np.int16)
    voxels = np.tile(noise, (SIZE_ZYX[0] // 8 + 1, 1, 1))[: SIZE_ZYX[0]]
    body = ((x[None] - 190) / 170) ** 2 + ((y[:, None] - 190) / 120) ** 2 < 1
    voxels += np.where(body, 40, -1000).astype(np.int16)
    organ = (
        ((z[:, None, None] - center[2]) / radii[2]) ** 2
        + ((y[None, :, None] - center[1]) / radii[1]) ** 2
        + ((x[None, None, :] - center[0]) / radii[0]) ** 2
    ) < 1
    voxels[organ] += 90
    return voxels, center, organ


def run(repeats: int) -> dict:
    import host
    import numpy as np
    import slicer
    from FaMSAMSlicerLib.controller import Controller
    from FaMSAMSlicerLib.engine import Engine, ModelChoice

    engine = Engine()
    started = time.perf_counter()
    device = engine.warm_up(ModelChoice()).result()
    load_ms = (time.perf_counter() - started) * 1e3
    first, later, dices, beside = [], [], [], []
    for seed in range(repeats):
        host.scene()
        voxels, center, organ = phantom(seed)
        volume = host.volume(voxels, np.diag([*SPACING_XYZ_MM, 1.0]))
        node = host.segmentation(volume, "organ")
        controller = Controller(host.Effect(node, volume, "organ"), engine, lambda status: None)
        controller.warm_up().result()
        events = []
        node.AddObserver(
            slicer.vtkSegmentation.SourceRepresentationModified,
            lambda *_, events=events: events.append(time.perf_counter()),
        )
        for number, offset in enumerate([(0, 0, 0), (12, 5, -6), (-10, 8, 9), (5, -12, -8)]):
            events.clear()
            begun = time.perf_counter()
            controller.click(tuple(float(v) for v in center + offset))
            while controller.poll():
                time.sleep(POLL_S)
            assert not controller.status.is_error, controller.status.message
            (later if number else first).append((events[-1] - begun) * 1e3)
            beside.append((events[-1] - begun) * 1e3 - controller.status.engine_ms)
        mask = host.segment_mask(node, "organ", SIZE_ZYX)
        dices.append(float(2 * (mask & organ).sum() / (mask.sum() + organ.sum())))
        controller.close()
    return {
        "first_click_ms": _summary(first),
        "next_click_ms": _summary(later),
        "beside_the_engine_ms": _summary(beside),
        "load_model_ms": round(load_ms),
        "device": device,
        "dice_after_4_clicks": round(statistics.mean(dices), 3),
    }


def _summary(values: list) -> dict:
    return {"min": round(min(values)), "median": round(statistics.median(values)), "max": round(max(values))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    report = run(arguments.repeats)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    report |= {
        "threads": arguments.threads,
        "cpu": platform.processor() or platform.machine(),
        "commit": commit.strip(),
    }
    report |= {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0]}
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
