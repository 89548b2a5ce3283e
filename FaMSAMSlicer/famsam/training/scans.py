"""Real scans and real label maps as sources of training crops.

A labelled scan gives its structures, a scan without labels the supervoxels of watersheds at several scales (as in
nnInteractive, Isensee et al. 2025) and its connected tissues, a label map without a scan its anatomy, rendered
synthetically.
"""

from __future__ import annotations

import fnmatch
import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator, List, Sequence, Tuple, Union

import cc3d
import numpy as np
import SimpleITK as sitk
import torch

from ..errors import DatasetError, VolumeError
from ..evaluation.dataset import IMAGE_SUFFIXES, Case, DatasetOptions, find_cases
from ..geometry import CanonicalFrame, Grid
from ..resample import CropBox, extract_crop
from ..volume import read_volume
from . import heads
from .bending import drawn, wider
from .lesions import LESION_LABELS, WHITE_MATTER, Lesions, parents_of
from .sample import Dice, Sample
from .synthetic import degrade, render, render_means
from .targets import MIN_VOXELS

_LOG = logging.getLogger(__name__)

PSEUDO_LABEL_SPACING_MM = 1.5
SUPERVOXEL_LEVELS = (0.02, 0.06, 0.15)
"""Watershed depths as fractions of the range of gradient magnitudes: small, middling and large supervoxels."""
TISSUE_THRESHOLDS = (2, 3, 4)
"""Numbers of thresholds that part a scan into tissues, from coarse to fine."""
LEAST_EDGE = 4
"""Voxels that ITK's recursive filters want along every axis; the outer slice of a thinner scan is repeated."""
BEND_CHANCE, BEND_CHANCE_OF_LABELS = 0.4, 0.8
"""How often a crop of a scan, and one of a label map without a scan, is bent."""
LIFELIKE_CHANCE, STRIPPED_CHANCE = 0.65, 0.45
"""How often a head's label map is rendered as MR scans show heads, and then without its skull."""
DISEASED_CHANCE, LESIONS_ALONE_CHANCE = 0.6, 0.8
"""How often a head that is rendered so has lesions, and how often these are then all that there is to click on."""
CALM_CHANCE = 0.4
"""How often there is little noise and texture outside all structures of a label map."""


@dataclass
class Anatomy:
    """A label map with the grid it lies on and its connected pieces.

    Attributes:
        labels_zyx: canonical axes; 0 is no structure.
        centres_zyx, extents_mm: of each piece, (P, 3) voxels and (P,) millimetres.
        weights: chance of each piece, even over the logarithm of the size.
    """

    labels_zyx: np.ndarray
    grid: Grid
    centres_zyx: np.ndarray
    extents_mm: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, labels_zyx: np.ndarray, grid: Grid) -> Anatomy:
        pieces = cc3d.connected_components(np.ascontiguousarray(labels_zyx), connectivity=6)
        statistics = cc3d.statistics(pieces)
        counts = statistics["voxel_counts"][1:]
        keep = np.flatnonzero(counts >= MIN_VOXELS)
        if len(keep) == 0:
            raise DatasetError(f"Expected a structure of at least {MIN_VOXELS} voxels in the label map, found none.")
        boxes = [statistics["bounding_boxes"][i + 1] for i in keep]
        extents = [max((s.stop - s.start) * d for s, d in zip(box, grid.spacing_zyx_mm)) for box in boxes]
        logs = np.log(counts[keep])
        histogram, edges = np.histogram(logs, bins=5)
        weights = 1.0 / histogram[np.clip(np.digitize(logs, edges[1:-1]), 0, 4)]
        centres = np.asarray(statistics["centroids"])[keep + 1]
        return cls(labels_zyx, grid, centres, np.asarray(extents), weights)

    def draw_box(self, size: int, dice: Dice) -> CropBox:
        """A crop in which a random piece spans a fifth to nearly the whole width, not too far from the middle."""
        piece = dice.pick(self.weights.tolist())
        return self.box_around(self.centres_zyx[piece], float(self.extents_mm[piece]), size, dice)

    def box_around(self, centre_zyx: np.ndarray, extent_mm: float, size: int, dice: Dice) -> CropBox:
        """The same for what is there, or will be."""
        span = dice.log_uniform(0.2 * size, 0.9 * size)
        finest = 0.4 * float(np.median(self.grid.spacing_zyx_mm))
        spacing = float(np.clip(extent_mm / span, finest, 5.0))
        jitter = 0.25 * size * spacing / np.asarray(self.grid.spacing_zyx_mm)
        offset = np.array([dice.uniform(-1, 1) for _ in range(3)])
        return CropBox(tuple(centre_zyx + offset * jitter), spacing, size)


