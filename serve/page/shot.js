// The shot that is being designed: one path, seen as text, as motions with sliders, in 3D, and by the new camera.

import { format, motion, parse, pose } from "./camera.js";
import { Cards } from "./cards.js";
import { GRIP, pull, pullCenter } from "./pull.js";
import { sentence } from "./service.js";
import { Space } from "./space.js";

const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const span = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
const FIRST = 48; // frames that are taken of a longer clip, so that its depth is soon known
const SERIES = 16;
const SETTLED_MS = 400;
const COST_AFTER_MS = 2500;

export class Shot {
  /** @param say shows a sentence; its second argument says that something is wrong. */
  constructor(service, presets, say) {
    this.service = service;
    this.presets = Object.fromEntries(presets.map((preset) => [preset.name, preset]));
    this.say = say;
    this.upload = null;
    this.cards = new Cards($("motions"), this.presets, (motions) => this.set(motions, "cards"));
    this.motions = [motion(this.presets.arc)];
    try {
      this.space = new Space($("space"), { onPull: (...pulled) => this._pulled(...pulled), onGrab: (on) => this._grabbed(on) });
    } catch {
      $("space").classList.add("without");
      $("space-said").textContent = "This browser draws no 3D (WebGL). The sliders and the path's text do the same.";
    }
    this._listen();
    this.set(this.motions);
  }

  /** Begin with a clip: an `Upload` of the service. */
  open(upload) {
    this.upload = upload;
    const { frames } = upload.clip;
    $("first").value = 0;
    $("first").max = frames - 2;
    $("count").value = Math.min(frames, FIRST);
    $("count").max = frames;
    $("shot").hidden = false;
    this._ranged();
  }

  /** What a render of this shot asks for. */
  get wish() {
    return { input: { upload: this.upload.id }, camera: this.text, options: { ...this.range, quality: $("quality").value, anchor: $("anchor").value } };
  }

  get range() {
    return { first_frame: +$("first").value || 0, frames: Math.max(2, +$("count").value || 2) };
  }

  /** Take these motions as the path, from wherever they come. */
  set(motions, from) {
    this.motions = motions;
    if (from !== "text") $("camera").value = format(motions);
    if (from !== "cards") this.cards.show(motions);
    for (const chip of $("presets").children) {
      chip.setAttribute("aria-pressed", String(motions.length === 1 && motions[0].preset.name === chip.dataset.preset));
    }
    this.space?.setPath(motions);
    this._about([]);
    this._changed($("camera").value.trim());
  }

  _listen() {
    $("presets").replaceChildren(...Object.values(this.presets).map((preset) => {
      const chip = Object.assign(document.createElement("button"), { type: "button", textContent: preset.name.replaceAll("_", " "), title: sentence(preset.summary) });
      chip.dataset.preset = preset.name;
      chip.onclick = () => this.set([motion(preset)]);
      return chip;
    }));
    $("camera").oninput = () => {
      const motions = parse($("camera").value, this.presets);
      if (motions) this.set(motions, "text");
    };
    $("camera").onchange = () => {
      const text = $("camera").value.trim();
      // What is no path here the service may understand, and else it says what is wrong; nothing is the path before.
      if (!text) this.set(this.motions);
      else if (!parse(text, this.presets)) this._changed(text);
    };
    $("moment").oninput = () => this._moved();
    $("first").onchange = $("count").onchange = () => this._ranged();
    $("quality").onchange = $("anchor").onchange = () => {
      this._costs(null);
      this._giveUp();
      this._poke(true);
    };
    for (const button of document.querySelectorAll("[data-look]")) button.onclick = () => this.space?.look(button.dataset.look);
    $("show-new").onclick = $("show-source").onclick = (event) => {
      for (const each of ["show-new", "show-source"]) $(each).setAttribute("aria-pressed", String(event.target.id === each));
      this._show();
    };
    $("roll").onclick = () => this._roll();
  }

  _grabbed(on) {
    this.held = on ? this.motions.length : null;
    document.body.classList.toggle("pulling", on);
  }

