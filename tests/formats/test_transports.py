"""An Example rendered for json_schema, tools and text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.prompts import ChatMessage, ChatPromptTemplate
from pydantic import BaseModel, Field

from llama_index_finetune_structured.dataset import FinetuneDataset, render
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.example import Example, Message, Transport


class Inner(BaseModel):
    a: int


class Outer(BaseModel):
    """An outer thing."""

    inner: list[Inner]
    note: str = Field("", description="Say {why}.")


SEEN: list[Any] = []


class RecordingLLM(CustomLLM):
    """A chat model without tools, to which LlamaIndex sends the schema as text."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True)

    def chat(self, messages: Any, **kwargs: Any) -> Any:
        SEEN.append([(m.role.value, m.content) for m in messages])
        return super().chat(messages, **kwargs)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text='{"inner":[]}')

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


def example(system_prompt: str | None = None) -> Example:
    return FinetuneDataset.from_pairs(
        [("Extract {it}.", Outer(inner=[Inner(a=1)]))], system_prompt=system_prompt
    )[0]


@pytest.mark.parametrize("system_prompt", [None, "Be {brief}."])
def test_text_rendering_is_what_llamaindex_sends_a_model_without_tools(system_prompt: str | None) -> None:
    given = example(system_prompt)
    llm = RecordingLLM()
    turns = [ChatMessage(role=m.role, content=str(m.content)) for m in given.messages]
    llm.structured_predict(Outer, ChatPromptTemplate(turns))
    rendered = render(given, "text")
    assert [(m.role, m.content) for m in rendered.messages] == SEEN[-1]
    assert rendered.transport == "text"
    assert str(rendered.schema_text) in str(rendered.messages[0].content)


WAYS: list[Transport] = ["json_schema", "tools", "text"]


@given(st.lists(st.sampled_from(WAYS), max_size=6), st.sampled_from([None, "", "S"]))
def test_rendering_through_any_transports_and_back_changes_nothing(
    tour: list[Transport], system: str | None
) -> None:
    given = example(system)
    there = given
    for transport in tour:
        there = render(there, transport)
        assert there.answer_text() == given.answer_text()
        assert there.transport == transport
    assert render(there, "json_schema").model_copy(update={"response_format": None}) == given


def test_tools_rendering_makes_one_tool_and_one_call() -> None:
    rendered = render(example(), "tools")
    assert rendered.tools is not None
    function: Any = rendered.tools[0]["function"]
    assert (function["name"], function["description"]) == ("Outer", "An outer thing.")
    assert set(function["parameters"]) == {"type", "properties", "required", "$defs", "additionalProperties"}
    assert rendered.answer.tool_calls is not None
    assert rendered.answer.content is None
    call: Any = rendered.answer.tool_calls[0]
    assert call["function"]["arguments"] == example().answer_text()


def test_an_example_that_cannot_be_rendered_is_an_error_with_the_reason() -> None:
    plain = FinetuneDataset.from_pairs([("q", "just text")])[0]
    with pytest.raises(DatasetError, match="without a schema"):
        render(plain, "tools")
    prose = plain.model_copy(update={"answer_schema": {"type": "object"}, "transport": "json_schema"})
    with pytest.raises(DatasetError, match="not one JSON value"):
        render(prose, "tools")
    hidden = example().model_copy(update={"transport": "text"})
    with pytest.raises(DatasetError, match="schema's text was not found"):
        render(hidden, "json_schema")
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    twice = example().model_copy(
        update={"transport": "tools", "answer": Message(role="assistant", tool_calls=[call, call])}
    )
    with pytest.raises(DatasetError, match="2 tool calls"):
        render(twice, "json_schema")
    parts = example().model_copy(
        update={"messages": (Message(role="user", content=[{"type": "text", "text": "q"}]),)}
    )
    with pytest.raises(DatasetError, match="holds content parts"):
        render(parts, "text")
