// Markdown lines -> blocks, as models write them: lenient about indentation, no HTML, no indented code.

const DEEPEST = 12; // quotes and lists within each other

const BLANK = /^\s*$/;
const FENCE = /^(\s*)(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^\s{0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^\s{0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^\s{0,3}>\s?/;
const ITEM = /^(\s*)([-*+•]|\d{1,9}[.)])(\s+|$)(.*)$/;
const ROW = /^\s*\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?\s*)?\s*$|^\s*\|\s*:?-+:?\s*\|?\s*$/;
const MATH = { "$$": "$$", "\\[": "\\]" };

// Return blocks, each with `from` and `to`, the lines it came from.
export function blocks(lines, depth = 0) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (BLANK.test(lines[at])) {
      at += 1;
      continue;
    }
    const [block, end] = read(lines, at, depth);
    found.push({ ...block, from: at, to: end });
    at = end;
  }
  return found;
}

// Readers return [block, the line after it], or null when this is not theirs.
const READERS = [fence, heading, rule, math, quote, list, table];

function read(lines, at, depth) {
  for (const reader of depth < DEEPEST ? READERS : []) {
    const result = reader(lines, at, depth);
    if (result) return result;
  }
  return paragraph(lines, at);
}

function fence(lines, at) {
  const start = FENCE.exec(lines[at]);
  if (!start) return null;
  const [, indent, marks, info] = start;
  const closing = new RegExp(`^\\s*${marks[0] === "`" ? "`" : "~"}{${marks.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const body = lines.slice(at + 1, end).map((line) => unindent(line, indent.length));
  return [{ type: "code", language: info.trim().split(/[\s{,:]/)[0].toLowerCase(), text: body.join("\n") }, end + 1];
}

function heading(lines, at) {
  const match = HEADING.exec(lines[at]);
  return match && [{ type: "heading", level: match[1].length, text: match[2] ?? "" }, at + 1];
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? [{ type: "rule" }, at + 1] : null;
}

function math(lines, at) {
  const first = lines[at].trim();
  const closing = MATH[first.slice(0, 2)];
  if (!closing) return null;
  let end = at;
  const closes = (line, skip) => line.trimEnd().slice(skip).endsWith(closing);
  while (end < lines.length && !closes(end === at ? first : lines[end], end === at ? 2 : 0)) end += 1;
  if (end === at && first.length < 5) return null;
  const text = lines.slice(at, end + 1).join("\n").trim();
  return [{ type: "math", text: text.slice(2, text.endsWith(closing) ? -2 : undefined).trim() }, end + 1];
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  const body = [];
  let end = at;
  while (end < lines.length && (QUOTE.test(lines[end]) || (body.length && continues(lines, end)))) {
    body.push(lines[end].replace(QUOTE, ""));
    end += 1;
  }
  return [{ type: "quote", children: blocks(body, depth + 1) }, end];
}

// -- lists

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let loose = false;
  let end = at;
  while (end < lines.length) {
    const match = ITEM.exec(lines[end]);
    if (!match || /\d/.test(match[2]) !== ordered || RULE.test(lines[end])) break;
    const [body, next] = itemLines(lines, end, match);
    loose ||= body.some((line, index) => BLANK.test(line) && index && !BLANK.test(body[index + 1] ?? ""));
    items.push(item(body, depth));
    end = next;
    const following = skipBlank(lines, end);
    if (following === end || following >= lines.length || !ITEM.test(lines[following])) continue;
    const again = ITEM.exec(lines[following]);
    if (/\d/.test(again[2]) !== ordered) break;
    loose = true;
    end = following;
  }
  const start = ordered ? parseInt(first[2], 10) : 0;
  return [{ type: "list", ordered, start, loose, items }, end];
}

// The lines of one item without their indentation: those two deeper than its mark, and lazy ones.
function itemLines(lines, at, [, indent, mark, gap, text]) {
  const content = indent.length + mark.length + Math.min(gap.length || 1, 4);
  const deep = indent.length + 2;
  const body = [text];
  let end = at + 1;
  while (end < lines.length) {
    const line = lines[end];
    const following = skipBlank(lines, end);
    if (following >= lines.length) break;
    if (width(lines[following]) < deep && (following !== end || !lazy(lines, end))) break;
    body.push(unindent(line, content));
    end += 1;
  }
  return [body, end];
}

// A line that goes on with an item's paragraph although it is not indented.
const lazy = (lines, at) => !BLANK.test(lines[at - 1]) && !ITEM.test(lines[at]) && continues(lines, at);

function item(body, depth) {
  const task = /^\[([ xX])\]\s+(.*)$/.exec(body[0]);
  const lines = task ? [task[2], ...body.slice(1)] : body;
  return { task: task ? task[1] !== " " : null, children: blocks(lines, depth + 1) };
}

function skipBlank(lines, at) {
  let next = at;
  while (next < lines.length && BLANK.test(lines[next])) next += 1;
  return next;
}

const width = (line) => line.length - line.trimStart().length;
const unindent = (line, columns) => line.slice(Math.min(columns, width(line)));

// -- tables

function table(lines, at) {
  if (!lines[at].includes("|") || !ROW.test(lines[at + 1] ?? "")) return null;
  const head = cells(lines[at]);
  const rule = cells(lines[at + 1]);
  if (head.length !== rule.length) return null;
  const align = rule.map((cell) => ({ "::": "center", ":": "left", "-:": "right" })[ends(cell)] ?? null);
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !BLANK.test(lines[end])) {
    const row = cells(lines[end]);
    rows.push(head.map((_, column) => row[column] ?? ""));
    end += 1;
  }
  return [{ type: "table", head, align, rows }, end];
}

const ends = (cell) => (cell[0] === ":" ? ":" : cell.endsWith(":") ? "-" : "") + (cell.endsWith(":") ? ":" : "");

// Split a row at its bars, except those in code or behind a backslash.
function cells(line) {
  const found = [""];
  for (const part of line.trim().match(/\\\||`[^`]*`|\||[^|`\\]+|[^]/g) ?? []) {
    if (part === "|") found.push("");
    else found[found.length - 1] += part.replace(/\\\|/g, "|");
  }
  if (!found[0].trim()) found.shift();
  if (found.length && !found.at(-1).trim()) found.pop();
  return found.map((cell) => cell.trim());
}

// -- paragraphs

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && continues(lines, end)) end += 1;
  return [{ type: "paragraph", text: lines.slice(at, end).map((line) => line.trimStart()).join("\n").trimEnd() }, end];
}

// Whether a line goes on with the paragraph above it.
function continues(lines, at) {
  const line = lines[at];
  if (BLANK.test(line) || HEADING.test(line) || FENCE.test(line) || QUOTE.test(line) || RULE.test(line)) return false;
  if (line.trimStart().slice(0, 2) in MATH) return false;
  const item = ITEM.exec(line);
  return !(item && item[4] && (/\D/.test(item[2][0]) || /^1\D/.test(item[2]))) && !table(lines, at);
}
