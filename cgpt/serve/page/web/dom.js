// Making elements, and telling those who do not see them what has happened.

// An element with these attributes. "on" holds its listeners; true is an attribute without a value, and false, null and
// undefined are none. Children are nodes, or text, which stays text.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

export function button(label, onclick, attributes = {}) {
  return element("button", { type: "button", on: { click: onclick }, ...attributes }, label);
}

// A button that copies what text() gives.
export function copyButton(text, name = "Copy") {
  const made = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text());
      made.textContent = "Copied";
    } catch {
      made.textContent = "Not allowed here"; // browsers give the clipboard to https and to this machine only
    }
    announce(made.textContent);
    setTimeout(() => { made.textContent = "Copy"; }, 2000);
  }, { class: "small", "aria-label": name });
  return made;
}

// Says it to screen readers.
export function announce(text) {
  document.getElementById("live").textContent = text;
}

// Shows a problem to everyone, until the next one; "" for none.
export function notice(text) {
  const place = document.getElementById("notice");
  place.textContent = text;
  place.hidden = !text;
}

// Lets the browser save text as a file.
export function saveAs(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Puts the cursor into a field, unless that would open a keyboard over the page.
export function focusField(field) {
  if (matchMedia("(pointer: fine)").matches) field.focus();
}

// A text area's height follows its text; the style sheet has the bounds.
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

