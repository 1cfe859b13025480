// The view of a conversation with a model that chats: the messages, and the field below them.

import { ChatList } from "./chats.js";
import { announce, button, element, focusField, grow, notice } from "./dom.js";
import { Answer, userMessage } from "./message.js";
import { store } from "./store.js";
import { Clock, ask, events } from "./stream.js";
import { add, choose, newChat, path, siblings, titleOf, toInput } from "./tree.js";

const LAST = "cgpt-chat"; // the chat that was open in this tab
const SAVE_EVERY = 2000; // milliseconds, while an answer comes
const NEAR_END = 80; // pixels from the end, within which what is shown follows an answer

class Chats {
  #chat = newChat();
  #runs = new Map(); // id of a chat -> { chat, answer, controller } while its answer comes
  #shown = []; // what stands in the log: { index, key, element }
  #follows = true;
  #removed = new Set();

  constructor(place, app) {
    this.app = app;
    this.list = new ChatList({
      open: id => this.open(id),
      begin: () => this.begin(),
      removed: id => {
        this.#removed.add(id);
        this.#runs.get(id)?.controller.abort();
        if (id === this.#chat.id) this.begin();
      },
      renamed: (id, title) => this.#rename(id, title),
    });
    this.log = element("div", { id: "log", role: "log", "aria-label": "Conversation", "aria-live": "off", tabindex: "0",
      on: { scroll: () => { this.#follows = this.#isAtEnd(); } } });
    this.field = element("textarea", { id: "prompt", rows: "1", "aria-label": "Message", placeholder: "Message the model",
      on: { input: () => { grow(this.field); this.#showButtons(); }, keydown: event => this.#onKey(event) } });
    this.send = element("button", { id: "send", class: "primary" }, "Send");
    this.stop = button("Stop", () => this.#stop(), { id: "stop", hidden: true, title: "Esc" });
    const toggle = button("Chats", event => { event.stopPropagation(); this.#toggleList(); }, { id: "open-chats", "aria-expanded": "false", "aria-controls": "chats" });
    this.toggle = toggle;
    place.append(this.list.element, element("div", { class: "conversation", on: { click: () => this.#toggleList(false) } }, toggle, this.log,
      element("form", { class: "composer", on: { submit: event => { event.preventDefault(); this.#submit(); } } },
        this.field, this.send, this.stop)));
    addEventListener("keydown", event => {
      if (event.key !== "Escape" || place.hidden || document.querySelector("dialog[open]")) return;
      if (place.classList.contains("listed")) this.#toggleList(false);
      else this.#stop();
    });
    this.place = place;
    this.#restore();
  }

  async #restore() {
    const last = sessionStorage.getItem(LAST);
    try {
      const id = last ?? (await store.heads())[0]?.id;
      if (id) this.#chat = (await store.get(id)) ?? this.#chat;
    } catch { /* the list says so */ }
    this.#show();
    this.list.show(this.#chat.id);
  }

  shown() { focusField(this.field); }

  // Opens a chat that is kept.
  async open(id) {
    const found = this.#runs.get(id)?.chat ?? (await store.get(id));
    if (found) this.#enter(found);
  }

  begin() { this.#enter(newChat()); }

  #enter(chat) {
    this.#chat = chat;
    sessionStorage.setItem(LAST, chat.id);
    this.#toggleList(false);
    this.#follows = true;
    this.#show();
    this.list.show(chat.id);
    focusField(this.field);
  }

  #toggleList(open = !this.place.classList.contains("listed")) {
    this.place.classList.toggle("listed", open);
    this.toggle.setAttribute("aria-expanded", String(open));
    if (open) this.list.element.querySelector("button").focus();
  }

  async #rename(id, title) {
    const chat = id === this.#chat.id ? this.#chat : this.#runs.get(id)?.chat ?? (await store.get(id));
    chat.title = title;
    await store.put(chat);
  }

  #onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const text = this.field.value;
    if (!text.trim() || this.#runs.has(this.#chat.id)) return;
    this.field.value = "";
    grow(this.field);
    this.#say(this.#chat.leaf, text);
  }

  // Adds a message of the user after a node, and asks for an answer.
  #say(parent, text) {
    const chat = this.#chat;
    chat.title ||= titleOf(text);
    this.#answerTo(add(chat, parent, { role: "user", text }));
  }

  #stop() { this.#runs.get(this.#chat.id)?.controller.abort(); }

  // What messages call back.
  #hooks = {
    choose: index => { choose(this.#chat, index); this.#save(this.#chat); this.#show(); this.#keepFocus(index); },
    resend: (index, text) => this.#idle() && this.#say(this.#chat.nodes[index].parent, text),
    again: index => this.#idle() && this.#answerTo(this.#chat.nodes[index].parent),
    answer: (index, outputs) => this.#idle() && this.#answerTo(add(this.#chat, index, { role: "tool", outputs })),
    grown: () => this.#followEnd(),
  };

  // Whether nothing runs in this chat; a second answer has to wait for the first.
  #idle() {
    const runs = this.#runs.has(this.#chat.id);
    if (runs) notice("An answer is being written. Stop it first.");
    return !runs;
  }

  #keepFocus(index) {
    this.#shown.find(one => one.index === index)?.element.querySelector(".branches button:enabled")?.focus();
  }

  // Asks for an answer to the branch that ends with a node.
  async #answerTo(parent) {
    const chat = this.#chat, body = this.#request(chat, parent), controller = new AbortController();
    const index = add(chat, parent, { role: "assistant", items: [], status: "running", stats: null, error: null });
    const node = chat.nodes[index], answer = new Answer(chat, index, this.#hooks);
    this.#runs.set(chat.id, { chat, answer, controller });
    sessionStorage.setItem(LAST, chat.id);
    this.#follows = true;
    notice("");
    this.#show();
    await this.#save(chat);
    announce("The model answers.");
    const clock = new Clock();
    let saved = performance.now();
    try {
      for await (const event of events(await ask("v1/responses", body, controller.signal))) {
        if (take(node, event, clock)) answer.grow();
        if (performance.now() - saved > SAVE_EVERY) {
          saved = performance.now();
          this.#save(chat);
        }
      }
      if (node.status === "running") throw new Error("The connection ended before the answer did.");
    } catch (problem) {
      node.status = problem.name === "AbortError" ? "stopped" : "failed";
      if (node.status === "failed") node.error = problem.message;
    }
    endThought(node, clock);
    node.stats ??= clock.first === null ? null : clock.stats(null);
    this.#runs.delete(chat.id);
    answer.finish();
    if (chat === this.#chat) {
      this.#show();
      this.#followEnd();
    }
    announce(node.error ?? node.items.filter(item => item.type !== "reasoning").map(item => item.text ?? `Calls ${item.name}.`).join(" "));
    await this.#save(chat);
  }

  #request(chat, leaf) {
    const { settings } = this.app, { schema, system } = settings;
    const text = schema && { format: { type: "json_schema", name: "answer", schema } };
    return { ...settings.sampling(), input: toInput(chat, leaf), reasoning: { effort: settings.effort }, tools: settings.tools,
      ...(system && { instructions: system }), ...(text && { text }), max_output_tokens: settings.tokens(null), stream: true, store: false };
  }

  async #save(chat) {
    if (this.#removed.has(chat.id)) return;
    try {
      await store.put(structuredClone(chat));
      this.list.show(this.#chat.id);
    } catch {
      notice("This browser keeps no chats here: they end with the page.");
    }
  }

  // Makes the log show the branch, and keeps what it shows already.
  #show() {
    const chat = this.#chat, wanted = path(chat).filter(i => chat.nodes[i].role !== "tool");
    const keyOf = i => `${chat.id} ${i} ${siblings(chat, i)}`;
    let same = 0;
    while (same < wanted.length && this.#shown[same]?.key === keyOf(wanted[same])) same++;
    for (const one of this.#shown.splice(same)) one.element.remove();
    for (const index of wanted.slice(same)) this.#append(index, keyOf(index));
    this.#showResults(path(chat));
    this.log.querySelector(".welcome")?.remove();
    if (!wanted.length) this.log.append(this.#welcome());
    this.#showButtons();
    this.#followEnd();
  }

  #append(index, key) {
    const chat = this.#chat, run = this.#runs.get(chat.id);
    let made;
    if (chat.nodes[index].role === "user") {
      made = { element: userMessage(chat, index, this.#hooks) };
    } else {
      if (chat.nodes[index].status === "running" && !run) chat.nodes[index].status = "stopped"; // by a reload
      const answer = run?.answer.index === index ? run.answer : new Answer(chat, index, this.#hooks);
      made = { element: answer.element, answer };
    }
    this.#shown.push({ index, key, ...made });
    this.log.append(made.element);
  }

  // Calls show what was answered to them in this branch.
  #showResults(branch) {
    for (const { index, answer } of this.#shown) {
      const node = this.#chat.nodes[branch[branch.indexOf(index) + 1]];
      const outputs = node?.role === "tool" ? node.outputs : null;
      if (answer && answer.node.status !== "running" && answer.outputs !== outputs) answer.showFoot(outputs);
    }
  }

  #welcome() {
    return element("div", { class: "welcome" }, element("h2", {}, "What shall it be about?"),
      element("p", {}, "Enter sends, Shift+Enter begins a new line, Esc stops an answer. Chats stay in this browser."));
  }

  #showButtons() {
    const runs = this.#runs.has(this.#chat.id);
    this.send.hidden = runs;
    this.stop.hidden = !runs;
    this.send.disabled = !this.field.value.trim();
  }

  #isAtEnd() { return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR_END; }

  #followEnd() { if (this.#follows) this.log.scrollTop = this.log.scrollHeight; }
}

const KINDS = { reasoning: "reasoning", message: "message", function_call: "call" };

// Adds what an event of /v1/responses tells to an answer; whether anything is new. Throws what the server says went wrong.
function take(node, event, clock) {
  const item = node.items.at(-1);
  switch (event.type) {
    case "response.output_item.added": {
      endThought(node, clock);
      const { type, call_id, name, phase } = event.item, kind = KINDS[type];
      if (kind === "call") node.items.push({ type: kind, call_id, name, arguments: "" });
      else if (kind === "reasoning") node.items.push({ type: kind, text: "", seconds: null });
      else node.items.push({ type: kind, text: "", phase });
      break;
    }
    case "response.reasoning_text.delta":
    case "response.output_text.delta":
      item.text += event.delta;
      break;
    case "response.function_call_arguments.delta":
      item.arguments += event.delta;
      break;
    case "response.completed":
    case "response.incomplete":
      node.status = event.type === "response.completed" ? "done" : "cut";
      node.stats = clock.stats(event.response.usage);
      return true;
    case "response.failed":
      throw new Error(event.response.error.message);
    default:
      if (event.error) throw new Error(event.error.message);
      return false;
  }
  clock.tick();
  if (item?.type === "reasoning" && item.seconds === null) clock.thought ??= performance.now();
  return true;
}

// What is thought ends where something else begins, or the answer does.
function endThought(node, clock) {
  const item = node.items.at(-1);
  if (item?.type !== "reasoning" || item.seconds !== null) return;
  item.seconds = (performance.now() - (clock.thought ?? performance.now())) / 1000;
  clock.thought = null;
}

export const chatView = {
  id: "chat",
  label: "Chat",
  fits: model => model.chats,
  mount: (place, app) => new Chats(place, app),
};
