// What is shown or prepared without changing anything: previews, candidates, the map of doubt, and views encoded ahead.

import type { SessionState } from "./api";
import { type BitMask, unpackBits, unzipped } from "./bits";
import type { Vec3 } from "./geometry";
import { type Box, DOUBT_LEVELS, type LabelOverlay } from "./labels";
import type { Viewer } from "./viewer";
import type { Work } from "./work";

const REST_MS = 150; // the pointer rests when it has not moved for so long
const LEAST_DOUBT_BITS = 0.15; // less is not shown

/** What the looks need to know of the page. */
export interface Surroundings {
  readonly overlay: LabelOverlay | null;
  /** Whether something that changes the segment is under way. */
  readonly busy: boolean;
  /** What a click would do here: include, exclude, or nothing. */
  readonly click: "include" | "exclude" | null;
  /** What may be taken as a segment's mask. */
  readonly candidate: { box: Box; mask: BitMask } | null;
  /** The volume to expect by the map of doubt; null where none is shown. */
  expected(ml: number | null): void;
}

interface Doubt {
  state: SessionState; // of the result that it is about
  box: Box | null;
  levels: Uint8Array;
  expectedMl: number;
}

export class Looks {
  previews = 0; // shown so far, and
  prepared = 0; // views encoded ahead: for tests and the benchmark
  previewing = false;
  doubting = false;
  private pointer: Vec3 | null = null;
  private resting: ReturnType<typeof setTimeout> | undefined;
  private doubt: Doubt | null = null;
  private showsCandidate = false;
  private readonly underWay = { preview: false, doubt: false, ahead: false };

  constructor(
    private readonly viewer: Viewer,
    private readonly work: Work,
    private readonly page: Surroundings,
  ) {}

  get busy(): boolean {
    return Object.values(this.underWay).some((one) => one);
  }

  /** The pointer is over this place of the scan, or over none. */
  point(ras: Vec3 | null): void {
    this.pointer = ras;
    if (this.previewing) void this.preview();
    else this.rest();
  }

  /** Everything that changes the segment is done: look at what came of it. */
  settled(): void {
    this.showCandidate();
    void this.showDoubt();
    this.rest();
  }

  setPreviewing(on: boolean): void {
    if (this.previewing === on) return;
    this.previewing = on;
    if (on) void this.preview();
    else if (this.page.overlay?.endPassing()) this.viewer.redraw();
    if (!on) this.settled();
  }

  setDoubting(on: boolean): void {
    this.doubting = on;
    if (!on && !this.previewing && this.page.overlay?.endPassing()) this.viewer.redraw();
    this.showCandidate();
    void this.showDoubt();
  }

  private showCandidate(): void {
    const { candidate, overlay } = this.page;
    if (this.previewing || (!candidate && !this.showsCandidate)) return;
    this.showsCandidate = candidate !== null;
    if (candidate) overlay?.showCandidate(candidate.box, candidate.mask);
    else overlay?.endPassing();
    this.viewer.redraw();
  }

  private async preview(): Promise<void> {
    if (this.underWay.preview || this.page.busy) return;
    this.underWay.preview = true;
    for (let asked = this.ask(null); asked; ) {
      const { segment, at } = asked;
      const update = await asked.answer;
      asked = this.ask(at); // the server is at the next one while this one is drawn
      if (update && this.previewing && !this.page.busy && segment === this.work.segment) {
        if (update.box_zyx) this.page.overlay?.preview(segment.label, update.box_zyx, unpackBits(update.bits));
        else this.page.overlay?.endPassing();
        this.previews++;
        this.viewer.redraw();
      }
      asked ??= this.ask(at); // the pointer may have moved meanwhile
    }
    this.underWay.preview = false;
  }

  /** Ask what a click where the pointer is would do; null if there is nothing to ask, or the pointer is where it was. */
  private ask(before: Vec3 | null) {
    const { segment } = this.work;
    const at = this.pointer;
    if (!this.previewing || !at || at === before || !segment || this.page.busy) return null;
    const positive = this.page.click !== "exclude";
    return { segment, at, answer: this.work.preview(segment, { point_ras_mm: at, positive }) };
  }

  /** The map of the active segment's result as it stands; asked for once, and again when the result is another. */
  private async showDoubt(): Promise<void> {
    if (this.underWay.doubt) return;
    this.underWay.doubt = true;
    let shown: Doubt | null = null;
    while (this.doubting && !this.previewing && !this.page.busy && !this.page.candidate) {
      const { segment } = this.work;
      if (!segment?.visible || !segment.state?.prompts.length) break;
      const { state } = segment;
      if (this.doubt?.state === state) {
        shown = this.doubt;
        if (shown.box) this.page.overlay?.showDoubt(shown.box, shown.levels);
        this.viewer.redraw();
        break;
      }
      const found = await this.work.uncertainty(segment);
      if (!found) break;
      const levels = found.box_zyx ? levelsOf(unzipped(found.probabilities)) : new Uint8Array();
      this.doubt = { state, box: found.box_zyx, levels, expectedMl: found.expected_ml };
    }
    this.page.expected(shown ? shown.expectedMl : null);
    this.underWay.doubt = false;
  }

  private rest(): void {
    clearTimeout(this.resting);
    if (this.pointer) this.resting = setTimeout(() => void this.prepare(), REST_MS);
  }

  /** Have the views of a click encoded, one by one, as long as the pointer rests and nothing else is up. */
  private async prepare(): Promise<void> {
    if (this.underWay.ahead) return;
    this.underWay.ahead = true;
    const at = this.pointer;
    while (at && at === this.pointer && this.page.click && !this.page.busy && !this.previewing) {
      const { segment } = this.work;
      if (!segment || !(await this.work.encodeAhead(segment, at))) break;
      this.prepared++;
    }
    this.underWay.ahead = false;
    if (at !== this.pointer) this.rest();
  }
}

/** Probabilities in steps of 1/255 -> levels of doubt, 0 (sure) to DOUBT_LEVELS (cannot tell). */
function levelsOf(probabilities: Uint8Array): Uint8Array {
  const table = Uint8Array.from({ length: 256 }, (_, step) => {
    const p = Math.min(1 - 1e-6, Math.max(1e-6, step / 255));
    const bits = -(p * Math.log2(p) + (1 - p) * Math.log2(1 - p));
    return Math.max(0, Math.ceil(((bits - LEAST_DOUBT_BITS) / (1 - LEAST_DOUBT_BITS)) * DOUBT_LEVELS));
  });
  return probabilities.map((step) => table[step]);
}
