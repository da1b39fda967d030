// Messages without a complete answer yet: what a reload must not lose.

import { recall, remember } from "./memory.js";

export class Outbox {
  // [{id, text, sent}], oldest first
  get all() {
    try {
      return JSON.parse(recall("outbox") ?? "[]");
    } catch {
      return [];
    }
  }

  put(id, text, sent) {
    this.#keep([...this.all.filter((one) => one.id !== id), { id, text, sent }]);
  }

  // The answer to `id` is complete, and with it those to earlier messages. Without an id: to all that were sent.
  answered(id) {
    const index = this.all.findIndex((one) => one.id === id);
    this.#keep(this.all.filter((one, at) => !one.sent || (index >= 0 && at > index)));
  }

  drop(id) {
    this.#keep(this.all.filter((one) => one.id !== id));
  }

  clear() {
    this.#keep([]);
  }

  #keep(list) {
    remember("outbox", list.length ? JSON.stringify(list) : null);
  }
}
