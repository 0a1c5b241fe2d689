/* Cues -> txt, srt or vtt text, and the buttons that save them.
 *
 * A cue is {start_s, end_s, text}. The same rules as runtime/formats.py, so that a file saved here equals the file that
 * `whisperfold transcribe --format` writes.
 */

export const FORMATS = {
  txt: { label: "txt", mime: "text/plain", write: toText },
  srt: { label: "srt", mime: "application/x-subrip", write: toSubRip },
  vtt: { label: "vtt", mime: "text/vtt", write: toWebVtt },
};

/** Seconds as HH:MM:SS.mmm, rounded to the millisecond. */
export function clock(time_s, decimal = ".") {
  const total_ms = Math.max(0, Math.round(time_s * 1000));
  const pad = (number, width) => String(number).padStart(width, "0");
  const seconds = Math.floor(total_ms / 1000);
  const hms = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return hms.map((part) => pad(part, 2)).join(":") + decimal + pad(total_ms % 1000, 3);
}

/** Seconds as a person reads them: 0:07, 12:30, 1:02:03. */
export function shortClock(time_s) {
  const seconds = Math.max(0, Math.floor(time_s));
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const tail = String(seconds % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

function toText(cues) {
  return cues.map((cue) => cue.text + "\n").join("");
}

function toSubRip(cues) {
  return cues
    .map((cue, index) => `${index + 1}\n${clock(cue.start_s, ",")} --> ${clock(cue.end_s, ",")}\n${cue.text}\n\n`)
    .join("");
}

function toWebVtt(cues) {
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const blocks = cues.map((cue) => `${clock(cue.start_s)} --> ${clock(cue.end_s)}\n${escape(cue.text)}\n\n`);
  return "WEBVTT\n\n" + blocks.join("");
}

/** Text that cannot end its cue early: one line, and no arrow. */
function cueText(text) {
  return text.trim().split(/\s+/).join(" ").replaceAll("-->", "->");
}

/** The document of a format: cues without text are left out. */
export function toDocument(format, cues) {
  const clean = cues.map((cue) => ({ ...cue, text: cueText(cue.text) })).filter((cue) => cue.text);
  return FORMATS[format].write(clean);
}

/** Fill a container with one button per format.
 *
 * @param container element that takes the buttons.
 * @param subject what is saved, for the accessible names: "captions" or a file's name.
 * @param stem function that returns the file name without its ending.
 * @param cues function that returns the cues at the time of the click.
 */
export function addDownloads(container, subject, stem, cues) {
  for (const [format, { label, mime }] of Object.entries(FORMATS)) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = label;
    button.setAttribute("aria-label", `Download ${subject} as ${label}`);
    button.addEventListener("click", () => save(`${stem()}.${format}`, mime, toDocument(format, cues())));
    container.append(button);
  }
}

function save(name, mime, text) {
  const url = URL.createObjectURL(new Blob([text], { type: `${mime};charset=utf-8` }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  // The download has its own handle on the blob once the click has been dispatched.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
