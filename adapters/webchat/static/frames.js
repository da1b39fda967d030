// Puts the pieces of texts together again; the other end is frames.py.

export class Assembler {
  #texts = new Map(); // id -> {text, count}; count in code points, as the server counts

  // Return the whole text after this frame, null while some of it is missing.
  take({ id, at = 0, text = "", more = false, last = false }) {
    const known = this.#texts.get(id) ?? { text: "", count: 0 };
    if (at > known.count) return null;
    const whole = dropEnd(known.text, known.count - at) + text;
    if (last && !more) this.#texts.delete(id);
    else this.#texts.set(id, { text: whole, count: at + points(text) });
    return more ? null : whole;
  }
}

const isLow = (text, at) => (text.charCodeAt(at) & 0xfc00) === 0xdc00;
const isHigh = (text, at) => (text.charCodeAt(at) & 0xfc00) === 0xd800;

function points(text) {
  let count = text.length;
  for (let at = 1; at < text.length; at += 1) if (isLow(text, at) && isHigh(text, at - 1)) count -= 1;
  return count;
}

function dropEnd(text, count) {
  let end = text.length;
  for (let left = count; left > 0; left -= 1) end -= end > 1 && isLow(text, end - 1) && isHigh(text, end - 2) ? 2 : 1;
  return text.slice(0, end);
}
