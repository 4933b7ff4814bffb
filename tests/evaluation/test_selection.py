"""select() returns the rows that a student is least sure of, of texts that are not alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured import FinetuneDataset, LoraLLM, aselect, select
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError, StructuredAnswerError
from llama_index_finetune_structured.evaluation.run.systems import question_of
from llama_index_finetune_structured.evaluation.spread import least_sure
from llama_index_finetune_structured.example import Example
from llama_index_finetune_structured.trust.answer_trust import Trust
from llama_index_finetune_structured.trust.lookup import remember_trust
from tests import exporting
from tests.exporting import Colour


class Word(BaseModel):
    word: str


class Student:
    """Answers with the question's last word; ``sure``: question -> probability. Counts its calls."""

    def __init__(self, sure: Callable[[str], float | Exception | None]) -> None:
        self.sure, self.asked = sure, list[str]()

    def answer(self, example: Example) -> Word:
        question = question_of(example)
        self.asked.append(question)
        probability = self.sure(question)
        if isinstance(probability, Exception):
            raise probability
        answer = Word(word=question.rpartition(" ")[2])
        remember_trust(answer, Trust(probability=probability))
        return answer


def quiet(data: Any, n: int, sure: Callable[[str], Any] | Student, **options: Any) -> FinetuneDataset:
    student = sure if isinstance(sure, Student) else Student(sure)
    return select(data, n, llm=student.answer, output_cls=Word, show_progress=False, **options)


def questions(rows: FinetuneDataset) -> list[str]:
    return [question_of(row) for row in rows]


def number(question: str) -> float:
    return float(question.rpartition(" ")[2]) / 100


TOPICS = [
    "play the song",
    "book a table for",
    "what is the weather in",
    "rate this novel",
    "find a film named",
]


def test_the_least_sure_rows_come_first_with_the_students_answer() -> None:
    rows = quiet([f"{topic} {n}" for n in range(1, 21) for topic in TOPICS[:1]], 3, number)
    assert [row.metadata for row in rows] == sorted(
        (row.metadata for row in rows), key=lambda facts: float(str(facts["student_probability"]))
    )
    assert rows[0].metadata == {"student_answer": {"word": "1"}, "student_probability": 0.01}
    assert all(number(question) <= 0.06 for question in questions(rows))
    assert {row.answer.content for row in rows} == {""}


def test_rows_that_are_alike_leave_room_for_the_others() -> None:
    """The plain least sure ones would all be of one topic."""
    sure = {f"play the song called {word}": 0.1 for word in ("anna", "boom", "cider", "dust", "ember")}
    sure |= {f"{topic} {n}": 0.2 + n / 1000 for n, topic in enumerate(TOPICS[1:])}
    sure |= {f"boil an egg number {n} please": 0.9 for n in range(30)}
    chosen = questions(quiet(list(sure), 5, sure.__getitem__))
    assert sum("song" in question for question in chosen) < 4
    assert not any("egg" in question for question in chosen)


def test_nearly_equal_rows_are_taken_once() -> None:
    data = [
        "Play Fireworks by Katy Perry!",
        "play fireworks by katy perry",
        "Play  Fireworks, by Katy Perry.",
    ]
    assert len(quiet([*data, "Book a table"], 4, lambda _: 0.5)) == 2


def test_answers_that_do_not_fit_come_first_and_failed_calls_are_left_out() -> None:
    outcomes: dict[str, Any] = {
        "one apple": 0.2,
        "two pears": StructuredAnswerError("no JSON"),
        "three plums": ConnectionError("down"),
        "four figs": None,
    }
    rows = quiet(list(outcomes), 4, outcomes.__getitem__)
    assert questions(rows) == ["two pears", "one apple"]
    assert rows[0].metadata["student_answer"] is None
    assert "no JSON" in str(rows[0].metadata["student_error"])


