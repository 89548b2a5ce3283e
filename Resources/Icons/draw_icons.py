"""Draws the icons of the extension, the module, the effect and its cursor: ``python draw_icons.py``.

Shapes are given on a square from 0 to 1 and drawn four times too large, then made smaller, for smooth edges.
"""

from __future__ import annotations

from math import cos, pi, sin
from pathlib import Path
from typing import List, Tuple

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
MODULE_ICONS = HERE.parents[1] / "FaMSAMSlicer" / "Resources" / "Icons"
SCALE = 4
BACKGROUND, TISSUE, SEGMENT, OUTLINE = (24, 30, 44), (70, 82, 108), (64, 196, 140, 150), (110, 240, 180)
POSITIVE, NEGATIVE, WHITE = (40, 210, 90), (240, 70, 60), (255, 255, 255)


def blob(x: float, y: float, radius: float, waves: Tuple[float, float]) -> List[Tuple[float, float]]:
    """A wavy closed curve."""
    angles = [2 * pi * i / 180 for i in range(180)]
    radii = [radius * (1 + waves[0] * cos(2 * a + 0.6) + waves[1] * sin(3 * a)) for a in angles]
    return [(x + r * cos(a), y + r * sin(a)) for r, a in zip(radii, angles)]


def marker(draw: ImageDraw.ImageDraw, n: int, x: float, y: float, positive: bool) -> None:
    """A click: a disc with a plus or a minus."""
    r, bar, thick = 0.115 * n, 0.06 * n, 0.02 * n
    cx, cy = x * n, y * n
    draw.ellipse(
        (cx - r, cy - r, cx + r, cy + r), fill=POSITIVE if positive else NEGATIVE, outline=WHITE, width=n // 60
    )
    draw.rectangle((cx - bar, cy - thick, cx + bar, cy + thick), fill=WHITE)
    if positive:
        draw.rectangle((cx - thick, cy - bar, cx + thick, cy + bar), fill=WHITE)


def icon(size: int) -> Image.Image:
    """A segmented organ with two clicks."""
    n = size * SCALE
    image = Image.new("RGBA", (n, n), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image, "RGBA")
    draw.rounded_rectangle((0, 0, n - 1, n - 1), radius=n // 6, fill=BACKGROUND)
    for shape, fill, line in (
        (blob(0.5, 0.5, 0.4, (0.05, 0.03)), TISSUE, None),
        (blob(0.43, 0.46, 0.23, (0.16, 0.08)), SEGMENT, OUTLINE),
    ):
        points = [(x * n, y * n) for x, y in shape]
        draw.polygon(points, fill=fill)
        if line:
            draw.line([*points, points[0]], fill=line, width=n // 40, joint="curve")
    marker(draw, n, 0.4, 0.44, True)
    marker(draw, n, 0.72, 0.74, False)
    return image.resize((size, size), Image.LANCZOS)


def cursor(size: int = 31) -> Image.Image:
    """A cross with a free centre, white with a dark rim."""
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    middle = size // 2
    for width, color in ((3, (0, 0, 0, 255)), (1, (*OUTLINE, 255))):
        for a, b in ((2, middle - 4), (middle + 4, size - 3)):
            draw.line((a, middle, b, middle), fill=color, width=width)
            draw.line((middle, a, middle, b), fill=color, width=width)
    return image


if __name__ == "__main__":
    icon(128).save(HERE / "FaMSAMSlicer.png")
    icon(128).save(MODULE_ICONS / "FaMSAMSlicer.png")
    icon(64).save(MODULE_ICONS / "SegmentEditorFaMSAMEffect.png")
    cursor().save(MODULE_ICONS / "Cursor.png")
