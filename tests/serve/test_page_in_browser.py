"""The page at / as people use it: in Chromium, beside a real server."""

import json
import time

import pytest

import cgpt

from support.browser import AXE, chromium, missing, tab, violations
from support.chat_cases import CALL, FINAL, scripted
from support.serve_cases import serving, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
TOOL = {"name": "get_weather", "description": "Gets the weather in a city.", "parameters": {"type": "object"}}
SCHEMA = {"properties": {"n": {"enum": [42]}}, "required": ["n"], "additionalProperties": False}
NASTY = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
MARKUP = f"{NASTY}\n\n[a](javascript:document.title='taken') ![b](https://e.example/b.png)\n\n```js\n{NASTY}\n```"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def talker():
    return cgpt.load("demo-gpt-oss", precision="exact")


@pytest.fixture(scope="module")
def writer():
    return cgpt.load("demo-gpt2", precision="exact")


@pytest.fixture(scope="module")
def chats(talker):
    with serving(talker) as served:
        yield served


@pytest.fixture(scope="module")
def texts(writer):
    with serving(writer) as served:
        yield served


@pytest.fixture
def page(browser, chats):
    """The page of a model that chats; nothing is asked of other places, and nothing complains."""
    with tab(browser, chats.url) as page:
        page.wait_for_selector(".welcome")
        yield page
        assert all(url.startswith((chats.url, "blob:")) for url in page.asked)
        assert page.problems == []


def send(page, text):
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def finished(page, count=1):
    """Waits until so many answers are there, whole; the text of the last one."""
    page.locator(".assistant[aria-busy='false']").nth(count - 1).wait_for()
    return page.locator(".assistant .items > .text").last.text_content().strip()


def set_up(page, **fields):
    """Fills fields of the drawer, and closes it."""
    page.click("#open-settings")
    for name, value in fields.items():
        page.fill(f"#set-{name}", value)
    page.click("text=Done")


def test_a_chat(page, talker):
    set_up(page, temperature="0")
    page.fill("#prompt", "Please compute")
    page.keyboard.press("Shift+Enter")
    assert page.locator("#prompt").input_value() == "Please compute\n"
    send(page, "Please compute 10 + 5.")
    assert finished(page) == "15"
    assert page.locator(".user .text").inner_text() == "Please compute 10 + 5."
    thought = page.locator("details.reasoning")
    assert thought.locator("summary").inner_text().startswith("Thought for ") and thought.get_attribute("open") is None
    thought.locator("summary").click()
    assert thought.locator(".thought").inner_text().startswith("10+5")
    stats = page.locator(".stats").inner_text()
    assert "tok/s" in stats and "first after" in stats and "of 67 prompt tokens cached" in stats
    assert page.locator(".chats .title").inner_text() == "Please compute 10 + 5."
    assert "15" in page.locator("#live").inner_text()  # what screen readers are told
    send(page, "Please sort 3, 1.")
    finished(page, 2)
    cached, _, prompt = page.locator(".stats").last.inner_text().split(" · ")[-1].split()[:3]
    assert 0 < int(cached) < int(prompt) and int(prompt) > 67 + 10  # the second prompt holds the first


def test_branches(page):
    set_up(page, temperature="0")
    send(page, "Please compute 10 + 5.")
    assert finished(page) == "15"
    page.click("text=Edit")
    page.fill(".edit textarea", "Please compute 20 + 5.")
    page.keyboard.press("Enter")
    assert finished(page) == "25"
    assert page.locator(".user .branches").inner_text().split("\n")[1] == "2 of 2"
    page.click("[aria-label='Previous version']")
    assert page.locator(".user .text").inner_text() == "Please compute 10 + 5." and finished(page) == "15"
    page.click("text=Regenerate")
    page.locator(".assistant .branches", has_text="2 of 2").wait_for()
    assert finished(page) == "15"
    cached = page.locator(".stats").inner_text().split(" · ")[-1]
    assert int(cached.split()[0]) > 60  # what the branches have in common is not read again
    page.click(".user [aria-label='Next version']")
    assert finished(page) == "25" and page.locator(".assistant .branches").count() == 0
    page.click("text=Edit")
    page.keyboard.press("Escape")
    assert page.locator(".edit").count() == 0 and page.locator(".user").count() == 1


