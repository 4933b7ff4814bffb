"""Trust in an answer is made of the probabilities of exactly the tokens that wrote each value."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured import Trust
from llama_index_finetune_structured.trust.answer_trust import merged_trust, trust_in_rest, trust_in_tokens
from llama_index_finetune_structured.trust.tokens import AnswerToken, TokenPlaces

_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
_SCALARS = st.none() | st.booleans() | st.integers() | _TEXT
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=10,
)


def _tokens(text: str, cuts: list[int]) -> list[AnswerToken]:
    """Tokens of a text cut at bytes, so also inside characters; the n-th has log-probability -(n + 1)."""
    written = text.encode()
    borders = [0, *sorted({cut % (len(written) + 1) for cut in cuts} - {0, len(written)}), len(written)]
    parts = [written[start:stop] for start, stop in pairwise(borders)]
    return [AnswerToken(part, -2.0 * (n + 1), -1.0 * (n + 1)) for n, part in enumerate(parts)]


@given(_VALUES, st.lists(st.integers(0, 10**6), max_size=40), st.booleans())
def test_every_value_has_the_tokens_that_hold_a_byte_of_it(
    value: Any, cuts: list[int], is_ascii: bool
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    tokens = _tokens(text, cuts)
    trust = trust_in_tokens(text, [*tokens, AnswerToken(b"", -1.0, -0.5)])
    assert trust is not None
    assert trust.tokens is not None
    assert trust.tokens.total == pytest.approx(sum(token.allowed for token in tokens) - 0.5)
    for field in trust.fields:
        found: Any = value
        for part in field.path:
            found = found[part]
        assert field.value == found
        written = json.dumps(found, ensure_ascii=is_ascii).encode()
        assert field.writing is not None
        assert field.presence is not None
        assert field.writing.unmasked == pytest.approx(2 * field.writing.total)
        longest = -(-len(written) // max(len(token.text) for token in tokens))
        assert field.writing.least <= -longest
    assert [end.path for end in trust.ends if end.path == ()] == (
        [()] if isinstance(value, dict | list) else []
    )


def test_a_token_that_splits_a_character_belongs_to_the_values_on_both_sides() -> None:
    text = '["é","日"]'
    places = TokenPlaces(text, [b'["\xc3', b'\xa9","\xe6', b'\x97\xa5"]'])
    assert places.between(1, 4) == slice(0, 2)
    assert places.between(5, 8) == slice(1, 3)
    assert places.between(4, 5) == slice(1, 2)
    assert places.between(3, 3) == slice(0)


@pytest.mark.parametrize("text", ["", "Rain", '{"a":', "[1,2", '{"a":1}{"b"}'])
def test_a_text_without_json_has_no_trust(text: str) -> None:
    assert trust_in_tokens(text, [AnswerToken(text.encode(), -1.0, -1.0)]) is None


@pytest.mark.parametrize("text", ['{"a": "Rain"}', 'Sure: {"a": "Rain"} is it', ' {"a": "Rain"}\n'])
def test_without_the_texts_tokens_the_values_are_known_and_nothing_of_their_probabilities(text: str) -> None:
    trust = trust_in_tokens(text, [AnswerToken(b"other", -1.0, -1.0)])
    assert trust is not None
    assert trust == trust_in_tokens(text)
    assert [(field.path, field.value, field.writing) for field in trust.fields] == [(("a",), "Rain", None)]
    assert trust.tokens is None


def test_an_impossible_token_leaves_finite_numbers() -> None:
    infinite = float("-inf")
    trust = trust_in_tokens("1", [AnswerToken(b"1", infinite, infinite)])
    assert trust is not None
    assert Trust.model_validate_json(trust.model_dump_json()) == trust


def _trust(value: Any, logarithm: float) -> Trust:
    text = json.dumps(value)
    trust = trust_in_tokens(text, [AnswerToken(text.encode(), logarithm, logarithm)])
    assert trust is not None
    return trust


def test_a_merged_answers_values_come_from_the_part_that_has_them() -> None:
    parts: list[Any] = [{"songs": [{"a": 1}]}, {"songs": [{"a": 2}, {"a": 1}]}]
    merged: Any = {"songs": [{"a": 1}, {"a": 2}, {"a": 3}], "new": True}
    trust = merged_trust(merged, [(part, _trust(part, -1.0 - n)) for n, part in enumerate(parts)])
    writing = {field.path: field.writing and field.writing.total for field in trust.fields}
    assert writing == {
        ("songs", 0, "a"): -1.0,
        ("songs", 1, "a"): -2.0,
        ("songs", 2, "a"): None,
        ("new",): None,
    }
    endings = {end.path: end.ending and end.ending.total for end in trust.ends}
    assert endings[("songs",)] == -3.0
    assert endings[("songs", 2)] is None
    assert trust.tokens is not None
    assert trust.tokens.total == -3.0


def test_what_is_left_of_an_answer_keeps_its_own_trust() -> None:
    whole: Any = {"a": [{"b": 1}, {"b": 2}, {"b": 1}], "c": "x"}
    rest: Any = {"a": [{"b": 1}, {"b": 2}], "c": "x"}
    trust = trust_in_rest(_trust(whole, -1.0), rest)
    assert [field.path for field in trust.fields] == [("a", 0, "b"), ("a", 1, "b"), ("c",)]
    assert {end.path for end in trust.ends} == {("a", 0), ("a", 1), ("a",), ()}
