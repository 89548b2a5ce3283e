// Bundles the page into the folder given as the first argument, with the licences of everything that is in the bundle.
import { build } from "esbuild";
import { cp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "dist");

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const result = await build({
  entryPoints: [join(here, "src/main.ts")],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  outfile: join(out, "viewer.js"),
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});
for (const name of ["index.html", "style.css", "icon.svg"]) {
  await cp(join(here, "src", name), join(out, name));
}
await writeFile(join(out, "licenses.txt"), await licences(packagesIn(result.metafile)));

function packagesIn(metafile) {
  const found = new Set();
  for (const input of Object.keys(metafile.inputs)) {
    const inside = input.split("node_modules/").slice(1).at(-1);
    if (inside) found.add(inside.split("/").slice(0, inside.startsWith("@") ? 2 : 1).join("/"));
  }
  return found;
}

// What a bundled package has bundled itself counts as well: every runtime dependency is walked.
async function licences(bundled) {
  const waiting = [...bundled];
  const texts = new Map();
  while (waiting.length) {
    const name = waiting.pop();
    if (texts.has(name)) continue;
    const folder = join(here, "node_modules", name);
    const manifest = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    const files = (await readdir(folder)).filter((file) => /^(licen[cs]e|copying|notice)/i.test(file)).sort();
    const parts = await Promise.all(files.map((file) => readFile(join(folder, file), "utf8")));
    const text = parts.join("\n") || (await statement(manifest));
    texts.set(name, `${name} ${manifest.version} (${manifest.license ?? "see below"})\n\n${text.trim()}\n`);
    waiting.push(...Object.keys(manifest.dependencies ?? {}));
  }
  const rule = `\n${"-".repeat(78)}\n\n`;
  return [...texts.keys()].sort().map((name) => texts.get(name)).join(rule);
}

// Some packages name their licence without including its text.
async function statement(manifest) {
  const author = typeof manifest.author === "string" ? manifest.author : manifest.author?.name;
  const owner = author ?? manifest.contributors?.map((one) => one.name ?? one).join(", ") ?? `the authors of ${manifest.name}`;
  const template = join(here, "licenses", `${manifest.license}.txt`);
  const text = await readFile(template, "utf8").catch(() => {
    throw new Error(`${manifest.name} ships no licence text, and there is none for ${manifest.license} in licenses/`);
  });
  return `Copyright (c) ${owner}\n\n${text}`;
}
