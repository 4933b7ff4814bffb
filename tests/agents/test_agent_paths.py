"""A model that was trained on a captured agent's runs does as the teacher did, in each way of asking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ToolCallResult
from llama_index.core.llms import LLM

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
from tests.agents.scripted import TOOLS, WIRE, Teacher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

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


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> FinetuneDataset:
    path = tmp_path_factory.mktemp("agent") / "runs.jsonl"
    with capture(path):
        for question in QUESTIONS:
            asyncio.run(run(agent(Teacher()), question))
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


def test_every_call_of_an_agent_is_a_row(captured: FinetuneDataset) -> None:
    assert len(captured) == 2 * 5 + 3 + 1
    assert all(example.tools == WIRE and example.answer_schema is None for example in captured)


WAYS: dict[str, Callable[[LLM], Any]] = {
    "FunctionAgent, streamed": agent,
    "FunctionAgent": lambda llm: agent(llm, streaming=False),
    "AgentWorkflow": lambda llm: AgentWorkflow(agents=[agent(llm)]),
    "AgentWorkflow of tools": lambda llm: AgentWorkflow.from_tools_or_functions(
        TOOLS, llm=llm, system_prompt="You are brief."
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_student_runs_as_the_teacher_did(student: LoraLLM, way: str) -> None:
    for question, (answer, calls) in QUESTIONS.items():
        said, called = asyncio.run(run(WAYS[way](student), question))
        assert answer in said, question
        assert called == calls, question


async def test_concurrent_runs_do_not_mix(student: LoraLLM) -> None:
    found = await asyncio.gather(*(run(agent(student), question) for question in [*QUESTIONS] * 2))
    for question, (said, called) in zip([*QUESTIONS] * 2, found, strict=True):
        answer, calls = QUESTIONS[question]
        assert answer in said, question
        assert called == calls, question


@pytest.mark.parametrize("name", ["openai", "trl-messages", "trl-prompt-completion"])
def test_a_captured_file_in_another_format_is_trained_to_the_same_tokens(
    captured: FinetuneDataset, tmp_path: Path, name: str
) -> None:
    captured.save(tmp_path / "rows.jsonl", format=name)
    tokenizer = tiny.tokenizer()

    def tokens(source: CheckSource) -> list[TokenRow]:
        turns = [row.content for row in parsed_rows(source, "local")]
        return [token_row(tokenizer, turn, stop_id=1) for turn in turns if isinstance(turn, Example)]

    assert tokens(tmp_path / "rows.jsonl") == tokens(tuple(captured))
