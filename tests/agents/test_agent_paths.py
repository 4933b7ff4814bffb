"""A model that was trained on a captured agent's runs does as the teacher did, in each way of asking."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.agent.workflow.base_agent import BaseWorkflowAgent
from llama_index.core.llms import LLM
from llama_index.core.tools import FunctionTool

from llama_index_finetune_structured import (
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    capture,
)
from llama_index_finetune_structured.dataset.checks.rows import CheckSource, parsed_rows
from llama_index_finetune_structured.example import Example
from llama_index_finetune_structured.local.model.prompts import TokenRow, token_row
from tests import tiny
from tests.agents.scripted import TOOLS, Length, Teacher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SLOW = pytest.mark.slow
"""Training takes minutes."""

QUESTIONS = {
    "add 2 and 3": ("The sum is 5.", [("add", {"first": 2, "second": 3})]),
    "add 10 and 7": ("The sum is 17.", [("add", {"first": 10, "second": 7})]),
    "how long is Meddle": ("371 seconds.", [("seconds_of", {"song": "Meddle"})]),
    "how long is Fearless": ("368 seconds.", [("seconds_of", {"song": "Fearless"})]),
    "how long are Meddle and Echoes": (
        "371 seconds and 1411 seconds.",
        [("seconds_of", {"song": "Meddle"}), ("seconds_of", {"song": "Echoes"})],
    ),
    "how long is Animals": (  # the tool fails, and is called again
        "no song",
        [("seconds_of", {"song": "Animals"}), ("seconds_of", {"song": "Meddle"})],
    ),
    "good morning": ("Hello!", []),
}


async def run(agent: Any, question: str) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """The final answer and the calls of an agent's run."""
    handler = agent.run(question)
    calls = [
        (event.tool_name, event.tool_kwargs)
        async for event in handler.stream_events()
        if isinstance(event, ToolCallResult)
    ]
    return str(await handler), calls


def agent(llm: LLM, streaming: bool = True) -> FunctionAgent:
    return FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming, system_prompt="You are brief.")


def two_agents(llm: LLM) -> AgentWorkflow:
    """An agent for sums that hands questions about songs over."""
    agents: list[BaseWorkflowAgent] = [
        FunctionAgent(
            name=name,
            description=f"Knows {name.lower()}.",
            tools=[tool],
            llm=llm,
            system_prompt=f"You know {name.lower()}.",
            can_handoff_to=handed,
        )
        for name, tool, handed in (("Sums", TOOLS[0], ["Songs"]), ("Songs", TOOLS[1], []))
    ]
    return AgentWorkflow(agents=agents, root_agent="Sums")


def agent_of_agents(llm: LLM) -> FunctionAgent:
    """An agent whose tool asks another agent."""

    async def ask_songs(question: str) -> str:
        """Ask the agent that knows songs."""
        return str(await agent(llm).run(question))

    return FunctionAgent(
        tools=[FunctionTool.from_defaults(async_fn=ask_songs)], llm=llm, system_prompt="Ask the others."
    )


def agent_with_class(llm: LLM) -> FunctionAgent:
    return FunctionAgent(tools=TOOLS, llm=llm, system_prompt="You are brief.", output_cls=Length)


def react(llm: LLM) -> ReActAgent:
    return ReActAgent(tools=[TOOLS[1]], llm=llm)


SONG = "how long is Fearless"


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> FinetuneDataset:
    path = tmp_path_factory.mktemp("agent") / "runs.jsonl"
    with capture(path):
        for question in QUESTIONS:
            asyncio.run(run(agent(Teacher()), question))
        for made in (two_agents, agent_of_agents, agent_with_class, react):
            asyncio.run(run(made(Teacher()), SONG))
    return FinetuneDataset.load(path)


@pytest.fixture(scope="module")
def student(captured: FinetuneDataset, tmp_path_factory: pytest.TempPathFactory) -> LoraLLM:
    engine = LoraFinetuneEngine(
        captured,
        output_dir=tmp_path_factory.mktemp("student"),
        config=LoraSettings(epochs=10, batch_size=4, learning_rate=2e-3, upper_layers=20),
    )
    engine.finetune()
    return engine.get_finetuned_model()


