(() => {
  "use strict";
  const wipe = document.querySelector(".wipe");
  const slider = wipe.querySelector("input");
  const place = () => wipe.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", place);
  place();

  const cursors = [...document.querySelectorAll(".cursor")];
  const markers = [...document.querySelectorAll(".marker")];
  const follow = (frame) => {
    for (const cursor of cursors) {
      const x = Math.max(+cursor.dataset.left, +cursor.dataset.x0 + frame * +cursor.dataset.step);
      cursor.setAttribute("transform", `translate(${x})`);
    }
    const pose = Math.round(frame / Math.max(1, recapture.frames - 1) * (recapture.poses - 1));
    for (const marker of markers) marker.setAttribute("points", recapture.marker[marker.dataset.view][pose]);
  };

  // Without a playable video the still pictures underneath stay, and the divider works on them.
  const [source, result] = wipe.querySelectorAll("video");
  const controls = document.querySelector(".controls");
  if (!source) return;
  const giveUp = () => { source.remove(); result.remove(); controls.hidden = true; };
  source.addEventListener("error", giveUp);
  result.addEventListener("error", giveUp);
  controls.hidden = false;

  const button = controls.querySelector("button");
  const seek = controls.querySelector("input");
  const output = controls.querySelector("output");
  const last = recapture.shown - 1;
  let playing = false, aligned = 0;
  const frameAt = (time) => Math.min(last, Math.floor(time * recapture.rate + 1e-3));
  const middle = (frame) => (frame + 0.5) / recapture.rate;
  const show = (frame) => {
    seek.value = frame;
    output.textContent = `frame ${frame} of 0\u2013${recapture.frames - 1}`;
    follow(frame);
  };
  const go = (frame) => {
    source.currentTime = result.currentTime = middle(frame);
    show(frame);
  };
  const tick = (now) => {
    if (!playing) return;
    if (result.ended || result.currentTime >= result.duration) {
      source.currentTime = result.currentTime = 0;
      source.play();
      result.play();
    } else if (now - aligned > 500 && Math.abs(source.currentTime - result.currentTime) > 0.5 / recapture.rate) {
      source.currentTime = result.currentTime;
      aligned = now;
    }
    show(frameAt(result.currentTime));
    requestAnimationFrame(tick);
  };
  const setPlaying = (on) => {
    playing = on;
    button.textContent = on ? "Pause" : "Play";
    if (on) {
      Promise.all([source.play(), result.play()]).then(() => requestAnimationFrame(tick), () => setPlaying(false));
    } else {
      source.pause();
      result.pause();
    }
  };
  button.addEventListener("click", () => setPlaying(!playing));
  seek.addEventListener("input", () => { setPlaying(false); go(+seek.value); });
  slider.addEventListener("keydown", (event) => {
    if (event.key === " ") { event.preventDefault(); setPlaying(!playing); }
  });
  show(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) setPlaying(true);
})();
