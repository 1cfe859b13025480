"""Continues prompts to their end: one, a batch, or one as a stream."""

from collections.abc import Iterable, Iterator

from cgpt.errors import TokenizerError
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.request import Completion, Prompt, Request, TextModel
from cgpt.generation.sampling import SamplingParams
from cgpt.generation.scheduler import Scheduler


def generate(
    model: TextModel,
    prompts: Iterable[Prompt],
    params: Iterable[SamplingParams],
    prefix_cache: PrefixCache | None = None,
) -> list[Completion]:
    """The completion of each prompt with its parameters, run as one batch."""
    requests = [Request(model, prompt, one) for prompt, one in zip(prompts, params, strict=True)]
    scheduler = Scheduler(model.transformer, prefix_cache=prefix_cache)
    for request in requests:
        scheduler.add(request)
    while scheduler.has_unfinished:
        scheduler.step()
    return [request.completion() for request in requests]


def stream(
    model: TextModel, prompt: Prompt, params: SamplingParams, prefix_cache: PrefixCache | None = None
) -> Iterator[str]:
    """The text of one prompt in deltas, each as soon as it is certain: whole characters, and no beginning of a stop
    string. Closing the iterator ends the work."""
    request = Request(model, prompt, params)
    if not request.has_text:
        raise TokenizerError("the model has no tokenizer to make text with; use generate, whose result has the ids")
    return _deltas(Scheduler(model.transformer, prefix_cache=prefix_cache), request)


def _deltas(scheduler: Scheduler, request: Request) -> Iterator[str]:
    scheduler.add(request)
    try:
        while scheduler.has_unfinished:
            for _, delta in scheduler.step():
                if delta:
                    yield delta
    finally:
        scheduler.cancel(request)