def _name(tool: Any) -> str:
    return str(tool["function"]["name"])


def test_every_call_of_an_agent_is_a_row(captured: FinetuneDataset) -> None:
    rows = collections.Counter(tuple(map(_name, row.tools or ())) for row in captured)
    assert rows == {
        ("add", "seconds_of"): 2 * 5
        + 3
        + 1
        + 2
        + 2,  # with those of the inner agent, and of the one with a class
        ("add", "handoff"): 1,
        ("seconds_of",): 2,  # after the hand-over
        ("ask_songs",): 2,
        ("Length",): 1,
        (): 2,  # the text agent's
    }
    assert [row.answer_schema is not None for row in captured if row.tools].count(True) == 1


WAYS: dict[str, Callable[[LLM], Any]] = {
    "FunctionAgent, streamed": agent,
    "FunctionAgent": lambda llm: agent(llm, streaming=False),
    "AgentWorkflow": lambda llm: AgentWorkflow(agents=[agent(llm)]),
    "AgentWorkflow of tools": lambda llm: AgentWorkflow.from_tools_or_functions(
        [*TOOLS], llm=llm, system_prompt="You are brief."
    ),
}


HARD = ("how long are Meddle and Echoes", "how long is Animals", "good morning")
"""Parallel calls, a failing tool, and no call: other questions are asked as one agent asks them."""


@SLOW
@pytest.mark.parametrize("way", WAYS)
def test_the_student_runs_as_the_teacher_did(student: LoraLLM, way: str) -> None:
    for question in QUESTIONS if WAYS[way] is agent else HARD:
        answer, calls = QUESTIONS[question]
        said, called = asyncio.run(run(WAYS[way](student), question))
        assert answer in said, question
        assert called == calls, question


@SLOW
def test_an_agent_hands_over_as_the_teacher_did(student: LoraLLM) -> None:
    answer, calls = asyncio.run(run(two_agents(student), SONG))
    assert answer == "368 seconds."
    assert calls == [
        ("handoff", {"to_agent": "Songs", "reason": "It is about a song."}),
        ("seconds_of", {"song": "Fearless"}),
    ]


@SLOW
def test_an_agent_asks_another_as_the_teacher_did(student: LoraLLM) -> None:
    answer, calls = asyncio.run(run(agent_of_agents(student), SONG))
    assert (answer, calls) == ("They say: 368 seconds.", [("ask_songs", {"question": SONG})])


@SLOW
async def test_an_agent_answers_with_an_object_as_the_teacher_did(student: LoraLLM) -> None:
    output: Any = await agent_with_class(student).run(SONG)
    assert output.get_pydantic_model(Length) == Length(song="Fearless", seconds=368)


@SLOW
def test_a_text_agent_runs_as_the_teacher_did(student: LoraLLM) -> None:
    answer, calls = asyncio.run(run(react(student), SONG))
    assert (answer, calls) == ("368 seconds.", [("seconds_of", {"song": "Fearless"})])


@SLOW
async def test_concurrent_runs_do_not_mix(student: LoraLLM) -> None:
    found = await asyncio.gather(*(run(agent(student), question) for question in [*QUESTIONS, *HARD]))
    for question, (said, called) in zip([*QUESTIONS, *HARD], found, strict=True):
        answer, calls = QUESTIONS[question]
        assert answer in said, question
        assert called == calls, question


@pytest.mark.parametrize("name", ["openai", "trl-messages", "trl-prompt-completion"])
def test_a_captured_file_in_another_format_is_trained_to_the_same_tokens(
    captured: FinetuneDataset, tmp_path: Path, name: str
) -> None:
    agents = FinetuneDataset(row for row in captured if row.is_agent_turn or not row.tools)
    agents.save(tmp_path / "rows.jsonl", format=name)
    tokenizer = tiny.tokenizer()

    def tokens(source: CheckSource) -> list[TokenRow]:
        turns = [row.content for row in parsed_rows(source)]
        return [token_row(tokenizer, turn, stop_id=1) for turn in turns if isinstance(turn, Example)]

    assert tokens(tmp_path / "rows.jsonl") == tokens(tuple(agents))
