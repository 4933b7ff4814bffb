"""The ``build`` command: documents and a teacher, or labels, become training files; no call is paid twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.cli.build import _reason
from llama_index_finetune_structured.cli.build_output import split_rows
from llama_index_finetune_structured.dataset.generate.llm_calls import FailedCall
from tests.cli import papers
from tests.cli.conftest import Call
from tests.dataset.loopback_teacher import Teacher

BASIC = ["build", "papers", "--schema", "schema.yaml", "--validation", "0.4"]


def _taught(teacher: Teacher, model: str = "gpt-4.1") -> list[str]:
    return [*BASIC, "--teacher", model, "--api-base", teacher.api_base]


@pytest.mark.parametrize("model", ["gpt-4.1", "gpt-4-turbo", "my-own-model"])  # schema, tools, text
def test_questions_and_answers_of_a_folder_become_two_files(
    model: str, work: Path, teacher: Teacher, call: Call
) -> None:
    found = call(*_taught(teacher, model))
    train, held_out = FinetuneDataset.load("data.jsonl"), FinetuneDataset.load("data.validation.jsonl")
    assert len(train) + len(held_out) == 6
    assert (found["examples"], found["validation_examples"]) == (len(train), len(held_out))
    assert found["documents"] == len({e.document_id for e in train})
    assert found["documents"] + found["validation_documents"] == 3
    assert {e.document_id for e in train}.isdisjoint({e.document_id for e in held_out})
    for example in [*train, *held_out]:
        answer = example.answer_object()
        assert example.query == f"What did {answer['author']} show?"
        assert (example.document_id or "").startswith(answer["author"][:-1].lower())


def test_a_second_run_asks_nothing_and_gives_the_same_bytes(work: Path, teacher: Teacher, call: Call) -> None:
    call(*_taught(teacher))
    before, asked = Path("data.jsonl").read_bytes(), len(teacher.requests)
    call(*_taught(teacher))
    assert len(teacher.requests) == asked == 9
    assert Path("data.jsonl").read_bytes() == before


def test_two_builds_into_one_file_do_not_pay_twice(work: Path, call: Call) -> None:
    errors: list[str] = []

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        if not errors:
            errors.append("asked")
            second = CliRunner().invoke(app, _taught(teacher))
            errors[0] = f"{second.exit_code} {second.output}"
        return papers.reply(request)

    with Teacher(reply).running() as teacher:
        call(*_taught(teacher), "--concurrency", "1")
        assert len(teacher.requests) == 9
    assert errors[0].startswith("1 ")
    assert f"process {os.getpid()} is at work there" in " ".join(errors[0].split())


def test_a_build_that_cannot_lock_its_folder_says_what_to_do(
    work: Path, teacher: Teacher, call: Call
) -> None:
    Path("data.build/.lock").mkdir(parents=True)
    error = call(*_taught(teacher), code=1)["error"]
    assert error.startswith("data.build/.lock: could not be written (")
    assert error.endswith("or fix or remove what is at this path, and run the same again")
    assert not teacher.requests


def test_a_teachers_error_does_not_show_the_key(
    work: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may echo the key, in a form that no pattern of secrets knows."""
    monkeypatch.setenv("OPENAI_API_KEY", "status 400")
    with Teacher(lambda _: 400).running() as teacher:
        assert "status 400" not in call(*_taught(teacher), code=1)["error"]
    stored = [path for path in Path().rglob("*") if path.is_file() and b"status 400" in path.read_bytes()]
    assert stored == []


def test_a_new_document_costs_only_its_own_calls(work: Path, teacher: Teacher, call: Call) -> None:
    call(*_taught(teacher))
    asked = len(teacher.requests)
    papers.write_pdf(work / "papers" / "delta.pdf", papers.text_of("delta"))
    found = call(*_taught(teacher))
    assert len(teacher.requests) - asked == 3
    assert found["examples"] + found["validation_examples"] == 8


def _queries(requests: list[dict[str, Any]]) -> set[str]:
    """The questions that were answered, without the requests for questions."""
    asked = (re.search(r"Query: (What did \w+ show\?)", str(request)) for request in requests)
    return {match[1] for match in asked if match}


def _rows() -> dict[str, Any]:
    files = [Path("data.jsonl"), Path("data.validation.jsonl")]
    return {str(row.query): row for file in files if file.exists() for row in FinetuneDataset.load(file)}


