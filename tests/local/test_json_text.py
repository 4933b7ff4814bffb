"""Numbers stay finite, list items are not repeated, and every other JSON text is allowed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured.local.generate.json_text import JsonText, TextRules


def _allows(text: str, piece: int = 1, *, distinct: bool = False) -> bool:
    seen = JsonText(TextRules(distinct=distinct))
    for n in range(0, len(text), piece):
        if not seen.allows(text[n : n + piece]):
            return False
        seen.append(text[n : n + piece])
    return True


_values = st.recursive(
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**38), 10**38)
    | st.text()
    | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(value=_values, piece=st.integers(1, 5), ascii_only=st.booleans())
def test_every_finite_value_is_allowed_however_it_is_split_into_tokens(
    value: object, piece: int, ascii_only: bool
) -> None:
    assert _allows(json.dumps(value, ensure_ascii=ascii_only), piece)


@pytest.mark.parametrize("number", ["1e999", "-1e309", "[1e400]", "1" * 41, '{"a":12e308', "0." + "3" * 50])
def test_infinite_and_endless_numbers_are_refused(number: str) -> None:
    assert not _allows(number)


@given(text=st.text(alphabet="0123456789.eE+-", max_size=60).map(lambda digits: "1" + digits))
def test_an_allowed_number_is_finite_and_can_end(text: str) -> None:
    try:
        value = float(text)
    except ValueError:
        return
    if _allows(text):
        assert math.isfinite(value)
        assert len(text) <= 60


def test_digits_inside_a_string_are_no_number() -> None:
    assert _allows('"' + "9" * 500 + 'e999\\"' + "9" * 500 + '"')


_objects = st.dictionaries(
    st.sampled_from('ab,"}{'), st.integers(0, 1) | st.sampled_from('x,"}]'), max_size=2
)
_lists = st.recursive(
    st.lists(_objects, max_size=4) | _objects,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("kl"), inner, max_size=2).map(lambda d: [d, d])
    ),
    max_leaves=6,
)


def _continues_after_repetition(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_continues_after_repetition, value.values()))
    if not isinstance(value, list):
        return False
    items = [json.dumps(item) if isinstance(item, dict) else None for item in value]
    repeated = [item is not None and item in items[:n] for n, item in enumerate(items)]
    return any(repeated[:-1]) or any(map(_continues_after_repetition, value))


@given(value=_lists, piece=st.integers(1, 7))
def test_a_list_continues_only_while_its_objects_differ(value: object, piece: int) -> None:
    text = json.dumps(value, separators=(",", ":"))
    assert _allows(text, piece, distinct=True) is not _continues_after_repetition(value)
    assert _allows(text, piece)
