from __future__ import annotations

import json
import math
import sys

import pytest
from famsam.errors import MissingDependencyError
from famsam.evaluation.report import ClickRecord, Report, StructureResult, describe_environment


def result(method, case, label, dice, latencies_ms, failure=None, clicks=5):
    made = StructureResult(method, case, label, f"label {label}", voxels=100, volume_ml=0.1, failure=failure)
    made.clicks = [ClickRecord((1.0, 2.0, 3.0), True, latency_ms) for latency_ms in latencies_ms]
    made.dice = list(dice)
    made.nsd = [value / 2 for value in dice]
    made.hausdorff95_mm = [10 - value for value in dice]
    made.fill(clicks, (0.80, 0.90))
    return made


@pytest.fixture
def report():
    return Report(
        results=[
            result("ours", "one", 1, [0.5, 0.8, 0.9, 0.9, 0.95], [100, 10, 20, 30, 40]),
            result("ours", "one", 2, [0.7, 1.0], [200, 50]),
            result("ours", "two", 1, [0.2, 0.2, 0.2, 0.2, 0.2], [300, 60, 70, 80, 90]),
            result("theirs", "one", 1, [0.4], [5], failure="ValueError at click 2: no"),
            result("theirs", "one", 2, [0.8] * 5, [5] * 5),
            result("theirs", "two", 1, [], [], failure="ValueError at click 1: no"),
        ],
        clicks=5,
        tolerance_mm=2.0,
        options={"directory": "scans"},
        environment=describe_environment(),
    )


def test_fill_carries_the_last_score_on_and_counts_clicks():
    perfect = result("ours", "one", 2, [0.7, 1.0], [200, 50])
    assert perfect.dice == [0.7, 1, 1, 1, 1]
    assert perfect.clicks_to_dice == {"0.80": 2, "0.90": 2}
    failed = result("ours", "one", 2, [0.85], [200], failure="no")
    assert failed.dice == [0.85, 0, 0, 0, 0]
    assert failed.hausdorff95_mm[1] == math.inf
    assert failed.clicks_to_dice == {"0.80": 1, "0.90": 6}


def test_summary(report):
    ours = report.summary("ours")
    assert ours["dice"] == pytest.approx([0.4, 0.55, 0.575, 0.575, 0.5875])
    assert ours["nsd"][0] == pytest.approx(0.2)
    assert ours["clicks_to_dice"] == pytest.approx({"0.80": (2 + 6) / 2, "0.90": ((3 + 2) / 2 + 6) / 2})
    assert ours["reached_dice"] == pytest.approx({"0.80": 2 / 3, "0.90": 2 / 3})
    assert ours["first_click_ms"] == {"median": 200, "p95": pytest.approx(290)}
    assert ours["later_click_ms"]["median"] == 50
    assert (ours["cases"], ours["structures"], ours["failures"]) == (2, 3, 0)
    theirs = report.summary("theirs")
    assert theirs["dice"][:2] == pytest.approx([0.3, 0.2])
    assert theirs["failures"] == 2


def test_json_is_strict_and_complete(report, tmp_path):
    written = report.write(tmp_path / "new" / "folder", plot=False)
    assert [path.name for path in written] == ["evaluation.json", "evaluation.md"]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    stored = json.loads(written[0].read_text(encoding="utf-8"), parse_constant=refuse)
    assert stored["clicks"] == 5
    assert stored["options"] == {"directory": "scans"}
    assert stored["summary"]["ours"]["dice"] == pytest.approx(report.summary("ours")["dice"])
    assert stored["cases"]["theirs"]["two"]["dice"] == [0] * 5
    assert len(stored["structures"]) == 6
    assert stored["structures"][0]["clicks"][0] == {
        "point_ras_mm": [1, 2, 3],
        "positive": True,
        "latency_ms": 100,
    }
    assert stored["structures"][5]["hausdorff95_mm"] == [None] * 5
    assert stored["structures"][5]["failure"] == "ValueError at click 1: no"
    assert {"python", "famsam", "numpy"} <= set(stored["environment"]["versions"])
    assert stored["environment"]["hardware"]["cores"] >= 1


def test_markdown(report):
    lines = report.to_markdown().splitlines()
    assert lines[0] == "# Evaluation: 2 cases, 3 structures"
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header, rows = table[0], {row[0]: row for row in table[2:4]}
    assert header[:7] == ["method", "Dice@1", "Dice@3", "Dice@5", "NSD@1", "NSD@3", "NSD@5"]
    assert rows["ours"] == [
        "ours", "0.400", "0.575", "0.588", "0.200", "0.287", "0.294", "4.0", "4.2", "200 (290) ms", "50 (86) ms", "0",
    ]  # fmt: skip
    assert rows["theirs"][-1] == "2"
    assert {len(row) for row in table[:4]} == {12}
    cases = {row[0]: row for row in table[5:]}
    assert cases["one"] == ["one", "2", "0.60", "0.95", "0.97", "0.60", "0.40", "0.40"]


def test_plot(report, tmp_path):
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    written = report.write(tmp_path)
    assert written[-1].name == "evaluation.png"
    assert written[-1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_without_matplotlib_says_how_to_install_it_and_keeps_the_rest(report, tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "famsam\[plots\]"'):
        report.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "evaluation.md"]