def test_a_changed_document_is_asked_about_again_and_the_rest_is_kept(
    work: Path, teacher: Teacher, call: Call
) -> None:
    first = call(*_taught(teacher))
    assert (first["changes"], first["asked_again"]) == ({}, 0)
    before, asked = _rows(), len(teacher.requests)
    changed = papers.text_of("gamma").replace("works", "fails").replace("1991", "2001")
    (work / "papers" / "gamma.md").write_text(changed)
    found = call(*_taught(teacher))
    assert found["changes"] == {"new": 0, "changed": 1, "removed": 0, "renamed": 0}
    assert found["asked_again"] == 2
    assert _queries(teacher.requests[asked:]) == set(papers.questions("gamma"))
    assert len(teacher.requests) - asked == 1 + 2  # the questions about one chunk, and their answers
    after = _rows()
    assert after.keys() == before.keys()
    for query, row in after.items():
        if "Gamma" in query:
            assert row.answer_object()["finding"].endswith("fails")
            assert "gamma 0 works" not in str(row.messages)
        else:
            assert row == before[query]
    settled = len(teacher.requests)
    again = call(*_taught(teacher))
    assert (again["asked_again"], len(teacher.requests)) == (0, settled)
    assert _rows() == after


def test_own_questions_are_asked_again_where_a_retrieved_document_has_changed(
    work: Path, teacher: Teacher, call: Call
) -> None:
    asked = [*papers.questions("alpha"), *papers.questions("gamma")]
    Path("questions.txt").write_text("\n".join(asked))
    arguments = [*_taught(teacher), "--questions", "questions.txt", "--validation", "0", "--top-k", "1"]
    call(*arguments)
    (work / "papers" / "gamma.md").write_text(papers.text_of("gamma").replace("works", "fails"))
    before = len(teacher.requests)
    assert call(*arguments)["asked_again"] == 2
    assert _queries(teacher.requests[before:]) == set(papers.questions("gamma"))
    assert {row.answer_object()["finding"][-5:] for row in _rows().values()} == {"works", "fails"}


def test_a_renamed_document_costs_nothing_and_its_rows_have_the_new_name(
    work: Path, teacher: Teacher, call: Call
) -> None:
    call(*_taught(teacher), "--limit", "4")
    before, asked = _rows(), len(teacher.requests)
    (work / "papers" / "deeper").mkdir()
    (work / "papers" / "gamma.md").rename(work / "papers" / "deeper" / "a much longer name of gamma.md")
    (work / "papers" / "alpha.pdf").rename(work / "papers" / "zeta.pdf")
    found = call(*_taught(teacher), "--limit", "4")
    assert found["changes"] == {"new": 0, "changed": 0, "removed": 0, "renamed": 2}
    assert len(teacher.requests) == asked
    names = {"gamma.md": "deeper/a much longer name of gamma.md", "alpha.pdf": "zeta.pdf"}
    after = _rows()
    for query, row in before.items():
        assert after[query].document_id == names.get(row.document_id, row.document_id)
        assert [s.document_id for s in after[query].sources] == [
            names.get(s.document_id, s.document_id) for s in row.sources
        ]
        assert after[query].messages == row.messages


def test_a_renamed_document_stays_on_its_side_of_the_split(work: Path, teacher: Teacher, call: Call) -> None:
    """Its rows were trained on, or held out: with another side the score of the old model would be too high."""
    call(*_taught(teacher))
    held_out = {row.query for row in FinetuneDataset.load("data.validation.jsonl")}
    names = ["alpha.pdf", "beta.pdf", "gamma.md"]
    assert {path.name for path in (work / "papers").iterdir()} == set(names)
    for number in range(6):
        for name in names:
            path = next(path for path in (work / "papers").iterdir() if path.name.endswith(name))
            path.rename(path.with_name(f"{number} {name}"))
        call(*_taught(teacher))
        assert {row.query for row in FinetuneDataset.load("data.validation.jsonl")} == held_out


def test_a_removed_document_loses_its_rows_and_costs_nothing(
    work: Path, teacher: Teacher, call: Call
) -> None:
    call(*_taught(teacher))
    asked = len(teacher.requests)
    (work / "papers" / "gamma.md").unlink()
    found = call(*_taught(teacher))
    assert found["changes"] == {"new": 0, "changed": 0, "removed": 1, "renamed": 0}
    assert len(teacher.requests) == asked
    assert set(_rows()) == {*papers.questions("alpha"), *papers.questions("beta")}


