"""Chats with tools: what a tool choice allows, streams, programs, bad input, what is captured."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel
from workflows.errors import WorkflowCancelledByUser

from llama_index_finetune_structured import LoraFinetuneEngine, LoraLLM, capture, served_llm, trust_of
from llama_index_finetune_structured.capture import read_examples
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.example import Example, Message
from llama_index_finetune_structured.llms.tool_calls import chat_form
from llama_index_finetune_structured.local.schema.bounds import (
    AnswerBounds,
    bounded_schema,
    bounds_hit,
    schema_key,
)
from llama_index_finetune_structured.local.schema.tool_turns import TURN_TEXT, turn_schema
from tests.agents.scripted import TOOLS, WIRE, Teacher
from tests.fakes.openai_server import OpenAIServer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's agents

ASKED = [ChatMessage(content="How long is Meddle?")]


class Song(BaseModel):
    """A song."""

    title: str
    seconds: int


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=120)


def calls_of(response: ChatResponse) -> list[tuple[str, Any]]:
    return [
        (block.tool_name, block.tool_kwargs)
        for block in response.message.blocks
        if isinstance(block, ToolCallBlock)
    ]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    "choice",
    [
        "auto",
        "required",
        "any",
        "none",
        "add",
        {"type": "function", "function": {"name": "add"}},
        {"type": "auto"},
    ],
    ids=str,
)
def test_an_answer_is_what_the_tool_choice_allows(llm: LoraLLM, choice: Any, parallel: bool) -> None:
    response = llm.chat(ASKED, tools=WIRE, tool_choice=choice, parallel_tool_calls=parallel)
    calls = calls_of(response)
    for name, arguments in calls:
        expected = {"add": {"first": int, "second": int}, "seconds_of": {"song": str}}[name]
        assert {key: type(value) for key, value in arguments.items()} == expected
    if choice == "none":
        assert not calls
    elif choice in ("required", "any"):
        assert calls
    elif choice != "auto" and choice != {"type": "auto"}:
        assert {name for name, _ in calls} == {"add"}
    assert calls or response.message.content is not None
    assert len(calls) <= 1 or parallel


def test_all_ways_of_asking_give_the_same_calls(llm: LoraLLM) -> None:
    options: dict[str, Any] = {"tools": WIRE, "tool_choice": "required"}

    async def streamed() -> list[ChatResponse]:
        return [chunk async for chunk in await llm.astream_chat(ASKED, **options)]

    whole = llm.chat(ASKED, **options)
    chunks = list(llm.stream_chat(ASKED, **options))
    for response in (chunks[-1], asyncio.run(llm.achat(ASKED, **options)), asyncio.run(streamed())[-1]):
        assert calls_of(response) == calls_of(whole)
        assert response.message.content == whole.message.content
    assert "".join(chunk.delta or "" for chunk in chunks) == (whole.message.content or "")
    ids = {
        block.tool_call_id
        for chunk in chunks
        for block in chunk.message.blocks
        if hasattr(block, "tool_call_id")
    }
    assert len(ids) == len(calls_of(whole)), "a call keeps its id while it grows"
    assert trust_of(whole).fields


@pytest.mark.parametrize("tool", [TOOLS[0], "wire"], ids=["FunctionTool", "OpenAI's form"])
def test_tools_are_taken_as_objects_too(llm: LoraLLM, tool: Any) -> None:
    tools = [WIRE[0] if tool == "wire" else tool]
    assert calls_of(llm.chat(ASKED, tools=tools, tool_choice="required"))[0][0] == "add"


def test_a_tool_is_called_with_what_the_model_wrote(llm: LoraLLM) -> None:
    seen: list[Any] = []

    def note(word: str) -> str:
        """Note a word."""
        seen.append(word)
        return "noted"

    tools = [FunctionTool.from_defaults(note)]
    response = llm.predict_and_call(tools, user_msg="Note it.", tool_required=True)
    assert (str(response), len(seen)) == ("noted", 1)
    response = asyncio.run(llm.apredict_and_call(tools, user_msg="Note it.", tool_required=True))
    assert (str(response), seen[0]) == ("noted", seen[1])


def test_a_program_of_function_calls_asks_as_structured_predict_does(llm: LoraLLM) -> None:
    prompt = PromptTemplate("Describe {name}.")
    expected = llm.structured_predict(Song, prompt, name="Meddle")
    program = FunctionCallingProgram.from_defaults(output_cls=Song, prompt=prompt, llm=llm)
    assert program(name="Meddle") == expected
    assert asyncio.run(program.acall(name="Meddle")) == expected
    assert list(program.stream_call(name="Meddle"))[-1].model_dump() == expected.model_dump()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": WIRE, "tool_choice": "subtract"}, "expected auto, required, none or one of the tools"),
        ({"tools": WIRE, "tool_choice": 3}, "tool_choice=3: expected auto"),
        ({"tools": "add"}, "expected a list of tools"),
        ({"tools": [*WIRE, len]}, "FunctionTool.from_defaults"),
        ({"tools": [{"name": "x"}]}, "expected {'type': 'function'"),
        ({"tools": [WIRE[0], WIRE[0]]}, "two tools are named 'add'"),
        ({"tool_choice": "add"}, "there are no tools"),
        ({"tools": WIRE, "response_format": {"type": "json_schema"}}, "pass one of them"),
        ({"tools": WIRE, "stop": ["x"]}, "leave stop= out"),
    ],
    ids=str,
)
def test_bad_input_is_an_error_that_says_what_was_expected(
    llm: LoraLLM, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        llm.chat(ASKED, **options)


def test_turns_of_other_models_are_read_in_each_of_their_forms() -> None:
    wired = {
        "id": "1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"first": 1, "second": 2}'},
    }
    as_text = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs='{"first": 1, "second": 2}')
    forms = [
        ChatMessage(role="assistant", additional_kwargs={"tool_calls": [wired]}),
        ChatMessage(role="assistant", blocks=[as_text]),
        ChatMessage(
            role="assistant", blocks=[as_text.model_copy(update={"tool_kwargs": {"first": 1, "second": 2}})]
        ),
    ]
    result = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "1"})
    for turn in forms:
        form = chat_form([*ASKED, turn, result], {"tools": WIRE}, [])
        assert [message.content for message in form.messages] == [
            "How long is Meddle?", '[{"add":{"first":1,"second":2}}]', "3"
        ]  # fmt: skip
    bad = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="add", tool_kwargs="{")])
    with pytest.raises(ConfigurationError, match="expected a JSON object"):
        chat_form([*ASKED, bad], {"tools": WIRE}, [])


def test_what_the_model_answered_is_captured_as_it_was_asked(llm: LoraLLM, tmp_path: Path) -> None:
    with capture(tmp_path / "rows.jsonl"):
        response = llm.chat_with_tools(TOOLS, user_msg="How long is Meddle?", tool_required=True)
    (row,) = read_examples(tmp_path / "rows.jsonl")
    assert (row.tools, row.tool_choice, row.answer_schema) == (WIRE, "required", None)
    assert row.messages[-1].content == "How long is Meddle?"
    names = [call["function"]["name"] for call in row.answer.wire()["tool_calls"]]
    assert names == [name for name, _ in calls_of(response)]


async def test_a_cancelled_run_ends_and_the_next_is_answered(llm: LoraLLM) -> None:
    agent = FunctionAgent(tools=TOOLS, llm=llm)
    handler = agent.run("How long is Meddle?", max_iterations=50)
    await asyncio.sleep(0.05)
    await handler.cancel_run()
    with pytest.raises((WorkflowCancelledByUser, asyncio.CancelledError)):
        await handler
    assert await llm.achat(ASKED, tools=WIRE, tool_choice="none")


async def test_a_text_agent_asks_without_tools(llm: LoraLLM) -> None:
    agent = ReActAgent(tools=TOOLS, llm=llm)
    assert await agent.run("How long is Meddle?", max_iterations=3, early_stopping_method="generate")


@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
def test_a_served_adapter_is_asked_for_turns_by_schema(way: str, tmp_path: Path, tiny_llama: Path) -> None:
    rows = [
        Example(
            messages=(Message(role="user", content=f"How long is song {n}?"),),
            answer=Message(
                role="assistant",
                tool_calls=[
                    {"id": "1", "function": {"name": "seconds_of", "arguments": f'{{"song":"{n}"}}'}}
                ],
            ),
            transport="tools",
            tools=WIRE,
        )
        for n in range(4)
    ]
    engine = LoraFinetuneEngine(rows, base_model=tiny_llama, output_dir=tmp_path / "run")
    engine.finetune()
    answer = '["Let me look.",{"seconds_of":{"song":"Meddle"}}]'
    with OpenAIServer(answer_chat=lambda _: answer) as server:
        llm = served_llm(engine.adapter, model="tuned", api_base=server.base, api_key=server.key)
        tools: dict[str, Any] = llm._prepare_chat_with_tools(TOOLS, user_msg="How long is Meddle?")

        async def last() -> ChatResponse:
            if way == "achat":
                return await llm.achat(**tools)
            return [chunk async for chunk in await llm.astream_chat(**tools)][-1]

        if way.startswith("a"):
            response = asyncio.run(last())
        else:
            response = llm.chat(**tools) if way == "chat" else list(llm.stream_chat(**tools))[-1]
        sent = server.calls("POST", "/v1/chat/completions")[-1].json()
    assert calls_of(response) == [("seconds_of", {"song": "Meddle"})]
    assert response.message.content == "Let me look."
    assert llm.get_tool_calls_from_response(response)[0].tool_kwargs == {"song": "Meddle"}
    assert "tools" not in sent
    assert "tool_choice" not in sent
    local = LoraLLM.from_adapter(engine.adapter)
    form = chat_form(tools["messages"], {**tools, "messages": None}, local.trained_schemas)
    rendered: Any = local._loaded.tokenizer.apply_chat_template(sent["messages"], add_generation_prompt=True)
    schema = form.keywords["response_format"]["json_schema"]["schema"]
    assert rendered["input_ids"] == local._prompt(form.messages, schema)
    assert sent["response_format"]["json_schema"]["schema"]["$defs"]["Call"]


def test_an_abandoned_stream_of_a_turn_stops_the_generation(llm: LoraLLM) -> None:
    steps: list[int] = []
    hook = llm._loaded.engine.model.register_forward_pre_hook(lambda *_: steps.append(1))
    options: dict[str, Any] = {"tools": WIRE, "tool_choice": "none", "max_new_tokens": 1500}

    async def abandon() -> None:
        stream = await llm.astream_chat(ASKED, **options)
        await anext(stream)
        await stream.aclose()

    try:
        whole = len(list(llm.stream_chat(ASKED, **options)))
        steps.clear()
        stream = llm.stream_chat(ASKED, **options)
        next(stream)
        stream.close()
        asyncio.run(abandon())
        llm.complete("next", max_new_tokens=1)
        assert len(steps) < whole
    finally:
        hook.remove()


class Direct(Teacher):
    """Looks a song up, then calls the tool of the class; counts its calls."""

    asked: int = 0

    def answer(self, messages: Any, tools: Any = None) -> ChatMessage:
        self.asked += 1
        done = any(message.role == "tool" for message in messages)
        made = ("Song", {"title": "Meddle", "seconds": 371}) if done else ("seconds_of", {"song": "Meddle"})
        block = ToolCallBlock(tool_call_id=str(self.asked), tool_name=made[0], tool_kwargs=made[1])
        return ChatMessage(role="assistant", blocks=[block])


async def test_a_tool_of_a_class_that_returns_at_once_gives_the_object_without_another_call() -> None:
    tool, teacher = get_function_tool(Song), Direct()
    tool.metadata.return_direct = True
    output: Any = await FunctionAgent(tools=[TOOLS[1], tool], llm=teacher).run("How long is Meddle?")
    assert Song(**output.tool_calls[-1].tool_kwargs) == Song(title="Meddle", seconds=371)
    assert teacher.asked == 2


def test_an_untrained_bases_text_is_bounded_by_the_token_limit_alone() -> None:
    schema, key = turn_schema(WIRE), schema_key(turn_schema(WIRE))
    [text] = bounded_schema(schema, key, AnswerBounds())["anyOf"][1]["prefixItems"]
    assert "maxLength" not in text
    learned = AnswerBounds(longest={key: {TURN_TEXT: 90}})
    [text] = bounded_schema(schema, key, learned)["anyOf"][1]["prefixItems"]
    assert text["maxLength"] == 180
    assert not bounds_hit(schema, key, AnswerBounds(), ["a" * 400])
