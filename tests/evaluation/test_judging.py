"""Each value of an answer is judged by gold: whether it ought to be there, whether it is right, what is missing."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.evaluation.run.kept_trust import KeptTrust, _kept
from llama_index_finetune_structured.evaluation.score.answers import score_answer
from llama_index_finetune_structured.evaluation.score.fields import fields_of
from llama_index_finetune_structured.evaluation.score.judging import judged_trust
from llama_index_finetune_structured.example import compact_json
from llama_index_finetune_structured.trust.answer_trust import trust_in_tokens
from llama_index_finetune_structured.trust.json_spans import JsonPath
from llama_index_finetune_structured.trust.tokens import AnswerToken

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "author": {"type": "object", "properties": {"name": {"type": "string"}, "of": {"type": "string"}}},
        "songs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "seconds": {"type": "integer"}},
            },
        },
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
UNION = {
    "oneOf": [
        {"type": "object", "properties": {"kind": {"const": kind}, "name": {"type": "string"}}}
        for kind in ("song", "film")
    ]
}


def judged(gold: Any, answer: Any, schema: dict[str, Any] | None = None) -> KeptTrust:
    text = compact_json(answer)
    trust = trust_in_tokens(text, [AnswerToken(bytes([byte]), -0.1, -0.1) for byte in text.encode()])
    assert trust is not None
    return judged_trust(_kept(trust), fields_of(schema or SCHEMA, {}), gold, gold, answer)


def verdicts(trust: KeptTrust) -> dict[JsonPath, tuple[bool | None, bool | None]]:
    return {value.path: (value.is_due, value.is_right) for value in trust.values}


def ends(trust: KeptTrust) -> dict[JsonPath, bool | None]:
    return {end.path: end.is_complete for end in trust.ends}


def test_a_wrong_value_is_due_and_an_invented_one_is_not() -> None:
    found = judged({"title": "A"}, {"title": "B", "year": 1999})
    assert verdicts(found) == {("title",): (True, False), ("year",): (False, None)}
    assert ends(found) == {(): True}


def test_a_value_where_gold_has_null_is_wrong_and_null_where_gold_has_a_value_too() -> None:
    assert verdicts(judged({"year": None}, {"year": 3})) == {("year",): (True, False)}
    assert verdicts(judged({"year": 3}, {"year": None})) == {("year",): (True, False)}
    assert verdicts(judged({"year": None}, {"year": None})) == {("year",): (True, True)}


def test_an_object_without_a_key_of_gold_is_not_complete() -> None:
    found = judged(
        {"title": "A", "author": {"name": "N", "of": "O"}}, {"title": "A", "author": {"name": "N"}}
    )
    assert ends(found) == {(): True, ("author",): False}
    assert ends(judged({"title": "A", "author": {"name": "N"}}, {"title": "A"})) == {(): False}


def test_items_are_judged_beside_the_items_of_gold_that_they_match() -> None:
    gold = {"songs": [{"name": "x", "seconds": 1}, {"name": "y", "seconds": 2}, {"name": "z", "seconds": 3}]}
    answer = {
        "songs": [{"name": "y", "seconds": 9}, {"name": "new", "seconds": 7}, {"name": "x", "seconds": 1}]
    }
    found = judged(gold, answer)
    assert verdicts(found) == {
        ("songs", 0, "name"): (True, True),
        ("songs", 0, "seconds"): (True, False),
        ("songs", 1, "name"): (False, None),
        ("songs", 1, "seconds"): (False, None),
        ("songs", 2, "name"): (True, True),
        ("songs", 2, "seconds"): (True, True),
    }
    complete = ends(found)
    assert complete["songs",] is False
    assert complete["songs", 1] is None  # gold has no such item


def test_an_empty_list_is_right_where_gold_has_none() -> None:
    assert verdicts(judged({"tags": []}, {"tags": []})) == {("tags",): (True, True)}
    missing = judged({"tags": ["a"]}, {"tags": []})
    assert verdicts(missing) == {("tags",): (True, False)}
    assert ends(missing)["tags",] is False


def test_values_in_a_union_of_objects_are_judged_one_by_one() -> None:
    found = judged({"kind": "song", "name": "é"}, {"kind": "film", "name": "é"}, UNION)
    assert verdicts(found) == {("kind",): (True, False), ("name",): (True, True)}


texts, numbers = st.sampled_from(["", "a", "b", "ü"]), st.sampled_from([None, 1, 2])
objects = st.fixed_dictionaries(
    {},
    optional={
        "title": texts,
        "year": numbers,
        "author": st.fixed_dictionaries({}, optional={"name": texts, "of": texts}),
        "songs": st.lists(st.fixed_dictionaries({"name": texts}, optional={"seconds": st.integers(1, 2)}), max_size=3),
        "tags": st.lists(texts, max_size=3),
    },
)  # fmt: skip


@settings(deadline=None)
@given(objects, objects)
def test_an_answer_is_right_where_nothing_is_invented_wrong_or_missing(gold: Any, answer: Any) -> None:
    fields = fields_of(SCHEMA, {})
    scores = score_answer(fields, gold, answer, True)
    found = judged(gold, answer)
    flawless = all(due is not False and right is not False for due, right in verdicts(found).values())
    complete = all(done is not False for done in ends(found).values())
    assert all(scores[field.path].right for field in fields) == (flawless and complete)


@settings(deadline=None)
@given(objects)
def test_gold_itself_is_right_in_every_value(gold: Any) -> None:
    found = judged(gold, gold)
    assert all(verdict != (True, False) and verdict[0] is not False for verdict in verdicts(found).values())
    assert KeptTrust.model_validate_json(found.model_dump_json()) == found
