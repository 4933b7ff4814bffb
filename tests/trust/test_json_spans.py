"""Spans of a JSON text are exactly those of its values, whatever the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_index_finetune_structured.trust.answer_trust import trust_in_tokens
from llama_index_finetune_structured.trust.json_spans import JsonPath, json_spans

_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)
_FORMS: list[dict[str, Any]] = [
    {"ensure_ascii": True},
    {"ensure_ascii": False},
    {"indent": 2},
    {"separators": (",", ":")},
    {"separators": (" ,\n", "\t:\r ")},
]


def _inside(value: Any, path: JsonPath = ()) -> dict[JsonPath, Any]:
    """Every value by its path."""
    found = {path: value}
    if isinstance(value, dict | list):
        for part, item in value.items() if isinstance(value, dict) else enumerate(value):
            found |= _inside(item, (*path, part))
    return found


@given(_VALUES, st.sampled_from(_FORMS), st.sampled_from(["", " ", "\n\t"]))
def test_every_span_parses_to_its_value(value: Any, form: dict[str, Any], around: str) -> None:
    text = around + json.dumps(value, **form) + around
    spans = json_spans(text)
    values = _inside(value)
    assert {span.path for span in spans} == set(values)
    assert len(spans) == len(values)
    for span in spans:
        assert json.loads(text[span.start : span.stop]) == values[span.path]
        lead = text[span.lead : span.start]
        if span.path and isinstance(span.path[-1], str):
            assert (
                json.loads(lead.strip().removeprefix(",").strip().removesuffix(":").strip()) == span.path[-1]
            )
        elif span.path:
            assert lead.strip() == ("," if span.path[-1] else "")
        assert (span.ending is None) == (not isinstance(values[span.path], dict | list))
        if span.ending is not None:
            assert text[span.ending : span.stop].strip() in ("]", "}")


@given(_VALUES, st.sampled_from(_FORMS))
def test_together_leads_values_and_ends_are_the_whole_text(value: Any, form: dict[str, Any]) -> None:
    text, covered = json.dumps(value, **form), set[int]()
    for span in json_spans(text):
        own = span.stop if span.ending is None else span.start + 1
        covered |= {*range(span.lead, own), *range(span.ending or span.stop, span.stop)}
    assert {n for n in range(len(text)) if not text[n].isspace()} <= covered


@example("00")
@example("[-01]")
@example("\u0661")  # a digit, but none of JSON's
@given(st.text('[]{}",:0123456789eE+-.truefalsn \\u00e9', max_size=30) | _TEXT)
def test_no_other_text_is_taken_for_json(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"expected|string|control|escape"):
            json_spans(text)
    else:
        if "NaN" not in text and "Infinity" not in text:
            assert json_spans(text)


def test_deep_nesting_takes_no_stack() -> None:
    depth = 1_500
    spans = json_spans('[{"a":' * depth + "1" + "}]" * depth)
    assert len(spans) == 2 * depth + 1
    assert len(spans[0].path) == 2 * depth


_REPEATED: Any = st.recursive(
    st.integers(0, 9).map(str),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(st.sampled_from("ab"), inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f'"{key}":{item}' for key, item in pairs) + "}"
        )
    ),
    max_leaves=12,
)


@given(_REPEATED)
def test_of_repeated_keys_the_last_one_has_its_spans_alone(text: str) -> None:
    """A grammar that allows any key lets one be written twice, and parsers take the last."""
    values = _inside(json.loads(text))
    spans = json_spans(text)
    assert {span.path for span in spans} == set(values)
    assert len(spans) == len(values)
    for span in spans:
        assert json.loads(text[span.start : span.stop]) == values[span.path]


def test_an_answer_with_a_repeated_key_has_a_trust() -> None:
    trust = trust_in_tokens('{"red":[1,2],"red":[]}')
    assert trust is not None
    assert [(field.path, field.value) for field in trust.fields] == [(("red",), [])]
