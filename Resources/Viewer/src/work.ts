// The work in progress: a scan, its segments, and their sessions on the server.
//
// The prompts are kept here (and in the tab's storage), not only on the server: after a reload, or when the server was
// restarted, the scan is opened again and every segment is restored from its prompts. The scan itself is never stored.

import {
  Api,
  type Candidate,
  Disconnected,
  type ExportedSegment,
  Refusal,
  type ServerInfo,
  type SessionState,
  type Uncertainty,
  type Update,
  type VolumeInfo,
} from "./api";
import type { Vec3 } from "./geometry";

export type Source = { kind: "sample" } | { kind: "path"; path: string } | { kind: "file"; name: string };

export interface Segment {
  label: number;
  name: string;
  colour: string;
  visible: boolean;
  state: SessionState | null;
  past: SessionState[]; // the prompts at every step that undo goes back to, and
  future: SessionState[]; // that redo goes on to: they reach across a restart of the server
  sessionId: string | null;
  served: { undo: number; redo: number }; // steps of these that the server's session holds as well
  voxels: number;
  quality: number | null;
}

export interface Saved {
  source: Source;
  volumeId: string;
  segments: Segment[];
  active: number;
  inFile: boolean;
  left: boolean; // by its tab; else this is a copy of a tab that has the sessions still, or what a crash has left
}

/** The scan that was opened is not the one that the segments were made on. */
export class AnotherScan extends Error {}

/** The server has forgotten the scan, and after a reload the page has not got it any more either. */
export class ScanNeeded extends Error {}

/** What the page does about its work's news. */
export interface WorkEvents {
  /** The server cannot be reached; told once, until it is back. */
  connection(lost: boolean): void;
  /** The server asks for another token than before. */
  login(): Promise<void>;
  /** A segment's whole mask, brought back from its prompts. */
  restored(segment: Segment, update: Update): void;
}

const KEY = "famsam-work-2";
const RETRY_MS = 1000;
// Okabe and Ito's palette, which the colour-blind can tell apart, brightest first.
export const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2", "#999999"];

export class Work {
  source: Source | null = null;
  volume: VolumeInfo | null = null;
  segments: Segment[] = [];
  active = 0;
  private inFile = true; // all segments, as they are, were saved to a file
  private changes = 0; // so far, of any segment
  private file: Blob | null = null;
  private readonly ended: string[] = []; // sessions that the server is to close when it can be reached again
  private restoring: Promise<void> | null = null;
  private saving: ReturnType<typeof setTimeout> | undefined;
  private readonly opening = new Map<Segment, Promise<string>>(); // so that a click and a look open one session together

  constructor(
    readonly api: Api,
    private readonly events: WorkEvents,
  ) {
    window.addEventListener("pagehide", () => this.leave());
  }

  get segment(): Segment | null {
    return this.segments[this.active] ?? null;
  }

  /** Whether there is something that was not saved to a file. */
  get unsaved(): boolean {
    return !this.inFile && this.segments.some((one) => one.voxels || one.state?.prompts.length);
  }

  /** Open a scan in place of the present one. */
  async open(source: Source, file: Blob | null, progress: (what: string, part?: number) => void): Promise<VolumeInfo> {
    const before = this.volume;
    const opened = await this.send(source, file, progress);
    this.source = source;
    this.file = file;
    this.volume = opened;
    this.segments = [];
    this.active = 0;
    this.inFile = true;
    if (before) this.api.json("DELETE", `/v1/volumes/${before.id}`).catch(() => undefined);
    return opened;
  }

  addSegment(): Segment {
    const taken = new Set(this.segments.map((one) => one.label));
    let label = 1;
    while (taken.has(label)) label++;
    const segment: Segment = {
      label,
      name: `Segment ${label}`,
      colour: COLOURS[(label - 1) % COLOURS.length],
      visible: true,
      state: null,
      past: [],
      future: [],
      sessionId: null,
      served: { undo: 0, redo: 0 },
      voxels: 0,
      quality: null,
    };
    this.segments.push(segment);
    this.active = this.segments.length - 1;
    this.save();
    return segment;
  }

  removeSegment(segment: Segment): void {
    if (segment.sessionId) this.end(segment.sessionId);
    this.segments = this.segments.filter((one) => one !== segment);
    this.active = Math.max(0, Math.min(this.active, this.segments.length - 1));
    this.save();
  }

