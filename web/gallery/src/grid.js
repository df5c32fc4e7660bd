// A grid of any number of thumbnails: only those in sight are elements of the page.
import { altText, sheetTile, showTile } from "./data.js";
import { make, number } from "./dom.js";

const GAP = 6;
const AHEAD_ROWS = 2;
/** Browsers cannot scroll much further; beyond, a pixel of the scroll bar is more than one of the grid. */
const TALLEST = 8_000_000;

export class Grid {
  constructor(gallery, group, open) {
    this.gallery = gallery;
    this.group = group;
    this.open = open;
    this.rows = new Uint32Array(0);
    this.active = 0;
    this.edge = 120;
    this.pool = [];
    this.counted = make("span", { class: "count" });
    this.space = make("div", { class: "space", role: "presentation" });
    this.box = make(
      "div",
      {
        class: "grid",
        role: "listbox",
        tabindex: "0",
        id: `grid-${group.key}`,
        "aria-label": `${group.title} images, ${group.kind}`,
        onscroll: () => this.later(),
        onkeydown: (event) => this.key(event),
        onclick: (event) => this.click(event),
      },
      this.space,
    );
    this.empty = make("p", { class: "empty", hidden: true }, "No image has these labels. Take a filter away.");
    this.element = make(
      "section",
      { class: `pane ${group.synthetic ? "synthetic" : "real"}` },
      make("h2", {}, make("span", { class: "dot", "aria-hidden": "true" }), group.title, make("small", {}, group.kind), this.counted),
      this.box,
      this.empty,
    );
    new ResizeObserver(() => this.layout()).observe(this.box);
  }

  /** Shows other rows, from the top; the image that was active stays so if it is still there. */
  show(rows) {
    const before = this.rows[this.active];
    this.rows = rows;
    this.counted.textContent =
      rows.length === this.group.count ? number(rows.length) : `${number(rows.length)} of ${number(this.group.count)}`;
    this.empty.hidden = rows.length > 0;
    this.box.hidden = rows.length === 0;
    this.active = Math.max(0, rows.indexOf(before));
    for (const tile of this.pool) tile.row = -1;
    this.box.scrollTop = 0;
    this.layout();
    if (this.active) this.reveal();
  }

  resize(edge) {
    this.edge = edge;
    this.layout();
    this.reveal();
  }

  layout() {
    const width = this.box.clientWidth;
    if (!width) return;
    this.columns = Math.max(1, Math.floor((width - GAP) / (this.edge + GAP)));
    this.size = Math.floor((width - GAP * (this.columns + 1)) / this.columns);
    this.step = this.size + GAP;
    this.height = Math.ceil(this.rows.length / this.columns) * this.step + GAP;
    this.space.style.height = `${Math.min(this.height, TALLEST)}px`;
    this.draw();
  }

  /** How far down the grid is, in its own pixels. */
  get offset() {
    const seen = this.box.clientHeight;
    const room = Math.min(this.height, TALLEST) - seen;
    return this.height <= TALLEST || room <= 0 ? this.box.scrollTop : (this.box.scrollTop / room) * (this.height - seen);
  }

  scrollTo(offset) {
    const seen = this.box.clientHeight;
    const room = Math.min(this.height, TALLEST) - seen;
    this.box.scrollTop = this.height <= TALLEST ? offset : (offset / (this.height - seen)) * room;
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    if (!this.step || this.box.hidden) return;
    const { offset, columns, step } = this;
    const first = Math.max(0, Math.floor(offset / step) - AHEAD_ROWS) * columns;
    const lines = Math.ceil(this.box.clientHeight / step) + 2 * AHEAD_ROWS + 1;
    const last = Math.min(this.rows.length, first + lines * columns);
    while (this.pool.length < lines * columns) this.pool.push(this.newTile());
    const shift = this.box.scrollTop - offset;
    const used = new Set();
    for (let index = first; index < last; index++) {
      const tile = this.pool[index % this.pool.length];
      used.add(tile);
      this.place(tile, index, shift);
    }
    for (const tile of this.pool) if (!used.has(tile)) tile.element.hidden = true;
    this.box.setAttribute("aria-activedescendant", this.rows.length ? this.idOf(this.active) : "");
  }

  newTile() {
    const element = make("div", { class: "tile", role: "option" });
    this.space.append(element);
    return { element, row: -1, index: -1 };
  }

  idOf(index) {
    return `${this.group.key}-${index}`;
  }

  place(tile, index, shift) {
    const { element } = tile;
    const row = this.rows[index];
    element.hidden = false;
    const left = GAP + (index % this.columns) * this.step;
    const top = GAP + Math.floor(index / this.columns) * this.step + shift;
    element.style.width = element.style.height = `${this.size}px`;
    element.style.transform = `translate(${left}px, ${top}px)`;
    element.setAttribute("aria-selected", String(index === this.active));
    if (tile.row === row && tile.index === index) return;
    tile.row = row;
    tile.index = index;
    element.id = this.idOf(index);
    element.title = "";
    element.setAttribute("aria-label", altText(this.gallery, this.group, row));
    element.setAttribute("aria-posinset", String(index + 1));
    element.setAttribute("aria-setsize", String(this.rows.length));
    showTile(element, sheetTile(this.group, row, "tile"));
  }

  /** Makes an image the active one and brings it into sight. */
  activate(index) {
    this.active = Math.max(0, Math.min(this.rows.length - 1, index));
    this.reveal();
  }

  reveal() {
    if (!this.step) return;
    const top = Math.floor(this.active / this.columns) * this.step;
    const seen = this.box.clientHeight;
    if (top < this.offset) this.scrollTo(top);
    else if (top + this.step + GAP > this.offset + seen) this.scrollTo(top + this.step + GAP - seen);
    this.draw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.step)) * this.columns;
    const moves = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -this.columns,
      ArrowDown: this.columns,
      PageUp: -page,
      PageDown: page,
      Home: -this.rows.length,
      End: this.rows.length,
    };
    if (event.key in moves) this.activate(this.active + moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.open(this, this.active);
    else return;
    event.preventDefault();
  }

  click(event) {
    const element = event.target.closest(".tile");
    if (!element) return;
    this.active = Number(element.id.slice(this.group.key.length + 1));
    this.draw();
    this.open(this, this.active);
  }
}
