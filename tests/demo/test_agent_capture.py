"""The demo's captured agent runs: one valid row for each call, and nothing that is done is done again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage, ChatResponse
from pydantic import PrivateAttr

from llama_index_finetune_structured import Example, FinetuneDataset, check
from llama_index_finetune_structured.capture.recorder import rejects_path
from llama_index_finetune_structured.demo.agent_capture import agent_with, capture_runs
from llama_index_finetune_structured.demo.agent_questions import AgentQuestion, generate_agent_questions
from llama_index_finetune_structured.demo.agent_run import AgentDemoData, prepare_agent_data
from llama_index_finetune_structured.demo.agent_teacher import ScriptedAgentTeacher, _answer
from llama_index_finetune_structured.demo.agent_tools import AgentTools, documented_functions
from llama_index_finetune_structured.demo.settings import DemoSettings, teacher_of
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.formats.wire import message_from_wire, response_to_wire
from tests.capture.fakes import OpenAIServer, openai_server

pytestmark = [  # all of LlamaIndex's agents
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]
TURNS = {"small talk": 1, "search, then signature": 3, "total": 3, "misspelled name": 3}


@pytest.fixture(scope="module")
def questions(agent_tools: AgentTools) -> list[AgentQuestion]:
    return generate_agent_questions(agent_tools, 30, seed=0)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """OpenAI's protocol, with the answers of the scripted teacher."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        messages = [message_from_wire(message) for message in body["messages"]]
        return response_to_wire(ChatResponse(message=_answer(messages, body)))

    with openai_server() as server:
        server.reply = reply
        yield server


def test_every_call_of_the_150_runs_is_one_valid_row(agent_tools: AgentTools, tmp_path: Path) -> None:
    questions = generate_agent_questions(agent_tools, 150, seed=0)
    captured = capture_runs(
        agent_with(ScriptedAgentTeacher(), agent_tools), questions, tmp_path / "runs.jsonl"
    )
    assert captured.failures == {}
    assert [len(run) for run in captured.runs] == [TURNS.get(question.kind, 2) for question in questions]
    assert len(captured.dataset()) == len(FinetuneDataset.load(tmp_path / "runs.jsonl")) == 330
    assert len(captured.dataset().deduplicate()) == 330
    assert not rejects_path(tmp_path / "runs.jsonl").exists()
    for question, run in zip(questions, captured.runs, strict=True):
        for turn, row in enumerate(run):
            assert _is_a_turn(row, question, is_last=turn == len(run) - 1)


def _is_a_turn(row: Example, question: AgentQuestion, *, is_last: bool) -> bool:
    names = [tool["function"]["name"] for tool in row.tools or ()]  # type: ignore[index,call-overload]
    asked = next(message.content for message in row.messages if message.role == "user")
    return (
        row.answer_schema is None
        and row.document_id == question.subject
        and asked == question.text
        and names == ["search_functions", "read_signature", "compare_parameters", "compute"]
        and bool(row.answer.tool_calls) is not is_last
        and Example.from_json(row.to_json()) == row
    )


