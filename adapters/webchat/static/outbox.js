// Messages without a complete answer yet: what a reload must not lose.

import { recall, remember } from "./memory.js";

const OLD = 15 * 60_000; // ms after which nobody waits for an answer any more

export class Outbox {
  // [{id, text, sent, same, at}], oldest first; `same`: how often the conversation held the same words before
  get all() {
    try {
      return JSON.parse(recall("outbox") ?? "[]").filter(({ sent, at }) => !sent || Date.now() - at < OLD);
    } catch {
      return [];
    }
  }

  put(id, text, same) {
    if (!this.all.some((one) => one.id === id)) this.#keep([...this.all, { id, text, same, sent: false, at: Date.now() }]);
  }

  sent(id) {
    this.#keep(this.all.map((one) => (one.id === id ? { ...one, sent: true, at: Date.now() } : one)));
  }

  // The answer to `id` is complete, and with it those to earlier messages. Without an id: to all that were sent.
  answered(id) {
    const index = this.all.findIndex((one) => one.id === id);
    this.#keep(this.all.filter((one, at) => at !== index && (!one.sent || (index >= 0 && at > index))));
  }

  drop(ids) {
    this.#keep(this.all.filter(({ id }) => !ids.includes(id)));
  }

  #keep(list) {
    remember("outbox", list.length ? JSON.stringify(list) : null);
  }
}
