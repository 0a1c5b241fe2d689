/* Requests of the wizard: JSON there and back with the token, one line when something is wrong, and followed events. */

import { NEED_TOKEN, askForToken, authorization, pageUrl } from "./connection.js";

const RETRY_MS = 2000;

/** A request that was refused or not answered; the message says why. */
export class EnrollProblem extends Error {
  /** @param status of the server's answer; 0 is none. */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  /** Whether the same request may succeed a moment later. */
  get isPassing() {
    return this.status === 0 || this.status >= 500;
  }
}

/** Ask the server; a missing token is asked for. Resolves to the response, whose status is good. */
export async function ask(method, path, body) {
  for (;;) {
    const isForm = body === undefined || body instanceof FormData;
    let answer;
    try {
      answer = await fetch(pageUrl(path), {
        method,
        headers: { ...authorization(), ...(isForm ? {} : { "Content-Type": "application/json" }) },
        body: isForm ? body : JSON.stringify(body),
        cache: "no-store",
      });
    } catch {
      throw new EnrollProblem("The server does not answer. Is it running?");
    }
    if (answer.ok) return answer;
    if (NEED_TOKEN.includes(answer.status) && (await askForToken())) continue;
    const said = await answer.json().catch(() => null);
    throw new EnrollProblem(said?.error?.message ?? `The server answered with status ${answer.status}.`, answer.status);
  }
}

export async function askJson(method, path, body) {
  return (await ask(method, path, body)).json();
}

/** Address of a person's things. */
export function personPath(name, rest = "") {
  return `v1/enroll/${encodeURIComponent(name)}${rest}`;
}

/** Call onState with each state of an adaptation, until it has ended; a lost connection is made again.
 *
 * A server that refuses has its reason, for example a token that nobody gives: that is thrown.
 */
export async function followAdaptation(name, onState) {
  for (;;) {
    try {
      const answer = await ask("GET", personPath(name, "/adapt/events"));
      const last = await readEvents(answer.body, onState);
      if (last && last.state !== "running") return;
    } catch (error) {
      if (error instanceof EnrollProblem && !error.isPassing) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** The last of a stream of server-sent events; all go to onState. */
async function readEvents(body, onState) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let last = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return last;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      last = JSON.parse(event.slice(event.indexOf("data:") + 5));
      onState(last);
    }
  }
}
