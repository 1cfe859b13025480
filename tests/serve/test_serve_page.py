"""The page at /, in a real browser where there is one."""

import re
import time

import pytest

import cgpt
from cgpt.serve.page import HEADERS, HTML

from support.browser import CHROMIUM, browser
from support.serve_cases import serving, wait_for

NASTY = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def model():
    return cgpt.load("demo-gpt2", precision="exact")


def test_it_needs_nothing_else():
    """No address of another place, no markup made of text."""
    assert not re.search(r"(src|href|url|import)\s*[=(]", HTML)
    assert "//" not in re.sub(r"^\s*// .*$", "", HTML, flags=re.M)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(| on\w+=", HTML)
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'; script-src 'sha256-") and "unsafe" not in policy


def test_it_is_served(model):
    with serving(model) as served:
        status, headers, text = served.ask("GET", "/")
        assert status == 200 and text == HTML and headers["content-security-policy"]


def hands(page):
    """What a visitor does: ask(), shown() and waiting until it is done()."""

    def ask(prompt, tokens):
        for name, value in {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "top_p": 1}.items():
            page.run(f"document.querySelector('#{name}').value = {value!r}")
        page.run("document.querySelector('#go').click()")

    def shown(selector):
        return page.run(f"[...document.querySelectorAll({selector!r})].at(-1).textContent")

    def done():
        page.wait("!document.querySelector('#go').disabled")

    return ask, shown, done


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_completions_in_a_browser(model, tmp_path, monkeypatch):
    with serving(model, key="k", max_running=1) as served, browser(tmp_path) as page:
        page.open(served.url)
        page.wait("document.querySelector('#about').textContent.includes('wants its API key')")
        page.problems.clear()  # that 401 is one
        page.run("key.value = 'k'; key.dispatchEvent(new Event('change'))")
        page.wait("document.querySelector('#about').textContent == 'demo, 256 tokens of context'")
        assert page.run("document.querySelector('#prompt').value") == "ROMEO:"

        ask, shown, done = hands(page)
        ask("ROMEO:", 20)
        done()
        assert shown(".text") == model.generate("ROMEO:", max_new_tokens=20).text and shown(".given") == "ROMEO:"
        assert shown("#state").startswith("5 + 20 tokens") and shown("#problem") == ""

        ask(NASTY, 3)  # is echoed, and stays text
        done()
        assert shown(".given") == NASTY and page.run("document.title") == "cgpt"
        assert page.run("document.querySelectorAll('#answer *').length") == 2

        ask("a", 10**6)
        done()
        assert "max_tokens must be an integer from 0 to" in shown("#problem")

        step = model.transformer.step
        monkeypatch.setattr(model.transformer, "step", lambda *a, **h: time.sleep(0.02) or step(*a, **h))
        ask("a", 250)
        page.wait("document.querySelector('.text').textContent.length > 5")
        page.run("document.querySelector('#stop').click()")
        wait_for(lambda: served.engine.running == 0, 3)
        done()
        assert served.engine.stats.finished["cancelled"] == 1 and shown("#problem") == ""
        assert all(url.startswith(served.url) for url in page.requests)
        assert [one for one in page.problems if "400" not in one] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_chat_in_a_browser(tmp_path):
    with serving(cgpt.load("demo-gpt-oss", precision="exact")) as served, browser(tmp_path) as page:
        page.open(served.url)
        page.wait("document.querySelector('#go').textContent == 'Send'")
        ask, shown, done = hands(page)
        ask("Please compute 10 + 5.", 100)
        done()
        assert shown(".text") == "15" and shown(".reasoning").startswith("10+5") and shown("#problem") == ""
        assert page.run("document.querySelector('#prompt').value") == ""
        ask("Please sort 3, 1.", 100)
        done()
        assert page.run("document.querySelectorAll('.given').length") == 2
        assert page.run("messages.map(m => m.role).join()") == "user,assistant,user,assistant"
        assert shown("#state").split()[0] != "67"  # the second prompt holds the first
        page.run("document.querySelector('#new').click()")
        ask("Please compute 10 + 5.", 100)
        done()
        assert shown("#state").startswith("67 + ") and page.run("document.querySelectorAll('.given').length") == 1
        assert page.problems == []
