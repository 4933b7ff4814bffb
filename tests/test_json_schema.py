"""JSON Schema: references, validators, titles and key order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from llama_index_finetune_structured.json_schema import (
    first_error,
    follow_references,
    pointer_part,
    resolve_pointer,
    schema_title,
    schema_validator,
    without_titles,
)
from llama_index_finetune_structured.local.schema.drafts import by_reference_alone
from llama_index_finetune_structured.local.schema.objects import KeyOrder
from llama_index_finetune_structured.panics import recursion_ends

names = st.text(st.sampled_from("ab/~01é %"), max_size=4)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)


def in_schema_order(schema: Any, value: Any) -> Any:
    root = by_reference_alone(dict(schema))
    return KeyOrder(root).ordered(root, value)


def parts_of(value: Any, pointer: str = "#") -> list[tuple[str, Any]]:
    """Every value inside a JSON value, with its pointer."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(pointer_part(name), inner) for name, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    found = [(pointer, value)]
    for part, inner in items:
        found += parts_of(inner, f"{pointer}/{part}")
    return found


@given(values)
def test_the_pointer_of_every_part_of_a_value_resolves_to_that_part(value: Any) -> None:
    for pointer, part in parts_of(value):
        assert resolve_pointer(value, pointer) is part
        assert resolve_pointer(value, pointer.removeprefix("#")) is part


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        ("#/a~1b", 1),
        ("#/m~0n", 2),
        ("#/~01", 3),  # ~0 is decoded last, so this is the name "~1" and not "/"
        ("#/list/1", 5),
        ("#/list/01/x", {}),
        ("#/list/2", {}),
        ("#/list/-1", {}),
        ("#/list/-", {}),
        ("#/list/x", {}),
        ("#/nowhere/deep", {}),
        ("#/list/0/deeper", {}),
        ("#anchor", {}),
        ("other.json", {}),
        ("https://example.com/schema.json", {}),
        ("#/", {}),
    ],
)
def test_pointers_are_unescaped_and_what_they_miss_is_empty(pointer: str, expected: Any) -> None:
    root = {"a/b": 1, "m~n": 2, "~1": 3, "list": [4, 5]}
    assert resolve_pointer(root, pointer) == expected


@given(st.lists(names, min_size=1, max_size=6, unique=True))
def test_a_chain_of_references_ends_at_its_schema(chain: list[str]) -> None:
    schema = {"type": "integer"}
    links = [{"$ref": f"#/$defs/{pointer_part(name)}"} for name in chain]
    root = {"$defs": dict(zip(chain, [*links[1:], schema], strict=True))}
    assert follow_references(root, links[0]) is schema
    assert follow_references(root, schema) is schema


@given(st.lists(names, min_size=1, max_size=6, unique=True), st.integers(0, 5))
def test_a_chain_of_references_that_comes_back_to_itself_is_empty(chain: list[str], back: int) -> None:
    links = [{"$ref": f"#/$defs/{pointer_part(name)}"} for name in chain]
    root = {"$defs": dict(zip(chain, [*links[1:], links[back % len(links)]], strict=True))}
    assert follow_references(root, links[0]) == {}


@pytest.mark.parametrize(
    "node", [{"$ref": "#/$defs/none"}, {"$ref": "#anchor"}, {"$ref": "#/flag"}, True, None, [], "x"]
)
def test_a_reference_to_no_schema_is_empty(node: Any) -> None:
    assert follow_references({"flag": True, "type": "object"}, node) == {}


def test_a_property_named_ref_is_no_reference() -> None:
    node = {"$ref": {"type": "string"}}
    assert follow_references({}, node) is node


