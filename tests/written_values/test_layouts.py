"""Amounts of documents of any layout are found where they stand, and read back as the values that they are."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured import AsWritten, DocumentText, label_documents
from llama_index_finetune_structured.written_values.answers import read_answer
from llama_index_finetune_structured.written_values.kinds import WrittenKind, stands_in
from llama_index_finetune_structured.written_values.numbers import read_number
from llama_index_finetune_structured.written_values.readings import DocumentTexts, Reading
from tests.written_values.layouts import STYLES, Bill, bills, scanned


@given(bills(), st.data())
@settings(max_examples=60)
def test_every_amount_is_found_and_read_back_in_each_locale_that_writes_so(
    bill: Bill, data: st.DataObject
) -> None:
    kind = WrittenKind("decimal", (data.draw(st.sampled_from(bill.style.locales)),))
    document = DocumentTexts([bill.text])
    for amount in bill.amounts:
        spelled = kind.spelling(kind.text(amount), document)
        assert stands_in(spelled, document.texts), (amount, spelled)
        assert kind.read(spelled, document) == Reading(amount)


@given(bills(), st.lists(st.sampled_from([name for style in STYLES for name in style.locales]), max_size=3))
@settings(max_examples=60)
def test_no_amount_becomes_another_one_whatever_locales_are_named(bill: Bill, locales: list[str]) -> None:
    """What cannot be found for sure is trained in its canonical text."""
    kind, document = WrittenKind("decimal", tuple(locales)), DocumentTexts([bill.text])
    for amount in bill.amounts:
        spelled = kind.spelling(kind.text(amount), document)
        assert kind.read(spelled, document) == Reading(amount)


@given(bills(), st.integers(0, 2**12))
@settings(max_examples=60)
def test_no_amount_of_a_scan_becomes_another_one(bill: Bill, seed: int) -> None:
    kind = WrittenKind("decimal", bill.style.locales[:1])
    document = DocumentTexts([scanned(bill.text, seed)])
    for amount in bill.amounts:
        assert kind.read(kind.spelling(kind.text(amount), document), document) == Reading(amount)


class Amounts(BaseModel):
    """The amounts of a document."""

    amounts: list[Annotated[Decimal, AsWritten()]]


@given(bills())
@settings(max_examples=20)
def test_labels_of_generated_documents_become_rows_that_are_read_back_without_a_locale(bill: Bill) -> None:
    made = label_documents(
        [DocumentText("a", bill.text)], Amounts, labels={"a": Amounts(amounts=[*bill.amounts])}
    )
    assert made.problems == ()
    [row] = made.data
    read = read_answer(row.answer_schema, row.answer_object(), [bill.text])
    assert (read.unsure, read.unreadable) == ((), ())
    assert Amounts.model_validate(read.value).amounts == [*bill.amounts]


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [
        ("Summe -€ 1.834,40", "-1834.40", "-€ 1.834,40"),
        ("Gutschrift (1.834,40 €)", "-1834.40", "(1.834,40 €)"),
        ("Gutschrift 1.834,40-", "-1834.40", "1.834,40-"),
        ("Rabatt -19 %", "-19", "-19"),
        ("Preis 1.834,-", "1834", "1.834"),
        ("A-12,50 und B-3", "12.50", "12,50"),
        ("von 10-12,50", "12.50", "12,50"),
        ("(netto 12,50)", "12.50", "12,50"),
    ],
)
def test_signs_before_after_and_around_an_amount_are_part_of_it(text: str, value: str, written: str) -> None:
    kind, document = WrittenKind("decimal", ("de",)), DocumentTexts([text])
    assert kind.spelling(value, document) == written
    assert kind.read(written, document) == Reading(Decimal(value))


def test_no_cents_tell_the_symbol_of_decimals() -> None:
    assert read_number("1.834,-", [], DocumentTexts()) == Reading(Decimal(1834))
    assert read_number("1'834.-", [], DocumentTexts()) == Reading(Decimal(1834))
