"""What the model thought, for clients that send back nothing else of it."""

from __future__ import annotations

import base64


def sealed(text: str) -> str:
    """A text that is opaque to clients, but no secret, as it leaves in clear too."""
    return base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")


def unsealed(content: str) -> str | None:
    """The text in what a client sends back, which anybody may have made; None if it is none of this server's kind."""
    try:
        return base64.b64decode(content, validate=True).decode("utf-8")
    except ValueError:
        return None
