// The view of a text that the model continues. Each token that it wrote knows what else could have stood there; taking
// another one continues the text from there.

import { announce, button, element, focusField, notice } from "./dom.js";
import { Clock, ask, askJson, describe, events } from "./stream.js";

const KEPT = "cgpt-text";
const TOKENS = 100, ALTERNATIVES = 5;
const UNDO = 100;
const HOVER = 120; // milliseconds that the mouse rests on a token
const TOKEN_ID = /^token_id:(\d+)$/;
const idOf = name => Number(TOKEN_ID.exec(name)[1]);

// A text in parts. A part is { text, ids, top, logprob }: what the model wrote, whole characters of it, with the
// log-probabilities of the likeliest tokens in place of the first, [[id, logprob]]; or what the user wrote, where ids is
// null until the server has been asked for them.
class Text {
  parts = [];

  get text() { return this.parts.map(part => part.text).join(""); }

  // The text is now this one: parts before the first difference stay as they are, what follows is the user's.
  edit(text) {
    let at = 0, same = 0;
    while (same < this.parts.length && text.startsWith(this.parts[same].text, at)) at += this.parts[same++].text.length;
    this.parts = this.parts.slice(0, same);
    let rest = text.slice(at);
    if (!rest) return;
    if (same && !this.parts[same - 1].top) rest = this.parts.pop().text + rest; // one text is one part
    this.parts.push({ text: rest, ids: null });
  }

  // The ids of the whole text.
  async ids() {
    for (const [i, part] of this.parts.entries()) {
      part.ids ??= (await askJson("tokenize", { prompt: part.text, special: false, add_special_tokens: i === 0 })).tokens;
    }
    return this.parts.flatMap(part => part.ids);
  }

  // The index of the part that the character before an offset belongs to, or the one after it at the beginning.
  at(offset) {
    let end = 0;
    return this.parts.findIndex(part => (end += part.text.length) >= Math.max(offset, 1));
  }
}

// Makes parts of the events of /v1/completions. A token whose character is not whole yet waits for those that complete it.
class Tokens {
  #points = []; // characters of the text so far
  #tokens = []; // { id, top, logprob, offset } that are not in a part yet

