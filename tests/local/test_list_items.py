"""Rules of lists: where items stand, where a prompt's text stands, what two windows' answers are together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.prompts.default_prompts import DEFAULT_REFINE_PROMPT_TMPL

from llama_index_finetune_structured import Example, FinetuneDataset
from llama_index_finetune_structured.dataset.generate.recipe import DEFAULT_QA_TEMPLATE
from llama_index_finetune_structured.example import Message
from llama_index_finetune_structured.local.schema.list_items import ItemList, ListRules, learn_list_rules
from llama_index_finetune_structured.local.schema.placed_items import ItemPlacer, leaves
from llama_index_finetune_structured.local.schema.text_frames import TextFrame, possible_frames

CITED = {
    "type": "object",
    "properties": {
        "cited": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"author": {"type": "string"}, "year": {"type": "integer"}},
                "required": ["author", "year"],
            },
        }
    },
    "required": ["cited"],
}
AUTHORS = ["Höffner", "Ada Lovelace", "李明", "O’Neil", "d'Humieres", "Şahin", "Smith-Jones", "World Bank"]


def _row(n: int, items: int = 2) -> tuple[str, Any]:
    """A text of a sentence for each item and one without, and its answer."""
    cited = [
        {"author": AUTHORS[(n + k) % len(AUTHORS)], "year": 1990 + (n * 7 + k) % 30} for k in range(items)
    ]
    said = [f"Part {k} is known ({item['author']} et al., {item['year']})." for k, item in enumerate(cited)]
    return " ".join([f"{n} times nothing is cited.", *said]), {"cited": cited}


def _pairs(count: int = 20) -> list[tuple[str, Any]]:
    return [_row(n, items=n % 4) for n in range(count)]


def _examples(pairs: list[tuple[str, Any]], schema: dict[str, Any] = CITED) -> list[Example]:
    return list(FinetuneDataset.from_pairs(pairs, schema=schema))


def _with_prompts(prompts: Iterator[str]) -> list[Example]:
    rows = _examples(_pairs())
    return [
        row.model_copy(update={"messages": (Message(role="user", content=prompt),)})
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def _learned(examples: list[Example]) -> ListRules:
    rules = ListRules.learn(examples)
    assert rules is not None
    return rules


def test_pairs_have_their_text_as_the_whole_message_and_items_a_key() -> None:
    rules = _learned(_examples(_pairs(40)))
    assert rules.frame == TextFrame()
    assert rules.lists == (ItemList(name="cited", key=("year",)),)
    assert ListRules.model_validate_json(rules.model_dump_json()) == rules


def test_the_key_has_as_many_fields_as_no_answer_repeats_together() -> None:
    pairs = [
        (
            f"In {2000 + n} came Smith, again in {2001 + n} Smith, and Jones in {2000 + n}.",
            {"cited": [
                {"author": "Smith", "year": 2000 + n},
                {"author": "Smith", "year": 2001 + n},
                {"author": "Jones", "year": 2000 + n},
            ]},
        )
        for n in range(15)
    ]  # fmt: skip
    assert set(_learned(_examples(pairs)).lists[0].key or ()) == {"author", "year"}


def test_few_lists_give_no_key_and_items_are_compared_whole() -> None:
    pairs = [_row(n, items=1) for n in range(25)]
    (part,) = _learned(_examples(pairs)).lists
    assert part.key is None
    one, two = {"author": "A", "year": 1}, {"author": "A", "year": 2}
    assert part.joined([{"cited": [one, two]}, {"cited": [dict(one)]}, None, {"cited": None}]) == [one, two]


def test_merged_keeps_the_first_of_items_with_one_key() -> None:
    rules = ListRules(frame=TextFrame(), lists=(ItemList(name="a", key=("id",)), ItemList(name="b")))
    answers = [
        {"a": [{"id": 1, "x": "first"}], "b": ["u"]},
        {"a": [{"id": 1, "x": "second"}, {"id": 2}], "b": ["u", "v"]},
    ]
    assert rules.merged(answers) == {"a": [{"id": 1, "x": "first"}, {"id": 2}], "b": ["u", "v"]}
    assert rules.merged([]) == {"a": [], "b": []}
    assert ListRules(frame=TextFrame(), lists=(ItemList(),)).merged([[1], [2, 1]]) == [1, 2]


@pytest.mark.parametrize(
    ("written", "empty"), [({"cited": []}, "list"), ({"cited": None}, "null"), ({}, "absent")]
)
def test_empty_lists_are_written_as_in_training(written: Any, empty: str) -> None:
    schema = {"type": "object", "properties": {"cited": {"type": ["array", "null"]}}}
    pairs = [(text, answer if answer["cited"] else written) for text, answer in _pairs()]
    rules = _learned(_examples(pairs, schema))
    assert rules.lists[0].empty == empty
    assert rules.merged([written, written]) == written


@pytest.mark.parametrize(
    "pairs",
    [
        _pairs(4),  # too few items
        [(text, {**answer, "title": "A study"}) for text, answer in _pairs()],
        [(text, {"cited": [{"author": "Nobody", "year": 1}] * len(answer["cited"])}) for text, answer in _pairs()],
        [(f"Is {n} even?", {"even": n % 2 == 0}) for n in range(30)],
        [(f"Sort {n}", {"cited": [[1, n]]}) for n in range(30)],
        [(f"Count to {n}", n) for n in range(30)],
    ],
    ids=["few", "another property", "not in the text", "no list", "lists of lists", "numbers"],
)  # fmt: skip
def test_other_answers_have_no_rules(pairs: list[tuple[str, Any]]) -> None:
    assert ListRules.learn(_examples(pairs, {})) is None
    assert ListRules.learn([]) is None


def test_a_schema_without_empty_lists_has_no_rules_and_each_schema_its_own() -> None:
    filled = json.loads(json.dumps(CITED))
    filled["properties"]["cited"]["minItems"] = 1
    bare = _examples([(text, answer["cited"]) for text, answer in _pairs()], {"type": "array"})
    pairs = [pair for pair in _pairs(30) if pair[1]["cited"]]
    assert learn_list_rules(_examples(pairs, filled)) == {}
    both = learn_list_rules([*_examples(_pairs()), *bare])
    assert sorted((rules.lists[0].name or "") for rules in both.values()) == ["", "cited"]


def test_the_text_of_a_query_engines_prompt_is_its_context() -> None:
    prompts = [
        DEFAULT_QA_TEMPLATE.format(
            context_str=f"file_name: {n}.md\n\n{text}", query_str=f"Who is cited in {n}?"
        )
        for n, (text, _) in enumerate(_pairs())
    ]
    rules = _learned(_with_prompts(iter(prompts)))
    seen = rules.frame.split(prompts[3])
    assert seen is not None
    assert seen[1].endswith(_pairs()[3][0])
    assert seen[0].startswith("Context information")
    assert seen[2].startswith("\n---------------------\nGiven the context")
    assert rules.frame.split("Who is cited?") is None
    assert rules.windows("Who is cited?", lambda text: [(0, len(text))]) is None


@pytest.mark.parametrize(
    "template",
    [
        "Question: Who, {n}?\nPassage:\n{text}\nAnswer: ",
        "List what this cites: {text}",
        "{text}\n\nQuestion: Who is cited in number {n}?",
        DEFAULT_REFINE_PROMPT_TMPL.replace("{query_str}", "Query {n}")
        .replace("{existing_answer}", "None of {n}")
        .replace("{context_msg}", "{text}"),
    ],
)
def test_the_text_is_found_in_other_templates(template: str) -> None:
    prompts = [template.format(n=n, text=text) for n, (text, _) in enumerate(_pairs())]
    rules = _learned(_with_prompts(iter(prompts)))
    parts = rules.frame.split(template.format(n=99, text="One. Two."))
    assert parts is not None
    assert parts[1] == "One. Two."
    windows = rules.windows(template.format(n=99, text="One. Two."), lambda text: [(0, 5), (5, len(text))])
    assert windows == [
        template.format(n=99, text=part).rstrip() + parts[2][len(parts[2].rstrip()) :]
        for part in ("One.", "Two.")
    ]


def test_several_sources_in_one_message_are_one_text() -> None:
    pairs = _pairs(40)
    context = [f"{one}\n\n{two}" for (one, _), (two, _) in zip(pairs[::2], pairs[1::2], strict=True)]
    cited = [[*a["cited"], *b["cited"]] for (_, a), (_, b) in zip(pairs[::2], pairs[1::2], strict=True)]
    prompts = [
        DEFAULT_QA_TEMPLATE.format(context_str=text, query_str=f"Q{n}?") for n, text in enumerate(context)
    ]
    rows = _examples([(prompt, {"cited": items}) for prompt, items in zip(prompts, cited, strict=True)])
    parts = _learned(rows).frame.split(prompts[5])
    assert parts is not None
    assert parts[1] == context[5]


def test_prompts_of_another_template_do_not_count() -> None:
    others = ["Say who is cited: " + text for text, _ in _pairs()][:6]
    prompts = [DEFAULT_QA_TEMPLATE.format(context_str=text, query_str="Who?") for text, _ in _pairs()]
    rules = _learned(_with_prompts(iter([*others, *prompts[6:]])))
    assert rules.frame.split(others[0]) is None
    parts = rules.frame.split(prompts[10])
    assert parts is not None
    assert parts[1] == _pairs()[10][0]


@given(st.lists(st.text(max_size=60), max_size=6), st.text(max_size=80))
def test_frames_split_exactly(messages: list[str], asked: str) -> None:
    for frame in possible_frames(messages):
        for text in (*messages, asked):
            parts = frame.split(text)
            assert parts is None or "".join(parts) == text


def _places(text: str, *items: Any) -> list[str] | None:
    placed = ItemPlacer([(text, items)]).placed(text, items)
    return None if placed is None else [text[slice(*item.span)] for item in placed]


@pytest.mark.parametrize(
    ("text", "items", "found"),
    [
        ("In 1999 and 2001 (Guo, 2017).", [{"a": "Guo", "y": 2017}], ["Guo, 2017"]),
        ("Guo in 1999; later Guo in 2001.", [{"a": "Guo", "y": 2001}], ["Guo in 2001"]),
        ("Java, and again Java.", ["Java", "Java"], ["Java", "Java"]),
        ("Concatenate the cat.", ["cat"], ["cat"]),
        ("Ten of 100 for 10 cents.", [10], ["10"]),
        ("As in 2019a and 1,234.", [2019, 1234], ["2019", "1,234"]),
        ("我喜欢北京的秋天。", ["北京"], ["北京"]),
        ("The tool (Li, 2001) reads texts\nof any kind.", ["The tool reads texts of any kind"],
         ["The tool (Li, 2001) reads texts\nof any kind"]),
        ("Ford was here. Much later came Versypt.", ["Ford Versypt"], None),
        ("Nothing.", ["something"], None),
        ("A is {b}", [{"x": {"y": ["A", "b"]}, "z": None, "w": True}], ["A is {b"]),
    ],
)  # fmt: skip
def test_items_are_placed_at_their_tightest_cluster(text: str, items: list[Any], found: Any) -> None:
    assert _places(text, *items) == found


def test_a_window_that_cuts_an_item_or_names_it_again_is_unclear() -> None:
    text = "Guo wrote in 2017. Others. In 2017 Guo was read by all of them."
    placed = ItemPlacer([(text, [{"a": "Guo", "y": 2017}])]).placed(text, [{"a": "Guo", "y": 2017}])
    assert placed is not None
    (item,) = placed
    inside = text[slice(*item.span)]
    assert inside in {"Guo wrote in 2017", "2017 Guo"}
    cut, others, again = (0, 5), (19, 26), (27, len(text))
    first = item.span[0] < 10
    assert item.is_inside((0, 18) if first else again)
    assert item.is_unclear(cut) is first or item.is_unclear((0, 18))
    assert not item.is_unclear(others)
    assert item.is_unclear(again if first else (0, 18))


_values = st.one_of(
    st.text(max_size=12), st.integers(-9999, 9999), st.floats(allow_nan=False, allow_infinity=False)
)
_items = st.one_of(_values, st.dictionaries(st.sampled_from("abc"), _values, max_size=3))


@given(st.text(max_size=200), st.lists(_items, max_size=5))
def test_placing_never_fails_and_spans_are_in_the_text(text: str, items: list[Any]) -> None:
    placed = ItemPlacer([(text, items)]).placed(text, items)
    for item, place in zip(items, placed or items, strict=True):
        if placed is not None:
            assert 0 <= place.span[0] < place.span[1] <= len(text)
            assert any(leaves(item))
