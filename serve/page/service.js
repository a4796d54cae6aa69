// The service's verbs, as the page needs them. Errors are sentences: whatever is thrown has one as its message.

import { DataUtils } from "./vendor/three.module.min.js";

const PART_BYTES = 8 << 20;
const PARTS_LOST = 5; // in a row, before an upload is given up

export class Service {
  constructor(key) {
    this.key = key;
  }

  async send(method, path, { json, body, headers = {}, signal } = {}) {
    let answer;
    try {
      answer = await fetch(path, {
        method,
        signal,
        headers: { Authorization: `Bearer ${this.key}`, ...(json ? { "Content-Type": "application/json" } : {}), ...headers },
        body: json ? JSON.stringify(json) : body,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The service does not answer. Is it running?");
    }
    if (answer.ok) return answer;
    const refused = await answer.json().catch(() => null);
    const error = new Error(sentence(refused?.error?.message ?? `The service answered ${answer.status}`));
    throw Object.assign(error, { status: answer.status, code: refused?.error?.code, param: refused?.error?.param });
  }

  async json(method, path, options) {
    return (await this.send(method, path, options)).json();
  }

  // For what waits for a clip's depth: the service ends a request that takes too long, and is nearer at the next one.
  async patiently(path, json, signal, tries = 20) {
    for (;;) {
      try {
        return await this.json("POST", path, { json, signal });
      } catch (error) {
        if (error.code !== "busy" || --tries <= 0) throw error;
      }
    }
  }

  // A frame with its depth: `depths` in median depths of the clip, row by row, and `pixels`, RGBA.
  async scene(json, signal) {
    const scene = await this.patiently("/v1/scenes", json, signal);
    const halves = new DataView(bytes(scene.depth).buffer);
    const depths = Float32Array.from({ length: halves.byteLength / 2 }, (_, i) => DataUtils.fromHalfFloat(halves.getUint16(2 * i, true)));
    const picture = await createImageBitmap(new Blob([bytes(scene.webp)], { type: "image/webp" }));
    const canvas = new OffscreenCanvas(scene.width, scene.height).getContext("2d");
    canvas.drawImage(picture, 0, 0);
    const pixels = canvas.getImageData(0, 0, scene.width, scene.height).data;
    return { ...scene, depths, pixels };
  }

  async upload(file, onPart) {
    if (!crypto.subtle) throw new Error("This page needs https, or to be opened at 127.0.0.1, to check what it sends.");
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
    const sha256 = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    let upload = await this.json("POST", "/v1/uploads", {
      json: { bytes: file.size, sha256, filename: file.name.slice(-255) },
      headers: { "Idempotency-Key": `clip-${sha256}` },
    });
    for (let lost = 0; upload.status === "pending"; ) {
      const body = file.slice(upload.offset, upload.offset + PART_BYTES);
      const headers = { "Upload-Offset": String(upload.offset) };
      try {
        upload = await this.json("PATCH", `/v1/uploads/${upload.id}`, { body, headers });
        lost = 0;
      } catch (error) {
        // A part that was lost, or that another window sends as well: the service knows where the upload stands.
        if ((hopeless(error) && error.status !== 409) || ++lost > PARTS_LOST) throw error;
        await pause(1000 * lost);
        upload = await this.json("GET", `/v1/uploads/${upload.id}`).catch(() => upload);
      }
      onPart(upload.offset / upload.bytes);
    }
    if (upload.status === "failed") throw new Error(sentence(upload.error.message));
    return upload;
  }

  // EventSource cannot send a key, so the stream is read by hand; a broken one is taken up behind what was seen. Ends with
  // the render, or throws what trying again cannot help: the key is no longer valid, the render not there, `signal` aborted.
  async follow(id, onRender, signal) {
    let last = 0;
    for (;;) {
      try {
        const headers = last ? { "Last-Event-ID": String(last) } : {};
        const answer = await this.send("GET", `/v1/renders/${id}/events`, { headers, signal });
        const lines = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        let waiting = "";
        for (;;) {
          const { value, done } = await lines.read();
          if (done) break;
          const events = (waiting + value).split("\n\n");
          waiting = events.pop();
          for (const event of events) {
            const data = event.split("\n").find((line) => line.startsWith("data: "));
            if (!data) continue;
            const render = JSON.parse(data.slice(6));
            last = render.revision;
            onRender(render);
            if (ended(render)) return;
          }
        }
      } catch (error) {
        if (hopeless(error)) throw error;
      }
      await pause(1000);
    }
  }

  async file(id, variant) {
    return (await this.send("GET", `/v1/renders/${id}/content?variant=${variant}`)).blob();
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

/** Whether the same request will fail again: it was aborted or refused, not lost on its way or sent too early. */
export const hopeless = (error) =>
  error.name === "AbortError" || (error.status >= 400 && error.status < 500 && ![408, 429].includes(error.status));

export const ended = (render) => !["queued", "in_progress"].includes(render.status);

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
