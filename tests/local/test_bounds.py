"""Bounds are never tighter than the training answers, apply at the right place, and hits are counted."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from llama_index_finetune_structured import Example, Message
from llama_index_finetune_structured.local.schema.bounds import (
    AnswerBounds,
    bounded_schema,
    bounds_hit,
    learn_bounds,
    schema_key,
)
from llama_index_finetune_structured.local.schema.string_formats import PATTERNS


class Author(BaseModel):
    name: str


class Paper(BaseModel):
    title: str
    authors: list[Author]
    keywords: list[str] | None = None
    counts: dict[str, int] = {}
    cites: list[Paper] = []


SCHEMA = Paper.model_json_schema()


def _example(paper: Paper) -> Example:
    return Example(
        messages=(Message(role="user", content="Q"),),
        answer=Message(role="assistant", content=paper.model_dump_json()),
        answer_schema=SCHEMA,
    )


_papers = st.recursive(
    st.builds(
        Paper,
        title=st.text(max_size=300),
        authors=st.lists(st.builds(Author, name=st.text(max_size=120)), max_size=20),
        keywords=st.none() | st.lists(st.text(max_size=100), max_size=12),
        counts=st.dictionaries(st.text(max_size=5), st.integers(), max_size=12),
        cites=st.just([]),
    ),
    lambda inner: st.builds(Paper, title=st.text(), authors=st.just([]), cites=st.lists(inner, max_size=3)),
    max_leaves=4,
)


@given(papers=st.lists(_papers, min_size=1, max_size=4))
def test_every_training_answer_fits_the_bounded_schema(papers: list[Paper]) -> None:
    examples = [_example(paper) for paper in papers]
    key, bounds = schema_key(SCHEMA), learn_bounds(examples)
    bounded = bounded_schema(SCHEMA, key, bounds)
    for example in examples:
        jsonschema.validate(example.answer_object(), bounded)
        assert bounds_hit(SCHEMA, key, bounds, example.answer_object()) == []


def _unbounded(node: Any) -> list[Any]:
    if isinstance(node, list):
        return [found for item in node for found in _unbounded(item)]
    if not isinstance(node, dict):
        return []
    limits = {"array": "maxItems", "string": "maxLength"}
    kind = node.get("type")
    mine = [node] if isinstance(kind, str) and kind in limits and limits[kind] not in node else []
    return mine + [found for value in node.values() for found in _unbounded(value)]


def test_every_list_and_string_of_the_schema_is_bounded() -> None:
    assert _unbounded(SCHEMA)
    assert not _unbounded(bounded_schema(SCHEMA, "", AnswerBounds()))


def test_a_format_that_does_not_end_by_itself_is_bounded() -> None:
    formats = ["uri", "hostname", "email", "ipv6", "uuid"]
    schema = {"type": "object", "properties": {f: {"type": "string", "format": f} for f in formats}}
    bounded = bounded_schema(schema, "", AnswerBounds(default_characters=90))["properties"]
    assert [bounded[f].get("maxLength") for f in formats] == [90, 90, 90, None, None]


def test_an_answer_as_long_as_its_bound_is_counted_at_its_place() -> None:
    bounds = AnswerBounds(default_items=3, default_characters=10)
    answer = {"title": "x" * 10, "authors": [{"name": "a"}] * 3, "keywords": ["short"]}
    assert bounds_hit(SCHEMA, "", bounds, answer) == [
        "#/$defs/Paper/properties/authors",
        "#/$defs/Paper/properties/title",
    ]


def test_a_bound_of_the_schema_itself_is_kept_and_is_no_hit() -> None:
    schema = {"type": "object", "properties": {"code": {"type": "string", "maxLength": 2}}}
    bounded = bounded_schema(schema, "", AnswerBounds())
    assert bounded["properties"]["code"]["maxLength"] == 2
    assert bounds_hit(schema, "", AnswerBounds(), {"code": "ab"}) == []


def _citing(*names: str) -> Example:
    return _example(Paper(title="t", authors=[Author(name=name) for name in names]))


def test_lists_are_distinct_where_training_never_showed_an_object_twice() -> None:
    assert learn_bounds([_citing("a", "b"), _citing("a")]).distinct == (schema_key(SCHEMA),)
    assert learn_bounds([_citing("a", "b"), _citing("a", "c", "a")]).distinct == ()
    assert learn_bounds([_citing("a")]).distinct == ()


def test_bounds_survive_json() -> None:
    bounds = learn_bounds([_example(Paper(title="t", authors=[Author(name="n")]))])
    assert AnswerBounds.model_validate(json.loads(bounds.model_dump_json())) == bounds


_moments = st.datetimes(timezones=st.none() | st.just(datetime.timezone.utc))


@given(moment=_moments, takes=st.timedeltas(datetime.timedelta(days=-9999), datetime.timedelta(days=9999)))
def test_every_moment_of_training_fits_the_patterns_of_the_grammar(
    moment: datetime.datetime, takes: datetime.timedelta
) -> None:
    duration: str = TypeAdapter(datetime.timedelta).dump_python(takes, mode="json")
    for name, text in (
        ("date", moment.date().isoformat()),
        ("time", moment.timetz().isoformat()),
        ("date-time", moment.isoformat()),
        ("duration", duration),
    ):
        assert re.search(PATTERNS[name], text), (name, text)


@given(text=st.from_regex(PATTERNS["date-time"], fullmatch=True))
def test_every_moment_that_the_grammar_lets_through_is_one(text: str) -> None:
    TypeAdapter(datetime.datetime).validate_python(text.strip())


def test_an_added_bound_leaves_room_for_the_schemas_own_minimum() -> None:
    essay = {"type": "string", "minLength": 500}
    schema = {"properties": {"essay": essay, "all": {"type": "array", "items": essay, "minItems": 40}}}
    bounded = bounded_schema(schema, "", AnswerBounds())["properties"]
    assert (bounded["essay"]["maxLength"], bounded["all"]["maxItems"]) == (1000, 80)


def test_bounds_are_found_by_what_the_model_is_shown_which_has_no_titles() -> None:
    untitled = {name: value for name, value in SCHEMA.items() if name != "title"}
    assert schema_key(untitled) == schema_key({"title": "Answer"} | untitled) == schema_key(SCHEMA)
    assert schema_key({"properties": {"title": {"type": "string"}}}) != schema_key({"properties": {}})
