// The drawer with settings. All but the API key are kept in this browser.

import { button, element } from "./dom.js";
import { apiKey, setApiKey } from "./stream.js";

const KEPT = "cgpt-settings";
const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: "any", hint: "0 takes the likeliest token." },
  { name: "top_p", label: "top_p", min: 0.000001, max: 1, step: "any", hint: "Choose among the likeliest, which together have this probability." },
  { name: "seed", label: "Seed", min: -1, step: 1, hint: "The same seed gives the same answer." },
  { name: "tokens", label: "Tokens at most", min: 1, step: 1, hint: "Of one answer." },
];
const TEXTS = [
  { name: "system", label: "System text", rows: 3, hint: "What the model is told before the conversation." },
  { name: "schema", label: "Response schema", rows: 4, json: true, hint: "A JSON schema that the answer must fit. The server needs its extra [grammar] for it." },
  { name: "tools", label: "Tools", rows: 5, json: true, hint: 'A JSON list of functions that the model may call: [{"name": "get_weather", "parameters": {…}}]. You answer the calls by hand.' },
];
const OF_CHATS = ["effort", "system", "schema", "tools"];

class Settings {
  onKey = () => {};
  #values = {};
  #model = null;
  #fields = {};
  #dialog = null;

  constructor() {
    try {
      this.#values = JSON.parse(localStorage.getItem(KEPT)) ?? {};
    } catch { /* nothing was kept, or nothing may be */ }
    this.#applyTheme();
  }

