"""Votes merge several answers to one question place by place, and never into what does not fit the schema."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured.example import canonical_json
from llama_index_finetune_structured.json_schema import find_error
from llama_index_finetune_structured.local.generate.votes import merged_answer, tags_of, vote

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=12,
)
ANSWERS = st.lists(JSON, min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("answers", "merged"),
    [
        (["a", "b", "b"], "b"),
        (["a", "b", "c"], "a"),
        (["a", "b", "b", "c", "c"], "b"),
        ([1, True, True], True),
        ([2, 1.0, 1], 1.0),
        ([None, {"x": 1}, {"x": 2}], {"x": 1}),
        (["a", ["b"], ["c"]], ["b"]),
    ],
)
def test_a_scalar_is_the_most_frequent_one_and_a_tie_is_the_first_answers(answers: Any, merged: Any) -> None:
    assert merged_answer(answers) == merged


def test_objects_are_merged_field_by_field_and_have_the_keys_of_most() -> None:
    answers = [{"name": "x", "when": "now"}, {"name": "y", "where": "here"}, {"name": "y", "where": "there"}]
    assert merged_answer(answers) == {"name": "y", "where": "here"}
    assert merged_answer(answers[:2]) == {"name": "x", "when": "now"}, "an even vote is the first answer's"


def test_keys_stand_in_their_order() -> None:
    merged = merged_answer(
        [{"a": 1, "d": 1}, {"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 1, "b": 1, "c": 2, "d": 2}]
    )
    assert list(merged) == ["a", "b", "c", "d"]


def test_list_items_stand_in_more_than_half_of_the_answers() -> None:
    assert merged_answer([["a", "b"], ["b", "c"], ["b", "c", "d"]]) == ["b", "c"]
    assert merged_answer([["a", "a", "b"], ["a", "a"], ["a"]]) == ["a", "a"], "equal items are counted"
    assert merged_answer([["c"], ["a", "c"], ["a", "b", "c"]]) == ["a", "c"]


def test_versions_of_an_object_are_one_item() -> None:
    def cited(author: str, year: int, clause: str) -> dict[str, Any]:
        return {"author": author, "year": year, "clause": clause}

    answers = [
        [cited("Li", 2001, "as shown"), cited("Wu", 2002, "but see")],
        [cited("Li", 2001, "as shown by"), cited("Wu", 2003, "but see")],
        [cited("Li", 2001, "it was shown"), cited("Wu", 2003, "but see")],
    ]
    assert merged_answer(answers) == [cited("Li", 2001, "as shown"), cited("Wu", 2003, "but see")]


def test_objects_with_little_in_common_are_different_items() -> None:
    answers = [[{"name": "a", "size": 1}], [{"name": "b", "size": 2}], [{"name": "c", "size": 3}]]
    assert merged_answer(answers) == []


def test_empty_fields_make_no_objects_alike() -> None:
    empty: dict[str, Any] = {"b": None, "c": "", "d": [], "e": {}}
    assert merged_answer([[{"a": name, **empty}] for name in "xyz"]) == []


def test_a_version_of_an_item_that_stands_is_no_second_item() -> None:
    full, version = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 4}
    assert merged_answer([[version], [full], [full], [{**full, "c": 5}], [full]]) == [full]
    both = merged_answer([[full, version], [full, version], [full]])
    assert both == [full, version], "most answers list both"


def test_of_a_union_only_the_most_frequent_branch_counts() -> None:
    schema = {
        "oneOf": [
            {
                "properties": {"kind": {"const": "song"}, "title": {}, "length": {}},
                "required": ["kind", "title"],
            },
            {
                "properties": {"kind": {"enum": ["book"]}, "title": {}, "pages": {}},
                "required": ["kind", "title"],
            },
        ]
    }
    assert tags_of(schema) == {("kind", '"song"'), ("kind", '"book"')}
    answers = [
        {"kind": "book", "title": "x"},
        {"kind": "song", "title": "y", "length": 1},
        {"kind": "song", "title": "z"},
    ]
    assert merged_answer(answers, tags=tags_of(schema)) == {"kind": "song", "title": "y", "length": 1}
    free = [{"kind": name, "n": n} for n, name in enumerate(["x", "y", "y"])]
    assert merged_answer(free, tags=tags_of(schema)) == {"kind": "y", "n": 0}, "no branch has these"


def test_what_does_not_fit_the_schema_is_merged_less_and_then_not_at_all() -> None:
    def voted(answers: list[Any], schema: dict[str, Any]) -> Any:
        return vote(answers, schema, lambda value: find_error(schema, value) is None)

    place = {"type": "array", "items": {"type": "number"}, "minItems": 2}
    schema = {"properties": {"at": place, "name": {}}}
    answers = [{"at": [1, 2], "name": "x"}, {"at": [1, 3], "name": "y"}, {"at": [1, 4], "name": "y"}]
    assert voted(answers, schema) == {"at": [1, 2], "name": "y"}
    same = {"oneOf": [{"required": ["a"], "maxProperties": 1}, {"required": ["b"], "maxProperties": 1}]}
    mixed = [{"a": 1, "b": 1}, {"a": 2}, {"b": 2}]
    assert voted(mixed[1:], same) == {"a": 2}
    assert voted([{"b": 1}, {"a": 2}, {"a": 1}, {"b": 2}], same) == {"b": 1}


@given(ANSWERS)
def test_any_answers_are_merged(answers: list[Any]) -> None:
    json.dumps(merged_answer(answers))


@given(JSON, st.integers(1, 4))
def test_equal_answers_are_their_own_merge(answer: Any, count: int) -> None:
    assert merged_answer([answer] * count) == answer


@given(JSON, st.lists(JSON, max_size=2))
def test_an_answer_of_most_is_the_merged_one(answer: Any, others: list[Any]) -> None:
    answers = [*others, *[answer] * (len(others) + 1)]
    for merge_lists in (True, False):
        assert canonical_json(merged_answer(answers, merge_lists=merge_lists)) == canonical_json(
            merged_answer([answer])
        )


@given(st.lists(st.lists(st.integers(0, 6), unique=True), min_size=1, max_size=5))
def test_of_lists_of_scalars_exactly_the_items_of_most_stay(lists: list[list[int]]) -> None:
    merged = merged_answer(lists)
    votes = {item: 2 * sum(item in one for one in lists) for one in lists for item in one}
    stay = {n for n, count in votes.items() if count > len(lists) or (count == len(lists) and n in lists[0])}
    assert set(merged) == stay
    assert len(merged) == len(stay)


@given(st.lists(JSON, min_size=1, max_size=5))
def test_the_scalars_of_the_merged_answer_stand_in_the_answers(answers: list[Any]) -> None:
    def scalars(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set().union(*map(scalars, value.values()))
        if isinstance(value, list):
            return set().union(*map(scalars, value))
        return {canonical_json(value)}

    assert scalars(merged_answer(answers)) <= set().union(*map(scalars, answers))


def test_long_lists_are_merged_in_time() -> None:
    numbers = random.Random(0)
    lists = [[{"n": n, "text": f"item {n}", "noise": numbers.random()} for n in range(400)] for _ in range(5)]
    merged_answer(lists)
