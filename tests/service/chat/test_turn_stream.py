"""An agent's turn is read as it grows: whatever its texts and arguments hold, and wherever it is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.service.turn_stream import TurnReader

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=3)
CALLS = st.tuples(TEXTS, ARGUMENTS)


def read(reader: TurnReader, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    said, names, arguments = "", list[str](), list[str]()
    for piece in pieces:
        for part in reader.read(piece):
            if part.call is None:
                said += part.text
                continue
            if part.name is not None:
                names.append(part.name)
                arguments.append("")
            arguments[part.call] += part.arguments
    return said, [(name, json.loads(one)) for name, one in zip(names, arguments, strict=True)]


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]


@settings(max_examples=30)
@given(
    TEXTS,
    st.lists(CALLS, max_size=3),
    st.lists(st.integers(0, 500), max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_pieces_of_a_turn_together_are_its_text_and_its_calls(
    said: str, calls: list[tuple[str, Any]], places: list[int], escaped: bool, spaced: bool
) -> None:
    turn = [said, *({name: arguments} for name, arguments in calls)]
    text = json.dumps(turn, ensure_ascii=escaped, indent=1 if spaced else None)
    assert read(TurnReader(), cut(text, places)) == (said, calls)


@given(ARGUMENTS, st.lists(st.integers(0, 500), max_size=8))
def test_the_arguments_of_the_only_tool_are_one_call(arguments: Any, places: list[int]) -> None:
    assert read(TurnReader("note"), cut(json.dumps(arguments), places)) == ("", [("note", arguments)])


@given(TEXTS)
def test_any_text_can_be_read(text: str) -> None:
    said, calls = "", 0
    reader = TurnReader()
    for piece in reader.read(text):
        said += piece.text
        calls += piece.name is not None
    assert (bool(said), calls) == (False, 0) or reader.is_turn
    assert calls == reader.calls


def test_half_a_character_is_replaced_and_what_follows_stays() -> None:
    said, _ = read(TurnReader(), [r'["\udc00a'])
    assert said == "?a"


def test_a_text_that_is_no_turn_is_none() -> None:
    reader = TurnReader()
    assert list(reader.read('{"add": {}}')) == []
    assert not reader.is_turn
