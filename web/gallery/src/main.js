import { readGallery } from "./data.js";
import { byId, make, number } from "./dom.js";
import { Facets } from "./facets.js";
import { emptyChoice, fitting, ordered } from "./filter.js";
import { Grid } from "./grid.js";
import { SimilarityMap } from "./map.js";
import { Zoom } from "./zoom.js";

const KEYS = [
  ["← ↑ → ↓", "move among the images, or the map"],
  ["Enter", "open an image, close it again"],
  ["← →", "in an open image: the one before, the next"],
  ["+ − 0", "larger, smaller, as at first"],
  ["Escape", "close"],
  ["Home End, Page ↑ ↓", "to the start, to the end, by a screen"],
  ["1 2 3 4", "the views"],
  ["f", "to the filters; arrows from value to value, Enter chooses"],
  ["g", "to the images"],
  ["?", "these keys"],
];

function start(stored) {
  const gallery = readGallery(stored);
  const choice = emptyChoice(gallery.labels);
  const state = { view: "", order: "index" };
  const zoom = new Zoom(gallery, (grid, index) => {
    grid.activate(index);
    (state.view === "map" ? byId("map").querySelector("canvas") : grid.box).focus();
  });
  const open = (grid, index) => zoom.open(grid, index);
  const grids = gallery.groups.map((group) => new Grid(gallery, group, open));
  byId("panes").append(...grids.map((grid) => grid.element));
  const map = new SimilarityMap(gallery, grids, open);
  const facets = new Facets(gallery, choice, () => update());
  byId("side").append(facets.element);

  function update() {
    const found = gallery.groups.map((group) => fitting(group, choice));
    grids.forEach((grid, at) => grid.show(ordered(grid.group, found[at].rows, state.order)));
    facets.show(found);
    map.show(found);
    byId("chosen").replaceChildren(
      ...facets.chosen().map(({ text, remove }) =>
        make("button", { type: "button", class: "chip", "aria-label": `Take away: ${text}`, onclick: remove }, text, make("span", { "aria-hidden": "true" }, " ×")),
      ),
    );
  }

  const views = viewsOf(gallery);
  function view(name) {
    state.view = name;
    views.forEach((one) => one.button.setAttribute("aria-pressed", String(one.name === name)));
    const wanted = views.find((one) => one.name === name).groups;
    byId("panes").hidden = name === "map";
    byId("map").hidden = name !== "map";
    for (const field of byId("bar").querySelectorAll(".field")) field.hidden = name === "map";
    grids.forEach((grid, at) => (grid.element.hidden = !wanted.includes(at)));
    grids.forEach((grid) => grid.layout());
    map.draw();
  }
  views.forEach((one, at) => {
    one.button = make("button", { type: "button", "data-view": one.name, title: `Key ${at + 1}`, onclick: () => view(one.name) }, one.title);
    byId("views").append(one.button);
  });
  buildBar(gallery, state, grids, update);
  listenForKeys(views, view, grids);
  view(views[0].name);
  update();
}

function viewsOf(gallery) {
  const [first, second] = gallery.groups;
  const both = second ? [{ name: "both", title: "Side by side", groups: [0, 1] }] : [];
  const other = second ? [{ name: second.key, title: second.title, groups: [1] }] : [];
  return [...both, { name: first.key, title: first.title, groups: [0] }, ...other, { name: "map", title: "Map", groups: [] }];
}

function buildBar(gallery, state, grids, update) {
  const counts = gallery.groups.map((group) => `${number(group.count)} ${group.title.toLowerCase()}`).join(", ");
  const rejected = gallery.rejected ? `; ${number(gallery.rejected)} could not be read (rejects.jsonl)` : "";
  byId("about").textContent = `${counts}${rejected}. Labels of synthetic images are ${gallery.labelsAre}. Release: ${gallery.release}.`;
  const [, beside] = gallery.groups;
  if (beside) byId("bar").querySelector("h1").textContent = `Synthetic fundus images beside ${beside.title.toLowerCase()}`;
  byId("privacy").hidden = !gallery.patients;
  byId("privacy").textContent = gallery.patients ? `This page ${gallery.patients}. It is as confidential as the set it was made from.` : "";
  const orders = [["index", "number"], ["bright", "bright first"], ["dark", "dark first"]];
  orders.push(...gallery.labels.map((label, at) => [String(at), label.title]));
  byId("order").append(...orders.map(([value, text]) => make("option", { value }, text)));
  byId("order").addEventListener("change", (event) => {
    state.order = event.target.value;
    update();
  });
  const resize = () => grids.forEach((grid) => grid.resize(Number(byId("size").value)));
  byId("size").addEventListener("input", resize);
  const filters = byId("filters");
  filters.addEventListener("click", () => {
    const shown = document.body.classList.toggle("filtering");
    filters.setAttribute("aria-expanded", String(shown));
  });
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const theme = byId("theme");
  const label = () => (theme.textContent = dark() ? "Light" : "Dark");
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
    window.dispatchEvent(new Event("themechange"));
  });
  label();
  const keys = byId("keys");
  keys.append(
    make("h2", {}, "Keys"),
    make("dl", {}, ...KEYS.flatMap(([key, text]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, text)])),
    make("button", { type: "button", onclick: () => keys.close() }, "Close"),
  );
  byId("help").addEventListener("click", () => keys.showModal());
}

function listenForKeys(views, view, grids) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input[type=text], select")) return;
    const shown = grids.find((grid) => !grid.element.hidden);
    if (event.key === "?") byId("keys").showModal();
    else if (event.key === "f") {
      document.body.classList.add("filtering");
      byId("filters").setAttribute("aria-expanded", "true");
      byId("side").querySelector("button.value[tabindex='0']")?.focus();
    } else if (event.key === "g") (shown?.box ?? byId("map").querySelector("canvas")).focus();
    else if (event.key === "Escape" && document.body.classList.contains("filtering")) byId("filters").click();
    else if (views[Number(event.key) - 1]) view(views[Number(event.key) - 1].name);
    else return;
    event.preventDefault();
  });
}

if (globalThis.synfundusGallery) start(globalThis.synfundusGallery);
else byId("about").textContent = "data/gallery.js is missing: copy the whole folder.";
