// The page where one designs the shot: clip, move, preview, render, compare.

import { Service, ended, sentence } from "./service.js";

const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

let service = null;
let presets = [];
let upload = null;
let frames = [];
let drawing = null;

function say(text, wrong = false) {
  $("said").textContent = text;
  $("said").classList.toggle("wrong", wrong);
}

async function trying(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

async function enter(key) {
  const candidate = new Service(key);
  presets = (await candidate.json("GET", "/v1/presets")).data;
  service = candidate;
  sessionStorage.setItem("key", key);
  $("login").hidden = true;
  document.querySelector("main").hidden = false;
  say("");
  $("preset").replaceChildren(...presets.map((preset) => new Option(preset.name)));
  $("preset").value = "arc";
  choose();
  const known = (await service.json("GET", "/v1/renders?limit=20")).data;
  for (const render of known.reverse()) {
    show(render);
    if (!ended(render)) watch(render);
  }
}

// A slider for the first parameter of a move: what is given without its name.
function choose() {
  const preset = presets.find((one) => one.name === $("preset").value);
  const first = preset.parameters.find((p) => typeof p.default === "number" && p.unit !== "clip");
  $("about").textContent = sentence(preset.summary);
  const slider = $("amount");
  slider.closest("label").hidden = !first;
  if (first) {
    const angle = /deg/.test(first.unit);
    const reach = angle ? 40 : Math.max(1, 2 * Math.abs(first.default));
    slider.min = Math.max(first.low ?? -reach, -reach);
    slider.max = Math.min(first.high ?? reach, reach);
    slider.step = angle ? 0.5 : 0.01;
    slider.value = first.default;
    slider.dataset.unit = angle ? "deg" : "";
    $("amount-name").textContent = first.name.replaceAll("_", " ");
  }
  compose();
}

function compose() {
  const slider = $("amount");
  const amount = slider.closest("label").hidden ? "" : `(${slider.value}${slider.dataset.unit})`;
  $("amount-said").textContent = `${slider.value}${slider.dataset.unit ? "°" : ""}`;
  $("camera").value = $("preset").value + amount;
  preview();
}

// While the slider moves only the newest wish counts: one request is under way, the next one waits for it.
function preview() {
  if (!upload) return;
  if (drawing) {
    drawing.again = true;
    return;
  }
  drawing = { again: false };
  trying(async () => {
    const json = { input: { upload: upload.id }, camera: $("camera").value, count: 7 };
    const drawn = await service.json("POST", "/v1/previews", { json });
    $("moment").max = drawn.frames.length - 1;
    if (!frames.length) $("moment").value = drawn.frames.length - 1; // where the camera has moved the most
    frames = drawn.frames;
    $("holes").dataset.mean = drawn.hole_share;
    show_moment();
    say(drawn.warnings.map(sentence).join(" "));
  }).finally(() => {
    const again = drawing.again;
    drawing = null;
    if (again) preview();
  });
}

function show_moment() {
  const frame = frames[$("moment").value];
  if (!frame) return;
  $("picture").src = `data:image/webp;base64,${frame.webp}`;
  $("holes").textContent = `${percent(frame.hole_share)} not filmed here, ${percent(+$("holes").dataset.mean)} on average`;
}

async function take(file) {
  if (!file) return;
  say("Sending the clip …");
  frames = [];
  $("sent").hidden = false;
  upload = await service.upload(file, (share) => ($("sent").value = share));
  $("sent").hidden = true;
  $("source").src = URL.createObjectURL(file);
  $("source").hidden = false;
  const { width, height, frames: count, fps } = upload.clip;
  $("drop").querySelector("small").textContent = `${file.name}: ${width}×${height}, ${count} frames at ${fps.toFixed(2)} fps`;
  $("shot").hidden = false;
  say("Looking at its depth; the first preview takes a while …");
  preview();
}

const wish = () => ({ input: { upload: upload.id }, camera: $("camera").value, options: { quality: $("quality").value } });

async function estimate() {
  $("cost").textContent = "Measuring …";
  const cost = await service.json("POST", "/v1/renders:estimate", { json: wish() });
  const minutes = cost.seconds < 90 ? `${Math.round(cost.seconds)} s` : `${Math.round(cost.seconds / 60)} min`;
  $("cost").textContent =
    `About ${minutes} and ${(cost.memory_bytes / 2 ** 30).toFixed(1)} GiB; ${cost.frames} frames of ` +
    `${cost.clip_size.join("×")}, nothing cropped; ${percent(cost.hole_share)} not filmed.`;
}

async function start() {
  const headers = { "Idempotency-Key": crypto.randomUUID() };
  const render = await service.json("POST", "/v1/renders", { json: wish(), headers });
  if (upload) sessionStorage.setItem(render.id, $("source").src);
  show(render);
  watch(render);
  say("The render is accepted. This page may be closed; it goes on.");
}

const watch = (render) => service.follow(render.id, show);

// A line of the list; the same line again when the render has moved.
function show(render) {
  $("none").hidden = true;
  let line = $(render.id);
  if (!line) {
    line = document.createElement("li");
    line.id = render.id;
    $("renders").prepend(line);
  }
  const name = document.createElement("code");
  name.textContent = render.camera;
  const state = document.createElement("span");
  state.textContent = ended(render) ? render.status : `${render.stage ?? "queued"}, ${Math.round(100 * render.progress)} %`;
  const act = document.createElement("button");
  act.type = "button";
  line.replaceChildren(name, state, act);
  if (render.status === "completed") {
    act.textContent = "Open";
    act.onclick = () => trying(() => compare(render));
  } else if (ended(render)) {
    act.textContent = "Remove";
    act.onclick = () => trying(() => service.send("DELETE", `/v1/renders/${render.id}`).then(() => line.remove()));
    if (render.error) state.textContent += `: ${sentence(render.error.message)}`;
  } else {
    act.textContent = "Cancel";
    act.onclick = () => trying(() => service.send("POST", `/v1/renders/${render.id}/cancel`));
    const bar = document.createElement("progress");
    bar.value = render.progress;
    bar.setAttribute("aria-label", `Progress of ${render.camera}`);
    line.append(bar);
  }
}

const LINKS = { video: "video.mp4", side_by_side: "side-by-side.mp4", camera: "camera.json", page: "report.html" };

async function compare(render) {
  $("after").src = await service.file(render.id, "video");
  $("before").src = sessionStorage.getItem(render.id) ?? (await service.file(render.id, "anchor"));
  $("compare").hidden = false;
  $("downloads").replaceChildren(
    ...Object.entries(LINKS).flatMap(([variant, name]) => {
      const link = document.createElement("button");
      link.type = "button";
      link.textContent = name;
      link.onclick = () => trying(async () => {
        const anchor = document.createElement("a");
        anchor.href = await service.file(render.id, variant);
        anchor.download = name;
        anchor.click();
      });
      return [link, " "];
    }),
  );
  $("compare").scrollIntoView({ behavior: "smooth" });
}

function play() {
  const videos = [$("before"), $("after")];
  const paused = videos[1].paused;
  videos[0].currentTime = videos[1].currentTime;
  videos.forEach((video) => (paused ? video.play() : video.pause()));
  $("play").textContent = paused ? "Pause" : "Play";
}

$("login").onsubmit = (event) => {
  event.preventDefault();
  trying(() => enter($("key").value.trim()));
};
$("file").onchange = (event) => trying(() => take(event.target.files[0]));
$("drop").ondragover = (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
};
$("drop").ondragleave = () => $("drop").classList.remove("over");
$("drop").ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  trying(() => take(event.dataTransfer.files[0]));
};
$("preset").onchange = choose;
$("amount").oninput = compose;
$("camera").onchange = preview;
$("moment").oninput = show_moment;
$("estimate").onclick = () => trying(estimate);
$("start").onclick = () => trying(start);
$("wipe").oninput = (event) => event.target.parentElement.style.setProperty("--at", `${event.target.value}%`);
$("play").onclick = play;
if (sessionStorage.getItem("key")) trying(() => enter(sessionStorage.getItem("key")));
