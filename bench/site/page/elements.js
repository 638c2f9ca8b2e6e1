// What every page shares: its data, and making elements.
// Elements get text, never markup: names of images and methods are whatever their files were called.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/** An HTML element with attributes and children (elements or text). */
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

function option(value, text) {
  return element("option", { value }, text);
}

/** Replaces the options of a `<select>`, and chooses one. */
function fill(select, options, chosen) {
  select.replaceChildren(...options);
  select.value = chosen;
}
