"""The two tools that gpt-oss was trained with, as the system message has them: their names, descriptions and arguments.

The texts are part of the format, to the byte what openai-harmony 0.0.8 gives. Nothing here searches or runs anything:
the model's calls are its caller's to answer. It calls "browser.search", "browser.open" and "browser.find" with JSON,
and "python" with Python code, all of them on the analysis channel, where their results belong too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cgpt.chat.messages import Namespace, Tool
from cgpt.errors import InputError
from cgpt.fields import shown

_STRING, _LATEST = {"type": "string"}, {"type": "number", "default": -1}


def _arguments(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


BROWSER = Namespace(
    "browser",
    "Tool for browsing.\n"
    "The `cursor` appears in brackets before each browsing display: `[{cursor}]`.\n"
    "Cite information from the tool using the following format:\n"
    "`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.\n"
    "Do not quote more than 10 words directly from the tool output.\n"
    "sources=web (default: web)",
    (
        Tool(
            "search",
            "Searches for information related to `query` and displays `topn` results.",
            _arguments("query", query=_STRING, topn={"type": "number", "default": 10}, source=_STRING),
        ),
        Tool(
            "open",
            "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing "
            "`num_lines` lines.\n"
            "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
            "If `cursor` is not provided, the most recent page is implied.\n"
            "If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
            "If `loc` is not provided, the viewport will be positioned at the beginning of the document or centered "
            "on the most relevant passage, if available.\n"
            "Use this function without `id` to scroll to a new location of an opened page.",
            _arguments(
                id={"type": ["number", "string"], "default": -1},
                cursor=_LATEST,
                loc=_LATEST,
                num_lines=_LATEST,
                view_source={"type": "boolean", "default": False},
                source=_STRING,
            ),
        ),
        Tool(
            "find",
            "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
            _arguments("pattern", pattern=_STRING, cursor=_LATEST),
        ),
    ),
)
PYTHON = Namespace(
    "python",
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This tool "
    "should be used for internal reasoning, but not for code that is intended to be visible to the user (e.g. when "
    "creating plots, tables, or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook "
    "environment. python will respond with the output of the execution or time out after 120.0 seconds. The drive at "
    "'/mnt/data' can be used to save and persist user files. Internet access for this session is UNKNOWN. Depends on "
    "the cluster.",
)
BUILTIN = {space.name: space for space in (BROWSER, PYTHON)}


def builtin_namespaces(tools: Iterable[str | Namespace]) -> tuple[Namespace, ...]:
    """The namespaces of "browser" and "python"; a Namespace, as of a browser with another description, is itself."""
    if isinstance(tools, str) or not isinstance(tools, Iterable):
        raise InputError(f'builtin_tools is a list of names, as in ["python"], not {shown(tools)}')
    made: list[Namespace] = []
    for tool in tools:
        space = tool if isinstance(tool, Namespace) else BUILTIN.get(tool) if isinstance(tool, str) else None
        if space is None:
            raise InputError(f"a built-in tool is {' or '.join(BUILTIN)}, or a Namespace, not {shown(tool)}")
        if space.name in [other.name for other in made]:
            raise InputError(f"two built-in tools are called {space.name}")
        made.append(space)
    return tuple(made)
