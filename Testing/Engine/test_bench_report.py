"""Comparing two reports."""

from __future__ import annotations

import json

import pytest
from famsam.bench import BenchReport, compare, comparison_lines, read_report
from famsam.cli import main
from famsam.errors import ConfigError


def timing(median, low, high):
    return {"median_ms": median, "min_ms": low, "max_ms": high, "spread_ms": 1.0, "runs": 5}


def report(encode, decode, threads=2, **others):
    configs = {"famsam": {"precision": "bf16", "encode": encode, "decode": decode}}
    return BenchReport({"threads": threads, "commit": "abc"}, {"copy_gib_s": {"fp32": 10.0}}, configs=configs, **others)


def test_only_what_lies_outside_the_others_range_is_faster_or_slower():
    old = report(timing(20, 18, 22), timing(10, 9, 12)).to_dict()
    new = report(timing(15, 14, 17.9), timing(10.5, 9, 14)).to_dict()
    rows = {row["name"]: row for row in compare(new, old)}
    assert rows["configs.famsam.encode"] == {
        "name": "configs.famsam.encode", "old": 20, "new": 15, "ratio": 0.75, "verdict": "faster"
    }
    assert rows["configs.famsam.decode"]["verdict"] == "same"
    assert rows["limits.copy_gib_s.fp32"]["ratio"] == 1 and rows["limits.copy_gib_s.fp32"]["verdict"] is None
    assert {row["name"]: row["verdict"] for row in compare(old, new)}["configs.famsam.encode"] == "slower"


def test_what_only_one_of_them_has_is_left_out():
    old = report(timing(20, 18, 22), timing(10, 9, 12)).to_dict()
    new = report(timing(20, 18, 22), timing(10, 9, 12), clicks={"first": timing(1, 1, 1)}).to_dict()
    assert not any("clicks" in row["name"] for row in compare(new, old) + compare(old, new))


def test_curves_are_compared_by_size_and_points():
    def scaling(*sizes):
        rows = [{"volume_xyz": [size] * 3, "mib": 1.0, "first": timing(size, size, size)} for size in sizes]
        return {"volumes": rows, "decode_by_points": [{"points": 5, "decode": timing(4, 4, 4)}]}

    encode, decode = timing(20, 18, 22), timing(10, 9, 12)
    old = report(encode, decode, scaling=scaling(8, 16)).to_dict()
    new = report(encode, decode, scaling=scaling(16, 32)).to_dict()
    new["scaling"]["volumes"][0]["first"] = timing(8, 8, 8)
    rows = {row["name"]: row["ratio"] for row in compare(new, old) if row["name"].startswith("scaling")}
    assert rows == {"scaling.volumes.16x16x16.first": 0.5, "scaling.decode_by_points.5.decode": 1.0}


def test_differences_between_the_machines_come_first():
    old, new = (report(timing(2, 1, 3), timing(2, 1, 3), threads).to_dict() for threads in (2, 1))
    lines = comparison_lines(new, old)
    assert lines[0] == "differs: threads was 2, is 1" and "commit abc" in lines[1]
    assert not any(line.startswith("differs") for line in comparison_lines(new, new))


def test_other_scans_and_precisions_are_named():
    encode, decode, first = timing(2, 1, 3), timing(2, 1, 3), timing(1, 1, 1)
    old = report(encode, decode, clicks={"volume_xyz": [512, 512, 300], "model": "famsam", "first": first}).to_dict()
    new = report(encode, decode, clicks={"volume_xyz": [64, 64, 64], "model": "famsam", "first": first}).to_dict()
    old["configs"]["famsam"].update(parameters=6_236_341, paused_share=0.0)
    new["configs"]["famsam"].update(parameters=3_018_959, paused_share=0.95, precision="fp32")
    assert comparison_lines(new, old)[:4] == [
        "differs: clicks volume_xyz was [512, 512, 300], is [64, 64, 64]",
        "differs: famsam precision was bf16, is fp32",
        "differs: famsam parameters was 6236341, is 3018959",
        "differs: famsam paused_share was 0.0, is 0.95",
    ]
    assert comparison_lines(new, report(encode, decode).to_dict())[0].startswith("differs: famsam precision")


def test_a_report_is_read_back(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(report(timing(2, 1, 3), timing(2, 1, 3)).to_dict()))
    assert read_report(path)["environment"] == {"threads": 2, "commit": "abc"}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"environment": 3, "configs": {}}', '{"environment": {}}'])
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"Expected.*old\.json"):
        read_report(path)


def test_the_command_reads_the_older_report_before_it_measures(tmp_path, capsys):
    assert main(["bench", "--compare", str(tmp_path / "none.json"), "--runs", "0"]) == 1
    assert "none.json" in capsys.readouterr().err
