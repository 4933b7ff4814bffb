"""Invoices as a newcomer has them: a nested class with money, dates and validators, from labels to figures."""

from __future__ import annotations

import random
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.llms.callbacks import llm_completion_callback
from pydantic import BaseModel, Field, field_validator, model_validator

from llama_index_finetune_structured import Example, FinetuneDataset, capture, check, compare
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.evaluation import FieldRule
from tests.capture.fakes import EchoLLM

Money = Annotated[Decimal, Field(gt=0, decimal_places=2, max_digits=12)]


class Payment(Enum):
    TRANSFER = "bank transfer"
    CASH = "cash"


class Item(BaseModel):
    """One line; subtotals are no items."""

    description: str
    quantity: Decimal = Field(gt=0)
    unit_price: Money
    amount: Money
    vat_rate: Literal[0, 7, 19] = 19


class Seller(BaseModel):
    name: str = Field(min_length=1)
    vat_id: str | None = Field(default=None, pattern=r"^[A-Z]{2}[0-9]{9}$")


class Invoice(BaseModel):
    """An invoice, read from its text."""

    number: str
    issued: date
    due: date | None = None
    seller: Seller
    currency: Literal["EUR", "USD", "CHF"]
    items: list[Item] = Field(min_length=1)
    discount: Money | None = None
    total: Money
    payment: Payment | None = None

    @field_validator("currency", mode="before")
    @classmethod
    def _code(cls, value: Any) -> Any:
        return {"€": "EUR", "$": "USD", "Fr.": "CHF"}.get(value, value)

    @model_validator(mode="after")
    def _adds_up(self) -> Invoice:
        found = sum(item.amount for item in self.items) - (self.discount or 0)
        if found != self.total:
            raise ValueError(f"the items add up to {found}, not {self.total}")
        return self


class InvoiceWithOrder(Invoice):
    order: str | None = None


def _invoice(draw: random.Random, number: int) -> Invoice:
    items = []
    for name in draw.sample(["Schrauben M8", "Beratung (Std.)", 'Tisch "Eiche"', "Blumenerde 40 l"], 2):
        quantity = draw.choice([Decimal(draw.randint(1, 60)), Decimal(draw.randint(1, 2000)) / 1000])
        price = Decimal(draw.randint(1000, 400000)) / 100
        amount = max((quantity * price).quantize(Decimal("0.01")), Decimal("0.01"))
        items.append(Item(description=name, quantity=quantity, unit_price=price, amount=amount))
    whole = sum((item.amount for item in items), Decimal(0))
    discount = draw.choice([None, Decimal("0.01")])
    issued = date(2025, 1, 1) + timedelta(days=draw.randint(0, 300))
    return Invoice(
        number=f"00{number}",
        issued=issued,
        due=draw.choice([None, issued + timedelta(days=14)]),
        seller=Seller(name="Müller & Söhne", vat_id=draw.choice([None, "DE123456789"])),
        currency=draw.choice(["EUR", "USD", "CHF"]),
        items=items,
        discount=discount,
        total=whole - (discount or 0),
        payment=draw.choice([None, *Payment]),
    )


def _text(invoice: Invoice, decimal_comma: bool) -> str:
    def money(value: Decimal) -> str:
        text = f"{value:,.2f}"
        return text.translate(str.maketrans(",.", ".,")) if decimal_comma else text

    lines = [f"{item.description}: {item.quantity} x {money(item.unit_price)}" for item in invoice.items]
    day = f"{invoice.issued:%d.%m.%Y}" if decimal_comma else invoice.issued.isoformat()
    return "\n".join([f"Nr. {invoice.number}, {day}", *lines, money(invoice.total)])


INVOICES = [_invoice(random.Random(number), number) for number in range(20)]
PAIRS = [(_text(invoice, number % 2 == 0), invoice) for number, invoice in enumerate(INVOICES)]
DATA = FinetuneDataset.from_pairs(PAIRS, output_cls=Invoice)


def test_every_labelled_invoice_is_read_back_equal_and_can_be_said_under_the_grammar(
    tiny_llama: Path,
) -> None:
    assert [Invoice.model_validate_json(row.answer_text()) for row in DATA] == INVOICES
    assert list(DATA[0].answer_object()) == list(Invoice.model_fields)
    report = check(DATA, base_model=tiny_llama)
    assert (report.good, report.problems) == (20, ())


def test_answers_may_be_what_model_dump_gives() -> None:
    pairs = [(text, i.model_dump()) for text, i in PAIRS]
    data = FinetuneDataset.from_pairs(pairs, output_cls=Invoice)
    assert [row.id for row in data] == [row.id for row in DATA]
    with pytest.raises(DatasetError, match=r"pairs\[0\].*model_dump\(mode='json'\)"):
        FinetuneDataset.from_pairs(pairs)


def test_a_python_value_that_the_class_refuses_is_named() -> None:
    wrong = INVOICES[0].model_dump() | {"total": Decimal("1.00")}
    with pytest.raises(DatasetError, match=r"pairs\[0\]: the items add up to"):
        FinetuneDataset.from_pairs([("q", wrong)], output_cls=Invoice)