  /** A verb that adds a step to a segment's history; a drag that goes on replaces its own last step. */
  async verb(segment: Segment, method: string, path: string, body?: object, dragGoesOn = false): Promise<Update> {
    let replaces = false;
    const update = await this.insist(segment, () => {
      replaces = dragGoesOn && segment.served.undo > 0;
      return this.ask(segment, method, path, replaces ? { ...body, continues: true } : body);
    });
    if (!dragGoesOn) {
      segment.past.push(segment.state ?? { ...update.state!, mask: null, prompts: [] });
      segment.served.undo++;
    }
    segment.future = [];
    segment.served.redo = 0;
    this.changed(segment, update);
    return update;
  }

  /** Undo or redo, along the server's history where it reaches, else by restoring the prompts of that step. */
  async walk(segment: Segment, which: "undo" | "redo"): Promise<Update | null> {
    const [from, to] = which === "undo" ? [segment.past, segment.future] : [segment.future, segment.past];
    const target = from.at(-1);
    if (!target) return null;
    const update = await this.insist(segment, async () => {
      if (segment.served[which] > 0) {
        const walked = await this.ask(segment, "POST", `/${which}`);
        segment.served[which]--;
        segment.served[which === "undo" ? "redo" : "undo"]++;
        return walked;
      }
      const restored = await this.ask(segment, "PUT", "/state", { state: target });
      segment.served = { undo: 0, redo: 0 };
      return restored;
    });
    from.pop();
    to.push(segment.state!);
    this.changed(segment, { ...update, state: target });
    return update;
  }

  /** What a click would change; like all that only looks, null if it cannot be had now. */
  preview(segment: Segment, body: unknown): Promise<Update | null> {
    return this.look(() => this.ask<Update>(segment, "POST", "/preview", body), true);
  }

  /** How sure the model is of a segment's result. */
  uncertainty(segment: Segment): Promise<Uncertainty | null> {
    return this.look(() => this.ask<Uncertainty>(segment, "GET", "/uncertainty"), true);
  }

  /** Prepare one view for a click at a place; whether there may be more to prepare. */
  async encodeAhead(segment: Segment, ras: Vec3): Promise<boolean> {
    const answer = await this.look(() => this.ask<{ more: boolean }>(segment, "POST", "/encode-ahead", { point_ras_mm: ras }));
    return answer?.more ?? false;
  }

  /** Whatever keeps a look from being had (something newer, a server that is away) is told by what changes something. */
  private async look<T>(ask: () => Promise<T>, wanted = false): Promise<T | null> {
    if (this.restoring) return null;
    return ask().catch((error) => {
      // What the user asked for brings back a session that expired, so that the next look finds one.
      if (wanted && error instanceof Refusal && error.code === "not_found") this.recover().catch(() => undefined);
      return null;
    });
  }

  /** Candidate masks of the scan, the best first; found in a session of their own, so that no click waits for them. */
  propose(isWanted: () => boolean): Promise<Candidate[]> {
    return this.insist(null, async () => {
      if (!isWanted()) throw new Refusal(409, "superseded", "another scan was opened");
      const { id } = await this.api.json<{ id: string }>("POST", `/v1/volumes/${this.volume!.id}/sessions`);
      try {
        return (await this.api.json<{ candidates: Candidate[] }>("POST", `/v1/sessions/${id}/proposals`, {})).candidates;
      } finally {
        this.end(id);
      }
    });
  }

  async export(format: string): Promise<ArrayBuffer> {
    return this.insist(null, async () => {
      const segments: ExportedSegment[] = [];
      for (const one of this.segments) {
        segments.push({ session_id: await this.sessionOf(one), name: one.name, colour: one.colour });
      }
      const { changes } = this;
      const content = await this.api.bytes("POST", `/v1/volumes/${this.volume!.id}/export`, { format, segments });
      this.inFile = changes === this.changes;
      this.save();
      return content;
    });
  }

  /** Keep everything for a reload; soon, so that nobody waits for it. */
  save(): void {
    this.saving ??= setTimeout(() => this.saveNow());
  }

  /** The tab is closed or reloaded: whoever reads what it kept has its sessions, if that is soon. */
  private leave(): void {
    this.saveNow(true);
    this.leaveSessions();
  }