def test_the_answer_to_a_changed_document_that_fails_is_not_replaced_by_the_old_one(
    work: Path, call: Call
) -> None:
    broken = [False]

    def reply(request: dict[str, Any]) -> dict[str, Any] | int:
        return 400 if broken[0] and "Query: What did Gamma1" in str(request) else papers.reply(request)

    with Teacher(reply).running() as teacher:
        call(*_taught(teacher))
        (work / "papers" / "gamma.md").write_text(papers.text_of("gamma").replace("works", "fails"))
        broken[0] = True
        for _ in range(2):
            found = call(*_taught(teacher))
            assert [failure["asked"] for failure in found["failures"]] == ["What did Gamma1 show?"]
            assert "What did Gamma1 show?" not in _rows()
        broken[0] = False
        assert call(*_taught(teacher), "--retry-failed")["failures"] == []
        assert _rows()["What did Gamma1 show?"].answer_object()["finding"].endswith("fails")


def test_a_changed_document_is_named_in_the_summary(work: Path, teacher: Teacher, call: Call) -> None:
    call(*_taught(teacher))
    (work / "papers" / "gamma.md").write_text(papers.text_of("gamma").replace("works", "fails"))
    shown = CliRunner().invoke(app, _taught(teacher), env={"COLUMNS": "200"}).stdout
    assert "documents since the last build: 1 changed; 2 questions of changed ones asked again" in shown


def test_a_damaged_record_of_the_documents_is_a_clear_error(work: Path, teacher: Teacher, call: Call) -> None:
    call(*_taught(teacher))
    for text in ("{", "[]", '{"a": 1}'):
        Path("data.build/documents.json").write_text(text)
        assert "documents.json: cannot be read" in call(*_taught(teacher), code=1)["error"]


FORGETFUL = """\
name: Finding
fields:
  author: string?
  finding: string?
"""
MISSED = "Which gamma works, by gamma and gamma?"


