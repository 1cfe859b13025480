"""The drafts of prompt lookup, and the pool of n-grams that they come from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt.generation.prompt_lookup import NgramPool, PromptLookup


def pool_of(*texts, **how):
    pool = NgramPool(**how)
    for ids in texts:
        pool.insert(ids)
    return pool


A, B, C = [*range(1, 13)], [*range(101, 113)], [*range(1, 9), *range(109, 113)]
PROPOSALS = [
    ([[*A, 50, 51]], A, 9, [50, 51]),
    ([[*A, 50, 51]], A, 1, [50]),
    ([[*A, 50, 51]], A, 0, []),
    ([[*A, 50, 51]], A[-3:], 9, [50, 51]),
    ([[*A, 50, 51]], A[-2:], 9, []),  # too short
    ([[*A, 50, 51]], B, 9, []),
    ([[*A, 50], [*A, 60]], A, 9, [60]),  # the last place
    ([[*A, 50, 70], [*B, *A[-4:], 60]], A, 9, [50, 70]),  # unless a longer match is elsewhere
    ([[*A, 50, 70], [*B, *A[-4:], 60]], C[:6] + A[-4:], 9, [60]),
    ([[*A, 50], [30, A[-1], 50, 80, 81]], [7, *A], 9, [50]),
    ([A * 2], A, 30, (A * 3)[:30]),  # a repetition goes on
    ([[5] * 6], [5] * 4, 4, [5] * 4),
    ([], A, 9, []),
]


@pytest.mark.parametrize("texts, ids, length, expected", PROPOSALS, ids=str)
def test_proposals(texts, ids, length, expected):
    assert pool_of(*texts).propose(ids, length) == expected


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(0, 5), max_size=80), cuts=st.lists(st.integers(0, 80), max_size=6))
def test_a_text_in_parts_is_that_in_one(ids, cuts):
    whole, parts, lookup = pool_of(ids), NgramPool(), PromptLookup(4)
    prompt = ids[: len(ids) // 2]
    for end in sorted(cut for cut in (*cuts, len(ids)) if len(prompt) <= cut <= len(ids)):
        lookup.insert(parts, prompt, ids[len(prompt) : end])
    assert np.array_equal(parts._table, whole._table)


def test_the_pool_is_bounded():
    """What is new replaces what is old, and what was replaced is not taken for what replaced it."""
    random = np.random.default_rng(0)
    texts = random.integers(0, 200_000, (60, 200))
    pool = pool_of(*texts, num_slots=1024)
    assert pool.nbytes == 8192
    assert pool.propose(texts[-1, 150:190].tolist(), 10) == texts[-1, 190:].tolist()
    found = [pool.propose(text[:190].tolist(), 10) for text in texts]
    assert all(one == text[190 : 190 + len(one)].tolist() for one, text in zip(found, texts, strict=True))
    assert not any(found[:20])


def test_drafts_grow_as_they_come_true():
    pool, lookup, lengths = pool_of([*range(500)]), PromptLookup(32), []
    for accepted in (2, 6, 14, 30, 32, 3, 8, 0, 2, 0, 1):
        draft = lookup.propose(pool, [*range(12)], [12], 100)
        lengths.append(len(draft))
        lookup.record(len(draft), accepted)
    assert lengths == [2, 6, 14, 30, 32, 32, 8, 18, 2, 6, 2]
    assert (lookup.num_drafted, lookup.num_accepted) == (sum(lengths), 98)
    assert len(PromptLookup(1).propose(pool, [*range(12)], [12], 100)) == 1
    assert len(lookup.propose(pool, [*range(12)], [12], 3)) == 3
