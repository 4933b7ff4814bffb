"""The questions to the demo's agent, and the scripted teacher that solves every one through a real FunctionAgent."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage

from llama_index_finetune_structured.demo.agent_capture import agent_with
from llama_index_finetune_structured.demo.agent_questions import (
    KINDS,
    AgentQuestion,
    generate_agent_questions,
    read_question,
)
from llama_index_finetune_structured.demo.agent_teacher import ScriptedAgentTeacher
from llama_index_finetune_structured.demo.agent_tools import AgentTools

pytestmark = [  # all of LlamaIndex's agents
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]
CALLS = {
    "search": ["search_functions"],
    "signature": ["read_signature"],
    "default": ["read_signature"],
    "comparison": ["compare_parameters"],
    "arithmetic": ["compute"],
    "search, then signature": ["search_functions", "read_signature"],
    "two signatures": ["read_signature", "read_signature"],
    "total": ["read_signature", "read_signature", "compute"],
    "small talk": [],
    "misspelled name": ["read_signature", "read_signature"],
}


@pytest.fixture(scope="module")
def questions(agent_tools: AgentTools) -> list[AgentQuestion]:
    return generate_agent_questions(agent_tools, 300, seed=0)


def test_every_kind_is_asked_equally_often_and_no_question_twice(agent_tools: AgentTools) -> None:
    questions = generate_agent_questions(agent_tools, 150, seed=0)
    assert Counter(question.kind for question in questions) == dict.fromkeys(KINDS, 15)
    assert len({question.text for question in questions}) == 150


def test_the_same_seed_gives_the_same_questions_and_another_one_others(agent_tools: AgentTools) -> None:
    first = generate_agent_questions(agent_tools, 50, seed=0)
    assert first == generate_agent_questions(agent_tools, 50, seed=0)
    assert first == generate_agent_questions(agent_tools, 100, seed=0)[:50]
    assert first != generate_agent_questions(agent_tools, 50, seed=1)


def test_left_out_questions_are_replaced(agent_tools: AgentTools) -> None:
    first = {question.text for question in generate_agent_questions(agent_tools, 50, seed=0)}
    others = generate_agent_questions(agent_tools, 50, seed=0, without=first)
    assert len(others) == 50
    assert not first & {question.text for question in others}


def test_more_questions_than_there_are_give_all_that_there_are(agent_tools: AgentTools) -> None:
    few = AgentTools(list(agent_tools.functions.values())[:10])
    questions = generate_agent_questions(few, 10_000, seed=0)
    assert 50 < len(questions) < 200
    assert {question.kind for question in questions} == set(KINDS)


def test_every_question_is_read_back_as_its_own_kind(questions: list[AgentQuestion]) -> None:
    for question in questions:
        kind, fields = read_question(question.text)
        assert kind == question.kind.replace("misspelled name", "signature")
        assert all(value in question.text for value in fields.values())


def test_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the demo's questions"):
        read_question("Tell me a joke.")


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_teacher_solves_every_question_with_the_tools_of_its_kind(
    agent_tools: AgentTools, questions: list[AgentQuestion], streaming: bool
) -> None:
    agent = agent_with(ScriptedAgentTeacher(), agent_tools, streaming=streaming)
    for question in questions[:: 2 if streaming else 1]:
        result: Any = await agent.run(question.text)
        names = [call.tool_name for call in result.tool_calls]
        assert names == CALLS[question.kind], question
        assert _is_right(question, result.response.content or "", agent_tools), question
        failed = [call.tool_output.is_error for call in result.tool_calls]
        assert failed == [question.kind == "misspelled name" and at == 0 for at in range(len(failed))]


async def _answer_of(agent: FunctionAgent, question: str, **options: Any) -> str:
    result: Any = await agent.run(question, **options)
    return str(result.response.content)


def _is_right(question: AgentQuestion, answer: str, tools: AgentTools) -> bool:
    """Whether an answer agrees with the corpus, read without the teacher's rules."""
    _, asked = read_question(question.text)
    named = [tools.functions.get(asked.get(key, "")) for key in ("name", "first", "second")]
    parameters = [[p.name for p in function.parameters] for function in named if function]
    words = set(re.findall(r"[*\w]+", answer))
    match question.kind:
        case "search" | "search, then signature":
            return any(f.name in words and asked["topic"] in f.summary for f in tools.functions.values())
        case "default":
            assert named[0]
            return (
                f" {next(p.default for p in named[0].parameters if p.name == asked['parameter'])} " in answer
            )
        case "comparison":
            shared = set(parameters[0]) & set(parameters[1])
            return shared <= words if shared else "no parameters" in answer
        case "total":
            return str(len(parameters[0]) + len(parameters[1])) in words
        case "arithmetic":
            return answer == f"{asked['expression']} = {eval(asked['expression'])}"
        case "misspelled name":
            (right,) = [name for name in words if name in tools.functions and f"{name} takes" in answer]
            return {p.name for p in tools.functions[right].parameters} <= words
        case "small talk":
            return bool(answer)
    return all(set(names) <= words for names in parameters)


