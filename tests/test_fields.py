"""JSON is counted before it is parsed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgpt.errors import CgptError
from cgpt.fields import parse_json_object

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab\\",:[]{}\n\u20ac')),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


def count(value):
    """(values in lists and objects, keys): the former as commas and openings tell them, at least"""
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [count(one) for one in (value.values() if isinstance(value, dict) else value)]
    keys = len(value) if isinstance(value, dict) else 0
    own = 1 + max(len(inner) - 1, 0)
    return own + sum(v for v, _ in inner), keys + sum(k for _, k in inner)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_the_limits_are_exact(value):
    values, keys = count(value)
    for ascii in (True, False):
        text = json.dumps(value, ensure_ascii=ascii).encode()
        assert parse_json_object(text, Path("x"), CgptError, max_values=values, max_keys=keys) == value
        for limits in ({"max_values": values - 1}, {"max_keys": keys - 1}):
            with pytest.raises(CgptError, match="x: the JSON holds too much"):
                parse_json_object(text, Path("x"), CgptError, **limits)


def test_strings_may_hold_what_they_like():
    text = json.dumps({"a": '\\",:[{' * 1000}).encode()
    assert parse_json_object(text, Path("x"), CgptError, max_values=1, max_keys=1)
