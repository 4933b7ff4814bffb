"""Generated questions and their answers: concurrency, retries, resuming, reported failures."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.llms.openai import OpenAI

from llama_index_finetune_structured.background import run_in_background
from llama_index_finetune_structured.dataset import (
    CallPolicy,
    Question,
    QuestionGenerator,
    RetrievalAugmentedDatasetBuilder,
    aanswer_questions,
    answer_questions,
)
from llama_index_finetune_structured.dataset.generate.answers import AnswerReport, answers_path
from llama_index_finetune_structured.dataset.generate.llm_calls import LlmCalls
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from tests.dataset import teacher_run
from tests.dataset.loopback_teacher import Teacher

QUICK = CallPolicy(concurrency=4, backoff_s=0)


@pytest.fixture(autouse=True)
def _connections_of_the_openai_client_are_not_ours() -> Iterator[None]:
    """LlamaIndex's OpenAI never closes its asynchronous client: collect its sockets here, without a warning."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class LineLLM(CustomLLM):
    """A completion model that answers in numbered lines."""

    reply: str = "1. What?\n2) Who ?\n\n- where?\nwhat?\n"
    prompts: list[str] = []  # noqa: RUF012 - pydantic copies it

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="lines")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.prompts.append(prompt)
        return CompletionResponse(text=self.reply)

    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def texts(questions: Any) -> list[str]:
    return [question.text for question in questions]


def test_lines_are_cleaned_deduplicated_and_counted() -> None:
    llm = LineLLM()
    made = QuestionGenerator(llm, calls=QUICK).generate(teacher_run.chunks(2), show_progress=False)
    assert texts(made) == ["What?", "Who ?", "where?"]
    assert (made.duplicates_removed, made.paid, made.reused, made.failures) == (5, 2, 0, ())
    assert made[0] == Question("What?", None, None)  # either chunk may hold its answer
    assert str(made) == "3 questions (5 duplicates removed), 2 calls paid, 0 reused, 0 failed"


async def test_the_default_prompt_is_the_references() -> None:
    from llama_index.core.evaluation import DatasetGenerator

    llm, reference = LineLLM(), LineLLM()
    QuestionGenerator(llm, num_questions_per_chunk=3).generate(
        [TextNode(text="A chunk.")], show_progress=False
    )
    with pytest.warns(DeprecationWarning, match="deprecated class"):
        generator = DatasetGenerator([TextNode(text="A chunk.")], llm=reference, num_questions_per_chunk=3)
    with pytest.warns(DeprecationWarning, match="deprecated class"):
        await generator.agenerate_questions_from_nodes()
    assert llm.prompts == reference.prompts


def test_own_prompts_number_and_limits_are_used() -> None:
    llm = LineLLM()
    generator = QuestionGenerator(
        llm,
        question_gen_query="Ask!",
        text_question_template="{query_str} {context_str}",
        num_questions_per_chunk=1,
    )
    made = generator.generate([*teacher_run.chunks(3), TextNode(text="  ")], num=2, show_progress=False)
    assert llm.prompts == ["Ask! chunk number 0", "Ask! chunk number 1"]
    assert texts(made) == ["What?"]
    with pytest.raises(ConfigurationError, match="num_questions_per_chunk"):
        QuestionGenerator(llm, num_questions_per_chunk=0)


def test_connections_stay_usable_from_one_call_to_the_next(tmp_path: Path) -> None:
    with Teacher(teacher_run.reply, keep_alive=True).running() as teacher:
        llm = teacher.llm()
        generator = QuestionGenerator(llm, calls=QUICK)
        for number in range(3):
            made = generator.generate(
                teacher_run.chunks(3), tmp_path / f"{number}.jsonl", show_progress=False
            )
            assert made.failures == ()
        assert len(teacher.requests) == 9
        run_in_background(llm._aclient.close())


def test_errors_of_the_work_come_out_as_they_are() -> None:
    async def failing() -> None:
        raise RuntimeError("of the work")

    with pytest.raises(RuntimeError, match="of the work"):
        run_in_background(failing())


async def test_questions_inside_a_running_loop_are_the_same() -> None:
    generator = QuestionGenerator(LineLLM())
    made = await generator.agenerate(teacher_run.chunks(2), show_progress=False)
    assert made == generator.generate(teacher_run.chunks(2), show_progress=False)


