// The page: what the buttons, keys and clicks do.

import { Api, Refusal, type ServerInfo, type SessionState, type Update } from "./api";
import { unpackBits } from "./bits";
import { Grid, type Vec3 } from "./geometry";
import { LabelOverlay, MAX_SEGMENTS } from "./labels";
import { connectControls } from "./controls";
import { confirmed, typedToken } from "./dialogs";
import { keyboard } from "./keyboard";
import { Looks, type Surroundings } from "./looks";
import { Messages } from "./messages";
import { Proposals } from "./proposals";
import { millilitres, renderSegments } from "./segments";
import { Viewer, type Layout, LAYOUTS } from "./viewer";
import { AnotherScan, ScanNeeded, type Segment, type Source, Work } from "./work";
import { fillWindows } from "./windows";

const $ = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const TOKEN_KEY = "famsam-token";
const PATIENCE_MS = 400;
const LOSES_ALL = "The segments of this scan were not saved to a file, and go when another scan is opened.";
const IS_ANOTHER = "This is not the scan that the segments were made on; they go when it is opened.";

type Tool = "include" | "exclude" | "box";
type Mark = SessionState["prompts"][number];

/** A point on its way to another place: the moves of one drag are one step of the history. */
interface Drag {
  segment: Segment;
  mark: Mark; // where the server has it
  ras: Vec3; // the newest place
  waits: boolean; // for its turn
}

class Page implements Surroundings {
  readonly viewer: Viewer;
  private readonly work: Work;
  readonly looks: Looks;
  readonly proposals: Proposals;
  readonly messages = new Messages();
  overlay: LabelOverlay | null = null;
  private tool: Tool = "include";
  private dragging: Drag | null = null;
  private moved: Drag | null = null; // what the last change was a move of
  private moves: { from: Mark; to: Mark }[] = []; // since the server had nothing to do
  private queue: Promise<unknown> = Promise.resolve();
  private opening: Promise<void> = Promise.resolve();
  private waiting = 0;
  private unanswered: { segment: Segment; mark: Mark }[] = []; // prompts whose marks show before their answers are here
  private awaitsScan = false;
  readonly latencies_ms: number[] = []; // from mouse-up to the changed overlay, for the benchmark
  lastTimings_ms: Record<string, number> = {}; // the model's, of the last answer

  constructor() {
    this.viewer = new Viewer($<HTMLCanvasElement>("canvas"), document.getElementById("marks") as unknown as SVGSVGElement, {
      click: (ras, secondary) => this.clicked(ras, (this.tool === "exclude") === secondary),
      box: (lower, upper) => this.act("POST", "/boxes", { corners_ras_mm: [lower, upper], along_scan: true }),
      hover: (ras) => this.looks.point(ras),
      location: (ras) => ($("position").textContent = `R ${mm(ras[0])}  A ${mm(ras[1])}  S ${mm(ras[2])} mm`),
      drag: (index, ras, finished) => this.drag(index, ras, finished),
      remove: (index) => this.remove(index),
    });
    this.work = new Work(new Api(sessionStorage.getItem(TOKEN_KEY)), {
      connection: (lost) => this.messages.connection(lost),
      login: () => this.askForToken(),
      restored: (segment, update) => this.restored(segment, update),
    });
    this.looks = new Looks(this.viewer, this.work, this);
    this.proposals = new Proposals(this.viewer, this.work, this);
  }

  get busy(): boolean {
    return this.waiting > 0;
  }

  get click(): "include" | "exclude" | null {
    return this.tool === "box" ? null : this.tool;
  }

  get candidate() {
    return this.proposals.candidate;
  }

  expected(ml: number | null): void {
    $("expected").textContent = ml === null ? "" : `expected ${millilitres(ml)}`;
  }

  async start(): Promise<void> {
    const asked = askedFor();
    this.work.api.token = sessionStorage.getItem(TOKEN_KEY);
    await this.viewer.start();
    this.viewer.nv.setDrawOpacity(1); // the segments' colours have their own
    connectControls(this);
    keyboard(this);
    await this.askForToken();
    const saved = Work.saved();
    if (asked) await this.open(asked);
    else if (saved) await this.inTurn(() => this.guard(() => this.resume(saved)));
    window.addEventListener("hashchange", () => void this.enter());
    document.body.dataset.ready = "yes";
  }

  /** An address with another token or scan was put into the tab; the browser goes on with the same page. */
  private async enter(): Promise<void> {
    const asked = askedFor();
    this.work.api.token = sessionStorage.getItem(TOKEN_KEY);
    await this.askForToken();
    if (asked) await this.open(asked);
  }

  // --- opening ---

  /** One scan after the other, in the order in which they were asked for. */
  open(source: Source, file: Blob | null = null): Promise<void> {
    return this.inTurn(() => this.opened(source, file));
  }

