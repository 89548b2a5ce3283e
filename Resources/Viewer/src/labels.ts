// The overlay: every segment's mask, drawn through NiiVue's drawing layer and updated in place, box by box.

import { type Niivue } from "@niivue/niivue";
import { BitMask } from "./bits";
import type { Grid, Vec3 } from "./geometry";

export type Box = [Vec3, Vec3]; // half-open, (z, y, x) in the scan's own order, as the server has it

export const MAX_SEGMENTS = 60;
export const DOUBT_LEVELS = 12;
const DOUBT = 200; // the label below the first level's
const CANDIDATE = 252;
const CANDIDATE_RIM = 253;
const PREVIEW_ADDS = 254;
const PREVIEW_REMOVES = 255;
// Grows lighter throughout, so that the colour-blind can read it as well; the page's legend has the same.
const DOUBT_COLOURS = ["#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf"];
const DOUBT_OPACITY = 0.85; // so that a bright scan behind it does not change how it reads
const PREVIEW_OPACITY = 0.5;
const CANDIDATE_COLOUR = "#ff5cf0"; // no segment has it, and no scan
const CANDIDATE_OPACITY = 0.3;
const RIM_OPACITY = 0.95;
const TEXTURE_UNIT_OF_DRAWING = 33991; // where NiiVue keeps its drawing

interface Layer {
  mask: BitMask;
  box: Box | null; // holds all that the mask ever held
}

/** A preview, a candidate or the doubt, shown until the next change: which labels it covers, and what they were. */
class Passing {
  box: Box | null = null;
  private indices = new Uint32Array(1 << 12);
  private were = new Uint8Array(1 << 12);
  private count = 0;

  show(labels: Uint8Array, index: number, label: number): void {
    if (this.count === this.indices.length) {
      this.indices = enlarged(this.indices, new Uint32Array(2 * this.count));
      this.were = enlarged(this.were, new Uint8Array(2 * this.count));
    }
    this.indices[this.count] = index;
    this.were[this.count++] = labels[index];
    labels[index] = label;
  }

  /** Put back what was there; the box to be drawn anew, or null if nothing was shown. */
  end(labels: Uint8Array): Box | null {
    for (let k = 0; k < this.count; k++) labels[this.indices[k]] = this.were[k];
    const { box } = this;
    this.box = null;
    this.count = 0;
    return box;
  }
}

function enlarged<T extends Uint8Array | Uint32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

export class LabelOverlay {
  private readonly layers = new Map<number, Layer>(); // by label, 1 to MAX_SEGMENTS
  private order: number[] = []; // of drawing; the last lies on top
  private readonly labels: Uint8Array;
  private readonly base: number;
  private readonly steps: Vec3;
  private readonly passing = new Passing();

  constructor(
    private readonly nv: Niivue,
    private readonly grid: Grid,
  ) {
    nv.createEmptyDrawing();
    nv.clickToSegmentGrowingBitmap = null; // as large as the scan, and not needed
    this.labels = nv.drawBitmap as Uint8Array;
    ({ base: this.base, steps: this.steps } = grid.linear());
  }

  add(label: number): void {
    const [nx, ny, nz] = this.grid.size;
    this.layers.set(label, { mask: new BitMask(nx * ny * nz), box: null });
  }

  remove(label: number): void {
    const box = this.layers.get(label)?.box ?? null;
    this.layers.delete(label);
    this.order = this.order.filter((one) => one !== label);
    this.relabel(box);
  }

  /** Which segments are shown, the last on top. */
  arrange(order: { label: number; visible: boolean }[]): void {
    this.order = order.filter((one) => one.visible).map((one) => one.label);
    this.relabel([...this.layers.values()].reduce<Box | null>((whole, { box }) => union(whole, box), null));
  }

  clear(label: number): void {
    const layer = this.layers.get(label);
    if (!layer) return;
    layer.mask.clear();
    this.relabel(layer.box);
    layer.box = null;
  }

