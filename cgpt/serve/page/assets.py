"""The endpoint /, and the files that the page there is made of, below /page/. Each view of the page is a module of its
own, which web/main.js lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cgpt.serve.guard import ASSETS
from cgpt.serve.service import Service

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {one.name: one for one in Path(__file__).with_name("web").iterdir() if one.suffix in TYPES}
CONTENTS = {name: path.read_bytes() for name, path in sorted(FILES.items())}
# Nothing from elsewhere, nothing inline; and where the browser knows trusted types, no markup is made of text but by
# the policy of that name, which web/markdown.js has for what /markdown has sanitized.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types markdown",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def page(_: Service) -> Response:
    return Response(CONTENTS["index.html"], media_type=TYPES[".html"], headers=HEADERS)


async def asset(request: Request) -> Response:
    """Answers with a file of the page; a browser that has the same already is told so."""
    name = request.path_params["name"]
    if name not in CONTENTS:
        raise HTTPException(404, f"the page has no file {name[:80]!r}")
    tag = f'"{hashlib.sha256(CONTENTS[name]).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(CONTENTS[name], media_type=TYPES[FILES[name].suffix], headers=headers)


ROUTE = Route(f"{ASSETS}{{name}}", asset)
