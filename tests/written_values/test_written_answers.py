"""Values as documents write them: from labels through training, serving and capture to the scorecard."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage, ChatResponse
from pydantic import BaseModel, Field, ValidationError

from llama_index_finetune_structured import (
    AsWritten,
    ConfigurationError,
    DatasetError,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    Money,
    capture,
    check,
    compare,
    trust_of,
)
from llama_index_finetune_structured.answer_values import trained_value
from llama_index_finetune_structured.capture import read_examples
from llama_index_finetune_structured.llms.structured import StructuredCall
from tests.capture.fakes import EchoLLM


class Item(BaseModel):
    name: str
    amount: Annotated[Decimal, AsWritten("de")]


class Invoice(BaseModel):
    """An invoice."""

    day: Annotated[date, AsWritten("de")]
    items: list[Item]
    total: Annotated[Money, AsWritten("de")]
    pieces: Annotated[int, AsWritten("de")] | None = None


class Amount(BaseModel):
    amount: Annotated[Decimal, AsWritten()]


TEXT = "Rechnung vom 3. April 2026: Schrauben 1.200,00, Nägel 634,40, 1.500 Stück. Summe 1.834,40 €"
LABEL = Invoice(
    day=date(2026, 4, 3),
    items=[Item(name="Schrauben", amount=Decimal(1200)), Item(name="Nägel", amount=Decimal("634.40"))],
    total=Money(Decimal("1834.40"), "EUR"),
    pieces=1500,
)
WRITTEN = {
    "day": "3. April 2026",
    "items": [{"name": "Schrauben", "amount": "1.200,00"}, {"name": "Nägel", "amount": "634,40"}],
    "total": {"amount": "1.834,40", "currency": "€"},
    "pieces": "1.500",
}
PLAIN = {
    "day": "2026-04-03",
    "items": [{"name": "Schrauben", "amount": 1200}, {"name": "Nägel", "amount": "634.40"}],
    "total": {"amount": 1834.4, "currency": "EUR"},
    "pieces": 1500,
}


@pytest.mark.parametrize("label", [LABEL, WRITTEN, PLAIN, LABEL.model_dump()])
def test_labels_become_what_stands_in_the_text_whatever_form_they_have(label: Any) -> None:
    [row] = FinetuneDataset.from_pairs([(TEXT, label)], output_cls=Invoice)
    assert row.answer_object() == WRITTEN
    assert Invoice.model_validate_json(row.answer_text()) == LABEL


def test_the_kinds_of_values_travel_with_the_json_schema(tmp_path: Path) -> None:
    schema = Invoice.model_json_schema()
    assert FinetuneDataset.from_pairs([(TEXT, PLAIN)], schema=schema)[0].answer_object() == WRITTEN
    data = FinetuneDataset.from_pairs([(TEXT, LABEL)], output_cls=Invoice)
    data.save(tmp_path / "rows.jsonl")
    again = FinetuneDataset.load(tmp_path / "rows.jsonl")
    assert again[0].answer_schema == schema
    card = compare({"plain": lambda _: PLAIN, "written": lambda _: WRITTEN}, again)
    assert [card.systems[name].exact_match for name in card.systems] == [1, 1]


def test_what_the_text_lacks_is_trained_in_its_canonical_form_and_listed(tiny_llama: Path) -> None:
    rows = [("Summe 12,50", Amount(amount=Decimal("12.5"))), ("Summe 12,50", Amount(amount=Decimal("1.834")))]
    data = FinetuneDataset.from_pairs(rows, output_cls=Amount)
    assert [row.answer_object() for row in data] == [{"amount": "12,50"}, {"amount": "1.8340"}]
    [problem] = check(data, base_model=tiny_llama).problems
    assert (problem.code, problem.line, problem.is_warning) == ("value_not_in_text", 2, True)


def test_a_text_with_two_meanings_is_never_taken_silently(tiny_llama: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"pairs\[0\]: amount: '1.834' may be 1.8340 or 1834; give the value"
    ):
        FinetuneDataset.from_pairs([("1.834", {"amount": "1.834"})], output_cls=Amount)
    known = FinetuneDataset.from_pairs([("1.834 7,50 9,30", {"amount": "1.834"})], output_cls=Amount)
    assert check(known, base_model=tiny_llama, output_cls=Amount).problems == ()
    [row] = known
    moved = row.model_copy(update={"messages": (row.messages[0].model_copy(update={"content": "1.834"}),)})
    [problem] = check([moved], base_model=tiny_llama).problems
    assert (problem.code, problem.message) == ("unsure_value", "amount: '1.834' may be 1.8340 or 1834")
    with pytest.raises(ValidationError, match=r"may be 1\.8340 or 1834"):
        Amount.model_validate_json('{"amount": "1.834"}')


class Due(BaseModel):
    value: Annotated[date, AsWritten("en", "fr")]


class Begins(BaseModel):
    value: Annotated[datetime, AsWritten("en", "fr")]


class Sum(BaseModel):
    value: Annotated[Decimal, AsWritten("en", "de")]


@pytest.mark.parametrize(
    ("text", "label", "meanings"),
    [
        ("Due 08/03/2024", Due(value=date(2024, 3, 8)), "'08/03/2024' may be 2024-08-03 or 2024-03-08"),
        ("Sum 1.834", Sum(value=Decimal(1834)), "'1.834' may be 1.8340 or 1834"),
        (
            "At 08/03/2024 3:30",
            Begins(value=datetime(2024, 3, 8, 15, 30)),
            "'08/03/2024 3:30' may be 2024-08-03T03:30",
        ),
    ],
)
def test_a_label_whose_text_may_mean_something_else_is_listed_with_what_it_may_mean(
    text: str, label: BaseModel, meanings: str
) -> None:
    [problem] = check(FinetuneDataset.from_pairs([(text, label)], output_cls=type(label))).problems
    assert problem.code == "value_not_in_text"
    assert f"where {meanings}" in problem.message
    assert "name only locales that write the one meant" in problem.message


def test_a_wrong_place_of_the_annotation_and_an_unknown_locale_are_named() -> None:
    with pytest.raises(
        ConfigurationError, match="expected Decimal, int, float, date, datetime, time or Money"
    ):

        class Wrong(BaseModel):
            text: Annotated[str, AsWritten("de")]

    with pytest.raises(ConfigurationError, match="locale 'xx'"):
        AsWritten("xx")


def test_limits_hold_for_the_value_and_defaults_stay() -> None:
    class Priced(BaseModel):
        price: Annotated[Decimal, AsWritten("de"), Field(gt=0)] = Decimal(1)
        rate: Annotated[float, AsWritten("de")] = 0.5

    assert Priced.model_validate_json('{"price": "1.000"}').price == 1000
    with pytest.raises(ValidationError, match="greater than 0"):
        Priced.model_validate_json('{"price": "-1,00"}')
    assert trained_value(Priced(price=Decimal("1.834"))) == {"price": "1.8340", "rate": "0.5"}


def _answered(cls: type[BaseModel], text: str, answer: str) -> tuple[Any, StructuredCall]:
    call = StructuredCall(cls, None, None, [ChatMessage(content=text)])
    call.record(ChatResponse(message=ChatMessage(role="assistant", content=answer), raw={"trust": {}}))
    return call.result(), call


def test_a_served_text_with_two_meanings_is_a_problem_of_its_trust() -> None:
    answer, _ = _answered(Amount, "Summe 1.834", '{"amount": "1.834"}')
    assert answer.amount == Decimal("1.834")
    assert trust_of(answer).problems == ("amount: '1.834' may be 1.8340 or 1834",)
    sure, _ = _answered(Amount, "1.834, 1.834,40", '{"amount": "1.834"}')
    assert (sure.amount, trust_of(sure).problems) == (Decimal(1834), ())


@pytest.mark.parametrize("sent", ['{"amount": "1834.40"}', '{"amount": "1.834,40"}', '{"amount": 1834.4}'])
def test_captured_answers_are_kept_as_the_text_has_them(tmp_path: Path, sent: str) -> None:
    with capture(tmp_path / "calls.jsonl"):
        EchoLLM(reply=sent).structured_predict(Amount, PromptTemplate("Summe 1.834,40"))
    [row] = read_examples(tmp_path / "calls.jsonl")
    assert row.answer_object() == {"amount": "1.834,40"}


def test_a_captured_text_with_two_meanings_is_rejected_without_its_value(tmp_path: Path) -> None:
    with capture(tmp_path / "calls.jsonl") as session, pytest.raises(ValueError, match="may be"):
        EchoLLM(reply='{"amount": "1.834"}').structured_predict(Amount, PromptTemplate("Summe 1.834"))
    del session
    rejects = (tmp_path / "calls.rejects.jsonl").read_text(encoding="utf-8")
    assert "unsure_value" in rejects
    assert "amount: has two meanings" in rejects


@pytest.fixture(scope="module")
def copying(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoraLLM:
    """A student that has learned to copy amounts, by its grammar at least."""
    amounts = [Decimal(100 * n + n) / 100 for n in range(1000, 1024)]
    texts = [f"{amount:,.2f}".translate(str.maketrans(",.", ".,")) for amount in amounts]
    pairs = [(text, Amount(amount=amount)) for text, amount in zip(texts, amounts, strict=True)]
    data = FinetuneDataset.from_pairs(pairs, output_cls=Amount)
    assert [row.answer_object()["amount"] for row in data] == texts
    folder = tmp_path_factory.mktemp("copying")
    settings = LoraSettings(rank=2, epochs=1)
    engine = LoraFinetuneEngine(data, base_model=tiny_llama, output_dir=folder, config=settings)
    engine.finetune()
    return LoraLLM.from_adapter(engine.adapter, max_new_tokens=60)


def test_an_adapter_names_the_class_of_its_training_answers(copying: LoraLLM) -> None:
    assert [*copying.answer_classes.values()] == [f"{Amount.__module__}:Amount"]
    assert copying.trained_class() is Amount


def test_a_trained_student_copies_the_text_and_its_class_reads_the_value(copying: LoraLLM) -> None:
    assert copying.bounds.grounded, "amounts in German spelling were found in the prompts"
    answer = copying.structured_predict(Amount, PromptTemplate("{text}"), text="7.654,32")
    [field] = trust_of(answer).fields
    assert field.evidence is not None
    assert field.value == field.evidence.text
    assert str(field.value) in "7.654,32"
    assert isinstance(answer, Amount)
    assert str(answer.amount).replace(".", "") in "765432"
