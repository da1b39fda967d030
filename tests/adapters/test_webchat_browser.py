"""The web chat in a real Chromium, on the whole bot.

Whatever a test does: no request leaves the host, the page breaks no policy of its own and reports no error.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Route, async_playwright, expect

from adapters.webchat import WebchatAdapter, WebchatSettings
from bot.adapter import Turn
from bot.app import Magpie
from bot.registry import Configured
from bot.testing import ScriptedModel, running
from tests.counterparts import chromium
from tests.process import Process

pytestmark = pytest.mark.asyncio(loop_scope="module")

RICH = """Two ways, compared:

| Method | Good for | Cost |
| :--- | --- | ---: |
| Class | **speaking** | 60 |
| App | `words` | 0 |

```python
def double(number: int) -> int:
    return number * 2  # twice
```

- [x] done
- [ ] open
"""
XSS = """<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>

[click](javascript:window.pwned=1) [data](data:text/html,<script>window.pwned=1</script>) <javascript:window.pwned=1>

![picture](https://evil.example/x.png) ![x](javascript:window.pwned=1) [vb](vbscript:x) [up]( JaVaScRiPt:window.pwned=1)

| <img src=x onerror=window.pwned=1> | b |
|---|---|
| <svg onload=window.pwned=1> | [x](javascript&colon;window.pwned=1) |

```html"><img src=x onerror=window.pwned=1>
<img src=x onerror=window.pwned=1>
```

<iframe srcdoc="<script>parent.pwned=1</script>"></iframe> &lt;script&gt; <a href="javascript:window.pwned=1">x</a>
"""
LONG = "\n\n".join(f"Paragraph {number} about the magpie and its nest in the tall poplar." for number in range(80))


class Bird:
    """A model that says what the question asks for; `gate` holds the second half of some answers back."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.model = ScriptedModel(self.script)

    async def script(self, turns: Sequence[Turn]) -> AsyncIterator[str]:
        question = turns[-1].content
        answers = {"rich": RICH, "xss": XSS, "long": LONG, "rtl": "مرحبا بالعالم\n\nHello world"}
        for word in re.findall(r"\s*\S+\s*", answers.get(question, f"Answer {len(self.model.asked)} to {question}")):
            yield word
        if question.startswith("wait"):
            yield ", first half"
            await self.gate.wait()
            yield ", second half"


class Desk:
    """One person at one page, and the bot behind it."""

    def __init__(self, magpie: Magpie, bird: Bird, page: Page) -> None:
        self.magpie = magpie
        self.bird = bird
        self.page = page
        self.url = f"http://127.0.0.1:{magpie.port}/"
        self.input = page.get_by_role("textbox")
        self.questions = page.locator(".question")
        self.answers = page.locator(".answer")
        self.send = page.get_by_role("button", name="Send")
        self.stop = page.get_by_role("button", name="Stop the answer")

    async def ask(self, text: str) -> Locator:
        """Ask and return the newest answer once it is finished."""
        before = await self.answers.count()
        await self.write(text)
        await expect(self.answers).to_have_count(before + 1)
        return await self.finished()

    async def write(self, text: str) -> None:
        await expect(self.input).to_have_attribute("placeholder", re.compile("."))  # the page's code has begun
        await self.input.fill(text)
        await self.input.press("Enter")

    async def shows(self, *texts: str) -> None:
        """Expect just these answers."""
        await expect(self.answers).to_have_count(len(texts))
        await expect(self.answers).to_contain_text(texts)

    async def finished(self) -> Locator:
        await expect(self.answers.last).not_to_have_class(re.compile("growing"))
        await expect(self.page.locator("body")).not_to_have_class(re.compile("busy"))
        return self.answers.last

    async def half(self, text: str = "wait") -> Locator:
        """Ask something whose answer stays half written until the gate opens."""
        await self.write(text)
        await expect(self.answers.last).to_contain_text("first half")
        return self.answers.last


class Watch:
    """What must not happen on any page."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = set(hosts)
        self.wrong: list[str] = []
        self.expected: tuple[str, ...] = ()

    def page(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._report(str(error)))
        page.on("dialog", lambda dialog: self._report(f"dialog {dialog.message}"))
        page.on("request", lambda request: self._request(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._report(message.text)

    def _report(self, what: str) -> None:
        if not any(pattern in what for pattern in self.expected):
            self.wrong.append(what)

    def _request(self, url: str) -> None:
        if url.split("/")[2] not in self.hosts:
            self._report(f"request to {url}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield launched
        await launched.close()


@contextlib.asynccontextmanager
async def desk(
    browser: Browser, settings: dict[str, object] | None = None, *, expected: tuple[str, ...] = (), **look: Any
) -> AsyncIterator[Desk]:
    """Open the page of a fresh bot; afterwards check that nothing went wrong on it."""
    bird = Bird()
    instance = Configured("webchat", WebchatAdapter, WebchatSettings.model_validate(settings or {}))
    async with running(instance, model=bird.model, user_messages_per_minute=0) as magpie:
        watch = Watch(f"127.0.0.1:{magpie.port}")
        watch.expected = expected
        context = await browser.new_context(**{"locale": "en-US", "viewport": {"width": 1000, "height": 700}, **look})
        context.on("page", watch.page)
        try:
            sitting = Desk(magpie, bird, await context.new_page())
            await sitting.page.goto(sitting.url)
            yield sitting
            assert watch.wrong == []
        finally:
            bird.gate.set()
            await context.close()


# -- a conversation ---------------------------------------------------------------------------------------------------


async def test_an_answer_is_shown_while_it_is_written(browser: Browser) -> None:
    async with desk(browser) as at:
        await expect(at.page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
        answer = await at.half()
        await expect(at.stop).to_be_visible()
        await expect(at.questions).to_have_text("You saidwait")
        await expect(at.input).to_have_value("")
        at.bird.gate.set()
        await expect(answer).to_contain_text("second half")
        await at.finished()
        await expect(at.send).to_be_visible()
        await expect(at.page.locator("#welcome")).to_be_hidden()


async def test_tables_code_and_tasks(browser: Browser) -> None:
    async with desk(browser, permissions=["clipboard-read", "clipboard-write"]) as at:
        answer = await at.ask("rich")
        await expect(answer.get_by_role("columnheader")).to_have_text(["Method", "Good for", "Cost"])
        await expect(answer.get_by_role("cell")).to_have_text(["Class", "speaking", "60", "App", "words", "0"])
        await expect(answer.locator(".t-keyword")).to_have_text(["def", "return"])
        await expect(answer.locator(".t-comment")).to_have_text("# twice")
        await expect(answer.get_by_role("checkbox")).to_have_count(2)
        await expect(answer.get_by_role("checkbox", name="done")).to_be_checked()
        await answer.get_by_role("button", name="Copy the code").click()
        assert await at.page.evaluate("navigator.clipboard.readText()") == (
            "def double(number: int) -> int:\n    return number * 2  # twice"
        )
        await answer.get_by_role("button", name="Copy the answer").click()
        assert await at.page.evaluate("navigator.clipboard.readText()") == RICH.strip()


@pytest.mark.parametrize("how", ["button", "Escape"])
async def test_stop(browser: Browser, how: str) -> None:
    async with desk(browser) as at:
        answer = await at.half()
        await (at.stop.click() if how == "button" else at.page.keyboard.press("Escape"))
        await expect(at.page.locator(".note")).to_have_text("Stopped.")
        await at.finished()
        await expect(answer).to_contain_text("first half")
        await expect(at.questions).to_have_count(1)
        await at.page.reload()
        await at.shows("first half")


async def test_retry_replaces_the_last_answer(browser: Browser) -> None:
    async with desk(browser) as at:
        await expect(await at.ask("hello")).to_contain_text("Answer 1 to hello")
        await at.answers.last.get_by_role("button", name="Answer again").click()
        await at.shows("Answer 2 to hello")
        await at.finished()
        await expect(at.questions).to_have_count(1)
        await at.page.reload()
        await at.shows("Answer 2 to hello")


@pytest.mark.parametrize("writing", [False, True])
async def test_a_new_conversation_forgets_the_old_one(browser: Browser, writing: bool) -> None:
    async with desk(browser) as at:
        await at.ask("my name is Ada")
        if writing:
            await at.half()
        await at.page.get_by_role("button", name="New conversation").click()
        await at.page.get_by_role("button", name="Cancel").click()
        await expect(at.questions).to_have_count(2 if writing else 1)
        await at.page.get_by_role("button", name="New conversation").click()
        await at.page.get_by_role("button", name="Begin afresh").click()
        await expect(at.page.locator("#welcome")).to_be_visible()
        await expect(at.input).to_be_focused()
        await at.ask("who am I")
        assert [turn.content for turn in at.bird.model.asked[-1] if turn.role == "user"] == ["who am I"]
        await expect(at.answers).to_have_count(1)
        await at.page.reload()
        await expect(at.questions).to_have_count(1)


async def test_commands_typed_by_hand_do_what_the_buttons_do(browser: Browser) -> None:
    async with desk(browser) as at:
        await at.ask("hello")
        await at.write("/retry")
        await at.shows("Answer 2 to hello")
        await expect(await at.ask("/help")).to_contain_text("/reset")
        await at.write("/新对话")
        await expect(at.page.locator("#welcome")).to_be_visible()


async def test_suggestions_are_sent(browser: Browser) -> None:
    async with desk(browser) as at:
        await at.page.get_by_role("button", name="What can you do?").click()
        await at.shows("Answer 1 to What can you do?")
        await expect(at.input).to_be_focused()


async def test_messages_written_meanwhile_are_answered_next(browser: Browser) -> None:
    async with desk(browser) as at:
        await at.half("wait one")
        await at.input.fill("two")
        await expect(at.send).to_be_visible()
        await at.send.click()
        await expect(at.questions).to_have_count(2)
        at.bird.gate.set()
        await expect(at.answers).to_have_count(2)
        await expect(at.answers.last).to_contain_text("to two")
        await at.finished()


# -- nothing is lost --------------------------------------------------------------------------------------------------


async def test_a_reload_keeps_the_conversation_and_the_draft(browser: Browser) -> None:
    async with desk(browser) as at:
        await at.ask("rich")
        await at.input.fill("not yet sent")
        await at.page.reload()
        await expect(at.questions).to_have_count(1)
        await expect(at.answers.last.get_by_role("table")).to_be_visible()
        await expect(at.input).to_have_value("not yet sent")
        cookies = await at.page.context.cookies()
        assert [(cookie["name"], cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [
            ("webchat_visitor", True, "Lax")
        ]
        assert await at.page.evaluate("document.cookie") == ""


async def test_a_reload_in_the_middle_of_an_answer(browser: Browser) -> None:
    async with desk(browser) as at:
        await at.half()
        await at.page.reload()
        await expect(at.questions).to_have_count(1)
        await expect(at.page.locator(".waiting")).to_be_visible()
        at.bird.gate.set()
        await at.shows("first half, second half")
        await at.finished()
        await at.page.reload()
        await expect(at.questions).to_have_count(1)
        await expect(at.page.locator(".waiting")).to_have_count(0)


async def test_an_answer_that_is_faster_than_the_history_is_shown_once(browser: Browser) -> None:
    answered = asyncio.Event()

    async def late(route: Route) -> None:
        await answered.wait()
        await route.continue_()

    async with desk(browser) as at:
        await at.page.route("**/history", late)
        async with at.page.expect_request("**/history"):
            await at.page.reload()
        async with at.page.expect_response("**/webhooks/webchat"):
            await at.write("hello")
        while at.magpie.dispatcher.busy:
            await asyncio.sleep(0.01)
        answered.set()
        await at.shows("Answer 1 to hello")
        await at.ask("next")
        await expect(at.questions.locator(".bubble")).to_have_text(["hello", "next"])
        await at.shows("Answer 1 to hello", "Answer 2 to next")


async def test_two_tabs_show_the_same(browser: Browser) -> None:
    async with desk(browser) as at:
        other = Desk(at.magpie, at.bird, await at.page.context.new_page())
        await other.page.goto(at.url)
        await expect(other.page.locator("#welcome")).to_be_visible()
        await at.ask("hello")
        await expect(other.questions).to_have_count(1)
        await other.shows("Answer 1 to hello")
        await at.write("/reset")
        await expect(other.page.locator("#welcome")).to_be_visible()


@pytest.mark.parametrize("arrived", [False, True])
async def test_what_was_not_sent_can_be_sent_again_and_is_answered_once(browser: Browser, arrived: bool) -> None:
    async def broken(route: Route) -> None:
        if arrived:
            await route.fetch()
        await route.abort()

    async with desk(browser, expected=("ERR_FAILED",)) as at:
        await at.page.route("**/webhooks/webchat", broken)
        await at.write("hello")
        await expect(at.questions.last).to_contain_text("Not sent. The bot cannot be reached.")
        await at.page.unroute("**/webhooks/webchat")
        await at.page.get_by_role("button", name="Try again").click()
        await at.page.get_by_role("button", name="Try again").wait_for(state="detached")
        await at.shows("Answer 1 to hello")
        await at.ask("next")
        assert len(at.bird.model.asked) == 2


async def test_what_was_not_sent_survives_a_reload(browser: Browser) -> None:
    async with desk(browser, expected=("ERR_FAILED",)) as at:
        await at.page.route("**/webhooks/webchat", lambda route: route.abort())
        await at.write("hello")
        await expect(at.questions.last).to_contain_text("Not sent.")
        await at.page.unroute("**/webhooks/webchat")
        await at.page.reload()
        await at.page.get_by_role("button", name="Try again").click()
        await at.shows("Answer 1 to hello")


async def test_a_limit_is_explained(browser: Browser) -> None:
    async with desk(browser, {"messages_per_minute": 1}, expected=("429",)) as at:
        await at.ask("one")
        await at.write("two")
        await expect(at.questions.last).to_contain_text("That was a lot at once. Please wait a minute.")
        await expect(at.questions.last.get_by_role("alert")).to_be_visible()


async def test_offline_and_back(browser: Browser) -> None:
    async with desk(browser, expected=("ERR_INTERNET_DISCONNECTED",)) as at:
        await at.ask("one")
        await at.page.context.set_offline(True)
        await expect(at.page.get_by_role("status")).to_have_text("You are offline. Messages are kept here.")
        await at.write("two")
        await expect(at.questions.last).to_contain_text("Not sent.")
        await at.page.context.set_offline(False)
        await expect(at.page.get_by_role("status")).to_have_text("")
        await at.page.get_by_role("button", name="Try again").click()
        await expect(at.answers.last).to_contain_text("Answer 2 to two")


async def test_the_page_survives_a_restart_of_the_bot(browser: Browser, tmp_path: Path) -> None:
    process = Process(tmp_path, {})
    context = await browser.new_context(locale="zh-CN")
    try:
        await process.start()
        page = await context.new_page()
        await page.goto(process.url)
        await page.get_by_placeholder("写点什么").fill("你好，我叫小明")
        await page.keyboard.press("Enter")
        await expect(page.locator(".answer:not(.growing)")).to_contain_text(["小明"])
        await process.kill()
        await expect(page.get_by_role("status")).to_have_text("连接中断，正在重新连接…")
        await process.start()
        await expect(page.get_by_role("status")).to_have_text("", timeout=30_000)
        await page.get_by_role("textbox").fill("我叫什么？")
        await page.keyboard.press("Enter")
        await expect(page.locator(".answer").last).to_contain_text("你叫小明", timeout=30_000)
        await expect(page.locator(".answer")).to_have_count(2)
    finally:
        await context.close()
        await process.kill()


# -- how it feels -----------------------------------------------------------------------------------------------------


AT_END = """() => {
  const { scrollHeight, scrollTop, clientHeight } = document.querySelector("#pane");
  return scrollHeight > clientHeight && scrollHeight - scrollTop - clientHeight < 5;
}"""


async def test_the_view_follows_until_the_person_scrolls_up(browser: Browser) -> None:
    async with desk(browser) as at:
        await at.ask("long")
        pane = at.page.locator("#pane")
        jump = at.page.get_by_role("button", name="Jump to the latest message")
        await at.page.wait_for_function(AT_END)
        await expect(jump).to_be_hidden()
        await pane.hover()
        await at.half()
        await at.page.mouse.wheel(0, -900)
        await expect(jump).to_be_visible()
        top = await pane.evaluate("pane => pane.scrollTop")
        at.bird.gate.set()
        await at.finished()
        assert abs(await pane.evaluate("pane => pane.scrollTop") - top) < 2
        await jump.click()
        await expect(jump).to_be_hidden()
        await at.page.wait_for_function(AT_END)


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
async def test_light_and_dark(browser: Browser, scheme: str, other: str) -> None:
    async with desk(browser, color_scheme=scheme) as at:
        theme = "document.documentElement.dataset.theme"
        assert await at.page.evaluate(theme) == scheme
        paper = await at.page.evaluate("getComputedStyle(document.body).backgroundColor")
        await at.page.get_by_role("button", name="Light or dark").click()
        assert await at.page.evaluate(theme) == other
        assert await at.page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
        await at.page.reload()
        assert await at.page.evaluate(theme) == other


async def test_chinese_and_english(browser: Browser) -> None:
    async with desk(browser, locale="zh-CN") as at:
        await expect(at.page.get_by_role("heading", name="你好！想聊点什么？")).to_be_visible()
        await expect(at.page.get_by_placeholder("写点什么")).to_be_visible()
        assert await at.page.evaluate("document.documentElement.lang") == "zh-Hans"
        await at.ask("rich")
        await expect(at.answers.last.get_by_role("button", name="复制代码")).to_be_visible()
        await at.page.get_by_role("button", name="Switch to English").click()
        await expect(at.answers.last.get_by_role("button", name="Copy the code")).to_be_visible()
        await at.page.reload()
        await expect(at.page.get_by_placeholder("Write a message")).to_be_visible()
        await expect(at.page.get_by_role("button", name="切换到中文")).to_be_visible()


async def test_the_operators_own_words(browser: Browser) -> None:
    async with desk(browser, {"title": "Ask <Ada>", "greeting": "Hi & welcome"}) as at:
        assert await at.page.title() == "Ask <Ada>"
        await expect(at.page.get_by_role("heading", level=1)).to_have_text("Ask <Ada>")
        await expect(at.page.get_by_role("heading", level=2)).to_have_text("Hi & welcome")


async def test_with_the_keyboard_alone(browser: Browser) -> None:
    async with desk(browser) as at:
        await expect(at.input).to_be_focused()
        await at.page.keyboard.type("first")
        await at.page.keyboard.press("Shift+Enter")
        await at.page.keyboard.type("second")
        await expect(at.input).to_have_value("first\nsecond")
        await at.page.keyboard.press("Enter")
        await expect(at.questions.locator(".bubble")).to_have_text("first\nsecond", use_inner_text=True)
        await at.finished()
        seen = set()
        for _ in range(12):
            await at.page.keyboard.press("Tab")
            focused = at.page.locator(":focus")
            if await focused.count() and (name := await focused.get_attribute("aria-label")):
                seen.add(name)
                outline = await focused.evaluate("node => getComputedStyle(node).outlineStyle")
                assert outline != "none" or name == "Message", f"no focus ring on {name}"
        assert seen >= {"New conversation", "Light or dark", "Copy the answer", "Answer again", "Message"}
        await at.page.get_by_role("button", name="New conversation").focus()
        await at.page.keyboard.press("Enter")
        await expect(at.page.get_by_role("dialog")).to_be_visible()
        await at.page.keyboard.press("Escape")
        await expect(at.page.get_by_role("dialog")).to_be_hidden()
        await expect(at.page.get_by_role("button", name="New conversation")).to_be_focused()


async def test_enter_within_an_input_method_chooses_a_word(browser: Browser) -> None:
    async with desk(browser) as at:
        await at.input.focus()
        keyboard = await at.page.context.new_cdp_session(at.page)
        await keyboard.send("Input.imeSetComposition", {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6})
        await at.page.keyboard.press("Enter")
        await at.input.dispatch_event("keydown", {"key": "Enter", "keyCode": 229})
        await expect(at.questions).to_have_count(0)
        await keyboard.send("Input.insertText", {"text": "你好"})
        await expect(at.input).to_have_value(re.compile("你好"))
        await at.page.keyboard.press("Enter")
        await expect(at.questions).to_have_count(1)


async def test_on_a_phone(browser: Browser) -> None:
    phone: dict[str, Any] = {
        "viewport": {"width": 360, "height": 640},
        "is_mobile": True,
        "has_touch": True,
        "device_scale_factor": 2,
    }
    async with desk(browser, **phone) as at:
        await at.ask("rich")
        await at.ask("https://example.com/" + "a" * 200)
        wide = "| " + " | ".join(f"column {number}" for number in range(12)) + " |\n|" + "---|" * 12
        await render(at.page, f"{wide}\n\n```\n{'x' * 300}\n```\n\n$$\n{'x + ' * 100}\n$$", into=".answer .body")
        assert await at.page.evaluate("document.documentElement.scrollWidth") == 360
        assert await at.page.locator("#pane").evaluate("pane => pane.scrollWidth - pane.clientWidth") == 0
        for inner in (".table", ".code pre", ".math.wide"):
            assert await at.page.locator(inner).last.evaluate("node => node.scrollWidth > node.clientWidth"), inner
        assert float((await at.input.evaluate("node => getComputedStyle(node).fontSize"))[:-2]) >= 16
        for box in [
            await at.input.bounding_box(),
            await at.page.get_by_role("button", name="New conversation").bounding_box(),
        ]:
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
            assert box["y"] + box["height"] <= 640
            assert box["height"] >= 36


async def test_right_to_left_text(browser: Browser) -> None:
    async with desk(browser) as at:
        answer = await at.ask("rtl")
        directions = await answer.locator("p").evaluate_all("all => all.map(p => getComputedStyle(p).direction)")
        assert directions == ["rtl", "ltr"]


# -- who cannot see it ------------------------------------------------------------------------------------------------

NAMELESS = """() => [...document.querySelectorAll('button, textarea, a, input, [role=region], dialog')]
  .filter(node => node.checkVisibility() && !(node.getAttribute('aria-label') || node.textContent.trim()
     || node.getAttribute('aria-labelledby') || node.labels?.length))
  .map(node => node.outerHTML)"""

CONTRAST = """() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
  };
  const written = node => [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
  const texts = [...document.querySelectorAll('body *')].filter(node => written(node)
    && node.checkVisibility({ opacityProperty: true }) && !node.closest('.unseen, [hidden]'));
  return texts.map(node => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), node.tagName + '.' + node.className + ' ' + node.textContent.slice(0, 30)];
  }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_has_a_name_and_can_be_read(browser: Browser, scheme: str) -> None:
    async with desk(browser, color_scheme=scheme, reduced_motion="reduce") as at:
        await expect(at.page.locator("#welcome")).to_be_visible()
        assert await at.page.evaluate(CONTRAST) == []
        await at.ask("rich")
        await render(
            at.page, "```js\n// c\nconst x = `s` + 1; new Map(true); @d\n```\n> quote\n\n[link](https://e.org) `c`"
        )
        assert await at.page.evaluate(NAMELESS) == []
        assert await at.page.evaluate(CONTRAST) == []
        assert await at.page.evaluate("[...document.images].filter(image => !image.hasAttribute('alt')).length") == 0
        ids = await at.page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
        assert len(ids) == len(set(ids))
        assert await at.page.evaluate("document.querySelectorAll('h1, main, header, footer').length") == 4


