"""A picture of a result: three planes through the object with its outline and the clicks, as a PNG.

Radiological convention: the patient's right is on the left of axial and coronal panels, anterior on the left of the
sagittal one, and anterior or superior is up. The planes are those of the image's own axes, named after the patient's
axes that they run closest to; an oblique scan is not resampled. All panels show the same number of millimetres.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from .errors import MissingDependencyError, VolumeError
from .geometry import bounding_box
from .volume import Volume

RESULT_COLOUR, TRUTH_COLOUR = "#2ee59d", "#ffc24b"
POSITIVE_COLOUR, NEGATIVE_COLOUR = "#1f9dff", "#ff4d5e"
_TEXT_COLOUR, _FAINT_TEXT_COLOUR, _BACKGROUND = "#f2f4f7", "#9aa4b2", "#0b0d10"
_NEAR_PLANE_MM = 4.0
_SMALLEST_FIELD_MM = 60.0
_LEAST_FIELD_OVER_OBJECT, _MOST_FIELD_OVER_OBJECT = 1.15, 1.6


class _Plane(NamedTuple):
    """Which canonical array axes (z, y, x = 0, 1, 2) a panel shows, and the letters at its four sides."""

    name: str
    across: int
    up: int
    through: int
    left_right_top_bottom: str


_PLANES = (
    _Plane("axial", 2, 1, 0, "RLAP"),
    _Plane("coronal", 2, 0, 1, "RLSI"),
    _Plane("sagittal", 1, 0, 2, "APSI"),
)
_SIDES = (
    (0.025, 0.5, "left", "center"),
    (0.975, 0.5, "right", "center"),
    (0.5, 0.975, "center", "top"),
    (0.5, 0.025, "center", "bottom"),
)


def three_plane_picture(
    volume: Volume,
    mask_zyx: np.ndarray,
    points_ras_mm: Sequence[Sequence[float]],
    labels: Sequence[int],
    path: Union[str, FilePath],
    truth_zyx: Optional[np.ndarray] = None,
    title: str = "",
) -> None:
    """Write a PNG with an axial, a coronal and a sagittal plane through the object.

    The planes meet at the first positive click, or at the middle of the object where there is none. Clicks farther
    than 4 mm from a plane are drawn faintly in it. Intensities: CT (recognised by its air) in a lung window
    or in a soft tissue one that reaches beyond the object's brightness; anything else from the 1st to the 99.5th
    percentile of what is shown.

    Args:
        volume: the scan.
        mask_zyx: bool (z, y, x), the result on the scan's grid.
        points_ras_mm: the clicks in RAS mm.
        labels: one per click: 1 positive, 0 negative.
        path: the file to write; its folder must exist.
        truth_zyx: bool (z, y, x), drawn as a dashed outline if given.
        title: a line above the panels.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        VolumeError: a mask is not on the scan's grid, the points and labels differ in number, or the folder is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f'The picture needs matplotlib, which is not installed: pip install "famsam[plots]" ({error})'
        ) from error
    _require_fitting(volume, [mask_zyx] if truth_zyx is None else [mask_zyx, truth_zyx], points_ras_mm, labels, path)

    frame = volume.canonical
    scene = _Scene(
        voxels_zyx=frame.to_canonical(volume.voxels_zyx),
        mask_zyx=frame.to_canonical(mask_zyx),
        truth_zyx=None if truth_zyx is None else frame.to_canonical(truth_zyx),
        clicks_zyx=frame.grid.zyx_from_ras_points(np.reshape(points_ras_mm, (-1, 3))),
        positive=np.asarray(labels, dtype=bool).reshape(-1),
        spacing_zyx_mm=frame.grid.spacing_zyx_mm,
        voxel_ml=frame.grid.voxel_ml,
    )
    focus_zyx = scene.focus()
    lower_mm, upper_mm = scene.field(focus_zyx)
    window = scene.window(focus_zyx, volume.value_range, lower_mm, upper_mm)
    focus_ras_mm = frame.grid.ras_from_zyx_points(focus_zyx)

    figure = Figure(figsize=(12.0, 4.62), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    for column, plane in enumerate(_PLANES):
        axes = figure.add_axes((0.005 + column * 0.3325, 0.075, 0.325, 0.325 * 12.0 / 4.62))
        _draw_panel(axes, scene, plane, focus_zyx, lower_mm, upper_mm, window)
        position = _patient_position(focus_ras_mm[2 - plane.through], "RLAPSI"[2 * (2 - plane.through) :])
        _write(axes, 0.025, 0.975, f"{plane.name}  {position}", va="top", size=10)
        for letter, (x, y, ha, va) in zip(plane.left_right_top_bottom, _SIDES):
            _write(axes, x, y, letter, colour=_FAINT_TEXT_COLOUR, weight="bold", size=11, ha=ha, va=va)
    _draw_scale_bar(figure.axes[0], float(upper_mm[2] - lower_mm[2]))
    figure.text(0.01, 0.965, title, color=_TEXT_COLOUR, size=12, weight="bold", va="center", parse_math=False)
    _draw_legend(figure, scene)
    figure.savefig(path, dpi=150, facecolor=_BACKGROUND, format="png")


class _Scene(NamedTuple):
    """Everything to draw, on the canonical axes of the scan."""

    voxels_zyx: np.ndarray
    mask_zyx: np.ndarray
    truth_zyx: Optional[np.ndarray]
    clicks_zyx: np.ndarray
    """(N, 3) float index."""
    positive: np.ndarray
    """(N,) bool."""
    spacing_zyx_mm: np.ndarray
    voxel_ml: float

    def objects(self) -> List[np.ndarray]:
        """The result and, where there is one, the truth; those of them that are not empty."""
        masks = [self.mask_zyx] if self.truth_zyx is None else [self.mask_zyx, self.truth_zyx]
        return [mask for mask in masks if mask.any()]

    def focus(self) -> np.ndarray:
        """(3,) int: the voxel that all three planes pass through."""
        size = np.array(self.voxels_zyx.shape)
        if self.positive.any():
            return np.clip(np.rint(self.clicks_zyx[np.argmax(self.positive)]).astype(int), 0, size - 1)
        if not self.objects():
            return size // 2
        inside = np.argwhere(self.objects()[0])
        return inside[np.argmin((((inside - inside.mean(axis=0)) * self.spacing_zyx_mm) ** 2).sum(axis=1))]

    def field(self, focus_zyx: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(3,) and (3,): the cube to show, in mm from the centre of the first voxel along each axis."""
        corners = [focus_zyx, *self.clicks_zyx]
        for mask in self.objects():
            lower, upper = bounding_box(mask) or (focus_zyx, focus_zyx)
            corners += [np.array(lower), np.array(upper) - 1]
        lower_mm, upper_mm = np.min(corners, axis=0), np.max(corners, axis=0)
        lower_mm, upper_mm = lower_mm * self.spacing_zyx_mm, upper_mm * self.spacing_zyx_mm
        scan_mm = np.array(self.voxels_zyx.shape) * self.spacing_zyx_mm
        object_mm = float((upper_mm - lower_mm).max())
        generous_mm = max(_SMALLEST_FIELD_MM, _MOST_FIELD_OVER_OBJECT * object_mm)
        needed_mm = min(_LEAST_FIELD_OVER_OBJECT * object_mm, float(scan_mm.max()))
        edge_mm = max(min(generous_mm, float(np.median(scan_mm))), needed_mm, 1.0)
        middle_mm = (lower_mm + upper_mm) / 2
        # do not show more of the scan's outside than need be
        first_mm, last_mm = -self.spacing_zyx_mm / 2, scan_mm - self.spacing_zyx_mm / 2
        room = scan_mm > edge_mm
        middle_mm = np.where(
            room, np.clip(middle_mm, first_mm + edge_mm / 2, last_mm - edge_mm / 2), (first_mm + last_mm) / 2
        )
        return middle_mm - edge_mm / 2, middle_mm + edge_mm / 2

    def shown(self, plane: _Plane, lower_mm: np.ndarray, upper_mm: np.ndarray) -> Tuple[slice, slice]:
        """The rows and columns of a plane's slice that the cube cuts."""
        lower = np.maximum(np.floor(lower_mm / self.spacing_zyx_mm).astype(int), 0)
        upper = np.ceil(upper_mm / self.spacing_zyx_mm).astype(int) + 1
        return slice(lower[plane.up], upper[plane.up]), slice(lower[plane.across], upper[plane.across])

    def window(
        self,
        focus_zyx: np.ndarray,
        value_range: Tuple[float, float],
        lower_mm: np.ndarray,
        upper_mm: np.ndarray,
    ) -> Tuple[float, float]:
        """The intensities shown as black and as white."""
        if value_range[0] <= -900 and value_range[1] >= 200:
            masks = self.objects()
            inside = self.voxels_zyx[masks[-1]] if masks else self.voxels_zyx[tuple(focus_zyx)]
            middle, bright = np.percentile(inside, (50, 95)).tolist()
            return (-1350.0, 150.0) if middle < -400 else (-160.0, min(max(bright + 100, 240.0), 1500.0))
        slices = [
            np.take(self.voxels_zyx, focus_zyx[plane.through], axis=plane.through)[
                self.shown(plane, lower_mm, upper_mm)
            ].ravel()
            for plane in _PLANES
        ]
        black, white = np.percentile(np.concatenate(slices), (1, 99.5)).tolist()
        return black, white if white > black else black + 1


def _draw_panel(
    axes: Any,
    scene: _Scene,
    plane: _Plane,
    focus_zyx: np.ndarray,
    lower_mm: np.ndarray,
    upper_mm: np.ndarray,
    window: Tuple[float, float],
) -> None:
    import matplotlib.patheffects as effects
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    rows, columns = scene.shown(plane, lower_mm, upper_mm)
    step_up, step_across = scene.spacing_zyx_mm[plane.up], scene.spacing_zyx_mm[plane.across]
    first_up, first_across = rows.start * step_up, columns.start * step_across

    def cut(array_zyx: np.ndarray) -> np.ndarray:
        return np.take(array_zyx, focus_zyx[plane.through], axis=plane.through)[rows, columns]

    pixels = cut(scene.voxels_zyx).astype(np.float32)
    up, across = (np.arange(n) for n in pixels.shape)
    extent = (first_across - step_across / 2, first_across + (across.size - 0.5) * step_across,
              first_up - step_up / 2, first_up + (up.size - 0.5) * step_up)  # fmt: skip
    axes.imshow(
        pixels, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, origin="lower", interpolation="bicubic"
    )
    outlines = [(scene.mask_zyx, RESULT_COLOUR, "solid")]
    if scene.truth_zyx is not None:
        outlines.insert(0, (scene.truth_zyx, TRUTH_COLOUR, "dashed"))
    halo = [effects.Stroke(linewidth=3.2, foreground="black", alpha=0.55), effects.Normal()]
    for mask_zyx, colour, style in outlines:
        loops = [loop * (step_across, step_up) + (first_across, first_up) for loop in _smooth_outlines(cut(mask_zyx))]
        if not loops:
            continue
        path = Path.make_compound_path(*(Path(loop, closed=True) for loop in loops))
        if style == "solid":
            axes.add_patch(PathPatch(path, facecolor=colour, edgecolor="none", alpha=0.16))
        axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=1.7, linestyle=style, path_effects=halo))
    for click_zyx, positive in zip(scene.clicks_zyx, scene.positive):
        from_plane_mm = abs(click_zyx[plane.through] - focus_zyx[plane.through]) * scene.spacing_zyx_mm[plane.through]
        position = click_zyx[plane.across] * step_across, click_zyx[plane.up] * step_up
        _draw_click(axes, position, bool(positive), near=from_plane_mm <= _NEAR_PLANE_MM)
    # both axes run towards right, anterior, superior: left and up are theirs in the radiological convention
    axes.set(xlim=(upper_mm[plane.across], lower_mm[plane.across]), ylim=(lower_mm[plane.up], upper_mm[plane.up]))
    axes.set(xticks=[], yticks=[], facecolor="black")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _smooth_outlines(inside: np.ndarray) -> List[np.ndarray]:
    """(rows, columns) bool -> closed outlines, each (N, 2) of (column, row) in pixels, holes the other way round.

    Corners are cut twice at quarters of the edges (G. Chaikin, "An algorithm for high-speed curve generation", 1974),
    which takes the stairs of the voxels off and leaves even a single voxel in view.
    """
    from contourpy import contour_generator

    # one more pixel on each side, so that the outline of an object cut off by the scan's border is closed
    contours = contour_generator(z=np.pad(inside, 1).astype(np.float32))
    loops = [np.asarray(loop) for loop in contours.lines(0.5)]
    for _ in range(2):
        loops = [
            np.stack([0.75 * loop[:-1] + 0.25 * loop[1:], 0.25 * loop[:-1] + 0.75 * loop[1:]], 1).reshape(-1, 2)
            for loop in loops
        ]
        loops = [np.concatenate([loop, loop[:1]]) for loop in loops]
    return [loop - 1 for loop in loops]


