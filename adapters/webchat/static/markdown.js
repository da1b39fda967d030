// Blocks -> nodes, and a text that grows: only its last blocks are made again.

import { blocks } from "./blocks.js";
import { button, h, icon, said } from "./dom.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";
import { say } from "./texts.js";

const MAKERS = {
  paragraph: (block) => h("p", { dir: "auto" }, inline(block.text)),
  heading: (block) => h(`h${Math.min(block.level + 1, 6)}`, { dir: "auto" }, inline(block.text)),
  rule: () => h("hr"),
  quote: (block) => h("blockquote", { dir: "auto" }, ...block.children.map(make)),
  math: (block) => h("div", { class: "math wide", tabindex: 0 }, block.text),
  code,
  list,
  table,
};

const make = (block) => MAKERS[block.type](block);

function code(block) {
  const label = block.language ? h("span", {}, block.language) : said("span", "code");
  const copy = button("copy-code", "copyCode", icon("copy"), said("span", "copy"));
  const body = h("pre", { tabindex: 0, dir: "ltr" }, h("code", {}, highlight(block.text, block.language)));
  return h("figure", { class: "code" }, h("figcaption", {}, label, copy), body);
}

function list(block) {
  const start = block.ordered && block.start !== 1 ? block.start : null;
  const tasks = block.items.some((item) => item.task !== null);
  const items = block.items.map((item) => listItem(item, block.loose));
  return h(block.ordered ? "ol" : "ul", { start, class: tasks ? "tasks" : null, dir: "auto" }, ...items);
}

function listItem(item, loose) {
  const children = item.children.flatMap((child) => (child.type === "paragraph" && !loose ? [inline(child.text)] : [make(child)]));
  if (item.task === null) return h("li", { dir: "auto" }, ...children);
  const box = h("input", { type: "checkbox", disabled: true, checked: item.task });
  return h("li", { dir: "auto", class: "task" }, h("label", {}, box, " ", ...children.splice(0, 1)), ...children);
}

function table(block) {
  const row = (tag, cells) =>
    h("tr", {}, ...cells.map((cell, column) => h(tag, { dir: "auto", class: block.align[column] }, inline(cell))));
  const head = h("thead", {}, row("th", block.head));
  const body = h("tbody", {}, ...block.rows.map((cells) => row("td", cells)));
  const frame = { class: "table", tabindex: 0, role: "region", "aria-label": say("table"), dataset: { label: "table" } };
  return h("div", frame, h("table", {}, head, body));
}

// A text that grows inside `element`. Blocks that cannot change any more are left alone: all but the last two, because
// the next line may still join those (an item after a blank line, the rule of a table).
export class Growing {
  #element;
  #text = "";
  #settled = 0; // characters in blocks that are done
  #loose = []; // {source, node} of the others

  constructor(element) {
    this.#element = element;
  }

  get text() {
    return this.#text;
  }

  update(text) {
    if (text === this.#text) return;
    if (!text.startsWith(this.#text.slice(0, this.#settled))) this.#restart();
    this.#text = text;
    const lines = text.slice(this.#settled).split("\n").map((line) => line.replace(/\t/g, "    "));
    const found = blocks(lines).map((block) => ({ block, source: lines.slice(block.from, block.to).join("\n") }));
    this.#show(found);
    this.#settle(found, text);
  }

  #restart() {
    this.#settled = 0;
    this.#loose = [];
    this.#element.replaceChildren();
  }

  #show(found) {
    const same = found.findIndex(({ block, source }, index) => !this.#keeps(this.#loose[index], block, source));
    const first = same < 0 ? found.length : same;
    for (const { node } of this.#loose.splice(first)) node.remove();
    for (const { block, source } of found.slice(first)) {
      const node = make(block);
      this.#element.append(node);
      this.#loose.push({ source, type: block.type, node });
    }
  }

  #keeps(shown, block, source) {
    return shown !== undefined && shown.type === block.type && shown.source === source;
  }

  // Lines are counted in the text itself: tabs became spaces in ours.
  #settle(found, text) {
    const done = found.length - 2;
    if (done <= 0) return;
    let end = this.#settled;
    for (let line = 0; line < found[done].block.from; line += 1) end = text.indexOf("\n", end) + 1;
    this.#settled = end;
    this.#loose.splice(0, done);
  }
}