def crop_labels(labels_zyx: np.ndarray, grid: Grid, box: CropBox) -> np.ndarray:
    """Nearest label at every crop voxel, 0 outside, (Z, Y, X) int64."""
    scale, offset = box.index_from_crop(grid)
    indices = [np.rint(offset[a] + scale[a] * np.arange(box.size)).astype(int) for a in range(3)]
    inside = [(index >= 0) & (index < n) for index, n in zip(indices, labels_zyx.shape)]
    clipped = [index.clip(0, n - 1) for index, n in zip(indices, labels_zyx.shape)]
    crop = labels_zyx[np.ix_(*clipped)].astype(np.int64)
    crop *= inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
    return crop


class LabelledScans:
    """Crops of scans whose structures are labelled, by people or as supervoxels."""

    def __init__(self, scans: Sequence[Tuple[np.ndarray, List[Anatomy]]]) -> None:
        self.scans = list(scans)

    def draw(self, size: int, dice: Dice) -> Sample:
        voxels, anatomies = self.scans[dice.integer(0, len(self.scans) - 1)]
        anatomy = anatomies[dice.integer(0, len(anatomies) - 1)]
        box = anatomy.draw_box(size, dice)
        bending = drawn(size, dice, BEND_CHANCE)
        if bending is not None:
            box = replace(box, size=wider(size))
        image, inside = extract_crop(voxels, anatomy.grid, box)
        labels = torch.from_numpy(crop_labels(anatomy.labels_zyx, anatomy.grid, box))
        low, high = image[inside].min() if inside.any() else 0.0, image.max()
        image = (image - low) / max(float(high - low), 1e-6)
        if bending is not None:
            image, inside, labels = (part.to(dice.device) for part in (image, inside, labels))
            image, inside, labels = bending.image(image, inside), bending.mask(inside), bending.labels(labels)
        if dice.chance(0.3):
            image = degrade(image.to(dice.device), dice)
        return Sample(image.to(dice.device), inside.to(dice.device), labels.to(dice.device))


class SynthesisedLabelMaps:
    """Crops of real label maps with synthetic intensities: random ones, or of heads as an MR scan shows them, some of
    these with lesions."""

    def __init__(self, anatomies: Sequence[Anatomy]) -> None:
        self.anatomies = list(anatomies)
        self.are_heads = [heads.is_head(anatomy.labels_zyx) for anatomy in self.anatomies]

    def draw(self, size: int, dice: Dice) -> Sample:
        number = dice.integer(0, len(self.anatomies) - 1)
        anatomy = self.anatomies[number]
        lifelike = self.are_heads[number] and dice.chance(LIFELIKE_CHANCE)
        lesions = Lesions(dice) if lifelike and dice.chance(DISEASED_CHANCE) else None
        if lesions is None:
            box = anatomy.draw_box(size, dice)
        else:
            white = np.flatnonzero(np.isin(anatomy.labels_zyx, WHITE_MATTER))
            place = np.unravel_index(white[dice.integer(0, len(white) - 1)], anatomy.labels_zyx.shape)
            box = anatomy.box_around(np.array(place), lesions.width_mm, size, dice)
        bending = drawn(size, dice, BEND_CHANCE_OF_LABELS)
        if bending is not None:
            box = replace(box, size=wider(size))
        labels = crop_labels(anatomy.labels_zyx, anatomy.grid, box)
        if bending is not None:
            labels = bending.labels(torch.from_numpy(labels).to(dice.device)).cpu().numpy()
        if lifelike and dice.chance(STRIPPED_CHANCE):
            labels = heads.without_skull(labels)
        if lesions is not None:
            labels = lesions.draw(torch.from_numpy(labels).to(dice.device), box.spacing_mm, dice).cpu().numpy()
        present, compact = np.unique(labels, return_inverse=True)
        compact = compact.reshape(labels.shape) + (1 if present[0] > 0 else 0)
        labels_ZYX = torch.from_numpy(compact).to(dice.device)
        names = ([0] if present[0] > 0 else []) + present.tolist()
        parents = parents_of(names)
        if lifelike:
            means = heads.tissue_means(names, dice)
            image, inside = render_means(labels_ZYX, (means, False), dice)
        else:
            image, inside = render(labels_ZYX, parents, dice)
        if dice.chance(CALM_CHANCE):
            image = _calmed(image, labels_ZYX == 0, dice.uniform(0.0, 0.3))
        own = [number for number, name in enumerate(names) if name in LESION_LABELS]
        if own and dice.chance(LESIONS_ALONE_CHANCE):
            labels_ZYX = torch.where(torch.isin(labels_ZYX, torch.tensor(own, device=dice.device)), labels_ZYX, 0)
        return Sample(image, inside, labels_ZYX, parents)