def test_the_file_of_the_runs_passes_the_check_of_training_files(
    agent_tools: AgentTools, questions: list[AgentQuestion], tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    capture_runs(agent_with(ScriptedAgentTeacher(), agent_tools), questions, path)
    assert check(path, target="openai").ok


def test_streamed_and_not_streamed_runs_give_the_same_rows(
    agent_tools: AgentTools, questions: list[AgentQuestion], tmp_path: Path
) -> None:
    ids = [
        [
            row.id
            for row in capture_runs(
                agent_with(ScriptedAgentTeacher(), agent_tools, streaming=streaming),
                questions,
                tmp_path / f"{streaming}.jsonl",
            ).dataset()
        ]
        for streaming in (False, True)
    ]
    assert ids[0] == ids[1]


def test_a_second_capture_repeats_nothing_and_reads_the_same_rows(
    agent_tools: AgentTools, questions: list[AgentQuestion], tmp_path: Path
) -> None:
    path, agent = tmp_path / "runs.jsonl", agent_with(ScriptedAgentTeacher(), agent_tools)
    first = capture_runs(agent, questions, path)
    before = path.read_bytes()
    second = capture_runs(agent, questions, path)
    assert (first.made, second.made) == (30, 0)
    assert path.read_bytes() == before
    assert second.runs == first.runs


class _FailingTeacher(ScriptedAgentTeacher):
    """Fails at some of its calls, counted from 1."""

    failing: set[int]
    _calls: int = PrivateAttr(default=0)

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        self._calls += 1
        if self._calls in self.failing:
            raise OSError("the connection was lost")
        return super().chat(messages, **kwargs)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_failed_half_way_is_made_again_and_its_rows_are_left_out(
    agent_tools: AgentTools, questions: list[AgentQuestion], tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    teacher = _FailingTeacher(failing={1, 20, 40})
    first = capture_runs(agent_with(teacher, agent_tools), questions, path)
    assert len(first.runs) == 27
    assert len(first.failures) == 3
    assert all("the connection was lost" in error for error in first.failures.values())
    second = capture_runs(agent_with(ScriptedAgentTeacher(), agent_tools), questions, path)
    assert (len(second.runs), second.failures, second.made) == (30, {}, 3)
    whole = capture_runs(agent_with(ScriptedAgentTeacher(), agent_tools), questions, tmp_path / "whole.jsonl")
    assert [row.id for row in second.dataset()] == [row.id for row in whole.dataset()]


_KILLED = """
import os, sys
from pathlib import Path
from llama_index_finetune_structured.demo.agent_capture import agent_with, capture_runs
from llama_index_finetune_structured.demo.agent_questions import generate_agent_questions
from llama_index_finetune_structured.demo.agent_teacher import ScriptedAgentTeacher
from llama_index_finetune_structured.demo.agent_tools import AgentTools, documented_functions

class Dying(ScriptedAgentTeacher):
    def chat(self, messages, **kwargs):
        global left
        left -= 1
        if not left:
            os._exit(9)
        return super().chat(messages, **kwargs)

left, path = int(sys.argv[1]), Path(sys.argv[2])
tools = AgentTools(documented_functions())
capture_runs(agent_with(Dying(), tools), generate_agent_questions(tools, 30, seed=0), path)
"""


def test_a_killed_capture_goes_on_where_it_ended(
    agent_tools: AgentTools, questions: list[AgentQuestion], tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    root = str(Path(__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", _KILLED, "40", str(path)], cwd=root, check=False)
    assert killed.returncode == 9
    kept = len(list(FinetuneDataset.load(path)))
    rest = capture_runs(agent_with(ScriptedAgentTeacher(), agent_tools), questions, path)
    assert kept == 39
    assert 5 < rest.made < 25
    assert len(rest.runs) == 30
    whole = capture_runs(agent_with(ScriptedAgentTeacher(), agent_tools), questions, tmp_path / "whole.jsonl")
    assert [row.id for row in rest.dataset()] == [row.id for row in whole.dataset()]


class _WrongTeacher(ScriptedAgentTeacher):
    """Calls a tool with an argument that it does not have, sees the error and calls it rightly."""

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        response = super().chat([m for m in messages if m.role in ("system", "user")], **kwargs)
        if any(message.role == "tool" for message in messages):
            return ChatResponse(message=ChatMessage(role="assistant", content="It is 4."))
        response.message.blocks[0].tool_kwargs = {"expression": 4}
        return response


def test_a_run_with_an_invalid_call_is_no_training_data(agent_tools: AgentTools, tmp_path: Path) -> None:
    question = AgentQuestion("arithmetic", "What is 2 + 2?", "What is 2 + 2?")
    captured = capture_runs(agent_with(_WrongTeacher(), agent_tools), [question], tmp_path / "runs.jsonl")
    assert captured.runs == ()
    assert rejects_path(tmp_path / "runs.jsonl").exists()


def _prepare(output: Path, settings: DemoSettings, teacher: Any = None) -> tuple[AgentDemoData, list[str]]:
    said: list[str] = []
    return prepare_agent_data(settings, teacher or ScriptedAgentTeacher(), output, said.append), said


SMALL = DemoSettings(train_size=20, test_size=10, agent=True)


def test_held_out_questions_are_about_functions_that_no_training_run_saw(tmp_path: Path) -> None:
    data, _ = _prepare(tmp_path, SMALL)
    held_out = set(data.tools.functions)
    seen = {function.name for function in documented_functions()} - held_out
    assert min(len(held_out), len(seen)) > 100
    for row in data.train:
        words = _words(row)
        assert not words & {name for name in held_out if "_" in name}
    assert not {row.messages[1].content for row in data.train} & {
        row.messages[1].content for row in data.gold
    }


def _words(row: Example) -> set[str]:
    text = json.dumps([message.wire() for message in (*row.messages, row.answer)])
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


def test_preparing_again_repeats_nothing(tmp_path: Path) -> None:
    first, _ = _prepare(tmp_path, SMALL)
    names = ("captured.jsonl", "gold.jsonl", "train.jsonl", "test.jsonl")
    before = [(tmp_path / name).read_bytes() for name in names]
    second, said = _prepare(tmp_path, SMALL)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert [row.id for row in second.train] == [row.id for row in first.train]
    assert any("20 complete runs with 44 calls of the model, 0 failed" in line for line in said)


def test_a_hosted_teacher_captures_the_same_rows_and_is_asked_once(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-key")
    hosted = SMALL.model_copy(update={"teacher": "gpt-4.1", "api_base": server.url})
    server.status = 401
    with pytest.raises(DatasetError, match="the teacher completed no run"):
        _prepare(tmp_path / "hosted", hosted, teacher_of(hosted))
    server.status = 200
    server.requests.clear()
    data, _ = _prepare(tmp_path / "hosted", hosted, teacher_of(hosted))
    scripted, _ = _prepare(tmp_path / "scripted", SMALL)
    assert [row.answer for row in data.train] == [row.answer for row in scripted.train]
    assert len(server.requests) == len(data.train)
    _prepare(tmp_path / "hosted", hosted, teacher_of(hosted))
    assert len(server.requests) == len(data.train)


def test_once_training_has_begun_failed_runs_are_not_made_again(tmp_path: Path) -> None:
    first, _ = _prepare(tmp_path, SMALL, _FailingTeacher(failing={1}))
    (tmp_path / "model").mkdir()
    second, said = _prepare(tmp_path, SMALL)
    assert [row.id for row in second.train] == [row.id for row in first.train]
    assert any("19 complete runs" in line for line in said)
