/* Learning and its result: progress while the device adapts; then what has changed, and whether it is used. */

import { authorization, pageUrl } from "./connection.js";
import { ask, askJson, followAdaptation, personPath } from "./enroll_client.js";

const STAGES = {
  "checking recordings": "Checking the recordings",
  adapting: "Learning",
  testing: "Testing on your sentences",
  "other speakers": "Testing on other speakers",
};

const by = (id) => document.getElementById(id);

export class LearnStep {
  /** @param handlers {onEnd(state), tried(act)} */
  constructor(handlers) {
    this.handlers = handlers;
    by("learn-cancel").addEventListener("click", () =>
      handlers.tried(() => ask("DELETE", personPath(this.name, "/adapt"))),
    );
  }

  /** Begin, or go on where the last one stopped. */
  async start(name, language) {
    await ask("POST", personPath(name, `/adapt?language=${encodeURIComponent(language)}`));
    await this.watch(name);
  }

  /** Show the one that runs, until it has ended. */
  async watch(name) {
    this.name = name;
    this.stage = "";
    by("learn-title").textContent = `Learning ${name}\u2019s voice`;
    this.show({ state: "running", progress: null });
    let last = null;
    await followAdaptation(name, (state) => this.show((last = state)));
    this.handlers.onEnd(last);
  }

  show({ state, progress }) {
    by("learn-cancel").disabled = state !== "running";
    const bar = by("learn-progress");
    if (!progress) {
      bar.removeAttribute("value"); // it has not said yet
      by("learn-stage").textContent = "Starting";
      by("learn-left").textContent = by("learn-loss").textContent = "\u2013";
      return;
    }
    bar.value = progress.share;
    const stage = STAGES[progress.stage] ?? progress.stage;
    by("learn-stage").textContent = `${stage}, ${Math.floor(progress.share * 100)} %`;
    if (progress.remaining_s !== null) by("learn-left").textContent = timeLeft(progress.remaining_s);
    if (progress.loss !== null) by("learn-loss").textContent = progress.loss.toFixed(2);
    if (stage !== this.stage) by("learn-status").textContent = stage; // said aloud once per stage
    this.stage = stage;
  }
}

export class ResultStep {
  /** @param handlers {onMore, onDone, tried(act)} */
  constructor(handlers) {
    by("result-switch").addEventListener("click", () => handlers.tried(() => this.switch()));
    by("result-report").addEventListener("click", () => handlers.tried(() => this.openReport()));
    by("result-more").addEventListener("click", () => handlers.onMore(this.name));
    by("result-done").addEventListener("click", () => handlers.onDone());
  }

  /** @param person what GET /v1/enroll/NAME said. */
  async show({ name, result }) {
    this.name = name;
    by("result-title").textContent = result.promoted
      ? `${name} is understood better now`
      : "Not taken: the device stays as it was";
    by("result-reason").textContent = `${result.reason[0].toUpperCase()}${result.reason.slice(1)}.`;
    by("result-rates").replaceChildren(rates(name, result.owner), rates("Other speakers", result.canary));
    this.showUse(await askJson("GET", "v1/profiles"));
  }

  showUse({ active, profiles }) {
    this.isUsed = active === this.name;
    by("result-use").textContent = this.isUsed ? `Captions use ${this.name}\u2019s voice.` : "Captions do not use it.";
    by("result-switch").textContent = this.isUsed ? "Go back to the bundle as it is" : "Use it now";
    by("result-switch").hidden = !profiles.some(({ name }) => name === this.name);
  }

  async switch() {
    this.showUse(await askJson("POST", "v1/profiles/active", { name: this.isUsed ? null : this.name }));
  }

  /** A link cannot carry the token: then the page is saved as a file. */
  async openReport() {
    const path = personPath(this.name, "/report");
    const link = document.createElement("a");
    link.rel = "noopener";
    link.target = "_blank";
    link.href = pageUrl(path).href;
    if (authorization().Authorization) {
      link.href = URL.createObjectURL(await (await ask("GET", path)).blob());
      link.download = `${this.name}-report.html`;
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    }
    link.click();
  }
}

function rates(speaker, { before, after }) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = speaker;
  row.append(head);
  for (const rate of [before, after]) row.insertCell().textContent = rate.toFixed(1);
  return row;
}

/** Seconds as a person says them. */
function timeLeft(seconds) {
  return seconds < 90 ? `about ${Math.max(5, Math.round(seconds / 5) * 5)} s` : `about ${Math.round(seconds / 60)} min`;
}
