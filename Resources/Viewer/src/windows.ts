// Window and level presets: level and width in Hounsfield units for CT, the robust and the full range for all.

import type { VolumeInfo } from "./api";
import type { Viewer } from "./viewer";

const CT: [string, number, number][] = [
  ["soft tissue", 40, 400],
  ["lung", -600, 1500],
  ["bone", 400, 1800],
  ["brain", 40, 80],
  ["liver", 60, 160],
  ["vessels", 250, 700],
];

export function fillWindows(select: HTMLSelectElement, info: VolumeInfo, viewer: Viewer): void {
  const volume = viewer.nv.volumes[0];
  const [low, high] = info.value_range;
  const isCt = info.modality === "CT" || (info.modality === "" && low < -500 && high > 300);
  const choices: [string, number, number][] = [
    ["automatic", volume.robust_min ?? low, volume.robust_max ?? high],
    ["full range", low, high],
    ...(isCt ? CT.map(([name, level, width]): [string, number, number] => [name, level - width / 2, level + width / 2]) : []),
  ];
  select.replaceChildren(...choices.map(([name, from, to]) => new Option(name, `${from},${to}`)));
  if (isCt) {
    select.selectedIndex = 2;
    chooseWindow(viewer, select.value);
  }
}

export function chooseWindow(viewer: Viewer, value: string): void {
  const [low, high] = value.split(",").map(Number);
  viewer.window(low, high);
}
