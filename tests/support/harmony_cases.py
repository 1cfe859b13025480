"""openai-harmony as the oracle of the harmony format, offline, and what hypothesis draws for both sides."""

import lzma
import os
from pathlib import Path
from unittest import mock

import pytest

import cgpt
from cgpt.chat import messages

RANKS = Path(cgpt.__file__).parent / "tokenizer" / "data" / "o200k_base.tiktoken.xz"
VERSION = "0.0.8"


class Reference:
    """The encoding of openai-harmony, fed with our messages."""

    def __init__(self, folder):
        self.package = pytest.importorskip("openai_harmony", reason="openai-harmony is not installed")
        from importlib.metadata import version

        if version("openai-harmony") != VERSION:
            pytest.skip(f"the tests compare with openai-harmony {VERSION}, found {version('openai-harmony')}")
        (folder / "o200k_base.tiktoken").write_bytes(lzma.decompress(RANKS.read_bytes()))
        with mock.patch.dict(os.environ, TIKTOKEN_ENCODINGS_BASE=str(folder)):
            self.encoding = self.package.load_harmony_encoding("HarmonyGptOss")

    def conversation(self, messages):
        return self.package.Conversation.from_messages([self.message(m) for m in messages])

    def message(self, message):
        author = self.package.Author(role=self.package.Role(message.role), name=message.name)
        made = self.package.Message.from_author_and_content(author, self.content(message.content))
        made.channel, made.recipient, made.content_type = message.channel, message.recipient, message.content_type
        return made

    def content(self, content):
        if isinstance(content, messages.System):
            return self.package.SystemContent(
                model_identity=content.identity,
                reasoning_effort=content.reasoning and content.reasoning.capitalize(),
                conversation_start_date=content.date,
                knowledge_cutoff=content.knowledge_cutoff,
                channel_config={"valid_channels": list(content.channels), "channel_required": content.channel_required},
                tools=self.namespaces(content.namespaces),
            )
        if isinstance(content, messages.Developer):
            functions = (messages.Namespace("functions", tools=content.tools),) if content.tools else ()
            return self.package.DeveloperContent(
                instructions=content.instructions, tools=self.namespaces((*content.namespaces, *functions))
            )
        return content

    def namespaces(self, namespaces):
        return {
            space.name: {
                "name": space.name,
                "description": space.description,
                "tools": [
                    {"name": t.name, "description": t.description, "parameters": t.parameters} for t in space.tools
                ],
            }
            for space in namespaces
        } or None

    def typescript(self, schema):
        tool = messages.Tool("f", "", schema)
        ids = self.encoding.render(self.message(messages.Message("developer", messages.Developer(tools=(tool,)))))
        text = self.encoding.decode(ids)
        return text[text.index("(_: ") + 4 : text.rindex(") => any;")]