  _pulled(handle, hand, grip = GRIP) {
    const depth = this.scene?.subject_depth;
    if (!depth) return;
    // What an earlier moment of this pull has added is asked for again: it goes when the hand comes back.
    const own = this.motions.slice(0, this.held ?? undefined);
    const motions = handle === "center"
      ? pullCenter(this.motions, hand, depth)
      : pull(own.length === 1 && own[0].preset.name === "static" ? [] : own, handle, hand, this.presets, depth, grip);
    if (motions.length) this.set(motions);
  }

  /** Another path: every picture is of an older one. */
  _changed(text) {
    this.text = text;
    this.stale = true;
    $("seen").classList.add("stale");
    this.series = false;
    this.cost = null;
    this.failed = false;
    this._giveUp();
    this._poke(true);
  }

  /** Stop what is under way and not urgent: it answers what is not asked any more. */
  _giveUp() {
    if (this.task?.background) this.task.abort.abort();
  }

  /** Other frames of the clip: everything is new. */
  _ranged() {
    if (!this.upload) return;
    const frames = this.upload.clip.frames;
    $("first").value = Math.min(Math.max(0, Math.round(+$("first").value || 0)), frames - 2);
    $("count").value = Math.min(Math.max(2, Math.round(+$("count").value || 2)), frames - +$("first").value);
    this.task?.abort.abort();
    this.scene = this.mean = null;
    this._costs(null);
    this.pictures = new Map();
    $("moment").max = +$("count").value - 1;
    $("moment").value = Math.round(0.75 * (+$("count").value - 1));
    $("space-said").hidden = false;
    this._changed(this.text);
    this._moved();
  }

  _moved() {
    this.movedAt = performance.now();
    this._show();
    this._poke(true);
  }

  get frame() {
    return +$("moment").value;
  }

  /** What is asked for next: one thing at a time, the most urgent first, so that a slider is never waited for. */
  _next() {
    if (!this.upload || !this.text || this.failed || this.rolling) return null;
    const asked = { input: { upload: this.upload.id }, options: this.range };
    const [path, frame] = [this.text, this.frame];
    const settled = performance.now() - this.touchedAt;
    const scene = {
      run: async (signal) => this._sceneIs(await this.service.scene({ ...asked, frame, max_side: 384 }, signal)),
    };
    if (!this.scene) return scene;
    if (this.stale || !this.pictures.has(frame)) {
      return {
        run: async (signal) => {
          const drawn = await this.service.patiently("/v1/previews", { ...asked, camera: path, frame, max_side: 512 }, signal);
          this._drawn(drawn, path);
        },
      };
    }
    if (this.held != null) return null;
    if (this.scene.frame !== frame) return { ...scene, after: SETTLED_MS / 2 - settled };
    if (!this.series) {
      return {
        background: true,
        after: SETTLED_MS - settled,
        run: async (signal) => {
          const drawn = await this.service.patiently("/v1/previews", { ...asked, camera: path, count: SERIES, max_side: 384 }, signal);
          if (path !== this.text) return;
          this.series = true;
          this._drawn(drawn, path);
          this._curve(drawn.frames);
        },
      };
    }
    const cost = JSON.stringify(this.wish);
    if (this.cost !== cost) {
      return {
        background: true,
        after: COST_AFTER_MS - settled,
        run: async (signal) => {
          $("cost").classList.add("waiting");
          this.cost = cost;
          try {
            this._costs(await this.service.patiently("/v1/renders:estimate", this.wish, signal, 3));
          } catch (error) {
            if (error.code !== "busy") throw error;
            this._costs(null, "not measured: the service is busy");
          }
        },
      };
    }
    return null;
  }

  _poke(touched = false) {
    if (touched) this.touchedAt = performance.now();
    clearTimeout(this.later);
    if (this.task) return;
    const task = this._next();
    if (!task) return;
    if (task.after > 0) {
      this.later = setTimeout(() => this._poke(), task.after);
      return;
    }
    this.task = { ...task, abort: new AbortController() };
    const { signal } = this.task.abort;
    task.run(signal).catch((error) => {
      if (signal.aborted) return;
      this.failed = true;
      this._wrong(error);
    }).finally(() => {
      this.task = null;
      $("cost").classList.remove("waiting");
      this._poke();
    });
  }

  _wrong(error) {
    if (!error.param?.startsWith("camera")) return this.say(error.message, true);
    $("camera").setAttribute("aria-invalid", "true");
    $("camera-said").textContent = error.message;
    $("camera-said").classList.add("wrong");
  }

