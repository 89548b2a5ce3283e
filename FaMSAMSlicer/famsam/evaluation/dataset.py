"""The cases of a folder: scans with their labelled structures.

Three layouts are understood; every file may be anything that ``famsam.read_volume`` reads as a single file:

    DIR/<case>/image.nii.gz            DIR/imagesTr/<case>_0000.nii.gz     DIR/images/<case>.nii.gz
    DIR/<case>/labels.nii.gz           DIR/labelsTr/<case>.nii.gz          DIR/labels/<case>.nii.gz
    DIR/<case>/source.json (optional)  DIR/dataset.json (optional)         DIR/dataset.json (optional)

nnU-Net's ``_0000`` may be absent, as in the Medical Segmentation Decathlon. Labels lie on their image's grid; 0 is
background and every other value one structure. ``source.json`` may name them under "label_names" as
``{"1": "spleen"}``, ``dataset.json`` under "labels" likewise or, as nnU-Net has it, as ``{"spleen": 1}``.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from ..errors import ConfigError, DatasetError, VolumeError
from ..geometry import Grid
from ..image_files import read_image
from ..volume import Volume, read_volume

_LOG = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
GRID_TOLERANCE_MM = 1e-2
"""How far a corner of the labels may lie from the image's: float32 headers round large offsets by about a micron."""


@dataclass(frozen=True)
class DatasetOptions:
    """Which cases and structures of a folder are looked at."""

    include: Tuple[str, ...] = ()
    """Patterns of case names (``*`` and ``?`` as in a shell) of which one must match; empty: every case."""
    exclude: Tuple[str, ...] = ()
    """Patterns of case names to leave out, for example those that were trained on."""
    max_structures: Optional[int] = None
    """At most so many structures of a case, chosen evenly over their sizes so that small and large ones stay in."""
    min_voxels: int = 20
    """Structures of fewer voxels are left out."""

    def __post_init__(self) -> None:
        if self.max_structures is not None and self.max_structures < 1:
            raise ConfigError(f"Expected max_structures of at least 1 or none, got {self.max_structures}.")
        if self.min_voxels < 1:
            raise ConfigError(f"Expected min_voxels of at least 1, got {self.min_voxels}.")


@dataclass(frozen=True)
class Structure:
    """One labelled structure of a case."""

    label: int
    """Its value in the label map."""
    name: str
    """Its name, or "label 3" where nobody named it."""
    voxels: int
    """Its size."""


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory."""

    volume: Volume
    labels_zyx: np.ndarray
    """(z, y, x), an unsigned integer for every voxel of the volume."""
    structures: Tuple[Structure, ...]
    """Those to evaluate, by label."""

    def truth_zyx(self, structure: Structure) -> np.ndarray:
        """bool (z, y, x): the voxels of one structure."""
        return self.labels_zyx == structure.label


@dataclass(frozen=True)
class Case:
    """Where a scan and its labels are."""

    name: str
    image_path: Path
    labels_path: Path
    label_names: Dict[int, str] = field(default_factory=dict)

    def load(self, options: Optional[DatasetOptions] = None) -> LoadedCase:
        """Read the scan and its labels and choose the structures.

        Raises:
            DatasetError: a file cannot be read, the labels are not whole numbers from 0 or lie on another grid.
        """
        options = options or DatasetOptions()
        with self._explained(self.image_path):
            volume = read_volume(self.image_path)
        labels_zyx, grid = self.read_labels()
        if not volume.grid.matches(grid, GRID_TOLERANCE_MM):
            raise DatasetError(
                f"Case {self.name}: expected labels on the image's grid, {volume.grid}; got {grid}. Resample "
                f"{self.labels_path.name} onto {self.image_path.name} (nearest neighbour)."
            )
        return LoadedCase(volume, labels_zyx, tuple(self._choose(labels_zyx, options)))

    @contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except VolumeError as error:
            raise DatasetError(f"Case {self.name}: {path.name} cannot be used. {error}") from error

    def read_labels(self) -> Tuple[np.ndarray, Grid]:
        """The labels alone, (z, y, x) unsigned integers, and where they lie.

        Unlike a scan, a label map may hold one value only. NaN is background.

        Raises:
            DatasetError: the file cannot be read, or the labels are not whole numbers from 0.
        """
        with self._explained(self.labels_path):
            stored = read_image(self.labels_path)
            labels_zyx, grid = stored.voxels_zyx, Grid(stored.voxels_zyx.shape, stored.ras_from_ijk)
        if labels_zyx.dtype.kind not in "iuf":
            raise DatasetError(
                f"Case {self.name}: expected labels that are whole numbers, got {labels_zyx.dtype} in "
                f"{self.labels_path.name}. Is it a label map?"
            )
        if labels_zyx.dtype.kind == "f":
            labels_zyx = np.where(np.isnan(labels_zyx), 0, labels_zyx)
        return self._whole_numbers(labels_zyx), grid

    def _whole_numbers(self, labels_zyx: np.ndarray) -> np.ndarray:
        lowest, highest = float(labels_zyx.min()), float(labels_zyx.max())
        whole = labels_zyx.dtype.kind in "iu" or bool((labels_zyx == np.rint(labels_zyx)).all())
        if lowest < 0 or highest > np.iinfo(np.uint16).max or not whole:
            raise DatasetError(
                f"Case {self.name}: expected labels that are whole numbers from 0 to 65535, got values from "
                f"{lowest:g} to {highest:g} in {self.labels_path.name}. Is it a label map?"
            )
        return labels_zyx.astype(np.uint8 if highest < 256 else np.uint16, copy=False)

    def _choose(self, labels_zyx: np.ndarray, options: DatasetOptions) -> List[Structure]:
        counts = np.zeros(int(labels_zyx.max()) + 1, np.int64)
        for slab in labels_zyx:  # one at a time: bincount makes 64-bit copies
            counts += np.bincount(slab.ravel(), minlength=counts.size)
        structures = [
            Structure(label, self.label_names.get(label, f"label {label}"), voxels)
            for label, voxels in enumerate(counts.tolist())
            if label > 0 and voxels >= options.min_voxels
        ]
        most = options.max_structures
        if most is not None and len(structures) > most:
            by_size = sorted(structures, key=lambda structure: (-structure.voxels, structure.label))
            picks = np.linspace(0, len(by_size) - 1, most).round().astype(int)
            structures = sorted((by_size[pick] for pick in picks), key=lambda structure: structure.label)
        if not structures:
            _LOG.warning("Case %s has no structure of at least %d voxels.", self.name, options.min_voxels)
        return structures


def find_cases(directory: Union[str, Path], options: Optional[DatasetOptions] = None) -> List[Case]:
    """The cases of a folder in any of the three layouts, by name.

    Raises:
        DatasetError: no such folder, no case in it, an image without labels, or nothing left of the patterns.
    """
    options = options or DatasetOptions()
    folder = Path(directory)
    if not folder.is_dir():
        raise DatasetError(f"Expected a folder of cases, got {folder}, which is no folder.")
    cases = sorted(_paired_folders(folder) or _case_folders(folder), key=lambda case: case.name)
    if not cases:
        raise DatasetError(
            f"Found no case in {folder}. Expected <case>/image.nii.gz with <case>/labels.nii.gz, or nnU-Net's "
            "imagesTr/<case>_0000.nii.gz with labelsTr/<case>.nii.gz, or images/ and labels/ with equal file names."
        )
    kept = [
        case
        for case in cases
        if (not options.include or matches(case.name, options.include)) and not matches(case.name, options.exclude)
    ]
    if not kept:
        raise DatasetError(
            f"None of the {len(cases)} cases in {folder} is left after include={list(options.include)} and "
            f"exclude={list(options.exclude)}. The cases are called {', '.join(case.name for case in cases[:5])}, …"
        )
    return kept


def read_exclude_file(path: Union[str, Path]) -> Tuple[str, ...]:
    """Case names or patterns, one a line, of a text file; blank lines and what follows a ``#`` are left out.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()  # some editors write a mark before the text
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"Expected a text file with one case name a line, got {path}: {error}") from error
    names = (line.split("#", 1)[0].strip() for line in lines)
    return tuple(name for name in names if name)


