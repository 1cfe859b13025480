// Messages as formatted text: the server renders them. This is the only place where text becomes markup.

import { copyButton, element } from "./dom.js";
import { askJson } from "./stream.js";

const AS_IS = { createHTML: html => html };
// Browsers that know trusted types refuse markup that has not been through here.
const policy = window.trustedTypes?.createPolicy("markdown", AS_IS) ?? AS_IS;
const KEPT = 200;
const rendered = new Map(); // text -> HTML, the newest last
let queue = Promise.resolve(); // one at a time, so that a long conversation does not crowd the server

async function htmlOf(text) {
  if (!rendered.has(text)) {
    rendered.set(text, (await askJson("markdown", { text })).html);
    if (rendered.size > KEPT) rendered.delete(rendered.keys().next().value);
  }
  return rendered.get(text);
}

const waiting = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    waiting.unobserve(target);
    const text = target.source;
    queue = queue.then(() => format(target, text)).catch(() => {}); // plain text is readable too
  }
}, { rootMargin: "600px" });

// Formats the text that an element holds, once it is near what is seen; until then, and where it fails, it stays plain.
export function formatWhenSeen(place, text) {
  place.source = text;
  waiting.observe(place);
}

export async function format(place, text) {
  const html = await htmlOf(text);
  if (place.source !== text) return;
  const made = element("div");
  made.innerHTML = policy.createHTML(html);
  for (const pre of made.querySelectorAll("pre")) {
    const language = pre.firstElementChild?.className.replace("language-", "") ?? "";
    const head = element("div", { class: "code-head" }, element("span", {}, language || "text"));
    head.append(copyButton(() => pre.textContent, "Copy the code"));
    pre.tabIndex = 0; // wide code scrolls by keyboard
    const box = element("div", { class: "code", role: "group", "aria-label": `Code, ${language || "text"}` });
    pre.replaceWith(box);
    box.append(head, pre);
  }
  for (const table of made.querySelectorAll("table")) {
    const box = element("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Table" });
    table.replaceWith(box);
    box.append(table);
  }
  place.classList.add("formatted");
  place.replaceChildren(...made.childNodes);
}
