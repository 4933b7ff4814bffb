"""The compact notation of a schema says all that the JSON schema says, in about half of the tokens."""

from __future__ import annotations

import json
import random
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from llama_index_finetune_structured.json_schema import find_error, without_titles
from llama_index_finetune_structured.local.model.base_models import (
    DEFAULT_BASE_MODEL,
    load_tokenizer,
    resolve,
)
from llama_index_finetune_structured.local.schema.closing import closed_schema
from llama_index_finetune_structured.local.schema.compact import compact_schema
from tests.local.compact_types import in_one_form, parse_types
from tests.local.random_models import random_model
from tests.local.test_maskbench import CASES


class Mood(Enum):
    CALM = "calm"
    LOUD = 'so "loud"'


class Song(BaseModel):
    """A song, perhaps
    of an album."""

    title: str = Field(description="As printed, */ and // included")
    year: int | None = Field(None, ge=1900)
    moods: list[Mood] = []
    parts: list[Song] = []


class Album(BaseModel):
    kind: Literal["album"]
    songs: list[Song] = Field(description="All of them")
    prices: dict[str, float]
    place: tuple[int, str]
    best: Song | Literal["none", 3] | None = None


def test_a_list_that_begins_with_given_types_is_written_with_its_rest() -> None:
    first = {
        "type": "array",
        "prefixItems": [{"type": "string"}],
        "minItems": 1,
        "items": {"type": "integer"},
    }
    for schema, text in (
        (first, "[string, ...integer[]]"),
        ({**first, "maxItems": 3}, "[string, ...integer[]] (maxItems: 3)"),
        (
            {**first, "items": {"anyOf": [{"type": "null"}, {"type": "integer"}]}},
            "[string, ...(null | integer)[]]",
        ),
    ):
        assert compact_schema(schema) == text
        assert in_one_form(parse_types(text)) == in_one_form(schema)


def test_the_notation_is_what_a_person_would_write() -> None:
    assert compact_schema(Album.model_json_schema()) == "\n".join(
        (
            "{",
            ' kind: "album"',
            " songs: Song[] // All of them",
            " prices: {[key]: number}",
            " place: [integer, string]",
            ' best?: Song | "none" | 3 | null',
            "}",
            "Song = { // A song, perhaps of an album.",
            " title: string // As printed, */ and // included",
            " year?: integer (minimum: 1900) | null",
            r' moods?: ("calm" | "so \"loud\"")[] = []',
            " parts?: Song[] = []",
            "}",
        )
    )


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_a_class_can_be_read_back_from_its_notation(first: int) -> None:
    for seed in range(first, first + 50):
        schema = random_model(random.Random(seed), 3).annotation.model_json_schema()
        text = compact_schema(schema)
        assert in_one_form(parse_types(text)) == in_one_form(schema), (seed, text)


def test_schemas_that_people_wrote_can_be_read_back_from_their_notation() -> None:
    for case in CASES:
        text = compact_schema(case["schema"])
        assert in_one_form(parse_types(text), 5) == in_one_form(case["schema"], 5), case["name"]


def _changed(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one thing changed somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        name = draw.choice(sorted(value))
        if draw.random() < 0.3:
            return {key: item for key, item in value.items() if key != name}
        if draw.random() < 0.2:
            return {**value, "one more": 1}
        return {**value, name: _changed(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], _changed(value[place], draw), *value[place + 1 :]]
    return draw.choice([None, True, 0, -1.5, 10**9, "", "x" * 70, [], {}, [value], {"a": value}, value])


def test_the_same_values_are_valid_by_the_notation() -> None:
    judged = {True: 0, False: 0}
    for seed in range(150):
        draw = random.Random(seed)
        kind = random_model(draw, 2)
        schema = kind.annotation.model_json_schema(by_alias=True)
        read = closed_schema(parse_types(compact_schema(schema)))
        value = kind.value(draw).model_dump(mode="json", by_alias=True, exclude_none=True)
        for candidate in (value, *(_changed(value, draw) for _ in range(12))):
            valid = find_error(closed_schema(schema), candidate) is None
            assert (find_error(read, candidate) is None) is valid, (seed, candidate)
            judged[valid] += 1
    assert min(judged.values()) > 150, judged


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({}, "any"),
        ({"type": "array"}, "array"),
        ({"type": "object"}, "object"),
        ({"type": "object", "additionalProperties": False}, "{}"),
        ({"type": ["string", "null"], "maxLength": 3}, "(string | null) (maxLength: 3)"),
        ({"type": ["array", "null"], "items": {"type": "integer"}}, "integer[] | null"),
        ({"enum": ["a", {"b": 1}]}, 'any (enum: ["a",{"b":1}])'),
        ({"const": True}, "true"),
        ({"type": "object", "required": ["a"]}, 'object (required: ["a"])'),
        ({"$ref": "#"}, "Answer\nAnswer = Answer"),
        ({"$ref": "#/$defs/not there"}, "any"),
        (
            {"properties": {"a": {"$ref": "#"}}, "type": "object"},
            "Answer\nAnswer = {a?: Answer}",
        ),
        (
            {"allOf": [{"$ref": "#/$defs/string"}], "$defs": {"string": {"type": "string", "minLength": 1}}},
            "string (minLength: 1)",
        ),
        (
            {"not": {"$ref": "#/$defs/string"}, "$defs": {"string": {"type": "string"}}},
            'any (not: {"$ref":"Type_string"})\nType_string = string',
        ),
        (
            {
                "items": {"$ref": "#/$defs/a", "minLength": 2},
                "type": "array",
                "$defs": {"a": {"minLength": 3}},
            },
            '(any (allOf: [{"minLength":3},{"minLength":2}]))[]',
        ),
    ],
)
def test_odd_schemas_are_written_without_loss(schema: dict[str, Any], text: str) -> None:
    written = compact_schema(schema)
    assert written == text
    assert in_one_form(parse_types(written), 4) == in_one_form(schema, 4)


def test_schemas_take_half_of_the_tokens() -> None:
    tokenizer = load_tokenizer(resolve(DEFAULT_BASE_MODEL))
    texts = [
        (json.dumps(without_titles(case["schema"]), separators=(",", ":")), compact_schema(case["schema"]))
        for case in CASES
    ]
    as_json, compact = (
        sum(len(tokenizer(text)["input_ids"]) for text in form) for form in zip(*texts, strict=True)
    )
    assert compact < 0.6 * as_json


def test_a_union_in_many_places_is_written_once() -> None:
    texts = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    schema = {
        "type": "object",
        "properties": dict.fromkeys("pqrs", texts) | {"A": {"$ref": "#/$defs/A"}, "B": {"$ref": "#/$defs/A"}},
        "additionalProperties": False,
        "$defs": {"A": {"type": "integer"}},
    }  # fmt: skip
    text = compact_schema(schema)
    assert text == "{p?: A, q?: A, r?: A, s?: A, A?: A_2, B?: A_2}\nA_2 = integer\nA = string | string[]"
    assert in_one_form(parse_types(text)) == in_one_form(schema)
