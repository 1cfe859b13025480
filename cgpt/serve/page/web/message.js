// What a conversation shows: messages of the user, and answers, which grow while they stream.

import { button, copyButton, element, grow } from "./dom.js";
import { formatWhenSeen } from "./markdown.js";
import { describe, seconds } from "./stream.js";
import { calls, siblings } from "./tree.js";

const PARAGRAPH = 1000; // characters after which streamed text goes on in a block of its own, so that layout stays cheap

// Text that grows. Only its last block changes.
class Growing {
  constructor(place) {
    this.place = place;
    this.length = 0;
    this.node = null;
  }

  // Shows the text, of which the beginning is shown already.
  show(text) {
    let added = text.slice(this.length);
    this.length = text.length;
    while (added) {
      if (!this.node) {
        this.node = document.createTextNode("");
        this.place.append(element("div", { class: "block" }, this.node));
      }
      const end = this.node.length + added.length > PARAGRAPH ? added.indexOf("\n") : -1;
      if (end < 0) {
        this.node.appendData(added);
        return;
      }
      this.node.appendData(added.slice(0, end));
      if (!this.node.length) this.node.appendData("\u200b"); // an empty line has a height
      this.node = null;
      added = added.slice(end + 1);
    }
  }
}

function actions(...buttons) {
  return element("div", { class: "actions", role: "group", "aria-label": "Actions" }, ...buttons);
}

// ‹ 2 of 3 › where a message has others in its place; null where it has none.
function branches(chat, index, hooks) {
  const all = siblings(chat, index), at = all.indexOf(index);
  if (all.length < 2) return null;
  const step = (by, label, sign) => button(sign, () => hooks.choose(all[at + by]),
    { class: "small", "aria-label": label, disabled: all[at + by] === undefined });
  return element("span", { class: "branches", role: "group", "aria-label": "Versions" }, step(-1, "Previous version", "‹"),
    element("span", {}, `${at + 1} of ${all.length}`), step(1, "Next version", "›"));
}