def _calmed(image_ZYX: torch.Tensor, where_ZYX: torch.Tensor, share: float) -> torch.Tensor:
    """An image that varies only by a share of what it did in a part of it: in air, or where a skull was removed."""
    middle = image_ZYX[where_ZYX].mean()
    return torch.where(where_ZYX, middle + share * (image_ZYX - middle), image_ZYX)


def load_labelled(directory: Union[str, Path], include: Sequence[str] = ()) -> LabelledScans:
    """Scans with labels from a folder of cases; ``include`` holds patterns of case names (all if empty).

    Here and in the next two, what cannot be read or has no structure to click on is left out with a warning.

    Raises:
        DatasetError: nothing is left.
    """
    scans = []
    for case in find_cases(directory, DatasetOptions(include=tuple(include))):
        with _or_left_out(f"Case {case.name}"):
            loaded = case.load()
            frame = loaded.volume.canonical
            labels = np.ascontiguousarray(frame.to_canonical(loaded.labels_zyx))
            voxels = np.ascontiguousarray(frame.to_canonical(loaded.volume.voxels_zyx))
            scans.append((voxels, [Anatomy.of(labels, frame.grid)]))
    if not scans:
        raise DatasetError(f"Expected cases with labelled structures in {directory}, found none.")
    return LabelledScans(scans)


def load_unlabelled(directory: Union[str, Path], include: Sequence[str] = ()) -> LabelledScans:
    """Scans without labels, with supervoxels at three scales as structures; ``include``: patterns of file names.

    Raises:
        DatasetError: nothing is left.
    """
    scans = []
    for path in _images(directory, include):
        with _or_left_out(path.name):
            volume = read_volume(path)
            voxels = np.ascontiguousarray(volume.canonical.to_canonical(volume.voxels_zyx))
            anatomies = pseudo_labels(voxels, volume.canonical.grid)
            scans.append((voxels, anatomies))
            _LOG.info("%s: %s structures", path.name, [len(a.weights) for a in anatomies])
    if not scans:
        raise DatasetError(f"Expected scans that show structures in {directory}, found none.")
    return LabelledScans(scans)


def load_label_maps(directory: Union[str, Path], include: Sequence[str] = ()) -> SynthesisedLabelMaps:
    """Label maps without scans, of whole numbers from 0 to 65535; ``include``: patterns of file names.

    Raises:
        DatasetError: nothing is left.
    """
    anatomies = []
    for path in _images(directory, include):
        with _or_left_out(path.name):
            labels_zyx, grid = Case(path.name, path, path).read_labels()
            frame = CanonicalFrame(grid)
            anatomies.append(Anatomy.of(np.ascontiguousarray(frame.to_canonical(labels_zyx)), frame.grid))
    if not anatomies:
        raise DatasetError(f"Expected label maps with structures in {directory}, found none.")
    return SynthesisedLabelMaps(anatomies)


@contextmanager
def _or_left_out(name: str) -> Iterator[None]:
    """What cannot be used does not cost the use of the others."""
    try:
        yield
    except (DatasetError, VolumeError) as error:
        _LOG.warning("%s is left out: %s", name, error)


