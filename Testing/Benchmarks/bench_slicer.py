"""From the click to the segment's modified event, in Slicer's real data model, on a volume of 512×512×300.

    python Testing/Benchmarks/bench_slicer.py [--threads 2] [--repeats 5] [--out FILE.json]

The time of a click is taken from the call that the effect makes for it to the event on which Slicer's views redraw;
drawing is not in it. In between the main thread does what it does in Slicer: it waits for the worker for some
milliseconds at a time, and keeps Python's interpreter lock while it waits for events. A "first" click is on a new image
with the model loaded and the image taken in, as the effect has it done when it is activated; "rested" ones are where
the pointer had rested long enough for everything to be prepared, or 3 mm beside that. Each time is shared out: the
model (encode and decode), the rest of the engine (crops and pasting), the extension (what is left, the wait for events
and Slicer's own writing included); ``main_thread_cpu_ms`` is how long a click keeps the application's window busy.
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
WAIT_S, POLL_MS = 0.006, 1  # as the effect has them
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


OFFSETS_MM = ((0, 0, 0), (12, 5, -6), (-10, 8, 9), (5, -12, -8))
FIRST_CLICKS = {"first_click": None, "first_click_rested": (0, 0, 0), "first_click_rested_beside": (2, -2, 1)}
"""Kind of first click, and by how many mm the pointer had rested beside it; None: nowhere."""


def run(repeats: int) -> dict:
    import host
    import numpy as np
    from FaMSAMSlicerLib.controller import Controller
    from FaMSAMSlicerLib.engine import Engine, ModelChoice

    engine = Engine()
    started = time.perf_counter()
    device = engine.warm_up(ModelChoice()).result()
    load_ms = (time.perf_counter() - started) * 1e3
    clicks: dict = {kind: [] for kind in (*FIRST_CLICKS, "next_click")}
    dices, ahead_ms = [], []
    for seed in range(repeats):
        voxels, center, organ = phantom(seed)
        for kind, beside in FIRST_CLICKS.items():
            host.scene()
            volume = host.volume(voxels, np.diag([*SPACING_XYZ_MM, 1.0]))
            node = host.segmentation(volume, "organ")
            controller = Controller(host.Effect(node, volume, "organ"), engine, lambda status: None)
            controller.warm_up().result()
            places = [tuple(float(v) for v in center + offset) for offset in OFFSETS_MM]
            if beside is not None:
                begun = time.perf_counter()
                controller.aim(tuple(float(v) for v in center + beside))
                polled(controller)
                ahead_ms.append((time.perf_counter() - begun) * 1e3)
            for number, place in enumerate(places):
                clicks["next_click" if number else kind].append(timed_click(controller, node, place))
            mask = host.segment_mask(node, "organ", SIZE_ZYX)
            dices.append(float(2 * (mask & organ).sum() / (mask.sum() + organ.sum())))
            controller.close()
    engine.close()
    return {
        **{
            kind: {share: _summary([click[share] for click in found]) for share in found[0]}
            for kind, found in clicks.items()
        },
        "encode_ahead_ms": _summary(ahead_ms),
        "load_model_ms": round(load_ms),
        "device": device,
        "dice_after_4_clicks": round(statistics.mean(dices), 3),
    }


def polled(controller) -> None:
    """Poll until there is nothing left to do."""
    import host

    while controller.poll(WAIT_S):
        host.wait_for_events(POLL_MS)


def timed_click(controller, node, place) -> dict:
    """Milliseconds of one click, shared out."""
    import slicer

    written = []
    event = slicer.vtkSegmentation.SourceRepresentationModified
    tag = node.AddObserver(event, lambda *_: written.append(time.perf_counter()))
    cpu, begun = time.thread_time(), time.perf_counter()
    controller.click(place)
    running = controller._running
    polled(controller)
    cpu = time.thread_time() - cpu
    node.RemoveObserver(tag)
    assert not controller.status.is_error, controller.status.message
    total, engine = (written[-1] - begun) * 1e3, running.future.result().timings_ms  # empty: all was worked out ahead
    model = engine.get("encode", 0.0) + engine.get("decode", 0.0)
    return {
        "total_ms": total,
        "model_ms": model,
        "rest_of_the_engine_ms": engine.get("total", 0.0) - model,
        "extension_ms": total - engine.get("total", 0.0),
        "main_thread_cpu_ms": cpu * 1e3,
    }


def _summary(values: list) -> dict:
    return {name: round(of(values), 1) for name, of in (("min", min), ("median", statistics.median), ("max", max))}


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
    report["targets_ms"] = {"first_click": 400, "next_click": 150}
    report |= {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0]}
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