@st.composite
def object_schemas(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    """Schemas of objects, lists, tuples, unions and references to themselves."""
    kinds = ["leaf"] if depth == 0 else ["leaf", "object", "list", "tuple", "union", "root"]
    kind = draw(st.sampled_from(kinds))
    inner = object_schemas(depth - 1) if depth else st.nothing()
    if kind == "object":
        schema: dict[str, Any] = {"properties": draw(st.dictionaries(names, inner, max_size=4))}
        extra = draw(st.none() | st.booleans() | inner)
        return schema if extra is None else schema | {"additionalProperties": extra}
    if kind == "list":
        return {"items": draw(st.booleans() | inner)}
    if kind == "tuple":
        return {"prefixItems": draw(st.lists(inner, max_size=2)), "items": draw(inner)}
    if kind == "union":
        branches = draw(st.lists(inner, min_size=1, max_size=2))
        return {draw(st.sampled_from(["anyOf", "oneOf", "allOf"])): branches}
    return {"$ref": "#"} if kind == "root" else {}


@given(object_schemas(), values)
def test_ordering_keys_changes_no_value_and_is_done_after_one_pass(
    schema: dict[str, Any], value: Any
) -> None:
    ordered = in_schema_order(schema, value)
    assert ordered == value
    assert json.dumps(in_schema_order(schema, ordered)) == json.dumps(ordered)


@given(st.lists(names, unique=True, max_size=5), st.permutations(list("abcde")))
def test_known_keys_follow_the_schema_and_the_others_are_sorted(known: list[str], keys: list[str]) -> None:
    schema: dict[str, Any] = {"properties": {name: {} for name in known}}
    value = dict.fromkeys([*keys, *reversed(known)], 1)
    expected = [*known, *sorted(key for key in keys if key not in known)]
    assert list(in_schema_order(schema, value)) == expected


class Leaf(BaseModel):
    b: int
    a: int


class Branch(BaseModel):
    z: int


class Tree(BaseModel):
    name: str
    leaves: list[Leaf] = []
    by_name: dict[str, Leaf] = {}
    either: Leaf | Branch | None = None
    pair: tuple[Leaf, Branch] | None = None
    trees: list[Tree] = []


def test_keys_are_ordered_in_references_lists_maps_unions_tuples_and_recursion() -> None:
    leaf = {"a": 1, "b": 2}
    value = {
        "trees": [{"leaves": [leaf], "name": "inner"}],
        "pair": [leaf, {"z": 3}],
        "either": leaf,
        "by_name": {"y": leaf, "x": leaf},
        "name": "outer",
    }
    ordered = in_schema_order(Tree.model_json_schema(), value)
    assert json.dumps(ordered) == json.dumps(
        {
            "name": "outer",
            "by_name": {"y": {"b": 2, "a": 1}, "x": {"b": 2, "a": 1}},
            "either": {"b": 2, "a": 1},
            "pair": [{"b": 2, "a": 1}, {"z": 3}],
            "trees": [{"name": "inner", "leaves": [{"b": 2, "a": 1}]}],
        }
    )


@given(values)
def test_a_value_that_fits_has_no_error_and_one_that_does_not_has_its_path(value: Any) -> None:
    assert first_error({"type": "object", "properties": {"v": {"const": value}}}, {"v": value}) is None
    error = first_error({"type": "object", "properties": {"v": {"const": value}}}, {"v": [value, value]})
    assert error is not None
    assert error.startswith("$.v: ")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"name": "x", "leaves": [{"b": 1, "a": "one"}]}, "$.leaves[0].a: 'one' is not of type 'integer'"),
        ({"leaves": []}, "$: 'name' is a required property"),
        ({"name": 5}, "$.name: 5 is not of type 'string'"),
        ({"name": "x"}, None),
    ],
)
def test_the_first_error_is_the_most_specific(value: Any, error: str | None) -> None:
    assert first_error(Tree.model_json_schema(), value) == error


def test_an_invalid_schema_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not a valid JSON schema: 'no such type'"):
        first_error({"type": "no such type"}, {})


def test_equal_schemas_share_a_validator_and_the_draft_that_a_schema_names_is_used() -> None:
    schema = {"items": [{"type": "integer"}], "$schema": "http://json-schema.org/draft-07/schema#"}
    assert schema_validator(schema) is schema_validator(json.loads(json.dumps(schema)))
    assert first_error(schema, ["x"]) is not None  # a list of items is draft 7's form of prefixItems
    with pytest.raises(ValueError, match="not a valid JSON schema"):
        schema_validator({"items": [{"type": "integer"}]})


@given(values)
def test_titles_go_and_all_else_stays(value: Any) -> None:
    titled = {"title": "Thing", "properties": {"title": {"title": "Title", "const": value}}}
    bare = {"properties": {"title": {"const": value}}}
    assert without_titles(titled) == bare
    assert without_titles(bare) == bare


def test_a_title_that_is_no_string_is_none() -> None:
    assert schema_title({"title": "Song"}) == "Song"
    untitled: list[Any] = [{"title": {}}, {}, None]
    assert [schema_title(schema) for schema in untitled] == [None, None, None]