@pytest.mark.parametrize("streaming", [False, True])
async def test_without_parallel_calls_the_teacher_calls_one_tool_a_turn(
    agent_tools: AgentTools, questions: list[AgentQuestion], streaming: bool
) -> None:
    parallel = agent_with(ScriptedAgentTeacher(), agent_tools)
    single = FunctionAgent(
        tools=[*agent_tools.tools()],
        llm=ScriptedAgentTeacher(),
        allow_parallel_tool_calls=False,
        streaming=streaming,
    )
    for question in [q for q in questions if q.kind in ("two signatures", "total")][:6]:
        answers = [await _answer_of(agent, question.text) for agent in (parallel, single)]
        assert answers[0] == answers[1]


async def test_a_streamed_answer_arrives_word_by_word(agent_tools: AgentTools) -> None:
    handler = agent_with(ScriptedAgentTeacher(), agent_tools, streaming=True).run("What is 17 * 23?")
    deltas = [event.delta async for event in handler.stream_events() if isinstance(event, AgentStream)]
    await handler
    assert "".join(deltas) == "17 * 23 = 391"
    assert len([delta for delta in deltas if delta]) == 5


def test_the_teacher_reads_its_answer_from_the_messages_alone() -> None:
    """Results that no tool of the demo would give are taken as they are."""
    call = ToolCallBlock(tool_call_id="x", tool_name="compute", tool_kwargs={"expression": "1 + 1"})
    messages = [
        ChatMessage("What is 1 + 1?"),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", content="eleven", additional_kwargs={"tool_call_id": "x"}),
    ]
    assert ScriptedAgentTeacher().chat(messages).message.content == "1 + 1 = eleven"


def test_parallel_results_may_come_in_any_order(agent_tools: AgentTools) -> None:
    teacher: Any = ScriptedAgentTeacher()
    asked = [ChatMessage("What parameters do pagerank and hits take?")]
    called = teacher.chat(asked).message
    calls: list[Any] = [block for block in called.blocks if isinstance(block, ToolCallBlock)]
    results = [
        ChatMessage(
            role="tool",
            content=agent_tools.functions[str(call.tool_kwargs["name"])].signature,
            additional_kwargs={"tool_call_id": call.tool_call_id},
        )
        for call in calls
    ]
    answers = [teacher.chat([*asked, called, *order]).message.content for order in (results, results[::-1])]
    assert answers[0] == answers[1]
    assert answers[0].startswith("pagerank takes")


async def test_names_that_nothing_resembles_are_told_instead_of_tried_again(agent_tools: AgentTools) -> None:
    agent = agent_with(ScriptedAgentTeacher(), agent_tools)
    for question in ("How do I call zzzz?", "What parameters do zzzz and pagerank take?"):
        assert (
            await _answer_of(agent, question)
            == "I cannot answer: there is no function zzzz; near names: none."
        )


async def test_a_conversation_goes_on_after_its_first_question(agent_tools: AgentTools) -> None:
    agent = agent_with(ScriptedAgentTeacher(), agent_tools)
    history = [ChatMessage("What is 2 + 2?"), ChatMessage(role="assistant", content="2 + 2 = 4")]
    assert await _answer_of(agent, "Thank you!", chat_history=history) == "You are welcome!"
