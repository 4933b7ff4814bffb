"""One class decides: check, compare and serving give the same answers and validity on every row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llama_index_finetune_structured import Example, FinetuneDataset, Scorecard, check, compare
from llama_index_finetune_structured.answer_classes import class_of
from llama_index_finetune_structured.answer_values import answer_value
from llama_index_finetune_structured.errors import StructuredAnswerError
from llama_index_finetune_structured.evaluation.results import ScoredRow
from llama_index_finetune_structured.json_schema import find_error
from llama_index_finetune_structured.llms.structured import parse_answer
from tests.evaluation.answer_kinds import KINDS, texts_of

CASES = [
    (cls, text, is_valid, valid[0])
    for cls, valid, invalid in KINDS
    for text, is_valid in texts_of(valid, invalid)
]


def _served(cls: type[BaseModel], text: str) -> BaseModel | None:
    """What ``structured_predict`` of a LoraLLM returns for a model's text; None where it raises."""
    try:
        return parse_answer(cls, text)
    except StructuredAnswerError:
        return None


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> FinetuneDataset:
    """One row a text, with a valid answer as gold, written to a file and read again."""
    rows = [
        FinetuneDataset.from_pairs([(f"Question {number}", gold)], output_cls=cls)[0]
        for number, (cls, _, _, gold) in enumerate(CASES)
    ]
    path = FinetuneDataset(rows).save(tmp_path_factory.mktemp("kinds") / "rows.jsonl")
    return FinetuneDataset.load(path)


@pytest.fixture(scope="module")
def card(saved: FinetuneDataset) -> Scorecard:
    number = {row.id: n for n, row in enumerate(saved)}

    def as_text(row: Example) -> str:
        return CASES[number[row.id]][1]

    def as_object(row: Example) -> Any:
        cls, text, _, _ = CASES[number[row.id]]
        return parse_answer(cls, text)

    return compare({"texts": as_text, "objects": as_object}, saved, show_progress=False)


def test_there_are_more_than_thirty_kinds_of_classes_and_all_are_found_again(saved: FinetuneDataset) -> None:
    assert len(KINDS) > 30
    assert [class_of(row) for row in saved] == [cls for cls, *_ in CASES]


@pytest.mark.parametrize("system", ["texts", "objects"])
def test_compare_and_serving_agree_on_validity_and_values(card: Scorecard, system: str) -> None:
    assert not card.left_out
    for row, (cls, text, is_valid, _) in zip(card.rows, CASES, strict=True):
        answer, served = row.answers[system], _served(cls, text)
        assert (served is not None) == answer.valid == is_valid, (cls, text, answer.error)
        if served is not None:
            assert answer.value == answer_value(served), (cls, text)


def _outcome(row: ScoredRow) -> dict[str, Any]:
    return {name: (answer.valid, answer.exact, answer.value) for name, answer in row.answers.items()}


def test_the_class_given_and_the_class_of_the_rows_are_the_same(
    card: Scorecard, saved: FinetuneDataset
) -> None:
    by_class: dict[type[BaseModel], list[int]] = {}
    for number, (cls, *_) in enumerate(CASES):
        by_class.setdefault(cls, []).append(number)
    for cls, numbers in by_class.items():
        answers = {saved[number].id: CASES[number][1] for number in numbers}
        rows = [saved[number] for number in numbers]

        def as_text(row: Example, answers: dict[str, str] = answers) -> str:
            return answers[row.id]

        given = compare({"texts": as_text}, rows, output_cls=cls, show_progress=False)
        for number, row in zip(numbers, given.rows, strict=True):
            assert _outcome(row)["texts"] == _outcome(card.rows[number])["texts"]
            assert row.gold == card.rows[number].gold


def test_check_refuses_a_line_where_the_class_does_or_the_grammar_cannot_write_it(
    saved: FinetuneDataset, tmp_path: Path
) -> None:
    lines, wrong = [], set()
    for number, (row, (cls, text, _, _)) in enumerate(zip(saved, CASES, strict=True), start=1):
        value = json.loads(row.to_json())
        value["answer"]["content"] = text or " "
        lines.append(json.dumps(value))
        if text[:1] in "{[n" and _is_json(text):
            unwritable = find_error(row.answer_schema or {}, json.loads(text)) is not None
            wrong |= {number} if _served(cls, text) is None or unwritable else set()
        else:
            wrong.add(number)
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(lines) + "\n")
    report = check(path, target="openai")
    assert {problem.line for problem in report.problems if not problem.is_warning} - {0} == wrong


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return False
    return True


MODELS = """
from pydantic import BaseModel, field_validator
print("imported")
class Code(BaseModel):
    code: str
    @field_validator("code")
    @classmethod
    def _upper(cls, value):
        return value.upper()
"""
SCORE = """
import sys
from llama_index_finetune_structured import FinetuneDataset, compare
data = FinetuneDataset.load("rows.jsonl")
def exact():
    card = compare({"lower": lambda row: '{"code": "ab"}'}, data, show_progress=False)
    return card.systems["lower"].exact_match
print(exact(), "models" in sys.modules)
import models
print(exact())
"""


def test_a_file_never_imports_its_class_and_another_process_uses_it_once_it_did(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    data = FinetuneDataset.from_pairs([("q", {"code": "AB"})], output_cls=_local_code())
    rows = [row.model_copy(update={"answer_class": "models:Code"}) for row in data]
    FinetuneDataset(rows).save(tmp_path / "rows.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", SCORE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == ["0.0 False", "imported", "1.0"]


def _local_code() -> type[BaseModel]:
    class Code(BaseModel):
        code: str

    return Code


def test_a_class_of_another_schema_or_no_class_is_not_used(saved: FinetuneDataset) -> None:
    row = saved[0]
    for path in ("tests.evaluation.answer_kinds:Limited", "json:dumps", "no.module:Name", "os", ":", "a:b:c"):
        assert class_of(row.model_copy(update={"answer_class": path})) is None
    assert class_of(row.model_copy(update={"answer_schema": {"type": "object"}})) is None
    assert row.model_copy(update={"answer_class": None}).id == row.id
