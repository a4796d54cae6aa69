// The path language, as engine/cameras has it: from an expression to motions, to poses, and back to text.
//
// Poses are c2w in the source camera's frame: x right, y down, z forward, lengths in median depths of the clip. The
// service has the last word on what an expression means; a test holds this file to the same poses.

import { Matrix4, Vector3 } from "./vendor/three.module.min.js";

const EASINGS = {
  linear: (u) => u,
  in: (u) => u * u,
  out: (u) => 1 - (1 - u) ** 2,
  in_out: (u) => u * u * (3 - 2 * u),
};
const TOKEN = /\s*(?:([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|([-+(),=]))/y;
const rad = (degrees) => (degrees * Math.PI) / 180;

/** Motions of an expression, each { preset, values }; null where it is none: the service says what is wrong with it. */
export function parse(text, presets) {
  const tokens = [];
  TOKEN.lastIndex = 0;
  const end = text.trimEnd().length;
  while (TOKEN.lastIndex < end) {
    const match = TOKEN.exec(text);
    if (!match) return null;
    tokens.push(match[1] !== undefined ? Number(match[1]) : (match[2] ?? match[3]));
  }
  const motions = [];
  do {
    const motion = parseMotion(tokens, presets);
    if (!motion) return null;
    motions.push(motion);
  } while (tokens[0] === "+" && tokens.shift());
  return tokens.length ? null : motions;
}

function parseMotion(tokens, presets) {
  const preset = presets[tokens.shift()];
  if (!preset) return null;
  const values = Object.fromEntries(preset.parameters.map((p) => [p.name, p.default]));
  if (tokens[0] === "(" && tokens.shift() && !(tokens[0] === ")" && tokens.shift())) {
    for (let first = true; ; first = false) {
      const named = tokens[1] === "=" && tokens.splice(0, 2)[0];
      const parameter = named ? preset.parameters.find((p) => p.name === named) : first && preset.parameters[0];
      if (!parameter || !accepts(parameter, tokens[0])) return null;
      values[parameter.name] = tokens.shift();
      if (tokens[0] === "deg" && parameter.unit === "deg") tokens.shift();
      const mark = tokens.shift();
      if (mark === ")") break;
      if (mark !== ",") return null;
    }
  }
  return "from" in values && values.from >= values.to ? null : { preset, values };
}

function accepts(parameter, value) {
  if (typeof value === "string") return parameter.words.includes(value);
  return parameter.unit !== "word" && value >= (parameter.low ?? -Infinity) && value <= (parameter.high ?? Infinity);
}

/** The expression of motions: what is as it would be anyway is left out. */
export function format(motions) {
  return motions.map(({ preset, values }) => {
    const given = preset.parameters
      .filter((p, i) => i === 0 || values[p.name] !== p.default)
      .map((p, i) => `${i ? `${p.name}=` : ""}${written(p, values[p.name])}`);
    return given.length ? `${preset.name}(${given.join(", ")})` : preset.name;
  }).join(" + ");
}

/** A value as one writes it: as many digits as a hand can mean. */
export function written(parameter, value) {
  if (typeof value === "string") return value;
  return String(rounded(parameter, value)) + (parameter.unit === "deg" ? "deg" : "");
}

export const rounded = (parameter, value) => Number(value.toFixed(parameter.unit === "deg" ? 1 : 3)) + 0;

/** A motion with what its preset has by itself, and what `given` says. */
export function motion(preset, given = {}) {
  return { preset, values: { ...Object.fromEntries(preset.parameters.map((p) => [p.name, p.default])), ...given } };
}

/** Depth of what a motion looks at or moves about, in median depths; null for one that looks at nothing. */
export function depthLookedAt({ values }, subjectDepth) {
  if (!("look_at" in values) || values.look_at === "none") return null;
  return values.look_at === "subject" ? subjectDepth : values.look_at;
}

/** The new camera at a fraction of the clip's time: { c2w: Matrix4, zoom }. */
export function pose(motions, fraction, subjectDepth) {
  const c2w = new Matrix4();
  let zoom = 1;
  for (const each of motions) {
    const pivot = new Vector3(0, 0, depthLookedAt(each, subjectDepth) ?? subjectDepth).applyMatrix4(c2w.clone().invert());
    const step = MOVES[each.preset.name](each.values, { progress: progress(each.values, fraction), pivot });
    if (step.c2w) c2w.multiply(step.c2w);
    zoom *= step.zoom ?? 1;
  }
  return { c2w, zoom };
}

function progress(values, fraction) {
  if (!("ease" in values)) return fraction;
  return EASINGS[values.ease](Math.min(1, Math.max(0, (fraction - values.from) / (values.to - values.from))));
}

const ramp = (values, name, scene) => values.start + (values[name] - values.start) * scene.progress;

/** x level, z along `direction`. */
function levelBasis(direction) {
  const z = direction.clone().normalize();
  const x = new Vector3(0, 1, 0).cross(z).normalize();
  return new Matrix4().makeBasis(x, z.clone().cross(x), z);
}

/** The camera at `position`; with look_at it turns so that the pivot stays where it was in the picture. */
function placed(position, values, { pivot }) {
  const c2w = new Matrix4().setPosition(position);
  if (values.look_at === "none") return { c2w };
  const turn = levelBasis(pivot.clone().sub(position)).multiply(levelBasis(pivot).transpose());
  return { c2w: c2w.multiply(turn) };
}

function arc(values, scene) {
  const turn = new Matrix4().makeRotationY(-rad(ramp(values, "angle", scene)));
  turn.multiply(new Matrix4().makeRotationX(-rad(values.elevation * scene.progress)));
  const to = scene.pivot.clone();
  return { c2w: new Matrix4().makeTranslation(to).multiply(turn).multiply(new Matrix4().makeTranslation(to.negate())) };
}

const travel = (name, x, y, z) => (values, scene) => {
  const distance = ramp(values, name, scene);
  return placed(new Vector3(x, y, z).multiplyScalar(distance), values, scene);
};

const MOVES = {
  static: () => ({}),
  pan: (values, scene) => ({ c2w: new Matrix4().makeRotationY(rad(ramp(values, "angle", scene))) }),
  tilt: (values, scene) => ({ c2w: new Matrix4().makeRotationX(rad(ramp(values, "angle", scene))) }),
  roll: (values, scene) => ({ c2w: new Matrix4().makeRotationZ(rad(ramp(values, "angle", scene))) }),
  zoom: (values, scene) => ({ zoom: values.start * (values.factor / values.start) ** scene.progress }),
  dolly: travel("distance", 0, 0, 1),
  truck: travel("distance", 1, 0, 0),
  pedestal: travel("distance", 0, -1, 0),
  dolly_zoom(values, scene) {
    const distance = ramp(values, "distance", scene);
    const depth = scene.pivot.z;
    return { c2w: new Matrix4().makeTranslation(0, 0, distance), zoom: (depth - distance) / depth };
  },
  arc,
  orbit: arc,
  crane: travel("height", 0, -1, 0),
  spiral(values, scene) {
    const phase = 2 * Math.PI * values.turns * scene.progress;
    const radius = values.radius * scene.progress;
    const z = values.forward * scene.progress;
    return placed(new Vector3(radius * Math.cos(phase), -radius * Math.sin(phase), z), values, scene);
  },
  lemniscate(values, scene) {
    const phase = 2 * Math.PI * values.loops * scene.progress;
    const x = (values.radius * Math.sin(phase)) / (1 + Math.cos(phase) ** 2);
    return placed(new Vector3(x, -x * Math.cos(phase), 0), values, scene);
  },
};
