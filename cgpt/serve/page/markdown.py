"""The endpoint /markdown: the messages of the page as HTML, in which nothing runs and nothing is loaded."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import nh3
from markdown_it import MarkdownIt

from cgpt.serve.errors import ApiError
from cgpt.serve.service import Service
from cgpt.serve.validation import Bounds, Reads, RequestModel

TAGS = set("p br hr h1 h2 h3 h4 h5 h6 strong em s code pre blockquote ul ol li table thead tbody tr th td a".split())
LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
LANGUAGE = re.compile(r"language-[\w+#.-]{1,32}\Z", re.ASCII)
MAX_NESTING = 20  # of blocks, and of brackets and emphasis in a line
RENDERER = ThreadPoolExecutor(1, "cgpt-markdown")  # one text at a time, beside what else takes long
WAITING = threading.BoundedSemaphore(64)


class Markdown(MarkdownIt):
    """CommonMark with tables and strikethrough. HTML, images, and links to other than web and mail addresses stay the
    text that they are."""

    def __init__(self) -> None:
        super().__init__("commonmark", {"html": False, "maxNesting": MAX_NESTING})
        self.enable(["table", "strikethrough"]).disable("image")

    def validateLink(self, url: str) -> bool:
        return LINK.match(url) is not None


def _kept(tag: str, name: str, value: str) -> str | None:
    pattern = {"class": LANGUAGE, "href": LINK}.get(name)
    return value if pattern is None or pattern.match(value) else None


MARKDOWN = Markdown()
# A second opinion on what the first lets through.
CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes={"a": {"href", "title"}, "ol": {"start"}, "code": {"class"}},
    attribute_filter=_kept,
    set_tag_attribute_values={"a": {"target": "_blank"}},
    link_rel="noopener noreferrer nofollow",
    url_schemes={"http", "https", "mailto"},
)


def to_html(text: str) -> str:
    """Renders Markdown as sanitized HTML."""
    return CLEANER.clean(MARKDOWN.render(text.encode("utf-8", "replace").decode()))  # neither takes lone surrogates


def _read_text(value: Any, bounds: Bounds) -> str | None:
    return value if isinstance(value, str) and len(value) <= bounds["markdown"] else None


TEXT = {"type": "string", "maxLength": "{markdown}"}


class MarkdownRequest(RequestModel):
    unknown_prefix = ""

    text: Annotated[str, Reads(_read_text, "must be a text of {markdown} characters at most", TEXT)]


@dataclass
class Rendered:
    html: str


async def markdown(service: Service, body: MarkdownRequest) -> Rendered:
    if not WAITING.acquire(blocking=False):
        message = "too many texts wait to be rendered; try again"
        raise ApiError(message, 429, "rate_limit_error", "rate_limit_exceeded", headers={"Retry-After": "1"})
    try:
        return Rendered(await asyncio.get_running_loop().run_in_executor(RENDERER, to_html, body.text))
    finally:
        WAITING.release()
