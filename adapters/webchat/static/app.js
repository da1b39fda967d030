// The page: what happens when the person or the bot does something.

import { embedded, enter, history, post, Refusal } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { Assembler } from "./frames.js";
import { remember } from "./memory.js";
import { Outbox } from "./outbox.js";
import { Scroll } from "./scroll.js";
import { Stream } from "./stream.js";
import { language, say, setLanguage, translate } from "./texts.js";

// Commands the page knows by all their names; they are not shown as messages.
const COMMANDS = {
  "/stop": "stop", "/停止": "stop", "/停": "stop",
  "/retry": "retry", "/重试": "retry",
  "/reset": "reset", "/new": "reset", "/clear": "reset", "/重置": "reset", "/清空": "reset", "/新对话": "reset",
};
const WAIT = 20_000; // ms the dots show without another sign of the bot; it gives one every 5 s while it works

const $ = (id) => document.getElementById(id);
const conversation = new Conversation($("messages"), $("announcer"));
const scroll = new Scroll($("pane"), $("content"), $("jump"));
const composer = new Composer($("composer"), submit);
const outbox = new Outbox();
const assembler = new Assembler();
const stream = new Stream(onFrame, onConnection);

const commands = new Map(); // message id -> command
const gone = new Set(); // ids of messages and answers before a new conversation
const settled = new Set(); // ids of messages that the history holds, with their answers
const posting = new Map(); // message id -> how far it came: ["sending"], or ["failed", code]
let waiting = 0; // timer of the dots
let queue = null; // frames that come while the history is loaded

// -- to the bot

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function submit(text) {
  const name = COMMANDS[text.toLowerCase().replace("／", "/")];
  if (name) return order(name);
  const id = newId();
  outbox.put(id, text, conversation.count(text));
  conversation.question(id, text);
  return deliver(id, text);
}

// Post a message. The same id may be posted again and again: the bot answers it once.
async function deliver(id, text) {
  progress(id, "sending");
  refresh();
  scroll.toEnd(true);
  try {
    await post({ id, text, locale: language() });
    delivered(id);
  } catch (error) {
    failed(error, () => progress(id, "failed", error.code));
  }
}

function progress(id, ...state) {
  posting.set(id, state);
  conversation.get(id)?.mark(...state);
}

function delivered(id) {
  outbox.sent(id);
  const question = conversation.get(id);
  if (question?.node.dataset.state !== "sending") return; // its answer, or a new conversation, was faster
  question.mark("sent");
  if (!conversation.growing) setWaiting(true);
}

// Post a command. Returns whether it was taken.
async function order(name) {
  const id = newId();
  commands.set(id, name);
  try {
    if (name === "reset" && busy()) await post({ id: quiet("stop"), text: "/stop", locale: language() });
    await post({ id, text: `/${name}`, locale: language() });
  } catch (error) {
    return failed(error, () => conversation.note(say(error.code), true));
  }
  return obeyed(name);
}

function quiet(name) {
  const id = newId();
  commands.set(id, name);
  gone.add(id);
  return id;
}

function failed(error, tell) {
  if (!(error instanceof Refusal)) throw error;
  tell();
  refresh();
  return false;
}

// What a command means for the page, also when it was given in another tab.
function obeyed(name) {
  if (name === "reset") forget();
  if (name === "retry") again();
  return true;
}

function forget() {
  const ids = [...conversation.ids, ...outbox.all.map((one) => one.id)];
  ids.forEach((id) => gone.add(id));
  outbox.drop(ids);
  conversation.clear();
  conversation.announce(say("cleared"));
  setWaiting(false);
  composer.focus();
}

function again() {
  conversation.removeLastAnswer();
  setWaiting(true);
  scroll.toEnd(true);
}

// -- from the bot

const FRAMES = { hello: load, typing: () => setWaiting(true), question: onQuestion, answer: onAnswer };

function onFrame(frame) {
  if (queue && frame.type !== "hello") queue.push(frame);
  else FRAMES[frame.type]?.(frame);
}

// A message of the visitor, from this tab or another one.
function onQuestion(frame) {
  const text = assembler.take({ ...frame, last: true });
  const command = COMMANDS[text?.trim().toLowerCase()];
  if (text === null || [conversation, commands, gone, settled].some((known) => known.has(frame.id))) return;
  if (command) {
    commands.set(frame.id, command);
    obeyed(command);
  } else {
    conversation.question(frame.id, text).mark("sent");
    setWaiting(true);
  }
}

function onAnswer(frame) {
  const text = assembler.take(frame);
  if (text === null || gone.has(frame.id) || gone.has(frame.to)) return;
  if (settled.has(frame.to) && !frame.failure) {
    setWaiting(false);
    return;
  }
  const command = commands.get(frame.to);
  if (command === "stop" || command === "reset") replied(command, text, frame);
  else grow(text, frame);
}

// The bot's own sentence about a command is a note; about a new conversation the empty page says enough.
function replied(command, text, frame) {
  if (!frame.last) return;
  gone.add(frame.id);
  if (command === "stop") conversation.growing?.end();
  if (command === "stop" || frame.failure) conversation.note(text, Boolean(frame.failure));
  setWaiting(false);
}

function grow(text, { id, last, failure, to }) {
  if (!conversation.has(id)) settle();
  if (commands.get(to) === "retry") {
    conversation.removeLastAnswer(); // once more: a reload of the history may have brought it back
    commands.delete(to);
  }
  setWaiting(false);
  conversation.answer(id, text, { last, failure });
  if (last) outbox.answered(to);
  refresh();
}