  private leaveSessions(): void {
    for (const { sessionId } of this.segments) if (sessionId) this.api.tell("POST", `/v1/sessions/${sessionId}/leave`);
  }

  private saveNow(left = false): void {
    clearTimeout(this.saving);
    this.saving = undefined;
    if (!this.source || !this.volume) return;
    const { source, segments, active, inFile } = this;
    const saved: Saved = { source, volumeId: this.volume.id, segments, active, inFile, left };
    const withoutHistory = segments.map((one) => ({ ...one, past: [], future: [], served: { undo: 0, redo: 0 } }));
    if (!stored(saved) && !stored({ ...saved, segments: withoutHistory })) sessionStorage.removeItem(KEY);
  }

  static saved(): Saved | null {
    try {
      return JSON.parse(sessionStorage.getItem(KEY) ?? "null");
    } catch {
      return null;
    }
  }

  /** Go on after a reload; false if the scan is needed again from the user. */
  async resume(saved: Saved, progress: (what: string, part?: number) => void): Promise<boolean> {
    this.source = saved.source;
    this.segments = saved.segments;
    this.active = saved.active;
    this.inFile = saved.inFile;
    if (!saved.left) {
      this.leaveSessions();
      for (const one of this.segments) one.sessionId = null;
    }
    try {
      this.volume = await this.api.json<VolumeInfo>("GET", `/v1/volumes/${saved.volumeId}`);
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== "not_found") throw error;
      if (saved.source.kind === "file") return false;
      this.volume = await this.send(saved.source, null, progress);
      for (const one of this.segments) one.sessionId = null;
    }
    this.save();
    return true;
  }

  /** The same scan again, after a reload of which the server knows nothing any more; throws AnotherScan if it is not. */
  async reopen(file: Blob, name: string, progress: (what: string, part?: number) => void): Promise<void> {
    const opened = await this.send({ kind: "file", name }, file, progress);
    const made = this.segments.map((one) => one.state?.image).find((image) => image);
    if (made && !isOf(made, opened)) {
      this.api.json("DELETE", `/v1/volumes/${opened.id}`).catch(() => undefined);
      throw new AnotherScan();
    }
    this.volume = opened;
    this.source = { kind: "file", name };
    this.file = file;
    for (const one of this.segments) one.sessionId = null;
    this.save();
  }

  /** Bring every segment's mask back: from its session where that has its prompts and no others, else from its prompts. */
  async restoreMasks(): Promise<void> {
    for (const segment of this.segments) {
      if (segment.sessionId) {
        try {
          const update = await this.api.json<Update>("GET", `/v1/sessions/${segment.sessionId}/mask`);
          if (isSame(update.state, segment.state)) {
            this.note(segment, update);
            this.events.restored(segment, update);
            continue;
          }
          this.end(segment.sessionId);
        } catch (error) {
          if (!isLost(error)) throw error;
        }
      }
      segment.sessionId = null;
      segment.served = { undo: 0, redo: 0 };
      if (segment.state) await this.sessionOf(segment);
    }
    for (const id of this.ended.splice(0)) this.end(id);
    this.save();
  }

  private changed(segment: Segment, update: Update): void {
    this.note(segment, update);
    this.inFile = false;
    this.changes++;
    this.save();
  }

  private note(segment: Segment, update: Update): void {
    segment.voxels = update.voxels;
    segment.quality = update.quality;
    if (update.state) segment.state = update.state;
  }

  private async send(source: Source, file: Blob | null, progress: (what: string, part?: number) => void): Promise<VolumeInfo> {
    if (source.kind === "sample") {
      progress("Opening the sample");
      return this.api.json("POST", "/v1/volumes/sample");
    }
    if (source.kind === "path") {
      progress("Reading the scan");
      return this.api.json("POST", "/v1/volumes/path", { path: source.path });
    }
    const { limits } = await this.api.json<ServerInfo>("GET", "/v1/server");
    if (file!.size > limits.upload_bytes) {
      const [has, most] = [file!.size, limits.upload_bytes].map((bytes) => `${Math.round(bytes / 2 ** 20)} MiB`);
      throw new Error(`the file has ${has}, this server takes at most ${most}; crop or compress the scan`);
    }
    progress("Sending the scan", 0);
    return this.api.upload(file!, (part) => progress(part < 1 ? "Sending the scan" : "Reading the scan", part < 1 ? part : undefined));
  }

  private async ask<T = Update>(segment: Segment, method: string, path: string, body?: unknown): Promise<T> {
    return this.api.json<T>(method, `/v1/sessions/${await this.sessionOf(segment)}${path}`, body);
  }

  private async sessionOf(segment: Segment): Promise<string> {
    if (segment.sessionId) return segment.sessionId;
    let opening = this.opening.get(segment);
    if (!opening) {
      opening = this.openSession(segment).finally(() => this.opening.delete(segment));
      this.opening.set(segment, opening);
    }
    return opening;
  }

  /** A session that has a segment's prompts; it is the segment's only when they are there. */
  private async openSession(segment: Segment): Promise<string> {
    const { id } = await this.api.json<{ id: string }>("POST", `/v1/volumes/${this.volume!.id}/sessions`);
    const { state } = segment;
    if (state && (state.prompts.length || state.mask)) {
      try {
        const update = await this.api.json<Update>("PUT", `/v1/sessions/${id}/state`, { state });
        this.note(segment, update);
        this.events.restored(segment, update);
      } catch (error) {
        this.end(id);
        throw error;
      }
    }
    segment.sessionId = id;
    return id;
  }

  private end(sessionId: string): void {
    this.api.json("DELETE", `/v1/sessions/${sessionId}`).catch((error) => {
      if (error instanceof Disconnected) this.ended.push(sessionId);
    });
  }

  /** Do it; when the server is away or has forgotten, wait, restore the work there from the prompts, and do it again. */
  private async insist<T>(segment: Segment | null, work: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        if (segment) this.check(segment);
        return await work();
      } catch (error) {
        if (segment) this.check(segment);
        if (!isLost(error)) throw error;
        // Whether a verb without an answer was carried out is not known: its session begins anew from the prompts.
        if (segment?.sessionId && error instanceof Disconnected) {
          this.ended.push(segment.sessionId);
          segment.sessionId = null;
        }
        await this.recover();
      }
    }
  }

  /** What a deleted segment waited for has been superseded. */
  private check(segment: Segment): void {
    if (!this.segments.includes(segment)) throw new Refusal(409, "superseded", "the segment was deleted");
  }

  /** Wait until the server is back, open the scan there again if it is gone, and restore every segment. */
  private recover(): Promise<void> {
    this.restoring ??= this.reconnect().finally(() => (this.restoring = null));
    return this.restoring;
  }

  private async reconnect(): Promise<void> {
    for (let told = false; ; ) {
      try {
        await this.reopenIfGone();
        await this.restoreMasks();
        if (told) this.events.connection(false);
        return;
      } catch (error) {
        if (!isLost(error)) throw error;
        if (error instanceof Refusal && error.code === "wrong_token") await this.events.login();
        if (!(error instanceof Disconnected)) continue;
        if (!told) this.events.connection(true);
        told = true;
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  }

  private async reopenIfGone(): Promise<void> {
    try {
      await this.api.json("GET", `/v1/volumes/${this.volume!.id}`);
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== "not_found") throw error;
      if (this.source!.kind === "file" && !this.file) throw new ScanNeeded();
      this.volume = await this.send(this.source!, this.file, () => undefined);
    }
  }
}

/** Whether something fits into the tab's storage, and is there now. */
function stored(saved: Saved): boolean {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(saved));
    return true;
  } catch {
    return false;
  }
}

/** Whether two states have the same prompts and begin from the same mask. */
function isSame(one: SessionState | null, other: SessionState | null): boolean {
  const [made, known] = [one, other].map((state) => JSON.stringify([state?.mask ?? null, state?.prompts ?? []]));
  return made === known;
}

/** Whether waiting, or opening everything again, can help. */
function isLost(error: unknown): boolean {
  return error instanceof Disconnected || (error instanceof Refusal && ["not_found", "wrong_token"].includes(error.code));
}

/** Whether prompts that were made on an image fit a scan. */
function isOf(image: SessionState["image"], scan: VolumeInfo): boolean {
  const [x, y, z] = scan.size_xyz;
  const near = (one: number, other: number) => Math.abs(one - other) < 1e-3;
  return (
    [z, y, x].every((n, k) => n === image.size_zyx[k]) &&
    scan.ras_from_ijk.every((row, r) => row.every((value, c) => near(value, image.ras_from_ijk[r][c])))
  );
}