def test_a_second_run_pays_for_nothing_and_gives_the_same(tmp_path: Path) -> None:
    with Teacher(teacher_run.reply).running() as teacher:
        questions, answers = teacher_run.run(teacher.api_base, str(tmp_path), 2)
        paid = len(teacher.requests)
        again, answers_again = teacher_run.run(teacher.api_base, str(tmp_path), 2)
        assert len(teacher.requests) == paid == 22
    assert texts(again) == texts(questions)
    assert answers_again.answers == answers.answers
    assert (answers_again.paid, answers_again.reused) == (0, 20)
    assert len(answers.load()) == 20


def test_half_a_surrogate_pair_in_an_answer_is_kept_as_a_question_mark(tmp_path: Path) -> None:
    llm, file = LineLLM(reply="What is \ud83d?"), tmp_path / "questions.jsonl"
    assert len(QuestionGenerator(llm).generate(teacher_run.chunks(1), file, show_progress=False)) == 1
    again = QuestionGenerator(llm).generate(teacher_run.chunks(1), file, show_progress=False)
    assert (texts(again), again.paid, again.reused) == (["What is ??"], 0, 1)


def test_a_structured_llm_is_asked_for_a_list_of_questions() -> None:
    with Teacher(teacher_run.reply).running() as teacher:
        made = QuestionGenerator(teacher.llm()).generate(teacher_run.chunks(1), show_progress=False)
    assert texts(made) == [f"What is part {n} of 0" for n in range(10)]
    assert "response_format" in teacher.requests[0]


def test_concurrency_is_bounded_and_used(tmp_path: Path) -> None:
    with Teacher(teacher_run.reply, latency_s=0.02).running() as teacher:
        teacher_run.run(teacher.api_base, str(tmp_path), 4)
    assert teacher.most_at_once == teacher_run.CONCURRENCY


@pytest.mark.parametrize(("status", "calls"), [(500, 3), (429, 3), (400, 1), (401, 1)])
def test_errors_that_may_pass_are_retried_and_final_ones_are_not(
    tmp_path: Path, status: int, calls: int
) -> None:
    with Teacher(lambda _: status).running() as teacher:
        engine = RetrieverQueryEngine.from_args(teacher_run.WordRetriever(), llm=teacher.llm())
        policy = CallPolicy(attempts=3, backoff_s=0)
        report = answer_questions(
            engine, ["Part of 1"], tmp_path / "a.jsonl", calls=policy, show_progress=False
        )
        assert len(teacher.requests) == report.paid == calls
    assert report.answers == ()
    assert (report.failures[0].subject, report.failures[0].attempts) == ("Part of 1", calls)
    assert "Part of 1" in str(report)


def test_a_failure_is_kept_and_asked_again_only_on_request(tmp_path: Path) -> None:
    broken = True

    def reply(request: dict[str, Any]) -> dict[str, Any] | int:
        return 400 if broken and "of 1" in request["messages"][-1]["content"] else {"content": "fine"}

    questions, path = ["Part of 1", "Part of 2"], tmp_path / "a.jsonl"
    with Teacher(reply).running() as teacher:
        engine = RetrieverQueryEngine.from_args(teacher_run.WordRetriever(), llm=teacher.llm())
        first = answer_questions(engine, questions, path, calls=QUICK, show_progress=False)
        assert [f.subject for f in first.failures] == ["Part of 1"]
        broken = False
        second = answer_questions(engine, questions, path, calls=QUICK, show_progress=False)
        assert (len(second.failures), second.paid, second.reused) == (1, 0, 1)
        assert len(teacher.requests) == 2
        third = answer_questions(engine, questions, path, calls=QUICK, retry_failed=True, show_progress=False)
        assert len(teacher.requests) == 3
    assert [a.query for a in third.answers] == questions
    assert third.failures == ()
    assert [a.sources[0].node_id for a in third.answers] == ["node 1", "node 2"]