def _draw_click(axes: Any, position: Tuple[float, float], positive: bool, near: bool) -> None:
    colour = POSITIVE_COLOUR if positive else NEGATIVE_COLOUR
    alpha, size = (1.0, 9.0) if near else (0.45, 6.0)
    x, y = [position[0]], [position[1]]
    axes.plot(x, y, "o", markersize=size, color=colour, markeredgecolor="white", markeredgewidth=1.1, alpha=alpha)
    axes.plot(x, y, "+" if positive else "_", markersize=0.55 * size, color="white", markeredgewidth=1.3, alpha=alpha)


def _draw_scale_bar(axes: Any, field_mm: float) -> None:
    """A bar of a round length, about a fifth of the panel."""
    import matplotlib.patheffects as effects

    length_mm = max(length for length in (1, 2, 5, 10, 20, 50, 100, 200) if length <= max(field_mm / 4, 1))
    end, height = 0.975, 0.045
    start = end - length_mm / field_mm
    halo = [effects.withStroke(linewidth=4.5, foreground="black", alpha=0.7)]
    axes.plot([start, end], [height, height], color=_TEXT_COLOUR, linewidth=2.5, transform=axes.transAxes,
              solid_capstyle="butt", path_effects=halo)  # fmt: skip
    label = f"{length_mm // 10} cm" if length_mm >= 10 else f"{length_mm} mm"
    _write(axes, (start + end) / 2, height + 0.02, label, ha="center", va="bottom", size=9)


