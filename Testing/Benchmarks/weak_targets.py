"""The targets that stay weak: a list, and one sheet with a picture of each whose scan may be shown.

    famsam evaluate CASES -o report/ --pictures pictures/
    python Testing/Benchmarks/weak_targets.py pictures/ -o weak.png --below 0.7 --include "sts_*" --include "msd_*"

``famsam evaluate`` names its pictures by the Dice after the last click, rounded to two digits, so the folder tells all.
Pictures of scans whose licence does not allow it should not be published: ``--include`` names the cases that may be.
"""

from __future__ import annotations

import argparse
import re
from fnmatch import fnmatch
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread


def weak_pictures(folder: Path, below: float, method: str) -> list[tuple[float, str, Path]]:
    """(Dice, case, picture) of every structure of one method below a Dice, the worst first; ends where there is no
    picture of the method."""
    called = re.sub(r"[^\w.-]+", "-", method)  # as in the pictures' names; it may hold "_", as a case's name may
    name = re.compile(rf"(\d\.\d\d)_(.+)_\d+_{re.escape(called)}\.png")
    found = [(match, path) for path in sorted(folder.glob("*.png")) if (match := name.fullmatch(path.name))]
    if not found:
        raise SystemExit(f"Expected pictures of the method {method!r} in {folder}, found none.")
    scored = [(float(match[1]), match[2], path) for match, path in found]
    return sorted(entry for entry in scored if entry[0] < below)


def sheet(pictures: list[Path], output: Path, columns: int = 2) -> None:
    """All pictures in one."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(6.0 * columns, 2.5 * rows), layout="constrained", facecolor="#0b0d10")
    FigureCanvasAgg(figure)
    for axes, path in zip(figure.subplots(rows, columns, squeeze=False).flat, pictures):
        axes.imshow(imread(path), interpolation="antialiased")
    for axes in figure.axes:
        axes.set_axis_off()
    figure.savefig(output, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder that famsam evaluate --pictures has filled")
    parser.add_argument("-o", "--output", type=Path, default=Path("weak.png"))
    parser.add_argument("--below", type=float, default=0.7)
    parser.add_argument("--method", default="famsam", help="as the report calls it")
    parser.add_argument("--include", action="append", default=[], help="pattern of cases that may be shown; repeatable")
    args = parser.parse_args()
    weak = weak_pictures(args.pictures, args.below, args.method)
    shown = [path for _, case, path in weak if any(fnmatch(case, pattern) for pattern in args.include or ["*"])]
    for score, case, path in weak:
        print(f"{score:.2f}  {case}  {path.name}{'' if path in shown else '  (not on the sheet)'}")
    if shown:
        sheet(shown, args.output)
        print(f"{len(shown)} of {len(weak)} targets below {args.below} on {args.output}")


if __name__ == "__main__":
    main()