@given(seed=st.integers(0, 99), n=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_the_same_arguments_give_the_same_rows_each_once(seed: int, n: int) -> None:
    source = random.Random(seed)
    texts = [f"{source.choice(TOPICS)} {source.choice('abcdefgh')} {source.randrange(30)}" for _ in range(60)]
    sure = [source.random() for _ in texts]
    chosen = least_sure(texts, sure, n, seed)
    assert chosen == least_sure(texts, sure, n, seed)
    assert len(set(chosen)) == len(chosen) == min(n, len(chosen))
    assert [sure[at] for at in chosen] == sorted(sure[at] for at in chosen)


@pytest.mark.parametrize(
    "texts", [["?!", "...", ""], ["a"], ["", "", ""], ["颜色是红的", "今天天气好吗"], ["𝔘", "é", "\ud83d"]]
)
def test_texts_without_words_and_without_spaces_are_rows_too(texts: list[str]) -> None:
    chosen = least_sure(texts, [0.5] * len(texts), 2, 0)
    assert len(chosen) == min(2, len(set(texts)))


def test_ten_thousand_rows_are_selected_from() -> None:
    texts = [f"{TOPICS[n % 5]} {n % 977} number {n}" for n in range(10_000)]
    chosen = least_sure(texts, [(n * 7919 % 10_000) / 10_000 for n in range(10_000)], 200, 0)
    assert len(chosen) == 200


def test_a_stopped_selection_asks_only_for_the_missing_answers(tmp_path: Path) -> None:
    data = [f"{topic} {n}" for n in range(4) for topic in TOPICS]

    def stopped(question: str) -> float:
        if len(first.asked) > 8:
            raise KeyboardInterrupt
        return number(question)

    first, second, third = Student(stopped), Student(number), Student(number)
    with pytest.raises(KeyboardInterrupt):
        quiet(data, 5, first, cache_dir=tmp_path, concurrency=1)
    chosen = questions(quiet(data, 5, second, cache_dir=tmp_path))
    assert len(second.asked) == len(data) - 8
    assert questions(quiet(data, 5, third, cache_dir=tmp_path)) == chosen == questions(quiet(data, 5, number))
    assert third.asked == []


def test_the_file_of_the_rows_is_read_back_for_labels(tmp_path: Path) -> None:
    rows = quiet(["Größe 颜色 1", "play 2"], 2, number)
    assert list(FinetuneDataset.load(rows.save(tmp_path / "rows.jsonl"))) == list(rows)


def test_examples_keep_their_facts_and_lose_their_answer() -> None:
    examples = [
        example.model_copy(update={"metadata": {"page": 3}, "document_id": "d"})
        for example in exporting.colours(3)
    ]
    student = Student(lambda _: 0.5)
    rows = select(examples, 2, llm=lambda row: student.answer(row), show_progress=False, output_cls=Word)
    assert all(row.document_id == "d" and row.metadata["page"] == 3 for row in rows)
    assert all(row.answer.content == "" and row.answer_schema is not None for row in rows)


def test_a_tuned_model_selects_by_its_own_probabilities(tmp_path: Path) -> None:
    llm = LoraLLM.from_adapter(
        exporting.train(exporting.save_base("llama", tmp_path / "base"), tmp_path / "run").adapter
    )
    data = [f"Describe colour {n}." for n in range(6)]
    rows = asyncio.run(aselect(data, 2, llm=llm, schema=Colour.model_json_schema(), show_progress=False))
    assert len(rows) == 2
    for row in rows:
        Colour.model_validate(row.metadata["student_answer"])
        assert 0 < float(str(row.metadata["student_probability"])) < 1
    silent = llm.model_copy(update={"confidence": False})
    with pytest.raises(ConfigurationError, match="none has a probability"):
        select(data, 2, llm=silent, output_cls=Colour, show_progress=False)


@pytest.mark.parametrize(
    ("data", "n", "options", "error"),
    [
        (["a"], 0, {}, ConfigurationError),
        ([], 1, {}, DatasetError),
        ("a text", 1, {}, DatasetError),
        ([{"no": "row"}], 1, {}, DatasetError),
        (["a"], 1, {"output_cls": None}, ConfigurationError),
        (["a"], 1, {"concurrency": 0}, ConfigurationError),
    ],
)
def test_wrong_input_is_refused_before_the_first_call(
    data: Any, n: int, options: dict[str, Any], error: type[Exception]
) -> None:
    student = Student(number)
    with pytest.raises(error, match=r"select|n=|positive"):
        select(data, n, llm=student.answer, **{"output_cls": Word, **options})
    assert student.asked == []


def test_a_student_that_cannot_be_reached_is_an_error_with_its_reason() -> None:
    with pytest.raises(ConfigurationError, match=r"1 calls failed.*down"):
        quiet(["a"], 1, lambda _: ConnectionError("down"))