async def test_only_finished_answers_are_announced(browser: Browser) -> None:
    async with desk(browser) as at:
        log = at.page.get_by_role("log")
        await expect(log).to_have_attribute("aria-live", "polite")
        await at.half()
        await expect(log).to_have_text("")
        at.bird.gate.set()
        await expect(log).to_contain_text("first half, second half")
        assert await at.page.locator("#messages").get_attribute("aria-live") is None


async def test_quiet_motion(browser: Browser) -> None:
    async with desk(browser, reduced_motion="reduce") as at:
        await at.half()
        await at.page.mouse.move(5, 5)
        running_ = "document.getAnimations().filter(one => one.effect.getTiming().duration > 1).length"
        assert await at.page.evaluate(running_) == 0


# -- what models write ------------------------------------------------------------------------------------------------


async def test_hostile_answers_are_only_text(browser: Browser) -> None:
    async with desk(browser) as at:
        await at.ask("xss")
        await at.page.reload()
        await expect(at.answers).to_have_count(1)
        assert await at.page.evaluate("window.pwned") is None
        answer = at.answers.last.locator(".body")
        for tag in ("img", "script", "iframe", "svg:not(.icon)", "[onerror]", "[onload]", "[srcdoc]"):
            await expect(answer.locator(tag)).to_have_count(0)
        links = await answer.locator("a").evaluate_all("all => all.map(a => [a.protocol, a.target, a.rel])")
        assert links == [["https:", "_blank", "noopener noreferrer nofollow"]], "only the picture's address is a link"
        for text in await answer.get_by_text("click").all():
            await text.click(force=True)
        assert await at.page.evaluate("window.pwned") is None