// An answer begins: its questions need no mark any more.
function settle() {
  for (const node of document.querySelectorAll(".question:is([data-state=sent], [data-state=sending])")) {
    conversation.get(node.dataset.id).mark("");
  }
}

// -- the history, at the beginning and after a lost connection

async function load() {
  queue ??= [];
  let turns;
  try {
    turns = await history();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    turns = null; // the view stays as it is
  }
  const frames = queue;
  queue = null;
  if (turns) show(turns);
  frames?.forEach(onFrame);
  refresh();
}

function show(turns) {
  const growing = conversation.growing;
  if (!upToDate(turns)) {
    conversation.clear();
    turns.forEach(({ role, text }, index) => past(role, text, `past-${index}`));
  }
  setWaiting(false);
  unanswered(turns);
  const finished = growing && turns.at(-1)?.role === "assistant" && turns.at(-1).text.startsWith(growing.text.trimEnd());
  if (growing && !finished && !conversation.has(growing.node.dataset.id)) {
    settle();
    setWaiting(false);
    conversation.answer(growing.node.dataset.id, growing.text);
  }
  scroll.toEnd();
}

// Whether the page shows these turns already, so that it need not be made again.
function upToDate(turns) {
  const texts = conversation.ids.map((id) => conversation.get(id).text.trim());
  return turns.length > 0 && !conversation.growing && texts.slice(-turns.length).join("\0") === turns.map((turn) => turn.text.trim()).join("\0");
}

function past(role, text, id) {
  if (role === "user") conversation.question(id, text);
  else conversation.answer(id, text, { last: true, silent: true });
}

// Show messages that are not in the history: they wait for their answer, or never left this page.
function unanswered(turns) {
  const asked = (text) => turns.filter((turn) => turn.role === "user" && turn.text.trim() === text.trim()).length;
  for (const { id, text, sent, same } of outbox.all) {
    if (asked(text) > same) {
      settled.add(id);
      outbox.drop([id]);
      continue;
    }
    if (!conversation.has(id)) conversation.question(id, text).mark(...(sent ? ["sent"] : posting.get(id) ?? ["failed"]));
    if (sent) setWaiting(true);
  }
}

// -- the state of the page

const busy = () => Boolean(waiting || conversation.growing);

function setWaiting(yes) {
  clearTimeout(waiting);
  waiting = yes ? setTimeout(() => setWaiting(false), WAIT) : 0;
  conversation.waiting = yes;
  refresh();
}

function refresh() {
  $("welcome").hidden = !conversation.empty;
  document.body.classList.toggle("busy", busy());
}

function onConnection(state) {
  const texts = { open: "", lost: navigator.onLine ? "reconnecting" : "offline" };
  notice(texts[state] ?? state);
}

function notice(key) {
  const node = $("notice");
  if (key) node.dataset.say = key;
  else delete node.dataset.say;
  node.textContent = key ? say(key) : "";
}

// -- the person

const ACTIONS = {
  new: () => (conversation.empty ? composer.focus() : $("confirm").showModal()),
  cancel: () => $("confirm").close(),
  confirm: () => {
    $("confirm").close();
    order("reset");
  },
  language: () => {
    setLanguage(language() === "zh" ? "en" : "zh");
    speak();
  },
  theme: () => {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    remember("theme", root.dataset.theme);
  },
  close: () => parent.postMessage("magpie:close", "*"),
  suggest: (node) => {
    submit(node.textContent);
    composer.focus();
  },
  stop: () => order("stop"),
  retry: () => order("retry"),
  resend: (node) => {
    const { id } = node.closest(".question").dataset;
    deliver(id, conversation.get(id).text);
  },
  copy: (node) => copy(node, conversation.get(node.closest(".answer").dataset.id).text.trim()),
  "copy-code": (node) => copy(node, node.closest(".code").querySelector("code").textContent),
};

document.addEventListener("click", (event) => {
  const node = event.target.closest("[data-action]");
  if (node) ACTIONS[node.dataset.action](node);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || $("confirm").open) return;
  if (busy()) order("stop");
  else if (embedded) ACTIONS.close();
});

async function copy(node, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // plain http, or a frame without the permission
    copyBySelection(text);
  }
  node.classList.add("done");
  conversation.announce(say("copied"));
  setTimeout(() => node.classList.remove("done"), 1500);
}

function copyBySelection(text) {
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

function speak() {
  document.documentElement.lang = language() === "zh" ? "zh-Hans" : "en";
  translate(document);
  const greeting = $("greeting");
  greeting.textContent = greeting.dataset.own || say("greeting");
}

async function begin() {
  document.body.classList.toggle("embedded", embedded);
  document.querySelector("[data-action=close]").hidden = !embedded;
  speak();
  if (matchMedia("(pointer: fine)").matches) composer.focus();
  for (;;) {
    try {
      if (await enter()) outbox.drop(outbox.all.filter((one) => one.sent).map((one) => one.id)); // another visitor's
      break;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      notice(error.code);
      await new Promise((resolve) => setTimeout(resolve, (error.wait || 5) * 1000));
    }
  }
  notice("");
  if (embedded) parent.postMessage("magpie:ready", "*");
  await stream.run();
}

begin();