  // The parts that are whole with this event.
  take({ text, logprobs, finish_reason }) {
    this.#points.push(...text);
    logprobs?.tokens.forEach((name, i) => this.#tokens.push({
      id: idOf(name), logprob: logprobs.token_logprobs[i], offset: logprobs.text_offset[i],
      top: Object.entries(logprobs.top_logprobs[i] ?? {}).map(([other, value]) => [idOf(other), value]),
    }));
    const parts = [];
    while (this.#tokens.length) {
      const { offset, top, logprob } = this.#tokens[0];
      let count = this.#tokens.findIndex(token => token.offset > offset);
      if (count < 0 && (finish_reason || this.#points.length > offset)) count = this.#tokens.length;
      if (count < 0) break;
      const end = this.#tokens[count]?.offset ?? this.#points.length;
      const ids = this.#tokens.splice(0, count).map(token => token.id);
      if (end > offset) parts.push({ text: this.#points.slice(offset, end).join(""), ids, top, logprob });
    }
    return parts;
  }
}

const names = new Map(); // id -> its text
async function nameOf(id) {
  if (!names.has(id)) names.set(id, (await askJson("detokenize", { tokens: [id] })).prompt);
  return names.get(id);
}

// A token's text with its blanks visible.
const visible = text => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "nothing";
const percent = logprob => `${(100 * Math.exp(logprob)).toFixed(logprob > -2.3 ? 0 : 1)} %`;

class Completion {
  #text = new Text();
  #spans = []; // of the parts, in the layer behind the field
  #controller = null;
  #before = []; // texts to undo to
  #timer = 0;
  #open = -1; // the part whose alternatives are shown

  constructor(place, app) {
    this.app = app;
    this.layer = element("div", { class: "layer", "aria-hidden": "true" });
    this.field = element("textarea", { id: "text", "aria-label": "Text", "aria-describedby": "text-help", spellcheck: "false",
      placeholder: "Write how the text begins.", on: {
        input: () => this.#edited(),
        keydown: event => this.#onKey(event),
        mousemove: event => this.#onMove(event),
        click: () => this.#openAtCaret(),
      } });
    this.panel = element("div", { id: "alternatives", role: "group", hidden: true, on: {
      keydown: event => this.#onPanelKey(event),
      mouseleave: event => event.relatedTarget !== this.field && this.#close(),
    } });
    this.surface = element("div", { class: "surface", on: { mouseleave: () => this.panel.contains(document.activeElement) || this.#close() } },
      this.layer, this.field, this.panel);
    this.go = button("Continue", () => this.#continue(), { id: "go", class: "primary", title: "Ctrl+Enter" });
    this.stop = button("Stop", () => this.#controller?.abort(), { id: "stop-text", hidden: true, title: "Esc" });
    this.undo = button("Undo", () => this.#undo(), { id: "undo" });
    this.clear = button("Clear", () => { this.#remember(); this.#text.parts = []; this.#show(); this.field.focus(); });
    this.stats = element("span", { class: "stats" });
    this.error = element("p", { class: "error", role: "alert", hidden: true });
    place.append(element("div", { class: "page" }, this.surface, this.error,
      element("div", { class: "row" }, this.go, this.stop, this.undo, this.clear, this.stats),
      element("p", { id: "text-help", class: "hint" }, "Ctrl+Enter continues the text, Esc stops. Point at what the model wrote, or put ",
        "the cursor there and press Alt+↓, to see what else could stand there; taking it continues the text from there.")));
    addEventListener("keydown", event => {
      if (event.key === "Escape" && !place.hidden && !document.querySelector("dialog[open]")) this.#controller?.abort();
    });
    this.#restore();
    this.#show();
  }

  shown() { focusField(this.field); }

  // ---- the text ----

  #edited() {
    this.#text.edit(this.field.value);
    this.#close();
    this.#showFrom(0);
    this.#keep();
  }

  #remember() {
    this.#before.push([...this.#text.parts]);
    if (this.#before.length > UNDO) this.#before.shift();
  }

  #undo() {
    this.#text.parts = this.#before.pop() ?? this.#text.parts;
    this.#show();
    announce("Undone.");
  }

  // Ids mean something to the model that gave them: another one gets the text alone.
  #restore() {
    try {
      const { server, parts } = JSON.parse(localStorage.getItem(KEPT));
      this.#text.parts = parts;
      if (server !== this.#server) {
        const { text } = this.#text;
        this.#text.parts = [];
        this.#text.edit(text);
      }
    } catch {
      this.#text.parts = []; // nothing is kept here
    }
  }

  get #server() { return `${this.app.model.id} ${this.app.model.created}`; }

  #keep() {
    try {
      localStorage.setItem(KEPT, JSON.stringify({ server: this.#server, parts: this.#text.parts }));
    } catch { /* then it lasts as long as the page */ }
  }

  #show() {
    this.#close();
    this.field.value = this.#text.text;
    this.#showFrom(0);
    this.#keep();
  }

  // Draws the layer's parts from an index on; those before it are there already. It has the field's text and gives both
  // their height.
  #showFrom(first) {
    for (const span of this.#spans.splice(first)) span.remove();
    for (const part of this.#text.parts.slice(first)) {
      const span = element("span", { class: part.top ? "token" : "own" }, part.text);
      this.#spans.push(span);
      this.layer.append(span);
    }
    const running = this.#controller !== null;
    this.field.readOnly = running;
    this.surface.classList.toggle("running", running);
    this.go.hidden = running;
    this.stop.hidden = !running;
    this.undo.disabled = running || !this.#before.length;
    this.clear.disabled = running || !this.#text.parts.length;
  }

  // ---- continuing it ----

  async #continue() {
    if (this.#controller) return;
    if (!this.#text.parts.length) {
      this.#fail("The model needs a beginning to continue: write a few words.");
      this.field.focus();
      return;
    }
    this.#remember();
    this.#fail("");
    this.#close();
    this.#controller = new AbortController();
    this.#showFrom(this.#spans.length);
    const { settings } = this.app, { signal } = this.#controller, clock = new Clock(), tokens = new Tokens();
    let usage = null, added = "";
    try {
      const body = { ...settings.sampling(), prompt: await this.#text.ids(), max_tokens: settings.tokens(TOKENS), logprobs: ALTERNATIVES,
        return_tokens_as_token_ids: true, skip_special_tokens: true, stream: true, stream_options: { include_usage: true } };
      for await (const event of events(await ask("v1/completions", body, signal))) {
        if (event.error) throw new Error(event.error.message);
        usage = event.usage ?? usage;
        if (!event.choices[0]) continue;
        clock.tick();
        const parts = tokens.take(event.choices[0]);
        added += parts.map(part => part.text).join("");
        this.#add(parts);
      }
    } catch (problem) {
      if (problem.name !== "AbortError") this.#fail(problem.message);
    }
    this.#controller = null;
    this.stats.textContent = describe(clock.stats(usage));
    this.#showFrom(this.#spans.length);
    this.#keep();
    announce(added || "Nothing was added.");
  }

  #add(parts) {
    const { field } = this, first = this.#text.parts.length;
    this.#text.parts.push(...parts);
    const { length } = field.value;
    field.setRangeText(parts.map(part => part.text).join(""), length, length, "preserve");
    this.#showFrom(first);
    if (document.activeElement === field && field.selectionStart === length) field.setSelectionRange(field.value.length, field.value.length);
  }

  #fail(text) {
    this.error.textContent = text;
    this.error.hidden = !text;
  }

  // ---- what else could stand there ----

  #onKey(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#continue();
    else if (event.key === "ArrowDown" && event.altKey) {
      event.preventDefault();
      this.#openAtCaret(true);
    } else if (event.key === "Escape") this.#close();
  }

  #onMove(event) {
    if (event.buttons || this.panel.contains(document.activeElement)) return;
    const span = document.elementsFromPoint(event.clientX, event.clientY).find(one => one.parentElement === this.layer);
    clearTimeout(this.#timer);
    if (span) this.#timer = setTimeout(() => this.#openAlternatives(this.#spans.indexOf(span)), HOVER);
  }

  #openAtCaret(focus = false) {
    const { selectionStart, selectionEnd } = this.field;
    if (selectionStart === selectionEnd) this.#openAlternatives(this.#text.at(selectionStart), focus);
  }

  async #openAlternatives(index, focus = false) {
    const part = this.#text.parts[index];
    if (!part?.top || this.#controller) {
      if (focus) announce("The model did not write this.");
      this.#close();
      return;
    }
    if (index === this.#open && !focus) return;
    this.#close();
    this.#open = index;
    let texts;
    try {
      texts = await Promise.all(part.top.map(([id]) => nameOf(id)));
    } catch (problem) {
      notice(problem.message);
      return;
    }
    if (this.#open !== index) return; // something else was pointed at meanwhile
    const choices = part.top.map(([id, logprob], i) => this.#choice(index, id, texts[i], logprob));
    this.panel.setAttribute("aria-label", `In place of ${visible(part.text)}`);
    this.panel.replaceChildren(...choices);
    this.panel.hidden = false;
    this.#spans[index].classList.add("open");
    this.#placePanel(this.#spans[index]);
    if (focus) (choices.find(one => one.matches("[aria-current]")) ?? choices[0]).focus();
  }

  #choice(index, id, text, logprob) {
    const isChosen = id === this.#text.parts[index].ids[0];
    const bar = element("meter", { min: "0", max: "1", value: String(Math.exp(logprob)), "aria-hidden": "true" });
    const isWhole = !text.includes("\ufffd"); // part of a character cannot be shown, nor edited
    const made = button(element("span", { class: "name" }, visible(text)),
      () => isChosen ? this.#close(true) : this.#take(index, id, text),
      { "aria-current": isChosen && "true", disabled: !isWhole });
    made.append(bar, element("span", {}, percent(logprob)));
    return made;
  }

  // Below the token, or above it where there is no room, and within the text's width.
  #placePanel(span) {
    const surface = this.surface.getBoundingClientRect(), [token] = span.getClientRects();
    if (!token) return;
    const { offsetWidth: width, offsetHeight: height } = this.panel;
    const above = token.bottom + height > innerHeight && token.top > height;
    this.panel.style.left = `${Math.max(0, Math.min(token.left - surface.left, surface.width - width))}px`;
    this.panel.style.top = `${(above ? token.top - height : token.bottom) - surface.top}px`;
  }

  #onPanelKey(event) {
    const all = [...this.panel.querySelectorAll("button:enabled")], at = all.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      all[(at + step + all.length) % all.length].focus();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      this.#close(true);
    }
  }

  #close(toField = false) {
    clearTimeout(this.#timer);
    this.#spans[this.#open]?.classList.remove("open");
    this.#open = -1;
    this.panel.hidden = true;
    if (toField) this.field.focus();
  }

  // Puts another token in place of a part, and continues from there.
  async #take(index, id, text) {
    const { top } = this.#text.parts[index];
    this.#close(true);
    this.#remember();
    const [, logprob] = top.find(([other]) => other === id);
    this.#text.parts = [...this.#text.parts.slice(0, index), { text, ids: [id], top, logprob }];
    this.field.value = this.#text.text;
    this.field.setSelectionRange(this.field.value.length, this.field.value.length);
    this.#showFrom(index);
    await this.#continue();
    this.#before.pop(); // undoing it undoes both
  }
}

export const completionView = {
  id: "text",
  label: "Text",
  fits: () => true,
  mount: (place, app) => new Completion(place, app),
};
