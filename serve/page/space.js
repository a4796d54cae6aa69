// The scene in 3D: one frame's points, the source camera, the new camera along its path, and handles to pull it by.
//
// Everything hangs below `root`, which turns the cameras' axes (x right, y down, z forward) into three's (y up, z back);
// lengths are median depths of the clip. Handles are buttons over the picture, so that fingers and keys reach them.

import * as THREE from "./vendor/three.module.min.js";
import { OrbitControls } from "./vendor/OrbitControls.js";
import { depthLookedAt, pose } from "./camera.js";

const SOURCE = 0x7fb4e8;
const NEW = 0xff8a50;
const FRUSTUM = 0.2; // length of a camera's drawn frustum
const BAND = 0.05; // relative depth within which neighbors are one surface
const FAR = 60;
const SAMPLES = 128;
const GHOSTS = 9;
const NUDGE = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };

THREE.ColorManagement.enabled = false; // footage and page colors go through as they are

export class Space {
  /**
   * @param frame element that is filled; it holds a canvas and the handles, buttons with data-handle start, end, center.
   * @param onPull called with a handle's name, a function that says how far a place is from the hand (both Vector3,
   *   source camera's axes), and for keys how near the camera must come; for "center" with the depth instead.
   * @param onGrab called with true when a pull begins and with false when it is over.
   * @throws where the browser has no WebGL.
   */
  constructor(frame, { onPull, onGrab }) {
    this.frame = frame;
    this.onPull = onPull;
    this.onGrab = onGrab;
    this.renderer = new THREE.WebGLRenderer({ canvas: frame.querySelector("canvas"), antialias: true, alpha: true });
    this.renderer.outputColorSpace = THREE.LinearSRGBColorSpace;
    this.renderer.setPixelRatio(Math.min(2, devicePixelRatio));
    this.eye = new THREE.PerspectiveCamera(40, 1, 0.01, 400);
    this.controls = new OrbitControls(this.eye, this.renderer.domElement);
    this.controls.addEventListener("change", () => this.redraw());
    this.world = new THREE.Scene();
    this.root = new THREE.Group();
    this.root.scale.set(1, -1, -1);
    this.world.add(this.root);
    this.handles = Object.fromEntries([...frame.querySelectorAll("[data-handle]")].map((each) => [each.dataset.handle, each]));
    this.places = { start: new THREE.Vector3(), end: new THREE.Vector3(), center: new THREE.Vector3() };
    for (const name of Object.keys(this.handles)) this._listen(name);
    this._build();
    new ResizeObserver(() => this._resize()).observe(frame);
    this._resize();
  }

  _build() {
    this.points = new THREE.Points(new THREE.BufferGeometry(), new THREE.ShaderMaterial({
      vertexColors: true,
      uniforms: { focal: { value: 1 } },
      vertexShader: `
        attribute float reach; uniform float focal; varying vec3 seen;
        void main() {
          vec4 at = modelViewMatrix * vec4(position, 1.0);
          gl_Position = projectionMatrix * at;
          gl_PointSize = clamp(1.2 * reach * focal / -at.z, 1.0, 24.0); // a pixel's footprint at its depth
          seen = color;
        }`,
      fragmentShader: "varying vec3 seen; void main() { gl_FragColor = vec4(seen, 1.0); }",
    }));
    // What lies on one surface is drawn as one, as in the anchor; the points are what is left where it is torn.
    this.surface = new THREE.Mesh(new THREE.BufferGeometry(), new THREE.MeshBasicMaterial({ vertexColors: true, side: THREE.DoubleSide }));
    this.points.frustumCulled = this.surface.frustumCulled = false;
    this.floor = new THREE.GridHelper(8, 32, 0x3a3d44, 0x2a2c31);
    this.source = lines(SOURCE, 1);
    this.axis = new THREE.Line(new THREE.BufferGeometry(), new THREE.LineDashedMaterial({ color: SOURCE, dashSize: 0.03, gapSize: 0.03, transparent: true, opacity: 0.6 }));
    this.camera = lines(NEW, 1);
    this.ghosts = lines(NEW, 0.28);
    this.path = new THREE.Mesh(new THREE.BufferGeometry(), new THREE.MeshBasicMaterial({ color: NEW }));
    this.picture = new THREE.Mesh(new THREE.BufferGeometry(), new THREE.MeshBasicMaterial({ side: THREE.DoubleSide, transparent: true, opacity: 0.95 }));
    this.picture.visible = false;
    this.root.add(this.surface, this.points, this.floor, this.source, this.axis, this.path, this.ghosts, this.camera, this.picture);
    // Over the points: what one works with must not hide in what one works on.
    for (const each of [this.source, this.axis, this.ghosts, this.camera, this.path]) {
      each.material.depthTest = false;
      each.renderOrder = 1;
      each.frustumCulled = false;
    }
  }