def pseudo_labels(voxels_zyx: np.ndarray, grid: Grid) -> List[Anatomy]:
    """Structures of a scan without labels, on the scan's own grid and inside the body.

    Watershed regions of the gradient magnitude at several depths are compact; connected tissues between Otsu's
    thresholds have every shape and follow the edges to the voxel.

    Raises:
        DatasetError: no structure was found at any level.
    """
    missing = [(0, max(0, LEAST_EDGE - n)) for n in voxels_zyx.shape]
    image = sitk.GetImageFromArray(np.pad(voxels_zyx, missing, mode="edge").astype(np.float32))
    image.SetSpacing([float(s) for s in grid.spacing_zyx_mm[::-1]])
    fineness = [min(1.0, s / PSEUDO_LABEL_SPACING_MM) for s in image.GetSpacing()]
    size = [max(LEAST_EDGE, round(n * f)) for n, f in zip(image.GetSize(), fineness)]
    spacing = [n * s / m for n, s, m in zip(image.GetSize(), image.GetSpacing(), size)]
    smooth = sitk.SmoothingRecursiveGaussian(image, 0.6)
    coarse = sitk.Resample(smooth, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing)
    body = sitk.OtsuMultipleThresholds(coarse, 2, numberOfHistogramBins=256) > 0
    body = sitk.BinaryMorphologicalClosing(body, [2, 2, 2])
    gradient = sitk.GradientMagnitudeRecursiveGaussian(coarse, 1.0)
    range_ = float(np.percentile(sitk.GetArrayViewFromImage(gradient), 99))
    levels = [level * range_ for level in SUPERVOXEL_LEVELS]
    watersheds = [sitk.MorphologicalWatershed(gradient, level, markWatershedLine=False) for level in levels]
    parts = [*watersheds, *_tissues(coarse, body)]
    whole = tuple(slice(0, n) for n in voxels_zyx.shape)
    labels = [_on_scan(sitk.Mask(sitk.Cast(part, sitk.sitkUInt32), body), image)[whole] for part in parts]
    found = [part_zyx for part_zyx in labels if np.bincount(part_zyx.ravel())[1:].max(initial=0) >= MIN_VOXELS]
    if not found:
        raise DatasetError(f"Expected structures of at least {MIN_VOXELS} voxels in the scan, found none.")
    return [Anatomy.of(part_zyx, grid) for part_zyx in found]


def _tissues(image: sitk.Image, body: sitk.Image) -> Iterator[sitk.Image]:
    """Connected pieces of equal tissue, for several numbers of tissues."""
    calm = sitk.CurvatureFlow(image, timeStep=0.06, numberOfIterations=4)
    values = sitk.GetArrayViewFromImage(calm)[sitk.GetArrayViewFromImage(body) > 0]
    if len(values) == 0:
        return
    low, high = np.percentile(values, (1, 99))
    calm = sitk.Clamp(calm, lowerBound=float(low), upperBound=float(high))
    for count in TISSUE_THRESHOLDS:
        tissues = sitk.GetArrayFromImage(sitk.OtsuMultipleThresholds(calm, count, numberOfHistogramBins=64))
        pieces = cc3d.dust(cc3d.connected_components(tissues + 1, connectivity=6), threshold=MIN_VOXELS)
        part = sitk.GetImageFromArray(pieces.astype(np.uint32))
        part.CopyInformation(image)
        yield part


def _on_scan(labels: sitk.Image, like: sitk.Image) -> np.ndarray:
    """Labels brought to a scan's grid; what makes up most of the scan is no structure."""
    labels_zyx = sitk.GetArrayFromImage(sitk.Resample(labels, like, sitk.Transform(), sitk.sitkNearestNeighbor))
    too_large = np.bincount(labels_zyx.ravel()) > 0.35 * labels_zyx.size
    labels_zyx[too_large[labels_zyx]] = 0
    return labels_zyx


def _images(directory: Union[str, Path], include: Sequence[str]) -> List[Path]:
    folder = Path(directory)
    found = folder.iterdir() if folder.is_dir() else ()
    paths = sorted(p for p in found if p.name.endswith(IMAGE_SUFFIXES) and not p.name.startswith("."))
    wanted = [p for p in paths if not include or any(fnmatch.fnmatch(p.name, pattern) for pattern in include)]
    if not wanted:
        names = f" named like {', '.join(include)}" if include else ""
        raise DatasetError(f"Expected images ({', '.join(IMAGE_SUFFIXES)}){names} in {directory}, found none.")
    return wanted