  /** Put a box of a segment's mask in place. */
  apply(label: number, box: Box, given: BitMask): void {
    const layer = this.layers.get(label);
    if (!layer) return;
    const before = this.passing.end(this.labels);
    layer.box = union(layer.box, box);
    this.differences(layer.mask, box, given, (at, index) => {
      layer.mask.flip(at);
      this.labels[index] = this.labelAt(at);
    });
    this.send(union(before, box)!);
  }

  /** Show what a click would change, until the next preview or change. */
  preview(label: number, box: Box, given: BitMask): void {
    const layer = this.layers.get(label);
    if (!layer) return;
    const before = this.passing.end(this.labels);
    this.differences(layer.mask, box, given, (at, index) => {
      this.passing.show(this.labels, index, layer.mask.get(at) ? PREVIEW_REMOVES : PREVIEW_ADDS);
    });
    this.passing.box = box;
    this.send(union(before, box)!);
  }

  /** Show how doubtful each voxel of a box is (1 to DOUBT_LEVELS; 0 shows nothing), until the next preview or change. */
  showDoubt(box: Box, levels: Uint8Array): void {
    const before = this.passing.end(this.labels);
    let n = 0;
    this.rows(box, (_, index, step, count) => {
      for (let k = 0; k < count; k++, n++) {
        if (levels[n]) this.passing.show(this.labels, index + k * step, DOUBT + levels[n]);
      }
    });
    this.passing.box = box;
    this.send(union(before, box)!);
  }

  /** Show a mask that may become a segment's, until the next preview or change. */
  showCandidate(box: Box, mask: BitMask): void {
    const before = this.passing.end(this.labels);
    const size = box[1].map((high, axis) => high - box[0][axis]) as Vec3;
    let n = 0;
    this.rows(box, (_, index, step, count) => {
      for (let k = 0; k < count; k++, n++) {
        if (!mask.get(n)) continue;
        this.passing.show(this.labels, index + k * step, onRim(mask, size, n) ? CANDIDATE_RIM : CANDIDATE);
      }
    });
    this.passing.box = box;
    this.send(union(before, box)!);
  }

  /** Whether anything passing was shown. */
  endPassing(): boolean {
    const box = this.passing.end(this.labels);
    if (!box) return false;
    this.send(box);
    return true;
  }

  /** Every segment's colour by its label, and how opaque they all are, 0 to 1. */
  colour(colours: Map<number, string>, opacity: number): void {
    const lut = new Uint8ClampedArray(256 * 4);
    const put = (label: number, colour: number[], alpha: number) => lut.set([...colour, 255 * alpha], label * 4);
    colours.forEach((hex, label) => put(label, rgb(hex), opacity));
    for (let level = 1; level <= DOUBT_LEVELS; level++) {
      put(DOUBT + level, between(DOUBT_COLOURS, (level - 1) / (DOUBT_LEVELS - 1)), DOUBT_OPACITY);
    }
    put(CANDIDATE, rgb(CANDIDATE_COLOUR), CANDIDATE_OPACITY);
    put(CANDIDATE_RIM, rgb(CANDIDATE_COLOUR), RIM_OPACITY);
    put(PREVIEW_ADDS, [255, 255, 255], PREVIEW_OPACITY);
    put(PREVIEW_REMOVES, [0, 0, 0], PREVIEW_OPACITY);
    this.nv.drawLut = { lut, labels: Array.from({ length: 256 }, (_, k) => String(k)) };
    (this.nv as unknown as { refreshColormaps(): void }).refreshColormaps();
  }

  private labelAt(at: number): number {
    for (let k = this.order.length - 1; k >= 0; k--) {
      if (this.layers.get(this.order[k])!.mask.get(at)) return this.order[k];
    }
    return 0;
  }

  /** The voxels in which a box of a mask differs from a given one: their numbers in the scan and in the display. */
  private differences(mask: BitMask, box: Box, given: BitMask, visit: (at: number, index: number) => void): void {
    let n = 0;
    this.rows(box, (at, index, step, count) => {
      for (let k = 0; k < count; k += 32) {
        let differ = mask.difference(at + k, given, n + k, Math.min(32, count - k));
        for (; differ; differ &= differ - 1) {
          const offset = k + 31 - Math.clz32(differ & -differ);
          visit(at + offset, index + offset * step);
        }
      }
      n += count;
    });
  }