  /** Show a frame: a `Scene` of the service with `depths` (Float32Array) and `pixels` (RGBA bytes) decoded. */
  setScene(scene, depths, pixels) {
    const fresh = !this.scene;
    const { width, height, K_px: K } = scene;
    const place = [], shade = [], reach = [], heights = [], triangles = [];
    const index = new Int32Array(depths.length).fill(-1);
    for (let i = 0; i < depths.length; i++) {
      const d = depths[i];
      if (!(d > 0 && d < FAR)) continue; // sky, and what is not known
      index[i] = reach.length;
      const y = ((Math.floor(i / width) + 0.5 - K[1][2]) / K[1][1]) * d;
      place.push((((i % width) + 0.5 - K[0][2]) / K[0][0]) * d, y, d);
      shade.push(pixels[4 * i] / 255, pixels[4 * i + 1] / 255, pixels[4 * i + 2] / 255);
      reach.push(d / K[0][0]);
      if (i % 17 === 0) heights.push(y);
    }
    for (let i = 0; i < depths.length - width; i++) {
      if (i % width === width - 1) continue;
      const square = [i, i + 1, i + width, i + width + 1];
      const near = Math.min(...square.map((j) => depths[j]));
      if (square.some((j) => index[j] < 0 || depths[j] > near * (1 + BAND))) continue;
      const [a, b, c, d] = square.map((j) => index[j]);
      triangles.push(a, c, b, b, c, d);
    }
    for (const each of [this.points, this.surface]) each.geometry.dispose();
    const attributes = { position: [place, 3], color: [shade, 3], reach: [reach, 1] };
    this.points.geometry = new THREE.BufferGeometry();
    for (const [name, [values, size]] of Object.entries(attributes)) {
      this.points.geometry.setAttribute(name, new THREE.Float32BufferAttribute(values, size));
    }
    this.surface.geometry = this.points.geometry.clone().setIndex(triangles);
    this.scene = scene;
    heights.sort((a, b) => a - b);
    this.floor.position.set(0, heights[Math.floor(0.97 * heights.length)] ?? 0.5, scene.subject_depth);
    setLines(this.source, [this._frustum(new THREE.Matrix4(), 1)]);
    this.axis.geometry.setFromPoints([new THREE.Vector3(), new THREE.Vector3(0, 0, scene.subject_depth)]);
    this.axis.computeLineDistances();
    this.frame.dataset.points = reach.length;
    this.frame.dataset.frame = scene.frame;
    this.frame.classList.remove("empty");
    if (fresh) this.look("free");
    if (this.motions) this.setPath(this.motions);
    this.redraw();
  }

  /** Draw the path of these motions. */
  setPath(motions) {
    this.motions = motions;
    if (!this.scene) return;
    const subject = this.scene.subject_depth;
    const spots = Array.from({ length: SAMPLES + 1 }, (_, i) => position(pose(motions, i / SAMPLES, subject).c2w));
    const length = spots.slice(1).reduce((sum, spot, i) => sum + spot.distanceTo(spots[i]), 0);
    this.path.visible = Number.isFinite(length) && length > 1e-3;
    if (this.path.visible) {
      this.path.geometry.dispose();
      this.path.geometry = new THREE.TubeGeometry(new THREE.CatmullRomCurve3(spots), 2 * SAMPLES, 0.005, 6);
    }
    setLines(this.ghosts, Array.from({ length: GHOSTS }, (_, i) => pose(motions, i / (GHOSTS - 1), subject))
      .map(({ c2w, zoom }) => this._frustum(c2w, zoom)));
    this.places.start.copy(spots[0]);
    this.places.end.copy(spots.at(-1));
    const depths = motions.map((each) => depthLookedAt(each, subject)).filter((depth) => depth !== null);
    this.handles.center.hidden = !depths.length;
    this.places.center.set(0, 0, depths[0] ?? subject);
    this.setMoment(this.fraction ?? 1);
  }

  /** Put the new camera where it is at this fraction of the clip's time. */
  setMoment(fraction) {
    this.fraction = fraction;
    if (!this.scene || !this.motions) return;
    const { c2w, zoom } = pose(this.motions, fraction, this.scene.subject_depth);
    const frustum = this._frustum(c2w, zoom);
    setLines(this.camera, [frustum]);
    const corners = frustum.slice(1, 5).flatMap((corner) => corner.toArray());
    this.picture.geometry.setAttribute("position", new THREE.Float32BufferAttribute(corners, 3));
    this.picture.geometry.setAttribute("uv", new THREE.Float32BufferAttribute([0, 1, 1, 1, 1, 0, 0, 0], 2));
    this.picture.geometry.setIndex([0, 1, 2, 0, 2, 3]);
    this.redraw();
  }

  /** What the new camera sees, on its picture plane. */
  setPicture(image) {
    this.picture.material.map?.dispose();
    this.picture.material.map = new THREE.Texture(image);
    this.picture.material.map.needsUpdate = true;
    this.picture.material.needsUpdate = !this.picture.visible;
    this.picture.visible = true;
    this.redraw();
  }

