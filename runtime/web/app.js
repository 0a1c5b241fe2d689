/* The page: which view is shown, and the views themselves.
 *
 *     live.js    microphone -> browser_source.js or device_source.js -> captions.js
 *     files.js   recordings -> upload.js
 *     enroll.js  a voice: enroll_record.js, enroll_learn.js, enroll_people.js
 *     all        connection.js (address, token, sockets), subtitles.js (txt, srt, vtt)
 */

import { VoiceView } from "./enroll.js";
import { FilesView } from "./files.js";
import { LiveView } from "./live.js";

const TITLES = { live: "live captions", files: "recordings", voice: "my voice" };

/** Show the view that the address names, Live by default. */
function showView() {
  const named = location.hash.slice(1);
  const shown = named in TITLES ? named : "live";
  for (const view of document.querySelectorAll("[data-view]")) view.hidden = view.dataset.view !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `whisperfold: ${TITLES[shown]}`;
}

window.addEventListener("hashchange", showView);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view, not a place in it
  document.getElementById("main").focus();
});
showView();
new LiveView();
new FilesView();
new VoiceView();
