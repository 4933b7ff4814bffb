"""Rows that teach to leave a field out: the text without the lines of its value, the answer without the field."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.dataset.absent_fields import rows_without
from llama_index_finetune_structured.example import Example


class Bill(BaseModel):
    number: str
    total: str
    due: str | None = None
    items: list[str] = []


class Strict(BaseModel):
    number: str
    due: str | None


def _row(text: str, answer: BaseModel | dict[str, Any], output_cls: type[BaseModel] = Bill) -> Example:
    said = answer if isinstance(answer, dict) else answer.model_dump(exclude_unset=True)
    schema = {"title": output_cls.__name__, **output_cls.model_json_schema()}
    [row] = FinetuneDataset.from_pairs([(text, said)], schema=schema)
    return row


def _made(text: str, answer: BaseModel | dict[str, Any], output_cls: type[BaseModel] = Bill) -> list[Any]:
    found = rows_without([_row(text, answer, output_cls)], ["due"])
    return [(row.messages[-1].content, json.loads(row.answer_text())) for row in found]


def test_the_line_of_the_value_goes_and_so_does_the_field() -> None:
    made = _made("Bill A-1\nPay by 3 May\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May"))
    assert made == [("Bill A-1\nTotal 7.50", {"number": "A-1", "total": "7.50"})]


def test_no_gap_tells_that_something_was_left_out() -> None:
    made = _made("Bill A-1\n\nPay by 3 May\n\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May"))
    assert made[0][0] == "Bill A-1\n\nTotal 7.50"
    made = _made("Bill A-1\n\nTotal 7.50\n\nPay by 3 May", Bill(number="A-1", total="7.50", due="3 May"))
    assert made[0][0] == "Bill A-1\n\nTotal 7.50"


def test_a_field_that_the_schema_wants_becomes_null() -> None:
    made = _made("Bill A-1\nPay by 3 May", Strict(number="A-1", due="3 May"), Strict)
    assert made == [("Bill A-1", {"number": "A-1", "due": None})]


def test_no_row_is_made_where_more_than_the_field_would_go() -> None:
    shared = "Bill A-1, pay 7.50 by 3 May"
    assert not _made(shared, Bill(number="A-1", total="7.50", due="3 May"))
    assert not _made("Pay by 3 May", {"due": "3 May", "number": "none", "total": "none"})
    assert not _made("Bill A-1\nPay soon\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May"))
    assert not _made("Bill A-1\nTotal 7.50", Bill(number="A-1", total="7.50"))
    assert not _made("Bill A-1\nTotal 7.50\n3 May", Bill(number="A-1", total="3 May", due="3 May"))


def test_a_value_inside_of_a_longer_word_or_number_is_another_one() -> None:
    made = _made(
        "Bill A-1\nPay by 3 May\nWritten 13 May\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May")
    )
    assert made == [("Bill A-1\nWritten 13 May\nTotal 7.50", {"number": "A-1", "total": "7.50"})]


def test_a_value_that_stands_elsewhere_too_keeps_its_place() -> None:
    made = _made("Bill A-1\nA-1: pay by 3 May\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May"))
    assert made == [("Bill A-1\nTotal 7.50", {"number": "A-1", "total": "7.50"})]


_WORDS = st.text("abcdefgh", min_size=3, max_size=6)


@given(st.lists(_WORDS, min_size=3, max_size=8, unique=True), st.data())
def test_what_is_made_has_no_value_of_the_field_and_every_other_line(
    words: list[str], data: st.DataObject
) -> None:
    due, number, total, *others = words
    lines = data.draw(st.permutations([f"due {due}", f"no {number}", f"sum {total}", *others]))
    for text, answer in _made("\n".join(lines), Bill(number=number, total=total, due=due)):
        assert answer == {"number": number, "total": total}
        assert text.split("\n") == [line for line in lines if line != f"due {due}"]