@pytest.mark.parametrize(
    "pairs",
    [
        [{"text": "q", "answer": "a"}],
        ["ab"],
        [{"q", "a"}],
        [("q",)],
        [("q", "a", "b")],
        [None],
        {"qu": "a"},
        [Seller(name="a")],
    ],
)
def test_what_is_no_pair_is_refused_even_where_it_has_two_parts(pairs: Any) -> None:
    with pytest.raises(DatasetError, match=r"pairs\[0\]: expected \(input, answer\), found"):
        FinetuneDataset.from_pairs(pairs)


def _respelt(row: Example) -> dict[str, Any]:
    """The answer with its Decimals spelt otherwise: as numbers, and with one more zero."""
    value = row.answer_object()
    items = [
        item | {"quantity": float(item["quantity"]), "amount": f"{item['amount']}0"}
        for item in value["items"]
    ]
    return value | {"items": items, "total": float(value["total"])}


def test_money_is_compared_by_its_value_not_its_spelling() -> None:
    assert compare({"respelt": _respelt}, DATA).systems["respelt"].exact_match == 1.0


def test_an_answer_is_compared_after_the_normalising_validators_of_its_class() -> None:
    def with_symbol(row: Example) -> dict[str, Any]:
        value = row.answer_object()
        return value | {"currency": {"EUR": "€", "USD": "$", "CHF": "Fr."}[value["currency"]]}

    card = compare({"symbol": with_symbol}, DATA, output_cls=Invoice)
    assert card.systems["symbol"].exact_match == 1.0


@pytest.mark.parametrize(
    ("gold", "answer", "tolerance", "similarity"),
    [
        ("25", "25.00", None, 1.0),
        ("25", 25, None, 1.0),
        (0.29, "0.29", None, 1.0),
        ("1E+2", "100", None, 1.0),
        ("1000000000.01", "1000000000.02", None, 0.0),  # a relative difference of 1e-11
        ("1834.40", "1.83440", None, 0.0),
        ("100", "101", 0.05, 1.0),
        ("007", "7", None, 0.0),
        ("1", True, None, 0.0),
        ("25", [25], None, 0.0),
    ],
)
def test_a_decimal_in_text_is_a_number(
    gold: Any, answer: Any, tolerance: float | None, similarity: float
) -> None:
    rule = FieldRule("number") if tolerance is None else FieldRule("number", tolerance=tolerance)
    assert rule.similarity(gold, answer) == rule.similarity(answer, gold) == similarity


def test_the_class_and_not_its_json_schema_decides_what_is_valid() -> None:
    def ten_times(row: Example) -> dict[str, Any]:
        value = row.answer_object()
        return value | {"total": str(Decimal(value["total"]) * 10)}

    nameless = [row.model_copy(update={"answer_class": None}) for row in DATA]
    assert compare({"wrong": ten_times}, nameless).systems["wrong"].schema_valid == 1.0
    assert compare({"wrong": ten_times}, nameless, output_cls=Invoice).systems["wrong"].schema_valid == 0.0
    assert compare({"wrong": ten_times}, DATA).systems["wrong"].schema_valid == 0.0


def test_a_new_optional_field_is_told_to_be_untaught(tiny_llama: Path) -> None:
    result = DATA.revalidate(InvoiceWithOrder)
    assert repr(result) == "<Revalidation: 20 rows still valid, 0 migrated, 0 lost>"
    report = check(result.examples, base_model=tiny_llama)
    assert [problem.code for problem in report.problems] == ["field_untaught"]
    assert "'order' of InvoiceWithOrder: filled in 0 of 20 rows" in str(report)


def test_a_migration_may_return_what_model_dump_gives() -> None:
    class Dated(BaseModel):
        issued: date
        total: Decimal = Field(gt=0)

    result = DATA.revalidate(
        Dated, migrate=lambda old: {"issued": date(2025, 1, 1), "total": Decimal(old["total"])}
    )
    assert len(result.examples) == 20


def test_a_long_trained_span_is_shown_by_its_start_and_end() -> None:
    report = check(DATA, target="gradient")
    assert report.span is not None
    assert len(report.span.trained_text) > 2000
    assert len(str(report).splitlines()[-1]) < 1000
    assert repr(report.span.trained_text[-50:])[1:] in str(report)


class Teacher(EchoLLM):
    """Answers each text with its invoice."""

    @llm_completion_callback()
    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        invoice = next(invoice for text, invoice in PAIRS if text in prompt)
        return CompletionResponse(text=invoice.model_dump_json())


def test_invoices_of_a_teacher_are_captured_with_their_documents(tmp_path: Path) -> None:
    path = tmp_path / "invoices.jsonl"
    with capture(path, output_cls=Invoice):
        for number, (text, invoice) in enumerate(PAIRS):
            with capture.document(f"file-{number // 2}"):
                found = Teacher().structured_predict(Invoice, PromptTemplate("{text}"), text=text)
            assert found == invoice
    data = FinetuneDataset.load(path)
    assert [row.answer_text() for row in data] == [row.answer_text() for row in DATA]
    train, held_out = data.split(0.5, group_by="document", seed=0)
    documents = [{row.document_id for row in side} for side in (train, held_out)]
    assert len(train) + len(held_out) == 20
    assert not documents[0] & documents[1]
