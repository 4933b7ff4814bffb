"""Training-file formats: conversion both ways where the format allows, and reading by the real libraries."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.dataset import FinetuneDataset
from llama_index_finetune_structured.dataset.checks.lines import LineReader
from llama_index_finetune_structured.dataset.pairs import read_pairs
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.example import Example, Message
from llama_index_finetune_structured.formats.gradient import to_gradient
from llama_index_finetune_structured.formats.openai import from_openai, to_openai
from llama_index_finetune_structured.formats.preferences import from_openai_preference, to_openai_preference
from llama_index_finetune_structured.formats.registry import training_lines
from llama_index_finetune_structured.formats.trl import from_trl, to_trl_messages, to_trl_prompt_completion

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(text, values, max_size=3)


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {name: {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name: str, given: dict[str, Any], number: int = 0) -> dict[str, Any]:
    spelled = json.dumps(given, separators=(",", ":"), ensure_ascii=False)
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": spelled}}


@st.composite
def examples(draw: st.DrawFn) -> Example:
    turns = [
        Message(role=r, content=draw(text)) for r in draw(st.sampled_from([["user"], ["system", "user"]]))
    ]
    if draw(st.booleans()):
        return Example(messages=tuple(turns), answer=Message(role="assistant", content=draw(text)))
    name = draw(st.sampled_from(["f", "g"]))
    return Example(
        messages=tuple(turns),
        answer=Message(role="assistant", tool_calls=[call(name, draw(arguments))]),
        transport="tools",
        tools=[tool(name)],
        answer_schema=tool(name)["function"]["parameters"],
        schema_name=name,
        parallel_tool_calls=draw(st.sampled_from([None, False])),
    )


def learned(example: Example) -> Any:
    return example.messages, example.answer, example.tools, example.transport, example.answer_schema


@given(examples())
def test_openai_lines_come_back_as_the_same_example(example: Example) -> None:
    assert from_openai(json.loads(json.dumps(to_openai(example)))) == example


@given(examples())
def test_trl_rows_come_back_with_all_that_a_model_learns_from(example: Example) -> None:
    for form in (to_trl_messages, to_trl_prompt_completion):
        assert learned(from_trl(json.loads(json.dumps(form(example))))) == learned(example)


@given(examples(), text)
def test_preference_lines_come_back_with_both_answers(example: Example, worse: str) -> None:
    rejected = Message(role="assistant", content=worse)
    row = json.loads(json.dumps(to_openai_preference(example, rejected)))
    again, refused = from_openai_preference(row)
    assert learned(again) == learned(example)
    assert refused == rejected
    assert set(row) == {"input", "preferred_output", "non_preferred_output"}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["function", "name", "arguments", "id", "text", "content"]), inner)
    ),
    max_leaves=5,
)
near_calls = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": st.just("f") | anything, "arguments": anything}) | anything},
    optional={"id": st.just("1") | anything},
)
near_turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "function"])},
    optional={
        "content": st.just("x") | anything,
        "tool_calls": st.lists(near_calls | anything, max_size=2) | anything,
        "function_call": anything,
        "tool_call_id": anything,
    },
)
near_lists = st.lists(near_turns | anything, max_size=3) | anything
near_tools = (
    st.lists(st.fixed_dictionaries({"function": anything | st.just({"name": "f"})}) | anything) | anything
)
near_rows = st.fixed_dictionaries(
    {},
    optional={
        "messages": near_lists,
        "tools": near_tools,
        "functions": near_tools,
        "prompt": near_lists,
        "completion": near_lists,
        "input": st.fixed_dictionaries({"messages": near_lists}, optional={"tools": near_tools}) | anything,
        "preferred_output": st.lists(near_turns, min_size=1, max_size=1) | anything,
        "non_preferred_output": st.lists(near_turns, min_size=1, max_size=1) | anything,
    },
)


@given(near_rows)
@settings(max_examples=300, deadline=None)
def test_a_malformed_row_is_a_value_error_and_one_that_is_read_can_be_written(row: dict[str, Any]) -> None:
    for read in (from_openai, from_trl, lambda row: from_openai_preference(row)[0]):
        try:
            example = read(row)
        except ValueError:
            continue
        for write in (to_openai, to_gradient, to_trl_messages, to_trl_prompt_completion):
            with contextlib.suppress(ValueError):  # tool arguments that are no JSON text
                write(example)


def test_trl_reads_plain_text_columns_and_refuses_broken_calls() -> None:
    assert from_trl({"prompt": "q", "completion": "a"}).answer_text() == "a"
    for row in ({"messages": 1}, {"messages": [{"role": "assistant", "tool_calls": [1]}]}, {"prompt": "q"}):
        with pytest.raises(ValueError, match=r"messages|tool_calls|completion"):
            from_trl(row)


def test_query_response_files_are_read_by_llamaindex(tmp_path: Path) -> None:
    from llama_index.core.evaluation import QueryResponseDataset

    data = FinetuneDataset.from_pairs([("q0", "a0"), ("q1", {"b": 1})])
    path = data.save(tmp_path / "qa.json", "query-response")
    with pytest.warns(DeprecationWarning, match="deprecated class QueryResponseDataset"):
        read = QueryResponseDataset.from_json(str(path))
    assert read.qr_pairs == [("q0", "a0"), ("q1", '{"b":1}')]
    nameless = FinetuneDataset([data[0].model_copy(update={"query": None})])
    with pytest.raises(DatasetError, match=r"example 0 .* has no 'query'"):
        nameless.save(path, "query-response")


def test_gradient_lines_are_one_text_of_prompt_and_answer(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([("q", "a")], system_prompt="s")
    row = json.loads(data.save(tmp_path / "g.jsonl", "gradient").read_text())
    assert row == {"inputs": "system: s\nuser: q\nassistant: a"}


@given(text, text)
def test_gradient_lines_with_their_parts_come_back_with_prompt_and_answer(prompt: str, answer: str) -> None:
    data = FinetuneDataset.from_pairs([(prompt, answer)])
    (line,) = training_lines(data, "gradient-structured")
    again, faults = LineReader("gradient").read(line.encode())
    assert (faults, again is not None) == ([], True)
    assert (again.messages[0].content, again.answer_text()) == (f"user: {prompt}\nassistant: ", answer)


@given(st.lists(st.tuples(text, text | st.dictionaries(text, values, max_size=2)), min_size=1, max_size=4))
def test_query_response_files_come_back_with_questions_and_answers(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, Any]]
) -> None:
    pairs = [(query, answer) for query, answer in pairs if query.strip()] or [("q", "a")]
    data = FinetuneDataset.from_pairs(pairs)
    path = data.save(tmp_path_factory.mktemp("qr") / "qr.json", "query-response")
    assert [(pair.query, pair.answer) for pair in read_pairs(path)] == [
        (example.query, example.answer_text()) for example in data
    ]


def test_legacy_functions_are_a_format_of_their_own(tmp_path: Path) -> None:
    example = Example(
        messages=(Message(role="user", content="q"),),
        answer=Message(role="assistant", tool_calls=[call("f", {"a": 1})]),
        transport="tools",
        tools=[tool("f")],
    )
    path = FinetuneDataset([example]).save(tmp_path / "legacy.jsonl", "openai-functions")
    row = json.loads(path.read_text())
    assert row["functions"] == [tool("f")["function"]]
    assert row["messages"][-1]["function_call"] == {"name": "f", "arguments": '{"a":1}'}
    again = FinetuneDataset.load(path)[0]
    assert (again.tools, again.answer_text()) == (example.tools, '{"a":1}')


def test_an_example_without_such_a_form_is_named(tmp_path: Path) -> None:
    broken = Example(
        messages=(Message(role="user", content="q"),),
        answer=Message(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "{broken"}}]),
    )
    with pytest.raises(DatasetError, match=r"example 0 .* has no trl-messages form"):
        FinetuneDataset([broken]).save(tmp_path / "t.jsonl", "trl-messages")


def test_rejects_become_the_answers_that_are_not_preferred(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([("q0", "good"), ("q1", "good")])
    rejects = FinetuneDataset.from_pairs([("q1", "bad"), ("q1", "good"), ("elsewhere", "bad")])
    lines = [
        json.dumps({"reason": "not_json", "detail": "", "example": json.loads(e.to_json())}) for e in rejects
    ]
    (tmp_path / "c.rejects.jsonl").write_text("\n".join(lines))
    path = data.save_preferences(tmp_path / "dpo.jsonl", tmp_path / "c.rejects.jsonl")
    assert json.loads(path.read_text()) == {
        "input": {"messages": [{"role": "user", "content": "q1"}]},
        "preferred_output": [{"role": "assistant", "content": "good"}],
        "non_preferred_output": [{"role": "assistant", "content": "bad"}],
    }
    with pytest.raises(DatasetError, match="no rejected answer"):
        data.save_preferences(tmp_path / "none.jsonl", FinetuneDataset.from_pairs([("q9", "bad")]))
    (tmp_path / "broken").write_text("{\n")
    with pytest.raises(DatasetError, match="broken:1: not valid JSON"):
        data.save_preferences(tmp_path / "none.jsonl", tmp_path / "broken")
    assert not (tmp_path / "none.jsonl").exists()


def test_hugging_face_datasets_loads_our_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    mixed = [
        Example(
            messages=(Message(role="user", content="q"),),
            answer=Message(role="assistant", tool_calls=[call(name, given)]),
            transport="tools",
            tools=[tool(name)],
        )
        for name, given in (("f", {"x": 1}), ("g", {"x": "one", "y": [1]}), ("f", {}))
    ]
    data = FinetuneDataset([*mixed, *FinetuneDataset.from_pairs([("q", "a")], system_prompt="s")])
    for form in ("trl-messages", "trl-prompt-completion"):
        path = data.save(tmp_path / f"{form}.jsonl", form)
        loaded = datasets.load_dataset(
            "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )
        rows = [{key: value for key, value in row.items() if value is not None} for row in loaded]
        assert [learned(from_trl(row))[:3] for row in rows] == [learned(e)[:3] for e in data]


def test_rejects_of_every_shard_are_read_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([("q0", "good"), ("q1", "good")])
    for name, question in (("c.rejects.jsonl", "q0"), ("c.rejects.jsonl.shard-1-2", "q1")):
        (reject,) = FinetuneDataset.from_pairs([(question, "bad")])
        row = {"reason": "not_json", "detail": "", "example": json.loads(reject.to_json())}
        (tmp_path / name).write_text(f'{json.dumps(row)}\n\n{{"reason": "torn')
    path = data.save_preferences(tmp_path / "dpo.jsonl", tmp_path / "c.rejects.jsonl")
    assert len(path.read_text().splitlines()) == 2
