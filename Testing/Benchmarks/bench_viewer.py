"""From mouse-up to the changed overlay, in Chromium over loopback: what a click and a hover preview cost.

    python Testing/Benchmarks/bench_viewer.py -o out/viewer.json

The time ends when the changed box has been given to the graphics memory. Chromium draws in software here, on the cores
that the model needs, so WebGL's drawing calls are switched off (textures are still filled); ``--draw`` leaves them on,
which tells what a machine without any graphics hardware feels like. ``rest_p50_ms`` is what the page, the browser, HTTP
and the server add to the model's own time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "FaMSAMSlicer"), str(ROOT / "Testing" / "Viewer"), str(Path(__file__).parent)]

from bench_server import untrained_weights  # noqa: E402
from conftest import FLAGS, RunningServer, Tab  # noqa: E402

AXIAL = 2
NO_DRAWING = """
for (const call of ["drawArrays", "drawElements", "drawArraysInstanced", "drawElementsInstanced"])
  WebGL2RenderingContext.prototype[call] = () => {};
"""


def main() -> int:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="weights file, 'default' or 'untrained'")
    parser.add_argument("--clicks", type=int, default=12)
    parser.add_argument("--preview-seconds", type=float, default=8.0)
    parser.add_argument("--draw", action="store_true", help="with software drawing on the same cores")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("-o", "--output", type=Path, help="write the result there as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="famsam-bench-") as folder, sync_playwright() as playwright:
        weights = untrained_weights(Path(folder)) if args.model == "untrained" else args.model
        server = RunningServer(weights, precision="auto")
        server.start()
        browser = playwright.chromium.launch_persistent_context(
            f"{folder}/profile", executable_path=args.chromium, headless=True, args=FLAGS
        )
        try:
            tab = Tab(browser.new_page(), server.address)
            if not args.draw:
                tab.page.add_init_script(NO_DRAWING)
            tab.goto(server.address + "#sample")
            tab.until("!document.getElementById('add-segment').disabled")
            tab.page.select_option("#layout", "axial")
            tab.settled()
            result = measure(tab, args)
        finally:
            browser.close()
            server.stop()
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    return 0


def measure(tab: Tab, args: argparse.Namespace) -> Dict[str, Any]:
    rng = np.random.default_rng(0)
    model_ms: List[float] = []
    for number in range(args.clicks):
        angle = 2 * math.pi * number / args.clicks  # on a ring, so that no click falls on another's mark
        tab.click(AXIAL, 0.5 + 0.12 * math.cos(angle), 0.5 + 0.12 * math.sin(angle))
        model_ms.append(tab.get("famsam.lastTimings_ms.total ?? 0"))
        time.sleep(0.3 if number else 1.0)
    total_ms = np.array(tab.get("famsam.latencies_ms"))
    rest_ms = total_ms - np.array(model_ms)
    tab.page.keyboard.down("p")
    before, began_s = tab.get("famsam.looks.previews"), time.monotonic()
    while time.monotonic() - began_s < args.preview_seconds:
        tab.page.mouse.move(*tab.place(AXIAL, *(0.5 + rng.uniform(-0.05, 0.05, 2))))
        time.sleep(1 / 60)  # as often as a mouse tells
    rate = (tab.get("famsam.looks.previews") - before) / (time.monotonic() - began_s)
    tab.page.keyboard.up("p")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "software_drawing": args.draw,
        "load_average": os.getloadavg()[0],
        "first_click_ms": round(float(total_ms[0])),
        "next_click_p50_ms": round(float(np.median(total_ms[1:]))),
        "next_click_p95_ms": round(float(np.percentile(total_ms[1:], 95))),
        "model_p50_ms": round(float(np.median(model_ms[1:]))),
        "rest_p50_ms": round(float(np.median(rest_ms[1:]))),
        "previews_per_s": round(rate, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
