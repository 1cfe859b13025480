"""The state that the endpoints share: one engine, and how it is presented to clients."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from cgpt.chat.grammar import GrammarCompiler
from cgpt.chat.messages import SpecialTokens
from cgpt.errors import ChatError
from cgpt.generation.engine import Engine, Job
from cgpt.generation.request import LogitsConstraint, Prompt, Request
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.errors import ApiError
from cgpt.serve.limits import Limits
from cgpt.serve.metrics import Metrics
from cgpt.serve.store import Store, Thought, new_number
from cgpt.serve.validation import RequestModel, Schema
from cgpt.version import __version__

Constraints = Sequence[LogitsConstraint | None]
log = logging.getLogger("cgpt.serve")


class Service:
    """A model that is served.

    name, names: by which clients ask for the model; answers have the first. bounds: the limits, and those that the
    model sets, by name; see validation. no_chat: why the model cannot chat, None where it can. has_key: whether clients
    need an API key. document: see openapi; None until it is asked for. store: what is remembered of answers.
    """

    MAX_NAMED = 1000  # names that the log has of what was left out

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        limits: Limits,
        log_prompts: bool = False,
        strict: bool = False,
        tag: str = "",
    ) -> None:
        """strict: refuse what is left out otherwise: unknown fields, tools of other types, limits that are too high.
        tag: hexadecimal digits that the ids of answers and calls begin with, by which a fleet finds who gave them."""
        self.engine, self.names, self.limits, self.log_prompts = engine, names, limits, log_prompts
        self._tag = tag
        self.name = names[0]
        self.model = engine.model
        self.tokenizer = engine.model.tokenizer  # TokenizerError here, where the model has none
        self.no_chat: str | None = None
        try:
            SpecialTokens(self.tokenizer)
        except ChatError as problem:
            self.no_chat = f"{problem}; here that is /v1/completions"
        self.bounds = asdict(limits) | {
            "models": [*names, ""],  # some clients send none
            "max_token_id": self.model.transformer.vocab_size - 1,
            "strict": strict,
            "max_token_limit": limits.max_tokens if strict else 2**63 - 1,
            "unlimited": None if strict else -1,
            "unknown_fields": {"type": "null"} if strict else True,
            "refused_if_strict": strict,
        }
        self.metrics = Metrics()
        self.store = Store(limits.stored_bytes, limits.stored_entries, limits.stored_seconds)
        self.created = int(time.time())
        self.has_key = False
        self.document: Schema | None = None
        self._named: set[str] = set()

    def log_ignored(self, path: str, names: Iterable[str]) -> None:
        """Logs, once for each name, what of a body was left out."""
        new = {name for name in names if f"{path} {name}" not in self._named}
        if new and len(self._named) < self.MAX_NAMED:
            self._named.update(f"{path} {name}" for name in new)
            log.info("%s: left out %s", path, ", ".join(sorted(new)))

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles JSON schemas; made where a chat is first asked for."""
        return GrammarCompiler(self.model)

    def new_number(self) -> str:
        """What follows the prefix of an id that this server gives."""
        return new_number(self._tag)

    def remember_thought(self, call_id: str, text: str, arguments: str = "") -> None:
        """Keeps what the model thought before a call, for clients that send the call back without it."""
        if text or arguments:
            self.store.put(call_id, Thought(text, arguments), 4 * len(text + arguments))

    def thought_of(self, call_id: str) -> str | None:
        """What the model thought before a call of its own."""
        found = self.store.get(call_id, Thought)
        return found.text if found else None

    def arguments_of(self, call_id: str) -> str | None:
        """The arguments of a call, as the model wrote them."""
        found = self.store.get(call_id, Thought)
        return found.arguments if found else None

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """The fields that an answer, and each part of a streamed one, begins with. prefix: of its id. kind: OpenAI's
        name of the object."""
        about = {"id": f"{prefix}-{self.new_number()}", "object": kind, "created": int(time.time()), "model": self.name}
        return about | {"system_fingerprint": f"cgpt-{__version__}"}

    def requests(self, prompt: Prompt, params: SamplingParams, constraints: Constraints) -> list[Request]:
        """Makes a request of the prompt for each constraint, with consecutive seeds. A text is encoded once."""
        made: list[Request] = []
        for i, constraint in enumerate(constraints):
            one = params if params.seed is None else replace(params, seed=params.seed + i)
            made.append(Request(self.model, prompt, one, constraint=constraint))
            prompt = made[0].prompt_ids
        return made

    def submit(self, requests: list[Request], body: RequestModel) -> Job:
        """Hands the requests of `body` to the engine."""
        if self.log_prompts:
            log.info("%r", body.model_dump(exclude_unset=True, by_alias=True))
        return self.engine.submit(requests)


def require_name(name: str, served: Sequence[str]) -> None:
    """Raises ApiError where `name` is none of the model that is served."""
    if name not in served:
        message = f"there is no model {name[:80]!r} here; this server has {served[0]!r}"
        raise ApiError(message, 404, code="model_not_found", param="model")
