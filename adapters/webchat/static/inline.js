// Markdown within a line -> nodes: code, emphasis, links, breaks. HTML stays text.
// Emphasis follows https://spec.commonmark.org/0.31.2/#delimiter-run, but knows that Chinese needs no spaces.

import { h } from "./dom.js";

const DEEPEST = 8; // links and emphasis within each other
const SAFE = new Set(["http:", "https:", "mailto:", "tel:"]);
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", hellip: "…", mdash: "—", ndash: "–", times: "×", rarr: "→", larr: "←" };

const SPACE = /^[\s\u00a0]?$/; // also the end of the text
const PUNCTUATION = /^[\p{P}\p{S}]$/u;
const CJK = /^[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]$/;

// What a special character may begin; each is tried where it stands.
const RULES = [
  ["\\", /\\\n/y, () => h("br")],
  ["\\", /\\\(([^\n]+?)\\\)/y, (m) => h("span", { class: "math" }, m[1].trim())],
  ["\\", /\\([!-/:-@[-`{-~])/y, (m) => m[1]],
  ["`", /(`+)(?!`)([^]*?[^`])\1(?!`)/y, (m) => h("code", { dir: "ltr" }, spaced(m[2]))],
  ["`", /`+/y, (m) => m[0]],
  ["$", /\$\$([^$]+)\$\$/y, (m) => h("span", { class: "math" }, m[1].trim())],
  ["$", /\$(?![\s$])((?:\\.|[^$\\\n])*?[^\s\\])\$(?!\d)/y, (m) => (mathematical(m[1]) ? h("span", { class: "math" }, m[1]) : null)],
  ["<", /<br\s*\/?>/iy, () => h("br")],
  ["<", /<((?:https?:\/\/|mailto:)[^\s<>]+)>/iy, (m) => link(m[1], [m[1]])],
  ["h", /https?:\/\/[^\s<>"'`|*，。；：！？、（）【】《》「」“”]+/iy, (m) => bare(m[0])],
  ["&", /&(\w+|#\d{1,7}|#x[\da-f]{1,6});/iy, (m) => entity(m[1])],
  ["\n", /\n */y, () => h("br")],
];

const CLOSING = [/\\?[.,;:!?]+$/, /\)$/, /\]$/];

// `(` of the destination, then <...> or balanced text, then an optional title.
const DESTINATION = /\(\s*(?:<([^<>\n]*)>|((?:\\.|[^\s()\\]|\((?:\\.|[^\s()\\])*\))*))(?:\s+(?:"[^"]*"|'[^']*'|\([^)]*\)))?\s*\)/y;

export function inline(text, depth = 0) {
  return emphasize(scan(text, depth));
}

// Split into strings, nodes and runs of delimiters.
function scan(text, depth) {
  const items = [];
  const brackets = [];
  let at = 0;
  const next = /[\\`$<h&\n*_~[\]!]/g;
  while (at < text.length) {
    next.lastIndex = at;
    const found = next.exec(text);
    const start = found ? found.index : text.length;
    if (start > at) items.push(text.slice(at, start));
    if (!found) break;
    at = special(text, start, items, brackets, depth);
  }
  return items;
}

// Take what begins at a special character; return where to go on.
function special(text, at, items, brackets, depth) {
  const sign = text[at];
  for (const [first, pattern, make] of RULES) {
    if (first !== sign) continue;
    const match = matchAt(pattern, text, at);
    const made = match && make(match);
    if (!made) continue;
    if (made.taken !== undefined) { // a bare link leaves the punctuation behind it
      items.push(made.node);
      return at + made.taken;
    }
    trimBreak(items, made);
    items.push(made);
    return at + match[0].length;
  }
  if (sign === "*" || sign === "_" || sign === "~") return run(text, at, items);
  if (sign === "[" || text.startsWith("![", at)) return open(text, at, items, brackets);
  if (sign === "]" && brackets.length) return close(text, at, items, brackets, depth);
  items.push(sign);
  return at + 1;
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

// Spaces before a line break are not shown.
function trimBreak(items, made) {
  const before = items.at(-1);
  if (made.nodeName === "BR" && typeof before === "string") items[items.length - 1] = before.trimEnd();
}

const spaced = (code) => {
  const line = code.replaceAll("\n", " ");
  return /^ .*[^ ].* $/.test(line) ? line.slice(1, -1) : line;
};

// Prices are not formulas: "$5 and $6" has a digit first and no operator.
const mathematical = (text) => !/^\d/.test(text) || /[\\^_=+*/<>]/.test(text);

function entity(name) {
  if (name[0] !== "#") return ENTITIES[name] ?? null;
  const code = /^#x/i.test(name) ? parseInt(name.slice(2), 16) : parseInt(name.slice(1), 10);
  return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : "\ufffd";
}

// -- links

// Return where a link leads when that is harmless, else null.
export function destination(href) {
  try {
    const url = new URL(href);
    return SAFE.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function link(href, children) {
  const target = destination(href);
  if (!target) return null;
  return h("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

function bare(text) {
  let href = text;
  for (const [punctuation, round, square] = CLOSING; ;) {
    const before = href;
    href = href.replace(punctuation, "");
    if (round.test(href) && !href.includes("(")) href = href.slice(0, -1);
    if (square.test(href) && !href.includes("[")) href = href.slice(0, -1);
    if (href === before) break;
  }
  const node = link(href, [href]);
  return node && { node, taken: href.length };
}

function open(text, at, items, brackets) {
  const sign = text[at] === "!" ? "![" : "[";
  brackets.push({ index: items.length, image: sign === "![" });
  items.push(sign);
  return at + sign.length;
}

function close(text, at, items, brackets, depth) {
  const bracket = brackets.pop();
  const match = depth < DEEPEST && matchAt(DESTINATION, text, at + 1);
  if (!match) {
    items.push("]");
    return at + 1;
  }
  const inside = items.splice(bracket.index).slice(1);
  const href = (match[1] ?? match[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1");
  items.push(linked(href, inside, bracket.image));
  return at + 1 + match[0].length;
}

// Pictures are not loaded from other hosts: that would tell them who reads. A link shows them to who wants to.
function linked(href, inside, image) {
  const content = emphasize(inside);
  const mark = image ? ["🖼 "] : [];
  const label = content.textContent ? [content] : [href];
  return link(href, [...mark, ...label]) ?? h("span", {}, ...mark, content, ` (${href})`);
}

// -- emphasis

function run(text, at, items) {
  const sign = text[at];
  let end = at;
  while (text[end] === sign) end += 1;
  const before = lastCharacter(text, at);
  const after = end < text.length ? String.fromCodePoint(text.codePointAt(end)) : "";
  const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before) || CJK.test(before));
  const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after) || CJK.test(after));
  const wordy = sign === "_" && left && right; // snake_case is a word
  const opens = left && (!wordy || PUNCTUATION.test(before));
  const closes = right && (!wordy || PUNCTUATION.test(after));
  items.push({ sign, count: end - at, size: end - at, opens, closes });
  return end;
}

function lastCharacter(text, at) {
  if (!at) return "";
  const low = text.charCodeAt(at - 1);
  return low >= 0xdc00 && low <= 0xdfff ? text.slice(at - 2, at) : text[at - 1];
}

const isRun = (item) => typeof item === "object" && "sign" in item;

// Wrap what stands between matching runs; what is left of the runs is text.
function emphasize(items) {
  let at = 0;
  while (at < items.length) {
    const closer = items[at];
    const opener = isRun(closer) && closer.closes && closer.count ? opening(items, at) : -1;
    if (opener < 0) at += 1;
    else at = wrap(items, opener, at);
  }
  const fragment = document.createDocumentFragment();
  fragment.append(...items.map((item) => (isRun(item) ? item.sign.repeat(item.count) : item)));
  return fragment;
}

const FARTHEST = 400; // items to look back for an opener: no text makes this slow

function opening(items, at) {
  const closer = items[at];
  for (let back = at - 1; back >= 0 && back >= at - FARTHEST; back -= 1) {
    const opener = items[back];
    if (isRun(opener) && opener.sign === closer.sign && opener.opens && opener.count && fits(opener, closer)) return back;
  }
  return -1;
}

function fits(opener, closer) {
  if (closer.sign === "~") return opener.count === closer.count && closer.count <= 2;
  const both = (opener.closes || closer.opens) && (opener.size + closer.size) % 3 === 0;
  return !both || (opener.size % 3 === 0 && closer.size % 3 === 0);
}

// Return where to go on: at the closer again, while it has signs left.
function wrap(items, from, to) {
  const opener = items[from];
  const closer = items[to];
  const used = closer.sign === "~" ? closer.count : Math.min(opener.count, closer.count, 2);
  const tag = closer.sign === "~" ? "del" : used === 2 ? "strong" : "em";
  const inside = items.splice(from + 1, to - from - 1);
  const texts = inside.map((item) => (isRun(item) ? item.sign.repeat(item.count) : item));
  opener.count -= used;
  closer.count -= used;
  items.splice(from + 1, 0, h(tag, {}, ...texts));
  return from + 2;
}