def test_a_tool_is_answered_by_hand(page, chats, talker, monkeypatch):
    prompts = scripted(monkeypatch, talker, CALL.format('{"city":"Lyon"}'), FINAL.format("7 and sunny"))
    set_up(page, tools=json.dumps([TOOL]))
    send(page, "How is the weather?")
    card = page.locator(".card")
    card.locator("textarea").wait_for()
    assert "get_weather" in card.inner_text() and '"city": "Lyon"' in card.inner_text()
    card.locator("textarea").fill(MARKUP)
    card.locator("text=Send the result").click()
    assert finished(page, 2) == "7 and sunny"
    assert card.locator("pre").last.inner_text() == MARKUP and page.title() == "cgpt"
    assert "get_weather" in prompts[0] and "<img src=x" in prompts[1]
    page.reload()
    assert finished(page, 2) == "7 and sunny" and card.locator("textarea").count() == 0


def test_stop_and_what_is_kept(page, chats, talker, monkeypatch):
    step = talker.transformer.step
    monkeypatch.setattr(talker.transformer, "step", lambda *a, **h: time.sleep(0.05) or step(*a, **h))
    before = chats.engine.stats.finished["cancelled"]
    for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
        page.click("text=New chat")
        send(page, "Please compute 7632 - 5618.")
        page.locator("details.reasoning").wait_for()
        assert page.locator("#send").is_hidden() and page.locator(".running").count() == 1
        stop()
        page.get_by_text("Stopped.").wait_for()
        assert page.locator("#send").is_visible()
        wait_for(lambda: chats.engine.running == 0, 3)
    assert chats.engine.stats.finished["cancelled"] == before + 2
    page.reload()
    page.get_by_text("Stopped.").wait_for()
    assert page.locator(".chats li").count() == 2


def test_an_answer_goes_on_while_another_chat_is_read(page, talker, monkeypatch):
    set_up(page, temperature="0")
    step = talker.transformer.step
    monkeypatch.setattr(talker.transformer, "step", lambda *a, **h: time.sleep(0.03) or step(*a, **h))
    send(page, "Please compute 10 + 5.")
    page.locator("details.reasoning").wait_for()
    page.click("text=New chat")
    assert page.locator(".message").count() == 0 and page.locator("#send").is_visible()
    page.locator("#live", has_text="15").wait_for()
    page.click(".chats .title")
    assert finished(page) == "15"


def test_chats_are_kept_renamed_exported_and_imported(page, tmp_path):
    set_up(page, temperature="0")
    send(page, "Please compute 10 + 5.")
    finished(page)
    page.click(".chats >> text=Rename")
    page.locator(".chats input").fill(NASTY)
    page.keyboard.press("Enter")
    page.locator(".chats .title", has_text="<img").wait_for()
    page.reload()
    assert finished(page) == "15" and page.locator(".chats .title").inner_text() == NASTY
    with page.expect_download() as download:
        page.click("text=Export all")
    exported = json.loads(download.value.path().read_text())
    assert exported["chats"][0]["title"] == NASTY and "key" not in exported
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("text=Delete")
    page.locator(".welcome").wait_for()
    assert page.locator(".chats li").count() == 0

    (chat,) = exported["chats"]
    chat["nodes"][0]["text"] = MARKUP
    chat["nodes"][1]["items"] = [
        {"type": "reasoning", "text": MARKUP, "seconds": NASTY},
        {"type": "message", "text": MARKUP, "phase": NASTY},
        {"type": "call", "call_id": "c", "name": NASTY, "arguments": MARKUP},
    ]
    chat["nodes"][1] |= {"error": MARKUP, "stats": {"tokens": NASTY}}
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(exported))
    page.set_input_files("input[type=file]", path)
    page.locator(".code").wait_for()
    for place in (".user .text", ".thought", ".card strong", ".error", ".code pre"):
        assert "<img" in page.locator(place).text_content()
    assert page.locator("#log img, #log script, #log a:not([href^=https])").count() == 0
    assert page.title() == "cgpt"

    for broken in ("{", '{"chats": []}', json.dumps(exported | {"chats": [chat | {"leaf": 99}]})):
        path.write_text(broken)
        page.set_input_files("input[type=file]", path)
        page.locator("#notice", has_text="file").wait_for()
    assert page.locator(".chats li").count() == 1


