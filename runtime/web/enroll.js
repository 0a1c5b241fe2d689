/* The voice view: who -> reading aloud -> learning -> result, one panel at a time.
 *
 *     enroll_people.js  names    enroll_record.js  sentences    enroll_learn.js  progress, result
 *     enroll_take.js    microphone, playback                    enroll_client.js requests
 */

import { EnrollProblem, askJson, personPath } from "./enroll_client.js";
import { LearnStep, ResultStep } from "./enroll_learn.js";
import { People } from "./enroll_people.js";
import { ReadStep } from "./enroll_record.js";

const PANELS = { start: "people-title", read: "read-count", learn: "learn-title", result: "result-title" };
const CANCELLED = "Stopped. What was learned so far is kept: \u201cLearn my voice\u201d goes on from there.";

const by = (id) => document.getElementById(id);

export class VoiceView {
  constructor() {
    const tried = (act) => this.tried(act);
    this.people = new People({ tried, onOpen: (name) => this.open(name), onChange: () => this.showPeople() });
    this.read = new ReadStep({
      onLearn: () => tried(() => this.learn()),
      onLeave: () => tried(() => this.start()),
      onNotice: (text) => this.notice(text),
    });
    this.learning = new LearnStep({ tried, onEnd: (state) => tried(() => this.ended(state)) });
    this.result = new ResultStep({
      tried,
      onMore: (name) => tried(() => this.open(name)),
      onDone: () => tried(() => this.start()),
    });
    by("voice-form").addEventListener("submit", (event) => {
      event.preventDefault();
      tried(() => this.open(by("voice-name").value));
    });
    by("voice-language").addEventListener("change", () => tried(() => this.showPeople()));
    window.addEventListener("hashchange", () => this.shown());
    this.shown();
  }

  /** The lists are asked for when somebody looks at them. */
  shown() {
    if (location.hash === "#voice" && !by("voice-start").hidden) this.tried(() => this.showPeople());
  }

  /** Do something; what goes wrong is told. */
  async tried(act) {
    this.notice("");
    try {
      await act();
    } catch (error) {
      if (!(error instanceof EnrollProblem)) throw error;
      this.notice(error.message);
    }
  }

  notice(text) {
    by("voice-notice").textContent = text;
    by("voice-notice").hidden = !text;
  }

  /** Show one panel; the focus goes to its title, so that it is read. */
  show(panel) {
    for (const name of Object.keys(PANELS)) by(`voice-${name}`).hidden = name !== panel;
    by(PANELS[panel]).focus();
  }

  async start() {
    await this.showPeople();
    this.show("start");
    by("voice-name").focus();
  }

  async showPeople() {
    await this.plan();
    this.people.show(this.planned.people, await askJson("GET", "v1/profiles"));
  }

  /** What to read, in the language that is chosen. */
  async plan() {
    const chosen = by("voice-language");
    this.planned = await askJson("GET", `v1/enroll?language=${chosen.value}`);
    const { language, languages } = this.planned;
    by("voice-language-choice").hidden = languages.length < 2;
    if (!chosen.options.length) chosen.replaceChildren(...languages.map((code) => new Option(code, code)));
    chosen.value = language;
  }

  /** A person: to the panel where things stand. */
  async open(name) {
    const person = await askJson("GET", personPath(name));
    await this.plan();
    this.name = person.name;
    if (person.adaptation.state === "running") {
      this.show("learn");
      try {
        await this.learning.watch(name);
      } catch (error) {
        this.show("start");
        throw error;
      }
      return;
    }
    this.read.open(person, this.planned, this.planned.language);
    this.show("read");
    if (person.adaptation.can_resume) this.notice(CANCELLED);
  }

  async learn() {
    this.show("learn");
    try {
      await this.learning.start(this.name, this.planned.language);
    } catch (error) {
      this.show("read");
      throw error;
    }
  }

  /** An adaptation has ended. */
  async ended({ state, message }) {
    const person = await askJson("GET", personPath(this.name));
    if (state === "done" && person.result) {
      await this.result.show(person);
      this.show("result");
      return;
    }
    this.read.open(person, this.planned, this.planned.language);
    this.show("read");
    this.notice(state === "cancelled" ? CANCELLED : message);
  }
}
