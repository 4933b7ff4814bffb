"""The figures agree with a naive recomputation and with small examples worked out by hand."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from llama_index_finetune_structured import Example, FieldRule, Message, Scorecard, compare
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.evaluation.score.matching import best_matching


class Item(BaseModel):
    name: str
    type: str


class Answer(BaseModel):
    title: str
    count: int | None = None
    colour: Literal["red", "green"] | None = None
    tags: list[str] = Field(default_factory=list)
    items: list[Item] = Field(default_factory=list)


NAMES = st.sampled_from(["a", "b", "c"])
ANSWERS = st.builds(
    Answer,
    title=st.sampled_from(["x", " x", "y z", "y \n z", "X", ""]),
    count=st.sampled_from([None, 0, 1, 2]),
    colour=st.sampled_from([None, "red", "green"]),
    tags=st.lists(NAMES, max_size=4),
    items=st.lists(st.builds(Item, name=NAMES, type=NAMES), max_size=4),
)
BROKEN = st.sampled_from(["", "Empty Response", "{", '{"title": 3}', '{"title": "x", "count": "many"}', "[]"])
PAIRS = st.lists(st.tuples(ANSWERS, st.one_of(ANSWERS, ANSWERS, ANSWERS, BROKEN)), min_size=1, max_size=30)


def scored(pairs: list[tuple[Any, Any]], output_cls: Any = Answer, **kwargs: Any) -> Scorecard:
    """A scorecard of one system, "it", that gives the second of each pair where the first is gold."""
    data = [
        Example(
            messages=(Message(role="user", content=f"question {at}"),),
            answer=Message(role="assistant", content=_text(gold)),
            query=str(at),
        )
        for at, (gold, _) in enumerate(pairs)
    ]
    answers = {str(at): answer for at, (_, answer) in enumerate(pairs)}
    systems = {"it": lambda example: answers[str(example.query)]}
    return compare(systems, data, output_cls=output_cls, show_progress=False, **kwargs)


def _text(value: Any) -> str:
    return value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value)


def words(text: str) -> str:
    return " ".join(text.split())


def items_of(answer: Answer, field: str) -> list[Any]:
    if field == "tags":
        return answer.tags
    return [(item.name, item.type) for item in answer.items]


def naive_f1(pairs: list[tuple[Any, Any]], field: str) -> float:
    found = gold_items = answer_items = right = 0
    for gold, answer in pairs:
        golds = Counter(items_of(gold, field))
        answers = Counter(items_of(answer, field)) if isinstance(answer, Answer) else Counter()
        found += (golds & answers).total()
        gold_items += golds.total()
        answer_items += answers.total()
        right += isinstance(answer, Answer) and golds == answers
    return 2 * found / (gold_items + answer_items) if gold_items + answer_items else right / len(pairs)


def naive_value(gold: Any, answer: Any, field: str) -> str:
    """Outcome of one plain field: right, wrong, missing, invented; "nothing" of an invalid answer."""

    def read(source: Any) -> Any:
        value = getattr(source, field) if isinstance(source, Answer) else None
        return words(value) or None if isinstance(value, str) else value

    gold_value, answer_value = read(gold), read(answer)
    if gold_value == answer_value:
        return "right" if isinstance(answer, Answer) else "nothing"
    if gold_value is None:
        return "invented"
    return "missing" if answer_value is None else "wrong"


@given(PAIRS)
@settings(max_examples=150, deadline=None)
def test_metrics_agree_with_a_naive_recomputation(pairs: list[tuple[Any, Any]]) -> None:
    it = scored(pairs).systems["it"]
    n = len(pairs)
    assert it.n == n
    assert it.schema_valid == pytest.approx(sum(isinstance(a, Answer) for _, a in pairs) / n)
    exact = 0
    points = 0.0
    for gold, answer in pairs:
        plain = [naive_value(gold, answer, field) == "right" for field in ("title", "count", "colour")]
        lists = [naive_f1([(gold, answer)], field) for field in ("tags", "items")]
        exact += isinstance(answer, Answer) and all(plain) and lists == [1, 1]
        points += sum([*plain, *lists]) / 5 if isinstance(answer, Answer) else 0
    assert it.exact_match == pytest.approx(exact / n)
    assert it.field_score == pytest.approx(points / n)
    for field in ("tags", "items"):
        assert it.fields[field].f1 == pytest.approx(naive_f1(pairs, field))
    for field in ("title", "count", "colour"):
        outcomes = Counter(naive_value(gold, answer, field) for gold, answer in pairs)
        found = it.fields[field]
        assert found.accuracy == pytest.approx(outcomes["right"] / n)
        counts = found.counts
        assert (counts.wrong, counts.missing, counts.invented) == (
            outcomes["wrong"], outcomes["missing"], outcomes["invented"],
        )  # fmt: skip
        gold_values = counts.correct + outcomes["wrong"] + outcomes["missing"]
        assert found.missing == pytest.approx(outcomes["missing"] / gold_values if gold_values else 0)
        answered = counts.correct + outcomes["wrong"] + outcomes["invented"]
        assert found.invented == pytest.approx(outcomes["invented"] / answered if answered else 0)


@given(PAIRS)
@settings(max_examples=30, deadline=None)
def test_every_value_is_counted_once(pairs: list[tuple[Any, Any]]) -> None:
    scorecard = scored(pairs)
    for row in scorecard.rows:
        for score in row.answers["it"].fields.values():
            assert score.gold == score.correct + score.wrong + score.missing
            assert score.answered == score.correct + score.wrong + score.invented


@given(ANSWERS)
@settings(max_examples=30, deadline=None)
def test_gold_itself_is_exact_in_any_order_of_its_lists(gold: Answer) -> None:
    turned = gold.model_copy(update={"tags": gold.tags[::-1], "items": gold.items[::-1]})
    it = scored([(gold, turned)]).systems["it"]
    assert (it.exact_match, it.field_score) == (1, 1)


@given(st.integers(0, 5), st.integers(0, 5), st.data())
@settings(max_examples=200, deadline=None)
def test_matching_has_the_greatest_total_weight(rows: int, columns: int, data: st.DataObject) -> None:
    weight = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1001.0]) | st.floats(0, 10)
    weights = [[data.draw(weight) for _ in range(columns)] for _ in range(rows)]
    pairs = best_matching(weights)
    few, many = sorted((rows, columns))
    assert len(pairs) == (few if rows and columns else 0)
    assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == len(pairs)
    best = max(
        sum(weights[p][at] if rows > columns else weights[at][p] for at, p in enumerate(chosen))
        for chosen in itertools.permutations(range(many), few)
    )
    assert sum(weights[r][c] for r, c in pairs) == pytest.approx(best)


@pytest.mark.parametrize("kinds", [1, 2, 400])
def test_long_lists_of_few_different_items_are_matched_in_seconds(kinds: int) -> None:
    weights = [[1001.0 * (row % kinds == column % kinds) for column in range(400)] for row in range(400)]
    started = time.process_time()
    assert len(best_matching(weights)) == 400
    assert time.process_time() - started < 1


def test_list_items_that_are_half_right_are_wrong_not_missing_and_invented() -> None:
    gold = Answer(title="t", items=[Item(name="n", type="int"), Item(name="G", type="Graph")])
    answer = Answer(title="t", items=[Item(name="G", type="Graph"), Item(name="n", type="str")])
    found = scored([(gold, answer)]).systems["it"].fields
    assert (found["items"].counts.correct, found["items"].counts.wrong) == (1, 1)
    assert (found["items"].missing, found["items"].invented) == (0, 0)
    assert found["items[].name"].f1 == 1
    assert found["items[].type"].f1 == 0.5


class Year(BaseModel):
    author: str
    year: int
    desc: str = ""


class Paper(BaseModel):
    day: str = Field(default="", json_schema_extra={"format": "date"})
    weight: float = 0.0
    place: dict[str, Any] = Field(default_factory=dict)
    citations: list[Year] = Field(default_factory=list)


def paper_score(gold: dict[str, Any], answer: dict[str, Any], **rules: Any) -> Any:
    return scored([(gold, answer)], Paper, fields=rules.pop("fields", None)).systems["it"]


def test_free_text_is_measured_by_its_words_and_may_be_kept_out_of_the_items() -> None:
    gold = {"citations": [{"author": "Smith", "year": 2020, "desc": "a fast method for trees"}]}
    answer = {"citations": [{"author": "smith", "year": 2020, "desc": "A fast method"}]}
    rules = {
        "citations[].desc": FieldRule("token_f1", correct_from=0.0),
        "citations[].author": "casefold",
    }
    it = paper_score(gold, answer, fields=rules)
    assert it.fields["citations"].f1 == 1
    assert it.fields["citations[].desc"].f1 == pytest.approx(2 * 3 / (5 + 3))
    strict = paper_score(gold, answer)
    assert strict.fields["citations"].f1 == 0


def test_numbers_dates_and_own_functions_compare_by_meaning() -> None:
    gold = {"day": "2024-05-03", "weight": 100.0, "place": {"a": 1, "b": [1, 2.0]}}
    answer = {"day": "2024-05-03T00:00:00", "weight": 100.4, "place": {"b": [1.0, 2], "a": 1}}
    it = paper_score(gold, answer)
    assert it.fields["weight"].accuracy == 0
    assert it.fields["place"].accuracy == 1
    rules = {"weight": FieldRule("number", tolerance=0.01), "place": lambda *_: 0.25}
    loose = paper_score(gold, answer, fields=rules)
    assert loose.fields["weight"].accuracy == 1
    assert loose.fields["place"].f1 == 0.25


def test_true_is_not_one() -> None:
    pairs = [({"ok": True}, {"ok": 1}), ({"ok": "true"}, {"ok": True}), ({"ok": True}, {"ok": True})]
    found = scored(pairs, None).systems["it"]
    assert found.fields["ok"].accuracy == pytest.approx(1 / 3)


def test_fields_without_a_schema_are_those_of_the_gold_answers() -> None:
    pairs = [({"a": {"b": 1}}, {"a": {"b": 1}}), ({"a": {"b": 2}, "c": [{"d": 1}]}, {"a": {"b": 3}})]
    found = scored(pairs, None).systems["it"]
    assert list(found.fields) == ["a.b", "c", "c[].d"]
    assert found.fields["a.b"].accuracy == 0.5
    assert found.fields["c"].missing == 1


def test_rule_for_an_unknown_field_names_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"no field 'yaer'; there are: day, weight"):
        paper_score({}, {}, fields={"yaer": "number"})
    with pytest.raises(ConfigurationError, match="unknown comparison 'close'"):
        paper_score({}, {}, fields={"weight": "close"})


def test_ignored_field_counts_nowhere() -> None:
    it = paper_score({"weight": 1.0}, {"weight": 2.0}, fields={"weight": "ignore"})
    assert it.exact_match == 1
    assert "weight" not in it.fields


class Tree(BaseModel):
    name: str
    children: list[Tree] = Field(default_factory=list)


def test_schema_that_contains_itself_is_compared_whole_below_its_first_level() -> None:
    leaf = {"name": "leaf", "children": []}
    pairs = [({"name": "root", "children": [leaf]}, {"name": "root", "children": [leaf]})]
    it = scored(pairs, Tree).systems["it"]
    assert it.exact_match == 1
    wrong = [({"name": "root", "children": [leaf]}, {"name": "root", "children": [leaf | {"name": "x"}]})]
    assert scored(wrong, Tree).systems["it"].fields["children"].f1 == 0
