"""The files of the page at /, and the endpoint that renders its messages. test_page_in_browser.py has what they do."""

import html
import re
import threading

import pytest

import cgpt
from cgpt.serve.limits import Limits
from cgpt.serve.page import markdown
from cgpt.serve.page.assets import CONTENTS, HEADERS

from support.serve_cases import serving, wait_for

TEXTS = {name: content.decode() for name, content in CONTENTS.items()}
SCRIPTS = sorted(name for name in TEXTS if name.endswith(".js"))


@pytest.fixture(scope="module")
def model():
    return cgpt.load("demo-gpt2", precision="exact")


@pytest.fixture(scope="module")
def served(model):
    with serving(model, key="k", limits=Limits(markdown=1000)) as served:
        yield served


def test_it_needs_nothing_else_and_is_light():
    """No address of another place, nothing inline, and one place where text becomes markup."""
    assert sum(map(len, CONTENTS.values())) < 150_000
    for name, text in TEXTS.items():
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text, name
        assert not re.search(
            r"<script>|<style|\son\w+=\"|eval\(|Function\(|outerHTML|insertAdjacent|document\.write", text
        ), name
    assert [name for name in SCRIPTS if "innerHTML" in TEXTS[name]] == ["markdown.js"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_every_file_that_is_named_is_there():
    for name in SCRIPTS:
        assert set(re.findall(r'from "\./([\w.-]+)"', TEXTS[name])) <= set(TEXTS), name
    assert set(re.findall(r'"page/([\w.-]+)"', TEXTS["index.html"])) <= set(TEXTS)


def test_the_files_need_no_key_and_are_told_unchanged(served):
    status, headers, text = served.ask("GET", "/")
    assert (status, text) == (200, TEXTS["index.html"]) and headers["content-security-policy"].startswith(
        "default-src 'none'"
    )
    for name in SCRIPTS:
        status, headers, text = served.ask("GET", f"/page/{name}")
        assert (status, text) == (200, TEXTS[name]) and headers["content-type"].startswith("text/javascript")
        assert headers["x-content-type-options"] == "nosniff" and headers["content-security-policy"]
        assert served.ask("GET", f"/page/{name}", headers={"If-None-Match": headers["etag"]})[0] == 304
    assert served.ask("HEAD", "/page/main.js")[0] == 200


@pytest.mark.parametrize("name", ["assets.py", "__init__.py", "..%2fassets.py", "../app.py", "nothing.js", ""])
def test_there_are_no_others(served, name):
    assert served.ask("GET", f"/page/{name}")[0] in (401, 404)  # 401: a path that is none of the page's


def test_the_card_of_a_model_tells_its_defaults(model):
    with serving(model, limits=Limits(max_tokens=77)) as served:
        (card,) = served.ask("GET", "/v1/models")[2]["data"]
        assert card["sampling_defaults"] == dict(model.sampling_defaults) and card["max_output_tokens"] == 77
    with serving(cgpt.load("demo-gpt-oss", precision="exact")) as served:
        (card,) = served.ask("GET", "/v1/models")[2]["data"]
        assert card["sampling_defaults"]["temperature"] == 1


def rendered(served, text):
    status, _, answer = served.ask("POST", "/markdown", {"text": text}, {"Authorization": "Bearer k"})
    assert status == 200, answer
    return answer["html"]


def test_markdown_is_rendered(served):
    made = rendered(
        served,
        "# T\n\na **b** `c` ~~d~~\n\n```python\nx < 1\n```\n\n|a|b|\n|-|-|\n|1|2|\n\n[l](https://e.example/?a=1&b)",
    )
    for part in (
        "<h1>T</h1>",
        "<strong>b</strong>",
        "<code>c</code>",
        "<s>d</s>",
        '<code class="language-python">x &lt; 1\n</code>',
    ):
        assert part in made
    assert "<td>2</td>" in made and 'href="https://e.example/?a=1&amp;b"' in made
    assert 'rel="noopener noreferrer nofollow"' in made and 'target="_blank"' in made
    assert rendered(served, "a \ud800 b") == "<p>a ? b</p>\n"


NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://e.example/x.png)",
    "![x](data:image/png;base64,AAAA)",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&colon;alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:x)",
    "[x](//e.example/x)",
    "[x](/v1/models)",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "[x](<javascript:alert(1)>)",
    "<a href='javascript:alert(1)'>x</a>",
    "<svg onload=alert(1)>",
    "<iframe src=https://e.example></iframe>",
    "<style>*{display:none}</style>",
    "`<b onmouseover=alert(1)>`",
    '```"onclick=alert(1) class="x\n<b>\n```',
    "```x language-y z\n```",
    '[x](https://e.example "onclick=\\"alert(1)")',
    "|<img src=x onerror=alert(1)>|\n|-|\n|<b>|",
    "<math><mtext></p><img src=x onerror=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!-- --><script>alert(1)</script>-->",
]
NAMES = "|".join(sorted(markdown.TAGS - {"a"}))
HREF = '(?: href="(?:https?://|mailto:)[^"<>]*"| title="[^"<>]*")'
REL = '(?: rel="noopener noreferrer nofollow"| target="_blank")'
ALLOWED = re.compile(rf'</?({NAMES})>|<code class="language-[\w+#.-]+">|<ol start="\d+">|<a(?:{HREF}|{REL})+>|</a>')


