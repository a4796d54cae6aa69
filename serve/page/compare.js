// Source and result in one wipe. Both come from one video that has them side by side, so that they cannot drift apart.

import { zipSync } from "./vendor/fflate.js";

const $ = (id) => document.getElementById(id);
const FILES = {
  video: "video.mp4", generated: "generated.mp4", anchor: "anchor.mp4", mask: "mask.mp4", side_by_side: "side_by_side.mp4",
  contact: "contact.png", camera: "camera.json", config: "config.json", report: "report.json", page: "report.html",
};
const OFFERED = [["Video", "video"], ["Camera", "camera"], ["Report", "page"]];

export class Compare {
  constructor(service, { trying, say }) {
    Object.assign(this, { service, trying, say });
    this.video = Object.assign(document.createElement("video"), { muted: true, loop: true, playsInline: true });
    this.canvas = $("both").getContext("2d");
    const shown = () => this._draw();
    this.video.onloadeddata = () => {
      $("both").width = this.video.videoWidth / 2;
      $("both").height = this.video.videoHeight;
      $("both").parentElement.style.setProperty("--aspect", $("both").width / $("both").height);
      shown();
    };
    this.video.onseeked = shown;
    this.video.onplay = this.video.onpause = () => {
      $("play").setAttribute("aria-pressed", String(!this.video.paused));
      $("play").setAttribute("aria-label", this.video.paused ? "Play" : "Pause");
      const step = () => {
        this._draw();
        if (!this.video.paused) requestAnimationFrame(step);
      };
      step();
    };
    $("play").onclick = () => (this.video.paused ? this.video.play() : this.video.pause());
    $("seek").oninput = () => {
      this.video.pause();
      this.video.currentTime = Math.min(+$("seek").value * this.video.duration, this.video.duration - 0.001);
    };
    $("wipe").oninput = shown;
    $("close").onclick = () => this.close();
  }

  async open(render) {
    this.close();
    const film = await this.service.file(render.id, "side_by_side");
    this.video.src = URL.createObjectURL(film);
    $("compare-path").textContent = render.camera;
    $("compare").hidden = false;
    $("downloads").replaceChildren(
      this._button("Bundle", () => this._bundle(render)),
      ...OFFERED.map(([name, variant]) => this._button(name, async () => hand(await this.service.file(render.id, variant), FILES[variant]))),
    );
    $("compare").scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    this.video.play().catch(() => {}); // a browser that does not like to: there is a button
  }

  close() {
    this.video.pause();
    if (this.video.src) URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute("src");
    $("compare").hidden = true;
  }

  /** All files of a render in one archive. */
  async _bundle(render) {
    this.say("Collecting the files …");
    const files = {};
    for (const variant of Object.keys(render.content)) {
      files[FILES[variant] ?? variant] = new Uint8Array(await (await this.service.file(render.id, variant)).arrayBuffer());
    }
    hand(new Blob([zipSync(files, { level: 0 })], { type: "application/zip" }), `${render.id}.zip`);
    this.say("");
  }

  _button(name, work) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: `Download ${name.toLowerCase()}` });
    button.onclick = () => this.trying(work);
    return button;
  }

  _draw() {
    const { videoWidth: both, videoHeight: height, duration, currentTime } = this.video;
    if (!both || this.video.readyState < 2) return;
    const width = both / 2;
    const cut = Math.round((width * $("wipe").value) / 100);
    this.canvas.drawImage(this.video, width, 0, width, height, 0, 0, width, height);
    if (cut) this.canvas.drawImage(this.video, 0, 0, cut, height, 0, 0, cut, height);
    $("divider").style.left = `${$("wipe").value}%`;
    if (document.activeElement !== $("seek") || !this.video.paused) $("seek").value = currentTime / duration;
    $("seek-said").textContent = `${currentTime.toFixed(2)} / ${duration.toFixed(2)} s`;
  }
}

function hand(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