// hooks: { choose(index), resend(index, text) }
export function userMessage(chat, index, hooks) {
  const { text } = chat.nodes[index];
  const shown = element("div", { class: "text" }, text);
  const body = element("div", { class: "bubble" }, shown);
  const edit = () => {
    const area = element("textarea", { "aria-label": "Your message", rows: "1" });
    const send = () => { if (area.value.trim()) hooks.resend(index, area.value); };
    const leave = () => { box.replaceWith(shown); row.hidden = false; row.querySelector("button").focus(); };
    area.value = text;
    area.addEventListener("input", () => grow(area));
    area.addEventListener("keydown", event => {
      if (event.key === "Escape") { event.stopPropagation(); leave(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    });
    const box = element("div", { class: "edit" }, area, element("div", { class: "row" },
      button("Cancel", leave, { class: "small" }), button("Send again", send, { class: "small primary" })));
    shown.replaceWith(box);
    row.hidden = true;
    grow(area);
    area.focus();
    box.scrollIntoView({ block: "nearest" });
  };
  const row = actions(branches(chat, index, hooks), button("Edit", edit, { class: "small", "aria-label": "Edit and send again" }),
    copyButton(() => text, "Copy your message"));
  return element("article", { class: "message user", "aria-label": "You" }, body, row);
}

const STATUS = { stopped: "Stopped.", cut: "The answer was cut: it had as many tokens as it may have." };

// An answer: its items, and what can be done with it.
export class Answer {
  #places = new Map(); // item -> { update(), finish() }
  #frame = 0;
  outputs = null; // of the calls, as they are shown

  // hooks: { choose(index), again(index), answer(index, outputs), grown() }
  constructor(chat, index, hooks) {
    Object.assign(this, { chat, index, hooks, node: chat.nodes[index] });
    this.items = element("div", { class: "items" });
    this.foot = element("div", { class: "foot" });
    this.element = element("article", { class: "message assistant", "aria-label": "Model" }, this.items, this.foot);
    this.update();
    if (this.node.status !== "running") this.finish();
  }

  // Shows what has come, at the next frame.
  grow() {
    this.#frame ||= requestAnimationFrame(() => { this.#frame = 0; this.update(); this.hooks.grown(); });
  }

  update() {
    for (const item of this.node.items) {
      if (!this.#places.has(item)) {
        const place = { reasoning: reasoningPlace, message: messagePlace, call: callPlace }[item.type](item);
        this.#places.set(item, place);
        this.items.append(place.element);
      }
      this.#places.get(item).update();
    }
    const isRunning = this.node.status === "running";
    this.element.classList.toggle("running", isRunning);
    this.element.setAttribute("aria-busy", String(isRunning));
  }

  // The answer is whole.
  finish() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.update();
    for (const place of this.#places.values()) place.finish();
    this.showFoot(null);
  }

  // Shows what can be done, and the outputs of the calls, {call_id: text}; where these are null, fields for them.
  showFoot(outputs) {
    this.outputs = outputs;
    const { node, hooks, index, chat } = this, wanted = calls(node), given = {};
    for (const item of wanted) {
      this.#places.get(item).result(outputs?.[item.call_id] ?? null, text => {
        given[item.call_id] = text;
        if (wanted.every(one => one.call_id in given)) hooks.answer(index, given);
      });
    }
    const text = node.items.filter(item => item.type === "message").map(item => item.text).join("\n\n");
    const error = node.error && element("p", { class: "error", role: "alert" }, node.error);
    const status = STATUS[node.status] && element("p", { class: "status" }, STATUS[node.status]);
    const stats = node.stats && element("span", { class: "stats" }, describe(node.stats));
    this.foot.replaceChildren(...[error, status, actions(branches(chat, index, hooks),
      button(node.error ? "Try again" : "Regenerate", () => hooks.again(index), { class: "small" }),
      text ? copyButton(() => text, "Copy the answer") : null, stats)].filter(Boolean));
  }
}

function reasoningPlace(item) {
  const line = element("summary", {}), text = element("div", { class: "thought" });
  const growing = new Growing(text);
  return {
    element: element("details", { class: "reasoning" }, line, text),
    update() {
      line.textContent = item.seconds === null ? "Thinking…" : `Thought for ${seconds(item.seconds)}`;
      growing.show(item.text);
    },
    finish() { if (item.seconds === null) line.textContent = "Thought"; },
  };
}

function messagePlace(item) {
  const place = element("div", { class: item.phase === "commentary" ? "text commentary" : "text" });
  const growing = new Growing(place);
  return {
    element: place,
    update: () => growing.show(item.text),
    finish() { if (item.text) formatWhenSeen(place, item.text); },
  };
}

// JSON text, with line breaks where it is whole.
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function callPlace(item) {
  const given = element("pre", { tabindex: "0", role: "group", "aria-label": "Arguments" }), result = element("div", { class: "result" });
  const name = `Call of ${item.name}`;
  return {
    element: element("section", { class: "card", "aria-label": name },
      element("div", { class: "card-head" }, element("span", { class: "tag" }, "tool"), element("strong", {}, item.name)), given, result),
    update() { given.textContent = item.arguments; },
    finish() { given.textContent = pretty(item.arguments); },
    // Shows the output, or a field for it where that is null.
    result(output, answer) {
      if (output !== null) {
        result.replaceChildren(element("p", { class: "label" }, "Result"),
          element("pre", { tabindex: "0", role: "group", "aria-label": "Result" }, pretty(output)));
        return;
      }
      const area = element("textarea", { rows: "2", "aria-label": `Result of ${item.name}`, placeholder: "What the tool says" });
      area.addEventListener("input", () => grow(area));
      const send = button("Send the result", () => {
        area.disabled = send.disabled = true;
        answer(area.value);
      }, { class: "small primary" });
      result.replaceChildren(area, element("div", { class: "row" }, send));
    },
  };
}