async def test_the_browser_itself_refuses_html(browser: Browser) -> None:
    async with desk(
        browser, expected=("TrustedHTML", "Trusted Type", "require-trusted-types-for", "Content Security")
    ) as at:
        with pytest.raises(Exception, match="TrustedHTML"):
            await at.page.evaluate("document.body.innerHTML = '<b>x</b>'")


async def render(page: Page, source: str, into: str = "") -> str:
    """Render Markdown by the page's own code; return the HTML."""
    html: str = await page.evaluate(
        """async ([source, into]) => {
          const { Growing } = await import("/webhooks/webchat/markdown.js");
          const made = document.createElement("div");
          made.className = "body";
          new Growing(made).update(source);
          (document.querySelector(into || "#messages") ?? document.body).append(made);
          return made.innerHTML;
        }""",
        [source, into],
    )
    return re.sub(r' (dir|tabindex|class="wide"|target|rel)(="[^"]*")?', "", html)


CASES = {
    "# One\n### Three ##": "<h2>One</h2><h4>Three</h4>",
    "#hashtag": "<p>#hashtag</p>",
    "a\nb  \nc": "<p>a<br>b<br>c</p>",
    "**a** *b* ***c***": "<p><strong>a</strong> <em>b</em> <em><strong>c</strong></em></p>",
    "~~d~~ __e__ _f_": "<p><del>d</del> <strong>e</strong> <em>f</em></p>",
    "snake_case_name 2*3*4 * 5": "<p>snake_case_name 2<em>3</em>4 * 5</p>",
    "**注意：**请看**“这里”**。": "<p><strong>注意：</strong>请看<strong>“这里”</strong>。</p>",
    "**open and `**` code": "<p>**open and <code>**</code> code</p>",
    r"\*no\* &amp; &lt;b&gt; &#x4f60; &unknown;": "<p>*no* &amp; &lt;b&gt; 你 &amp;unknown;</p>",
    "`` a`b `` ` `": "<p><code>a`b</code> <code> </code></p>",
    "<b>x</b><br>y": "<p>&lt;b&gt;x&lt;/b&gt;<br>y</p>",
    "[a *b*](https://e.org/x_(y) 't') c": '<p><a href="https://e.org/x_(y)">a <em>b</em></a> c</p>',
    "[a](/relative) [b] [c](": "<p><span>a (/relative)</span> [b] [c](</p>",
    "see https://e.org/a_b).": '<p>see <a href="https://e.org/a_b">https://e.org/a_b</a>).</p>',
    "见https://e.org/a，好": '<p>见<a href="https://e.org/a">https://e.org/a</a>，好</p>',
    "<https://e.org>": '<p><a href="https://e.org/">https://e.org</a></p>',
    "<mailto:a@b.c>": '<p><a href="mailto:a@b.c">mailto:a@b.c</a></p>',
    r"$a_1 * b_2$ costs $5 or $6": '<p><span class="math">a_1 * b_2</span> costs $5 or $6</p>',
    r"so \(x^2\)": '<p>so <span class="math">x^2</span></p>',
    "\\[\n\\frac{1}{2}\n\\]\ntext": '<div class="math wide">\\frac{1}{2}</div><p>text</p>',
    "- a\n- b\n  - c\n    - d\n- e": ("<ul><li>a</li><li>b<ul><li>c<ul><li>d</li></ul></li></ul></li><li>e</li></ul>"),
    "1. a\n  - x\n2. b\n\n   more": ("<ol><li><p>a</p><ul><li>x</li></ul></li><li><p>b</p><p>more</p></li></ol>"),
    "3. c\n4. d\n\n- e": '<ol start="3"><li>c</li><li>d</li></ol><ul><li>e</li></ul>',
    "1. a\n\n   ```\n   x\n    y\n   ```\n2. b": "<ol><li><p>a</p>CODE</li><li><p>b</p></li></ol>",
    "- a\nlazy\n\nafter": "<ul><li>a<br>lazy</li></ul><p>after</p>",
    "> a\n> - b\n>\n> > c\nlazy": (
        "<blockquote><p>a</p><ul><li>b</li></ul><blockquote><p>c<br>lazy</p></blockquote></blockquote>"
    ),
    "a\n---\nb\n***": "<p>a</p><hr><p>b</p><hr>",
    "text\n| a | b |\n|--|:-:|\n| `x|y` | \\| |\n| 1 |": (
        '<p>text</p>TABLE<thead><tr><th>a</th><th class="center">b</th></tr></thead><tbody>'
        '<tr><td><code>x|y</code></td><td class="center">|</td></tr>'
        '<tr><td>1</td><td class="center"></td></tr></tbody></table></div>'
    ),
    "a | b\nno table": "<p>a | b<br>no table</p>",
    "2024. A year\n10. x": '<ol start="2024"><li>A year</li><li>x</li></ol>',
}