def test_what_a_model_writes_stays_text(page, talker, monkeypatch):
    thought = f"<|channel|>analysis<|message|>{NASTY}<|end|><|start|>assistant"
    scripted(monkeypatch, talker, thought + FINAL.format(MARKUP), thought + CALL.format(json.dumps({"a": NASTY})))
    set_up(page, tools=json.dumps([TOOL]))
    send(page, MARKUP)
    page.locator(".code pre").wait_for()
    assert page.locator(".assistant .items > .text").inner_text().startswith(NASTY)
    assert page.locator(".code pre").inner_text().strip() == NASTY
    send(page, "again")
    page.locator(".card textarea").wait_for()
    assert "<img" in page.locator(".card pre").first.inner_text()
    page.locator("summary").last.click()
    assert page.locator(".thought").last.inner_text() == NASTY
    assert page.locator("#log img, #log script, #log a[href^=javascript]").count() == 0 and page.title() == "cgpt"
    links = page.locator("#log a")
    assert links.get_attribute("href") == "https://e.example/b.png" and "nofollow" in links.get_attribute("rel")


def test_no_text_becomes_markup_anywhere_else(page):
    """The browser itself refuses it."""
    refused = page.evaluate("() => { try { document.body.innerHTML = '<b>'; return false; } catch { return true; } }")
    assert refused
    page.problems.clear()


def test_settings(page, talker, monkeypatch):
    prompts = scripted(monkeypatch, talker, *[FINAL.format("1")] * 2)
    asked = []
    page.on("request", lambda request: request.url.endswith("/responses") and asked.append(request.post_data_json))
    page.click("#open-settings")
    assert page.locator("#set-temperature").get_attribute("placeholder") == "1 (the model's)"
    page.fill("#set-temperature", "9")
    page.fill("#set-schema", "[1]")
    assert "2" in page.locator("[data-field=temperature] .problem").inner_text()
    assert "object" in page.locator("[data-field=schema] .problem").inner_text()
    page.click("text=Done")
    assert page.locator("#settings").is_visible()  # until all is good
    page.fill("#set-temperature", "")
    page.click("text=Done")
    assert page.locator("#set-schema:focus").is_visible()
    page.fill("#set-schema", "")
    page.select_option("#set-effort", "high")
    for name, value in {
        "temperature": "0.5",
        "top_p": "0.9",
        "seed": "7",
        "tokens": "50",
        "system": "Be brief.",
    }.items():
        page.fill(f"#set-{name}", value)
    page.click("text=Done")
    send(page, "a")
    finished(page)
    page.reload()
    send(page, "b")
    finished(page, 2)
    wanted = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "max_output_tokens": 50,
        "instructions": "Be brief.",
        "store": False,
    }
    for body in asked:
        assert {name: body[name] for name in wanted} == wanted and body["reasoning"] == {"effort": "high"}
    assert all("Reasoning: high" in prompt and "Be brief." in prompt for prompt in prompts)
    page.click("#open-settings")
    page.click("text=Back to the defaults")
    assert page.locator("#set-system").input_value() == "" and page.locator("#set-effort").input_value() == "medium"


def test_a_schema(page):
    pytest.importorskip("llguidance")
    set_up(page, temperature="0", schema=json.dumps({"type": "object"} | SCHEMA))
    send(page, "Please compute 10 + 5.")
    assert json.loads(finished(page)) == {"n": 42}


def test_a_key_and_errors_in_words(browser, talker):
    with serving(talker, key="secret") as served:
        with tab(browser, served.url) as page:
            page.locator("#set-key:focus").wait_for()
            assert "API key" in page.locator("#notice").inner_text()
            page.fill("#set-key", "secret")
            page.click("text=Done")
            page.wait_for_selector(".welcome")
            assert not page.locator("#notice").is_visible()
            assert "secret" not in page.evaluate("() => JSON.stringify(localStorage)")
            page.route("**/v1/responses", lambda route: route.abort())
            send(page, "a")
            page.locator(".error", has_text="does not answer").wait_for()
            page.unroute("**/v1/responses")
            cut = 'data: {"type": "response.output_item.added", "item": {"type": "message"}}\n\n'
            page.route("**/v1/responses", lambda route: route.fulfill(content_type="text/event-stream", body=cut))
            page.click("text=Try again")
            page.locator(".error", has_text="ended before the answer").wait_for()
            page.unroute("**/v1/responses")
            set_up(page, tools='[{"name": "!"}]')
            page.click("text=Try again")
            page.locator(".error", has_text="letters, digits").wait_for()


