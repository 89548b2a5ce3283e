// What the page tells: progress, what went wrong, and how the last click went.

import { Refusal } from "./api";
import { ScanNeeded } from "./work";

const $ = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const LOST = "The connection to the server is lost. Work goes on when it is back.";

export class Messages {
  /** Something that takes a while; `part` of it is done, 0 to 1, where that is known. */
  readonly progress = (what: string, part?: number): void => {
    $("progress").hidden = false;
    $("progress-text").textContent = what;
    const bar = $<HTMLProgressElement>("progress-bar");
    if (part === undefined) bar.removeAttribute("value");
    else bar.value = part;
  };

  done(): void {
    $("progress").hidden = true;
  }

  alert(text: string | null): void {
    $("alert").hidden = text === null;
    $("alert-text").textContent = text ?? "";
  }

  /** What the user should know of a scan that was opened. */
  notes(notes: string[]): void {
    this.alert(notes.length ? notes.map(sentence).join(" ") : null);
  }

  status(text: string): void {
    $("status").textContent = text;
  }

  connection(lost: boolean): void {
    if (lost) this.alert(LOST);
    else if ($("alert-text").textContent === LOST) this.alert(null);
    if (lost) this.progress("Waiting for the server");
  }

  /** What went wrong, in a sentence. */
  problem(error: unknown): void {
    this.status("");
    if (error instanceof ScanNeeded) {
      this.alert("The server no longer has this scan. Open the same file again, and the segments come back.");
    } else if (!(error instanceof Refusal) || error.code !== "superseded") {
      this.alert(error instanceof Error && error.message ? sentence(error.message) : "The server cannot be reached.");
    }
  }
}

function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