def test_the_silent_empty_response_is_a_failure_and_an_answer_that_does_not_parse_too(tmp_path: Path) -> None:
    with Teacher(lambda _: {"content": "no json at all"}).running() as teacher:
        engine = RetrieverQueryEngine.from_args(
            teacher_run.WordRetriever(), llm=teacher.llm(), output_cls=teacher_run.Card
        )
        report = answer_questions(
            engine,
            ["Part of 1"],
            tmp_path / "a.jsonl",
            output_cls=teacher_run.Card,
            calls=QUICK,
            show_progress=False,
        )
    assert report.answers == ()
    assert report.failures[0].error == "StructuredAnswerError"
    with pytest.raises(DatasetError, match="no examples"):
        report.load()


def test_secrets_in_errors_stay_out_of_the_file(tmp_path: Path) -> None:
    class Leaking(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            raise RuntimeError("bad key sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD")

    report = answer_questions(Leaking(), ["q"], tmp_path / "a.jsonl", show_progress=False)
    assert "bad key" in report.failures[0].message
    assert "abcdefghij" not in report.failures[0].message + answers_path(tmp_path / "a.jsonl").read_text()


def test_answers_become_retrieval_augmented_rows(tmp_path: Path) -> None:
    with Teacher(teacher_run.reply).running() as teacher:
        _, report = teacher_run.run(teacher.api_base, str(tmp_path), 1)
    builder = RetrievalAugmentedDatasetBuilder(teacher_run.WordRetriever(), output_cls=teacher_run.Card)
    rows = builder.build(report.pairs(), show_progress=False)
    assert len(rows) == 10
    assert rows[0].answer_schema == teacher_run.Card.model_json_schema()
    assert rows[0].metadata["context"] == "with_support"


def _report_with_a_miss(folder: Path, api_base: str) -> AnswerReport:
    """Answers to a question whose chunk is retrieved, one whose chunk is not, and one of unknown origin."""
    engine = RetrieverQueryEngine.from_args(
        teacher_run.WordRetriever(), llm=OpenAI(model="gpt-4o-mini", api_base=api_base, api_key="sk-test")
    )
    questions: list[str | Question] = [
        Question("Part of 1", "node 1", "first"),
        Question("Part of 2", "node 7", "seventh"),
        "Part of 3",
    ]
    return answer_questions(engine, questions, folder / "a.jsonl", calls=QUICK, show_progress=False)


def test_answers_without_their_own_chunk_are_left_out_of_a_report_unless_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Teacher(lambda _: {"content": "invented"}).running() as teacher:
        report = _report_with_a_miss(tmp_path, teacher.api_base)
    assert [answer.retrieved for answer in report.answers] == [True, False, None]
    assert [answer.query for answer in report.misses] == ["Part of 2"]
    assert "1 without the question's own chunk" in str(report)
    assert [row.query for row in report.load()] == ["Part of 1", "Part of 3"]
    assert "1 of 3 answers were given without the question's own chunk in the prompt" in caplog.text
    kept = {row.query: row for row in report.load(retrieval_misses="keep")}
    assert {query: row.metadata.get("context") for query, row in kept.items()} == {
        "Part of 1": "with_support", "Part of 2": "support_missed", "Part of 3": None,
    }  # fmt: skip
    assert kept["Part of 2"].document_id == "seventh"  # not that of the chunk that was retrieved instead
    taught = report.load(retrieval_misses="abstain", abstention="Not in the text.")
    assert [row.answer_text() for row in taught] == ["invented", "Not in the text.", "invented"]
    assert [pair["query"] for pair in report.pairs()] == ["Part of 1", "Part of 3"]
    assert len(report.pairs(retrieval_misses="keep")) == 3
    with pytest.raises(ConfigurationError, match="give the abstention as well"):
        report.load(retrieval_misses="abstain")
    with pytest.raises(ConfigurationError, match="expected drop, keep or abstain"):
        report.load(retrieval_misses="refuse")  # type: ignore[arg-type]


def test_where_all_answers_missed_their_chunk_the_error_says_what_to_do(tmp_path: Path) -> None:
    with Teacher(lambda _: {"content": "invented"}).running() as teacher:
        report = _report_with_a_miss(tmp_path, teacher.api_base)
    only = replace(report, answers=report.misses)
    with pytest.raises(DatasetError, match="all 1 answers were given without the question's own chunk"):
        only.load()


async def test_a_cancelled_run_keeps_what_was_answered(tmp_path: Path) -> None:
    with Teacher(teacher_run.reply, latency_s=0.01).running() as teacher:
        llm = teacher.llm()
        engine = RetrieverQueryEngine.from_args(teacher_run.WordRetriever(), llm=llm)
        questions = [f"Part of {n}" for n in range(200)]
        path = tmp_path / "a.jsonl"
        running = asyncio.create_task(
            aanswer_questions(engine, questions, path, calls=QUICK, show_progress=False)
        )
        while len(teacher.requests) < 20:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        rows = LlmCalls(answers_path(path), QUICK).rows
        assert 0 < len(rows) < 200
        report = await aanswer_questions(engine, questions, path, calls=QUICK, show_progress=False)
        await llm._aclient.close()
    assert len(report.answers) == 200
    assert report.reused == len(rows)


def test_a_file_of_something_else_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.answers.jsonl"
    path.write_text('{"key": "k", "result": {}}\n{"messages": []}\n')
    with pytest.raises(DatasetError, match=r"a\.answers\.jsonl:2: expected a result"):
        LlmCalls(path, QUICK)


def ordered(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A context whose processes start with everything imported, so that a kill hits the run, not the imports."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.dataset.teacher_run"])
    return context


