// The labels and their values, with counts, as buttons that choose.
import { make, number } from "./dom.js";

export class Facets {
  constructor(gallery, choice, changed) {
    this.gallery = gallery;
    this.choice = choice;
    this.changed = changed;
    this.buttons = [];
    const groups = gallery.groups.map((group) =>
      make("span", { class: `legend ${group.synthetic ? "synthetic" : "real"}` }, make("span", { class: "dot", "aria-hidden": "true" }), group.title),
    );
    this.clear = make("button", { type: "button", class: "quiet", onclick: () => this.none() }, "Clear");
    this.element = make("div", { class: "facets" }, make("div", { class: "facets-head" }, make("span", {}, ...groups), this.clear));
    gallery.labels.forEach((label, at) => this.element.append(this.facet(label, at)));
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.stop(0);
  }

  facet(label, at) {
    const there = new Set();
    for (const group of this.gallery.groups) for (const state of group.states[at]) there.add(state);
    const states = [...label.values.keys()].map((value) => value + 1);
    if (there.has(0)) states.push(0);
    const buttons = states
      .filter((state) => there.has(state))
      .map((state) => this.button(label, at, state, state ? label.values[state - 1] : "unknown"));
    return make("fieldset", { class: "facet" }, make("legend", {}, label.title), make("div", { class: "values" }, ...buttons));
  }

  button(label, at, state, name) {
    const counts = this.gallery.groups.map((group) => make("span", { class: `n ${group.synthetic ? "synthetic" : "real"}` }));
    const element = make(
      "button",
      {
        type: "button",
        class: state ? "value" : "value unknown",
        "aria-pressed": "false",
        "data-label": label.name,
        "data-value": state ? String(state - 1) : "unknown",
        onclick: () => this.toggle(at, state),
      },
      make("span", { class: "name" }, name),
      ...counts,
    );
    this.buttons.push({ element, counts, at, state, name, title: label.title });
    return element;
  }

  /** One stop of the Tab key for all values: the arrow keys go from one to the next. */
  stop(number) {
    this.buttons.forEach(({ element }, at) => element.setAttribute("tabindex", at === number ? "0" : "-1"));
  }

  key(event) {
    const here = this.buttons.findIndex(({ element }) => element === event.target);
    const last = this.buttons.length - 1;
    const moves = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: last };
    if (here < 0 || !(event.key in moves)) return;
    const next = Math.max(0, Math.min(last, moves[event.key]));
    this.stop(next);
    this.buttons[next].element.focus();
    event.preventDefault();
  }

  toggle(at, state) {
    if (!this.choice[at].delete(state)) this.choice[at].add(state);
    this.changed();
  }

  none() {
    for (const states of this.choice) states.clear();
    this.changed();
  }

  /** Shows the counts of each value under the choices of all other labels. */
  show(found) {
    for (const { element, counts, at, state, name, title } of this.buttons) {
      const numbers = found.map((one) => one.counts[at][state]);
      counts.forEach((count, group) => (count.textContent = number(numbers[group])));
      element.setAttribute("aria-pressed", String(this.choice[at].has(state)));
      element.classList.toggle("none", numbers.every((count) => count === 0));
      const said = this.gallery.groups.map((group, which) => `${numbers[which]} ${group.title.toLowerCase()}`).join(", ");
      element.setAttribute("aria-label", `${title}: ${name}, ${said}`);
    }
    this.clear.hidden = this.choice.every((states) => states.size === 0);
  }

  /** The choices in words, each with what takes it away. */
  chosen() {
    return this.buttons
      .filter(({ at, state }) => this.choice[at].has(state))
      .map(({ at, state, name, title }) => ({ text: `${title}: ${name}`, remove: () => this.toggle(at, state) }));
  }
}