def _draw_legend(figure: Any, scene: _Scene) -> None:
    from matplotlib.lines import Line2D

    volume_ml = np.count_nonzero(scene.mask_zyx) * scene.voxel_ml
    volume = f"{volume_ml:.0f}" if volume_ml >= 100 else f"{volume_ml:.3g}"
    entries = [Line2D([], [], color=RESULT_COLOUR, linewidth=2, label=f"result, {volume} ml")]
    if scene.truth_zyx is not None:
        entries.append(Line2D([], [], color=TRUTH_COLOUR, linewidth=2, linestyle="dashed", label="truth"))
    for positive, colour, name in ((True, POSITIVE_COLOUR, "positive"), (False, NEGATIVE_COLOUR, "negative")):
        number = int((scene.positive == positive).sum())
        if number:
            label = f"{number} {name} click" + "s" * (number > 1)
            entries.append(Line2D([], [], color=colour, marker="o", markersize=8, markeredgecolor="white",
                                  linestyle="none", label=label))  # fmt: skip
    figure.legend(
        handles=entries, loc="lower left", bbox_to_anchor=(0.0, -0.005), ncols=len(entries), frameon=False,
        labelcolor=_TEXT_COLOUR, fontsize=10, handletextpad=0.6, columnspacing=2.0,
    )  # fmt: skip


