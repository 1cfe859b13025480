"""The endpoint /: a page to try the model with, in one file."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse

from cgpt.serve.service import Service

HTML = Path(__file__).with_name("page.html").read_text("utf-8")


def _hashes(tag: str) -> str:
    """The names that a content security policy has for the page's own inline parts."""
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.S)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts)


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; connect-src 'self'; script-src {_hashes('script')}; "
    f"style-src {_hashes('style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


async def page(_: Service) -> HTMLResponse:
    return HTMLResponse(HTML, headers=HEADERS)
