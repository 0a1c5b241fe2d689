/* Reading aloud: one sentence at a time -> record -> the server's check -> keep, play, again or skip -> the next one.
 *
 * The server has the recordings and the page has the own sentences that wait, in this tab: one can leave and come back.
 */

import { EnrollProblem, ask, askJson, personPath } from "./enroll_client.js";
import { Player, Recorder } from "./enroll_take.js";
import { MicrophoneProblem } from "./microphone.js";

const SILENCE_DBFS = -60; // the meter's left end
const OWN_KEY = "whisperfold-own-sentences:";

const by = (id) => document.getElementById(id);

export class ReadStep {
  /** @param handlers {onLearn, onLeave, onNotice} */
  constructor(handlers) {
    this.handlers = handlers;
    this.recorder = new Recorder((dbfs) => showLevel(dbfs));
    this.player = new Player();
    this.on("record", () => (this.phase === "recording" ? this.recorder.stop() : this.record()));
    this.on("redo", () => this.record());
    this.on("keep", () => this.keep());
    this.on("play", () => this.play(() => this.take.arrayBuffer()));
    this.on("skip", () => this.skip());
    this.on("add-own", () => this.addOwn());
    this.on("learn", () => handlers.onLearn());
    this.on("leave", () => handlers.onLeave());
  }

  on(id, act) {
    by(id).addEventListener("click", () => this.tried(act));
  }

  /** Do something; what goes wrong is told. */
  async tried(act) {
    this.handlers.onNotice("");
    try {
      await act();
    } catch (error) {
      if (!(error instanceof EnrollProblem || error instanceof MicrophoneProblem)) throw error;
      this.enter(!this.take ? "ready" : this.phase === "good" ? "good" : "bad"); // what was read is still there
      this.handlers.onNotice(error.message);
    }
  }

  /** Begin, or go on, with a person.
   *
   * @param person what GET /v1/enroll/NAME said.
   * @param plan what GET /v1/enroll said: prompts, needed, max_s.
   * @param language of the sentences.
   */
  open(person, plan, language) {
    this.plan = plan;
    this.name = person.name;
    this.language = language;
    this.skipped = new Set();
    this.own = JSON.parse(sessionStorage.getItem(OWN_KEY + person.name) ?? "[]");
    this.show(person.recordings);
    this.next();
  }

  /** The recordings as the server has them. */
  show(recordings) {
    this.recordings = recordings;
    const { needed } = this.plan;
    const seconds = recordings.reduce((sum, { duration_s }) => sum + duration_s, 0);
    this.isEnough = recordings.length >= needed.recordings && seconds >= needed.seconds;
    by("enough").textContent =
      `${recordings.length} recording${recordings.length === 1 ? "" : "s"}, ${Math.round(seconds)} s. ` +
      (this.isEnough ? "That is enough; more is better." : `At least ${needed.recordings} and ${needed.seconds} s are needed.`);
    by("kept-summary").textContent = `Kept recordings (${recordings.length})`;
    by("kept").replaceChildren(...recordings.map((recording) => this.keptItem(recording)));
  }

  keptItem(recording) {
    const item = document.createElement("li");
    const text = document.createElement("span");
    text.textContent = recording.text;
    text.className = "grow";
    const address = personPath(this.name, `/recordings/${recording.file}`);
    const play = button("Play", `Play: ${recording.text}`, () =>
      this.tried(() => this.play(async () => (await ask("GET", address)).arrayBuffer())),
    );
    const remove = button("Delete", `Delete: ${recording.text}`, () =>
      this.tried(async () => {
        this.show((await askJson("DELETE", address)).recordings);
        by("kept-summary").focus();
        if (this.phase === "done" || this.phase === "ready") this.next();
        else this.enter(this.phase);
      }),
    );
    item.append(text, play, remove);
    return item;
  }

  get sentences() {
    return [...new Set([...this.own, ...this.plan.prompts])];
  }

