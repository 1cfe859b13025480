"""Token ids of the harmony format to messages, one id at a time, whatever the ids are.

A model that samples sometimes leaves out a token or writes a header in a way of its own. Nothing of that is an error
here: what can be understood is repaired, the rest becomes text, and `repairs` counts each kind. Well-formed ids give
the messages that openai-harmony 0.0.8 gives; beyond these, where it takes them at all, the differences are:
* <|start|> or <|channel|> within a content that goes on to <|message|> begins a new message (a lost <|end|>);
* a header word that begins with <|constrain|> is the content type, and a word without "to=" is the recipient only if
  it has a dot or a content type after it; openai-harmony calls any lone word the recipient;
* "user:NAME" and the like give role and name; a tool's message needs no recipient.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from cgpt.chat.messages import CHANNELS, CONSTRAIN, Message, SpecialTokens
from cgpt.errors import InputError, TokenIdError
from cgpt.fields import shown
from cgpt.tokenizer.tokenizer import Tokenizer

MAX_HEADER = 512  # tokens; what is longer is text
_OWN_ROLES = ("system", "developer", "user", "assistant")


@dataclass
class Header:
    """What the header of a message says; see cgpt.chat.messages.Message for the fields."""

    role: str
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


@dataclass(frozen=True)
class MessageDelta:
    """Text that the message number `index` has got. The first delta of a message has the text ""."""

    text: str
    header: Header
    index: int


class Parser:
    """Takes ids by push(), and the end by finish().

    role: of the message whose <|start|> and role the prompt already held, as generation does; None if the ids begin
        with <|start|>.
    messages: those that are complete. repairs: how often each kind of repair was made. Time is linear in the ids.
    """

    def __init__(self, tokenizer: Tokenizer, role: str | None = "assistant") -> None:
        if role not in (None, *_OWN_ROLES):
            raise InputError(f"role is one of {', '.join(_OWN_ROLES)} or None, not {shown(role)}")
        self._tokenizer = tokenizer
        self._special = SpecialTokens(tokenizer)
        self._specials = frozenset(tokenizer.special_tokens.values())
        self._default_role = role or "assistant"
        self.messages: list[Message] = []
        self.repairs: Counter[str] = Counter()
        self._raw: list[bytes] = []
        self._open: Header | None = None  # of the message that has begun
        self._text: list[str] = []
        self._begin_header(started=role is not None, role=role)

    @property
    def raw_text(self) -> str:
        """Everything that was pushed, special tokens by their names."""
        return b"".join(self._raw).decode("utf-8", "replace")

    @property
    def partial(self) -> Message | None:
        """The message that has begun and not ended, as far as it is known."""
        return Message(content="".join(self._text), **vars(self._open)) if self._open else None

    @property
    def role(self) -> str:
        """Of the message that has begun; where none has, the one that may follow."""
        return self._open.role if self._open else self._default_role

    def push_all(self, ids: Iterable[int]) -> list[MessageDelta]:
        return [delta for token_id in ids for delta in self.push(token_id)]

    def push(self, token_id: int) -> list[MessageDelta]:
        """What this id adds, in order: most ids one delta or none."""
        try:
            raw = self._tokenizer.token_bytes(token_id)
        except TokenIdError:
            self.repairs["an id outside the vocabulary"] += 1
            token_id, raw = -1, "\ufffd".encode()
        self._raw.append(raw)
        special = self._special
        if token_id in special.ends:
            return self._end_content() if self._in_content else self._end_header()
        if self._in_content:
            return self._interrupt(token_id, raw) if token_id in (special.start, special.channel) else self._add(raw)
        if token_id == special.start:
            return self._restart(token_id, raw)
        self._header_raw.append(raw)
        if token_id == special.message:
            return self._begin_message()
        if token_id == special.channel and not self._has_channel:
            self._parts.append([])
        elif token_id == special.constrain:
            self._parts[-1].append(b" " + raw)
        elif token_id in self._specials:
            is_channel = token_id == special.channel
            self.repairs["a second <|channel|> in a header" if is_channel else "a special token within a header"] += 1
            self._parts[-1].append(b" ")
        else:
            self._parts[-1].append(raw)
        return self._give_up_header() if len(self._header_raw) > MAX_HEADER else []

    def finish(self) -> list[MessageDelta]:
        """The end of the ids: closes what is open. More may follow, as after <|end|>."""
        if self._in_content:
            return self._end_content()
        return self._end_header(cut=True) if self._open or self._has_header else []

    # ------------------------------------------------------------------------------------------------- content

    def _add(self, raw: bytes, final: bool = False) -> list[MessageDelta]:
        text = self._decoder.decode(raw, final)
        if not text or self._open is None:
            return []
        self._text.append(text)
        return [MessageDelta(text, self._open, len(self.messages))]

    def _start_message(self, head: Header) -> list[MessageDelta]:
        self._open, self._text = head, []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_content = True
        return [MessageDelta("", head, len(self.messages))]

    def _end_content(self) -> list[MessageDelta]:
        """The open message is complete; what follows should be <|start|>."""
        deltas = self._add(b"", final=True)
        if message := self.partial:
            self.messages.append(message)
        self._open = None
        self._begin_header(started=False)
        return deltas

    # -------------------------------------------------------------------------------------------------- header

    def _begin_header(self, *, started: bool, role: str | None = None, raw: tuple[bytes, ...] = ()) -> None:
        """started: <|start|> was seen, or stood in the prompt. raw: what the header becomes if it is none."""
        self._in_content, self._started, self._role = False, started, role
        self._parts: list[list[bytes]] = [[]]  # before <|channel|>, and after it
        self._header_raw = list(raw)

    @property
    def _has_channel(self) -> bool:
        return len(self._parts) > 1

    @property
    def _has_header(self) -> bool:
        """Whether anything of a header has come."""
        return self._has_channel or bool(self._header_text().strip())

    def _interrupt(self, token_id: int, raw: bytes) -> list[MessageDelta]:
        """<|start|> or <|channel|> within a content: a header if <|message|> follows, and text if not."""
        if token_id == self._special.start:
            self._begin_header(started=True, raw=(raw,))
        else:
            role = self.role if self.role in _OWN_ROLES else self._default_role
            self._begin_header(started=False, role=role, raw=(raw,))
            self._parts.append([])
        return []

    def _restart(self, token_id: int, raw: bytes) -> list[MessageDelta]:
        """<|start|> where a header is being read: the regular beginning if nothing came before it."""
        if self._open:
            return self._add(b"".join(self._header_raw)) + self._interrupt(token_id, raw)
        if self._started and not self._has_header:
            self.repairs["a second <|start|>"] += 1
        deltas = self._end_header(cut=True) if self._has_header else []
        self._begin_header(started=True)
        return deltas

    def _begin_message(self) -> list[MessageDelta]:
        head = self._read_header()
        deltas: list[MessageDelta] = []
        if self._open:
            self.repairs["a message without an end"] += 1
            deltas = self._end_content()
        elif not self._started:
            self.repairs["a message without <|start|>"] += 1
        return deltas + self._start_message(head)

    def _end_header(self, cut: bool = False) -> list[MessageDelta]:
        """A header that no <|message|> follows: an empty message if it says only what headers say, otherwise text.
        cut: it was not ended either; then it is nothing, unless it has no sign of a header."""
        if self._open:
            self.repairs["a special token within a content"] += 1
            return self._add(b"".join(self._header_raw)) + self._end_content()
        text = self._header_text()
        words, *named = self._words()
        if named:
            known = named[0][:1] in ([name] for name in CHANNELS)
        else:
            known = self._started and not self._role and words in ([name] for name in _OWN_ROLES)
        if cut and (named or known):
            self.repairs["a header that is cut off"] += 1
        elif known:
            self.repairs["a header without <|message|>"] += 1
            return self._start_message(self._read_header()) + self._end_content()
        elif text.strip():
            self.repairs["text without a header"] += 1
            return self._start_message(self._plain_head()) + self._add(text) + self._end_content()
        else:
            self.repairs["an end without a message"] += 1
        self._begin_header(started=False)
        return []

    def _words(self) -> list[list[str]]:
        """The words of each part."""
        return [b"".join(part).decode("utf-8", "replace").split() for part in self._parts]

    def _header_text(self) -> bytes:
        return b"".join(chain(*self._parts))

    def _give_up_header(self) -> list[MessageDelta]:
        """The header is too long to be one: what it was is text."""
        self.repairs["a header that does not end"] += 1
        if self._open:
            self._in_content = True
            return self._add(b"".join(self._header_raw))
        return self._start_message(self._plain_head()) + self._add(self._header_text())

    def _plain_head(self) -> Header:
        return Header(self._role or self._default_role)

    def _read_header(self) -> Header:
        words, *parts = self._words()
        head = self._plain_head()
        if self._role:
            if words[:1] == [self._role]:
                del words[0]
        elif words and not words[0].startswith(("to=", CONSTRAIN)):
            head.role, head.name = self._read_author(words.pop(0))
        else:
            self.repairs["a header without a role"] += 1
        for named in parts:
            if named and not named[0].startswith(("to=", CONSTRAIN)):
                head.channel = named.pop(0)
            else:
                self.repairs["a <|channel|> without a name"] += 1
            words += named
        self._read_words(head, words)
        return head

    def _read_author(self, word: str) -> tuple[str, str | None]:
        role, colon, name = word.partition(":")
        if role.lower() in _OWN_ROLES and role not in _OWN_ROLES:
            self.repairs["a role in capitals"] += 1
            role = role.lower()
        if role in _OWN_ROLES:
            return role, name or None
        return "tool", word

    def _read_words(self, head: Header, words: list[str]) -> None:
        """The recipient and the content type, from what a header holds beside role and channel."""
        others: list[str] = []
        for word in words:
            if not word.startswith("to="):
                others.append(word)
            elif head.recipient is None:
                head.recipient = word[3:] or None
                if not word[3:]:
                    self.repairs["an empty recipient"] += 1
            else:
                self.repairs["a second recipient"] += 1
        if len(others) > 1 and others[-2] == CONSTRAIN:  # a space after the token
            self.repairs["a space after <|constrain|>"] += 1
            others[-2:] = [CONSTRAIN + others[-1]]
        if others and head.recipient is None and not others[0].startswith(CONSTRAIN):
            if len(others) > 1 or "." in others[0]:
                self.repairs['a recipient without "to="'] += 1
                head.recipient = others.pop(0)
        if others:
            head.content_type = others.pop(0)
        if others:
            self.repairs["words left over in a header"] += 1


def parse(tokenizer: Tokenizer, ids: Iterable[int], role: str | None = "assistant") -> list[Message]:
    """The messages of `ids`, the last one as far as it goes; see Parser."""
    parser = Parser(tokenizer, role)
    parser.push_all(ids)
    parser.finish()
    return parser.messages
