"""Debian's Chromium, or another one that is here, driven by Playwright."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = os.environ.get("CGPT_AXE")  # axe.min.js of npm's axe-core


def missing():
    """Why there is no browser to test with; None where there is one."""
    if sync_playwright is None:
        return "no playwright here: pip install -e '.[browser]'"
    return None if CHROMIUM else "no chromium here: apt-get install chromium"


@contextmanager
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser, url, **options):
    """A page with a profile of its own. page.problems: what it and its content security policy complained of;
    page.asked: the addresses it asked."""
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.problems, page.asked = [], []
    page.on("console", lambda said: said.type in ("warning", "error") and page.problems.append(said.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    try:
        page.goto(url)
        yield page
    finally:
        context.close()


def violations(page):
    """What axe-core finds against WCAG 2.2 AA, [(rule, first element)]."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(Path(AXE).read_text("utf-8"))
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = page.evaluate("tags => axe.run({ runOnly: tags })", tags)["violations"]
    return [(one["id"], one["nodes"][0]["html"], one["nodes"][0].get("failureSummary")) for one in found]
