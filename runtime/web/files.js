/* The Files view: recordings dropped or chosen wait in line, go up one by one, and keep their text and downloads. */

import { addDownloads } from "./subtitles.js";
import { Cancelled, Upload, UploadProblem } from "./upload.js";

const by = (id) => document.getElementById(id);

export class FilesView {
  constructor() {
    this.waiting = [];
    this.isRunning = false;
    by("picker").addEventListener("change", () => {
      this.add(by("picker").files);
      by("picker").value = ""; // the same file may be chosen again
    });
    this.takeDrops(by("view-files"));
  }

  /** Recordings may be dropped anywhere on the view; the page never opens them itself. */
  takeDrops(view) {
    let depth = 0; // dragenter and dragleave come for every child
    const mark = (change) => by("drop").classList.toggle("is-over", (depth = Math.max(0, depth + change)) > 0);
    view.addEventListener("dragenter", () => mark(1));
    view.addEventListener("dragleave", () => mark(-1));
    window.addEventListener("dragover", (event) => event.preventDefault());
    window.addEventListener("drop", (event) => {
      event.preventDefault();
      mark(-depth);
      if (!view.hidden) this.add(event.dataTransfer.files);
    });
  }

  add(files) {
    for (const file of files) this.waiting.push(new Job(file, () => this.retry(file)));
    this.work();
  }

  retry(file) {
    this.add([file]);
  }

  /** One at a time: the device recognises them one after the other anyway. */
  async work() {
    if (this.isRunning) return;
    this.isRunning = true;
    for (let job = this.waiting.shift(); job; job = this.waiting.shift()) await job.run();
    this.isRunning = false;
  }
}

class Job {
  constructor(file, onRetry) {
    this.file = file;
    this.onRetry = onRetry;
    this.upload = new Upload(file, {
      onSent: (fraction) => this.showSent(fraction),
      onText: (text) => this.showText(text),
      onWait: (seconds) => this.show("waiting", `The server is busy. Trying again in ${seconds} s.`),
    });
    this.element = by("job-template").content.cloneNode(true).firstElementChild;
    this.part("name").textContent = file.name;
    this.part("size").textContent = readableSize(file.size);
    this.part("text").setAttribute("aria-label", `Transcript of ${file.name}`);
    this.progress = this.element.querySelector("progress");
    this.progress.setAttribute("aria-label", `Progress of ${file.name}`);
    this.downloads = this.element.querySelector(".downloads");
    this.downloads.setAttribute("aria-label", `Download transcript of ${file.name}`);
    this.part("action").addEventListener("click", () => this.act());
    this.show("waiting", "Waiting");
    by("jobs").prepend(this.element);
  }

  part(name) {
    return this.element.querySelector(`.job-${name}`);
  }

  async run() {
    if (this.state !== "waiting") return;
    this.show("running", "Reading");
    try {
      this.finish(await this.upload.run());
    } catch (error) {
      if (error instanceof Cancelled) this.show("failed", "Cancelled");
      else if (error instanceof UploadProblem) this.show("failed", error.message);
      else throw error;
    }
  }

  act() {
    if (this.state === "waiting" || this.state === "running") {
      this.upload.cancel();
      this.show("failed", "Cancelled");
      return;
    }
    this.element.remove();
    if (this.state === "failed") this.onRetry();
    (by("jobs").querySelector("button") ?? by("picker")).focus();
  }

  show(state, text) {
    this.state = state;
    this.element.dataset.state = state;
    this.part("state").textContent = text;
    this.progress.hidden = state === "done" || state === "failed";
    const action = { waiting: "Cancel", running: "Cancel", failed: "Try again", done: "Remove" }[state];
    this.part("action").textContent = action;
    this.part("action").setAttribute("aria-label", `${action}: ${this.file.name}`);
    if (state === "done" || state === "failed") by("files-status").textContent = `${this.file.name}: ${text}`;
  }

  showSent(fraction) {
    if (fraction < 1) {
      this.progress.value = fraction;
      this.show("running", `Uploading, ${Math.floor(fraction * 100)} %`);
    } else {
      this.progress.removeAttribute("value"); // how long recognition takes is not known
      this.show("running", "Transcribing");
    }
  }

  showText(text) {
    this.part("text").hidden = false;
    this.part("text").textContent = text.trim();
  }

  finish({ text, cues }) {
    this.showText(text || "No speech was found in this recording.");
    this.show("done", text ? "Done" : "No speech found");
    if (!text) return;
    const stem = this.file.name.replace(/\.[^.]+$/, "");
    addDownloads(this.downloads, `transcript of ${this.file.name}`, () => stem, () => cues);
    this.downloads.hidden = false;
  }
}

function readableSize(size_bytes) {
  const megabytes = size_bytes / 1e6;
  return megabytes < 0.1 ? `${Math.max(1, Math.round(size_bytes / 1e3))} kB` : `${megabytes.toFixed(1)} MB`;
}
