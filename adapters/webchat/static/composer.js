// Where people write: grows with the text, keeps the draft, sends with Enter but not within an input method.

import { recall, remember } from "./memory.js";

export class Composer {
  #input;
  #form;
  #onSend;

  constructor(form, onSend) {
    this.#form = form;
    this.#onSend = onSend;
    this.#input = form.querySelector("textarea");
    this.#input.value ||= recall("draft") ?? ""; // who typed while the page was loading goes on
    this.#input.addEventListener("input", () => this.#changed());
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.#changed();
  }

  get empty() {
    return !this.#input.value.trim();
  }

  submit() {
    const text = this.#input.value.trim();
    if (!text) return;
    this.#input.value = "";
    this.#changed();
    this.#onSend(text);
  }

  focus() {
    this.#input.focus();
  }

  #changed() {
    remember("draft", this.#input.value);
    this.#input.style.height = "auto";
    this.#input.style.height = `${this.#input.scrollHeight}px`;
    this.#form.classList.toggle("empty", this.empty);
  }

  // While an input method composes, Enter chooses a word; Safari says so only by the key code.
  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.submit();
  }
}
