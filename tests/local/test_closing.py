"""A key may be said where the schema names it or training showed it, in the order that it was trained in."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Discriminator, Field, Tag, create_model

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.json_schema import map_sub_schemas, without_titles
from llama_index_finetune_structured.local.model.prompts import trained_text
from llama_index_finetune_structured.local.schema.bounds import (
    AnswerBounds,
    bounded_schema,
    bounds_hit,
    learn_bounds,
    schema_key,
)
from llama_index_finetune_structured.local.schema.grammar_schema import grammar_schema, with_named_keys
from tests.local.grammar_walks import compiled, refused_from

INT: dict[str, Any] = {"type": "integer"}
KEYWORDS = [
    *("anyOf", "allOf", "oneOf", "not", "if", "then", "else", "items", "prefixItems", "additionalItems"),
    *("contains", "properties", "patternProperties", "additionalProperties", "propertyNames", "required"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
    *(
        "$ref",
        "$defs",
        "definitions",
        "$id",
        "$schema",
        "$anchor",
        "type",
        "enum",
        "const",
        "format",
        "pattern",
    ),
    *("minimum", "maximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems"),
    *("minProperties", "maxProperties", "title", "description", "default", "examples", "discriminator"),
    *("x-learned-keys", "contentEncoding", "0", "a/b", "a~b", "%25"),
]


def _object(*names: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": dict.fromkeys(names, INT), "required": [*names], **more}


def _sayable(schema: dict[str, Any], *answers: Any) -> None:
    """Every answer, trained alone and with the others, can be said."""
    rows = list(FinetuneDataset.from_pairs([("q", json.dumps(a)) for a in answers], schema=schema))
    for trained in [*[[row] for row in rows], rows]:
        bounds = learn_bounds(trained)
        grammar = compiled(schema, schema_key(schema), bounds)
        assert grammar is not None
        for row in trained:
            assert refused_from(grammar, trained_text(row)) is None, trained_text(row)
            jsonschema.validate(row.answer_object(), bounded_schema(schema, schema_key(schema), bounds))


@pytest.mark.parametrize("name", KEYWORDS)
@pytest.mark.parametrize(
    ("child", "value"),
    [
        ({"type": "string"}, "text"),
        ({"type": "array", "items": {"type": "string"}}, ["a", "b"]),
        ({"type": "object", "properties": {"title": INT}, "required": ["title"]}, {"title": 1}),
    ],
)
def test_a_property_may_be_named_as_a_keyword(name: str, child: dict[str, Any], value: Any) -> None:
    inner = {"type": "object", "properties": {name: child, "last": INT}, "required": [name, "last"]}
    schema = {"type": "object", "properties": {"first": {"type": "string"}, name: inner}, "required": [name]}
    answer = {name: {name: value, "last": 1}}
    assert without_titles(schema) == schema == with_named_keys(schema)
    _sayable(schema, answer)
    limited = AnswerBounds(default_items=3, default_characters=5)
    grammar = compiled(schema, bounds=limited)
    assert grammar is not None
    assert refused_from(grammar, '{"first":"123456') is not None
    assert bounds_hit(schema, "", limited, {"first": "12345", **answer}) == ["#/properties/first"]
    assert refused_from(grammar, json.dumps({**answer, "other": 1}, separators=(",", ":"))) is not None


def test_a_field_may_be_named_as_a_keyword() -> None:
    model = create_model("Odd", **{f"f{n}": (str, Field(alias=name)) for n, name in enumerate(KEYWORDS)})  # type: ignore[call-overload]
    answer = dict.fromkeys(KEYWORDS, "x")
    assert list(bounded_schema(grammar_schema(model), "", AnswerBounds())["properties"]) == KEYWORDS
    _sayable(model.model_json_schema(), answer)


def test_what_is_no_schema_is_not_walked() -> None:
    schema = {"const": {"title": "x"}, "default": {"title": "y"}, "items": True, "properties": {"title": INT}}
    assert without_titles(schema) == schema
    assert map_sub_schemas(schema, lambda keyword, child: keyword)["properties"] == {"title": "properties"}


A, B = _object("a"), _object("b")
DEFS = {"$defs": {"A": A, "B": B}}
REF_A, REF_B = {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
MERGED: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "all of two": ({"allOf": [A, B]}, [{"b": 2, "a": 1}]),
    "all of references": ({**DEFS, "allOf": [REF_A, REF_B]}, [{"a": 1, "b": 2}]),
    "one reference, as older Pydantic writes it": (
        {**DEFS, "type": "object", "properties": {"x": {"allOf": [REF_A], "description": "d"}}, "required": ["x"]},
        [{"x": {"a": 1}}],
    ),
    "a reference with siblings": ({**DEFS, **REF_A, **_object("c")}, [{"a": 1, "c": 2}, {"c": 2, "a": 1}]),
    "a requirement of a key that is not described": (_object("a", required=["a", "z"]), [{"z": {"y": [1]}, "a": 1}]),
    "a union beside properties": (_object("k", anyOf=[A, B]), [{"b": 2, "k": 1}, {"a": 1, "k": 0}]),
    "requirements in a union": (
        {"type": "object", "properties": {"a": INT, "b": INT}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"b": 1}, {"b": 1, "a": 2}],
    ),
    "all of unions": ({"allOf": [{"anyOf": [A, B]}, {"oneOf": [_object("c"), _object("d")]}]}, [{"a": 1, "d": 2}]),
    "a union of equal keys in another order": (
        {
            "oneOf": [
                {**_object("kind"), "properties": {"kind": {"const": kind}, first: INT, second: INT}}
                for kind, first, second in [("x", "p", "q"), ("y", "q", "p")]
            ]
        },
        [{"p": 1, "q": 2, "kind": "x"}, {"p": 1, "q": 2, "kind": "y"}],
    ),
    "unions of keys in another order": (
        {"allOf": [{"anyOf": [_object("a", "b"), _object("b", "a", "c")]}, {"anyOf": [A, _object("e", "a")]}]},
        [{"b": 2, "a": 1}, {"e": 1, "c": 3, "b": 2, "a": 1}],
    ),
    "a union in a union": (
        _object("k", anyOf=[_object("m", anyOf=[_object("a", "b"), _object("b", "a", "c")]), _object("z")]),
        [{"k": 1, "m": 1, "a": 1, "b": 2}, {"c": 1, "b": 2, "a": 1, "m": 3, "k": 1}, {"z": 1, "k": 2}],
    ),
    "a requirement beside a union": (
        {"required": ["b"], "anyOf": [{"properties": {"a": INT, "b": INT}}, {"properties": {"c": INT, "b": INT}}]},
        [{"a": 1, "b": 2}, {"c": 1, "b": 2}],
    ),
    "a reference with siblings to what holds it": (
        {
            "$defs": {"N": {"properties": {"v": INT, "n": {"$ref": "#/$defs/N", "required": ["v"]}}}},
            "$ref": "#/$defs/N",
        },
        [{"n": {"v": 2, "n": {"v": 3}}, "v": 1}],
    ),
    "keywords of other tools beside a circle": (
        {
            "$defs": {"N": {"properties": {"v": INT, "n": {"$ref": "#/$defs/N", "deprecated": True, "x-note": 1}}}},
            "$ref": "#/$defs/N",
        },
        [{"v": 1, "n": {"v": 2}}],
    ),
    "definitions under a name of their own": (
        {"own": {"a": {"$ref": "#/more/b"}}, "more": {"b": _object("v")}, "properties": {"x": {"$ref": "#/own/a"}}},
        [{"x": {"v": 1}}],
    ),
    "nested all of": (
        {"allOf": [{"allOf": [A]}, {"allOf": [B, {"properties": {"c": INT}}]}]},
        [{"a": 1, "b": 2, "c": 3}],
    ),
    "patterns in another member": (
        {"allOf": [A, {"patternProperties": {"^x": {"type": "string"}}}]}, [{"x1": "s", "a": 1}]
    ),
    "further keys by a schema": (_object("a", additionalProperties={"type": "string"}), [{"z": "s", "a": 1, "b": "t"}]),
    "any further keys": (_object("a", additionalProperties=True), [{"z": [1], "a": 1, "b": {}}]),
    "no properties": ({"type": "object"}, [{"z": 1, "a": [{}]}]),
    "types in a list": (
        {"type": ["object", "null"], "properties": {"a": {"type": ["string", "null"]}}},
        [{"a": "x" * 900}, None],
    ),
    "true and false": ({"type": "object", "properties": {"a": True, "b": False}}, [{"a": {"x": 1}}]),
    "objects as values": ({"enum": [{"b": 1, "a": [{}]}, 3]}, [{"b": 1, "a": [{}]}, 3]),
    "first items and the rest": (
        {"type": "array", "prefixItems": [INT], "items": {"type": "string"}}, [[1, "x" * 700], [1, *["a"] * 70]]
    ),
    "items of older drafts": (
        {"$schema": DRAFT_7, "items": [INT, A], "additionalItems": B},
        [[1, {"a": 1}, {"b": 1}]],
    ),
    "siblings that older drafts ignore": (
        {
            "$schema": DRAFT_7,
            "properties": {"x": {"$ref": "#/definitions/A", "type": "string"}},
            "definitions": {"A": A},
        },
        [{"x": {"a": 1}}],
    ),
    "siblings at the root that older drafts ignore": (
        {"$schema": DRAFT_7, "$ref": "#/definitions/A", "properties": {"z": INT}, "definitions": {"A": A}},
        [{"z": "x", "a": 1}],
    ),
    "a condition": (
        {
            **_object("a"),
            "if": {"properties": {"a": {"const": 1}}},
            "then": {"properties": {"b": INT}, "required": ["b"]},
        },
        [{"a": 1, "b": 2}, {"a": 3}],
    ),
    "a dependency": (_object("a", dependentRequired={"a": ["b"]}), [{"a": 1, "b": "x"}]),
    "what must not be": (_object("a", **{"not": {"required": ["c"]}}), [{"a": 1, "b": 2}]),
    "no unevaluated keys": ({**_object("a", unevaluatedProperties=False), "allOf": [B]}, [{"a": 1, "b": 2}]),
    "recursion": (
        {"type": "object", "properties": {"v": {"type": "string"}, "next": {"$ref": "#"}}},
        [{"next": {"next": {"v": "x" * 900, "w": 1}, "u": 2}, "v": "y"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_what_several_schemas_of_one_value_allow_is_sayable(name: str) -> None:
    schema, answers = MERGED[name]
    _sayable(schema, *answers)


def test_all_of_allows_the_keys_of_all_and_no_other() -> None:
    grammar = compiled({"allOf": [A, B]})
    assert grammar is not None
    assert refused_from(grammar, '{"a":1,"b":2}') is None
    assert refused_from(grammar, '{"a":1,"b":2,"c":3}') == ',"c":3}'
    assert refused_from(grammar, '{"a":1}') == "}"


OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
UNNAMED: list[tuple[dict[str, Any], list[Any]]] = [
    (OPEN, [{"a": "1", "b": "2"}, {"c": None, "b": 3}, {"b": {"z": 1, "y": ["t" * 900, {}]}}, {"a": "1"}]),
    ({"type": "array", "items": OPEN}, [[{"z": [], "b": 1.5}, {"b": "x"}]]),
    ({"$defs": {"O": OPEN}, "type": "array", "items": {"$ref": "#/$defs/O"}}, [[{"b": 1, "a": "x"}]]),
    ({"anyOf": [OPEN, {"type": "null"}]}, [{"q": 1}, None]),
    ({"anyOf": [{**OPEN, "required": ["a"]}, B]}, [{"a": "x", "n": 1}, {"b": 1, "m": True}]),
    ({"allOf": [A, B]}, [{"b": 1, "a": 1, "0": [1, "x"]}]),
    ({**OPEN, "patternProperties": {"^x": INT}}, [{"x2": 1, "m": 1, "a": "s", "x1": 2}]),
    ({"type": "object", "properties": {"o": OPEN}}, [{"o": {"e": {"f": {"g": 1}}}, "p": 1}]),
    ({**OPEN, "additionalProperties": OPEN}, [{"k": {"u": 1}}]),
]


@pytest.mark.parametrize(("schema", "answers"), UNNAMED)
def test_a_key_that_training_showed_may_be_said_there(schema: dict[str, Any], answers: list[Any]) -> None:
    _sayable(schema, *answers)


def test_keys_that_training_did_not_show_stay_closed() -> None:
    rows = FinetuneDataset.from_pairs([("q", {"a": "1", "b": 2})], schema=OPEN)
    bounds = AnswerBounds.model_validate(json.loads(learn_bounds(rows).model_dump_json()))
    assert bounds == learn_bounds(rows)
    assert bounds.learned_keys == {schema_key(OPEN): {"#": {"b": {"type": "integer"}}}}
    grammar = compiled(OPEN, schema_key(OPEN), bounds)
    assert grammar is not None
    assert refused_from(grammar, '{"b":7}') is None
    assert refused_from(grammar, '{"b":"x"}') == '"x"}'
    assert refused_from(grammar, '{"c":1}') is not None
    unlearned = compiled(OPEN)
    assert unlearned is not None
    assert refused_from(unlearned, '{"b":7}') is not None


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str = ""


class Fish(BaseModel):
    kind: Literal["fish", "shark"] = "fish"


Tagged = Annotated[Cat | Dog | Fish, Field(discriminator="kind")]
Called = Annotated[
    Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")],
    Discriminator(lambda value: value["kind"] if isinstance(value, dict) else value.kind),
]
Nested = Annotated[Annotated[Cat | Dog, Field(discriminator="kind")] | Fish, Field(discriminator="kind")]


@pytest.mark.parametrize(
    "annotation", [Tagged, Called, Nested, list[Tagged], dict[str, Tagged], Tagged | None]
)
def test_the_field_that_tells_a_union_apart_is_required(annotation: Any) -> None:
    model = create_model("Holder", pet=(annotation, ...))
    grammar = compiled(grammar_schema(model))
    assert grammar is not None
    wrapped = {list[Tagged]: "[{}]", dict[str, Tagged]: '{"k":{}}'}.get(annotation, "{}")
    for inner, allowed in [
        ("", False),
        ('"kind":"dog"', True),
        ('"kind":"dog","name":"x"', True),
        ('"name":"x"', False),
    ]:
        text = f'{{"pet":{wrapped.replace("{}", "{" + inner + "}")}}}'
        assert (refused_from(grammar, text) is None) is allowed, text
        if allowed:
            model.model_validate_json(text)


class Number(BaseModel):
    kind: Literal["number"] = "number"
    value: float


class Sum(BaseModel):
    kind: Literal["sum"] = "sum"
    left: Term
    rest: list[Term] = Field(default=[], deprecated=True)


Term = Annotated[Number | Sum, Field(discriminator="kind")]
Sum.model_rebuild()


@pytest.mark.parametrize("annotation", [Term, list[Term], dict[str, Term], Term | None])
def test_a_tagged_union_may_hold_itself(annotation: Any) -> None:
    model: Any = create_model("Holder", term=(annotation, ...))
    term = {
        "kind": "sum",
        "left": {"kind": "number", "value": 1.5},
        "rest": [{"kind": "number", "value": 2.0}],
    }
    given = {list[Term]: [term], dict[str, Term]: {"k": term}}.get(annotation, term)
    (row,) = rows = list(FinetuneDataset.from_pairs([("q", model.model_validate({"term": given}))]))
    assert row.answer_schema is not None
    for schema in (grammar_schema(model), row.answer_schema):
        grammar = compiled(schema, schema_key(row.answer_schema), learn_bounds(rows))
        assert grammar is not None
        assert refused_from(grammar, trained_text(row)) is None
    grammar = compiled(grammar_schema(model))
    assert grammar is not None
    assert refused_from(grammar, trained_text(row).replace('"kind":"number",', "")) is not None


def test_the_field_stays_optional_where_nothing_is_told_apart() -> None:
    model = create_model("Holder", alone=(Cat, ...), pet=(Tagged, ...))
    grammar = compiled(grammar_schema(model))
    assert grammar is not None
    assert refused_from(grammar, '{"alone":{},"pet":{"kind":"cat"}}') is None


def test_a_key_learned_in_a_branch_may_be_said_by_the_grammar_of_the_class() -> None:
    model = create_model("Holder", pets=(list[Tagged], ...))
    answer = {"pets": [{"kind": "dog", "name": "x", "age": 3}, {"kind": "cat"}]}
    rows = FinetuneDataset.from_pairs([("q", answer)], schema=model.model_json_schema())
    (row,) = rows
    assert row.answer_schema is not None
    grammar = compiled(grammar_schema(model), schema_key(row.answer_schema), learn_bounds(rows))
    assert grammar is not None
    assert refused_from(grammar, trained_text(row)) is None
    assert refused_from(grammar, '{"pets":[{"kind":"cat","age":3}]}') == ',"age":3}]}'
