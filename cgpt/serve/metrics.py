"""What /metrics counts, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cgpt.generation.engine import Engine

EXPOSITION = "text/plain; version=0.0.4"  # the media type


class Family(NamedTuple):
    """What is counted under one name. samples: by what follows the name, a suffix of it or labels in braces."""

    name: str
    kind: str
    about: str
    samples: Mapping[str, float]


def exposition(families: Iterable[Family]) -> str:
    """The families as Prometheus reads them."""
    lines: list[str] = []
    for name, kind, about, samples in families:
        lines.extend([f"# HELP cgpt_{name} {about}", f"# TYPE cgpt_{name} {kind}"])
        lines.extend(f"cgpt_{name}{labels} {value}" for labels, value in samples.items())
    return "\n".join(lines) + "\n"


class Metrics:
    """Counts HTTP requests by path and status. repairs: how often a chat's parser had to repair what the model wrote,
    by kind."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self.repairs: Counter[str] = Counter()

    def count(self, path: str, status: int) -> None:
        self._requests[path, status] += 1

    def http(self) -> Family:
        """The requests by path and status."""
        requests = {f'{{path="{path}",status="{status}"}}': n for (path, status), n in sorted(self._requests.items())}
        return Family("http_requests_total", "counter", "HTTP requests answered.", requests)

    def families(self, engine: Engine) -> list[Family]:
        """The engine's statistics, and what chats had repaired."""
        stats, found = engine.stats, list[Family]()

        def add(name: str, kind: str, about: str, samples: Mapping[str, float]) -> None:
            found.append(Family(name, kind, about, samples))

        finished = {f'{{reason="{reason}"}}': n for reason, n in stats.finished.items()}
        add("texts_total", "counter", "Texts that came to an end.", finished)
        add("running", "gauge", "Texts that are being made.", {"": engine.running})
        add("waiting", "gauge", "Texts that wait for a place.", {"": engine.waiting})
        add("prompt_tokens_total", "counter", "Tokens of prompts that were read.", {"": stats.prompt_tokens})
        add("cached_prompt_tokens_total", "counter", "Of these, found in the prefix cache.", {"": stats.cached_tokens})
        add("generated_tokens_total", "counter", "New tokens.", {"": stats.generated_tokens})
        add("draft_tokens_total", "counter", "Tokens that prompt lookup drafted.", {"": stats.draft_tokens})
        add("accepted_tokens_total", "counter", "Of these, the right ones.", {"": stats.accepted_tokens})
        add("steps_total", "counter", "Steps of the model.", {"": stats.steps})
        add("step_seconds_total", "counter", "Time in steps.", {"": stats.seconds})
        first = {"_sum": stats.first_token_seconds, "_count": stats.first_tokens}
        add("first_token_seconds", "summary", "From submission to a text's first token.", first)
        repairs = {"": sum(self.repairs.values())}
        add("harmony_repairs_total", "counter", "Malformed headers of chats that were mended.", repairs)
        prefixes = engine.prefix_cache
        add(
            "prefix_cache_bytes",
            "gauge",
            "Keys and values of finished texts.",
            {"": prefixes.nbytes if prefixes else 0},
        )
        if prefixes is not None and (store := prefixes.store):
            add("prefix_cache_disk_bytes", "gauge", "Files of the prefix cache, of all models.", {"": store.nbytes})
            add("prefix_cache_disk_hits_total", "counter", "Texts that resumed from a file.", {"": store.num_hits})
            about = "Tokens of prompts found on the disk, of those in the prefix cache."
            add("disk_prompt_tokens_total", "counter", about, {"": prefixes.num_reused_from_disk})
        if streaming := engine.model.transformer.streaming:
            experts, seen = streaming.store, streaming.store.stats
            add("expert_hits_total", "counter", "Chosen experts that were in memory.", {"": seen.hits})
            add("expert_misses_total", "counter", "Chosen experts that were not.", {"": seen.misses})
            add("expert_read_bytes_total", "counter", "Bytes of experts read from the disk.", {"": seen.bytes_read})
            about = "Time that steps waited for the disk with no expert to multiply."
            add("expert_wait_seconds_total", "counter", about, {"": seen.wait_seconds})
            add("experts_resident", "gauge", "Experts that are in memory.", {"": experts.resident})
            add("experts_capacity", "gauge", "Experts that memory has room for now.", {"": experts.capacity})
        return found
