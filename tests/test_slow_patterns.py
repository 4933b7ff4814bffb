"""Patterns of schemas end in time on any text: Rust's engine is linear, and Python's is given a second."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest

from llama_index_finetune_structured import Example, FinetuneDataset, Message, check, compare
from llama_index_finetune_structured.json_schema import find_error, first_error, pattern_matches
from llama_index_finetune_structured.local.schema.objects import matching_patterns

LINEAR = [
    "^(a+)+$", "^(a*)*$", "^(a|aa)+$", "^(a|a?)+$", "^([a-z]+)*$", "^(.*a){20}$", "^(a+){1,50}$", "(x+x+)+y",
    "^(([a-z])+.)+[A-Z]([a-z])+$", "^(\\w+\\s?)*$", "^(a|b|ab)*c$", "(.*)(.*)(.*)(.*)(.*)[0-9]$",
]  # fmt: skip
PYTHONS = [
    "^(?=a)(a+)+$", "^(?!b)(a*)*$", "^(a+)+\\1$", "(?<=^)(a|aa)+$", "^(?=.)(a|a?)+$", "^(?=a)([a-z]+)*$",
    "^(?=a)(\\w+\\s?)*$", "(?!z)(a+a+)+y", "^(?=a)(.*a){25}$", "^(a*)*(?=c)$", "(?=(a+)+b)a",
]  # fmt: skip
TEXT = "a" * 60 + "!"


def row(schema: dict[str, Any], answer: Any, n: int = 0) -> Example:
    return Example(
        messages=(Message(role="user", content=f"q{n}"),),
        answer=Message(role="assistant", content=json.dumps(answer)),
        answer_schema=schema,
        query=f"q{n}",
    )


def _is_slow(schema: dict[str, Any], value: Any) -> bool:
    """Whether the validator gives up; only patterns that are Python's alone may make it do so."""
    try:
        find_error(schema, value)
    except ValueError:
        return not any(json.dumps(pattern) in json.dumps(schema) for pattern in LINEAR)
    return False


@pytest.mark.parametrize("pattern", LINEAR + PYTHONS)
def test_a_pattern_ends_on_every_text_within_about_a_second(pattern: str) -> None:
    for schema, value in (
        ({"properties": {"a": {"type": "string", "pattern": pattern}}}, {"a": TEXT}),
        ({"patternProperties": {pattern: {"type": "integer"}}, "additionalProperties": False}, {TEXT: 1}),
        ({"patternProperties": {pattern: {}}, "unevaluatedProperties": False}, {TEXT: 1}),
    ):
        started = time.process_time()
        for _ in range(3):
            allowed = pytest.raises(ValueError, match="takes longer than 1 s")
            with allowed if _is_slow(schema, value) else contextlib.nullcontext():
                find_error(schema, value)
        assert time.process_time() - started < 5
    assert isinstance(matching_patterns({"patternProperties": {pattern: {}}}, "b"), list)


@pytest.mark.parametrize("draft", ["2020-12", "2019-09"])
@pytest.mark.parametrize("pattern", [LINEAR[0], PYTHONS[0]])
def test_a_pattern_inside_a_schema_that_closes_an_object_ends_on_every_key(pattern: str, draft: str) -> None:
    named: dict[str, Any] = {"patternProperties": {pattern: {}}}
    for inner in (
        {"allOf": [named]}, {"anyOf": [named]}, {"oneOf": [named]}, {"if": named}, {"if": True, "then": named},
        {"if": False, "else": named}, {"dependentSchemas": {"a": named}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [named]}}},
    ):  # fmt: skip
        schema = {"$schema": f"https://json-schema.org/draft/{draft}/schema", **inner}
        with contextlib.suppress(ValueError):  # Python's dialect is given a second
            assert find_error({**schema, "unevaluatedProperties": False}, {"a": 1, TEXT: 1}) is not None
        assert find_error({**schema, "unevaluatedProperties": False}, {"a": 1}) is None, inner


def test_a_slow_text_is_said_once_and_spoils_no_other() -> None:
    pattern = "^(?=a)(?:a|aa|aaa)+$"
    schema = {"properties": {"a": {"pattern": pattern}}}
    assert first_error(schema, {"a": "a"}) is None
    started = time.process_time()
    for _ in range(50):
        with pytest.raises(ValueError, match="write it without repeats inside repeats"):
            first_error(schema, {"a": "a" * 90 + "!"})
    assert first_error(schema, {"a": "a"}) is None
    assert time.process_time() - started < 5


def test_commands_on_rows_with_a_slow_pattern_end() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=a)(a|aa)+(b|bb)*$"}}}
    rows = [row(schema, {"a": TEXT}, n) for n in range(30)]
    started = time.process_time()
    assert "takes longer" in str(check(rows, target="openai"))
    assert FinetuneDataset(rows).split(0.5)
    with pytest.raises(ValueError, match="takes longer"):
        compare({"it": lambda _: {"a": TEXT}}, rows, show_progress=False)
    card = compare({"it": lambda _: {"a": TEXT}}, [row(schema, {"a": "a"})], show_progress=False)
    assert not card.systems["it"].schema_valid
    assert time.process_time() - started < 20


def test_patterns_of_both_dialects_still_match() -> None:
    assert pattern_matches("^(?=.*[0-9])[a-z0-9]+$", "a1", otherwise=False)
    assert not pattern_matches("^(?=.*[0-9])[a-z0-9]+$", "ab", otherwise=True)
    assert pattern_matches(r"^(\w)\1$", "xx", otherwise=False)
    assert pattern_matches("(", "x", otherwise=True)