def _write(axes: Any, x: float, y: float, text: str, colour: str = _TEXT_COLOUR, **style: Any) -> None:
    import matplotlib.patheffects as effects

    halo = [effects.withStroke(linewidth=2.5, foreground="black", alpha=0.7)]
    axes.text(x, y, text, color=colour, transform=axes.transAxes, path_effects=halo, **style)


def _patient_position(ras_mm: float, letters: str) -> str:
    """12.3, "SI" -> "S 12.3 mm"; -12.3, "SI" -> "I 12.3 mm"."""
    return f"{letters[0] if ras_mm >= 0 else letters[1]} {abs(ras_mm):.1f} mm"


def _require_fitting(
    volume: Volume,
    masks: Sequence[np.ndarray],
    points_ras_mm: Sequence[Sequence[float]],
    labels: Sequence[int],
    path: Union[str, FilePath],
) -> None:
    for mask in masks:
        if mask.shape != volume.grid.size_zyx or mask.dtype != np.bool_:
            raise VolumeError(
                f"Expected a boolean mask on the scan's grid of {volume.grid.size_zyx} voxels (z, y, x), "
                f"got {mask.dtype} {mask.shape}."
            )
    if len(points_ras_mm) != len(labels):
        raise VolumeError(f"Expected one label for each of {len(points_ras_mm)} points, got {len(labels)}.")
    if not FilePath(path).parent.is_dir():
        raise VolumeError(f"Cannot write {path}: its folder does not exist. Make the folder first.")