  /** What is said below the path: what it does, and what the service thinks of it. */
  _about(warnings) {
    $("camera").removeAttribute("aria-invalid");
    $("camera-said").classList.remove("wrong");
    const does = this.motions.length === 1 ? [this.motions[0].preset.summary] : [];
    $("camera-said").textContent = [...does, ...warnings].map(sentence).join(" ");
  }

  _sceneIs(scene) {
    this.scene = scene;
    $("space-said").hidden = true;
    this.space?.setScene(scene, scene.depths, scene.pixels);
    this.space?.setPath(this.motions);
    this._show();
  }

  _drawn(drawn, path) {
    if (path !== this.text) {
      // A slider still moves: better a picture of a moment ago than none, but it is no picture of this path.
      this._put(drawn.frames[0]);
      return;
    }
    if (this.stale) this.pictures = new Map();
    this.stale = false;
    $("seen").classList.remove("stale");
    for (const frame of drawn.frames) {
      if (drawn.frames.length === 1 || !this.pictures.has(frame.index)) this.pictures.set(frame.index, frame);
    }
    this._about(drawn.warnings);
    this._show();
  }

  /** The shown moment: of the pictures there are, the nearest in time. */
  _show() {
    const frame = this.frame;
    const scene = this.scene;
    const frames = +$("moment").max + 1;
    const fps = this.upload?.clip.fps ?? 25;
    const fraction = frames > 1 ? frame / (frames - 1) : 1;
    $("moment-said").textContent = `${frame + 1} / ${frames}  ${(frame / fps).toFixed(2)} s`;
    this.space?.setMoment(fraction);
    const near = [...(this.pictures?.values() ?? [])].sort((a, b) => Math.abs(a.index - frame) - Math.abs(b.index - frame))[0];
    if ($("show-source").getAttribute("aria-pressed") === "true" && scene) {
      $("picture").src = `data:image/webp;base64,${scene.webp}`;
      $("holes").textContent = "as it was filmed";
    } else if (near) {
      this._put(near);
    }
  }

  _put(frame) {
    const address = `data:image/webp;base64,${frame.webp}`;
    $("holes").textContent = `${percent(frame.hole_share)} not filmed here`;
    if ($("show-source").getAttribute("aria-pressed") !== "true") $("picture").src = address;
    if (this.space && this.texture !== address) {
      this.texture = address;
      const image = new Image();
      image.src = address;
      image.decode().then(() => this.texture === address && this.space.setPicture(image), () => {});
    }
  }

  _curve(frames) {
    const most = Math.max(0.05, ...frames.map((frame) => frame.hole_share));
    const end = Math.max(1, frames.at(-1).index);
    const spots = frames.map((frame) => `${(100 * frame.index) / end} ${100 - (92 * frame.hole_share) / most}`);
    $("curve").querySelector("path").setAttribute("d", `M0 100 L${spots.join(" L")} L100 100 Z`);
    this.mean = frames.reduce((sum, frame) => sum + frame.hole_share, 0) / frames.length;
    this._costs(this.estimated);
  }

  /** What a render takes, or why that is not known. */
  _costs(cost, why = "once the path rests") {
    this.estimated = cost;
    const lines = [["Not filmed", this.mean == null ? "…" : `${percent(this.mean)} on average`]];
    if (cost) {
      lines.push(
        ["Time", `about ${span(cost.seconds)}`],
        ["Memory", `${(cost.memory_bytes / 2 ** 30).toFixed(1)} GiB`],
        ["Result", `${cost.clip_size.join("×")}, ${cost.frames} frames, nothing cropped`],
      );
    } else {
      lines.push(["Time", why]);
    }
    $("cost").replaceChildren(...lines.flatMap(([name, value]) => [
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    ]));
  }

  _roll() {
    this.rolling = !this.rolling;
    $("roll").setAttribute("aria-pressed", String(this.rolling));
    if (!this.rolling) return this._moved();
    const frames = +$("moment").max + 1;
    const rate = this.upload.clip.fps;
    const from = performance.now() - (1000 * (this.frame % (frames - 1))) / rate;
    const step = (now) => {
      if (!this.rolling) return;
      const frame = Math.floor(((now - from) / 1000) * rate) % frames;
      if (frame !== this.frame) {
        $("moment").value = frame;
        this._show();
      }
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }
}
