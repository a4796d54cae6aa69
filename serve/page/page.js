// The page where one designs the shot: key, clip, path, render, comparison. Start here.

import { Compare } from "./compare.js";
import { Renders } from "./renders.js";
import { Service } from "./service.js";
import { Shot } from "./shot.js";

const $ = (id) => document.getElementById(id);
let service, shot, renders;

function say(text, wrong = false) {
  $("said").textContent = text;
  $("said").classList.toggle("wrong", wrong);
  clearTimeout(say.over);
  if (!wrong) say.over = setTimeout(say, 8000, "");
}

async function trying(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

async function enter(key) {
  const candidate = new Service(key);
  const presets = (await candidate.json("GET", "/v1/presets")).data;
  service = candidate;
  sessionStorage.setItem("key", key);
  $("login").hidden = true;
  $("leave").hidden = false;
  document.querySelector("main").hidden = false;
  say("");
  shot = new Shot(service, presets, say);
  const compare = new Compare(service, { trying, say });
  renders = new Renders(service, {
    trying,
    onOpen: (render) => compare.open(render),
    onReuse: (path) => {
      $("camera").value = path;
      $("camera").dispatchEvent(new Event("input"));
      $(shot.upload ? "shot" : "clip").scrollIntoView();
    },
  });
  await renders.load();
}

async function take(file) {
  if (!file) return;
  say("Sending the clip …");
  $("sent").hidden = false;
  $("sent").value = 0;
  try {
    const upload = await service.upload(file, (share) => ($("sent").value = share));
    const { width, height, frames, fps } = upload.clip;
    $("clip-said").textContent = `${file.name}, ${width}×${height}, ${frames} frames at ${Number(fps.toFixed(2))} fps`;
    if ($("source").src) URL.revokeObjectURL($("source").src);
    $("source").src = URL.createObjectURL(file);
    $("source").hidden = false;
    $("clip").classList.add("taken");
    $("another").hidden = false;
    say("");
    shot.open(upload);
  } finally {
    $("sent").hidden = true;
    $("file").value = "";
  }
}

async function start() {
  $("start").disabled = true;
  try {
    renders.add(await service.json("POST", "/v1/renders", { json: shot.wish }));
    say("The render is accepted. You may close this page; it goes on.");
  } finally {
    $("start").disabled = false;
  }
}

$("login").onsubmit = (event) => {
  event.preventDefault();
  trying(() => enter($("key").value.trim()));
};
$("leave").onclick = () => {
  sessionStorage.clear();
  location.reload();
};
$("another").onclick = () => $("file").click();
$("file").onchange = (event) => trying(() => take(event.target.files[0]));
document.body.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.body.ondragleave = (event) => event.relatedTarget || document.body.classList.remove("dropping");
document.body.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (service) trying(() => take(event.dataTransfer.files[0]));
};
$("start").onclick = () => trying(start);
if (sessionStorage.getItem("key")) trying(() => enter(sessionStorage.getItem("key")));
