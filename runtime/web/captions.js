/* Caption events -> what is on the page, and the cues that can be downloaded.
 *
 * Committed text is added, never rewritten: each addition is a node of its own, so that a screen reader speaks only
 * what is new. Tentative text is marked by slant and underline, and hidden from screen readers until it is committed.
 */

import { shortClock } from "./subtitles.js";

const NEAR_END_PX = 48;

export class Captions {
  /**
   * @param list the element that scrolls; the captions go into its ol.
   * @param toLatest button that is shown while the person reads further up.
   * @param onChange called when captions came or went.
   */
  constructor(list, toLatest, onChange) {
    this.list = list;
    this.toLatest = toLatest;
    this.onChange = onChange;
    this.offset_s = 0; // where the current recording starts in the whole transcript
    this.utterances = new Map();
    this.isFollowing = true;
    list.addEventListener("scroll", () => this.follow(this.isAtEnd()));
    toLatest.addEventListener("click", () => this.scrollToEnd());
    new ResizeObserver(() => this.isFollowing && this.scrollToEnd()).observe(list);
  }

  get isEmpty() {
    return this.utterances.size === 0;
  }

  /** What was committed so far, one cue per utterance. */
  get cues() {
    const spoken = [...this.utterances.values()].filter((utterance) => utterance.committed);
    return spoken.map(({ start_s, end_s, committed }) => ({ start_s, end_s, text: committed }));
  }

  /** Begin a recording: its times are counted from here on. */
  beginAt(offset_s) {
    this.offset_s = offset_s;
    this.recording = (this.recording ?? 0) + 1;
  }

  apply(event) {
    const key = `${this.recording}:${event.utterance}`;
    const known = this.utterances.get(key);
    if (event.type === "start" || !(event.committed || event.tentative || known)) {
      this.dropUnspoken(key);
      return;
    }
    if (event.committed) this.replaceInterrupted(event);
    const utterance = known ?? this.add(key);
    utterance.start_s = event.start_s + this.offset_s;
    utterance.end_s = event.end_s + this.offset_s;
    utterance.time.textContent = shortClock(utterance.start_s);
    this.commit(utterance, event.committed.trim());
    utterance.tentative.textContent = event.tentative.trim();
    utterance.isFinal = event.type === "final";
    utterance.item.toggleAttribute("data-open", !utterance.isFinal);
    if (utterance.isFinal && !utterance.committed) this.remove(key);
    if (this.isFollowing) this.scrollToEnd();
    this.onChange();
  }

  /** The connection broke: tentative text goes, committed text stays until the same audio is recognised again. */
  interrupt() {
    this.dropUnspoken(null);
    for (const utterance of this.utterances.values()) {
      if (utterance.isFinal) continue;
      utterance.tentative.textContent = "";
      utterance.item.removeAttribute("data-open");
      utterance.isFinal = true;
      utterance.isInterrupted = true;
    }
    this.onChange();
  }

  clear() {
    for (const key of [...this.utterances.keys()]) this.remove(key);
    this.follow(true);
    this.onChange();
  }

  add(key) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    const text = document.createElement("p");
    const committed = element("span", "committed");
    const tentative = element("span", "tentative");
    time.setAttribute("aria-hidden", "true");
    tentative.setAttribute("aria-hidden", "true");
    text.append(committed, " ", tentative);
    item.append(time, text);
    this.list.querySelector("ol").append(item);
    const utterance = { item, time, tentative, committedSpan: committed, committed: "", isFinal: false };
    this.utterances.set(key, utterance);
    return utterance;
  }

  /** Add what is new; a final text may differ in its spaces, and only then is it set as a whole. */
  commit(utterance, committed) {
    if (committed === utterance.committed) return;
    if (committed.startsWith(utterance.committed)) {
      const addition = element("span");
      addition.textContent = committed.slice(utterance.committed.length);
      utterance.committedSpan.append(addition);
    } else {
      utterance.committedSpan.textContent = committed;
    }
    utterance.committed = committed;
  }

  /** An utterance that a broken connection cut short has been heard again: the new text stands for it. */
  replaceInterrupted(event) {
    for (const [key, utterance] of this.utterances) {
      if (!utterance.isInterrupted) continue;
      const isSameAudio = event.start_s + this.offset_s < utterance.end_s;
      if (isSameAudio) this.remove(key);
      else utterance.isInterrupted = false;
    }
  }

  /** Noise that was taken for speech has no final: its tentative text goes with the next utterance. */
  dropUnspoken(exceptKey) {
    for (const [key, utterance] of this.utterances) {
      if (key !== exceptKey && !utterance.committed) this.remove(key);
    }
    this.onChange();
  }

  remove(key) {
    this.utterances.get(key).item.remove();
    this.utterances.delete(key);
  }

  isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.list;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  follow(isFollowing) {
    this.isFollowing = isFollowing;
    this.toLatest.hidden = isFollowing;
  }

  scrollToEnd() {
    this.list.scrollTop = this.list.scrollHeight;
    this.follow(true);
  }
}

function element(name, className = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  return made;
}