async def test_markdown(browser: Browser) -> None:
    async with desk(browser) as at:
        for source, expected in CASES.items():
            html = await render(at.page, source)
            html = re.sub(r"<figure.*?</figure>", "CODE", html, flags=re.DOTALL)
            html = re.sub(r'<div class="table".*?<table>', "TABLE", html)
            assert html == expected, source


DOCUMENTS = [
    RICH,
    XSS,
    "\n\n".join(CASES),
    "1. a\n\n1. b\n\n   c\n\n- d\n\n- e\n\nend",
    "~~~js\n```\nx\n~~~\n\ny\n\n```py\nunclosed",
]


@pytest.mark.parametrize("number", range(len(DOCUMENTS)))
async def test_a_growing_text_ends_up_as_if_it_came_at_once(browser: Browser, number: int) -> None:
    async with desk(browser) as at:
        whole, grown = await at.page.evaluate(
            """async (source) => {
              const { Growing } = await import("/webhooks/webchat/markdown.js");
              const [whole, grown] = [document.createElement("div"), document.createElement("div")];
              new Growing(whole).update(source);
              const growing = new Growing(grown);
              for (let end = 1; end <= source.length; end += 1) growing.update(source.slice(0, end));
              return [whole.innerHTML, grown.innerHTML];
            }""",
            DOCUMENTS[number],
        )
        assert grown == whole


