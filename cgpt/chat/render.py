"""Messages to token ids, as openai-harmony 0.0.8 renders them.

Texts are encoded as ordinary text: a user who writes <|start|> has written nine characters. Where this differs from
openai-harmony on purpose: roles, names, channels and recipients must be words, because one with a space would be read
back as something else; and `drop_analysis="finished"`, the default, see kept_messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from cgpt.chat.messages import CONSTRAIN, Developer, Message, Namespace, ResponseFormat, SpecialTokens, System
from cgpt.chat.typescript import typescript
from cgpt.errors import InputError
from cgpt.fields import shown
from cgpt.tokenizer.tokenizer import Tokenizer

DROPS = ("finished", "reference", "none")


def render_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    next_role: str | None = "assistant",
    drop_analysis: str = "finished",
) -> list[int]:
    """The ids of a conversation, and of the beginning of the next message, of `next_role` (None: of none).

    drop_analysis: see kept_messages. ChatError where the vocabulary lacks the format's special tokens.
    """
    special = SpecialTokens(tokenizer)
    for message in messages:
        if not isinstance(message, Message):
            raise InputError(f"a conversation is made of Messages, not of {shown(message)}")
    functions = has_functions(messages)
    ids: list[int] = []
    for message in kept_messages(messages, drop_analysis):
        ids += render_message(tokenizer, special, message, functions)
    return ids + ([special.start, *tokenizer.encode_part(next_role)] if next_role else [])


def head_messages(system: System, developer: Developer) -> list[Message]:
    """The messages that a conversation begins with; a developer message only where it says something."""
    return [Message("system", system), *([Message("developer", developer)] if developer != Developer() else [])]


def kept_messages(messages: Sequence[Message], drop_analysis: str = "finished") -> list[Message]:
    """The messages that the model is shown.

    "finished": no analysis of a turn that ended in a final answer, which is what the format's description asks for;
    a running tool loop keeps its own. "reference": what openai-harmony does, the same for one turn: if the
    assistant's last message is final, it drops the analysis before the first final one. "none": drops nothing.
    """
    if drop_analysis not in DROPS:
        raise InputError(f"drop_analysis is one of {', '.join(DROPS)}, not {shown(drop_analysis)}")
    finals = [i for i, m in enumerate(messages) if m.channel == "final" and m.role == "assistant"]
    if drop_analysis == "finished":
        until = finals[-1] if finals else 0
    else:
        last = next((m for m in reversed(messages) if m.role == "assistant"), None)
        ended = drop_analysis == "reference" and last is not None and last.channel == "final"
        until = next((i for i, m in enumerate(messages) if m.channel == "final"), 0) if ended else 0
    return [m for i, m in enumerate(messages) if i >= until or m.channel != "analysis"]


def has_functions(messages: Iterable[Message]) -> bool:
    """Whether a developer message offers functions, which the system message then speaks of."""
    developers = [message.content for message in messages if isinstance(message.content, Developer)]
    return any(space.name == "functions" and space.tools for one in developers for space in one.all_namespaces)


def render_message(
    tokenizer: Tokenizer, special: SpecialTokens, message: Message, functions: bool = False
) -> list[int]:
    """The ids of one message, from <|start|> to <|end|>, or to <|call|> if the assistant calls somebody.

    functions: whether the conversation has any, for the system message.
    """
    for part in ("name", "channel", "recipient"):
        _require_word(part, getattr(message, part))
    parts = [message.name] if message.role == "tool" else [message.role, message.name]
    author = ":".join(part for part in parts if part)
    recipient = f" to={message.recipient}" if message.recipient not in (None, "all") else ""
    ids = [special.start, *tokenizer.encode_part(author + recipient)]
    if message.channel is not None:
        ids += [special.channel, *tokenizer.encode_part(message.channel)]
    kind = message.content_type
    if kind is not None and kind.startswith(CONSTRAIN):
        ids += [*tokenizer.encode_part(" "), special.constrain, *tokenizer.encode_part(kind[len(CONSTRAIN) :])]
    elif kind is not None:
        ids += tokenizer.encode_part(f" {kind}")
    called = message.role == "assistant" and message.recipient is not None
    end = special.call if called else special.end
    return [*ids, special.message, *tokenizer.encode_part(content_text(message.content, functions)), end]


def _require_word(part: str, value: str | None) -> None:
    if value is not None and (not value or len(value.split()) != 1 or value != value.strip()):
        raise InputError(f"the {part} of a message is one word without spaces, not {shown(value)}")


def content_text(content: str | System | Developer, functions: bool = False) -> str:
    """The text of a message's content."""
    if isinstance(content, System):
        return _system_text(content, functions)
    return _developer_text(content) if isinstance(content, Developer) else content


def _system_text(content: System, functions: bool) -> str:
    lines = {"": content.identity, "Knowledge cutoff: ": content.knowledge_cutoff, "Current date: ": content.date}
    given = [label + text for label, text in lines.items() if text is not None]
    sections = ["\n".join(given)] if given else []
    if content.reasoning:
        sections.append(f"Reasoning: {content.reasoning}")
    if content.namespaces:
        sections.append(_tools_text(content.namespaces))
    if content.channels:
        channels = f"# Valid channels: {', '.join(content.channels)}."
        channels += " Channel must be included for every message." if content.channel_required else ""
        channels += "\nCalls to these tools must go to the commentary channel: 'functions'." if functions else ""
        sections.append(channels)
    return "\n\n".join(sections)


def _developer_text(content: Developer) -> str:
    sections = [] if content.instructions is None else [f"# Instructions\n\n{content.instructions}"]
    if content.all_namespaces:
        sections.append(_tools_text(content.all_namespaces))
    if content.response_format:
        sections.append(_format_text(content.response_format))
    return "\n\n".join(sections)


def _tools_text(namespaces: Iterable[Namespace]) -> str:
    by_name = {space.name: space for space in namespaces}
    return "\n\n".join(["# Tools", *(_namespace_text(by_name[name]) for name in sorted(by_name))])


def _namespace_text(space: Namespace) -> str:
    out = [f"## {space.name}\n", *_lines(space.description or "", "// " if space.tools else "")]
    if space.tools:
        out.append(f"namespace {space.name} {{\n")
        for tool in space.tools:
            out += _lines(tool.description, "// ")
            try:
                arguments = "" if tool.parameters is None else f"_: {typescript(tool.parameters)}"
            except (TypeError, RecursionError) as problem:
                raise InputError(f"the parameters of the tool {tool.name} are no JSON: {problem}") from None
            out.append(f"type {tool.name} = ({arguments}) => any;\n")
        out.append(f"}} // namespace {space.name}")
    return "\n".join(out)


def _lines(text: str, prefix: str) -> list[str]:
    """The lines of `text`, each after the prefix; they end in LF or CR LF, and the last may do without."""
    *ended, last = text.split("\n")
    return [prefix + line for line in [*(line.removesuffix("\r") for line in ended), *([last] if last else [])]]


def _format_text(wanted: ResponseFormat) -> str:
    comment = "".join(f"{line}\n" for line in _lines(wanted.description or "", "// "))
    try:
        schema = json.dumps(wanted.schema, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as problem:
        raise InputError(f"the schema of the response format {wanted.name} is no JSON: {problem}") from None
    return f"# Response Formats\n\n## {wanted.name}\n\n{comment}{schema}"
