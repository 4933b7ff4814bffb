"""Windows of texts and the training rows made of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured import Example, FinetuneDataset
from llama_index_finetune_structured.dataset.windows import (
    sentence_spans,
    text_windows,
    window_rows,
    window_size,
)
from llama_index_finetune_structured.local.schema.list_items import learn_list_rules, text_items
from llama_index_finetune_structured.local.schema.placed_items import ItemPlacer
from llama_index_finetune_structured.local.schema.text_frames import TextFrame

SCHEMA = {
    "type": "object",
    "properties": {
        "people": {"type": "array", "items": {"$ref": "#/$defs/person"}},
        "places": {"type": "array", "items": {"type": "string"}},
    },
    "$defs": {
        "person": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
            "required": ["name"],
        }
    },
    "required": ["people", "places"],
}  # fmt: skip
NAMES = ["Zoë Bly", "Émile", "Ivan P", "田中", "Olga", "Bo", "Xu Fei", "Søren", "Maud", "Ty"]
PLACES = ["Łódź", "Rio", "Bonn", "Lima", "Oslo", "京都"]


@st.composite
def _row(draw: Any) -> tuple[str, Any]:
    """A text of sentences with at most one person each, at times over two, and its answer."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(0, 5))]
    people, places, sentences = [], [], []
    for name in names:
        age = draw(st.none() | st.integers(10, 99))
        people.append({"name": name, "age": age})
        said = f"Then {name} came." if age is None else f"Here {name} is {age} years old."
        sentences.append(
            said if draw(st.booleans()) or age is None else f"Then {name} came. At {age} this is late."
        )
    for place in draw(st.permutations(PLACES))[: draw(st.integers(0, 3))]:
        places.append(place)
        sentences.append(f"The way led to {place}!")
    sentences += draw(st.lists(st.sampled_from(["Nothing was said.", "It rained, e.g. a lot."]), max_size=3))
    text = draw(st.sampled_from([" ", "\n", "\n\n", "  "])).join(sentences)
    return text or "Nobody.", {"people": people, "places": places}


def _examples(rows: list[tuple[str, Any]]) -> list[Example]:
    """Of texts with different beginnings, so that nothing is constant."""
    numbered = [(f"{n}) {text}", answer) for n, (text, answer) in enumerate(rows)]
    return list(FinetuneDataset.from_pairs(numbered, schema=SCHEMA))


@settings(max_examples=30, deadline=None)
@given(st.lists(_row(), min_size=10, max_size=20), st.integers(0, 3))
def test_items_of_window_rows_stand_in_their_windows(rows: list[tuple[str, Any]], seed: int) -> None:
    examples = _examples(rows)
    rules = learn_list_rules(examples)
    made = window_rows(examples, rules, seed=seed)
    assert made == window_rows(examples, rules, seed=seed)
    assert len(made) <= len(examples)
    is_whole = all(found.frame == TextFrame() for found in rules.values())
    texts = [str(example.messages[-1].content) for example in examples]
    for row in made:
        window, answer = str(row.messages[-1].content), json.loads(row.answer_text())
        assert any((window in text or not is_whole) and window != text for text in texts)
        for person in answer["people"]:
            assert person["name"] in window
            assert person["age"] is None or str(person["age"]) in window
        assert all(place in window for place in answer["places"])
    without = [row for row in (*examples, *made) if not any(json.loads(row.answer_text()).values())]
    if any(not any(json.loads(row.answer_text()).values()) for row in made):
        assert 2 * len(without) <= len(examples) + len(made)


@settings(max_examples=30, deadline=None)
@given(st.lists(_row(), min_size=10, max_size=20))
def test_sentences_together_have_every_item_that_none_of_them_cuts(rows: list[tuple[str, Any]]) -> None:
    examples = _examples(rows)
    for rules in learn_list_rules(examples).values():
        parts = [found for example in examples if (found := text_items(example, rules))]
        placer = ItemPlacer((text, [item for items in lists for item in items]) for text, lists in parts)
        for text, lists in parts:
            for items in lists:
                places = placer.placed(text, items)
                assert places is not None
                windows = text_windows(text, 1)
                inside = [
                    item
                    for window in windows
                    for item, place in zip(items, places, strict=True)
                    if place.is_inside(window)
                ]
                ends = {end for _, end in windows}
                whole = [
                    item
                    for item, place in zip(items, places, strict=True)
                    if not any(place.span[0] < end < place.span[1] for end in ends)
                ]
                assert sorted(map(str, inside)) == sorted(map(str, whole))


