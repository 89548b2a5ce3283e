"""Load on the server over loopback: some clients click for a while, and the latencies and the memory are told.

    python Testing/Benchmarks/bench_server.py --clients 8 --seconds 60 -o out/server.json

Every client works on a scan of its own through ``famsam.client``, as the Slicer module does in its remote mode: clicks
in and out, undo and redo, ten interactions for a segment, then the next segment. The server is a process of its own.
Memory is the server's resident set after the warm-up and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_ROOT = ROOT / "FaMSAMSlicer"
sys.path.insert(0, str(PACKAGE_ROOT))

from famsam.client import Connection, ConnectionLostError, RemoteSession  # noqa: E402
from famsam.errors import FamsamError  # noqa: E402
from famsam.volume import Volume  # noqa: E402

SERVE = (
    "import argparse, sys; from famsam.server.command import add_serve_arguments, serve; "
    "parser = argparse.ArgumentParser(); add_serve_arguments(parser); sys.exit(serve(parser.parse_args()))"
)
INTERACTIONS_A_SEGMENT = 10


def scan(seed: int, size: int = 160) -> Volume:
    """int16, warped blobs on a noisy ground, 1.5 mm."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices((size, size, size), dtype=np.float32)
    voxels = rng.normal(0, 20, (size, size, size)).astype(np.float32)
    for _ in range(12):
        centre, radius = rng.uniform(0.2, 0.8, 3) * size, rng.uniform(0.05, 0.15) * size
        inside = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2
        voxels += np.where(inside, np.float32(rng.uniform(100, 400)), np.float32(0))
    return Volume(voxels.astype(np.int16), np.diag([1.5, 1.5, 1.5, 1.0]))


def work(address: str, seed: int, over: threading.Event, latencies_ms: List[float], errors: List[str]) -> None:
    """One client, until it is over."""
    rng = np.random.default_rng(seed)
    session = RemoteSession(Connection(address))
    try:
        session.set_image(scan(seed))
        while not over.is_set():
            for step in range(INTERACTIONS_A_SEGMENT):
                point = rng.uniform(30, 210, 3)
                began_s = time.monotonic()
                if step == 6:
                    session.undo()
                elif step == 7:
                    session.redo()
                else:
                    session.add_point(point, positive=step % 3 != 2)
                latencies_ms.append(1000 * (time.monotonic() - began_s))
                if over.is_set():
                    break
            following = session.another()
            session.connection.request("DELETE", f"/v1/sessions/{session._session_id}")
            session = following
    except FamsamError as error:
        errors.append(str(error))


def resident_mib(process_id: int) -> float:
    """Of a process, on Linux."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def summary(latencies_ms: List[float]) -> Dict[str, float]:
    numbers = np.array(latencies_ms or [np.nan])
    found = {
        "interactions": len(latencies_ms),
        "p50_ms": np.percentile(numbers, 50),
        "p95_ms": np.percentile(numbers, 95),
    }
    return {name: round(float(value), 1) for name, value in found.items()}


def untrained_weights(folder: Path) -> str:
    from famsam.checkpoints import save_model
    from famsam.model.famsam import Famsam

    path = folder / "untrained.safetensors"
    save_model(Famsam(), path)
    return str(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--warm-up", type=int, default=120, help="interactions of each client until caches are full; then memory counts"
    )
    parser.add_argument("--model", default="default", help="weights file, 'default' or 'untrained'")
    parser.add_argument("-o", "--output", type=Path, help="write the result there as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="famsam-bench-") as folder:
        weights = untrained_weights(Path(folder)) if args.model == "untrained" else args.model
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)}
        command = [sys.executable, "-c", SERVE, "--port", str(port), "--model", weights]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            result = measure(f"http://127.0.0.1:{port}", server, args)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    return 1 if result["errors"] or result["memory_growth"] > 0.10 else 0


def measure(address: str, server: Any, args: argparse.Namespace) -> Dict[str, Any]:
    connection = Connection(address)
    while True:
        try:
            about = connection.get("/v1/server")
            break
        except ConnectionLostError:
            if server.poll() is not None:
                raise
            time.sleep(0.2)
    latencies_ms: List[List[float]] = [[] for _ in range(args.clients)]
    errors: List[str] = []
    over = threading.Event()
    threads = [
        threading.Thread(target=work, args=(address, seed, over, latencies_ms[seed], errors))
        for seed in range(args.clients)
    ]
    for thread in threads:
        thread.start()
    while min(len(of_one) for of_one in latencies_ms) < args.warm_up and not errors:
        time.sleep(0.1)
    warm_mib = resident_mib(server.pid)
    seen = [len(of_one) for of_one in latencies_ms]
    time.sleep(args.seconds)
    end_mib = resident_mib(server.pid)
    over.set()
    for thread in threads:
        thread.join()
    counted = [latency for of_one, first in zip(latencies_ms, seen) for latency in of_one[first:]]
    return {
        "clients": args.clients,
        "seconds": args.seconds,
        "model": about["model"],
        "device": about["device"],
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        **summary(counted),
        "errors": len(errors),
        "first_errors": errors[:3],
        "memory_after_warm_up_mib": round(warm_mib),
        "memory_at_end_mib": round(end_mib),
        "memory_growth": round(end_mib / warm_mib - 1, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