async def test_a_long_answer_is_not_made_again_and_again(browser: Browser) -> None:
    async with desk(browser) as at:
        made, there, read = await at.page.evaluate(
            """async (source) => {
              const { Growing } = await import("/webhooks/webchat/markdown.js");
              const element = document.createElement("div");
              let [made, read] = [0, 0];
              const split = String.prototype.split;
              String.prototype.split = function (...by) {
                read += this.length;
                return split.apply(this, by);
              };
              const watch = new MutationObserver(() => {});
              watch.observe(element, { childList: true });
              const growing = new Growing(element);
              for (let end = 30; end < source.length + 30; end += 30) {
                growing.update(source.slice(0, end));
                made += watch.takeRecords().reduce((sum, record) => sum + record.addedNodes.length, 0);
              }
              return [made, element.childElementCount, read / source.length];
            }""",
            LONG * 5,
        )
        assert there >= 395
        assert made < there * 5
        assert read < 20


async def test_no_text_is_lost_by_colouring(browser: Browser) -> None:
    async with desk(browser) as at:
        lost = await at.page.evaluate(
            """async (samples) => {
              const { highlight } = await import("/webhooks/webchat/highlight.js");
              const languages = ["python", "js", "ts", "json", "bash", "html", "css", "sql", "go", "rust", "java", "c",
                "cpp", "php", "yaml", "toml", "diff", "dockerfile", "unknown", "constructor", "__proto__", ""];
              return samples.flatMap(code => languages.filter(name => highlight(code, name).textContent !== code));
            }""",
            [RICH, XSS, json.dumps({"a": [1, None]}), "/* open\nstill", '"""doc\nstring', "'\\", "喜鹊 #x\n-- y\n+z"],
        )
        assert lost == []