  // The defaults are the model's own, or else the server's, which samples as the model says; a model that only continues
  // texts wanders off then.
  setModel(model) {
    this.#model = model;
    if (this.#dialog) this.#fill();
  }

  defaults() {
    const { sampling_defaults: own, max_new_tokens, chats } = { max_new_tokens: null, ...this.#model };
    return { temperature: own.temperature ?? (chats ? 1 : 0.8), top_p: own.top_p ?? (chats ? 1 : 0.95),
      top_k: own.top_k, min_p: own.min_p, repetition_penalty: own.repetition_penalty, tokens: own.max_new_tokens ?? max_new_tokens };
  }

  get effort() { return this.#values.effort || "medium"; }
  get system() { return this.#values.system ?? ""; }

  // The schema of the answer, and the tools in the form of /v1/responses; null and [] where there are none.
  get schema() { return parsed(this.#values.schema); }
  get tools() {
    const given = parsed(this.#values.tools) ?? [];
    return given.map(tool => ({ type: "function", ...(tool.function ?? tool) }));
  }

  // The fields of sampling that both APIs share.
  sampling() {
    const body = {};
    for (const [name, value] of Object.entries({ ...this.defaults(), ...this.#values })) {
      if (!["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"].includes(name)) continue;
      if (value !== undefined && value !== null && value !== "") body[name] = Number(value);
    }
    return body;
  }

  // How many tokens an answer may have; undefined where the server's own limit is meant.
  tokens(otherwise) {
    const value = this.#values.tokens;
    return value !== undefined && value !== "" ? Number(value) : this.defaults().tokens ?? otherwise;
  }

  open(name) {
    this.#dialog ??= this.#make();
    this.#fill();
    this.#dialog.showModal();
    if (name) this.#fields[name].input.focus();
  }

  #make() {
    const field = (spec, input) => {
      const id = `set-${spec.name}`, hint = spec.hint && element("p", { id: `${id}-hint`, class: "hint" }, spec.hint);
      const problem = element("p", { id: `${id}-problem`, class: "problem", role: "alert" });
      input.id = id;
      if (hint) input.setAttribute("aria-describedby", hint.id);
      input.addEventListener("input", () => this.#check(spec.name));
      this.#fields[spec.name] = { spec, input, problem, hint };
      return element("div", { class: "field", "data-field": spec.name },
        element("label", { for: id }, spec.label), input, hint, problem);
    };
    const select = options => element("select", {}, ...options.map(([value, label]) => element("option", { value }, label)));
    const form = element("form", { method: "dialog", on: { submit: event => { if (!this.#save()) event.preventDefault(); } } },
      element("div", { class: "drawer-head" }, element("h2", { id: "settings-title" }, "Settings"), element("button", {}, "Done")),
      field({ name: "effort", label: "Reasoning effort" }, select([["low", "low"], ["medium", "medium"], ["high", "high"]])),
      element("div", { class: "pair" }, ...NUMBERS.map(spec => field(spec, element("input", {
        type: "number", inputmode: "decimal", min: spec.min, max: spec.max, step: spec.step })))),
      ...TEXTS.map(spec => field(spec, element("textarea", { rows: spec.rows, spellcheck: spec.json ? "false" : null }))),
      field({ name: "key", label: "API key", hint: "Kept until this tab is closed." },
        element("input", { type: "password", autocomplete: "off" })),
      field({ name: "theme", label: "Colours" }, select([["", "as the system has it"], ["light", "light"], ["dark", "dark"]])),
      element("div", { class: "row" }, button("Back to the defaults", () => this.#reset(), { class: "small" })));
    const dialog = element("dialog", { id: "settings", "aria-labelledby": "settings-title", on: {
      close: () => this.#save(),
      click: event => { if (event.target === dialog && this.#save()) dialog.close(); }, // on what is behind it
    } }, form);
    document.body.append(dialog);
    return dialog;
  }

  #fill() {
    const defaults = this.#model ? this.defaults() : {};
    for (const [name, { spec, input }] of Object.entries(this.#fields)) {
      input.value = name === "key" ? apiKey() : name === "effort" ? this.effort : this.#values[name] ?? "";
      if (input.type === "number") {
        const own = this.#model?.sampling_defaults[name] !== undefined ? " (the model's)" : "";
        input.placeholder = defaults[name] === undefined || defaults[name] === null ? "" : `${defaults[name]}${own}`;
        if (spec.name === "tokens" && this.#model) input.max = this.#model.max_output_tokens;
      }
      if (OF_CHATS.includes(name)) input.closest(".field").hidden = this.#model?.chats === false;
      this.#check(name);
    }
  }

  // Shows what is wrong with a field; whether it is good.
  #check(name) {
    const { spec, input, problem, hint } = this.#fields[name];
    problem.textContent = spec.json ? problemOf(name, input.value) : input.validationMessage;
    const good = !problem.textContent;
    input.setAttribute("aria-invalid", String(!good));
    const about = [hint?.id, good ? null : problem.id].filter(Boolean).join(" ");
    if (about) input.setAttribute("aria-describedby", about);
    return good;
  }

  // Takes over what is good; whether all is.
  #save() {
    let good = true;
    for (const [name, { input }] of Object.entries(this.#fields)) {
      if (!this.#check(name)) {
        if (good && this.#dialog.open) input.focus();
        good = false;
      } else if (name !== "key") {
        this.#values[name] = input.value;
      }
    }
    this.#keep();
    if (this.#fields.key.input.value !== apiKey()) {
      setApiKey(this.#fields.key.input.value);
      this.onKey();
    }
    return good;
  }

  #reset() {
    this.#values = {};
    this.#keep();
    this.#fill();
  }

  #keep() {
    try {
      localStorage.setItem(KEPT, JSON.stringify(this.#values));
    } catch { /* then they last as long as the page */ }
    this.#applyTheme();
  }

  #applyTheme() {
    document.documentElement.dataset.theme = this.#values.theme ?? "";
  }
}

const parsed = text => {
  try {
    return text?.trim() ? JSON.parse(text) : null;
  } catch {
    return null;
  }
};

function problemOf(name, text) {
  if (!text.trim()) return "";
  let value;
  try {
    value = JSON.parse(text);
  } catch (problem) {
    return `This is no JSON: ${problem.message}`;
  }
  if (name === "schema") return value?.constructor === Object ? "" : "A schema is a JSON object.";
  const named = Array.isArray(value) && value.every(tool => typeof (tool?.function ?? tool)?.name === "string");
  return named ? "" : "Tools are a list of objects that have a name.";
}

export const settings = new Settings();