@pytest.mark.parametrize("text", NASTY)
def test_what_could_run_or_load_stays_text(served, text):
    made = rendered(served, text)
    assert not re.search("[<>]", ALLOWED.sub("", made)), made


@pytest.mark.parametrize("text", ["[x](javascript:alert(1))", "[x](/v1/models)", "<b onclick=alert(1)>"])
def test_the_renderer_alone_keeps_it_as_text(text):
    assert html.unescape(markdown.MARKDOWN.render(text)) == f"<p>{text}</p>\n"


@pytest.mark.parametrize("text", NASTY)
def test_the_second_opinion_alone_lets_nothing_run(text):
    """Were the renderer to let HTML through, the cleaner would not."""
    loose = markdown.Markdown()
    loose.options["html"] = True
    loose.validateLink = lambda url: True
    made = markdown.CLEANER.clean(loose.enable("image").render(text))
    assert not re.search("[<>]", ALLOWED.sub("", made)), made
    assert not re.search(r'href="(?!https?://|mailto:)', made)


def test_it_is_bounded_and_behind_the_key(served):
    assert served.ask("POST", "/markdown", {"text": "x"})[0] == 401
    assert (
        served.ask("POST", "/markdown", {"text": "x"}, {"Host": "evil.example", "Authorization": "Bearer k"})[0] == 403
    )
    key = {"Authorization": "Bearer k"}
    for body in ({"text": "x" * 1001}, {"text": 1}, {}):
        status, _, answer = served.ask("POST", "/markdown", body, key)
        assert status == 400 and answer["error"]["param"] == "text"


def test_others_are_answered_while_it_renders(served, monkeypatch):
    """One text at a time in a thread of its own; where too many wait, the next one is told so."""
    go, running = threading.Event(), []
    monkeypatch.setattr(markdown, "to_html", lambda text: running.append(text) or go.wait(10) and text)
    monkeypatch.setattr(markdown, "WAITING", threading.BoundedSemaphore(2))
    asking = [threading.Thread(target=rendered, args=(served, str(i))) for i in range(2)]
    for one in asking:
        one.start()
    wait_for(lambda: running and not markdown.WAITING._value)
    assert len(running) == 1
    assert served.ask("GET", "/health")[0] == 200
    status, headers, _ = served.ask("POST", "/markdown", {"text": "3"}, {"Authorization": "Bearer k"})
    assert status == 429 and headers["retry-after"] == "1"
    go.set()
    for one in asking:
        one.join(10)
    assert running == ["0", "1"] or running == ["1", "0"]
    assert rendered(served, "4") == "4"
