"""OpenAI and Gradient lines: conversion of Examples, and back where the format allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured.example import Example, Message
from llama_index_finetune_structured.formats.gradient import gradient_prompt, to_gradient
from llama_index_finetune_structured.formats.openai import from_openai, to_openai
from tests.capture.fakes import SONG, Song

TOOL = {
    "type": "function",
    "function": {"name": "Song", "description": "", "parameters": Song.model_json_schema()},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "Song", "arguments": SONG}}

USER = {"role": "user", "content": "A song?"}
CALLING = {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
json_texts = st.dictionaries(texts, texts).map(json.dumps)
calls = st.builds(
    lambda id, name, arguments: {
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    },
    texts,
    texts,
    json_texts,
)
messages = st.lists(
    st.one_of(
        st.builds(Message, role=st.sampled_from(["system", "developer", "user"]), content=texts),
        st.builds(Message, role=st.just("tool"), content=texts, tool_call_id=texts),
        st.builds(Message, role=st.just("assistant"), content=texts, weight=st.sampled_from([None, 0, 1])),
        st.builds(Message, role=st.just("assistant"), tool_calls=st.lists(calls, min_size=1, max_size=2)),
    ),
    min_size=1,
    max_size=5,
)
answers = st.one_of(
    st.builds(Message, role=st.just("assistant"), content=texts),
    st.builds(Message, role=st.just("assistant"), tool_calls=st.lists(calls, min_size=1, max_size=2)),
)


@given(sent=messages, answer=answers, with_tools=st.booleans(), parallel=st.sampled_from([None, True, False]))
def test_openai_lines_come_back_as_they_went(
    sent: list[Message], answer: Message, with_tools: bool, parallel: bool | None
) -> None:
    tools: list[Any] | None = [TOOL, {"type": "function", "function": {"name": "b"}}] if with_tools else None
    example = Example(
        messages=tuple(sent),
        answer=answer,
        tools=tools,
        transport="tools" if tools else "text",
        parallel_tool_calls=parallel if tools else None,
    )
    line = json.loads(json.dumps(to_openai(example)))
    assert from_openai(line) == example
    assert to_openai(from_openai(line)) == line


def tool_example(**changes: Any) -> Example:
    fields: dict[str, Any] = {
        "messages": (Message(role="system", content="Be brief."), Message(role="user", content="A song?")),
        "answer": Message(role="assistant", tool_calls=[CALL]),
        "transport": "tools",
        "tools": [TOOL],
        "answer_schema": Song.model_json_schema(),
        "schema_name": "Song",
    }
    return Example(**{**fields, **changes})


def test_an_openai_line_holds_tools_beside_the_messages() -> None:
    line = to_openai(tool_example(parallel_tool_calls=False))
    assert list(line) == ["messages", "tools", "parallel_tool_calls"]
    assert line["messages"][-1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_legacy_functions_are_written_and_read() -> None:
    history = (
        Message(role="user", content="A song?"),
        Message(role="assistant", tool_calls=[CALL]),
        Message(role="tool", content="played", tool_call_id="call_1"),
    )
    line = to_openai(tool_example(messages=history), functions=True)
    assert line["functions"] == [TOOL["function"]]
    assert line["messages"][1] == {"role": "assistant", "content": None, "function_call": CALL["function"]}
    assert line["messages"][2] == {"role": "function", "name": "Song", "content": "played"}
    back = from_openai(line)
    assert back.tools == [TOOL]
    assert back.answer_text() == SONG
    assert [message.role for message in back.messages] == ["user", "assistant", "tool"]
    assert back.messages[1].tool_calls is not None
    assert back.messages[2].tool_call_id == back.messages[1].tool_calls[0]["id"]


def test_two_calls_in_a_turn_have_no_legacy_form() -> None:
    example = tool_example(answer=Message(role="assistant", tool_calls=[CALL, {**CALL, "id": "call_2"}]))
    with pytest.raises(ValueError, match="2 tool calls in one turn"):
        to_openai(example, functions=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "messages: expected a list"),
        ({"messages": [{"role": "user", "content": "x"}]}, "at least one message and the answer"),
        ({"messages": ["x", "y"]}, "messages.0: expected an object, found str"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "expected 'assistant'"),
        ({"messages": [{"role": "nobody", "content": "x"}] * 2}, "role"),
        ({**CALLING, "tools": [1]}, "tools.0: expected a function as an object, found int"),
        ({**CALLING, "tools": 5}, "tools: expected a list, found int"),
        ({**CALLING, "tools": {"type": "function"}}, "tools: expected a list, found dict"),
        ({**CALLING, "tools": [TOOL, "x"]}, "tools.1: expected a function as an object, found str"),
        ({**CALLING, "tools": [{"function": "f"}]}, "tools.0: expected a function as an object, found str"),
        ({**CALLING, "functions": [1]}, "functions.0: expected a function as an object, found int"),
        ({**CALLING, "functions": "f"}, "functions: expected a list, found str"),
        ({**CALLING, "tools": [{"function": {"name": 1}}]}, "schema_name"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "0: expected {'id'"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{**CALL, "id": {}}]}]},
            "0: expected {'id'",
        ),
        ({"messages": [USER, {"role": "assistant", "function_call": {"name": 1}}]}, "0: expected {'id'"),
    ],
)
def test_lines_that_are_none_are_refused(line: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_openai(line)


def test_gradient_prompts_can_be_kept_out_of_the_loss() -> None:
    example = tool_example()
    line = to_gradient(example, structured=True)
    assert line == {
        "inputs": [
            {"value": gradient_prompt(example), "trainable": False},
            {"value": SONG, "trainable": True},
        ]
    }
    assert "".join(part["value"] for part in line["inputs"]) == to_gradient(example)["inputs"]
