// The only way this page makes elements. Text stays text: nothing here parses HTML.

import { say } from "./texts.js";

// h("p", { class: "x", dataset: { say: "key" } }, "text", node, ...)
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "dataset") Object.assign(node.dataset, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// A text of the page, which changes with the language.
export const said = (tag, key, properties = {}) => h(tag, { ...properties, dataset: { say: key } }, say(key));

// A button of the page; its name changes with the language.
export function button(action, key, ...children) {
  const properties = { type: "button", dataset: { action, label: key }, "aria-label": say(key), title: say(key) };
  return h("button", properties, ...children);
}

// An icon of the sprite in index.html.
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}
