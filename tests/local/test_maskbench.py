"""On schemas that people wrote, what was trained is sayable, and what is said validates or is named as not enforced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.json_schema import first_error
from llama_index_finetune_structured.local.model.prompts import trained_text
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, learn_bounds, schema_key
from llama_index_finetune_structured.local.schema.enforcement import not_enforced
from tests.local.grammar_walks import compiled, drawn, refused_from

LINES = (Path(__file__).parent / "data" / "maskbench.jsonl").read_text(encoding="utf-8").splitlines()
CASES: list[dict[str, Any]] = [json.loads(line) for line in LINES]
# What the grammar compiler refuses: patterns of keys that overlap, and a reference in a circle with siblings.
NO_GRAMMAR = {"Handwritten---test.NoType", "Handwritten---notnames9", "JsonSchemaStore---resjson"}
SHORT = AnswerBounds(default_items=3, default_characters=60)


def test_the_schemas_are_of_many_sources() -> None:
    assert len(CASES) == 200
    assert len({case["source"] for case in CASES}) > 10
    named = sum(bool(not_enforced(case["schema"])) for case in CASES)
    assert named < 50, "what is named is the exception: the rest is held to the schema below"


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_what_was_trained_is_sayable_and_what_is_said_validates(first: int) -> None:
    for case in CASES[first : first + 20]:
        schema, name = case["schema"], case["name"]
        rows = FinetuneDataset.from_pairs(
            [("q", json.dumps(value)) for value in case["valid"]], schema=schema
        )
        grammar = compiled(schema, schema_key(schema), learn_bounds(rows))
        assert (grammar is None) is (name in NO_GRAMMAR), name
        if grammar is None:
            continue
        for row in rows:
            assert refused_from(grammar, trained_text(row)) is None, (name, trained_text(row))
        unlearned = compiled(schema, bounds=SHORT)
        assert unlearned is not None
        for text in filter(None, (drawn(unlearned, seed, longest=1000) for seed in range(2))):
            assert first_error(schema, json.loads(text)) is None or not_enforced(schema), (name, text)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ["#/uniqueItems"]),
        ({"properties": {"a": {"not": {"type": "string"}}}}, ["#/properties/a/not"]),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, ["#/if"]),
        (
            {"dependentRequired": {"a": ["b"]}, "contains": {"const": 1}},
            ["#/contains", "#/dependentRequired"],
        ),
        ({"type": "string", "pattern": "^(?!a)"}, ["#/pattern: ^(?!a)"]),
        ({"type": "string", "format": "iri"}, ["#/format: iri"]),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["#/oneOf"]),
        ({"properties": {"a": {}}, "minProperties": 1}, ["#/minProperties"]),
        ({"$ref": "https://example.org/other.json"}, ["#/$ref: https://example.org/other.json"]),
        ({"propertyNames": {"not": {"const": "a"}}}, ["#/propertyNames"]),
        ({"type": "string", "format": "ipvanynetwork"}, ["#/format: ipvanynetwork"]),
        ({"properties": {"not": {"type": "string", "format": "date"}, "if": {"minimum": 1}}}, []),
        ({"type": "object", "propertyNames": {"pattern": "^a"}, "uniqueItems": False}, []),
    ],
)
def test_what_a_grammar_does_not_enforce_is_named(schema: dict[str, Any], named: list[str]) -> None:
    assert not_enforced(schema) == named
