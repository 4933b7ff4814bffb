"""What is trained comes back from every training format, whatever the texts are; LlamaIndex's messages lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from pydantic import BaseModel

from llama_index_finetune_structured import Example, FinetuneDataset, Message, check, compare
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.formats.gradient import gradient_prompt, to_gradient
from llama_index_finetune_structured.formats.openai import from_openai, to_openai
from llama_index_finetune_structured.formats.preferences import preference_lines
from llama_index_finetune_structured.formats.registry import training_lines
from llama_index_finetune_structured.formats.trl import from_trl, to_trl_messages, to_trl_prompt_completion
from llama_index_finetune_structured.formats.wire import message_from_wire, message_of, message_to_wire

ODD = [
    "\x00",
    "\x1b[2J",
    "\u2028",
    "\u2029",
    "\ufeff",
    "<|im_end|>",
    "</s>",
    "\r\n",
    "{{ x }}",
    "\\u0041",
    "\U0001f600",
]
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(ODD), min_size=1).map(
    "".join
)
said = texts.filter(bool) | st.just("long \u2028" * 12_500)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
SCHEMA = {"type": "object", "description": "\u2028<|im_end|>"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def call(arguments: Any, number: int = 0, name: str = "f") -> dict[str, Any]:
    text = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False)
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": text}}


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Answers of content, of one or more calls, and of both."""
    objects = st.dictionaries(texts, values, max_size=2)
    calls = [call(item, number) for number, item in enumerate(draw(st.lists(objects, max_size=3)))]
    content = draw(said) if not calls else draw(st.none() | said)
    return Example(
        messages=tuple(Message(role="user", content=draw(said)) for _ in range(draw(st.integers(1, 2)))),
        answer=Message(role="assistant", content=content, tool_calls=calls or None),
        transport="tools",
        tools=[TOOL],
        answer_schema=SCHEMA if calls else None,
        schema_name="f" if calls else None,
    )


@given(examples())
@settings(deadline=None)
def test_content_calls_and_schema_come_back_from_openai_and_trl_lines(example: Example) -> None:
    (line,) = training_lines([example], "openai")
    assert from_openai(json.loads(line)) == example
    for name in ("trl-messages", "trl-prompt-completion"):
        (line,) = training_lines([example], name)
        back = from_trl(json.loads(line))
        assert (back.messages, back.answer, back.tools, back.answer_schema) == (
            example.messages,
            example.answer,
            example.tools,
            example.answer_schema,
        )


@given(said, said)
@settings(deadline=None)
def test_a_gradient_line_ends_in_the_answer_and_begins_with_the_prompt(question: str, answer: str) -> None:
    example = Example(
        messages=(Message(role="user", content=question),), answer=Message(role="assistant", content=answer)
    )
    (line,) = training_lines([example], "gradient-structured")
    prompt, trained = json.loads(line)["inputs"]
    assert (prompt["value"], trained["value"]) == (gradient_prompt(example), answer)
    assert question in prompt["value"]