@given(st.text(max_size=300), st.integers(1, 4))
def test_windows_cover_the_text_and_do_not_overlap(text: str, sentences: int) -> None:
    spans = text_windows(text, sentences)
    assert "".join(text[first:last] for first, last in spans) == (text if text.strip() else "")
    assert all(first < last for first, last in spans)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("One. Two!", ["One. ", "Two!"]),
        ("\n  One. Two? Three", ["\n  One. ", "Two? ", "Three"]),
        ("As shown (Guo et al. 2019, see Fig. 3). Next.", ["As shown (Guo et al. 2019, see Fig. 3). ", "Next."]),
        ("Guo et al. 2019 is good. Dr. J. R. Smith paid 3.5 dollars.",
         ["Guo et al. 2019 is good. ", "Dr. J. R. Smith paid 3.5 dollars."]),
        ("Use e.g. Python. it runs in the U.S. Army.", ["Use e.g. Python. it runs in the U.S. Army."]),
        ("这是第一句。这是第二句！", ["这是第一句。", "这是第二句！"]),
        ("Things:\n- one\n- two\n1. three", ["Things:\n", "- one\n", "- two\n", "1. three"]),
        ("A title\n\nIts text", ["A title\n\n", "Its text"]),
    ],
)  # fmt: skip
def test_sentences(text: str, sentences: list[str]) -> None:
    found = [text[first:last] for first, last in sentence_spans(text)]
    assert found == sentences


def _plain(count: int = 12) -> list[Example]:
    rows = [
        (
            f"{NAMES[n % 10]} is {20 + n} years old. Nothing else. The way led to {PLACES[n % 6]}. "
            f"{NAMES[(n + 1) % 10]} is {40 + n} years old.",
            {
                "people": [
                    {"name": NAMES[n % 10], "age": 20 + n},
                    {"name": NAMES[(n + 1) % 10], "age": 40 + n},
                ],
                "places": [PLACES[n % 6]],
            },
        )
        for n in range(count)
    ]
    documents = [f"d{n}" for n in range(count)]
    return list(
        FinetuneDataset.from_pairs(rows, schema=SCHEMA, document_ids=documents, system_prompt="List.")
    )


def test_window_rows_keep_messages_document_and_schema_and_are_no_rows_of_their_own() -> None:
    examples = _plain()
    before = [example.to_json() for example in examples]
    made = window_rows(examples, learn_list_rules(examples))
    assert [example.to_json() for example in examples] == before
    assert 8 <= len(made) <= len(examples)
    documents = {example.document_id: str(example.messages[-1].content) for example in examples}
    for row in made:
        assert str(row.messages[-1].content) in documents[row.document_id]
        assert row.messages[0].content == "List."
        assert row.answer_schema == examples[0].answer_schema
    assert len({row.id for row in (*made, *examples)}) == len(made) + len(examples)


def test_another_seed_chooses_other_windows() -> None:
    examples = _plain(20)
    rules = learn_list_rules(examples)
    one, two = ({row.id for row in window_rows(examples, rules, seed=seed)} for seed in (0, 1))
    assert one != two


def test_examples_without_rules_give_no_rows() -> None:
    assert window_rows(_plain(), {}) == []
    assert window_rows([], learn_list_rules(_plain())) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Here {name} is {age} years old. It rained.", 1),
        ("Then {name} came. At {age} this is late.", 2),
        ("Then {name} came. It rained. It was cold. At {age} this is late.", 0),
    ],
)
def test_texts_are_read_by_the_smallest_windows_that_hold_the_items(text: str, size: int) -> None:
    rows = []
    for n in range(30):
        name, age = NAMES[n % len(NAMES)], 10 + n
        rows.append((text.format(name=name, age=age), {"people": [{"name": name, "age": age}]}))
    schema = {**SCHEMA, "required": ["people"]}
    numbered = [(f"{n}) {text}", answer) for n, (text, answer) in enumerate(rows)]
    examples = list(FinetuneDataset.from_pairs(numbered, schema=schema))
    assert window_size(examples, learn_list_rules(examples)) == size
    assert window_size(examples, {}) == 0
