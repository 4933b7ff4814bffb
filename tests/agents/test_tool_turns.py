"""An agent's turn is one JSON value with a schema made of its tools'."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured.dataset.checks.rows import parsed_rows
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.example import Example, Message
from llama_index_finetune_structured.json_schema import first_error
from llama_index_finetune_structured.local.model.prompts import PromptForm, token_row, trained_text
from llama_index_finetune_structured.local.schema.tool_turns import (
    chosen_schema,
    structured_turns,
    turn_messages,
    turn_schema,
)
from tests import tiny
from tests.agents.scripted import WIRE

QUESTION = Message(role="user", content="how long are Meddle and Echoes")


def call(name: str, at: object, arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"c{at}", "type": "function", "function": function}


def result(number: object, text: str) -> Message:
    return Message(role="tool", content=text, tool_call_id=f"c{number}")


def row(*messages: Message, tools: Any = None) -> Example:
    return Example(messages=messages[:-1], answer=messages[-1], transport="tools", tools=tools or WIRE)


def said(text: str, **more: Any) -> Message:
    return Message(role="assistant", content=text, **more)


CALLS = Message(
    role="assistant",
    content="Let me look.",
    tool_calls=[
        call("seconds_of", at, {"song": song}) for at, song in enumerate(("Meddle", "Echoes"), start=1)
    ],
)
RUN = row(QUESTION, CALLS, result(2, "1411"), result(1, "371"), said("371 and 1411."))


def test_a_run_is_a_row_for_each_turn_and_the_next_row_begins_with_the_one_before() -> None:
    first, second = structured_turns(RUN)
    assert trained_text(first) == (
        '["Let me look.",{"seconds_of":{"song":"Meddle"}},{"seconds_of":{"song":"Echoes"}}]'
    )
    assert trained_text(second) == '["371 and 1411."]'
    tokenizer = tiny.tokenizer()
    rows = [
        token_row(tokenizer, turn, stop_id=1, form=PromptForm("none", reads_twice=True))
        for turn in (first, second)
    ]
    begun = rows[0].prompt + rows[0].answer
    assert rows[1].prompt[: len(begun)] == begun


def test_results_of_parallel_calls_stand_in_the_order_of_the_calls() -> None:
    *_, second = structured_turns(RUN)
    assert [message.content for message in second.messages[-2:]] == ["371", "1411"]
    assert second.messages == tuple(turn_messages(RUN.messages))


def test_captured_rows_of_a_run_are_each_trained_once_in_any_order() -> None:
    rows = [row(QUESTION, CALLS), RUN]
    for source in (rows, rows[::-1], rows[1:]):
        found = [item.content.id for item in parsed_rows(tuple(source))]
        assert sorted(found) == sorted(turn.id for turn in structured_turns(RUN))
    again = parsed_rows((*rows, *rows))
    assert len(again) == 4, "a run that was captured twice is two runs"


def test_the_turns_of_a_run_are_of_one_document() -> None:
    first, second = structured_turns(RUN)
    other = next(structured_turns(row(Message(role="user", content="add 1 and 2"), CALLS)))
    assert first.document_id == second.document_id != other.document_id
    known = RUN.model_copy(update={"document_id": "manual"})
    assert {turn.document_id for turn in structured_turns(known)} == {"manual"}


def test_a_turn_with_weight_0_is_read_and_not_trained() -> None:
    light = row(QUESTION, CALLS.model_copy(update={"weight": 0}), *RUN.messages[2:], RUN.answer)
    (only,) = structured_turns(light)
    assert trained_text(only) == '["371 and 1411."]'
    assert only.messages == list(structured_turns(RUN))[1].messages


def test_a_turn_of_another_agent_is_read_and_not_trained() -> None:
    handed = Message(role="assistant", tool_calls=[call("handoff", 9, {"to_agent": "Songs"})])
    run = row(QUESTION, handed, result(9, "Go on."), CALLS)
    (only,) = structured_turns(run)
    assert only.messages[1].content == '[{"handoff":{"to_agent":"Songs"}}]'
    (read,) = parsed_rows((run,))
    assert read.content == only
    unknown = row(QUESTION, Message(role="assistant", tool_calls=[call("handoff", 9, {})]))
    with pytest.raises(DatasetError, match="unknown_tool"):
        parsed_rows((unknown,))


def test_definitions_of_parameters_keep_their_meaning() -> None:
    class Part(BaseModel):
        name: str
        parts: list[Part] = []

    tools = [
        {"type": "function", "function": {"name": name, "parameters": Part.model_json_schema()}}
        for name in ("b/1", "a")
    ]
    root = {"type": "object", "properties": {"inner": {"$ref": "#"}}, "additionalProperties": False}
    tools.append({"type": "function", "function": {"name": "c", "parameters": root}})
    schema = turn_schema(tools)
    for name in ("b/1", "a"):
        assert not first_error(schema, [{name: {"name": "x", "parts": [{"name": "y"}]}}])
        assert first_error(schema, [{name: {"name": "x", "parts": [{"name": 1}]}}])
    assert not first_error(schema, [{"c": {"inner": {"inner": {}}}}])
    assert first_error(schema, [{"c": {"inner": {"other": {}}}}])
    assert turn_schema(tools[::-1]) == schema, "the order of tools does not matter"


def test_tools_as_openai_gets_them_make_the_same_schema() -> None:
    sent = [
        {
            "type": "function",
            "function": {
                **tool["function"],
                "strict": False,
                "parameters": {**tool["function"]["parameters"], "additionalProperties": False},
            },
        }
        for tool in WIRE
    ]
    assert turn_schema(sent) == turn_schema(WIRE)


@pytest.mark.parametrize(
    ("choice", "parallel", "allowed"),
    [
        ("auto", True, "text one two both"),
        ("auto", False, "text one both"),
        ("required", True, "one two both"),
        ("required", False, "one both"),
        ("none", True, "text"),
        ("add", True, "add"),
    ],
)
def test_a_tool_choice_allows_exactly_its_turns(choice: str, parallel: bool, allowed: str) -> None:
    one = {"seconds_of": {"song": "Meddle"}}
    turns: dict[str, list[Any]] = {
        "text": ["Hello!"],
        "one": [one],
        "two": [one, one],
        "both": ["Look.", one],
        "add": [{"add": {"first": 1, "second": 2}}],
    }
    schema = chosen_schema(turn_schema(WIRE), choice, parallel)
    fitting = {name for name, turn in turns.items() if not first_error(schema, turn)}
    assert fitting - {"add"} == set(allowed.split()) - {"add"}
    assert ("add" in fitting) == (choice != "none")
    assert first_error(schema, [])


def test_what_is_no_tool_is_an_error() -> None:
    for tools, words in (
        ([], "there are none"),
        ([*WIRE, WIRE[0]], "two tools are named 'add'"),
        ([{"name": "f"}], "expected {'type': 'function'"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "http://x/y"}}}],
            "refers to 'http://x/y'",
        ),
    ):
        with pytest.raises(ConfigurationError, match=words):
            turn_schema(tools)
    with pytest.raises(ConfigurationError, match="expected auto, required, none or one of the tools"):
        chosen_schema(turn_schema(WIRE), "subtract", True)
    bad = call("add", 1, [1])
    with pytest.raises(DatasetError, match="expected a JSON object"):
        list(structured_turns(row(QUESTION, Message(role="assistant", tool_calls=[bad]))))


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@settings(deadline=None)
@given(
    st.lists(names, min_size=1, max_size=3, unique=True),
    st.lists(st.tuples(st.integers(0, 2), texts, st.integers() | st.none()), max_size=3),
    texts,
)
def test_any_turn_is_valid_by_its_schema_and_reads_back(
    tools: list[str], made: list[tuple[int, str, int | None]], text: str
) -> None:
    parameters = {"type": "object", "properties": {"text": {"type": "string"}, "number": {"type": "integer"}}}
    wire = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in tools]
    calls = [
        (tools[at % len(tools)], {"text": word} | ({} if number is None else {"number": number}))
        for at, word, number in made
    ]
    message = Message(
        role="assistant",
        content=text or None if calls else text,
        tool_calls=[call(name, at, arguments) for at, (name, arguments) in enumerate(calls)] or None,
    )
    (turn,) = structured_turns(row(QUESTION, message, tools=wire))
    value = json.loads(trained_text(turn))
    assert not first_error(turn_schema(wire), value)
    assert value == ([text] if text or not calls else []) + [{name: arguments} for name, arguments in calls]
