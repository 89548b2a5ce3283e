// Coordinates. "ijk" is the scan's own voxel index (x, y, z), "display" the index in the image that is drawn, whose axes
// run closest to right, anterior, superior; "frac" is the display position as NiiVue has it, 0 to 1 along every axis.

export type Vec3 = [number, number, number];
export type Matrix = number[][];

export function transform(matrix: Matrix, point: Vec3): Vec3 {
  return [0, 1, 2].map(
    (r) => matrix[r][0] * point[0] + matrix[r][1] * point[1] + matrix[r][2] * point[2] + matrix[r][3],
  ) as Vec3;
}

export function inverse(matrix: Matrix): Matrix {
  const [[a, b, c, x], [d, e, f, y], [g, h, i, z]] = matrix;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const m = [
    [(e * i - f * h) / det, (c * h - b * i) / det, (b * f - c * e) / det],
    [(f * g - d * i) / det, (a * i - c * g) / det, (c * d - a * f) / det],
    [(d * h - e * g) / det, (b * g - a * h) / det, (a * e - b * d) / det],
  ];
  return [...m.map((row) => [...row, -(row[0] * x + row[1] * y + row[2] * z)]), [0, 0, 0, 1]];
}

export class Grid {
  readonly displaySize: Vec3;
  private readonly ijkFromRas: Matrix;
  readonly ijkFromDisplay: Matrix;

  constructor(
    readonly size: Vec3,
    readonly spacingMm: Vec3,
    readonly rasFromIjk: Matrix,
    readonly displayFromIjk: Matrix,
  ) {
    this.ijkFromRas = inverse(rasFromIjk);
    this.ijkFromDisplay = inverse(displayFromIjk);
    this.displaySize = displayFromIjk.slice(0, 3).map((row) => size[row.slice(0, 3).findIndex((v) => v !== 0)]) as Vec3;
  }

  get voxelMl(): number {
    const [[a, b, c], [d, e, f], [g, h, i]] = this.rasFromIjk;
    return Math.abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)) / 1000;
  }

  rasFromFrac(frac: Vec3): Vec3 {
    return transform(this.rasFromIjk, transform(this.ijkFromDisplay, this.displayFromFrac(frac)));
  }

  fracFromRas(ras: Vec3): Vec3 {
    const display = transform(this.displayFromIjk, transform(this.ijkFromRas, ras));
    return display.map((index, axis) => (index + 0.5) / this.displaySize[axis]) as Vec3;
  }

  displayFromFrac(frac: Vec3): Vec3 {
    return frac.map((part, axis) => part * this.displaySize[axis] - 0.5) as Vec3;
  }

  displaySpacingMm(axis: number): number {
    return this.spacingMm[this.displayFromIjk[axis].slice(0, 3).findIndex((v) => v !== 0)];
  }

  /** Where voxel (0, 0, 0) lies in the display's voxels as they follow one another, and the steps along x, y, z. */
  linear(): { base: number; steps: Vec3 } {
    const [nx, ny] = this.displaySize;
    const strides = [1, nx, nx * ny];
    const at = (column: number) => strides.reduce((sum, stride, r) => sum + stride * this.displayFromIjk[r][column], 0);
    return { base: at(3), steps: [at(0), at(1), at(2)] };
  }
}
