// The list of one's renders: each followed while it is made, opened, sampled again, removed.

import { ended, hopeless, sentence } from "./service.js";

const $ = (id) => document.getElementById(id);
/** Renders that are followed by a stream each: a browser opens six connections to a host, and the page wants some itself. */
const STREAMS = 2;
/** Between two looks at the other unfinished ones. */
const LOOK_EVERY_MS = 5000;
/** Stages as the service names them, by what they are for. */
const STEPS = [
  ["Depth", ["frames", "depth", "background", "intrinsics"]],
  ["Anchor", ["camera", "anchor"]],
  ["Prepare", ["source", "condition"]],
  ["Tune on the frames", ["spatial"]],
  ["Tune on the anchor", ["temporal"]],
  ["Sample", ["sample", "refine"]],
  ["Deliver", ["generate", "deliver"]],
];

export class Renders {
  /**
   * @param trying runs what may fail and shows its error.
   * @param onOpen called with a completed render that is to be looked at, onReuse with the path of one.
   */
  constructor(service, { trying, onOpen, onReuse }) {
    Object.assign(this, { service, trying, onOpen, onReuse });
    /** By id, what is to be kept up with: its line, when it was made, and what aborts its stream if it has one. */
    this.unfinished = new Map();
    $("more").onclick = () => trying(() => this.load());
  }

  /** The next page, the newest first. */
  async load() {
    const after = this.next ? `&after=${this.next}` : "";
    const page = await this.service.json("GET", `/v1/renders?limit=20${after}`);
    for (const render of page.data) this.add(render, "append");
    this.next = page.next;
    $("more").hidden = !page.has_more;
  }

  /** A render in the list, kept up with until it has ended. */
  add(render, where = "prepend") {
    const line = document.createElement("li");
    line.id = render.id;
    $("renders")[where](line);
    this._show(line, render);
    if (ended(render)) return;
    this.unfinished.set(render.id, { line, made: render.created_at, stream: null });
    this._keepUp();
  }

  /** The newest unfinished ones have streams; the others are looked at now and then. */
  _keepUp() {
    const newest = [...this.unfinished].sort(([, a], [, b]) => b.made - a.made);
    for (const [i, [id, one]] of newest.entries()) {
      if (i < STREAMS) {
        if (!one.stream) this.trying(() => this._follow(id, one));
      } else if (one.stream) {
        one.stream.abort();
        one.stream = null;
      }
    }
    if (newest.length > STREAMS) this.look ??= setTimeout(() => this.trying(() => this._lookAtOthers()), LOOK_EVERY_MS);
  }

  async _follow(id, one) {
    const stream = (one.stream = new AbortController());
    try {
      await this.service.follow(id, (now) => this._now(now), stream.signal);
    } catch (error) {
      this._lost(id, error);
    }
  }

  async _lookAtOthers() {
    const listed = new Map();
    for (const [id, one] of [...this.unfinished]) {
      if (one.stream) continue;
      try {
        if (!listed.size) {
          for (const each of (await this.service.json("GET", "/v1/renders?limit=100")).data) listed.set(each.id, each);
        }
        this._now(listed.get(id) ?? (await this.service.json("GET", `/v1/renders/${id}`)));
      } catch (error) {
        if (hopeless(error)) this._lost(id, error);
      }
    }
    this.look = null;
    this._keepUp();
  }

  /** What is known of a render now. */
  _now(render) {
    const one = this.unfinished.get(render.id);
    if (!one) return;
    this._show(one.line, render);
    if (!ended(render)) return;
    this.unfinished.delete(render.id);
    this._keepUp();
  }

  /** It cannot be kept up with: one that was removed elsewhere leaves the list. Throws what else it may be. */
  _lost(id, error) {
    const one = this.unfinished.get(id);
    if (!one || error.name === "AbortError") return;
    this.unfinished.delete(id);
    if (error.status !== 404) throw error;
    this._drop(one.line);
    this._keepUp();
  }

  _drop(line) {
    line.remove();
    $("none").hidden = $("renders").children.length > 0;
  }

  _show(line, render) {
    $("none").hidden = true;
    line.dataset.status = render.status;
    const busy = !ended(render) && line.contains(document.activeElement); // until then its buttons are the same
    const state = make("span", { className: "state", textContent: render.status.replaceAll("_", " ") });
    const path = make("code", { textContent: render.camera });
    const about = make("p", { className: "soft", textContent: this._about(render) });
    const acts = busy ? line.querySelector(".acts") : this._acts(line, render);
    const parts = [state, path, acts, about];
    if (!ended(render)) parts.push(...progress(render));
    for (const warning of render.warnings) parts.push(make("p", { className: "soft", textContent: sentence(warning) }));
    if (busy) {
      // The button that has the focus stays in its place.
      for (const each of [...line.children]) if (each !== acts) each.remove();
      acts.before(state, path);
      acts.after(...parts.slice(3));
    } else {
      line.replaceChildren(...parts);
    }
  }

  _about(render) {
    if (render.error) return sentence(render.error.message);
    const when = new Date(1000 * render.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const share = render.generated_share == null ? "" : `; ${(100 * render.generated_share).toFixed(1)} % from the model`;
    const took = render.status === "completed" ? `; ${Math.round(render.usage.compute_seconds)} s of work` : "";
    return `${when}; seed ${render.seed}${share}${took}`;
  }

  _acts(line, render) {
    const acts = make("span", { className: "acts row" });
    const act = (name, work, kind = "") => {
      const button = make("button", { type: "button", textContent: name, className: kind });
      button.setAttribute("aria-label", `${name}: ${render.camera}`);
      button.onclick = () => this.trying(work);
      acts.append(button);
    };
    if (render.status === "completed") {
      act("Compare", () => this.onOpen(render), "go");
      act("Sample again", async () => {
        const json = { seed: crypto.getRandomValues(new Uint32Array(1))[0] >>> 1 };
        this.add(await this.service.json("POST", `/v1/renders/${render.id}/resample`, { json }));
      });
    }
    if (!render.camera.startsWith("camera file")) act("Use the path", () => this.onReuse(render.camera));
    if (ended(render)) {
      act("Remove", async () => {
        await this.service.send("DELETE", `/v1/renders/${render.id}`);
        this._drop(line);
      });
    } else {
      act("Cancel", async () => this._now(await this.service.json("POST", `/v1/renders/${render.id}/cancel`)));
    }
    return acts;
  }
}

function progress(render) {
  const bar = make("progress", { value: render.progress });
  bar.setAttribute("aria-label", `Progress of ${render.camera}`);
  const at = STEPS.findIndex(([, stages]) => stages.includes(render.stage));
  const steps = make("ol", { className: "steps" });
  steps.append(...STEPS.map(([name], i) => {
    const step = make("li", { textContent: name, className: i < at ? "done" : i === at ? "now" : "" });
    if (i === at) {
      step.setAttribute("aria-current", "step");
      step.textContent += ` ${Math.round(100 * render.progress)} %`;
    }
    return step;
  }));
  return [bar, steps];
}

const make = (tag, given) => Object.assign(document.createElement(tag), given);
