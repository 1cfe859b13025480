"""Runs a batch: requests from a source through a runner, each answer written once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cgpt.arguments import require_flag, require_integer
from cgpt.batch.output import BatchOutput
from cgpt.batch.progress import BatchProgress
from cgpt.batch.request import BatchRecord
from cgpt.batch.runner import MAX_WAITING, Runner
from cgpt.batch.source import ScannedSource, StreamedSource, encode_lines, open_source, spool_requests
from cgpt.checkpoint.locate import model_name
from cgpt.errors import CgptError, InputError
from cgpt.fields import shown
from cgpt.generation.engine import Engine
from cgpt.generation.request import TextModel

if TYPE_CHECKING:
    from cgpt.batch.local import LocalRunner


class LoadedModel(TextModel, Protocol):
    """What a batch needs of a model: api.Model, which imports this module."""

    @property
    def directory(self) -> Path: ...


class Batch(Iterator[BatchRecord]):
    """The answers of a batch as they finish, each written to the output before it is given. The work goes on while it
    is iterated, and ends at its end, where something fails, and with close().

    progress: how far it is
    """

    def __init__(
        self, source: ScannedSource | StreamedSource, runner: Runner, output: BatchOutput | None = None
    ) -> None:
        """An output needs a scanned source: what it has already is not answered again. InputError where it is not of
        these requests and this runner. All three are closed with the batch."""
        if output is not None:
            assert isinstance(source, ScannedSource)
            source.skip(output.answered(), runner.fingerprint, output.name)
        self._source, self._runner, self._output = source, runner, output
        self.progress = BatchProgress(source.total, source.num_answered)
        self._records = runner.run(source.requests(runner.fingerprint))

    def __next__(self) -> BatchRecord:
        try:
            for record in self._records:
                if self._output is not None and record is None:
                    self._output.sync_if_due()
                if record is None:
                    continue
                if self._output is not None:
                    self._output.write(record)
                self.progress.add(record)
                return record
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Ends the work; what was finished is written."""
        with ExitStack() as closing:  # each, whatever another one raises
            closing.callback(self._source.close)
            if self._output is not None:
                closing.callback(self._output.close)
            closing.callback(self._runner.close)
            closing.callback(self._records.close)

    def __del__(self) -> None:
        if hasattr(self, "_records"):  # else it was refused
            self.close()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_batch(
    model: LoadedModel,
    requests: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    output: str | os.PathLike[str] | None,
    names: Sequence[str],
    max_running: int,
    max_tokens: int,
    strict: bool,
    prefix_cache_bytes: int | None,
    prompt_lookup_num_tokens: int | None,
) -> Batch:
    """Model.batch(), which documents it."""
    model.transformer.require_open()
    require_flag("strict", strict)
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"names is a list of names, not {shown(names)}")
    max_running = require_integer("max_running", max_running, 1)
    max_tokens = require_integer("max_tokens", max_tokens, 1, 2**31 - 1)
    runner_type = local_runner_type("Model.batch()")
    with ExitStack() as closing:
        source: ScannedSource | StreamedSource
        if isinstance(requests, (str, os.PathLike)):
            source = open_source(requests)
        elif isinstance(requests, Mapping) or not isinstance(requests, Iterable):
            raise InputError(f"source is a path or dicts, not {shown(requests)}")
        elif output is not None:
            source = spool_requests(requests)
        else:
            source = StreamedSource(encode_lines(requests))
        closing.callback(source.close)
        written = None if output is None else closing.enter_context(BatchOutput(output))
        engine = closing.enter_context(
            Engine(
                model,
                max_running=max_running,
                max_waiting=MAX_WAITING,
                prefix_cache_bytes=prefix_cache_bytes,
                prompt_lookup_num_tokens=prompt_lookup_num_tokens,
            )
        )
        names = names or [os.path.basename(model_name(model.directory))]
        runner = closing.enter_context(runner_type(engine, names, max_tokens=max_tokens, strict=strict))
        batch = Batch(source, runner, written)
        closing.pop_all()
    return batch


def local_runner_type(what: str) -> type[LocalRunner]:
    """LocalRunner, where the packages of [serve] are; else CgptError, which names one that `what` needs."""
    try:
        from cgpt.batch.local import LocalRunner
    except ImportError as problem:
        package = (problem.name or "").partition(".")[0]
        raise CgptError(
            f"{what} needs the package {package}: pip install starlette pydantic markdown-it-py nh3"
        ) from None
    return LocalRunner
