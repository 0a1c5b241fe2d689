/* The Live view: start and stop, level, latency, state, downloads. The words themselves are in captions.js. */

import { BrowserSource } from "./browser_source.js";
import { Captions } from "./captions.js";
import { authorization, pageUrl } from "./connection.js";
import { DeviceSource } from "./device_source.js";
import { MicrophoneProblem, listInputs, whyImpossible } from "./microphone.js";
import { addDownloads, shortClock } from "./subtitles.js";

const SILENCE_DBFS = -60; // the meter's left end
const QUIET_DBFS = -50; // below it nobody speaks near the microphone
const MUTED_DBFS = -70; // quieter than any room: the microphone is muted, or the wrong one
const MUTED_AFTER_S = 8;

const by = (id) => document.getElementById(id);

export class LiveView {
  constructor() {
    this.source = null;
    this.phase = "idle"; // idle -> starting -> listening -> stopping -> idle
    this.captions = new Captions(by("captions"), by("to-latest"), () => this.showCaptions());
    addDownloads(by("live-downloads"), "captions", fileStem, () => this.captions.cues);
    by("listen").addEventListener("click", () => (this.source ? this.stop() : this.start()));
    by("clear").addEventListener("click", () => this.clear());
    navigator.mediaDevices?.addEventListener("devicechange", () => this.showInputs());
    document.addEventListener("visibilitychange", () => this.keepAwake());
    setInterval(() => this.showElapsed(), 500);
    this.elapsed_s = 0;
    this.showCaptions();
    this.showInputs();
    this.offerDevice();
  }

  async start() {
    const kind = document.querySelector("input[name=source]:checked").value;
    const source = new (kind === "device" ? DeviceSource : BrowserSource)({
      onEvent: (event) => this.captions.apply(event),
      onBreak: () => this.captions.interrupt(),
      onLevel: (dbfs) => this.showLevel(dbfs),
      onLatency: (latency_s) => (by("latency").textContent = `${Math.max(0, latency_s).toFixed(1)} s`),
      onState: (state, text) => this.showConnection(state, text),
      onLost: () => this.stop("The microphone was disconnected. Connect it and start again; the text is kept."),
      onNotice: (text) => this.notice(text),
    });
    this.source = source;
    this.loud_ms = performance.now();
    this.notice("");
    this.captions.beginAt(this.elapsed_s);
    this.enter("starting");
    try {
      await source.start(by("input").value);
    } catch (error) {
      this.source = null;
      this.enter("idle");
      if (!(error instanceof MicrophoneProblem)) throw error;
      this.notice(error.message);
      return;
    }
    by("listen").disabled = false;
    this.showInputs();
    this.keepAwake();
  }

  async stop(why = "") {
    if (this.phase === "stopping") return;
    const { source } = this;
    this.enter("stopping");
    this.elapsed_s += source.clock_s;
    const warning = await source.stop();
    this.source = null;
    this.captions.interrupt();
    this.showLevel(-Infinity);
    this.enter("idle");
    this.notice(why || warning);
    this.keepAwake();
  }

  clear() {
    this.captions.clear();
    if (!this.source) this.elapsed_s = 0;
    this.showElapsed();
    by("listen").focus();
  }

  enter(phase) {
    this.phase = phase;
    const isIdle = phase === "idle";
    by("listen").textContent = isIdle ? "Start listening" : phase === "stopping" ? "Finishing" : "Stop";
    by("listen").disabled = phase === "starting" || phase === "stopping";
    by("listen").classList.toggle("is-on", !isIdle);
    by("sources").disabled = by("input").disabled = !isIdle;
    this.showState(...{ idle: ["idle", "Ready"], starting: ["waiting", "Starting"], stopping: ["waiting", "Finishing"] }[
      phase
    ] ?? ["open", "Listening"]);
    if (isIdle) by("latency").textContent = "\u2013";
  }

  /** What the socket is doing; said aloud only when it changes. */
  showConnection(state, text) {
    if (this.phase === "stopping") return;
    if (state === "open") {
      this.enter("listening");
      this.notice("");
    } else if (state === "refused") {
      this.stop(text);
    } else if (state === "waiting") {
      this.showState("waiting", "Reconnecting");
      const isKept = this.source instanceof BrowserSource;
      this.notice(`${text}${isKept ? " Recording goes on; nothing is lost." : ""}`);
    }
  }

  showState(state, text) {
    if (by("state").textContent === text) return;
    by("state").dataset.state = state;
    by("state").textContent = text;
    by("live-status").textContent = text;
  }

  showLevel(dbfs) {
    const shown = Math.round(Math.max(SILENCE_DBFS, Math.min(0, dbfs)));
    const words = dbfs < QUIET_DBFS ? "quiet" : dbfs > -3 ? "too loud" : "good";
    const meter = by("level");
    meter.style.setProperty("--level", 1 - shown / SILENCE_DBFS);
    meter.setAttribute("aria-valuenow", shown);
    meter.setAttribute("aria-valuetext", `${shown} decibel, ${words}`);
    meter.dataset.words = words;
    if (!this.source || dbfs > MUTED_DBFS) {
      if (this.isMutedShown) this.notice("");
      this.loud_ms = performance.now();
    } else if (performance.now() - this.loud_ms > MUTED_AFTER_S * 1000 && by("live-notice").hidden) {
      this.notice("No sound arrives. Is the microphone muted, or is it another one that should be used?");
      this.isMutedShown = true;
    }
  }

  showElapsed() {
    const isRunning = this.source && this.phase !== "stopping";
    by("elapsed").textContent = shortClock(this.elapsed_s + (isRunning ? this.source.clock_s : 0));
  }

  showCaptions() {
    const isEmpty = this.captions?.isEmpty ?? true;
    by("live-empty").hidden = !isEmpty;
    by("captions").hidden = isEmpty;
    for (const button of [by("clear"), ...by("live-downloads").children]) button.disabled = isEmpty;
  }

  notice(text) {
    this.isMutedShown = false;
    by("live-notice").textContent = text;
    by("live-notice").hidden = !text;
  }

  /** The list of inputs, once the browser tells their names and there is a choice. */
  async showInputs() {
    const inputs = await listInputs();
    const chosen = by("input").value;
    const options = inputs.map(({ deviceId, label }) => new Option(label, deviceId, false, deviceId === chosen));
    by("input").replaceChildren(new Option("Default microphone", ""), ...options);
    by("input").value = inputs.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
    by("input-choice").hidden = inputs.length < 2;
  }

  /** The device's microphone is a choice only where the server listens to one. */
  async offerDevice() {
    const health = await fetch(pageUrl("health"), { headers: authorization() }).then(
      (response) => response.json(),
      () => ({}),
    );
    if (!health.microphone) return;
    by("sources").hidden = false;
    if (whyImpossible()) document.querySelector("input[name=source][value=device]").checked = true;
  }

  /** A phone that goes to sleep stops listening. */
  async keepAwake() {
    if (this.source && document.visibilityState === "visible") {
      this.lock ??= await navigator.wakeLock?.request("screen").catch(() => null);
    } else {
      await this.lock?.release();
      this.lock = null;
    }
  }
}

function fileStem() {
  const now = new Date();
  const pad = (number) => String(number).padStart(2, "0");
  const date = `${now.getFullYear()}-${pad(now.getMonth() + 1)}-${pad(now.getDate())}`;
  return `captions-${date}-${pad(now.getHours())}${pad(now.getMinutes())}`;
}
