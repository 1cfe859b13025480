"""What several commands share: the options of a model and of sampling, loading, and reading text."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cgpt.api import Model
from cgpt.checkpoint.expert_store import ExpertStats
from cgpt.checkpoint.locate import SYNTH, demo_models
from cgpt.checkpoint.sizes import SIZES
from cgpt.distributed.mpi import world
from cgpt.errors import InputError
from cgpt.generation.request import TextModel
from cgpt.generation.sampling import CHECKPOINT_PARAMS, SamplingParams
from cgpt.kernels._kernels import PRECISIONS
from cgpt.loading import DENSE, load
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES

DEFAULT_MODEL = "demo-gpt2"
MAX_NEW_TOKENS = SamplingParams.max_new_tokens


def add_model_options(
    parser: argparse.ArgumentParser,
    default: str = DEFAULT_MODEL,
    sizes: Sequence[str] = (),
    threads: Callable[[str], Any] = int,
) -> None:
    """The options that say which model to load and how, as load_model() reads them.

    default: the model. sizes: published ones that the command takes too. threads: reads what --threads is given."""
    models = ", ".join([*demo_models(), *(sizes or [f"{SYNTH}gpt2"])])
    random = "published sizes have random weights" if sizes else f"{SYNTH} and a published size: random weights"
    help = f"a checkpoint directory, an id of the Hugging Face hub, or one of {models} ({random}; default: {default})"
    parser.add_argument("--model", metavar="NAME_OR_DIR", default=default, help=help)
    add = parser.add_argument_group("loading").add_argument
    add("--revision", metavar="NAME", help="of an id: a branch, tag or commit (default: main)")
    add("-t", "--threads", type=threads, metavar="N", help="default: the physical cores this process may use")
    precision = "exact: float32 activations; auto (default): bf16 or fixed point where faster; int8: 8 bits in prompts"
    add("--precision", choices=PRECISIONS, default="auto", help=precision)
    dense = (
        "round dense matrices to bf16, pack that in 12 bits without loss, or quantise to 8 or 4: fewer bytes a token"
    )
    add("--dense", choices=DENSE, help=dense)
    kept = "what keys and values are kept as (default: f16, or f32 with --precision exact)"
    add("--kv-cache-dtype", choices=KV_DTYPES, help=kept)
    huge = "copy mapped weights into huge pages: faster to read, slower to load, and takes the checkpoint's size"
    add("--huge-pages", action="store_true", help=huge)
    memory = "keep within so much, as 18GB, reading gpt-oss's experts from the files as tokens choose them"
    add("--memory", metavar="SIZE", help=f"{memory} (default: where the model does not fit)")
    converted = "keep matrices that were transposed, rounded, packed or quantised in files here, for later starts"
    add("--weights-cache", metavar="DIR", help=converted)


def add_inspection_options(parser: argparse.ArgumentParser, name: str, context: str, **model: Any) -> None:
    """The options of commands that read no weights. name, model: the positional argument and how it is taken; context:
    what --context means."""
    add, known, kept = parser.add_argument, ", ".join([*demo_models(), *SIZES]), DEFAULT_KV_DTYPE["auto"]
    add(name, help=f"a checkpoint directory, an id of the Hugging Face hub, a config.json, or one of {known}", **model)
    add("--context", type=int, metavar="N", help=context)
    add("--kv-cache-dtype", choices=KV_DTYPES, default=kept, help=f"of keys and values (default: {kept})")


def load_model(args: argparse.Namespace, reference: bool = False, alone: bool = False) -> Model:
    """The model that the options ask for; reference: at precision "exact" with its weights and cache as stored. alone:
    in this process, whatever an MPI launcher started."""
    if reference:
        args = argparse.Namespace(**vars(args) | {"precision": "exact", "dense": None, "kv_cache_dtype": None})
    with ProgressBar(f"loading {args.model}") as progress:
        return load(
            args.model,
            args.threads,
            args.precision,
            args.dense,
            kv_cache_dtype=args.kv_cache_dtype,
            huge_pages=args.huge_pages,
            memory=args.memory,
            weights_cache=args.weights_cache,
            progress=progress,
            revision=args.revision,
            comm=None if alone else world(),
        )


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
    """The options that say how tokens are chosen, and how many; as sampling_options() reads them."""
    defaults = "what is not given is as the checkpoint's generation_config.json says; --verbose shows it"
    add = parser.add_argument_group("sampling", defaults).add_argument
    add("--max-new-tokens", type=int, metavar="N", help=f"stop after N tokens (default: {max_new_tokens})")
    add("--temperature", type=float, metavar="T", help="0 takes the likeliest token (default: 0, or as the file says)")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0 and -1: from all")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest that have probability P together")
    add("--min-p", type=float, metavar="P", help="draw from those at least P times as likely as the first")
    add("--repetition-penalty", type=float, metavar="R", help="above 1 makes tokens seen before less likely")
    add("--seed", type=int, metavar="N", help="the same seed draws the same text again; -1: another")
    add("--verbose", action="store_true", help="say on stderr how tokens are chosen")


def sampling_options(args: argparse.Namespace, model: Model, max_new_tokens: int = MAX_NEW_TOKENS) -> dict[str, Any]:
    """What add_sampling_options() added, as arguments of generate(), stream() and Chat.stream(); --verbose says what
    comes of them."""
    options = {name: getattr(args, name) for name in (*CHECKPOINT_PARAMS, "seed")}
    if args.verbose:
        defaults = {"max_new_tokens": max_new_tokens, **model.sampling_defaults}
        params = SamplingParams.pick(options, defaults)
        chosen = {name: getattr(params, name) for name in options if getattr(params, name) is not None}
        source = [name for name in model.sampling_defaults if options[name] is None]
        origin = f" ({', '.join(source)} from generation_config.json)" if source else ""
        say("sampling: " + ", ".join(f"{name} {value:g}" for name, value in chosen.items()) + origin)
    return options


def integers(text: str) -> list[int]:
    """The numbers of a list like "0,4096"."""
    return [int(number) for number in text.split(",")]


def read_stdin(what: str) -> str:
    """All of stdin. InputError, which calls it `what`, where it is not UTF-8."""
    return decode(sys.stdin.buffer.read(), f"{what} on stdin")


def decode(raw: bytes, what: str) -> str:
    """The text of UTF-8. InputError, which calls it `what`, where it is none."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(f"{what} is not UTF-8: {problem}") from None