def _answers_from_memory(request: dict[str, Any]) -> dict[str, Any]:
    """About beta it asks a question whose words are in gamma, and it answers whatever the context has."""
    prompt = str(request["messages"])
    if MISSED in prompt or "Query: " in prompt:
        value = {"author": "Remembered" if MISSED in prompt else "Read", "finding": "anything"}
        if request.get("tools"):
            function = {"name": "Finding", "arguments": json.dumps(value)}
            return {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
        return {"content": json.dumps(value)}
    if "Beta0" in prompt:
        if request.get("response_format"):
            return {"content": json.dumps({"questions": [MISSED]})}
        if request.get("tools"):
            function = {"name": "_QuestionList", "arguments": json.dumps({"questions": [MISSED]})}
            return {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
        return {"content": MISSED}
    return papers.reply(request)


@pytest.mark.parametrize("model", ["gpt-4.1", "gpt-4-turbo", "my-own-model"])  # schema, tools, text
def test_answers_without_the_questions_own_chunk_are_left_out_kept_or_taught_as_empty(
    model: str, work: Path, call: Call
) -> None:
    Path("schema.yaml").write_text(FORGETFUL)
    with Teacher(_answers_from_memory).running() as teacher:
        arguments = [*_taught(teacher, model), "--top-k", "1", "--validation", "0"]
        dropped = call(*arguments)
        assert dropped["retrieval_misses"] == 1
        assert MISSED not in _rows()
        assert dropped["examples"] == 4
        assert {row.metadata["context"] for row in _rows().values()} == {"with_support"}
        asked = len(teacher.requests)

        assert call(*arguments, "--retrieval-misses", "keep")["examples"] == 5
        kept = _rows()[MISSED]
        assert kept.metadata["context"] == "support_missed"
        assert kept.answer_object()["author"] == "Remembered"
        assert (kept.document_id, kept.sources[0].document_id) == ("beta.pdf", "gamma.md")

        assert call(*arguments, "--retrieval-misses", "abstain")["examples"] == 5
        taught = _rows()[MISSED]
        assert taught.answer_object() == {"author": None, "finding": None}
        assert bool(taught.answer.tool_calls) == bool(kept.answer.tool_calls)
        assert len(teacher.requests) == asked  # another choice needs no new call
        shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).stdout
    assert "1 of 5 answers had no chunk in the prompt that supports them, and were left out" in shown
    assert "--retrieval-misses keep" in shown


def test_labels_whose_document_is_not_retrieved_are_left_out_too(work: Path, call: Call) -> None:
    answer = {"author": "Beta0", "year": 1990}
    rows = [
        {"query": "What did Beta0 show?", "response": answer, "document_id": "beta.pdf"},
        {"query": MISSED, "response": answer, "document_id": "beta.pdf"},
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [*BASIC, "--pairs", "pairs.jsonl", "--top-k", "1", "--validation", "0"]
    assert call(*arguments)["retrieval_misses"] == 1
    assert set(_rows()) == {"What did Beta0 show?"}
    assert call(*arguments, "--retrieval-misses", "keep")["examples"] == 2


def test_where_every_answer_missed_its_chunk_the_error_says_so(work: Path, call: Call) -> None:
    Path("pairs.jsonl").write_text(
        json.dumps({"query": MISSED, "response": {"author": "B", "year": 1}, "document_id": "beta.pdf"})
    )
    error = call(*BASIC, "--pairs", "pairs.jsonl", "--top-k", "1", code=1)["error"]
    assert "1 of 1 answer had no chunk in the prompt that supports them" in error
    assert "--retrieval-misses keep" in error


def test_abstaining_needs_a_schema_with_an_empty_answer(work: Path, teacher: Teacher, call: Call) -> None:
    error = call(*_taught(teacher), "--retrieval-misses", "abstain", code=1)["error"]
    assert "--retrieval-misses abstain: Finding has no empty answer, since a field is required" in error
    assert not teacher.requests


def test_failed_calls_are_listed_and_repeated_only_on_demand(work: Path, call: Call) -> None:
    broken = [True]

    def reply(request: dict[str, Any]) -> dict[str, Any] | int:
        return 400 if broken[0] and "Query: What did Beta1" in str(request) else papers.reply(request)

    with Teacher(reply).running() as teacher:
        first = call(*_taught(teacher))
        assert [failure["asked"] for failure in first["failures"]] == ["What did Beta1 show?"]
        assert "status 400" in first["failures"][0]["message"]
        broken[0] = False
        assert len(call(*_taught(teacher))["failures"]) == 1
        asked = len(teacher.requests)
        last = call(*_taught(teacher), "--retry-failed")
        assert last["failures"] == []
        assert last["examples"] + last["validation_examples"] == 6
        assert len(teacher.requests) == asked + 1


def test_a_teacher_that_always_fails_leaves_no_data_set(work: Path, call: Call) -> None:
    with Teacher(lambda _: 401).running() as teacher:
        found = call(*_taught(teacher), code=1)
    assert "status 401" in found["error"]
    assert f"calls to {teacher.api_base} failed; fix the cause and add --retry-failed" in found["error"]
    assert not Path("data.jsonl").exists()


def test_an_answer_that_does_not_fit_is_listed_with_its_reason(work: Path, call: Call) -> None:
    def reply(request: dict[str, Any]) -> dict[str, Any] | int:
        right = papers.reply(request)
        return {**right, "content": re.sub(r'"year": ?\d+', '"year": "soon"', right["content"])}

    with Teacher(reply).running() as teacher:
        error = call(*_taught(teacher), code=1)["error"]
    assert (
        "answers did not fit the schema and were left out (--retry-failed asks again): data.build/" in error
    )
    assert "show?': schema_mismatch: year: int_parsing" in error
    assert "fix the cause" not in error


def test_a_refused_connection_is_reported_without_the_clients_own_retries(work: Path, call: Call) -> None:
    with Teacher(papers.reply).running() as teacher:
        gone = teacher.api_base
    found = call(*BASIC, "--teacher", "gpt-4.1", "--api-base", gone, code=1)
    assert f"calls to {gone} failed" in found["error"]
    assert "Retrying" not in found["stderr"]


def test_own_questions_are_sent_unchanged(work: Path, teacher: Teacher, call: Call) -> None:
    asked = papers.questions("alpha") + papers.questions("gamma")
    Path("questions.txt").write_text("\n\n".join(asked))
    call(*_taught(teacher), "--questions", "questions.txt", "--validation", "0")
    assert {example.query for example in FinetuneDataset.load("data.jsonl")} == set(asked)
    assert len(teacher.requests) == 4


def test_a_limit_bounds_what_is_asked(work: Path, teacher: Teacher, call: Call) -> None:
    found = call(*_taught(teacher), "--limit", "3")
    assert found["examples"] + found["validation_examples"] == 3
    assert len(teacher.requests) == 2 + 3


def test_labels_need_no_teacher_and_get_the_prompts_of_a_query_engine(
    work: Path, teacher: Teacher, call: Call
) -> None:
    call(*_taught(teacher, "gpt-4-turbo"), "--validation", "0", "--output", "taught.jsonl")
    taught = {example.query: example for example in FinetuneDataset.load("taught.jsonl")}
    rows = [{"query": query, "response": e.answer_text()} for query, e in taught.items()]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(*BASIC, "--pairs", "pairs.jsonl", "--validation", "0")
    for labelled in FinetuneDataset.load("data.jsonl"):
        same = taught[labelled.query]
        assert labelled.messages == same.messages
        assert labelled.answer_schema == same.answer_schema
        assert labelled.answer_object() == same.answer_object()


def test_without_validation_no_old_validation_file_is_left(work: Path, teacher: Teacher, call: Call) -> None:
    call(*_taught(teacher))
    assert Path("data.validation.jsonl").exists()
    assert call(*_taught(teacher), "--validation", "0")["validation"] is None
    assert not Path("data.validation.jsonl").exists()


@pytest.mark.parametrize("options", [(), ("--validation", "0")])
def test_a_validation_file_made_by_hand_after_a_build_without_one_stays(
    options: tuple[str, ...], work: Path, teacher: Teacher, call: Call
) -> None:
    call(*_taught(teacher), "--validation", "0")
    Path("data.validation.jsonl").write_text("labelled by hand")
    found = call(*_taught(teacher), *options, code=1)["error"]
    assert "data.validation.jsonl: exists and was not made by a build" in found
    assert Path("data.validation.jsonl").read_text() == "labelled by hand"
    Path("data.validation.jsonl").unlink()
    for more in ((), (), ("--validation", "0"), ("--validation", "0")):
        call(*_taught(teacher), *more)


@pytest.mark.parametrize("output", ["data.build", "DATA.BUILD", "."])
def test_an_output_that_would_be_the_folder_of_the_answers_is_refused_before_any_call(
    output: str, work: Path, teacher: Teacher, call: Call
) -> None:
    before = set(work.iterdir())
    assert "expected the path of a file" in call(*_taught(teacher), "--output", output, code=1)["error"]
    assert not teacher.requests
    assert set(work.iterdir()) == before


@pytest.mark.parametrize("content", ["", "[" * 100_000, None])
def test_damaged_settings_of_a_build_are_a_clear_error(
    content: str | None, work: Path, teacher: Teacher, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(*_taught(teacher))
    path = Path("data.build/build.json")
    if content is None:
        refuse = "llama_index_finetune_structured.cli.build_folder.read_json"
        monkeypatch.setattr(refuse, lambda path: Path(path, "of another user").read_text())
    else:
        path.write_text(content)
    assert "build.json: cannot be read" in call(*_taught(teacher), code=1)["error"]


def test_answers_made_with_other_settings_are_not_mixed_in(work: Path, teacher: Teacher, call: Call) -> None:
    call(*_taught(teacher))
    before = Path("data.jsonl").read_bytes()
    assert "another top_k" in call(*_taught(teacher), "--top-k", "1", code=1)["error"]
    Path("schema.yaml").write_text(papers.SCHEMA.replace("integer", "integer?"))
    assert "another answer_schema" in call(*_taught(teacher), code=1)["error"]
    assert Path("data.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["data.jsonl", "data.validation.jsonl"])
def test_a_file_that_no_build_made_is_not_overwritten(
    work: Path, teacher: Teacher, call: Call, name: str
) -> None:
    Path(name).write_text("mine\n")
    assert f"{name}: exists and was not made by a build" in call(*_taught(teacher), code=1)["error"]
    assert Path(name).read_text() == "mine\n"
    assert not teacher.requests


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "give --teacher MODEL"),
        ({"--teacher": "gpt-4.1", "--pairs": "pairs.jsonl"}, "leave --teacher"),
        ({"--questions": "empty.txt", "--pairs": "pairs.jsonl"}, "leave --questions out"),
        ({"folder": "nowhere", "--pairs": "pairs.jsonl"}, "nowhere: no such folder"),
        ({"--schema": "nowhere.yaml", "--pairs": "pairs.jsonl"}, "nowhere.yaml: cannot be read"),
        ({"--pairs": "pairs.jsonl"}, "pairs.jsonl"),
        ({"--teacher": "gpt-4.1", "--questions": "empty.txt"}, "empty.txt: no questions in it"),
        ({"--teacher": "gpt-4.1", "--questions": "nowhere.txt"}, "nowhere.txt: cannot be read (No such file"),
        ({"--pairs": "bad.jsonl"}, "bad.jsonl:1: expected 'query' and 'response'"),
        ({"--pairs": "unfit.jsonl"}, "the answer to 'Q?'"),
    ],
)
def test_a_users_mistake_is_one_clear_error(
    changed: dict[str, str], message: str, work: Path, call: Call
) -> None:
    Path("empty.txt").write_text("\n")
    Path("bad.jsonl").write_text('{"question": "Q?"}\n')
    Path("unfit.jsonl").write_text('{"query": "Q?", "response": {"author": "A"}}\n')
    options = {"--schema": "schema.yaml"} | changed
    folder = options.pop("folder", "papers")
    found = call("build", folder, *(part for option in options.items() for part in option), code=1)
    assert message in found["error"]
    assert found["error"] in found["stderr"]
    assert "Traceback" not in found["stderr"]


def test_openai_without_a_key_is_a_clear_error(
    work: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY" in call(*BASIC, "--teacher", "gpt-4.1", code=1)["error"]


def _default_ctrl_c() -> None:
    """Restore Ctrl-C in the child: a test run in a shell's background ignores it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_build_stopped_by_ctrl_c_goes_on_where_it_was(work: Path, call: Call) -> None:
    fifth_call, stopped = threading.Event(), threading.Event()

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        """Hold the fifth call until the build has ended, so that it is always stopped in mid-call."""
        if len(teacher.requests) >= 5:
            fifth_call.set()
            stopped.wait(120)
        return papers.reply(request)

    with Teacher(reply).running() as teacher:
        arguments = [*_taught(teacher), "--concurrency", "1"]
        command = [sys.executable, "-m", "llama_index_finetune_structured.cli", *arguments]
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
            preexec_fn=_default_ctrl_c,
        )
        while not fifth_call.wait(0.05):
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        stopped.set()
        assert (process.returncode, out) == (130, "")
        assert "run the same command again" in err
        assert "Traceback" not in err
        found = call(*arguments)
        assert found["examples"] + found["validation_examples"] == 6
        assert len(teacher.requests) == 9 + 1  # 9 calls, and the one that was stopped


def test_the_summary_counts_each_side_and_says_where_they_are_far_from_what_was_asked(
    work: Path, teacher: Teacher
) -> None:
    arguments = [*_taught(teacher), "--validation", "0.1"]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).stdout
    assert re.search(r"[24] examples of [12] documents? -> data\.jsonl", shown)
    assert re.search(r"[24] held out, of [12] documents? -> data\.validation\.jsonl", shown)
    assert "that is 33%, not 10%" in shown or "that is 67%, not 10%" in shown
    assert "examples are few" in shown


def test_rows_without_a_document_beside_those_of_one_are_split_by_question() -> None:
    pairs = [(f"What is {number}?", "{}") for number in range(20)]
    rows = [
        row.model_copy(update={"document_id": "one" if number % 2 else None})
        for number, row in enumerate(FinetuneDataset.from_pairs(pairs))
    ]
    train, held_out = split_rows(rows, validation=0.3, seed=0, split_name=str)
    assert held_out is not None
    assert len(train) + len(held_out) == 20
    assert len(train) > len(held_out) > 0


def test_a_failed_call_is_told_in_its_own_words() -> None:
    def told(error: str, message: str) -> str:
        return _reason(FailedCall("q", error, message, 1))

    assert told("APIConnectionError", "Connection error.") == "Connection error."
    assert told("KeyError", "'choices'") == "KeyError: 'choices'"
    assert told("TimeoutError", "") == "TimeoutError"
