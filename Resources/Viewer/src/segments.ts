// The list of segments in the side panel.

import type { Segment } from "./work";

export interface SegmentActions {
  choose(segment: Segment): void;
  rename(segment: Segment, name: string): void;
  recolour(segment: Segment, colour: string): void;
  toggle(segment: Segment): void;
  remove(segment: Segment): void;
}

let listed: { segment: Segment; look: string }[] = []; // as the list shows them

export function renderSegments(
  list: HTMLElement,
  segments: Segment[],
  active: Segment | null,
  voxelMl: number,
  actions: SegmentActions,
): void {
  const typing = list.contains(document.activeElement) && document.activeElement instanceof HTMLInputElement;
  const looks = segments.map((one) => `${one.name} ${one.colour} ${one.visible} ${one === active}`);
  const same = segments.length === listed.length && segments.every((one, k) => one === listed[k].segment);
  if (same && (typing || looks.every((look, k) => look === listed[k].look))) {
    segments.forEach((segment, k) => describe(list.children[k] as HTMLElement, segment, voxelMl));
    return; // the fields stay in place, also while a name is being typed
  }
  listed = segments.map((segment, k) => ({ segment, look: looks[k] }));
  list.replaceChildren(...segments.map((segment) => row(segment, segment === active, voxelMl, actions)));
}

function row(segment: Segment, isActive: boolean, voxelMl: number, actions: SegmentActions): HTMLElement {
  const item = document.createElement("li");
  item.className = isActive ? "active" : "";
  if (isActive) item.setAttribute("aria-current", "true");
  item.addEventListener("click", (event) => {
    if (!isActive && event.target instanceof HTMLElement && !event.target.closest("button, input[type=color]")) {
      actions.choose(segment);
    }
  });
  const colour = input("color", segment.colour, `Colour of ${segment.name}`);
  colour.addEventListener("change", () => actions.recolour(segment, colour.value));
  const name = input("text", segment.name, "Name of the segment");
  name.maxLength = 64;
  name.addEventListener("change", () => actions.rename(segment, name.value.trim()));
  const show = button(segment.visible ? "◉" : "○", segment.visible ? `Hide ${segment.name}` : `Show ${segment.name}`);
  show.setAttribute("aria-pressed", String(segment.visible));
  show.addEventListener("click", () => actions.toggle(segment));
  const remove = button("×", `Delete ${segment.name}`);
  remove.addEventListener("click", () => actions.remove(segment));
  item.append(colour, name, show, remove, document.createElement("small"));
  describe(item, segment, voxelMl);
  return item;
}

function describe(item: HTMLElement, segment: Segment, voxelMl: number): void {
  const text = item.querySelector("small")!;
  const points = segment.state?.prompts.length ?? 0;
  text.textContent = segment.voxels
    ? `${millilitres(segment.voxels * voxelMl)} · ${points} ${points === 1 ? "prompt" : "prompts"}`
    : "empty: click on a structure";
}

export function millilitres(ml: number): string {
  return `${ml < 0.1 ? Number(ml.toPrecision(2)) : ml.toFixed(ml < 10 ? 2 : 1)} ml`;
}

function input(type: string, value: string, label: string): HTMLInputElement {
  const made = document.createElement("input");
  made.type = type;
  made.value = value;
  made.setAttribute("aria-label", label);
  return made;
}

function button(text: string, label: string): HTMLButtonElement {
  const made = document.createElement("button");
  made.textContent = text;
  made.title = label;
  made.setAttribute("aria-label", label);
  return made;
}
