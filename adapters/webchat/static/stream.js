// Keeps the stream of events open: connects again with growing gaps, rests while nobody looks at the page.

import { events, Refusal } from "./api.js";

const GAPS = [500, 1000, 2000, 4000, 8000, 15_000]; // ms
const REST = 60_000; // ms after which a hidden page lets go of its connection: browsers allow few to one host

export class Stream {
  #onEvent;
  #onState;
  #connection = new AbortController();
  #wake = () => {};
  #resting = 0;

  // onEvent(frame); onState("open" | "lost" | the code of a refusal)
  constructor(onEvent, onState) {
    this.#onEvent = onEvent;
    this.#onState = onState;
    document.addEventListener("visibilitychange", () => this.#visibility());
    window.addEventListener("online", () => this.#wake());
    window.addEventListener("offline", () => this.#connection.abort());
  }

  async run() {
    for (let failures = 0; ; failures += 1) {
      if (await this.#listen()) failures = 0;
      const gap = GAPS[Math.min(failures, GAPS.length - 1)];
      await this.#pause(document.hidden ? Infinity : gap * (0.75 + Math.random() / 2));
    }
  }

  // Returns whether there was a connection.
  async #listen() {
    this.#connection = new AbortController();
    let opened = false;
    let state = "lost";
    try {
      for await (const frame of events(this.#connection)) {
        if (!opened) this.#onState("open");
        opened = true;
        this.#onEvent(frame);
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status) state = error.code;
    }
    if (!document.hidden) this.#onState(state);
    return opened;
  }

  #visibility() {
    clearTimeout(this.#resting);
    if (document.hidden) this.#resting = setTimeout(() => this.#connection.abort(), REST);
    else this.#wake();
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      if (milliseconds !== Infinity) setTimeout(resolve, milliseconds);
    });
  }
}