# -- inside other sites -----------------------------------------------------------------------------------------------


class Shop:
    """Somebody else's site: one page, with a policy that forbids styles written into it."""

    def __init__(self) -> None:
        self.origin = ""
        self.body = ""

    async def _page(self, request: web.Request) -> web.Response:
        text = f"<!doctype html><title>shop</title><link rel=icon href=data:,><p>Shop</p>{self.body}"
        headers = {"Content-Security-Policy": "style-src 'none'"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/", self._page)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.origin = f"http://localhost:{runner.addresses[0][1]}"  # another site than 127.0.0.1
            yield
        finally:
            await runner.cleanup()


WIDGET = '<script src="{bot}/webhooks/webchat/widget.js" async></script>'
FRAME = '<iframe id="direct" src="{bot}/webhooks/webchat/page?embed=1"></iframe>'


@contextlib.asynccontextmanager
async def https(port: int, directory: Path) -> AsyncIterator[int]:
    """Put TLS before a port, as a proxy does; yield the new one."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError):
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(_certificate(directory))
    server = await asyncio.start_server(join, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
    finally:
        writer.close()


def _certificate(directory: Path) -> Path:
    """Write a key and a certificate it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    draft = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    dated = draft.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    pem = dated.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = directory / "both.pem"
    path.write_bytes(secret + pem)
    return path


@contextlib.asynccontextmanager
async def visit(
    browser: Browser,
    body: str,
    allowed: bool = True,
    expected: tuple[str, ...] = (),
    tls: Path | None = None,
    **look: Any,
) -> AsyncIterator[Page]:
    """Open a shop whose page holds `body`, with a bot that allows that site or another one."""
    shop = Shop()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(shop.open())
        settings = {"allowed_origins": shop.origin if allowed else "https://elsewhere.example"}
        instance = Configured("webchat", WebchatAdapter, WebchatSettings.model_validate(settings))
        magpie = await stack.enter_async_context(running(instance, model=Bird().model))
        port = await stack.enter_async_context(https(magpie.port, tls)) if tls else magpie.port
        bot = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        shop.body = body.format(bot=bot)
        watch = Watch(shop.origin.split("/")[2], bot.split("/")[2])
        watch.expected = expected
        context = await browser.new_context(**{"locale": "en-US", "ignore_https_errors": True, **look})
        stack.push_async_callback(context.close)
        context.on("page", watch.page)
        page = await context.new_page()
        await page.goto(f"{shop.origin}/")
        yield page
        assert watch.wrong == []


async def test_the_widget_on_an_allowed_site(browser: Browser) -> None:
    """Without https a browser may give the frame neither cookie nor storage; the chat works all the same."""
    async with visit(browser, WIDGET) as page:
        await page.get_by_role("button", name="Open the chat").click()
        chat = page.frame_locator("iframe")
        await chat.get_by_placeholder("Write a message").fill("hello")
        await chat.get_by_placeholder("Write a message").press("Enter")
        await expect(chat.locator(".answer")).to_contain_text(["Answer 1 to hello"])
        await expect(chat.locator("body")).not_to_have_class(re.compile("busy"))
        await page.keyboard.press("Escape")
        await expect(page.locator("iframe")).to_be_hidden()
        await expect(page.get_by_role("button", name="Open the chat")).to_be_focused()
        await page.get_by_role("button", name="Open the chat").click()
        await expect(chat.locator(".answer")).to_have_count(1)
        await chat.get_by_role("button", name="Close the chat").click()
        await expect(page.locator("iframe")).to_be_hidden()


async def test_the_widget_remembers_over_https(browser: Browser, tmp_path: Path) -> None:
    """The partitioned cookie is the frame's, on this site alone."""
    async with visit(browser, WIDGET, tls=tmp_path) as page:
        await page.get_by_role("button", name="Open the chat").click()
        chat = page.frame_locator("iframe")
        await chat.get_by_placeholder("Write a message").fill("hello")
        await chat.get_by_placeholder("Write a message").press("Enter")
        await expect(chat.locator(".answer")).to_contain_text(["Answer 1 to hello"])
        (cookie,) = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "None")
        assert "localhost" in str(cookie.get("partitionKey"))
        await page.reload()
        await page.get_by_role("button", name="Open the chat").click()
        await expect(chat.locator(".answer")).to_contain_text(["Answer 1 to hello"])