  private inTurn(open: () => Promise<void>): Promise<void> {
    this.opening = this.opening.then(open);
    return this.opening;
  }

  private async opened(source: Source, file: Blob | null): Promise<void> {
    const restores = this.awaitsScan && source.kind === "file";
    if (!restores && this.work.unsaved && !(await confirmed(LOSES_ALL, "Open, and lose them"))) return;
    await this.guard(async () => {
      if (!restores || !(await this.reopened(file!, source.name))) {
        await this.work.open(source, file, this.messages.progress);
        this.awaitsScan = false;
        await this.show();
      }
      this.messages.notes(this.work.volume!.notes);
    });
  }

  /** Go on with the scan that was needed again; false if it is another one, and the user wants it nevertheless. */
  private async reopened(file: Blob, name: string): Promise<boolean> {
    try {
      await this.work.reopen(file, name, this.messages.progress);
    } catch (error) {
      if (!(error instanceof AnotherScan)) throw error;
      this.messages.done();
      if (await confirmed(IS_ANOTHER, "Open, and lose them")) return false;
      throw new ScanNeeded();
    }
    this.awaitsScan = false;
    await this.show();
    await this.work.restoreMasks();
    return true;
  }

  private async resume(saved: NonNullable<ReturnType<typeof Work.saved>>): Promise<void> {
    if (!(await this.work.resume(saved, this.messages.progress))) throw new ScanNeeded();
    await this.show();
    await this.work.restoreMasks();
  }

  private async show(): Promise<void> {
    const info = this.work.volume!;
    const grid = new Grid(info.size_xyz, info.spacing_mm, info.ras_from_ijk, info.display_from_ijk);
    this.overlay = null; // whatever comes: what was shown is another scan
    this.proposals.forget();
    this.viewer.clear();
    $("scan-name").textContent = "";
    this.refresh();
    const [has, most] = [Math.max(...info.size_xyz), this.viewer.mostVoxels];
    if (has > most) {
      throw new Error(`the scan has ${has} voxels along an axis, and this browser draws at most ${most}; crop or resample it`);
    }
    const image = await this.work.api.bytes("GET", `/v1/volumes/${info.id}/image.nii`, undefined, (part) =>
      this.messages.progress("Loading the views", part),
    );
    this.messages.progress("Drawing");
    await this.viewer.show(image, grid);
    this.overlay = new LabelOverlay(this.viewer.nv, grid);
    for (const segment of this.work.segments) this.overlay.add(segment.label);
    fillWindows($<HTMLSelectElement>("window"), info, this.viewer);
    $("welcome").hidden = true;
    const source = this.work.source!;
    const name = source.kind === "sample" ? "Sample" : source.kind === "path" ? source.path.split(/[\\/]/).pop()! : source.name;
    $("scan-name").textContent = `${name}: ${info.size_xyz.join(" × ")} voxels of ${info.spacing_mm.map(spacing).join(" × ")} mm`;
    this.arrange();
    this.viewer.lookAt(grid.rasFromFrac([0.5, 0.5, 0.5]));
    if (!this.work.segments.length) this.addSegment();
  }

  private restored(segment: Segment, update: Update): void {
    this.overlay?.clear(segment.label);
    if (update.box_zyx) this.overlay?.apply(segment.label, update.box_zyx, unpackBits(update.bits));
    this.refresh();
  }

  // --- prompts ---

  private clicked(ras: Vec3, positive: boolean): void {
    this.act("POST", "/points", { point_ras_mm: ras, positive }, { type: "point", ras_mm: ras, positive });
  }

  /** A click there, or a corner of a box. */
  clickAtCrosshair(negative: boolean): void {
    if (!this.viewer.grid) return;
    if (this.tool !== "box") return this.clicked(this.viewer.crosshairRas(), (this.tool === "exclude") === negative);
    const open = this.viewer.cornerAtCrosshair();
    this.messages.status(open ? "Box: move the crosshair to the opposite corner, and press Enter" : "");
  }

  /** A verb of the active segment, after those before it. Its mark shows at once, its mask when the answer is here. */
  act(method: string, path: string, body?: object, mark?: Mark): void {
    const segment = this.work.segment;
    if (!segment || !this.overlay) return;
    const shown = mark && { segment, mark };
    if (shown) this.unanswered.push(shown);
    this.mark();
    this.enqueue(segment, () =>
      this.work.verb(segment, method, path, body).finally(() => {
        this.unanswered = this.unanswered.filter((one) => one !== shown);
      }),
    );
  }

  walk(which: "undo" | "redo"): void {
    const segment = this.work.segment;
    if (segment) this.enqueue(segment, () => this.work.walk(segment, which));
  }

