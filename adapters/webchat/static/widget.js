// Shows the chat in a corner of another site:
//   <script src="https://bot.example.com/webhooks/webchat/widget.js" async></script>
// The site must be named in WEBCHAT_ALLOWED_ORIGINS. Styles are set through the CSSOM, which a strict policy allows.
"use strict";
(() => {
  const base = new URL(".", document.currentScript.src).href;
  const bot = new URL(base).origin;
  const chinese = navigator.language.toLowerCase().startsWith("zh");
  const words = chinese ? { open: "打开对话", close: "关闭对话", title: "对话" } : { open: "Open the chat", close: "Close the chat", title: "Chat" };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const small = matchMedia("(max-width: 480px)");

  const BUTTON = {
    position: "fixed", right: "max(20px, env(safe-area-inset-right))", bottom: "max(20px, env(safe-area-inset-bottom))",
    width: "60px", height: "60px", padding: "0", border: "0", borderRadius: "50%", overflow: "hidden", cursor: "pointer",
    background: "#eaf2f6", boxShadow: "0 2px 6px #0003, 0 8px 28px #0003", zIndex: "2147483000",
  };
  const FRAME = {
    position: "fixed", border: "0", background: "transparent", colorScheme: "normal", zIndex: "2147483001",
    boxShadow: "0 2px 8px #0002, 0 16px 48px #0004", transition: still ? "none" : "opacity .18s, transform .18s",
  };
  const CORNER = { inset: "auto 20px 92px auto", width: "400px", height: "min(680px, calc(100dvh - 112px))", borderRadius: "18px" };
  const WHOLE = { inset: "0", width: "100%", height: "100%", borderRadius: "0" };

  const button = document.createElement("button");
  let frame = null;

  function start() {
    button.type = "button";
    Object.assign(button.style, BUTTON);
    const mark = document.createElement("img");
    mark.src = `${base}favicon.svg`;
    mark.alt = "";
    Object.assign(mark.style, { width: "60px", height: "60px", display: "block" });
    button.append(mark);
    button.addEventListener("click", () => show(!shown()));
    window.addEventListener("message", (event) => {
      if (event.origin === bot && event.source === frame?.contentWindow && event.data === "magpie:close") show(false);
    });
    small.addEventListener("change", place);
    document.body.append(button);
    label();
  }

  const shown = () => frame !== null && frame.style.visibility !== "hidden";

  function show(yes) {
    frame ??= makeFrame();
    Object.assign(frame.style, { visibility: yes ? "visible" : "hidden", opacity: yes ? "1" : "0", transform: yes ? "none" : "translateY(8px)" });
    label();
    if (yes) frame.focus();
    else button.focus();
  }

  function makeFrame() {
    const made = document.createElement("iframe");
    made.src = `${base}page?embed=1`;
    made.title = words.title;
    made.allow = "clipboard-write";
    made.referrerPolicy = "origin";
    Object.assign(made.style, FRAME);
    frame = made;
    place();
    document.body.append(made);
    return made;
  }

  function place() {
    if (frame) Object.assign(frame.style, small.matches ? WHOLE : CORNER);
  }

  function label() {
    button.setAttribute("aria-label", shown() ? words.close : words.open);
    button.setAttribute("aria-expanded", String(shown()));
  }

  // The server decides; a site that is not allowed gets no button rather than an empty frame.
  async function allowed() {
    try {
      return (await fetch(`${base}embed`, { credentials: "omit" })).ok;
    } catch {
      return false;
    }
  }

  allowed().then((yes) => {
    if (!yes) console.warn(`Magpie: ${location.origin} is not in WEBCHAT_ALLOWED_ORIGINS of ${bot}`);
    else if (document.body) start();
    else document.addEventListener("DOMContentLoaded", start);
  });
})();
