// Candidates: masks that the model proposes without a click, one after the other, until one is taken or the user ends.

import type { Candidate as Answer, ServerInfo } from "./api";
import { type BitMask, unpackBits } from "./bits";
import { transform, type Vec3 } from "./geometry";
import type { Box, LabelOverlay } from "./labels";
import type { Messages } from "./messages";
import { millilitres } from "./segments";
import { drawThumbnail } from "./thumbnails";
import type { Viewer } from "./viewer";
import type { Work } from "./work";

const $ = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const HINT = "Propose structures of the whole scan, without a click (C)";
const CANNOT = "The server's model proposes nothing: its weights have no proposal head.";

/** What the candidates need of the page. */
export interface Surroundings {
  readonly overlay: LabelOverlay | null;
  readonly messages: Messages;
  readonly looks: { settled(): void };
  act(method: string, path: string, body: object): void;
  guard(work: () => Promise<unknown>): Promise<void>;
}

interface Candidate {
  answer: Answer;
  box: Box;
  mask: BitMask; // in the box
  middle: Vec3; // (x, y, z): the voxel of the mask that is closest to the middle of all
  ml: number;
}

export class Proposals {
  private found: Candidate[] | null = null;
  private at = 0; // the current one
  private shown = false; // whether it is drawn in the views
  private steps = false; // whether it has been taken: the next step leads on
  private isOpen = false;
  private search: object | null = null; // the one under way
  private cannot = false;

  constructor(
    private readonly viewer: Viewer,
    private readonly work: Work,
    private readonly page: Surroundings,
  ) {}

  /** What is drawn, and would be taken. */
  get candidate(): Candidate | null {
    return (this.shown && this.found?.[this.at]) || null;
  }

  get searching(): boolean {
    return this.search !== null;
  }

  /** What the server can do. */
  offer(server: ServerInfo): void {
    this.cannot = !server.proposes;
    this.refresh();
  }

  /** Another scan has other candidates. */
  forget(): void {
    this.found = this.search = null;
    this.isOpen = this.shown = this.steps = false;
    this.refresh();
  }

  toggle(): void {
    if (this.isOpen) this.end();
    else this.step(1);
  }

  end(): void {
    if (!this.isOpen) return;
    this.isOpen = this.shown = false;
    this.redraw();
  }

  /** Show the candidates, or the next or last one of them; look for them where there are none yet. */
  step(by: 1 | -1): void {
    if (this.cannot) this.page.messages.status(CANNOT);
    if (this.cannot || !this.page.overlay) return;
    this.isOpen = true;
    if (!this.found) {
      void this.page.guard(() => this.find());
      this.refresh();
    } else if (this.found.length) {
      const goesOn = this.shown || this.steps;
      this.show((this.at + (goesOn ? by : 0) + this.found.length) % this.found.length);
    } else this.refresh();
  }

  /** The candidate becomes the active segment's mask, in one step of its history. */
  take(): void {
    const { candidate } = this;
    if (!candidate) return;
    this.steps = true;
    const { box_zyx, bits, quality } = candidate.answer;
    this.page.act("PUT", "/mask", { box_zyx, bits, quality });
  }

  /** The segment is about to change: what is drawn of a candidate goes with that. */
  setAside(): void {
    this.shown = false;
    this.refresh();
  }

  private async find(): Promise<void> {
    if (this.search) return;
    const search = (this.search = {});
    try {
      const answers = await this.work.propose(() => this.search === search);
      if (this.search !== search) return;
      this.found = answers.map((one) => this.candidateOf(one));
      this.list(this.found);
      this.at = 0;
      if (this.isOpen && this.found.length) this.show(0);
    } catch (error) {
      if (this.search !== search) return; // of a scan that is gone
      this.isOpen = false;
      throw error;
    } finally {
      if (this.search === search) this.search = null;
      this.refresh();
    }
  }

  private show(index: number): void {
    this.at = index;
    this.shown = true;
    this.steps = false;
    this.viewer.lookAt(transform(this.viewer.grid!.rasFromIjk, this.found![index].middle));
    this.redraw();
    // From another button Enter would press that one again.
    if (document.activeElement instanceof HTMLButtonElement) this.buttons[index].focus();
  }

  private redraw(): void {
    this.refresh();
    this.page.looks.settled();
  }

  /** The panel, after anything changed. */
  refresh(): void {
    const propose = $<HTMLButtonElement>("propose");
    propose.disabled = this.cannot || !this.page.overlay;
    propose.title = this.cannot ? CANNOT : HINT;
    propose.setAttribute("aria-pressed", String(this.isOpen));
    $("proposals").hidden = !this.isOpen;
    $("proposals-progress").hidden = !this.searching;
    $("candidates").hidden = !this.found?.length;
    $<HTMLButtonElement>("take").disabled = !this.candidate;
    this.buttons.forEach((button, k) => button.setAttribute("aria-current", String(this.shown && k === this.at)));
    const text = this.text();
    if ($("proposals-text").textContent !== text) $("proposals-text").textContent = text;
  }

  private text(): string {
    if (this.searching) return "Looking for structures…";
    if (!this.found?.length) return "Nothing was found that may be a structure.";
    if (!this.candidate) return `${this.found.length} found: C shows ${this.steps ? "the next one" : "the last one again"}.`;
    return `${this.at + 1} of ${this.found.length}: ${described(this.candidate)}`;
  }

  private get buttons(): HTMLButtonElement[] {
    return [...$("candidates").querySelectorAll("button")];
  }

  private list(found: Candidate[]): void {
    const items = found.map((one, k) => {
      const button = document.createElement("button");
      const picture = document.createElement("canvas");
      drawThumbnail(picture, this.viewer, one);
      button.append(picture, percent(one));
      button.title = `Candidate ${k + 1}: quality ${described(one)}; press again to take it`;
      button.setAttribute("aria-label", button.title);
      button.addEventListener("click", () => (this.candidate === one ? this.take() : this.show(k)));
      const item = document.createElement("li");
      item.append(button);
      return item;
    });
    $("candidates").replaceChildren(...items);
  }

  private candidateOf(answer: Answer): Candidate {
    const mask = unpackBits(answer.bits);
    const { middle, voxels } = middleOf(mask, answer.box_zyx);
    return { answer, box: answer.box_zyx, mask, middle, ml: voxels * this.viewer.grid!.voxelMl };
  }
}

function percent({ answer }: Candidate): string {
  return `${Math.round(100 * answer.quality)} %`;
}

function described(candidate: Candidate): string {
  return `${percent(candidate)} predicted, ${millilitres(candidate.ml)}`;
}

/** How many voxels a mask has, and which of them lies closest to their mean. */
function middleOf(mask: BitMask, [low, high]: Box): { middle: Vec3; voxels: number } {
  const [depth, height, width] = high.map((n, axis) => n - low[axis]);
  const each = (visit: (x: number, y: number, z: number) => void) => {
    for (let z = 0, n = 0; z < depth; z++) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++, n++) if (mask.get(n)) visit(x, y, z);
      }
    }
  };
  let [voxels, sx, sy, sz] = [0, 0, 0, 0];
  each((x, y, z) => {
    voxels++;
    sx += x;
    sy += y;
    sz += z;
  });
  let [least, middle]: [number, Vec3] = [Infinity, [0, 0, 0]];
  each((x, y, z) => {
    const away = (x - sx / voxels) ** 2 + (y - sy / voxels) ** 2 + (z - sz / voxels) ** 2;
    if (away < least) [least, middle] = [away, [x, y, z]];
  });
  return { middle: middle.map((n, axis) => n + low[2 - axis]) as Vec3, voxels };
}