def say(text: object) -> None:
    """A line on stderr."""
    print(f"cgpt: {text}", file=sys.stderr)


@contextmanager
def expert_progress(model: TextModel) -> Iterator[None]:
    """Shows how memory fills with experts, where they are streamed and stderr is a terminal; until the first words, of
    which it knows nothing: leave it then."""
    streaming = model.transformer.streaming
    if streaming is None or not sys.stderr.isatty():
        yield
        return
    store, begin, done = streaming.store, streaming.store.stats - ExpertStats(), threading.Event()
    with ProgressBar("reading experts") as progress:

        def draw() -> None:
            while not done.wait(progress.INTERVAL):
                since = store.stats - begin
                read = f"{since.bytes_read / 1e9:.2f} GB, hits {since.hit_rate:.0%}"
                progress.label = f"reading experts: {read}; in memory"
                progress(store.resident * store.slot_bytes, store.capacity * store.slot_bytes)

        thread = threading.Thread(target=draw, name="cgpt-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class ProgressBar:
    """Shows how many bytes are done, on stderr where that is a terminal, if the work takes a while."""

    DELAY, INTERVAL, CELLS = 0.5, 0.1, 30  # seconds before the first drawing, between drawings; width

    def __init__(self, label: str, unit: str = "GB") -> None:
        self.label, self._unit = label, unit
        self._next = time.monotonic() + self.DELAY
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next or not sys.stderr.isatty():
            return
        self._next, self._drawn = now + self.INTERVAL, True
        filled = self.CELLS * done // total if total else self.CELLS
        bar = "#" * filled + "." * (self.CELLS - filled)
        shown = f"{done / 1e9:.2f} of {total / 1e9:.2f}" if self._unit == "GB" else f"{done} of {total}"
        sys.stderr.write(f"\r{self.label} [{bar}] {shown} {self._unit}\x1b[K")
        sys.stderr.flush()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
