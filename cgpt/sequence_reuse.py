"""The model's sequence of a conversation, kept between turns so that a prompt is computed from where it is new."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from cgpt.errors import InputError

if TYPE_CHECKING:
    from cgpt.generate import Request
    from cgpt.kvcache import Sequence
    from cgpt.model import Model


class KeptSequence:
    """One sequence and the ids it holds. lend() gives it to a request, take_back() fetches it when that is done.

    A sequence goes back by `slack` tokens at most, see Sequence.truncate: a prompt that parts earlier from what it
    holds gets a new one. Here is the place for snapshots of the windows' rings, which would let it go back further.
    """

    def __init__(self, model: Model, slack: int) -> None:
        self._model = model
        self._slack = slack
        self._sequence: Sequence | None = None
        self._ids: list[int] = []

    def lend(self, request: Request) -> tuple[Sequence, int]:
        """Starts the request in the kept sequence if it can go on from there, otherwise in a new one: the sequence,
        and how many ids of the prompt it already holds."""
        prompt = request.prompt_ids
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._ids, prompt, strict=False)))
        common = min(common, len(prompt) - 1)  # the last one's logits are wanted
        sequence, self._sequence = self._sequence, None
        try:
            if sequence is None or not common:
                raise InputError("nothing in common")
            sequence.truncate(common)
        except InputError:  # too far back, or interrupted within a step
            sequence, common = self._model.new_sequence(slack=self._slack), 0
        request.resume(sequence)
        return sequence, common

    def take_back(self, request: Request, sequence: Sequence) -> None:
        """Keeps the sequence of a request, finished or not. What it has read are the first ids of prompt and text."""
        self._sequence = sequence
        self._ids = (request.prompt_ids + request.ids)[: sequence.position]
