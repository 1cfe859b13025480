"""How far a batch is, and how fast."""

from __future__ import annotations

import time
from collections.abc import Mapping

from cgpt.batch.request import BatchRecord
from cgpt.fields import shown


class BatchProgress:
    """Counts records as they come.

    total: requests in all, None where nobody knows. num_answered: those that were answered before it began. num_done:
    since then, of which num_failed have an error or a status that is not 200; first_failure: what the first of these
    says, None without any. prompt_tokens, generated_tokens: of those that are done, as their usage says
    """

    def __init__(self, total: int | None, num_answered: int = 0) -> None:
        self.total, self.num_answered = total, num_answered
        self.num_done = self.num_failed = self.prompt_tokens = self.generated_tokens = 0
        self.first_failure: str | None = None
        self._began = time.monotonic()

    def add(self, record: BatchRecord) -> None:
        """Counts a record."""
        self.num_done += 1
        response = record["response"]
        if response is None or response["status_code"] != 200:
            self.num_failed += 1
            self.first_failure = self.first_failure or _failure(record)
            return
        usage = response["body"].get("usage") if isinstance(response["body"], dict) else None
        if isinstance(usage, Mapping):
            self.prompt_tokens += usage.get("prompt_tokens", usage.get("input_tokens", 0))
            self.generated_tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def seconds_left(self) -> float | None:
        """An estimate, by the rate so far; None where there is none."""
        if self.total is None or not self.num_done:
            return None
        return (self.total - self.num_answered - self.num_done) * self.seconds / self.num_done

    def __str__(self) -> str:
        seconds = self.seconds or 1e-9
        lines = self.num_answered + self.num_done
        parts = [f"{lines:,} lines" if self.total is None else f"{lines:,} of {self.total:,} lines"]
        if not self.num_done:
            return parts[0]
        parts += [f"{self.num_done / seconds:,.1f} lines/s"]
        parts += [f"{self.prompt_tokens / seconds:,.0f} prompt and {self.generated_tokens / seconds:,.0f} new tok/s"]
        parts += [f"{self.num_failed:,} failed"] * bool(self.num_failed)
        if self.seconds_left:
            parts.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(parts)


def _failure(record: BatchRecord) -> str:
    """What a record says that has no answer."""
    if record["error"]:
        return record["error"]["message"]
    body = record["response"]["body"] if record["response"] else None
    error = body.get("error") if isinstance(body, dict) else None
    why = error.get("message") if isinstance(error, dict) else body
    return f"custom_id {shown(record['custom_id'])}: {why}"


def duration(seconds: float) -> str:
    """A time in words: "2 h 05 min", "3 min 10 s", "4 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"
