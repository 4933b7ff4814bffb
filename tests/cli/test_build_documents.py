"""``build --labels`` and ``build --extract``: a folder of documents becomes training files, one row a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import FinetuneDataset
from tests.cli.conftest import Call
from tests.dataset import invoices
from tests.dataset.loopback_teacher import Teacher

BASIC = ["build", "in", "--schema", "tests.dataset.invoices:Invoice", "--validation", "0.4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    invoices.write_labels(tmp_path / "labels.jsonl", range(6))
    return invoices.write_folder(tmp_path / "in")


def _rows() -> dict[str, Any]:
    files = [path for path in (Path("data.jsonl"), Path("data.validation.jsonl")) if path.exists()]
    return {str(row.document_id): row for file in files for row in FinetuneDataset.load(file)}


def test_labels_become_two_files_divided_by_document_that_eval_and_check_judge_by_the_class(
    folder: Path, call: Call
) -> None:
    found = call(*BASIC, "--labels", "labels.jsonl")
    assert found["examples"] + found["validation_examples"] == 6
    assert found["problems"] == []
    assert json.loads(Path("data.build/schema.json").read_text())["source"] == BASIC[3]
    rows = _rows()
    assert {row.answer_class for row in rows.values()} == {BASIC[3]}
    before = Path("data.jsonl").read_bytes()
    call(*BASIC, "--labels", "labels.jsonl")
    assert Path("data.jsonl").read_bytes() == before
    assert (
        call("check", "data.jsonl", "--target", "openai", code=1)["problems"][-1]["code"]
        == "too_few_examples"
    )


def test_labels_that_are_no_use_are_listed_and_the_others_are_written(folder: Path, call: Call) -> None:
    invoices.write_labels(Path("labels.jsonl"), range(5), **{"5": {"number": "1"}, "9": {"number": "1"}})
    found = call(*BASIC, "--labels", "labels.jsonl")
    assert {problem["kind"]: problem["where"] for problem in found["problems"]} == {
        "invalid_label": "labels.jsonl:6",
        "no_document": "labels.jsonl:7",
    }
    assert len(_rows()) == 5


def test_a_changed_document_whose_label_has_not_changed_is_named(folder: Path, call: Call) -> None:
    call(*BASIC, "--labels", "labels.jsonl")
    (folder / "3.txt").write_text(invoices.text(7))
    (folder / "0.txt").write_text(invoices.text(8))
    lines = Path("labels.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"document": "0", "answer": invoices.answer(8)})
    Path("labels.jsonl").write_text("\n".join(lines))
    (folder / "6.txt").write_text(invoices.text(6))
    found = call(*BASIC, "--labels", "labels.jsonl")
    assert found["changes"] == {"new": 1, "changed": 2, "removed": 0, "renamed": 0}
    assert found["labels_of_changed"] == ["3.txt"]
    assert [problem["kind"] for problem in found["problems"]] == ["no_label"]


def test_a_teacher_without_questions_fills_each_document_once(folder: Path, call: Call) -> None:
    with Teacher(invoices.reply).running() as teacher:
        ask = [*BASIC, "--extract", "--teacher", "gpt-4.1", "--api-base", teacher.api_base]
        first = call(*ask)
        assert (first["paid"], first["reused"]) == (6, 0)
        assert (call(*ask)["paid"], len(teacher.requests)) == (0, 6)
        (folder / "3.txt").write_text(invoices.text(7))
        (folder / "1.html").rename(folder / "renamed.html")
        changed = call(*ask)
        assert (changed["paid"], changed["reused"], changed["asked_again"]) == (1, 5, 1)
        assert _rows()["3.txt"].answer_object() == invoices.answer(7)
        both = call(*ask, "--labels", "labels.jsonl", "--instruction", "Read it.", code=1)
        assert "another instruction" in both["error"]
        labelled = call(*ask, "--labels", "labels.jsonl")
        assert (labelled["paid"], len(teacher.requests)) == (0, 7)


def test_a_folder_of_negatives_is_taken_with_a_class_that_allows_none(folder: Path, call: Call) -> None:
    Path("letters").mkdir()
    Path("letters/a.txt").write_text("Dear all")
    arguments = ["build", "in", "--labels", "labels.jsonl", "--negatives", "letters", "--validation", "0"]
    found = call(*arguments, "--schema", "tests.dataset.invoices:MaybeInvoice")
    assert (found["examples"], found["negatives"], found["empty"]) == (7, 1, 1)
    assert (
        "RootModel[Invoice | None]"
        in call(*arguments, "--schema", BASIC[3], "--output", "o.jsonl", code=1)["error"]
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--labels", "labels.jsonl", "--top-k", "3"], "leave --top-k out"),
        (["--labels", "labels.jsonl", "--pairs", "labels.jsonl"], "leave --pairs out"),
        (["--extract"], "--teacher"),
        (["--pairs", "labels.jsonl", "--negatives", "in"], "leave --negatives out"),
        (["--labels", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--labels", "labels.jsonl", "--api-base", "http://x"], "leave --api-base out"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    folder: Path, call: Call, options: list[str], reason: str
) -> None:
    assert reason in call(*BASIC, *options, code=1)["error"]
    assert not Path("data.jsonl").exists()