  /** The first sentence that is neither kept nor skipped. */
  next() {
    const { sentences } = this;
    const kept = new Set(this.recordings.map(({ text }) => text));
    this.sentence = sentences.find((text) => !kept.has(text) && !this.skipped.has(text));
    const n_read = sentences.filter((text) => kept.has(text)).length;
    const number = this.sentence ? sentences.indexOf(this.sentence) + 1 : sentences.length;
    by("read-count").textContent = `${number} of ${sentences.length}`;
    by("read-progress").max = sentences.length || 1;
    by("read-progress").value = n_read;
    this.take = null;
    this.enter(this.sentence ? "ready" : "done");
  }

  enter(phase) {
    this.phase = phase;
    const isBusy = phase === "opening" || phase === "checking";
    const isGood = phase === "good";
    by("sentence").textContent = this.sentence ?? "Every sentence is read. Learn now, or add sentences of your own.";
    by("record").hidden = isGood || phase === "done";
    by("record").textContent = phase === "recording" ? "Stop" : phase === "bad" ? "Record again" : "Record";
    by("record").classList.toggle("is-on", phase === "recording");
    by("record").disabled = isBusy;
    by("keep").hidden = by("redo").hidden = !isGood;
    by("play").hidden = !(isGood || phase === "bad");
    by("skip").hidden = phase === "done";
    by("skip").disabled = by("leave").disabled = isBusy || phase === "recording";
    by("learn").disabled = by("leave").disabled || !this.isEnough;
    this.say(
      {
        ready: "Press Record, then read the sentence aloud.",
        opening: "Opening the microphone.",
        recording: "Recording: read now. It stops when you pause.",
        checking: "Listening to it.",
        done: "",
      }[phase],
    );
  }

  say(text) {
    if (text !== undefined) by("read-status").textContent = text;
  }

  async record() {
    this.player.stop();
    this.take = null;
    this.enter("opening");
    await this.recorder.start(this.plan.max_s);
    this.enter("recording");
    by("record").focus();
    const take = await this.recorder.finished;
    if (!take) {
      this.enter("ready");
      throw new MicrophoneProblem("The microphone was disconnected. Connect it and record again.");
    }
    this.enter("checking");
    this.take = take;
    const check = await this.send(take, "0");
    this.enter(check.problem ? "bad" : "good");
    this.say(check.problem ? `Not usable: ${check.problem}.` : check.warning ? `Usable, but ${check.warning}.` : "Good.");
    by(check.problem ? "record" : "keep").focus();
  }

  async keep() {
    const { problem } = await this.send(this.take, "1");
    if (problem) {
      this.enter("bad");
      this.say(`Not usable: ${problem}.`);
      return;
    }
    this.show((await askJson("GET", personPath(this.name))).recordings);
    this.next();
    by(this.sentence ? "record" : "learn").focus();
  }

  send(take, keep) {
    const form = new FormData();
    for (const [name, value] of Object.entries({ text: this.sentence, language: this.language, keep })) {
      form.append(name, value);
    }
    form.append("file", take, take.name);
    return askJson("POST", personPath(this.name, "/recordings"), form);
  }

  async play(bytes) {
    await this.player.play(await bytes());
  }

  skip() {
    this.player.stop();
    this.skipped.add(this.sentence);
    this.next();
    by(this.sentence ? "record" : "learn").focus();
  }

  /** Own sentences come first. */
  addOwn() {
    const lines = by("own").value.split("\n").map((line) => line.trim().replace(/\s+/g, " "));
    this.own = [...new Set([...lines.filter(Boolean), ...this.own])];
    sessionStorage.setItem(OWN_KEY + this.name, JSON.stringify(this.own));
    by("own").value = "";
    if (this.phase !== "recording" && this.phase !== "checking") this.next();
    by("record").focus();
  }
}

/** A quiet button. */
export function button(label, name, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet";
  made.textContent = label;
  made.setAttribute("aria-label", name);
  made.addEventListener("click", act);
  return made;
}

function showLevel(dbfs) {
  const shown = Math.round(Math.max(SILENCE_DBFS, Math.min(0, dbfs)));
  const words = dbfs < -50 ? "quiet" : dbfs > -3 ? "too loud" : "good";
  const meter = by("read-level");
  meter.style.setProperty("--level", 1 - shown / SILENCE_DBFS);
  meter.setAttribute("aria-valuenow", shown);
  meter.setAttribute("aria-valuetext", `${shown} decibel, ${words}`);
  meter.dataset.words = words;
}