  private enqueue(segment: Segment, ask: (moved: Drag | null) => Promise<Update | null>): void {
    const began = performance.now();
    this.waiting++;
    this.proposals.setAside();
    this.messages.status("Segmenting…");
    this.queue = this.queue.then(() =>
      this.guard(async () => {
        const patience = setTimeout(() => this.messages.progress("Segmenting"), PATIENCE_MS); // a first look takes a while
        const { moved } = this;
        this.moved = null;
        try {
          const update = await ask(moved);
          if (update) this.apply(segment, update, began);
          else this.messages.status("");
        } finally {
          clearTimeout(patience);
          this.waiting--;
          this.refresh();
          if (!this.busy) {
            this.moves = [];
            this.looks.settled();
          }
        }
      }),
    );
  }

  private apply(segment: Segment, update: Update, began: number): void {
    if (!this.work.segments.includes(segment)) return; // deleted meanwhile
    if (update.box_zyx) this.overlay?.apply(segment.label, update.box_zyx, unpackBits(update.bits));
    const latency = performance.now() - began;
    this.latencies_ms.push(latency);
    this.lastTimings_ms = update.timings_ms;
    this.viewer.redraw();
    const quality = update.quality === null || !update.voxels ? "" : ` · predicted quality ${Math.round(100 * update.quality)} %`;
    const server = update.timings_ms.total === undefined ? "" : ` (model ${Math.round(update.timings_ms.total)} ms)`;
    this.messages.status(`${Math.round(latency)} ms${server}${quality}`);
  }

  /** A move of a drag; one that waits for its turn goes to the newest place by then. */
  private drag(index: number, ras: Vec3, finished: boolean): void {
    const { segment } = this.work;
    const mark = segment && this.marks(segment)[index];
    const drag = this.dragging ?? (mark ? { segment, mark, ras, waits: false } : null);
    this.dragging = finished ? null : drag;
    if (!drag) return;
    drag.ras = ras;
    if (drag.waits) return;
    drag.waits = true;
    this.enqueue(drag.segment, async (moved) => {
      drag.waits = false;
      const at = this.indexOf(drag.segment, drag.mark);
      if (at < 0) return null; // deleted meanwhile
      const body = { point_ras_mm: drag.ras };
      const update = await this.work.verb(drag.segment, "PUT", `/points/${at}`, body, moved === drag);
      const to = update.state!.prompts[at];
      this.moves.push({ from: drag.mark, to });
      drag.mark = to;
      this.moved = drag;
      return update;
    });
  }

  private remove(index: number): void {
    const { segment } = this.work;
    const mark = segment && this.marks(segment)[index];
    if (mark) this.removeAt(segment, () => this.indexOf(segment, mark));
  }

  removeLast(): void {
    const { segment } = this.work;
    if (segment) this.removeAt(segment, () => (segment.state?.prompts.length ?? 0) - 1);
  }

  /** Delete a prompt, whose index is known when those before it in the queue are done; -1 if it is gone by then. */
  private removeAt(segment: Segment, index: () => number): void {
    this.enqueue(segment, async () => {
      const at = index();
      return at < 0 ? null : this.work.verb(segment, "DELETE", `/points/${at}`);
    });
  }

  /** Which of a segment's prompts a mark stands for, wherever that was moved meanwhile; -1 if it is gone. */
  private indexOf(segment: Segment, mark: Mark): number {
    const prompts = segment.state?.prompts ?? [];
    const now = this.moves.reduce((at, { from, to }) => (samePoint(from, at) ? to : at), mark);
    return [mark, now].reduce((found, one) => (found < 0 ? prompts.findIndex((each) => samePoint(each, one)) : found), -1);
  }

  // --- segments ---

  addSegment(): void {
    if (!this.overlay || this.work.segments.length >= MAX_SEGMENTS) return;
    const segment = this.work.addSegment();
    this.overlay.add(segment.label);
    this.arrange();
  }

  choose(index: number): void {
    if (index >= this.work.segments.length) return;
    this.work.active = index;
    this.work.save();
    this.arrange();
  }

  toggle(segment = this.work.segment): void {
    if (!segment) return;
    segment.visible = !segment.visible;
    this.work.save();
    this.arrange();
  }

  async removeSegment(segment: Segment): Promise<void> {
    const used = segment.voxels || segment.state?.prompts.length;
    if (used && !(await confirmed(`${segment.name} cannot be brought back when it is deleted.`, "Delete it"))) return;
    this.work.removeSegment(segment);
    this.overlay?.remove(segment.label);
    if (!this.work.segments.length) this.addSegment();
    this.arrange();
  }

  /** Colours, order and visibility, after any of them changed; the active segment lies on top. */
  private arrange(): void {
    const { segments, segment } = this.work;
    this.recolour();
    const order = [...segments].sort((a, b) => Number(a === segment) - Number(b === segment));
    this.overlay?.arrange(order);
    this.refresh();
    this.viewer.redraw();
    this.looks.settled();
  }

