// Which images look alike: a point for each, near to those it resembles.
import { altText, caption, sheetTile, showTile } from "./data.js";
import { byId, make } from "./dom.js";

const REACH = 22;
const MARGIN = 24;
const FULL = 65_535;
const MOST_SHOWN = 80;
const SHOWN = 56;

export class SimilarityMap {
  constructor(gallery, grids, open) {
    this.gallery = gallery;
    this.grids = grids;
    this.open = open;
    this.sheets = new Map();
    this.view = { scale: 1, x: 0.5, y: 0.5 };
    this.canvas = make("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label": "Map of similarity. Arrow keys move it, plus and minus zoom, Enter opens the image in the middle.",
    });
    this.tip = make("div", { class: "tip", hidden: true }, make("div", { class: "tile" }), make("p"));
    const shares = gallery.variance.map((share) => `${Math.round(100 * share)} %`).join(" and ");
    const legend = gallery.groups.map((group) =>
      make("span", { class: `legend ${group.synthetic ? "synthetic" : "real"}` }, make("span", { class: "dot", "aria-hidden": "true" }), `${group.title}, ${group.kind}`),
    );
    this.section = byId("map");
    this.section.append(
      make("div", { class: "map-head" }, ...legend),
      make("div", { class: "map-box" }, this.canvas, this.tip),
      make(
        "p",
        { class: "map-note" },
        "Near to each other: images whose miniatures of 8 × 8 pixels are alike in colour and brightness (first two principal " +
          `components, ${shares} of the variance; far outliers are drawn nearer). Zoom in to see the images. It says nothing of what a physician would call alike.`,
      ),
    );
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("pointerup", (event) => this.release(event));
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.draw());
    this.canvas.addEventListener("blur", () => this.draw());
    window.addEventListener("themechange", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** Shows the images that fit, by group; the others stay as a haze. */
  show(found) {
    this.found = found;
    this.draw();
  }

  geometry() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const wide = Math.max(1, width - 2 * MARGIN) * this.view.scale;
    const high = Math.max(1, height - 2 * MARGIN) * this.view.scale;
    return { width, height, wide, high, left: width / 2 - this.view.x * wide, top: height / 2 - this.view.y * high };
  }

  draw() {
    if (this.section.hidden || !this.found) return;
    const { width, height, wide, high, left, top } = this.geometry();
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio)) this.canvas.width = Math.round(width * ratio);
    if (this.canvas.height !== Math.round(height * ratio)) this.canvas.height = Math.round(height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const colours = getComputedStyle(this.section);
    const crowd = this.gallery.groups.reduce((sum, group) => sum + group.count, 0);
    const size = Math.max(2, Math.min(6, 260 / Math.sqrt(crowd))) * Math.min(2, Math.sqrt(this.view.scale));
    const haze = colours.getPropertyValue("--haze");
    // the photographs below: there are mostly more of them
    const groups = [...this.gallery.groups.keys()].reverse();
    const points = (which, fits, paint) => {
      const group = this.gallery.groups[which];
      for (let row = 0; row < group.count; row++) {
        if (this.found[which].fits[row] !== fits) continue;
        const x = left + (group.x[row] / FULL) * wide;
        const y = top + (1 - group.y[row] / FULL) * high;
        if (x > -8 && y > -8 && x < width + 8 && y < height + 8) paint(x, y, row);
      }
    };
    pen.fillStyle = haze;
    for (const which of groups) points(which, 0, (x, y) => pen.fillRect(x - 1, y - 1, 2, 2));
    for (const which of groups) {
      const synthetic = this.gallery.groups[which].synthetic;
      pen.fillStyle = pen.strokeStyle = colours.getPropertyValue(synthetic ? "--synthetic" : "--real");
      pen.globalAlpha = crowd > 20_000 ? 0.6 : 0.85;
      // squares and crosses: the colours are not alone in telling them apart
      const half = size / 2;
      if (synthetic) points(which, 1, (x, y) => pen.fillRect(x - half, y - half, size, size));
      else {
        pen.lineWidth = Math.max(1, size / 4);
        pen.beginPath();
        points(which, 1, (x, y) => {
          pen.moveTo(x - half, y - half);
          pen.lineTo(x + half, y + half);
          pen.moveTo(x + half, y - half);
          pen.lineTo(x - half, y + half);
        });
        pen.stroke();
      }
    }
    pen.globalAlpha = 1;
    const pictures = this.thumbnails(pen, groups, points, colours);
    if (document.activeElement === this.canvas) this.ring(pen, width / 2, height / 2, pictures ? SHOWN * 0.75 : 9, colours);
  }

  /** Draws the images themselves where few are in sight. */
  thumbnails(pen, groups, points, colours) {
    const shown = [];
    for (const which of groups) points(which, 1, (x, y, row) => shown.length <= MOST_SHOWN && shown.push({ which, x, y, row }));
    if (this.view.scale === 1 || shown.length > MOST_SHOWN) return false;
    for (const { which, x, y, row } of shown) {
      const group = this.gallery.groups[which];
      const tile = sheetTile(group, row, "tile");
      const sheet = this.sheet(tile.url);
      if (!sheet.complete || !sheet.naturalWidth) continue;
      const edge = group.tile.px;
      pen.fillStyle = colours.getPropertyValue(group.synthetic ? "--synthetic" : "--real");
      pen.fillRect(x - SHOWN / 2 - 2, y - SHOWN / 2 - 2, SHOWN + 4, SHOWN + 4);
      pen.drawImage(sheet, tile.column * edge, tile.line * edge, edge, edge, x - SHOWN / 2, y - SHOWN / 2, SHOWN, SHOWN);
    }
    return true;
  }

  sheet(url) {
    let image = this.sheets.get(url);
    if (!image) {
      image = new Image();
      image.onload = () => this.draw();
      image.src = url;
      this.sheets.set(url, image);
      if (this.sheets.size > MOST_SHOWN) this.sheets.delete(this.sheets.keys().next().value);
    }
    return image;
  }

  /** Marks what Enter opens. */
  ring(pen, x, y, radius, colours) {
    const middle = this.nearest(x, y, Infinity);
    if (!middle) return;
    pen.strokeStyle = colours.getPropertyValue("--ink");
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(middle.x, middle.y, radius, 0, 2 * Math.PI);
    pen.stroke();
  }

  nearest(x, y, reach) {
    const { wide, high, left, top } = this.geometry();
    let best = null;
    let least = reach * reach;
    this.gallery.groups.forEach((group, which) => {
      for (const row of this.found[which].rows) {
        const px = left + (group.x[row] / FULL) * wide;
        const py = top + (1 - group.y[row] / FULL) * high;
        const apart = (px - x) ** 2 + (py - y) ** 2;
        if (apart < least) {
          least = apart;
          best = { which, group, row, x: px, y: py };
        }
      }
    });
    return best;
  }

  zoomAt(x, y, by) {
    const before = this.geometry();
    const scale = Math.max(0.8, Math.min(60, this.view.scale * by));
    const [u, v] = [(x - before.left) / before.wide, (y - before.top) / before.high];
    this.view.scale = scale;
    const { width, height, wide, high } = this.geometry();
    this.view.x = u + (width / 2 - x) / wide;
    this.view.y = v + (height / 2 - y) / high;
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    this.zoomAt(event.offsetX, event.offsetY, Math.exp(-event.deltaY / 400));
  }

  press(event) {
    this.held = { x: event.offsetX, y: event.offsetY, moved: false };
    this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    const { held } = this;
    if (held) {
      const [dx, dy] = [event.offsetX - held.x, event.offsetY - held.y];
      if (!held.moved && Math.hypot(dx, dy) < 4) return;
      const { wide, high } = this.geometry();
      this.view.x -= dx / wide;
      this.view.y -= dy / high;
      this.held = { x: event.offsetX, y: event.offsetY, moved: true };
      this.tip.hidden = true;
      this.draw();
      return;
    }
    const found = this.nearest(event.offsetX, event.offsetY, REACH);
    this.tip.hidden = !found;
    this.canvas.classList.toggle("over", Boolean(found));
    if (!found) return;
    showTile(this.tip.firstChild, sheetTile(found.group, found.row, "tile"));
    this.tip.lastChild.textContent = `${found.group.title}: ${caption(this.gallery, found.group, found.row)}`;
    const { width, height } = this.geometry();
    this.tip.style.left = `${Math.min(found.x + 14, width - 170)}px`;
    this.tip.style.top = `${Math.min(found.y + 14, height - 190)}px`;
  }

  release(event) {
    const moved = this.held?.moved;
    this.held = null;
    if (moved) return;
    const found = this.nearest(event.offsetX, event.offsetY, REACH);
    if (found) this.openImage(found);
  }

  openImage({ which, group, row }) {
    const index = this.grids[which].rows.indexOf(row);
    this.canvas.setAttribute("aria-description", altText(this.gallery, group, row));
    this.open(this.grids[which], index);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.geometry();
    const step = 0.08 / this.view.scale;
    const actions = {
      ArrowLeft: () => (this.view.x -= step),
      ArrowRight: () => (this.view.x += step),
      ArrowUp: () => (this.view.y -= step),
      ArrowDown: () => (this.view.y += step),
      "+": () => this.zoomAt(width / 2, height / 2, 1.5),
      "=": () => this.zoomAt(width / 2, height / 2, 1.5),
      "-": () => this.zoomAt(width / 2, height / 2, 1 / 1.5),
      0: () => (this.view = { scale: 1, x: 0.5, y: 0.5 }),
    };
    if (event.key === "Enter") {
      const found = this.nearest(width / 2, height / 2, Infinity);
      if (found) this.openImage(found);
    } else if (event.key in actions) {
      actions[event.key]();
      this.draw();
    } else return;
    event.preventDefault();
  }
}
