"""Run an agent on questions and capture its LLM calls, concurrently and resumably: one row for each call."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import LLM

from ..background import blocking
from ..capture import capture, read_examples
from ..capture.error_text import error_text
from ..capture.labels import labelled
from ..dataset import FinetuneDataset
from ..example import Example
from ..jsonl_store import shards_of
from .agent_questions import AgentQuestion
from .agent_tools import AgentTools

__all__ = ["CONCURRENCY", "MOST_TURNS", "CapturedRuns", "acapture_runs", "agent_with", "capture_runs"]

_SYSTEM_PROMPT = "Answer questions about networkx. Use the tools."
MOST_TURNS = 8  # chosen: the longest solution has three calls of tools, one after the other
CONCURRENCY = 8


@dataclass(frozen=True)
class CapturedRuns:
    """``runs``: the rows of each complete run, in the order of the questions. ``failures``: question -> error.

    ``made``: how many runs were made now; the others were in the file.
    """

    runs: tuple[tuple[Example, ...], ...]
    failures: dict[str, str]
    made: int

    def dataset(self) -> FinetuneDataset:
        """The rows of all runs."""
        return FinetuneDataset(row for run in self.runs for row in run)


def agent_with(llm: LLM, tools: AgentTools, *, streaming: bool = False) -> FunctionAgent:
    """The demo's agent, with any LLM that calls tools."""
    return FunctionAgent(
        tools=[*tools.tools()], llm=llm, system_prompt=_SYSTEM_PROMPT, streaming=streaming, timeout=None
    )


async def acapture_runs(
    agent: FunctionAgent, questions: Sequence[AgentQuestion], path: Path, *, ask: bool = True
) -> CapturedRuns:
    """Run ``agent`` on each question that has no complete run in ``path``, and return the complete runs.

    A run that fails or is interrupted leaves rows in the file; they are not part of the result, and the question is
    asked again by the next call. ``ask=False``: only read what is there.
    """
    known = _complete_runs(path)
    missing = [question for question in questions if ask and question.text not in known]
    failures: dict[str, str] = {}
    free = asyncio.Semaphore(CONCURRENCY)

    async def run(question: AgentQuestion) -> None:
        facts = {"run": uuid4().hex, "question": question.text, "kind": question.kind}
        async with free:
            with labelled(document_id=question.subject, **facts):
                try:
                    await agent.run(question.text, max_iterations=MOST_TURNS)
                except Exception as error:
                    failures[question.text] = f"{type(error).__name__}: {error_text(error, agent.llm)}"

    if missing:
        with capture(path):
            await asyncio.gather(*map(run, missing))
        known = _complete_runs(path)
    runs = tuple(known[question.text] for question in questions if question.text in known)
    return CapturedRuns(runs, failures, len(missing))


capture_runs = blocking(acapture_runs)


def _complete_runs(path: Path) -> dict[str, tuple[Example, ...]]:
    """Question -> the rows of its first complete run, in their order.

    A run is complete where a row for each turn of the assistant is there, the last of them without calls: a turn
    that capture rejected is in the messages of later rows, which then teach it.
    """
    rows: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in read_examples(path) if any(map(Path.exists, shards_of(path))) else ():
        rows[str(example.metadata["question"]), str(example.metadata["run"])].append(example)
    complete: dict[str, tuple[Example, ...]] = {}
    for (question, _), run in rows.items():
        run.sort(key=lambda row: len(row.messages))
        last = run[-1]
        turns = sum(message.role == "assistant" for message in last.messages) + 1
        if not last.answer.tool_calls and len(run) == turns:
            complete.setdefault(question, tuple(run))
    return complete
