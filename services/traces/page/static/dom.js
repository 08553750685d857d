// Elements are made here and nowhere else. A text becomes a text node: nothing that a span says is ever read as markup,
// and links lead to places of this page only.

const SVG = "http://www.w3.org/2000/svg";

// An element. `properties` are attributes; but `on` holds listeners, `css` holds declarations, and false or null leaves
// an attribute out. Children are elements, texts and numbers; false and null are left out.
export function make(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

export function drawn(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (key === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (key === "css") {
      for (const [property, setting] of Object.entries(value)) element.style.setProperty(property, setting);
    } else {
      element.setAttribute(key, value === true ? "" : String(value));
    }
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== false && child !== null && child !== undefined) element.append(child);
  }
}

// Replaces what is in an element.
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
}

// The address of a place of this page: parts of a path, and what is set there.
export function place(parts, values = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    if (value !== "" && value !== null && value !== undefined && value !== false) query.set(key, value === true ? "1" : value);
  }
  const text = query.toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

// A button with a name for those who do not see it, and maybe a key that does the same.
export function button(text, click, properties = {}) {
  return make("button", { type: "button", ...properties, on: { click } }, text);
}
