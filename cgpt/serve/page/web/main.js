// Begins the page: asks what model is served, and shows one of the views.
//
// A view is a module with an object { id, label, fits(model), mount(place, app) }. mount() fills its place once, when the
// view is first shown, and returns { shown() }, which is called each time it is. app: { model, settings, refresh }.

import { chatView } from "./chat.js";
import { completionView } from "./completion.js";
import { button, element, notice } from "./dom.js";
import { settings } from "./settings.js";
import { askJson } from "./stream.js";

const VIEWS = [chatView, completionView];
const main = document.getElementById("main");
const app = { model: null, settings, refresh: start };
const mounted = new Map();

function show(id) {
  const view = VIEWS.find(one => one.id === id && one.fits(app.model)) ?? VIEWS.find(one => one.fits(app.model));
  if (!mounted.has(view.id)) {
    const place = element("section", { class: `view ${view.id}`, "aria-label": view.label });
    main.append(place);
    mounted.set(view.id, { place, handle: view.mount(place, app) });
  }
  for (const [other, { place }] of mounted) place.hidden = other !== view.id;
  for (const one of document.querySelectorAll("#views a")) {
    if (one.hash === `#${view.id}`) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  mounted.get(view.id).handle.shown();
}

async function start() {
  notice("");
  try {
    app.model = (await askJson("v1/models")).data[0];
  } catch (problem) {
    notice(problem.message);
    if (problem.code === "invalid_api_key") settings.open("key");
    else document.getElementById("notice").append(" ", button("Try again", start, { class: "small" }));
    return;
  }
  document.getElementById("model").textContent = `${app.model.id}, ${app.model.max_model_len} tokens of context`;
  const fitting = VIEWS.filter(view => view.fits(app.model));
  const links = fitting.map(view => element("a", { href: `#${view.id}` }, view.label));
  document.getElementById("views").replaceChildren(...(links.length > 1 ? links : []));
  settings.setModel(app.model);
  show(location.hash.slice(1));
}

addEventListener("hashchange", () => app.model && show(location.hash.slice(1)));
document.getElementById("open-settings").addEventListener("click", () => settings.open());
settings.onKey = start;
start();
