// Every word of the page, in English and Chinese.

import { recall, remember } from "./memory.js";

const TEXTS = {
  greeting: ["Hello! What is on your mind?", "你好！想聊点什么？"],
  hint: ["Ask anything, or begin with one of these.", "随便问，或者从下面的话题开始。"],
  suggestion1: ["What can you do?", "你能做什么？"],
  suggestion2: ["Compare three ways to learn a language, in a table", "用表格比较三种学外语的方法"],
  suggestion3: ["Write a Python function that finds duplicate files", "写一个查找重复文件的 Python 函数"],
  suggestion4: ["Plan a quiet weekend in the mountains", "帮我安排一个安静的山里周末"],
  placeholder: ["Write a message", "写点什么"],
  input: ["Message", "消息"],
  conversation: ["Conversation", "对话"],
  send: ["Send", "发送"],
  stop: ["Stop the answer (Esc)", "停止回答（Esc）"],
  latest: ["Jump to the latest message", "跳到最新消息"],
  new: ["New conversation", "新对话"],
  newQuestion: ["Begin a new conversation?", "开始新的对话？"],
  newExplained: ["The bot forgets what was said here, and this page is cleared.", "机器人会忘掉这里说过的话，页面也会清空。"],
  newYes: ["Begin afresh", "重新开始"],
  cancel: ["Cancel", "取消"],
  cleared: ["A new conversation begins here.", "新的对话开始了。"],
  theme: ["Light or dark", "切换明暗"],
  otherLanguage: ["切换到中文", "Switch to English"],
  otherLanguageShort: ["中", "EN"],
  close: ["Close the chat", "关闭对话"],
  you: ["You said", "你说"],
  bot: ["Answer", "回答"],
  writing: ["An answer is being written", "正在写回答"],
  sending: ["Sending…", "发送中…"],
  sent: ["Sent", "已发送"],
  failed: ["Not sent.", "没有发出去。"],
  again: ["Try again", "重试"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  copyAnswer: ["Copy the answer", "复制回答"],
  copyCode: ["Copy the code", "复制代码"],
  retry: ["Answer again", "重新回答"],
  table: ["Table", "表格"],
  code: ["Code", "代码"],
  offline: ["You are offline. Messages are kept here.", "网络已断开，消息会先保留在这里。"],
  reconnecting: ["The connection was lost; connecting again…", "连接中断，正在重新连接…"],
  // refusals, by code
  bad_request: ["The bot did not accept this message.", "机器人没有接受这条消息。"],
  unauthorized: ["Your session has ended. Please reload the page.", "会话已失效，请刷新页面。"],
  forbidden: ["This site may not use the chat.", "该网站不能使用这个聊天。"],
  origin_not_allowed: ["This site may not use the chat.", "该网站不能使用这个聊天。"],
  too_large: ["The message is too long.", "消息太长了。"],
  message_too_long: ["The message is too long; 8,000 characters fit.", "消息太长了，最多 8000 个字符。"],
  too_many_messages: ["That was a lot at once. Please wait a minute.", "消息太快啦，请过一分钟再发。"],
  too_many_visitors: ["Too many new visitors from your network. Please come back later.", "你所在的网络新访客太多，请稍后再来。"],
  too_many_streams: ["The chat is open in too many tabs. Close one and reload.", "打开的页面太多了，请关掉一个再刷新。"],
  unreachable: ["The bot cannot be reached.", "连不上机器人。"],
  unavailable: ["The bot cannot take messages at the moment.", "机器人暂时无法接收消息。"],
};

let chosen = recall("language") ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

export const language = () => chosen;
export const known = (key) => key in TEXTS;
export const say = (key) => TEXTS[key][chosen === "zh" ? 1 : 0];

export function setLanguage(value) {
  chosen = value;
  remember("language", value);
}

// Fill in data-say (text) and data-label (accessible name and tooltip) below an element.
export function translate(root) {
  for (const node of root.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of root.querySelectorAll("[data-label]")) label(node, say(node.dataset.label));
  for (const node of root.querySelectorAll("[data-placeholder]")) node.placeholder = say(node.dataset.placeholder);
}

function label(node, text) {
  node.setAttribute("aria-label", text);
  if (node.matches("button")) node.title = text;
}
