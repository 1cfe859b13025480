// The list of conversations beside the one that is shown.

import { button, element, notice, saveAs } from "./dom.js";
import { exported, imported, store } from "./store.js";

const MAX_FILE = 64 << 20; // bytes of a file that is imported
const NOTHING_KEPT = "This browser keeps no chats here: they end with the page.";

export class ChatList {
  #list = element("ul", { class: "chats" });
  #current = null;

  // hooks: { open(id), begin(), removed(id), renamed(id, title) }
  constructor(hooks) {
    this.hooks = hooks;
    const file = element("input", { type: "file", accept: ".json,application/json", hidden: true, on: { change: () => this.#import(file) } });
    this.element = element("aside", { id: "chats", "aria-label": "Chats" },
      button("New chat", () => hooks.begin(), { class: "primary" }), this.#list,
      element("div", { class: "row" }, button("Export all", () => this.#export(), { class: "small" }),
        button("Import", () => file.click(), { class: "small" }), file));
  }

  async show(current = this.#current) {
    this.#current = current;
    try {
      const heads = await store.heads();
      this.#list.replaceChildren(...heads.map(head => this.#entry(head)));
    } catch {
      notice(NOTHING_KEPT);
    }
  }

  #entry(head) {
    const title = head.title || "New chat";
    const open = button(title, () => this.hooks.open(head.id), { class: "title", title, "aria-current": head.id === this.#current && "true" });
    const entry = element("li", {}, open,
      button("Rename", () => this.#rename(entry, head), { class: "small", "aria-label": `Rename ${title}` }),
      button("Delete", () => this.#remove(head, title), { class: "small", "aria-label": `Delete ${title}` }));
    return entry;
  }

  #rename(entry, head) {
    const field = element("input", { "aria-label": "Title", value: head.title, maxlength: "200" });
    let left = false;
    const leave = async keep => {
      if (left) return;
      left = true;
      if (keep && field.value.trim()) await this.hooks.renamed(head.id, field.value.trim());
      this.show();
    };
    field.addEventListener("keydown", event => {
      if (event.key === "Enter") leave(true);
      if (event.key === "Escape") { event.stopPropagation(); leave(false); }
    });
    field.addEventListener("blur", () => leave(true));
    entry.replaceChildren(field);
    field.select();
  }

  async #remove(head, title) {
    if (!confirm(`Delete “${title}”? It cannot be brought back.`)) return;
    await store.remove(head.id);
    this.hooks.removed(head.id);
    this.show();
  }

  async #export() {
    saveAs("cgpt-chats.json", exported(await store.all()));
  }

  async #import(file) {
    const [chosen] = file.files;
    file.value = "";
    if (!chosen) return;
    try {
      if (chosen.size > MAX_FILE) throw new Error("This file is too large: chats have 64 MB at most.");
      const chats = imported(await chosen.text());
      for (const chat of chats) await store.put(chat);
      notice("");
      if (chats.length) this.hooks.open(chats[0].id);
    } catch (problem) {
      notice(problem.message);
    }
    this.show();
  }
}