async def test_the_widget_fills_a_phone(browser: Browser) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}
    async with visit(browser, '<meta name="viewport" content="width=device-width">' + WIDGET, **phone) as page:
        await page.get_by_role("button", name="Open the chat").tap()
        await expect(page.frame_locator("iframe").get_by_role("textbox")).to_be_visible()
        box = await page.locator("iframe").bounding_box()
        assert box == {"x": 0, "y": 0, "width": 360, "height": 640}


async def test_the_widget_on_another_site(browser: Browser) -> None:
    expected = ("WEBCHAT_ALLOWED_ORIGINS", "CORS policy", "ERR_FAILED", "403")
    async with visit(browser, WIDGET, allowed=False, expected=expected) as page:
        async with page.expect_console_message(lambda message: "is not in WEBCHAT_ALLOWED_ORIGINS" in message.text):
            await page.reload()
        await expect(page.get_by_role("button")).to_have_count(0)
        await expect(page.locator("iframe")).to_have_count(0)


@pytest.mark.parametrize("referrer", ["", " referrerpolicy='no-referrer'"])
async def test_a_frame_on_another_site_stays_empty(browser: Browser, referrer: str) -> None:
    """By the server where the browser tells the site, by frame-ancestors where it does not."""
    body = FRAME.replace("<iframe", f"<iframe{referrer}")
    async with visit(browser, body, allowed=False, expected=("403", "frame-ancestors", "Content Security")) as page:
        await expect(page.frame_locator("iframe").locator("#composer")).to_have_count(0)
        assert [await frame.locator("textarea").count() for frame in page.frames] == [0, 0]
