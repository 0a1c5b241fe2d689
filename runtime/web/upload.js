/* One recording -> POST /v1/audio/transcriptions -> its text as it is recognised, then its segments with times.
 *
 * XMLHttpRequest, because it alone tells how much of an upload has gone; the answer is server-sent events, read as
 * they come.
 */

import { NEED_TOKEN, askForToken, authorization, pageUrl } from "./connection.js";
import { readable } from "./decode.js";

const BUSY_WAIT_S = 5; // when the server says 503 without Retry-After
const PROBLEMS = {
  413: "The recording is larger than this server accepts.",
  415: "This is not a sound file that the server can read.",
  0: "The server does not answer. Is it running?",
};

/** The recording was not transcribed; the message says why. */
export class UploadProblem extends Error {}

/** The person cancelled. */
export class Cancelled extends Error {}

export class Upload {
  /** @param handlers {onSent(fraction), onText(text), onWait(seconds)} */
  constructor(file, handlers) {
    this.file = file;
    this.handlers = handlers;
    this.isCancelled = false;
  }

  /** Transcribe; a busy server is asked again, a missing token is asked for.
   *
   * @returns {text, cues: [{start_s, end_s, text}]}
   */
  async run() {
    this.sent = await readable(this.file);
    for (;;) {
      const request = await this.post();
      if (request.status === 200) return this.result(request);
      if (NEED_TOKEN.includes(request.status) && (await askForToken())) continue;
      if (request.status !== 503) throw new UploadProblem(problem(request));
      await this.pause(Number(request.getResponseHeader("Retry-After")) || BUSY_WAIT_S);
    }
  }

  cancel() {
    this.isCancelled = true;
    this.request?.abort();
    this.wake?.();
  }

  async post() {
    const fields = { model: await modelName(), response_format: "verbose_json", stream: "true" };
    if (this.isCancelled) throw new Cancelled();
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("file", this.sent, this.sent.name);
    const request = new XMLHttpRequest();
    this.request = request;
    this.events = new EventReader();
    this.text = "";
    this.cues = [];
    request.open("POST", pageUrl("v1/audio/transcriptions"));
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => this.handlers.onSent(loaded / total);
    request.onprogress = () => request.status === 200 && this.read(request.responseText);
    return new Promise((resolve, reject) => {
      request.onload = () => resolve(request);
      request.onerror = () => reject(new UploadProblem(PROBLEMS[0]));
      request.onabort = () => reject(new Cancelled());
      request.send(form);
    });
  }

  read(body) {
    for (const event of this.events.read(body)) {
      if (event.type === "transcript.text.delta") {
        this.text += event.delta;
        this.handlers.onText(this.text);
      } else if (event.type === "transcript.text.segment") {
        this.cues.push(toCue(event));
      } else if (event.type === "transcript.text.done") {
        this.done = event;
      } else if (event.type === "error" || event.error) {
        this.failure = event.error?.message ?? event.message ?? "The server gave up.";
      }
    }
  }

  result({ responseText }) {
    this.read(responseText);
    if (this.failure) throw new UploadProblem(this.failure);
    if (!this.done) throw new UploadProblem("The answer broke off. Was the server stopped?");
    const cues = this.cues.length ? this.cues : (this.done.segments ?? []).map(toCue);
    return { text: this.done.text.trim(), cues };
  }

  pause(seconds) {
    this.handlers.onWait(seconds);
    return new Promise((resolve) => {
      this.wake = resolve;
      setTimeout(resolve, seconds * 1000);
    });
  }
}

/** Server-sent events out of a text that grows: each call gives what is new and complete. */
class EventReader {
  constructor() {
    this.position = 0;
  }

  *read(body) {
    for (;;) {
      const end = body.indexOf("\n\n", this.position);
      if (end < 0) return;
      const lines = body.slice(this.position, end).split("\n");
      this.position = end + 2;
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      const text = data.join("\n");
      if (text && text !== "[DONE]") yield JSON.parse(text);
    }
  }
}

/** The name of the server's model; any name when it does not tell, and the upload finds out why. */
async function modelName() {
  const answer = await fetch(pageUrl("v1/models"), { headers: authorization() }).catch(() => null);
  return answer?.ok ? (await answer.json()).data[0].id : "whisper-1";
}

function toCue({ start, end, text }) {
  return { start_s: start, end_s: end, text };
}

/** The server's own words about a refused request, or ours. */
function problem({ status, responseText }) {
  try {
    return JSON.parse(responseText).error.message;
  } catch {
    return PROBLEMS[status] ?? `The server answered with status ${status}.`;
  }
}