@pytest.mark.parametrize(
    ("number", "step", "fits"),
    [
        (0.29, 0.01, True),
        (0.295, 0.01, False),
        (1.1, 0.1, True),
        (0.1 + 0.2, 0.1, True),
        (-0.29, 0.01, True),
        (3, 0.1, True),
        (10**30, 3, False),
        (3 * 10**30, 3, True),
        (10**400, 0.01, True),
        (6.0, 3, True),
        (7.0, 3, False),
        (0, 0.01, True),
    ],
)
def test_multiples_are_judged_as_by_pydantic(number: float, step: float, fits: bool) -> None:
    assert (first_error({"multipleOf": step}, number) is None) is fits


@given(st.integers(-(10**6), 10**6), st.sampled_from([0.1, 0.01, 0.001, 0.05, 0.25, 3.0]))
def test_every_multiple_that_a_class_takes_fits_its_schema(count: int, step: float) -> None:
    class Money(BaseModel):
        amount: float = Field(multiple_of=step)

    given_money = Money(amount=count * step)
    assert first_error(Money.model_json_schema(), {"amount": given_money.amount}) is None


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        (r"^\p{Lu}\p{L}*$", "Ärzte", True),
        (r"^\p{Lu}\p{L}*$", "ärzte", False),
        (r"^\d$", "1\n", False),  # in Rust and ECMAScript "$" is the end of the text only
        (r"^\d$", "٣", True),
        (r"^\w+$", "हिन्दी", True),  # Python's \w takes no combining marks
        (r"^[a-z&&[^b]]+$", "b", False),
        (r"^[[:alpha:]]+$", "ab", True),
        (r"^\d{2}\z", "12", True),
        (r"^(?!x)", "a", True),
        (r"^(?!x)", "x", False),
        (r"^(?!\p{Lu})", "X", True),  # no engine has both: not enforced
        (r"[", "anything", True),
    ],
)
@pytest.mark.filterwarnings("error")
def test_patterns_are_judged_as_by_pydantic_and_not_enforced_where_no_engine_has_them(
    pattern: str, text: str, fits: bool
) -> None:
    assert (first_error({"pattern": pattern}, text) is None) is fits
    assert (first_error({"patternProperties": {pattern: False}}, {text: 1}) is None) is (
        not fits or pattern in (r"^(?!\p{Lu})", "[")
    )
    closed = {"patternProperties": {pattern: {}}, "additionalProperties": False}
    assert (first_error(closed, {text: 1}) is None) is fits
    assert first_error({"patternProperties": {pattern: {}}, "unevaluatedProperties": True}, {text: 1}) is None


def test_formats_are_not_checked() -> None:
    assert first_error({"format": "date"}, "no date") is None


@pytest.mark.parametrize(
    "reference",
    [
        "#/$defs/No",
        "#/properties/b",
        "#/properties/a/anyOf/7",
        "#/properties/a/anyOf/x",
        "#/title",
        "#anchor",
        "other.json",
        "http://127.0.0.1:9/schema.json",
        "http://[",
    ],
)
def test_a_reference_that_leads_to_no_schema_is_a_value_error(reference: str) -> None:
    schema = {
        "title": "t",
        "properties": {"a": {"anyOf": [{"type": "object"}]}, "b": {"$ref": reference}},
    }
    with pytest.raises(ValueError, match="the schema cannot be used"):
        first_error(schema, {"b": 1})
    assert first_error(schema, {"a": {}}) is None  # a reference that is not needed


def test_a_reference_into_a_list_is_followed() -> None:
    schema = {"properties": {"a": {"anyOf": [{"type": "object"}]}, "b": {"$ref": "#/properties/a/anyOf/0"}}}
    assert first_error(schema, {"b": {}}) is None
    assert first_error(schema, {"b": 1}) == "$.b: 1 is not of type 'object'"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strnig"},
        {"$schema": 5},
        {"$schema": {}},
        {"properties": 5},
        {"$ref": 5},
        {"$defs": {"a": {1}}},
    ],
)
def test_what_is_no_schema_is_a_value_error(schema: Any) -> None:
    with pytest.raises(ValueError, match="not a valid JSON schema"):
        first_error(schema, {})


def test_schemas_and_values_nested_too_deeply_are_value_errors() -> None:
    value: Any = []
    schema: dict[str, Any] = {}
    for _ in range(2_000):
        value, schema = [value], {"items": schema}
    with pytest.raises(ValueError, match="nested too deeply"):
        first_error({"items": {"$ref": "#"}}, value)
    with pytest.raises(ValueError, match="schema"):
        first_error(schema, [])


def test_a_panic_of_a_rust_library_inside_of_jsonschema_is_a_recursion_error() -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(RecursionError), recursion_ends():
        raise panic
    with pytest.raises(KeyboardInterrupt), recursion_ends():
        raise KeyboardInterrupt
