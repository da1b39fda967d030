// The bot's side of the wire: session, history, messages, events. Failures are Refusals with a code for texts.js.

import { recall, remember } from "./memory.js";
import { known } from "./texts.js";

const BASE = new URL(".", import.meta.url).href;
const SILENCE = 50_000; // ms without a sign of life after which a stream is given up; the server says something every 20 s
const PATIENCE = 20_000; // ms for an answer to everything else

export const embedded = new URLSearchParams(location.search).has("embed");

export class Refusal extends Error {
  constructor(code, status = 0, wait = 0) {
    super(code);
    this.code = known(code) ? code : status >= 500 ? "unavailable" : "bad_request";
    this.status = status;
    this.wait = wait; // seconds
  }
}

let token = embedded ? recall("token") : null; // only where the browser keeps our cookie from us

async function call(path, { method = "GET", body, signal = AbortSignal.timeout(PATIENCE), auth = token } = {}) {
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(auth && { Authorization: `Bearer ${auth}` }) };
  const url = path ? BASE + path : BASE.slice(0, -1);
  let answer;
  try {
    answer = await fetch(url, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch {
    throw new Refusal("unreachable");
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Refusal(problem.error?.code, answer.status, Number(answer.headers.get("Retry-After")) || 0);
}

let entering = null;

// Become a visitor, or stay the one we are. Returns whether we are new. Everything else waits for it.
export function enter() {
  entering ??= session().finally(() => (entering = null));
  return entering;
}

async function session() {
  const given = await (await call("session", { method: "POST", body: { embed: embedded } })).json();
  if (given.token && !(await cookieWorks())) {
    token = given.token;
    remember("token", token);
  }
  return given.new;
}

const cookieWorks = async () => (await (await call("session", { auth: null })).json()).known;

// Run a call; when the session has run out, begin a new one and try once more.
async function asVisitor(run) {
  try {
    await entering;
    return await run();
  } catch (error) {
    if (error.status !== 401) throw error;
    token = null;
    remember("token", null);
    await enter();
    return run();
  }
}

export const history = () => asVisitor(async () => (await (await call("history")).json()).turns);

export const post = (message) => asVisitor(() => call("", { method: "POST", body: message }));

// Yield the events of one connection, until it ends or breaks. `controller` ends it; so does silence.
export async function* events(controller) {
  let timer = setTimeout(() => controller.abort(), SILENCE);
  try {
    const answer = await asVisitor(() => call("events", { signal: controller.signal }));
    for await (const block of blocksOf(answer.body)) {
      clearTimeout(timer);
      timer = setTimeout(() => controller.abort(), SILENCE);
      if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
    }
  } finally {
    clearTimeout(timer);
  }
}

// Events end with an empty line; comments (": still here") come through as blocks of their own.
async function* blocksOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true })); // cut off: the same as ended
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      yield* parts;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