def test_a_text_is_continued(browser, texts, writer):
    with tab(browser, texts.url) as page:
        field = page.locator("textarea#text")
        field.wait_for()
        assert page.locator("#views a").count() == 0  # one view needs no choice
        page.click("#go")
        assert "beginning" in page.locator(".error").inner_text()
        set_up(page, temperature="0", top_p="1", tokens="20")
        field.fill("ROMEO:")
        page.keyboard.press("Control+Enter")
        page.locator(".stats", has_text="20 tokens").wait_for()
        whole = writer.generate("ROMEO:", max_new_tokens=20)
        assert field.input_value() == "ROMEO:" + whole.text
        assert page.locator(".layer").text_content() == field.input_value()
        assert page.locator(".token").count() == 20

        # By mouse: another word in place of the fifth token.
        page.locator(".token").nth(4).hover(force=True)
        choices = page.locator("#alternatives button")
        choices.first.wait_for()
        found = writer.generate("ROMEO:", max_new_tokens=5, logprobs=5).top_logprobs[4]
        named = [writer.tokenizer.decode([one]).replace(" ", "␣").replace("\n", "⏎") for one in found]
        assert page.locator("#alternatives .name").all_inner_texts() == named
        choices.nth(1).click()
        page.locator(".stats", has_text="cached").wait_for()
        page.locator("#go:visible").wait_for()
        ids = [*writer.tokenizer.encode("ROMEO:"), *whole.ids[:4], list(found)[1]]
        other = "ROMEO:" + writer.tokenizer.decode(ids[len(writer.tokenizer.encode("ROMEO:")) :])
        assert field.input_value() == other + writer.generate(ids, max_new_tokens=20).text

        page.click("#undo")
        assert field.input_value() == "ROMEO:" + whole.text

        # By keyboard alone, and Escape leads back.
        field.focus()
        field.evaluate("field => field.setSelectionRange(9, 9)")
        page.keyboard.press("Alt+ArrowDown")
        page.locator("#alternatives button:focus").wait_for()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Escape")
        assert page.locator("#alternatives").is_hidden() and field.evaluate("field => field == document.activeElement")

        # An edit keeps what is before it; a reload keeps all.
        field.fill(f"{field.input_value()[:12]}{NASTY}")
        assert page.locator(".layer .own").last.text_content().endswith(NASTY) and page.title() == "cgpt"
        text, tokens = field.input_value(), page.locator(".token").count()
        assert 0 < tokens < 20
        page.reload()
        assert field.input_value() == text and page.locator(".token").count() == tokens
        page.locator("#go").wait_for()
        set_up(page, tokens="200")
        page.click("#go")
        page.keyboard.press("Escape")
        page.locator("#go:visible").wait_for()
        assert page.problems == []


def test_both_views_of_a_model_that_chats(page):
    page.click("#views >> text=Text")
    page.locator("textarea#text").wait_for()
    assert page.locator("#prompt").is_hidden() and page.url.endswith("#text")
    page.reload()
    page.locator("textarea#text").wait_for()
    page.click("#views >> text=Chat")
    page.locator("#prompt:focus").wait_for()  # the view is shown by hashchange, which comes after the click