  /** The rows of a box: the first voxel's number in the scan and in the display, the display's step, and the length. */
  private rows(
    [[z0, y0, x0], [z1, y1, x1]]: Box,
    visit: (at: number, index: number, step: number, count: number) => void,
  ): void {
    const [nx, ny] = this.grid.size;
    const [sx, sy, sz] = this.steps;
    for (let z = z0; z < z1; z++) {
      for (let y = y0; y < y1; y++) {
        visit((z * ny + y) * nx + x0, this.base + z * sz + y * sy + x0 * sx, sx, x1 - x0);
      }
    }
  }

  /** Draw a box anew from the masks. */
  private relabel(box: Box | null): void {
    this.endPassing();
    if (!box) return;
    this.rows(box, (at, index, step, count) => {
      for (let k = 0; k < count; k++) this.labels[index + k * step] = this.labelAt(at + k);
    });
    this.send(box);
  }

  /** Only the box goes to the graphics memory. */
  private send([low, high]: Box): void {
    const gl = this.nv.gl;
    const [nx, ny] = this.grid.displaySize;
    const corners = [low, high.map((n) => n - 1) as Vec3].map(([z, y, x]) => this.position(x, y, z));
    const first = corners[0].map((n, axis) => Math.min(n, corners[1][axis])) as Vec3;
    const count = corners[0].map((n, axis) => Math.abs(n - corners[1][axis]) + 1) as Vec3;
    gl.activeTexture(TEXTURE_UNIT_OF_DRAWING);
    gl.bindTexture(gl.TEXTURE_3D, this.nv.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, nx);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, ny);
    gl.pixelStorei(gl.UNPACK_SKIP_PIXELS, first[0]);
    gl.pixelStorei(gl.UNPACK_SKIP_ROWS, first[1]);
    gl.pixelStorei(gl.UNPACK_SKIP_IMAGES, first[2]);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, ...first, ...count, gl.RED, gl.UNSIGNED_BYTE, this.labels);
    for (const parameter of [
      gl.UNPACK_ROW_LENGTH,
      gl.UNPACK_IMAGE_HEIGHT,
      gl.UNPACK_SKIP_PIXELS,
      gl.UNPACK_SKIP_ROWS,
      gl.UNPACK_SKIP_IMAGES,
    ]) {
      gl.pixelStorei(parameter, 0);
    }
  }

  private position(x: number, y: number, z: number): Vec3 {
    const index = this.base + x * this.steps[0] + y * this.steps[1] + z * this.steps[2];
    const [nx, ny] = this.grid.displaySize;
    return [index % nx, Math.floor(index / nx) % ny, Math.floor(index / (nx * ny))];
  }

  /** The labels as drawn; for tests. */
  count(label: number): number {
    return this.labels.reduce((sum, one) => sum + (one === label ? 1 : 0), 0);
  }
}

/** Whether a voxel of a mask of a size (z, y, x) has one beside it that does not belong to the mask. */
function onRim(mask: BitMask, [depth, height, width]: Vec3, n: number): boolean {
  const [x, y, z] = [n % width, Math.floor(n / width) % height, Math.floor(n / (width * height))];
  if (!x || !y || !z || x === width - 1 || y === height - 1 || z === depth - 1) return true;
  return [1, width, width * height].some((step) => !mask.get(n - step) || !mask.get(n + step));
}

function rgb(hex: string): number[] {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** A colour of a scale, 0 to 1. */
function between(scale: string[], part: number): number[] {
  const first = Math.min(scale.length - 2, Math.floor(part * (scale.length - 1)));
  const [low, high] = [rgb(scale[first]), rgb(scale[first + 1])];
  return low.map((from, k) => from + (part * (scale.length - 1) - first) * (high[k] - from));
}

function union(a: Box | null, b: Box | null): Box | null {
  if (!a || !b) return a ?? b;
  return [a[0].map((n, k) => Math.min(n, b[0][k])) as Vec3, a[1].map((n, k) => Math.max(n, b[1][k])) as Vec3];
}