  recolour(): void {
    const colours = new Map(this.work.segments.map((one) => [one.label, one.colour]));
    this.overlay?.colour(colours, Number($<HTMLInputElement>("opacity").value));
    this.viewer.redraw();
  }

  refresh(): void {
    const { segments, segment, volume } = this.work;
    renderSegments($("segments"), segments, segment, this.viewer.grid?.voxelMl ?? 0, {
      choose: (one) => this.choose(segments.indexOf(one)),
      rename: (one, name) => {
        one.name = name || `Segment ${one.label}`;
        this.work.save();
      },
      recolour: (one, colour) => {
        one.colour = colour;
        this.work.save();
        this.recolour();
      },
      toggle: (one) => this.toggle(one),
      remove: (one) => void this.removeSegment(one),
    });
    const prompts = segment?.state?.prompts ?? [];
    this.mark();
    $<HTMLButtonElement>("undo").disabled = !segment?.past.length;
    $<HTMLButtonElement>("redo").disabled = !segment?.future.length;
    $<HTMLButtonElement>("reset").disabled = !segment?.voxels && !prompts.length;
    $<HTMLButtonElement>("add-segment").disabled = !this.overlay;
    this.proposals.refresh();
    const empty = segments.every((one) => !one.voxels);
    for (const button of document.querySelectorAll<HTMLButtonElement>(".save")) {
      button.disabled = empty || (button.dataset.format === "dcm" && !volume?.is_dicom);
    }
  }

  private mark(): void {
    const { segment } = this.work;
    this.viewer.mark(segment?.visible ? this.marks(segment) : []);
  }

  /** A segment's prompts, and those that wait for their answers. */
  private marks(segment: Segment): Mark[] {
    const waiting = this.unanswered.filter((one) => one.segment === segment).map((one) => one.mark);
    return [...(segment.state?.prompts ?? []), ...waiting];
  }

  async save(format: string): Promise<void> {
    await this.queue;
    await this.guard(async () => {
      this.messages.progress("Saving");
      const content = await this.work.export(format);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([content]));
      link.download = `segmentation.${format}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    });
  }

  // --- controls ---

  setTool(tool: Tool): void {
    this.tool = tool;
    this.viewer.choose(tool === "box" ? "box" : "point");
    for (const name of ["include", "exclude", "box"]) $(name).setAttribute("aria-pressed", String(name === tool));
  }

  nextLayout(): void {
    const select = $<HTMLSelectElement>("layout");
    const names = Object.keys(LAYOUTS) as Layout[];
    select.value = names[(names.indexOf(select.value as Layout) + 1) % names.length];
    this.viewer.layout(select.value as Layout);
  }

  toggleDoubt(): void {
    this.looks.setDoubting(!this.looks.doubting);
    $("doubt").setAttribute("aria-pressed", String(this.looks.doubting));
    $("legend").hidden = !this.looks.doubting;
  }

  help(): void {
    $<HTMLDialogElement>("help-dialog").showModal();
  }

  step(by: Vec3): void {
    this.viewer.step(by);
  }

  private async askForToken(): Promise<void> {
    for (;;) {
      try {
        return this.proposals.offer(await this.work.api.json<ServerInfo>("GET", "/v1/server"));
      } catch (error) {
        if (!(error instanceof Refusal) || error.code !== "wrong_token") return;
      }
      this.work.api.token = await typedToken();
      sessionStorage.setItem(TOKEN_KEY, this.work.api.token);
    }
  }

  /** Run something; what goes wrong is told in a sentence, and work goes on. */
  async guard(work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (error instanceof ScanNeeded) this.awaitsScan = true;
      this.messages.problem(error);
    } finally {
      this.messages.done();
    }
  }
}

/** The scan that the address asks for after its "#"; its token is kept, and all of it taken out of the address. */
function askedFor(): Source | null {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.has("token")) sessionStorage.setItem(TOKEN_KEY, asked.get("token")!);
  if (location.hash) history.replaceState(null, "", location.pathname);
  if (asked.has("path")) return { kind: "path", path: asked.get("path")! };
  return asked.has("sample") ? { kind: "sample" } : null;
}

function samePoint(one: Mark, other: Mark): boolean {
  if (one.type !== "point" || other.type !== "point" || one.positive !== other.positive) return false;
  return one.ras_mm.every((value, axis) => value === other.ras_mm[axis]);
}

function mm(value: number): string {
  return value.toFixed(1);
}

function spacing(value: number): string {
  return value < 1 ? String(Number(value.toPrecision(2))) : mm(value);
}

export type { Page };

const page = new Page();
// A handle for tests and for the curious.
Object.assign(window, { famsam: page });
page.start().catch((error) => {
  document.getElementById("alert")!.hidden = false;
  document.getElementById("alert-text")!.textContent = `The page could not start: ${error.message ?? error}`;
});
