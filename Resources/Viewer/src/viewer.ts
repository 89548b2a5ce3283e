// The drawn scan: NiiVue's views, and over them the prompts as marks that can be dragged.

import { DRAG_MODE, MULTIPLANAR_TYPE, Niivue, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import type { BoxPrompt, PointPrompt } from "./api";
import type { Grid, Vec3 } from "./geometry";

export const LAYOUTS = {
  all: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  "3d": SLICE_TYPE.RENDER,
} as const;
export type Layout = keyof typeof LAYOUTS;

export interface ViewerEvents {
  click(ras: Vec3, secondary: boolean): void;
  box(lower: Vec3, upper: Vec3): void;
  hover(ras: Vec3 | null): void;
  location(ras: Vec3): void;
  drag(index: number, ras: Vec3, finished: boolean): void;
  remove(index: number): void;
}

/** A slice view on the screen: which axis it cuts, and where its corners lie, in CSS pixels. */
interface Tile {
  axis: number;
  left: number;
  top: number;
  width: number;
  height: number;
  fracAtTopLeft: Vec3;
  fracAtBottomRight: Vec3;
}

const SVG = "http://www.w3.org/2000/svg";
const CLICK_TOLERANCE_PX = 4;
const TOUCH_TOLERANCE_PX = 12;
const GHOST_MM = 6;
const CROSSHAIR_PERCENT = 0.5;

export class Viewer {
  readonly nv: Niivue;
  grid: Grid | null = null;
  private tool: "point" | "box" = "point";
  private corner: Vec3 | null = null; // of a box that is made with the keys
  private prompts: (PointPrompt | BoxPrompt)[] = [];
  private pressed: { x: number; y: number; button: number } | null = null;
  private framed: { tile: Tile; from: Vec3; to: Vec3 } | null = null;
  private dragged: { index: number; tile: Tile; ras: Vec3; moved: boolean } | null = null;
  private frameRequested = false;
  private marksRequested = false;
  private shownTiles: Tile[] | null = null; // as last drawn; where they lie is known only by then
  private readonly backColour = [0.04, 0.05, 0.07, 1];

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly marks: SVGSVGElement,
    private readonly events: ViewerEvents,
  ) {
    this.nv = new Niivue({
      backColor: this.backColour,
      crosshairColor: [1, 0.85, 0.2, 0.8],
      crosshairWidth: CROSSHAIR_PERCENT,
      crosshairWidthUnit: "percent",
      crosshairGap: 6,
      show3Dcrosshair: true,
      isRadiologicalConvention: true,
      isOrientationTextVisible: true,
      isCornerOrientationText: false,
      fontColor: [0.85, 0.9, 1, 1],
      tileMargin: 0,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarPadPixels: 2,
      dragAndDropEnabled: false,
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
      loadingText: "",
      logLevel: "error",
      mouseEventConfig: {
        leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.crosshair, withCtrl: DRAG_MODE.crosshair },
        rightButton: DRAG_MODE.windowing,
        centerButton: DRAG_MODE.pan,
      },
    });
  }

  async start(): Promise<void> {
    await this.nv.attachToCanvas(this.canvas, true);
    this.canvas.inert = true; // NiiVue does not expect a mouse without a scan
    this.nv.setInterpolation(true);
    const draw = this.nv.drawScene.bind(this.nv);
    this.nv.drawScene = () => {
      const text = draw();
      this.shownTiles = null;
      this.drawMarks();
      return text;
    };
    this.nv.onLocationChange = () => this.grid && this.events.location(this.crosshairRas());
    this.canvas.addEventListener("mousedown", (event) => this.press(event), { capture: true });
    window.addEventListener("mousemove", (event) => this.move(event), { capture: true });
    window.addEventListener("mouseup", (event) => this.release(event), { capture: true });
    // NiiVue keeps what a finger or a pen does from becoming mouse events. Two fingers are NiiVue's: they zoom.
    const touch = (act: (event: PointerEvent) => void) => (event: PointerEvent) => {
      if (event.pointerType === "mouse") return;
      if (event.type === "pointerdown") event.preventDefault(); // where NiiVue does not, it would be a mouse's as well
      if (event.isPrimary) act(event);
      else this.letGo();
    };
    this.canvas.addEventListener("pointerdown", touch((event) => this.press(event)), { capture: true });
    window.addEventListener("pointermove", touch((event) => this.move(event)), { capture: true });
    window.addEventListener("pointerup", touch((event) => this.release(event)), { capture: true });
    window.addEventListener("pointercancel", touch(() => this.letGo()), { capture: true });
    this.canvas.addEventListener("mouseleave", () => this.events.hover(null));
    this.canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** Voxels along an axis of a scan, at most, that the browser can draw. */
  get mostVoxels(): number {
    return this.nv.uiData.max3D ?? Infinity;
  }

  /** Show no scan. */
  clear(): void {
    this.nv.closeDrawing();
    while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0);
    this.grid = null;
    this.canvas.inert = true;
    this.redraw();
  }

  async show(image: ArrayBuffer, grid: Grid): Promise<void> {
    await this.nv.loadFromArrayBuffer(image, "scan.nii");
    this.grid = grid;
    this.canvas.inert = false;
    this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
  }

  layout(name: Layout): void {
    this.nv.opts.crosshairWidth = name === "all" ? CROSSHAIR_PERCENT : CROSSHAIR_PERCENT / 2; // of the view's width
    this.nv.setSliceType(LAYOUTS[name]);
  }

  window(low: number, high: number): void {
    const volume = this.nv.volumes[0];
    if (!volume) return;
    volume.cal_min = low;
    volume.cal_max = high;
    this.nv.updateGLVolume();
  }

  /** Draw again, once, before the next frame. */
  redraw(): void {
    if (this.frameRequested) return;
    this.frameRequested = true;
    requestAnimationFrame(() => {
      this.frameRequested = false;
      this.nv.drawScene();
    });
  }

  mark(prompts: (PointPrompt | BoxPrompt)[]): void {
    this.prompts = prompts;
    if (this.marksRequested) return;
    this.marksRequested = true;
    requestAnimationFrame(() => this.marksRequested && this.drawMarks());
  }

  crosshairRas(): Vec3 {
    return this.grid!.rasFromFrac([...this.nv.scene.crosshairPos] as Vec3);
  }

  /** Move the crosshair by voxels along right, anterior, superior. */
  step(by: Vec3): void {
    if (!this.grid) return;
    const size = this.grid.displaySize;
    const at = [...this.nv.scene.crosshairPos].map((part, axis) =>
      Math.min(1 - 0.5 / size[axis], Math.max(0.5 / size[axis], part + by[axis] / size[axis])),
    );
    this.nv.scene.crosshairPos = at as Vec3;
    this.events.location(this.crosshairRas());
    this.redraw();
  }

  choose(tool: "point" | "box"): void {
    this.tool = tool;
    this.corner = null;
  }

  /** Begin a box at the crosshair, or finish it there; whether it has begun. */
  cornerAtCrosshair(): boolean {
    const [from, to] = [this.corner, [...this.nv.scene.crosshairPos] as Vec3];
    this.corner = from ? null : to;
    if (from) this.finishBox(from, to, [0, 1, 2].find((axis) => from[axis] === to[axis]));
    return !from;
  }

  /** Centre the views on a place. */
  lookAt(ras: Vec3): void {
    this.nv.scene.crosshairPos = this.grid!.fracFromRas(ras);
    this.events.location(ras);
    this.redraw();
  }

  /** Where a place is drawn in the view that cuts an axis, in CSS pixels of the canvas; null if that view is not shown. */
  screenPosition(ras: Vec3, axis: number): { x: number; y: number } | null {
    const tile = this.tiles().find((one) => one.axis === axis);
    return tile ? onScreen(tile, this.grid!.fracFromRas(ras)) : null;
  }

  private press(event: MouseEvent): void {
    if (!this.grid) return;
    this.canvas.focus();
    const { x, y } = this.pointer(event);
    this.pressed = { x, y, button: event.button };
    const tile = this.tileAt(x, y);
    if (this.tool === "box" && tile && event.button === 0) {
      const at = this.fracAt(tile, x, y);
      this.framed = { tile, from: at, to: at };
      event.stopPropagation();
      event.preventDefault();
    }
  }

  /** Begin nothing of what was pressed; a point stays where it was dragged to. */
  private letGo(): void {
    const { dragged } = this;
    this.pressed = this.framed = this.dragged = null;
    if (dragged?.moved) this.events.drag(dragged.index, dragged.ras, true);
    this.drawMarks();
  }

  private move(event: MouseEvent): void {
    if (!this.grid) return;
    const { x, y } = this.pointer(event);
    if (this.dragged) {
      this.dragged.moved = true;
      this.dragged.ras = this.grid.rasFromFrac(clamped(this.fracAt(this.dragged.tile, x, y)));
      this.events.drag(this.dragged.index, this.dragged.ras, false);
      this.drawMarks();
      event.stopPropagation();
    } else if (this.framed) {
      this.framed.to = clamped(this.fracAt(this.framed.tile, x, y));
      this.drawMarks();
      event.stopPropagation();
    } else if (event.target === this.canvas) {
      const tile = this.tileAt(x, y);
      const frac = tile && this.fracAt(tile, x, y);
      this.events.hover(frac && inside(frac) ? this.grid.rasFromFrac(frac) : null);
    }
  }

  private release(event: MouseEvent): void {
    const { x, y } = this.pointer(event);
    const pressed = this.pressed;
    this.pressed = null;
    if (this.dragged) {
      const { index, ras, moved } = this.dragged;
      this.dragged = null;
      this.prompts = this.prompts.map((one, k) => (k === index ? { ...one, ras_mm: ras } : one) as typeof one); // till the answer
      if (moved) this.events.drag(index, ras, true);
    } else if (this.framed) {
      const framed = this.framed;
      this.framed = null;
      this.finishBox(framed.from, framed.to, framed.tile.axis);
      event.stopPropagation();
    } else if (pressed && this.grid && event.button === pressed.button && event.target === this.canvas) {
      const tolerance = event instanceof PointerEvent ? TOUCH_TOLERANCE_PX : CLICK_TOLERANCE_PX;
      const still = Math.hypot(x - pressed.x, y - pressed.y) < tolerance;
      const tile = this.tileAt(x, y);
      if (!still || !tile || event.button === 1) return;
      const frac = this.fracAt(tile, x, y);
      if (inside(frac)) this.events.click(this.grid.rasFromFrac(frac), event.button === 2 || event.shiftKey);
    }
  }

  /** A box whose corners lie on the same slice of an axis gets the smaller of its sides as its depth, around the slice. */
  private finishBox(from: Vec3, to: Vec3, flat?: number): void {
    const grid = this.grid!;
    const extent = (axis: number) => grid.displaySize[axis] * grid.displaySpacingMm(axis);
    const sides = [0, 1, 2].filter((axis) => axis !== flat).map((axis) => Math.abs(to[axis] - from[axis]) * extent(axis));
    this.drawMarks();
    const finest = Math.min(...[0, 1, 2].map((axis) => grid.displaySpacingMm(axis)));
    if (Math.min(...sides) < Math.min(1, finest / 2)) return;
    const lower = [...from] as Vec3;
    const upper = [...to] as Vec3;
    if (flat !== undefined) {
      const half = Math.min(...sides) / 2 / extent(flat);
      lower[flat] = from[flat] - half;
      upper[flat] = from[flat] + half;
    }
    const corner = (end: (a: number, b: number) => number) =>
      grid.rasFromFrac(clamped(lower.map((v, axis) => end(v, upper[axis])) as Vec3));
    this.events.box(corner(Math.min), corner(Math.max));
  }

  private pointer(event: MouseEvent): { x: number; y: number } {
    const bounds = this.canvas.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  }

  private tiles(): Tile[] {
    return (this.shownTiles ??= this.tilesAsDrawn());
  }

  private tilesAsDrawn(): Tile[] {
    const ratio = this.canvas.width / this.canvas.clientWidth;
    return this.nv.screenSlices.flatMap((slice, k): Tile[] => {
      if (slice.axCorSag > SLICE_TYPE.SAGITTAL) return [];
      const [left, top, width, height] = slice.leftTopWidthHeight;
      // Asked for well within the view: at its very edge NiiVue may take a position to be outside.
      const at = (part: number) =>
        this.nv.screenXY2TextureFrac(left + part * width, top + part * height, k, false) as unknown as Vec3;
      const [quarter, centre] = [[...at(0.25)], [...at(0.5)]];
      const along = (part: number) =>
        quarter.map((from, axis) => from + ((part - 0.25) / 0.25) * (centre[axis] - from)) as Vec3;
      return [
        {
          axis: 2 - slice.axCorSag,
          left: left / ratio,
          top: top / ratio,
          width: width / ratio,
          height: height / ratio,
          fracAtTopLeft: along(0),
          fracAtBottomRight: along(1),
        },
      ];
    });
  }

  private tileAt(x: number, y: number): Tile | undefined {
    return this.tiles().find((t) => x >= t.left && y >= t.top && x < t.left + t.width && y < t.top + t.height);
  }

  private fracAt(tile: Tile, x: number, y: number): Vec3 {
    const across = (x - tile.left) / tile.width;
    const down = (y - tile.top) / tile.height;
    const [h, v] = inPlane(tile.axis);
    const frac = [...this.nv.scene.crosshairPos] as Vec3;
    frac[h] = tile.fracAtTopLeft[h] + across * (tile.fracAtBottomRight[h] - tile.fracAtTopLeft[h]);
    frac[v] = tile.fracAtTopLeft[v] + down * (tile.fracAtBottomRight[v] - tile.fracAtTopLeft[v]);
    return frac;
  }

  private drawMarks(): void {
    this.marksRequested = false;
    const shapes: SVGElement[] = [];
    if (this.grid) {
      for (const tile of this.tiles()) {
        this.prompts.forEach((prompt, index) => {
          if (prompt.type === "box") shapes.push(...this.boxShape(tile, prompt));
          else shapes.push(...this.pointShape(tile, prompt, index));
        });
      }
      if (this.framed) shapes.push(frame(this.framed.tile, this.framed.from, this.framed.to));
    }
    this.marks.replaceChildren(...shapes);
  }

  private pointShape(tile: Tile, prompt: PointPrompt, index: number): SVGElement[] {
    const grid = this.grid!;
    const frac = grid.fracFromRas(this.dragged?.index === index ? this.dragged.ras : prompt.ras_mm);
    const away = Math.abs(frac[tile.axis] - this.nv.scene.crosshairPos[tile.axis]) * grid.displaySize[tile.axis];
    const awayMm = away * grid.displaySpacingMm(tile.axis);
    if (away > 0.75 && awayMm > GHOST_MM) return [];
    const { x, y } = onScreen(tile, frac);
    if (x < tile.left || y < tile.top || x > tile.left + tile.width || y > tile.top + tile.height) return [];
    const mark = svg("g", {
      class: `point ${prompt.positive ? "positive" : "negative"} ${away > 0.75 ? "ghost" : ""}`,
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
      "data-index": index,
    });
    // Shape and sign tell the kinds apart without colour.
    mark.append(
      prompt.positive ? svg("circle", { r: 8 }) : svg("rect", { x: -7, y: -7, width: 14, height: 14 }),
      svg("path", { d: prompt.positive ? "M-4 0H4M0 -4V4" : "M-4 0H4" }),
    );
    const title = svg("title", {});
    title.textContent = `${prompt.positive ? "Include" : "Exclude"}: drag to move, right-click to delete`;
    mark.append(title);
    const grab = (event: MouseEvent) => {
      if (event.button === 0) this.dragged = { index, tile, ras: prompt.ras_mm, moved: false };
      event.stopPropagation();
      event.preventDefault();
    };
    mark.addEventListener("mousedown", grab);
    mark.addEventListener("pointerdown", (event) => event.pointerType !== "mouse" && event.isPrimary && grab(event));
    mark.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      this.dragged = null; // a finger that rests long enough to delete it is still down
      this.events.remove(index);
    });
    return [mark];
  }

  private boxShape(tile: Tile, prompt: BoxPrompt): SVGElement[] {
    const corners = [this.grid!.fracFromRas(prompt.lower_ras_mm), this.grid!.fracFromRas(prompt.upper_ras_mm)];
    const depth = this.nv.scene.crosshairPos[tile.axis];
    const [near, far] = corners.map((corner) => corner[tile.axis]).sort((a, b) => a - b);
    return depth < near || depth > far ? [] : [frame(tile, corners[0], corners[1])];
  }
}

