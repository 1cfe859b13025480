"""The harmony chat format as demo-gpt-oss sees it: messages to text, a completion's text to its answer."""

import json
import re

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
TOOL_LINE = "\nCalls to these tools must go to the commentary channel: 'functions'."
TOOLS = (
    "# Tools\n\n## functions\n\nnamespace functions {\n\n// Gets the weather in a city.\n"
    "type get_weather = (_: {\ncity: string,\n}) => any;\n\n} // namespace functions"
)
GENERATION_PROMPT = ["<|start|>", "assistant"]

# Special tokens by their offset from the first special id, as in o200k_harmony (199998 + offset)
SPECIALS = [
    "<|startoftext|>",
    "<|endoftext|>",
    None,
    None,
    "<|return|>",
    "<|constrain|>",
    None,
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    None,
    None,
    None,
    "<|call|>",
]
MESSAGE = re.compile(
    r"(?:^|<\|start\|>assistant)<\|channel\|>(.*?)<\|message\|>(.*?)"
    r"(?:<\|end\|>|<\|return\|>|<\|call\|>|$)",
    re.S,
)


def system_message(effort="medium", date=None, tools=False, identity=IDENTITY):
    date = f"Current date: {date}\n" if date else ""
    return f"{identity}\nKnowledge cutoff: 2024-06\n{date}\nReasoning: {effort}\n\n{CHANNELS}" + (
        TOOL_LINE if tools else ""
    )


def developer_message(instructions=None, tools=False):
    parts = ([f"# Instructions\n\n{instructions}"] if instructions else []) + ([TOOLS] if tools else [])
    return "\n\n".join(parts)


def render_message(m):
    """One message (a dict with role, content and, if any, channel, recipient, in_role, name, end) as a list
    of pieces: special tokens and ordinary texts, each text to be tokenised on its own."""
    if m["role"] == "tool":
        head = [f"functions.{m['name']} to=assistant", "<|channel|>", "commentary"]
    elif m.get("recipient"):  # a tool call; its recipient may stand in the role
        to = f" to={m['recipient']}"
        head = (
            ["assistant" + to, "<|channel|>", "commentary "]
            if m.get("in_role")
            else ["assistant", "<|channel|>", f"commentary{to} "]
        )
        head = head + ["<|constrain|>", "json"]
    else:
        head = [m["role"]] + (["<|channel|>", m["channel"]] if m.get("channel") else [])
    return ["<|start|>", *head, "<|message|>", m["content"], m.get("end", "<|end|>")]


def parse(text):
    """A completion's text (what follows "<|start|>assistant") as {channel: content}, a tool call as
    {"call": (recipient, content)}."""
    out = {}
    for head, body in MESSAGE.findall(text):
        if to := re.search(r"to=(\S+)", head):
            out["call"] = (to[1], body)
        else:
            out[head.strip()] = body
    return out


def correct(text, answer):
    """Whether a completion gives the answer: exactly that final text, or a call with those arguments."""
    got = parse(text)
    if isinstance(answer, dict):
        try:
            return got["call"][0] == answer["name"] and json.loads(got["call"][1]) == answer["arguments"]
        except (KeyError, ValueError):
            return False
    return got.get("final") == answer
