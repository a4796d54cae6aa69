// A path's motions as cards: a slider and a field for each number, a choice for each word.

import { motion, rounded, written } from "./camera.js";

/** What a slider offers; a field beside it takes all that the preset accepts. */
const REACH = { deg: 60, "median depths": 0.6, factor: 2, count: 4, clip: 1 };
const STEP = { deg: 0.5, "median depths": 0.005, factor: 0.01, count: 0.25, clip: 0.01 };
const ASIDE = new Set(["start", "ease", "from", "to", "look_at"]);

export class Cards {
  /** @param onChange called with the motions when somebody has changed one. */
  constructor(place, presets, onChange) {
    this.place = place;
    this.presets = presets;
    this.onChange = onChange;
    this.names = null;
    this.fields = [];
  }

  show(motions) {
    this.motions = motions;
    const names = motions.map((each) => each.preset.name).join();
    if (names !== this.names) {
      this.names = names;
      this.fields = [];
      this.place.replaceChildren(...motions.map((each, index) => this._card(each, index)), this._adder());
    }
    for (const field of this.fields) field(motions);
  }

  _say(motions) {
    this.show(motions);
    this.onChange(motions);
  }

  _set(index, name, value) {
    const each = this.motions[index];
    this._say(this.motions.with(index, { preset: each.preset, values: { ...each.values, [name]: value } }));
  }

  _card({ preset, values }, index) {
    const card = make("fieldset", { className: "motion" });
    const legend = make("legend", { textContent: preset.name.replaceAll("_", " ") });
    const remove = make("button", { type: "button", className: "quiet", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove ${preset.name}`);
    remove.onclick = () => {
      const rest = this.motions.toSpliced(index, 1);
      this._say(rest.length ? rest : [motion(this.presets.static)]);
    };
    const main = preset.parameters.filter((p) => !ASIDE.has(p.name));
    const aside = preset.parameters.filter((p) => ASIDE.has(p.name));
    card.append(legend, ...main.map((p) => this._number(p, index, preset)));
    if (aside.length) {
      const more = make("details", {});
      const said = make("summary", {});
      this.fields.push((motions) => {
        const given = aside.filter((p) => motions[index].values[p.name] !== p.default);
        said.textContent = given.length
          ? given.map((p) => `${label(p.name)} ${written(p, motions[index].values[p.name])}`).join(", ")
          : "Timing and aim";
      });
      const grid = make("div", { className: "grid" });
      grid.append(...aside.map((p) => (p.name === "look_at" ? this._aim(p, index) : p.unit === "word" ? this._choice(p, index) : this._number(p, index, preset))));
      more.append(said, grid);
      card.append(more);
    }
    card.append(remove);
    return card;
  }

  _number(p, index, preset) {
    const line = make("label", { className: "number", title: p.help });
    const reach = REACH[p.unit];
    const low = Math.max(p.low ?? -Infinity, p.unit === "factor" ? 0.5 : p.unit === "clip" ? 0 : -reach);
    const high = Math.min(p.high ?? Infinity, preset.name === "orbit" && p.unit === "deg" ? 360 : reach);
    const slider = make("input", { type: "range", min: low, max: high, step: STEP[p.unit] });
    const field = make("input", { type: "number", min: p.low ?? "", max: p.high ?? "", step: "any" });
    slider.setAttribute("aria-label", `${preset.name} ${label(p.name)}`);
    field.setAttribute("aria-label", `${preset.name} ${label(p.name)}, exactly`);
    const unit = p.unit === "deg" ? "°" : p.unit === "median depths" ? "d" : p.unit === "factor" ? "×" : "";
    line.append(make("span", { textContent: label(p.name) }), slider, field, make("span", { className: "unit", textContent: unit, title: p.unit }));
    slider.oninput = () => this._set(index, p.name, Number(slider.value));
    field.onchange = () => {
      const value = Math.min(p.high ?? Infinity, Math.max(p.low ?? -Infinity, Number(field.value)));
      this._set(index, p.name, Number.isFinite(value) && field.value !== "" ? value : p.default);
    };
    this.fields.push((motions) => {
      const value = motions[index].values[p.name];
      if (document.activeElement !== slider) {
        slider.max = Math.max(high, value);
        slider.min = Math.min(low, value);
        slider.value = value;
      }
      if (document.activeElement !== field) field.value = rounded(p, value);
    });
    return line;
  }

  _choice(p, index) {
    const line = make("label", { className: "number", title: p.help });
    const choice = make("select", {});
    choice.append(...p.words.map((word) => new Option(word.replaceAll("_", " "), word)));
    choice.onchange = () => this._set(index, p.name, choice.value);
    this.fields.push((motions) => (choice.value = motions[index].values[p.name]));
    line.append(make("span", { textContent: label(p.name) }), choice);
    return line;
  }

  /** A word, or a depth. */
  _aim(p, index) {
    const line = make("label", { className: "number", title: p.help });
    const choice = make("select", {});
    choice.append(...p.words.map((word) => new Option(word, word)), new Option("a depth", "depth"));
    const field = make("input", { type: "number", min: p.low, max: p.high, step: 0.05 });
    field.setAttribute("aria-label", "Depth that is looked at");
    choice.onchange = () => this._set(index, p.name, choice.value === "depth" ? 1 : choice.value);
    field.onchange = () => this._set(index, p.name, Math.min(p.high, Math.max(p.low, Number(field.value) || 1)));
    this.fields.push((motions) => {
      const value = motions[index].values[p.name];
      field.hidden = typeof value === "string";
      choice.value = field.hidden ? value : "depth";
      if (!field.hidden && document.activeElement !== field) field.value = value;
    });
    line.append(make("span", { textContent: label(p.name) }), choice, field);
    return line;
  }

  _adder() {
    const choice = make("select", { className: "adder" });
    choice.setAttribute("aria-label", "Add a move");
    choice.append(new Option("+ Add a move", ""), ...Object.keys(this.presets).filter((name) => name !== "static").map((name) => new Option(name.replaceAll("_", " "), name)));
    choice.onchange = () => {
      const kept = this.motions.filter((each) => each.preset.name !== "static");
      this._say([...kept, motion(this.presets[choice.value])]);
    };
    return choice;
  }
}

const make = (tag, given) => Object.assign(document.createElement(tag), given);
const label = (name) => name.replaceAll("_", " ");
