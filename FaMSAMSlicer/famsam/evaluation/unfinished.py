"""What an evaluation has found so far, in a file, so that one that is cut off goes on from there.

The first line tells how it is done, every other one holds a finished case, all as JSON.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from .dataset import Case
from .report import ClickRecord, StructureResult

_LOG = logging.getLogger(__name__)

UNFINISHED_NAME = "unfinished.jsonl"
"""The file's name in the folder of the report."""


class Unfinished:
    """The finished cases of an evaluation.

    Args:
        path: the file; what it holds of an evaluation that was done in another way is replaced by the first case.
        setup: JSON-able, all that results depend on besides the cases' files.
    """

    def __init__(self, path: Path, setup: Dict[str, Any]) -> None:
        self._path, self._setup = path, json.loads(json.dumps(setup))
        begun, *cases = _records(path) or [{}]
        different = [name for name in self._setup if begun.get(name) != self._setup[name]]
        self._goes_on = not different
        if begun and different:
            _LOG.warning("%s is of an evaluation of other %s: this one begins anew.", path, ", ".join(different))
        self._found = {record.get("case"): record for record in cases if self._goes_on}

    def results_of(self, case: Case) -> Optional[List[StructureResult]]:
        """What was found in a case; None if it is not finished, or its files have changed since."""
        record = self._found.get(case.name)
        try:
            if record is None or record["files"] != _stamps(case):
                return None
        except OSError:  # whoever reads the case says so
            return None
        return [StructureResult(**{**row, "clicks": list(_clicks(row))}) for row in record["results"]]

    def keep(self, case: Case, results: Sequence[StructureResult]) -> None:
        """Add a finished case with its results, unless a method failed in it, which may not happen again. A full disk,
        or a case that is gone by now, is only told."""
        if not results or any(result.failure is not None for result in results):
            return
        try:
            record = {"case": case.name, "files": _stamps(case), "results": [asdict(result) for result in results]}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a" if self._goes_on else "w", encoding="utf-8") as file:
                if not self._goes_on:
                    file.write(json.dumps(self._setup))
                file.write("\n" + json.dumps(record))  # begins a line, whatever was cut off before it
            self._goes_on = True
        except OSError as error:
            _LOG.warning("Case %s is lost if the evaluation is cut off: %s", case.name, error)


def _records(path: Path) -> List[Dict[str, Any]]:
    """The dictionaries of a file's lines, without those that were cut off; none if there is no file."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def _clicks(row: Dict[str, Any]) -> Iterator[ClickRecord]:
    for click in row["clicks"]:
        r, a, s = click["point_ras_mm"]
        yield ClickRecord((r, a, s), click["positive"], click["latency_ms"])


def _stamps(case: Case) -> List[List[int]]:
    """Size and time of change of a case's files."""
    return [[found.st_size, found.st_mtime_ns] for found in (case.image_path.stat(), case.labels_path.stat())]
