/* Who has a voice on this device: go on, use it or not, delete it. */

import { askJson } from "./enroll_client.js";
import { button } from "./enroll_record.js";

const PROBLEMS = {
  encrypted: "encrypted: go on at the terminal",
  damaged: "recordings are damaged: mend them at the terminal, or delete them",
};

const by = (id) => document.getElementById(id);

export class People {
  /** @param handlers {onOpen(name), onChange(), tried(act)} */
  constructor(handlers) {
    this.handlers = handlers;
  }

  /** @param people of GET /v1/enroll. */
  show(people, { active, profiles }) {
    const learned = new Map(profiles.map((profile) => [profile.name, profile]));
    const items = people.map((person) => this.item(person, learned.get(person.name), active === person.name));
    by("people").replaceChildren(...items);
    if (!items.length) by("people").append(line("None yet."));
  }

  item({ name, recordings, problem }, profile, isUsed) {
    const facts = [problem ? PROBLEMS[problem] : `${recordings} recordings`];
    if (profile) facts.push(`errors ${profile.owner.before.toFixed(1)} \u2192 ${profile.owner.after.toFixed(1)} %`);
    if (isUsed) facts.push("in use");
    const item = line("");
    const title = document.createElement("span");
    title.textContent = name;
    title.className = "person-name";
    const detail = document.createElement("span");
    detail.textContent = facts.join(", ");
    detail.className = "hint grow";
    item.append(title, detail);
    const { tried, onOpen } = this.handlers;
    if (!problem) item.append(button("Continue", `Continue: ${name}`, () => tried(() => onOpen(name))));
    if (profile) {
      const label = isUsed ? "Stop using" : "Use";
      item.append(button(label, `${label}: ${name}`, () => tried(() => this.use(isUsed ? null : name))));
    }
    item.append(button("Delete", `Delete: ${name}`, () => tried(() => this.remove(name))));
    return item;
  }

  async use(name) {
    await askJson("POST", "v1/profiles/active", { name });
    await this.handlers.onChange();
  }

  async remove(name) {
    const dialog = by("delete-dialog");
    by("delete-title").textContent = `Delete ${name}\u2019s voice?`;
    by("delete-recordings").checked = false;
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "delete") return;
    const path = `v1/profiles/${encodeURIComponent(name)}?with_recordings=${by("delete-recordings").checked ? 1 : 0}`;
    await askJson("DELETE", path);
    await this.handlers.onChange();
    by("voice-name").focus();
  }
}

function line(text) {
  const item = document.createElement("li");
  item.textContent = text;
  return item;
}
