// What the keys do. Keys typed into a text field, and those of an open dialog, are left alone.

import type { Page } from "./main";
import type { Vec3 } from "./geometry";

const STEPS: Record<string, Vec3> = {
  ArrowLeft: [1, 0, 0], // views are seen from the feet and from the front: the patient's right is on the left
  ArrowRight: [-1, 0, 0],
  ArrowUp: [0, 1, 0],
  ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1],
  PageDown: [0, 0, -1],
};

export function keyboard(page: Page): void {
  const actions: Record<string, (shift: boolean) => void> = {
    enter: (shift) => (page.candidate && !shift ? page.proposals.take() : page.clickAtCrosshair(shift)),
    escape: () => page.proposals.end(),
    z: (shift) => page.walk(shift ? "redo" : "undo"),
    y: () => page.walk("redo"),
    delete: () => page.removeLast(),
    i: () => page.setTool("include"),
    e: () => page.setTool("exclude"),
    b: () => page.setTool("box"),
    c: (shift) => page.proposals.step(shift ? -1 : 1),
    n: () => page.addSegment(),
    v: () => page.toggle(),
    l: () => page.nextLayout(),
    u: () => page.toggleDoubt(),
    "?": () => page.help(),
  };
  window.addEventListener(
    "keydown",
    (event) => {
      if (isTyping(event) || event.altKey) return;
      const command = event.ctrlKey || event.metaKey;
      const key = event.key.toLowerCase();
      const step = STEPS[event.key];
      if (command && !(key === "z" || key === "y")) return;
      if (step) page.step(step.map((n) => (event.shiftKey ? 10 * n : n)) as Vec3);
      else if (key === "p") page.looks.setPreviewing(true);
      else if (/^[1-9]$/.test(key)) page.choose(Number(key) - 1);
      else if (key === "enter" && (event.target as HTMLElement).matches("button, input")) return;
      else if (actions[key]) actions[key](event.shiftKey);
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    { capture: true },
  );
  window.addEventListener("keyup", (event) => event.key.toLowerCase() === "p" && page.looks.setPreviewing(false), { capture: true });
  window.addEventListener("blur", () => page.looks.setPreviewing(false));
}

function isTyping(event: KeyboardEvent): boolean {
  const target = event.target as HTMLElement;
  return target.matches("input[type=text], input[type=password], input[type=range], select") || !!target.closest("dialog");
}
