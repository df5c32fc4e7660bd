// Bundles src/ into one classic script: module scripts do not load from the file system. `--check` compares instead.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const assets = join(here, "../../synfundus/stages/gallery/assets");
const names = readdirSync(join(here, "src")).sort();
const hash = createHash("sha256");
for (const name of names) hash.update(`${name}\n`).update(readFileSync(join(here, "src", name)));

const { outputFiles } = await build({
  entryPoints: [join(here, "src/main.js")],
  bundle: true,
  format: "iife",
  target: ["es2022", "chrome110", "firefox115", "safari16.4"],
  charset: "utf8",
  write: false,
  banner: { js: `/* Built from web/gallery: change it there. Sources: sha256 ${hash.digest("hex")} */` },
});
const built = {
  "page.js": outputFiles[0].text,
  "page.css": readFileSync(join(here, "src/page.css"), "utf8"),
  "index.html": readFileSync(join(here, "src/index.html"), "utf8"),
};
const stale = [];
for (const [name, text] of Object.entries(built)) {
  if (!process.argv.includes("--check")) writeFileSync(join(assets, name), text);
  else if (readFileSync(join(assets, name), "utf8") !== text) stale.push(name);
}
if (stale.length) {
  console.error(`not what the sources give: ${stale.join(", ")}; run npm run build in web/gallery`);
  process.exit(1);
}