function frame(tile: Tile, from: Vec3, to: Vec3): SVGElement {
  const [a, b] = [onScreen(tile, from), onScreen(tile, to)];
  return svg("rect", {
    class: "frame",
    x: Math.min(a.x, b.x),
    y: Math.min(a.y, b.y),
    width: Math.abs(a.x - b.x),
    height: Math.abs(a.y - b.y),
  });
}

function onScreen(tile: Tile, frac: Vec3): { x: number; y: number } {
  const [h, v] = inPlane(tile.axis);
  const part = (axis: number) =>
    (frac[axis] - tile.fracAtTopLeft[axis]) / (tile.fracAtBottomRight[axis] - tile.fracAtTopLeft[axis]);
  return { x: tile.left + part(h) * tile.width, y: tile.top + part(v) * tile.height };
}

/** The axes that run across and down a view that cuts the given one. */
function inPlane(axis: number): [number, number] {
  return axis === 2 ? [0, 1] : axis === 1 ? [0, 2] : [1, 2];
}

function inside(frac: Vec3): boolean {
  return frac.every((part) => part >= 0 && part <= 1);
}

function clamped(frac: Vec3): Vec3 {
  return frac.map((part) => Math.min(0.999, Math.max(0.001, part))) as Vec3;
}

function svg(name: string, attributes: Record<string, string | number>): SVGElement {
  const element = document.createElementNS(SVG, name) as SVGElement;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}