def _case_folders(folder: Path) -> List[Case]:
    cases = []
    for case_folder in (entry for entry in folder.iterdir() if entry.is_dir()):
        image, labels = _image_file(case_folder, "image"), _image_file(case_folder, "labels")
        if image is None and labels is None:
            continue
        if image is None or labels is None:
            raise DatasetError(
                f"Case {case_folder.name}: expected image.nii.gz and labels.nii.gz in {case_folder}, got only "
                f"{(image or labels).name}."  # type: ignore[union-attr]
            )
        names = _label_names(case_folder / "source.json", "label_names")
        cases.append(Case(case_folder.name, image, labels, names))
    return cases


def _paired_folders(folder: Path) -> List[Case]:
    layouts = (("imagesTr", "labelsTr", "_0000"), ("imagesTr", "labelsTr", ""), ("images", "labels", ""))
    for images, labels, channel in layouts:
        if not (folder / images).is_dir() or not (folder / labels).is_dir():
            continue
        names = _label_names(folder / "dataset.json", "labels")
        cases = []
        for path in (folder / images).iterdir():
            suffix = next((suffix for suffix in IMAGE_SUFFIXES if path.name.endswith(channel + suffix)), None)
            if suffix is None or path.name.startswith("."):
                continue
            case_name = path.name[: -len(channel + suffix)]
            labels_path = _image_file(folder / labels, case_name)
            if labels_path is None:
                raise DatasetError(
                    f"Case {case_name}: expected {labels}/{case_name}{suffix} beside {images}/{path.name}, got none."
                )
            cases.append(Case(case_name, path, labels_path, names))
        if cases:
            return cases
    return []


def _image_file(folder: Path, stem: str) -> Optional[Path]:
    candidates = (folder / (stem + suffix) for suffix in IMAGE_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _label_names(path: Path, key: str) -> Dict[int, str]:
    """{1: "spleen"} from a JSON file's ``key``, whichever way round it is written there; {} without the file."""
    if not path.is_file():
        return {}
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8")).get(key, {})
        pairs = [(str(left), str(right)) for left, right in stored.items()]
    except (OSError, ValueError, AttributeError) as error:
        raise DatasetError(
            f'Expected JSON with label names as {{"{key}": {{"1": "spleen"}}}} in {path}: {error}'
        ) from error
    turned = [pair if pair[0].isdigit() else pair[::-1] for pair in pairs]
    return {int(label): name for label, name in turned if label.isdigit()}


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
