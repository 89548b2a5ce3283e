// The server's API, and what can go wrong with it.

import type { Matrix, Vec3 } from "./geometry";

export interface VolumeInfo {
  id: string;
  size_xyz: Vec3;
  spacing_mm: Vec3;
  ras_from_ijk: Matrix;
  display_from_ijk: Matrix;
  value_range: [number, number];
  modality: string;
  is_dicom: boolean;
  notes: string[];
}

export interface PointPrompt {
  type: "point";
  ras_mm: Vec3;
  positive: boolean;
}

export interface BoxPrompt {
  type: "box";
  lower_ras_mm: Vec3;
  upper_ras_mm: Vec3;
}

export interface SessionState {
  version: number;
  image: { size_zyx: Vec3; ras_from_ijk: Matrix };
  mask: unknown;
  prompts: (PointPrompt | BoxPrompt)[];
}

export interface Update {
  box_zyx: [Vec3, Vec3] | null;
  bits: string;
  voxels: number;
  quality: number | null;
  timings_ms: Record<string, number>;
  can_undo: boolean;
  can_redo: boolean;
  state: SessionState | null;
}

export interface Uncertainty {
  box_zyx: [Vec3, Vec3] | null;
  probabilities: string; // a byte a voxel of the box, 255 is certain
  expected_ml: number;
}

/** A mask that nobody asked for yet. */
export interface Candidate {
  box_zyx: [Vec3, Vec3];
  bits: string;
  quality: number;
}

export interface ServerInfo {
  proposes: boolean;
  limits: Record<string, number>;
}

export interface ExportedSegment {
  session_id: string;
  name: string;
  colour: string;
}

/** The server said no; the message is its sentence. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

/** The server cannot be reached. */
export class Disconnected extends Error {}

const NOBODY_BEHIND = [502, 503, 504]; // of a proxy; the server's own refusals have a code

export class Api {
  constructor(public token: string | null) {}

  json<T>(method: string, path: string, body?: unknown): Promise<T> {
    const headers: Record<string, string> = body === undefined ? {} : { "content-type": "application/json" };
    const init = { method, headers, body: body === undefined ? undefined : JSON.stringify(body) };
    return this.fetch(path, init).then((answer) => (answer.status === 204 ? undefined : whole(answer.json())) as T);
  }

  /** Ask for something whose answer does not matter; it is sent even if the page goes. */
  tell(method: string, path: string): void {
    this.fetch(path, { method, keepalive: true }).catch(() => undefined);
  }

  /** The answer's bytes; `progress` is given the part that has arrived, 0 to 1. */
  async bytes(method: string, path: string, body?: unknown, progress?: (part: number) => void): Promise<ArrayBuffer> {
    const headers: Record<string, string> = body === undefined ? {} : { "content-type": "application/json" };
    const answer = await this.fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    const total = Number(answer.headers.get("content-length"));
    if (!progress || !total || !answer.body) return whole(answer.arrayBuffer());
    const out = new Uint8Array(total);
    const reader = answer.body.getReader();
    for (let at = 0; ; ) {
      const { done, value } = await whole(reader.read());
      if (done) return out.buffer;
      out.set(value, at);
      at += value.length;
      progress(at / total);
    }
  }

  upload(file: Blob, progress: (part: number) => void): Promise<VolumeInfo> {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch tells nothing about the progress of an upload
      request.open("POST", "/v1/volumes");
      request.setRequestHeader("content-type", "application/octet-stream");
      if (this.token) request.setRequestHeader("authorization", `Bearer ${this.token}`);
      request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
      request.onerror = () => reject(new Disconnected());
      request.onload = () => {
        const answer = parsed(request.responseText);
        if (request.status === 201) resolve(answer as unknown as VolumeInfo);
        else reject(refusal(request.status, answer));
      };
      request.send(file);
    });
  }

  private async fetch(path: string, init: RequestInit): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.token && !/^[\x20-\x7e]*$/.test(this.token)) throw new Refusal(401, "wrong_token", "A token is printable ASCII.");
    if (this.token) headers.set("authorization", `Bearer ${this.token}`);
    const answer = await whole(fetch(path, { ...init, headers, cache: "no-store" }));
    if (!answer.ok) throw refusal(answer.status, parsed(await whole(answer.text())));
    return answer;
  }
}

/** An answer, or a part of it; one that breaks off is as good as none. */
function whole<T>(part: Promise<T>): Promise<T> {
  return part.catch(() => {
    throw new Disconnected();
  });
}

function parsed(text: string): Record<string, string> {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

function refusal(status: number, answer: Record<string, string>): Refusal | Disconnected {
  if (NOBODY_BEHIND.includes(status) && !answer.code) return new Disconnected();
  return new Refusal(status, answer.code ?? "", answer.detail ?? `The server answered with status ${status}.`);
}
