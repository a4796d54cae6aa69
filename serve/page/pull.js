// From a handle that somebody pulls to the expression: the values of its motions are solved so that the camera is there.
//
// The motions that are there already are pulled first. Only when these cannot follow, a motion is added that can: an arc
// stays an arc while the hand is near it, and gains a dolly when the hand leaves it.

import { Vector3 } from "./vendor/three.module.min.js";
import { depthLookedAt, motion, pose, rounded } from "./camera.js";

/** How far a hand may be from where the motions can go, in median depths, before another motion is added. */
export const GRIP = 0.07;
const PLACES = new Set(["distance", "height", "radius", "forward", "elevation"]);
const ARCS = new Set(["arc", "orbit"]);
const STEP = 1e-4;

/**
 * The motions with the camera's place at the path's `end` ("start" or "end") pulled to where `off` is zero.
 *
 * `off` says how far a place (Vector3, median depths) is from the hand: from the line of sight under a finger, or from a
 * point; it may change the place it is given.
 */
export function pull(motions, end, off, presets, subjectDepth, grip = GRIP) {
  let best = solve(motions, end, off, subjectDepth);
  while (best.miss > grip) {
    const tried = more(best.motions, presets)
      .map((added) => solve([...best.motions, added], end, off, subjectDepth))
      .sort((a, b) => a.miss - b.miss);
    if (!tried.length || tried[0].miss > 0.7 * best.miss) break;
    best = tried[0];
  }
  return best.motions.map((each) => ({ preset: each.preset, values: tidy(each) }));
}

/** The motions with what they look at, or move about, at this depth. */
export function pullCenter(motions, depth, subjectDepth) {
  const look = Math.abs(depth - subjectDepth) < 0.03 * subjectDepth ? "subject" : Math.min(100, Math.max(0.05, depth));
  return motions.map((each) => {
    if (depthLookedAt(each, subjectDepth) === null) return each;
    const parameter = each.preset.parameters.find((p) => p.name === "look_at");
    const value = typeof look === "string" ? look : rounded(parameter, look);
    return { preset: each.preset, values: { ...each.values, look_at: value } };
  });
}

/** What can be added to go where these motions cannot: around the subject where one looks at it, else straight. */
function more(motions, presets) {
  if (motions.length >= 32) return [];
  const looks = motions.some((each) => typeof each.values.look_at !== "undefined" && each.values.look_at !== "none");
  const has = (name) => motions.some((each) => each.preset.name === name);
  const still = (name, given = {}) => motion(presets[name], { [presets[name].parameters[0].name]: 0, ...given });
  if (!looks) return ["truck", "pedestal", "dolly"].filter((name) => !has(name)).map((name) => still(name));
  const found = has("dolly") ? [] : [still("dolly")];
  if (!has("arc") && !has("orbit")) found.push(still("arc"));
  if (!has("pedestal") && !has("crane")) found.push(still("pedestal", { look_at: "subject" }));
  return found;
}

/** Levenberg and Marquardt's method over the values that move the camera, with numeric derivatives. */
function solve(motions, end, off, subjectDepth) {
  const knobs = motions.flatMap((each, index) => each.preset.parameters
    .filter((p) => (end === "start" ? p.name === "start" && moves(each) : moving(each, p)))
    .map((p) => ({ index, p, scale: p.unit === "deg" ? 180 / Math.PI : 1 })));
  const miss = (those) => off(where(those, end, subjectDepth));
  let now = motions;
  let left = miss(now);
  let damping = 1e-3;
  for (let round = 0; round < 30 && left.length() > 1e-4; round++) {
    const rows = knobs.map((knob) => miss(changed(now, knob, STEP)).sub(left).divideScalar(STEP)); // J^T
    const steps = damped(rows, left, damping);
    const next = knobs.reduce((those, knob, k) => changed(those, knob, steps[k]), now);
    const reached = miss(next);
    if (reached.length() < left.length()) {
      if (left.length() - reached.length() < 1e-6) break;
      [now, left, damping] = [next, reached, Math.max(1e-6, damping / 4)];
    } else {
      damping *= 8;
      if (damping > 1e4) break;
    }
  }
  return { motions: now, miss: left.length() };
}

const moves = (each) => ARCS.has(each.preset.name) || each.preset.parameters.some((p) => PLACES.has(p.name));
const moving = (each, p) => PLACES.has(p.name) || (p.name === "angle" && ARCS.has(each.preset.name));

const where = (motions, end, subjectDepth) =>
  new Vector3().setFromMatrixPosition(pose(motions, end === "start" ? 0 : 1, subjectDepth).c2w);

function changed(motions, { index, p, scale }, by) {
  const each = motions[index];
  const value = Math.min(p.high ?? Infinity, Math.max(p.low ?? -Infinity, each.values[p.name] + by * scale));
  return motions.with(index, { preset: each.preset, values: { ...each.values, [p.name]: value } });
}

/** The step -(J^T J + d I)^-1 J^T r as -J^T (J J^T + d I)^-1 r: three equations, however many values there are. */
function damped(rows, left, damping) {
  const a = [0, 1, 2].map((i) => [0, 1, 2].map((j) =>
    rows.reduce((sum, row) => sum + row.getComponent(i) * row.getComponent(j), i === j ? damping : 0)));
  const [p, q, r] = a.map((line) => new Vector3(...line));
  const volume = p.dot(q.clone().cross(r));
  const solved = [[q, r], [r, p], [p, q]]
    .reduce((sum, [u, v], i) => sum.addScaledVector(u.clone().cross(v), left.getComponent(i)), new Vector3())
    .divideScalar(volume);
  return rows.map((row) => -row.dot(solved));
}

function tidy({ preset, values }) {
  return Object.fromEntries(preset.parameters.map((p) => {
    const value = values[p.name];
    return [p.name, typeof value === "number" && p.unit !== "clip" ? rounded(p, value) : value];
  }));
}