  /** Look from somewhere: "free", "top", "side", or "camera", which is the new one. */
  look(from) {
    const subject = this.scene?.subject_depth ?? 1;
    const middle = new THREE.Vector3(0, 0, -0.6 * subject);
    const away = 1.5 * subject + 0.3;
    this.controls.target.copy(middle);
    if (from === "camera") {
      const { c2w } = pose(this.motions, this.fraction ?? 1, subject);
      this.root.updateMatrixWorld();
      this.eye.position.copy(position(c2w).applyMatrix4(this.root.matrixWorld));
      this.controls.target.copy(new THREE.Vector3(0, 0, subject).applyMatrix4(c2w).applyMatrix4(this.root.matrixWorld));
    } else {
      const direction = { free: [0.75, 0.55, 0.85], top: [0, 1, 0.001], side: [1, 0.02, 0] }[from];
      this.eye.position.copy(middle).addScaledVector(new THREE.Vector3(...direction).normalize(), away);
    }
    this.controls.update();
    this.redraw();
  }

  /** Draw once, before the next frame is shown. */
  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.renderer.render(this.world, this.eye);
      this._placeHandles();
    });
  }

  _resize() {
    const { clientWidth: width, clientHeight: height } = this.frame;
    if (!width || !height) return;
    this.renderer.setSize(width, height, false);
    this.eye.aspect = width / height;
    // A narrow window keeps the breadth of view.
    this.eye.fov = width > height ? 40 : Math.min(75, (2 * Math.atan(Math.tan(Math.PI / 9) * (height / width)) * 180) / Math.PI);
    this.eye.updateProjectionMatrix();
    this.points.material.uniforms.focal.value =
      (height * this.renderer.getPixelRatio()) / (2 * Math.tan((this.eye.fov * Math.PI) / 360));
    this.redraw();
  }

  /** Apex and corners (clockwise from top left) of a camera, and a tip that says which side is up. */
  _frustum(c2w, zoom) {
    const { width, height, K_px: K } = this.scene;
    const corner = (x, y) => new THREE.Vector3(
      ((x - K[0][2]) / (K[0][0] * zoom)) * FRUSTUM, ((y - K[1][2]) / (K[1][1] * zoom)) * FRUSTUM, FRUSTUM).applyMatrix4(c2w);
    return [position(c2w), corner(0, 0), corner(width, 0), corner(width, height), corner(0, height), corner(width / 2, -0.22 * height)];
  }

  _placeHandles() {
    const { clientWidth: width, clientHeight: height } = this.frame;
    for (const [name, handle] of Object.entries(this.handles)) {
      const at = this._seen(name);
      handle.style.visibility = at.z < 1 ? "" : "hidden";
      handle.style.transform = `translate(${((at.x + 1) / 2) * width}px, ${((1 - at.y) / 2) * height}px)`;
    }
  }

  /** A handle's place in the picture, -1 to 1 on both axes. */
  _seen(name) {
    return this.places[name].clone().applyMatrix4(this.root.matrixWorld).project(this.eye);
  }

  /** The same of a finger. */
  _under(event) {
    const box = this.frame.getBoundingClientRect();
    return new THREE.Vector3(((event.clientX - box.left) / box.width) * 2 - 1, 1 - ((event.clientY - box.top) / box.height) * 2, 0);
  }

  _listen(name) {
    const handle = this.handles[name];
    const hand = new THREE.Raycaster();
    let held = null;
    handle.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      handle.setPointerCapture(event.pointerId);
      // Where the handle was taken: its middle need not be under the finger.
      held = this._seen(name).sub(this._under(event));
      this.onGrab(true);
    });
    handle.addEventListener("pointermove", (event) => {
      if (!held) return;
      const at = this._under(event).add(held);
      hand.setFromCamera(new THREE.Vector2(at.x, at.y), this.eye);
      const sight = hand.ray.applyMatrix4(this.root.matrixWorld.clone().invert());
      sight.direction.normalize();
      if (name === "center") {
        const depth = new THREE.Vector3();
        sight.distanceSqToSegment(new THREE.Vector3(), new THREE.Vector3(0, 0, 100), null, depth);
        this.onPull(name, depth.z);
      } else {
        this.onPull(name, (place) => place.sub(sight.closestPointToPoint(place, new THREE.Vector3())));
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      handle.addEventListener(end, () => {
        if (held) this.onGrab(false);
        held = null;
      });
    }
    handle.addEventListener("keydown", (event) => {
      const way = NUDGE[event.key];
      if (!way) return;
      event.preventDefault();
      const step = event.shiftKey ? 0.1 : 0.02;
      const to = new THREE.Vector3(...way).multiplyScalar(step).add(this.places[name]);
      this.onGrab(true);
      if (name === "center") this.onPull(name, to.z);
      else this.onPull(name, (place) => place.sub(to), 0.7 * step);
      this.onGrab(false);
    });
  }
}

const position = (c2w) => new THREE.Vector3().setFromMatrixPosition(c2w);

function lines(color, opacity) {
  const material = new THREE.LineBasicMaterial({ color, transparent: true, opacity });
  return new THREE.LineSegments(new THREE.BufferGeometry(), material);
}

/** Edges of frusta into one set of lines. */
function setLines(target, frusta) {
  const edges = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1], [1, 5], [5, 2]];
  target.geometry.dispose();
  target.geometry = new THREE.BufferGeometry().setFromPoints(frusta.flatMap((f) => edges.flatMap(([a, b]) => [f[a], f[b]])));
}
