// One image, large, with its labels; through the images with the arrow keys.
import { altText, caption, fullUrl, knownLabels, sheetTile, showTile } from "./data.js";
import { byId, make, number } from "./dom.js";

const MOST = 8;
const ALIKE = 6;

export class Zoom {
  constructor(gallery, closed) {
    this.gallery = gallery;
    this.dialog = byId("zoom");
    this.picture = make("div", { class: "picture", role: "img" });
    this.frame = make("div", { class: "frame", tabindex: "-1" }, this.picture);
    this.mark = make("p", { class: "mark" });
    this.title = make("h2");
    this.where = make("p", { class: "where" });
    this.labels = make("dl");
    this.alike = make("div", { class: "alike" });
    const button = (text, name, action) => make("button", { type: "button", "aria-label": name, title: name, onclick: action }, text);
    this.dialog.append(
      make(
        "div",
        { class: "zoom-bar" },
        this.where,
        button("‹", "Previous (←)", () => this.step(-1)),
        button("›", "Next (→)", () => this.step(1)),
        button("−", "Smaller (-)", () => this.magnify(0.5)),
        button("+", "Larger (+)", () => this.magnify(2)),
        button("Close", "Close (Escape)", () => this.dialog.close()),
      ),
      make(
        "div",
        { class: "zoom-body" },
        this.frame,
        make("div", { class: "facts" }, this.mark, this.title, this.labels, make("p", { class: "asked" }, ""), this.alike),
      ),
    );
    this.asked = this.dialog.querySelector(".asked");
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    this.dialog.addEventListener("close", () => closed(this.grid, this.index));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  /** Opens an image of a grid. */
  open(grid, index) {
    this.grid = grid;
    this.index = index;
    this.scale = 1;
    if (!this.dialog.open) this.dialog.showModal();
    this.show();
    this.frame.focus({ preventScroll: true });
  }

  step(by) {
    const next = this.index + by;
    if (next < 0 || next >= this.grid.rows.length) return;
    this.index = next;
    this.show();
  }

  magnify(by) {
    this.scale = Math.max(1, Math.min(MOST, this.scale * by));
    this.picture.style.width = `calc(min(100cqw, 100cqh) * ${this.scale})`;
  }

  show() {
    const { gallery, index } = this;
    const { group, rows } = this.grid;
    const row = rows[index];
    this.draw(this.picture, group, row);
    this.magnify(1);
    this.picture.setAttribute("aria-label", altText(gallery, group, row));
    this.dialog.className = group.synthetic ? "synthetic" : "real";
    this.mark.replaceChildren(make("span", { class: "dot", "aria-hidden": "true" }), `${group.title}: ${group.kind}`);
    this.title.textContent = group.name(row).split("/").pop();
    this.where.textContent = `${number(index + 1)} of ${number(rows.length)}`;
    this.labels.replaceChildren(
      ...knownLabels(gallery, group, row).flatMap((one) => [
        make("dt", { class: one.said ? "said" : "" }, one.label.title),
        make("dd", { class: one.said ? "said" : "" }, one.value),
      ]),
    );
    this.asked.textContent = group.synthetic ? `Labels: ${gallery.labelsAre}.` : "";
    this.showAlike(group, row);
  }

  draw(element, group, row) {
    element.replaceChildren();
    if (group.full) {
      element.style.backgroundImage = "none";
      element.append(make("img", { src: fullUrl(group, row), alt: "" }));
    } else {
      showTile(element, sheetTile(group, row, group.large ? "large" : "tile"));
    }
  }

  /** Shows images of the other group whose known labels agree best. */
  showAlike(group, row) {
    this.alike.replaceChildren();
    const other = this.gallery.groups.find((one) => one !== group);
    if (!other) return;
    const tiles = mostAlike(group, row, other, ALIKE).map((found) => {
      const tile = make("div", { class: "tile", role: "img", "aria-label": altText(this.gallery, other, found) });
      tile.title = caption(this.gallery, other, found);
      showTile(tile, sheetTile(other, found, "tile"));
      return tile;
    });
    this.alike.className = `alike ${other.synthetic ? "synthetic" : "real"}`;
    this.alike.append(
      make("h3", {}, make("span", { class: "dot", "aria-hidden": "true" }), `${other.title} with the most similar labels`),
      make("div", { class: "strip" }, ...tiles),
    );
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const size = this.grid.rows.length;
    const actions = {
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      ArrowUp: () => this.step(-(this.grid.columns || 1)),
      ArrowDown: () => this.step(this.grid.columns || 1),
      Home: () => this.step(-this.index),
      End: () => this.step(size - 1 - this.index),
      "+": () => this.magnify(2),
      "=": () => this.magnify(2),
      "-": () => this.magnify(0.5),
      0: () => this.magnify(0),
    };
    const onButton = event.target.closest("button");
    if (event.key === "Enter" && !onButton) this.dialog.close();
    else if (event.key in actions) actions[event.key]();
    else return;
    event.preventDefault();
  }
}

/** The rows of another group with the fewest labels that differ; where one is unknown counts half. */
export function mostAlike(group, row, other, wanted) {
  const best = [];
  const mine = group.states.map((column) => column[row]);
  for (let candidate = 0; candidate < other.count; candidate++) {
    let apart = 0;
    for (let label = 0; label < mine.length; label++) {
      const theirs = other.states[label][candidate];
      if (theirs !== mine[label]) apart += theirs === 0 || mine[label] === 0 ? 1 : 2;
    }
    if (best.length < wanted || apart < best[best.length - 1].apart) {
      let at = best.length;
      while (at > 0 && best[at - 1].apart > apart) at--;
      best.splice(at, 0, { apart, candidate });
      if (best.length > wanted) best.pop();
    }
  }
  return best.map((one) => one.candidate);
}
