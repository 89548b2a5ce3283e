// What the buttons, sliders and lists do, and what is dropped on the page.

import type { Page } from "./main";
import type { Layout } from "./viewer";
import { chooseWindow } from "./windows";

const $ = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;

export function connectControls(page: Page): void {
  const { viewer } = page;
  const file = $<HTMLInputElement>("file");
  const on = (id: string, act: () => unknown) => $(id).addEventListener("click", () => void act());
  for (const id of ["open", "welcome-open"]) on(id, () => file.click());
  for (const id of ["sample", "welcome-sample"]) on(id, () => page.open({ kind: "sample" }));
  file.addEventListener("change", () => {
    const chosen = file.files?.[0];
    if (chosen) void page.open({ kind: "file", name: chosen.name }, chosen);
    file.value = "";
  });
  for (const tool of ["include", "exclude", "box"] as const) on(tool, () => page.setTool(tool));
  on("undo", () => page.walk("undo"));
  on("redo", () => page.walk("redo"));
  on("reset", () => page.act("POST", "/reset"));
  on("add-segment", () => page.addSegment());
  on("propose", () => page.proposals.toggle());
  on("take", () => page.proposals.take());
  on("end-proposals", () => page.proposals.end());
  on("doubt", () => page.toggleDoubt());
  on("help", () => page.help());
  on("alert-close", () => page.messages.alert(null));
  $("opacity").addEventListener("input", () => page.recolour());
  $("layout").addEventListener("change", (event) => viewer.layout((event.target as HTMLSelectElement).value as Layout));
  $("window").addEventListener("change", (event) => chooseWindow(viewer, (event.target as HTMLSelectElement).value));
  for (const button of document.querySelectorAll<HTMLButtonElement>(".save")) {
    button.addEventListener("click", () => void page.save(button.dataset.format!));
  }
  connectDrop(page);
}

function connectDrop(page: Page): void {
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const dropped = event.dataTransfer?.files[0];
    if (dropped) void page.open({ kind: "file", name: dropped.name }, dropped);
  });
}