def test_by_keyboard_alone(page):
    """Everything can be reached by Tab, in the order in which it is seen, and the drawer gives the focus back."""
    names = []
    page.evaluate("() => document.activeElement.blur()")
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(page.evaluate("() => document.activeElement.textContent || document.activeElement.ariaLabel"))
    assert [n for n in names if n in ("Settings", "New chat", "Export all", "Import", "Message")] == [
        "Settings",
        "New chat",
        "Export all",
        "Import",
        "Message",
    ]
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    page.locator("#settings[open]").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.id") == "open-settings"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.skipif(AXE is None, reason="no axe-core here: CGPT_AXE names its axe.min.js")
def test_accessibility(browser, chats, texts, talker, monkeypatch, scheme, width):
    """axe-core finds nothing against WCAG 2.2 AA, and nothing is wider than the screen."""
    scripted(
        monkeypatch, talker, FINAL.format("# T\n\n> q\n\n`c`\n\n```py\nx\n```\n\n|a|\n|-|\n|b|"), CALL.format("{}")
    )
    look = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, "reduced_motion": "reduce"}

    def good(page):
        assert violations(page) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")

    with tab(browser, chats.url, **look) as page:
        page.wait_for_selector(".welcome")
        good(page)
        set_up(page, tools=json.dumps([TOOL]))
        send(page, "a")
        page.locator(".code").wait_for()
        good(page)
        send(page, "b")
        page.locator(".card textarea").wait_for()
        good(page)
        page.locator("text=Edit").first.click()
        good(page)
        page.keyboard.press("Escape")
        page.click("#open-settings")
        page.fill("#set-schema", "{")
        good(page)
        page.fill("#set-schema", "")
        page.click("text=Done")
        if width < 700:
            page.click("#open-chats")
            good(page)
    monkeypatch.undo()  # of what is said
    with tab(browser, texts.url, **look) as page:
        set_up(page, temperature="0", tokens="20")
        page.fill("textarea#text", "ROMEO:")
        page.click("#go")
        page.locator(".stats", has_text="tokens").wait_for()
        page.locator(".token").nth(4).hover(force=True)
        page.locator("#alternatives button").first.wait_for()
        good(page)


FILL = """async () => {
  const { store } = await import("/page/store.js");
  const text = "Some **words** of an answer, `code`, and more of them. ".repeat(12) + "\\n\\n```py\\nx = 1\\n```\\n";
  const nodes = [];
  for (let i = 0; i < 200; i++) {
    const items = [{ type: "message", text, phase: "final_answer" }];
    const node = i % 2 ? { role: "assistant", items, status: "done" } : { role: "user", text: `${i}?` };
    nodes.push({ parent: i - 1, ...node });
  }
  await store.put({ id: "long", title: "long", updated: 1, nodes, leaf: 199 });
  sessionStorage.setItem("cgpt-chat", "long");
}"""
# An answer of 600 tokens, 200 a second, and the time between frames meanwhile.
FAKE = """() => {
  const real = window.fetch;
  window.fetch = (path, options) => {
    if (!String(path).endsWith("v1/responses")) return real(path, options);
    const coder = new TextEncoder(), began = performance.now();
    let sent = 0;
    const event = data => coder.encode(`event: x\\ndata: ${JSON.stringify(data)}\\n\\n`);
    const body = new ReadableStream({ start(controller) {
      controller.enqueue(event({ type: "response.output_item.added", item: { type: "message" } }));
      const timer = setInterval(() => {
        for (; sent < 600 && sent < (performance.now() - began) / 5; sent++) {
          controller.enqueue(event({ type: "response.output_text.delta", delta: sent % 40 ? " word" : "\\n\\n" }));
        }
        if (sent < 600) return;
        clearInterval(timer);
        controller.enqueue(event({ type: "response.completed", response: { usage: { output_tokens: 600 } } }));
        controller.close();
      }, 5);
    } });
    return Promise.resolve(new Response(body));
  };
  window.frames_ = [];
  let last = performance.now();
  const frame = now => { window.frames_.push(now - last); last = now; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
}"""


def test_a_long_conversation_stays_fluent(browser, chats):
    """200 messages, and 200 tokens a second more: a frame takes 50 ms at most, here with room for a busy machine."""
    with tab(browser, chats.url, viewport={"width": 1280, "height": 800}) as page:
        page.wait_for_selector(".welcome")
        page.evaluate(FILL)
        page.reload()
        page.locator(".message").nth(199).wait_for(state="attached")
        page.wait_for_timeout(1000)
        page.evaluate(FAKE)
        send(page, "more")
        page.locator(".stats", has_text="600 tokens").wait_for()
        frames = sorted(page.evaluate("() => window.frames_"))
        median, most = frames[len(frames) // 2], frames[int(len(frames) * 0.95)]
        print(f"{len(frames)} frames: median {median:.1f} ms, 95 % {most:.1f} ms, the longest {frames[-1]:.1f} ms")
        assert page.locator(".message").count() == 202
        assert most < 60
