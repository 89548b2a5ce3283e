from __future__ import annotations

import sys

import numpy as np
import pytest
from famsam.errors import MissingDependencyError, VolumeError
from famsam.picture import NEGATIVE_COLOUR, POSITIVE_COLOUR, RESULT_COLOUR, TRUTH_COLOUR, three_plane_picture
from famsam.volume import Volume

pytest.importorskip("matplotlib", reason="the pictures need matplotlib")

SIZE_RAS = (40, 50, 24)  # voxels towards right, anterior, superior, of 1 x 1 x 2 mm
OBJECT_RAS = (slice(28, 34), slice(8, 14), slice(15, 19))  # right, posterior, superior of the middle
RAS_FROM_RAS_INDEX = np.array([[1.0, 0, 0, -20], [0, 1, 0, -25], [0, 0, 2, -24], [0, 0, 0, 1]])
CENTRE_RAS_MM = (10.5, -14.5, 9.0)


def scan(flip_ras=(False, False, False)):
    """The same scan with its axes stored towards R A S or, where flipped, the other way: volume and mask."""
    voxels, mask = np.zeros(SIZE_RAS, np.float32), np.zeros(SIZE_RAS, bool)
    voxels += np.linspace(0, 10, SIZE_RAS[0])[:, None, None]
    voxels[OBJECT_RAS], mask[OBJECT_RAS] = 100, True
    ras_from_ijk = RAS_FROM_RAS_INDEX.copy()
    for axis in np.flatnonzero(flip_ras):
        voxels, mask = np.flip(voxels, axis), np.flip(mask, axis)
        ras_from_ijk[:3, 3] += ras_from_ijk[:3, axis] * (SIZE_RAS[axis] - 1)
        ras_from_ijk[:3, axis] *= -1
    return Volume(np.ascontiguousarray(voxels.T), ras_from_ijk), np.ascontiguousarray(mask.T)