def test_odd_texts_come_back_from_a_file(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([(f"q{text}", f"a{text}") for text in [*ODD, "x" * 100_000]])
    assert list(FinetuneDataset.load(data.save(tmp_path / "own.jsonl"))) == list(data)
    back = FinetuneDataset.load(data.save(tmp_path / "chat.jsonl", format="openai"))
    assert [(e.messages, e.answer) for e in back] == [(e.messages, e.answer) for e in data]


@pytest.mark.parametrize("name", ["openai", "openai-functions", "gradient", "trl-messages", "query-response"])
def test_half_of_a_surrogate_pair_is_refused_with_its_example(name: str) -> None:
    example = Example(
        messages=(Message(role="user", content="q"),),
        answer=Message(role="assistant", content="a\ud800"),
        query="q",
    )
    with pytest.raises(DatasetError, match="lone surrogate"):
        list(training_lines([example], name))


def test_half_of_a_surrogate_pair_keeps_an_older_file(tmp_path: Path) -> None:
    example = Example(
        messages=(Message(role="user", content="\ud800"),), answer=Message(role="assistant", content="a")
    )
    (tmp_path / "data.jsonl").write_text("old")
    with pytest.raises(DatasetError, match="row 1 has a lone surrogate"):
        FinetuneDataset([example]).save(tmp_path / "data.jsonl")
    assert (tmp_path / "data.jsonl").read_text() == "old"


class Song(BaseModel):
    title: str


def two_calls(**changes: Any) -> Example:
    fields: dict[str, Any] = {
        "messages": (Message(role="user", content="two songs"),),
        "answer": Message(role="assistant", tool_calls=[call({"title": "One"}), call({"title": "Two"}, 1)]),
        "transport": "tools",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": Song.model_json_schema()}}],
        "answer_schema": Song.model_json_schema(),
        "schema_name": "f",
    }
    return Example(**(fields | changes))


def test_several_tool_calls_are_all_trained_or_refused() -> None:
    example = two_calls()
    assert example.answer_texts() == ['{"title":"One"}', '{"title":"Two"}']
    for refused in (example.answer_text, example.answer_object, lambda: to_gradient(example)):
        with pytest.raises(DatasetError, match="its answer has 2 tool calls"):
            refused()
    assert len(to_openai(example)["messages"][-1]["tool_calls"]) == 2
    assert len(to_trl_messages(example)["messages"][-1]["tool_calls"]) == 2
    assert len(to_trl_prompt_completion(example)["completion"][0]["tool_calls"]) == 2
    assert [p.code for p in check([example], target="openai").problems] == ["too_few_examples"]
    (problem,) = check([example], target="gradient").problems
    assert (problem.code, "2 tool calls" in problem.message) == ("cannot_render", True)
    assert FinetuneDataset([example]).summary().answer_chars == (30, 30, 30)


def test_rows_of_several_tool_calls_are_left_out_of_what_compares_or_validates_one_text(
    tmp_path: Path,
) -> None:
    answer = Message(role="assistant", tool_calls=[call({"title": "One"})])
    several, one = two_calls(query="Two?"), two_calls(query="One?", answer=answer)
    rows = FinetuneDataset([several, one])
    card = compare({"it": lambda row: row.answer_object()}, rows, show_progress=False)
    assert ([row.row for row in card.left_out], len(card.rows)) == ([0], 1)
    assert "its answer has 2 tool calls" in card.left_out[0].reason
    result = rows.revalidate(Song)
    assert ([row.row for row in result.lost], len(result.examples)) == ([0], 1)
    assert "its answer has 2 tool calls" in result.lost[0].reason
    for format in ("gradient", "openai-functions", "query-response"):
        with pytest.raises(DatasetError, match=rf"{several.id[:12]}.* 2 tool calls"):
            rows.save(tmp_path / "rows.jsonl", format)


def test_every_call_is_checked_against_the_schema() -> None:
    bad = two_calls(
        answer=Message(role="assistant", tool_calls=[call({"title": "One"}), call({"title": 2}, 1)])
    )
    codes = [p.code for p in check([bad], target="openai").problems]
    assert codes == ["answer_not_in_schema", "too_few_examples"]


def test_content_beside_a_call_is_kept_left_out_of_a_structured_answer_or_refused() -> None:
    answer = Message(role="assistant", content="Let me see.", tool_calls=[call({"title": "One"})])
    structured = two_calls(answer=answer)
    assert structured.answer_text() == '{"title":"One"}'
    assert to_openai(structured)["messages"][-1]["content"] == "Let me see."
    assert from_trl(to_trl_messages(structured)).answer == answer
    with pytest.raises(DatasetError, match="its answer has content and a tool call"):
        two_calls(answer=answer, answer_schema=None).answer_text()


def test_answers_that_differ_in_a_later_call_are_a_preference() -> None:
    better = two_calls()
    calls = [call({"title": "One"}, 7), call({"title": "Three"}, 8)]
    worse = two_calls(answer=Message(role="assistant", tool_calls=calls))
    assert len(list(preference_lines([better], [worse]))) == 1
    same = two_calls(
        answer=Message(role="assistant", tool_calls=[call({"title": "One"}, 7), call({"title": "Two"}, 8)])
    )
    with pytest.raises(DatasetError, match="no rejected answer"):
        list(preference_lines([better], [same]))


def test_arguments_given_as_an_object_keep_their_order() -> None:
    arguments = {"b": 1, "a": 2}
    answer = Message(
        role="assistant", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": arguments}}]
    )
    assert two_calls(answer=answer).answer_text() == '{"b":1,"a":2}'


CACHE = CachePoint(cache_control=CacheControl(type="ephemeral"))


def test_cache_points_are_no_content_thinking_is_reasoning_and_calls_become_tool_calls() -> None:
    blocks = [
        ThinkingBlock(content="hm", additional_information={"signature": "s"}),
        TextBlock(text="Hi."),
        CACHE,
        ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"a": "ü"}),
    ]
    message = message_of(ChatMessage(role="assistant", blocks=blocks))
    function = {"name": "f", "arguments": '{"a": "ü"}'}
    calls = [{"id": "1", "type": "function", "function": function}]
    assert message == Message(role="assistant", content="Hi.", reasoning_content="hm", tool_calls=calls), (
        "without the signature"
    )
    again = message_from_wire(message.wire(reasoning=True))
    assert again.blocks[0] == ThinkingBlock(content="hm")
    assert "reasoning_content" not in message.wire(), "OpenAI's API does not take it"
    assert message_of(ChatMessage(role="system", blocks=[TextBlock(text="Hi."), CACHE])) == Message(
        role="system", content="Hi."
    )
    assert message_of(ChatMessage(role="user", blocks=[CACHE])).content == ""
    only_call = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="f", tool_kwargs="{}"), CACHE])
    assert message_of(only_call, text_only=True).content is None


def test_a_cached_system_prompt_is_trained_as_text() -> None:
    turns = [ChatMessage(role="system", blocks=[TextBlock(text="Hi."), CACHE]), ChatMessage(content="q")]
    (example,) = FinetuneDataset.from_pairs([(turns, "a")])
    assert [message.content for message in example.messages] == ["Hi.", "q"]


@pytest.mark.parametrize(
    ("block", "kind"),
    [(AudioBlock(audio=b"x", format="wav"), "audio"), (DocumentBlock(data=b"x", title="t"), "document")],
)
def test_a_block_that_cannot_be_trained_is_refused_by_its_type(block: Any, kind: str) -> None:
    message = ChatMessage(role="user", blocks=[TextBlock(text="a"), block])
    with pytest.raises(DatasetError, match=rf"pairs\[0\]: block 1 of a user message is of type '{kind}'"):
        FinetuneDataset.from_pairs([([message], "a")])


def test_images_are_refused_only_where_text_is_needed() -> None:
    message = ChatMessage(role="user", blocks=[ImageBlock(url="https://x.org/a.png")])
    parts = message_to_wire(message)["content"]
    assert message_of(message).content == parts
    with pytest.raises(DatasetError, match="of type 'image', expected text and tool calls"):
        message_of(message, text_only=True)
    (example,) = FinetuneDataset.from_pairs([([message], "a")])
    with pytest.raises(DatasetError, match=r"messages\[0\] has a part of type 'image_url', expected text"):
        to_gradient(example)