def kill_and_resume(context: Any, tmp_path: Path, chunk_count: int, kills: int, seed: int) -> None:
    """Kill at random points: no stored result is paid for again; the files equal those of a run without kills."""
    draw = random.Random(seed)
    folder, control = tmp_path / "killed", tmp_path / "control"
    with Teacher(teacher_run.reply, latency_s=0.002).running() as teacher:
        for _ in range(kills):
            done = acknowledged(folder)
            before, stop_after = len(teacher.requests), draw.randint(1, chunk_count)
            child = context.Process(target=teacher_run.run, args=(teacher.api_base, str(folder), chunk_count))
            child.start()
            while child.is_alive() and len(teacher.requests) - before < stop_after:
                time.sleep(draw.random() * 0.003)
            child.kill()
            child.join()
            child.close()
            time.sleep(0.02)
            repeated = done & {subject_of(request) for request in teacher.requests[before:]}
            assert not repeated
        _, ended = teacher_run.run(teacher.api_base, str(folder), chunk_count)
        calls = chunk_count * 11
        assert len(teacher.requests) <= calls + kills * teacher_run.CONCURRENCY
        assert max(Counter(map(subject_of, teacher.requests)).values()) <= kills + 1
        _, uninterrupted = teacher_run.run(teacher.api_base, str(control), chunk_count)
    for name in ("questions.jsonl", "captured.answers.jsonl"):
        assert ordered(folder / name) == ordered(control / name)
    assert [e.to_json() for e in ended.load()] == [e.to_json() for e in uninterrupted.load()]
    assert len(ended.load()) == len(ended.answers) == chunk_count * 10


def subject_of(request: dict[str, Any]) -> str:
    """The question, or the number of the chunk that questions are generated about."""
    content: str = request["messages"][-1]["content"]
    return (
        content.split("chunk number ")[1].split("\n")[0] if "Professor" in content else question_in(content)
    )


def question_in(content: str) -> str:
    return content.split("Query: ")[1].split("\n")[0]


def acknowledged(folder: Path) -> set[str]:
    """Subjects of the calls whose result is stored."""
    found: set[str] = set()
    for name, key in (("questions.jsonl", "node_id"), ("captured.answers.jsonl", "query")):
        if (folder / name).exists():
            lines = (folder / name).read_bytes().split(b"\n")[:-1]
            found |= {json.loads(line)[key].removeprefix("node ") for line in lines}
    return found


def test_killed_runs_resume_and_never_pay_twice(children: Any, tmp_path: Path) -> None:
    kill_and_resume(children, tmp_path, chunk_count=4, kills=4, seed=1)


@pytest.mark.slow
def test_killed_twenty_times_two_hundred_questions_and_answers_end_complete(
    children: Any, tmp_path: Path
) -> None:
    kill_and_resume(children, tmp_path, chunk_count=20, kills=20, seed=2)
