// Small pictures of masks: the axial slice through the middle, seen from the feet, with the outline.

import type { BitMask } from "./bits";
import { transform, type Vec3 } from "./geometry";
import type { Box } from "./labels";
import type { Viewer } from "./viewer";

const SIZE_PX = 104;
const LEAST_MM = 20; // shown across
const SURROUNDINGS = 1.6; // what is shown, by the size of the mask
const OUTLINE = [255, 92, 240];
const OUTLINE_PX = 3;

/** Draw a mask that fills a box, around one of its voxels (x, y, z). */
export function drawThumbnail(
  canvas: HTMLCanvasElement,
  viewer: Viewer,
  { box, mask, middle }: { box: Box; mask: BitMask; middle: Vec3 },
): void {
  const grid = viewer.grid!;
  const [nx, ny] = grid.displaySize;
  const at = transform(grid.displayFromIjk, middle);
  const corners = box.map(([z, y, x], k) => transform(grid.displayFromIjk, [x - k, y - k, z - k])); // the last voxel's
  const mm = [0, 1].map((axis) => (Math.abs(corners[1][axis] - corners[0][axis]) + 1) * grid.displaySpacingMm(axis));
  const side = Math.max(LEAST_MM, SURROUNDINGS * Math.max(...mm));
  // The patient's right is on the left, the front is up.
  const display = (axis: number, pixel: number) =>
    Math.round((corners[0][axis] + corners[1][axis]) / 2 + ((0.5 - (pixel + 0.5) / SIZE_PX) * side) / grid.displaySpacingMm(axis));
  const xs = Array.from({ length: SIZE_PX }, (_, pixel) => display(0, pixel));
  const ys = Array.from({ length: SIZE_PX }, (_, pixel) => display(1, pixel));
  const inside = Uint8Array.from({ length: SIZE_PX ** 2 }, (_, n) => {
    const ijk = transform(grid.ijkFromDisplay, [xs[n % SIZE_PX], ys[Math.floor(n / SIZE_PX)], at[2]]);
    return Number(holds(box, mask, ijk.map(Math.round) as Vec3));
  });

  canvas.width = canvas.height = SIZE_PX;
  const context = canvas.getContext("2d")!;
  const picture = context.createImageData(SIZE_PX, SIZE_PX);
  const grey = greys(viewer);
  for (let n = 0; n < inside.length; n++) {
    const [x, y] = [xs[n % SIZE_PX], ys[Math.floor(n / SIZE_PX)]];
    const inScan = x >= 0 && y >= 0 && x < nx && y < ny;
    const value = inScan ? grey(x + nx * (y + ny * at[2])) : 0;
    picture.data.set(inside[n] && outlines(inside, n) ? [...OUTLINE, 255] : [value, value, value, 255], 4 * n);
  }
  context.putImageData(picture, 0, 0);
}

function holds([low, high]: Box, mask: BitMask, [x, y, z]: Vec3): boolean {
  const [depth, height, width] = high.map((n, axis) => n - low[axis]);
  const [k, j, i] = [z - low[0], y - low[1], x - low[2]];
  return k >= 0 && j >= 0 && i >= 0 && k < depth && j < height && i < width && mask.get((k * height + j) * width + i);
}

/** Whether a pixel of the mask is near enough to one without to belong to the outline. */
function outlines(inside: Uint8Array, n: number): boolean {
  const [px, py] = [n % SIZE_PX, Math.floor(n / SIZE_PX)];
  const off = (x: number, y: number) => x < 0 || y < 0 || x >= SIZE_PX || y >= SIZE_PX || !inside[y * SIZE_PX + x];
  return [-OUTLINE_PX, OUTLINE_PX].some((by) => off(px + by, py) || off(px, py + by));
}

/** A voxel's grey in the views' window, 0 to 255, by its number in the display. */
function greys(viewer: Viewer): (index: number) => number {
  const { img, hdr, cal_min: low = 0, cal_max: high = 1 } = viewer.nv.volumes[0];
  const [slope, intercept] = [hdr?.scl_slope || 1, hdr?.scl_inter || 0];
  return (index) => Math.max(0, Math.min(255, (255 * (img![index] * slope + intercept - low)) / (high - low)));
}
