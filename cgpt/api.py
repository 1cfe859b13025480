"""The public calls of a Model, which reads and writes text; load() opens one."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from cgpt.arguments import checked_arguments, require_choice, require_flag, warn_caller
from cgpt.chat import IDENTITY, KNOWLEDGE_CUTOFF
from cgpt.checkpoint.config import GPT2Config, GptOssConfig, read_generation_config
from cgpt.errors import InputError
from cgpt.generation import generate as generation
from cgpt.generation import prompts as wrapped
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.request import Completion, Prompt
from cgpt.generation.sampling import SamplingParams, checkpoint_defaults
from cgpt.generation.scheduler import Scheduler
from cgpt.kernels._kernels import PRECISIONS
from cgpt.models import inspection
from cgpt.models.base import Floats, Precision, Transformer
from cgpt.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cgpt.batch.run import Batch
    from cgpt.chat.chat import Chat
    from cgpt.chat.messages import Namespace, ResponseFormat

SPECIAL_AS_TEXT = (
    "the prompt holds {!r}, the name of a special token, and it is read as ordinary text; special=True, --special on "
    "the command line, reads it as the token"
)
Seed = int | None
Stop = str | int | Iterable[str | int] | None


class Model:
    """A checkpoint that is ready to run: a transformer and its tokenizer. Made by load().

    transformer: steps, caches and weights, without text. directory: the checkpoint's. Threads may share a model.
    `with cgpt.load(..) as model:` closes it at the end.
    """

    def __init__(self, transformer: Transformer, directory: Path) -> None:
        self.transformer = transformer
        self.directory = directory
        self._warned_of_special = False

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back, from the checkpoint's own files or the vocabularies in the package; TokenizerError
        where neither fits."""
        return Tokenizer.from_directory(self.directory, self.vocab_size)

    @cached_property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """The SamplingParams that the checkpoint's generation_config.json asks for, {name: value}; a call that leaves
        them out takes these."""
        return checkpoint_defaults(read_generation_config(self.directory))

    @property
    def config(self) -> GPT2Config | GptOssConfig:
        """The model's configuration, as config.json gives it."""
        config: GPT2Config | GptOssConfig = self.transformer.config
        return config

    @property
    def context_length(self) -> int:
        """The number of positions that the model has, in tokens."""
        return self.transformer.context_length

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to vocab_size - 1."""
        return self.transformer.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        return self.transformer.eos_token_ids

    @property
    def threads(self) -> int:
        """The number of threads that compute a step."""
        return self.transformer.threads

    @property
    def precision(self) -> Precision:
        """How activations are rounded, as load() was told: "auto", "exact" or "int8"."""
        return self.transformer.precision

    @property
    def kv_cache_dtype(self) -> str:
        """The type of the cached keys and values: "f32", "f16", "bf16" or "int8"."""
        return self.transformer.kv_cache_dtype

    def at_precision(self, precision: Precision) -> Model:
        """The same weights, with no copy of them, at another precision and with its default cache."""
        require_choice("precision", precision, PRECISIONS)
        twin = copy.copy(self)
        twin.transformer = self.transformer.at_precision(precision)
        return twin

    def close(self) -> None:
        """Gives the weights and scratch back at once (what a step that is running, or another precision of this model,
        still reads when that ends). Every later call raises ModelClosed; closing again does nothing."""
        self.transformer.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.transformer.closed else f"threads={self.threads}, precision={self.precision!r}"
        return f"<cgpt.Model {type(self.transformer).__name__} of {str(self.directory)!r}, {state}>"

    # ------------------------------------------------------------------------------------------------ reading

    @checked_arguments
    def encode_prompt(self, prompt: Prompt, *, special: bool = False) -> list[int]:
        """The ids of a prompt: a str, ids, or what transformers' tokenizers return, of which it takes the input_ids.

        special: names of special tokens in a str are these tokens. Without it they are ordinary text, and the first
        prompt that holds one warns. Raises EmptyPromptError, TokenIdError, InputError, or TokenizerError.
        """
        return self._encode(wrapped.only_prompt(wrapped.unwrap(prompt)), special)

    def _encode(self, ids: Any, special: bool) -> list[int]:
        require_flag("special", special)
        self.transformer.require_open()
        if isinstance(ids, str):
            name = None if special or self._warned_of_special else self.tokenizer.find_special_token(ids)
            if name:
                self._warned_of_special = True
                warn_caller(SPECIAL_AS_TEXT.format(name))
            ids = self.tokenizer.encode(ids, allowed_special="all" if special else ())
        checked: list[int] = self.transformer.check_ids(ids).tolist()
        return checked

    @checked_arguments
    def logits(self, prompt: Prompt, *, special: bool = False) -> Floats:
        """float32 [T, V]: the logits after each of the T tokens of a prompt; see encode_prompt."""
        return self.transformer.logits(self.encode_prompt(prompt, special=special))

    @checked_arguments
    def hidden(self, prompt: Prompt, *, special: bool = False) -> Floats:
        """float32 [T, C]: the output of the final norm, which is the head's input, at each of the T tokens."""
        return self.transformer.hidden(self.encode_prompt(prompt, special=special))

    @checked_arguments
    def score(self, prompt: Prompt, *, special: bool = False) -> Floats:
        """float32 [T-1]: the log-probability, in nats, of each token of a prompt after the first, given those
        before."""
        return self.transformer.score(self.encode_prompt(prompt, special=special))

    @checked_arguments
    def inspect(
        self,
        prompt: Prompt,
        what: str | Iterable[str] | None = None,
        *,
        window: int | None = None,
        top: int = 5,
        special: bool = False,
    ) -> dict[str, npt.NDArray[Any]]:
        """What happens inside while the model reads a prompt: hidden states, shares of attention, the router's choices,
        the logit lens, {name: array}. cgpt.models.inspection describes the names and shapes.

        what: a name or several, None for all. window: of the shares of attention, in tokens; None takes the model's
        own, or 128. top: how many tokens the lens gives. Raises InputError for a name that the model does not have.
        """
        ids = np.array(self.encode_prompt(prompt, special=special))
        return inspection.inspect(self.transformer, ids, what, window=window, top=top)

    # ------------------------------------------------------------------------------------------------ writing

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, and one prompt
        self,
        prompt: str | Sequence[int] | npt.NDArray[np.integer[Any]],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: dict[int, float] | None = None,
        seed: Seed = None,
        stop: Stop = None,
        logprobs: bool | int | None = None,
        prompt_logprobs: bool | int | None = None,
        ignore_eos: bool = False,
        prompt_lookup_num_tokens: int | None = None,
        prefix_cache: PrefixCache | None = None,
        special: bool = False,
        skip_special_tokens: bool = False,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: dict[int, float] | None = None,
        seed: Seed | Sequence[Seed] = None,
        stop: Stop = None,
        logprobs: bool | int | None = None,
        prompt_logprobs: bool | int | None = None,
        ignore_eos: bool = False,
        prompt_lookup_num_tokens: int | None = None,
        prefix_cache: PrefixCache | None = None,
        special: bool = False,
        skip_special_tokens: bool = False,
    ) -> list[Completion]: ...

    @checked_arguments
    def generate(
        self,
        prompt: Any,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: dict[int, float] | None = None,
        seed: Any = None,
        stop: Stop = None,
        logprobs: bool | int | None = None,
        prompt_logprobs: bool | int | None = None,
        ignore_eos: bool = False,
        prompt_lookup_num_tokens: int | None = None,
        prefix_cache: PrefixCache | None = None,
        special: bool = False,
        skip_special_tokens: bool = False,
    ) -> Completion | list[Completion]:
        """Continues a prompt, a str or ids, to a Completion; a list of prompts, or ids [N, T], run as one batch, to a
        list of them. What transformers' tokenizers return is a prompt, or a batch, too.

        max_new_tokens: the most new tokens, 256 unless the checkpoint says otherwise; the context has room for
            context_length - n + 1 after a prompt of n
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias: how a
            token is chosen, see cgpt.SamplingParams; None takes what the checkpoint's generation_config.json says
            (`sampling_defaults`), or else is off: greedy unless temperature is above 0
        seed: an integer that makes sampling repeatable: the same text alone, in a batch or streamed; None takes a
            fresh one. Each prompt of a batch starts from the seed, or from its own in a list of seeds
        stop: a str, a token id, or a list of these, that ends the text too, and is not part of it
        logprobs: True keeps the log-probability of each new id, a number k also those of the k likeliest
        prompt_logprobs: the same of the prompt's ids
        ignore_eos: go on after the checkpoint's eos ids
        prompt_lookup_num_tokens: draft so many tokens at a time from what followed the same tokens before, and check
            them in one step; the same output, sooner where texts repeat themselves. None never drafts
        prefix_cache: a cgpt.PrefixCache of this model: prompts that begin as earlier ones compute only what is new
        special: names of special tokens in a prompt are these tokens, not ordinary text
        skip_special_tokens: leave the names of special tokens out of the new text

        Raises, before anything is computed, ContextLengthError, EmptyPromptError, TokenIdError or another InputError;
        TokenizerError where text is given to a model without a tokenizer; ModelClosed. A text that fails raises
        NumericsError or OutOfMemoryError, and the model is usable after.
        """
        arguments = locals()
        prompt = wrapped.unwrap(prompt)
        batch = wrapped.is_batch(prompt)
        prompts = list(prompt) if batch else [prompt]
        several = batch and isinstance(seed, Iterable) and not isinstance(seed, (str, bytes))
        seeds = list(seed) if several else [seed] * len(prompts)
        if len(seeds) != len(prompts):
            raise InputError(f"there are {len(seeds)} seeds for {len(prompts)} prompts; give one, or one for each")
        params = [SamplingParams.pick(arguments | {"seed": one}, self.sampling_defaults) for one in seeds]
        encoded = [self._encode(wrapped.unwrap(one), special) for one in prompts]
        done = generation.generate(self, encoded, params, _checked(prefix_cache))
        return done if batch else done[0]

    @checked_arguments
    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: dict[int, float] | None = None,
        seed: Seed = None,
        stop: Stop = None,
        ignore_eos: bool = False,
        prompt_lookup_num_tokens: int | None = None,
        prefix_cache: PrefixCache | None = None,
        special: bool = False,
        skip_special_tokens: bool = False,
    ) -> Iterator[str]:
        """The text that generate() makes of one prompt, in deltas as they come; joined they are it.

        Each comes as soon as it is certain: whole characters, and no beginning of a stop string. Closing the iterator
        ends the work. Arguments and errors are those of generate().
        """
        params = SamplingParams.pick(locals(), self.sampling_defaults)
        return generation.stream(self, self.encode_prompt(prompt, special=special), params, _checked(prefix_cache))

    @checked_arguments
    def chat(
        self,
        *,
        system: str | None = None,
        tools: Iterable[Any] = (),
        builtin_tools: Iterable[str | Namespace] = (),
        reasoning: Literal["low", "medium", "high"] = "medium",
        response_format: ResponseFormat | None = None,
        identity: str | None = IDENTITY,
        knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF,
        date: str | None = None,
    ) -> Chat:
        """A conversation in the harmony format, see cgpt.chat.chat.Chat; ChatError where the model has no chat format,
        as GPT-2.

        system: instructions. tools: Python functions, or schemas in OpenAI's shape. builtin_tools: "browser", "python".
        reasoning: how long the model thinks. response_format: a JSON schema that the model is asked to follow.
        identity, knowledge_cutoff, date: lines of the system message
        """
        from cgpt.chat.chat import Chat  # here: importing it takes longer than all else that is not needed at once

        return Chat(
            self,
            system=system,
            tools=tools,
            builtin_tools=builtin_tools,
            reasoning=reasoning,
            response_format=response_format,
            identity=identity,
            knowledge_cutoff=knowledge_cutoff,
            date=date,
        )

    @checked_arguments
    def batch(
        self,
        source: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
        *,
        output: str | os.PathLike[str] | None = None,
        names: Sequence[str] = (),
        max_running: int = Scheduler.MAX_RUNNING,
        max_tokens: int = 16384,
        strict: bool = False,
        prefix_cache_bytes: int | None = None,
        prompt_lookup_num_tokens: int | None = None,
    ) -> Batch:
        """Answers many requests in OpenAI's batch format, see cgpt.batch.request: an iterator of their records as they
        finish, in no order; a custom_id tells which is which. Needs the extra [serve].

        source: the path of a file of requests, a line each, or dicts, which are taken as they are needed
        output: a path; each record is written there before it is given, and what is there already, from a run that
            was ended in whatever way, is not answered again. Dicts are kept in a temporary file then, and lines are
            looked through once before anything runs
        names: what the bodies may call the model; without any, the last part of its directory or id
        max_running, prefix_cache_bytes, prompt_lookup_num_tokens: see cgpt.generation.engine.Engine
        max_tokens: new tokens of a text at most
        strict: refuse what is left out otherwise: unknown fields, tools of other types, limits that are too high

        Raises InputError, before anything runs, for an unknown file, for two requests with one custom_id (of dicts
        without an output the second gets an error record), and for an output of other requests or options, or that
        another process writes to; OutputError where it cannot be written; ModelClosed. A line that cannot be used, or
        that fails, has a record that says why. What fails for all, as a checkpoint that changes, is raised.
        """
        from cgpt.batch.run import run_batch  # here: the layer stands above this one

        return run_batch(
            self,
            source,
            output=output,
            names=names,
            max_running=max_running,
            max_tokens=max_tokens,
            strict=strict,
            prefix_cache_bytes=prefix_cache_bytes,
            prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        )


def _checked(prefix_cache: Any) -> PrefixCache | None:
    if not isinstance(prefix_cache, (PrefixCache, type(None))):
        raise InputError(f"prefix_cache is a cgpt.PrefixCache, not a {type(prefix_cache).__name__}")
    return prefix_cache