def test_the_legend_tells_the_volume_of_a_tilted_scan_too(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def keep(_figure, handles, **_style):
        labels.extend(handle.get_label() for handle in handles)

    labels = []
    monkeypatch.setattr(Figure, "legend", keep)
    straight, mask_zyx = scan()
    tilted = straight.grid.ras_from_ijk.copy()
    tilted[1, 2] = 1.5  # every slice of 2 mm lies 1.5 mm farther to the front, 2.5 mm from the one below it
    for matrix in (straight.grid.ras_from_ijk, tilted):
        three_plane_picture(Volume(straight.voxels_zyx, matrix), mask_zyx, [], [], tmp_path / "picture.png")
    assert labels == [f"result, {6 * 6 * 4 * 2 / 1000} ml"] * 2


def read_pixels(path):
    from matplotlib.image import imread

    return (imread(str(path))[..., :3] * 255).round().astype(int)


def where(pixels, colour):
    """Rows and columns, as shares of the picture's height and width, of the pixels of a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = np.nonzero((abs(pixels - wanted) <= 12).all(axis=-1))
    return rows / pixels.shape[0], columns / pixels.shape[1]


def draw(path, flip_ras=(False, False, False), points=(CENTRE_RAS_MM,), labels=(1,), **options):
    volume, mask_zyx = scan(flip_ras)
    three_plane_picture(volume, mask_zyx, points, labels, path, **options)
    return read_pixels(path)


def test_radiological_convention(tmp_path):
    pixels = draw(tmp_path / "a.png")
    rows, columns = where(pixels, RESULT_COLOUR)
    in_image = rows < 0.9  # below lies the legend
    panels = [(in_image & (columns >= k / 3) & (columns < (k + 1) / 3)) for k in range(3)]
    middles = [(rows[panel].mean(), 3 * columns[panel].mean() - k) for k, panel in enumerate(panels)]
    assert all(panel.any() for panel in panels)
    middle_row = 0.5
    (axial_row, axial_column), (coronal_row, coronal_column), (sagittal_row, sagittal_column) = middles
    assert axial_column < 0.45  # the patient's right is on the left
    assert axial_row > middle_row  # posterior is below
    assert coronal_column < 0.45
    assert coronal_row < middle_row  # superior is above
    assert sagittal_column > 0.55  # posterior is on the right
    assert sagittal_row < middle_row


@pytest.mark.parametrize("flip_ras", [(True, True, False), (True, False, True)])
def test_the_picture_does_not_depend_on_how_the_axes_are_stored(tmp_path, flip_ras):
    assert np.array_equal(draw(tmp_path / "a.png"), draw(tmp_path / "b.png", flip_ras))


def test_colours_of_outlines_and_clicks(tmp_path):
    plain = draw(tmp_path / "a.png")
    assert where(plain, RESULT_COLOUR)[0].size > 100
    assert where(plain, POSITIVE_COLOUR)[0].size > 30
    assert where(plain, NEGATIVE_COLOUR)[0].size == where(plain, TRUTH_COLOUR)[0].size == 0

    _, mask_zyx = scan()
    truth_zyx = np.roll(mask_zyx, 3, axis=2)
    points = (CENTRE_RAS_MM, (3.0, -14.5, 9.0))
    full = draw(tmp_path / "b.png", points=points, labels=(1, 0), truth_zyx=truth_zyx, title="liver")
    assert where(full, NEGATIVE_COLOUR)[0].size > 30
    assert where(full, TRUTH_COLOUR)[0].size > 100
    assert full.shape == plain.shape
    title_strip = slice(0, full.shape[0] // 14)
    assert full[title_strip].max() > 200 > plain[title_strip].max()


def test_a_hole_and_a_single_voxel_have_outlines():
    from famsam.picture import _smooth_outlines

    ring = np.ones((7, 7), bool)
    ring[3, 3] = False
    loops = _smooth_outlines(ring)
    areas = sorted(0.5 * np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) for x, y in (loop.T for loop in loops))
    assert len(areas) == 2
    assert areas[0] < 0 < 44 < areas[1] < 49  # the hole runs the other way
    (voxel,) = _smooth_outlines(np.pad([[True]], 2))
    assert np.array_equal(voxel[0], voxel[-1])
    assert voxel.mean(axis=0) == pytest.approx([2, 2], abs=0.05)
    assert _smooth_outlines(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize("points", [(), (CENTRE_RAS_MM,)])
def test_an_empty_mask_and_no_clicks_still_give_a_picture(tmp_path, points):
    volume, mask_zyx = scan()
    three_plane_picture(volume, np.zeros_like(mask_zyx), points, [1] * len(points), tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png").shape == (693, 1800, 3)


def test_a_mask_without_clicks_is_cut_through_its_middle(tmp_path):
    assert where(draw(tmp_path / "a.png", points=(), labels=()), RESULT_COLOUR)[0].size > 100


def test_a_single_slice_and_ct(tmp_path):
    voxels = np.full((1, 30, 30), -1000, np.int16)
    voxels[0, 10:20, 10:20] = 300
    volume = Volume(voxels, np.diag([1.0, 1.0, 7.5, 1.0]))
    mask_zyx = np.zeros(voxels.shape, bool)
    mask_zyx[0, 12:18, 12:18] = True
    three_plane_picture(volume, mask_zyx, [(15.0, 15.0, 0.0)], [1], tmp_path / "a.png")
    assert where(read_pixels(tmp_path / "a.png"), RESULT_COLOUR)[0].size > 100


def test_what_does_not_fit_is_refused(tmp_path):
    volume, mask_zyx = scan()
    with pytest.raises(VolumeError, match=r"boolean mask on the scan's grid of \(24, 50, 40\)"):
        three_plane_picture(volume, mask_zyx[1:], [], [], tmp_path / "a.png")
    with pytest.raises(VolumeError, match="boolean mask"):
        three_plane_picture(volume, mask_zyx, [], [], tmp_path / "a.png", truth_zyx=mask_zyx.astype(np.uint8))
    with pytest.raises(VolumeError, match="one label for each of 1 points, got 0"):
        three_plane_picture(volume, mask_zyx, [CENTRE_RAS_MM], [], tmp_path / "a.png")
    with pytest.raises(VolumeError, match="folder does not exist"):
        three_plane_picture(volume, mask_zyx, [], [], tmp_path / "absent" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    volume, mask_zyx = scan()
    with pytest.raises(MissingDependencyError, match=r'pip install "famsam\[plots\]"'):
        three_plane_picture(volume, mask_zyx, [], [], tmp_path / "a.png")
