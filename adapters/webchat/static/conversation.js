// What was said, on the page: questions, answers that grow, notes.

import { button, h, icon, said } from "./dom.js";
import { Growing } from "./markdown.js";
import { known } from "./texts.js";

const CALM = 4; // a slow rendering is followed by a pause this many times as long, so that the page stays usable

export class Conversation {
  #list;
  #announcer;
  #entries = new Map(); // id -> Question | Answer, in the order shown
  #dots = dots();

  constructor(list, announcer) {
    this.#list = list;
    this.#announcer = announcer;
  }

  get empty() {
    return !this.#list.childElementCount;
  }

  get(id) {
    return this.#entries.get(id);
  }

  has(id) {
    return this.#entries.has(id);
  }

  get ids() {
    return [...this.#entries.keys()];
  }

  // How often a question was asked in the same words.
  count(text) {
    return [...this.#entries.values()].filter((entry) => entry instanceof Question && entry.text.trim() === text.trim()).length;
  }

  // The answer that is being written, if any.
  get growing() {
    return [...this.#entries.values()].findLast((entry) => entry instanceof Answer && !entry.done);
  }

  question(id, text) {
    return this.#add(id, new Question(id, text));
  }

  // Show what there is of an answer; one from the history is `silent`.
  answer(id, text, { last = false, failure = "", silent = false } = {}) {
    const entry = this.#entries.get(id) ?? this.#addAnswer(id);
    entry.show(text, last, failure);
    if (last && !silent) this.announce(entry.words);
  }

  // A line between messages, such as "Stopped."
  note(text, failure = false) {
    this.#append(h("li", { class: failure ? "note failure" : "note", dir: "auto" }, text));
    this.announce(text);
  }

  // Remove what answers the last question; it may be of several parts.
  removeLastAnswer() {
    for (const [id, entry] of [...this.#entries].reverse()) {
      if (!(entry instanceof Answer)) break;
      entry.node.remove();
      this.#entries.delete(id);
    }
    this.#markLast();
  }

  clear() {
    this.#entries.clear();
    this.#list.replaceChildren();
  }

  set waiting(yes) {
    if (yes) this.#list.append(this.#dots);
    else this.#dots.remove();
  }

  // Tell those who cannot see the page; only finished texts, never one that grows.
  announce(text) {
    this.#announcer.append(h("p", {}, text));
    while (this.#announcer.childElementCount > 3) this.#announcer.firstChild.remove();
  }

  #add(id, entry) {
    this.#entries.set(id, entry);
    this.#append(entry.node);
    return entry;
  }

  #addAnswer(id) {
    const entry = this.#add(id, new Answer(id));
    this.#markLast();
    return entry;
  }

  #append(node) {
    this.#list.append(node);
    if (this.#dots.isConnected) this.#list.append(this.#dots);
  }

  #markLast() {
    const last = [...this.#entries.values()].findLast((entry) => entry instanceof Answer)?.node;
    for (const node of this.#list.querySelectorAll(".answer.last")) node.classList.toggle("last", node === last);
    last?.classList.add("last");
  }
}

class Question {
  #status = h("div", { class: "status" });

  constructor(id, text) {
    this.text = text;
    this.node = h(
      "li",
      { class: "question", dataset: { id } },
      said("span", "you", { class: "unseen" }),
      h("div", { class: "bubble", dir: "auto" }, text),
      this.#status,
    );
  }

  // "sending", "sent", "failed" (with the code of a refusal) or "" when it needs no mark any more.
  mark(state, code = "") {
    this.node.dataset.state = state;
    const failed = state === "failed";
    const reason = known(code) ? [" ", said("span", code)] : [];
    const again = failed ? [" ", said("button", "again", { type: "button", "data-action": "resend" })] : [];
    this.#status.replaceChildren(...(state ? [said("span", state), ...(failed ? reason : []), ...again] : []));
    this.#status.setAttribute("role", failed ? "alert" : "none");
  }
}

class Answer {
  #body = h("div", { class: "body" });
  #growing = new Growing(this.#body);
  #text = "";
  #drawing = false;
  #cost = 0; // ms the last rendering took

  constructor(id) {
    const copy = button("copy", "copyAnswer", icon("copy"));
    const retry = button("retry", "retry", icon("retry"));
    this.done = false;
    this.node = h(
      "li",
      { class: "answer growing", dataset: { id } },
      said("span", "bot", { class: "unseen" }),
      this.#body,
      h("div", { class: "actions" }, copy, retry),
    );
  }

  get text() {
    return this.#text;
  }

  get words() {
    return this.#body.innerText;
  }

  show(text, last, failure) {
    this.#text = text;
    this.done = last;
    this.node.classList.toggle("growing", !last);
    this.node.classList.toggle("failure", Boolean(failure));
    if (last) this.#draw();
    else this.#soon();
  }

  // Nothing more will come, for whatever reason.
  end() {
    this.show(this.#text, true, "");
  }

  #soon() {
    if (this.#drawing) return;
    this.#drawing = true;
    setTimeout(() => requestAnimationFrame(() => this.#draw()), this.#cost * CALM);
  }

  #draw() {
    const begun = performance.now();
    this.#drawing = false;
    this.#growing.update(this.#text);
    this.#cost = performance.now() - begun;
  }
}

function dots() {
  const three = h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
  return h("li", { class: "waiting" }, three, said("span", "writing", { class: "unseen" }));
}

