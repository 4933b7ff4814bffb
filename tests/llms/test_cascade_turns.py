"""A cascade with tools: the student's turn where it is sure, else the teacher's, which is captured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms import MockLLM

from llama_index_finetune_structured import Cascade, ConfigurationError, LoraLLM, trust_of
from llama_index_finetune_structured.capture import read_examples
from tests.agents.scripted import TOOLS, WIRE, Teacher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ASKED = [ChatMessage(role="user", content="add 2 and 3")]
TEACHERS = [("add", {"first": 2, "second": 3})]
ALWAYS, NEVER = 1e-290, 1 - 1e-9  # thresholds that every answer of the tiny model reaches, and none


@pytest.fixture(scope="module")
def student(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=40)


def cascade(student: LoraLLM, threshold: float, **options: Any) -> Cascade:
    return Cascade(student, options.pop("teacher", Teacher()), threshold=threshold, **options)


def calls(response: ChatResponse) -> list[tuple[str, Any]]:
    blocks = response.message.blocks
    return [(block.tool_name, block.tool_kwargs) for block in blocks if isinstance(block, ToolCallBlock)]


async def _last(stream: Any) -> Any:
    return [chunk async for chunk in await stream][-1]


WAYS: dict[str, Callable[[Cascade], ChatResponse]] = {
    "chat": lambda llm: llm.chat(ASKED, tools=WIRE),
    "achat": lambda llm: asyncio.run(llm.achat(ASKED, tools=WIRE)),
    "stream_chat": lambda llm: [*llm.stream_chat(ASKED, tools=WIRE)][-1],
    "astream_chat": lambda llm: asyncio.run(_last(llm.astream_chat(ASKED, tools=WIRE))),
    "chat_with_tools": lambda llm: llm.chat_with_tools(TOOLS, chat_history=ASKED),
    "achat_with_tools": lambda llm: asyncio.run(llm.achat_with_tools(TOOLS, chat_history=ASKED)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_turn_that_is_not_sure_is_the_teachers(student: LoraLLM, way: str, tmp_path: Path) -> None:
    llm = cascade(student, NEVER, capture=tmp_path / "rows.jsonl")
    response = WAYS[way](llm)
    assert calls(response) == TEACHERS
    assert trust_of(response).answered_by == "rules"
    summary = llm.summary()
    assert (summary["answered_by_teacher"], summary["texts"]) == (1, 0)
    [row] = read_examples(tmp_path / "rows.jsonl")
    assert row.is_agent_turn
    tools: Any = row.tools
    assert [tool["function"]["name"] for tool in tools] == ["add", "seconds_of"]
    assert isinstance(json.loads(str(row.metadata["student_answer"])), list), (
        "the student's turn is beside it"
    )


@pytest.mark.parametrize("choice", ["auto", "add"])
def test_a_sure_turn_is_the_students(student: LoraLLM, choice: str) -> None:
    llm = cascade(student, ALWAYS)
    response = llm.chat(ASKED, tools=WIRE, tool_choice=choice)
    alone = student.chat(ASKED, tools=WIRE, tool_choice=choice)
    assert (response.message.content, calls(response)) == (alone.message.content, calls(alone))
    assert trust_of(response).sure
    assert llm.summary()["answered_by_student"] == 1


class Broken(Teacher):
    """Calls a tool that nobody offered."""

    def answer(self, messages: Any, tools: Any = None) -> ChatMessage:
        block = ToolCallBlock(tool_call_id="1", tool_name="subtract", tool_kwargs={})
        return ChatMessage(role="assistant", blocks=[block])


class Wired(Teacher):
    """Has its calls where OpenAI's older classes have them, arguments as text."""

    def answer(self, messages: Any, tools: Any = None) -> ChatMessage:
        function = {"name": "add", "arguments": '{"first": 2, "second": 3}'}
        wired = [{"id": "a", "type": "function", "function": function}]
        return ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": wired})


def test_a_teachers_turn_that_does_not_fit_the_tools_is_a_failure_of_the_teacher(student: LoraLLM) -> None:
    llm = cascade(student, NEVER, teacher=Broken())
    assert trust_of(llm.chat(ASKED, tools=WIRE)).sure is False
    assert llm.summary()["unsure"] == 1


def test_a_teachers_calls_are_found_in_each_place_where_classes_have_them(student: LoraLLM) -> None:
    response = cascade(student, NEVER, teacher=Wired()).chat_with_tools(TOOLS, chat_history=ASKED)
    assert calls(response) == TEACHERS


def test_a_teacher_without_tools_is_an_error_that_names_it(student: LoraLLM) -> None:
    llm = cascade(student, NEVER, teacher=MockLLM(), on_teacher_error="raise")
    assert not llm.metadata.is_function_calling_model
    with pytest.raises(ConfigurationError, match="MockLLM calls no tools"):
        llm.chat_with_tools(TOOLS, chat_history=ASKED)


def test_an_agent_over_a_cascade_runs_as_over_its_teacher(student: LoraLLM, tmp_path: Path) -> None:
    llm = cascade(student, NEVER, capture=tmp_path / "rows.jsonl")

    async def answer() -> str:
        return str(
            await FunctionAgent(tools=[*TOOLS], llm=llm, system_prompt="You are brief.").run("add 2 and 3")
        )

    assert asyncio.run(answer()) == "The sum is 5."
    rows = list(read_examples(tmp_path / "rows.jsonl"))
    assert [row.is_agent_turn for row in rows] == [True, True]
