"""YAML schemas with money, decimals, locales and rules on sums."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import BaseModel

from llama_index_finetune_structured import Money, load_schema
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.stated_rules import RULES, answer_problems

WHOLE = """\
name: Invoice
locales: [de, en_GB]
fields:
  day: {type: date, description: Of the invoice.}
  count: {type: integer, locales: [de], min: 0}
  discount: decimal?
  total: money
  items: list of Item
types:
  Item: {fields: {amount: decimal, rank: integer}}
rules:
  - {sum: "items[].amount", equals: total.amount, tolerance: 0.01}
  - {sum: [discount, total.amount], equals: total.amount}
"""
ANSWER = {
    "day": "3.4.2026",
    "count": "1.000",
    "discount": "0,00",
    "total": {"amount": "10,00", "currency": "€"},
    "items": [{"amount": "4,00", "rank": 1}, {"amount": "6,00", "rank": 2}],
}


def _load(tmp_path: Path, text: str) -> type[BaseModel]:
    path = tmp_path / "schema.yaml"
    path.write_text(text, encoding="utf-8")
    return load_schema(path)


def test_decimals_money_and_dates_are_read_as_their_locales_write_them(tmp_path: Path) -> None:
    found = _load(tmp_path, WHOLE).model_validate_json(json.dumps(ANSWER))
    assert found.model_dump()["day"] == date(2026, 4, 3)
    assert found.model_dump()["count"] == 1000
    assert found.model_dump()["items"][0] == {"amount": Decimal("4.00"), "rank": 1}
    assert vars(found)["total"] == Money(Decimal("10.00"), "EUR")


def test_without_locales_decimals_and_money_are_those_of_json(tmp_path: Path) -> None:
    bare = _load(tmp_path, "name: A\nfields: {price: money, rate: {type: decimal, max: 5}}\n")
    found = bare.model_validate_json('{"price": {"amount": 1.5}, "rate": "2.5"}')
    assert vars(found) == {"price": Money(Decimal("1.5")), "rate": Decimal("2.5")}
    assert bare.model_json_schema()["$defs"]["Money"]["description"] == "An amount of money."


def test_rules_on_sums_stand_in_the_json_schema_and_are_judged_by_it_alone(tmp_path: Path) -> None:
    schema = json.loads(json.dumps(_load(tmp_path, WHOLE).model_json_schema()))
    assert [rule["equals"] for rule in schema[RULES]] == ["total.amount", "total.amount"]
    assert answer_problems(schema, ANSWER, ()) == ()
    broken = ANSWER | {"total": {"amount": "1.000,00", "currency": None}}
    assert answer_problems(schema, broken, ()) == ("items[].amount is 10.00, and total.amount is 1000.00",)
    assert answer_problems(schema, ANSWER | {"discount": None, "items": []}, ()) == (), "nothing to add"
    near = ANSWER | {"total": {"amount": "10,01", "currency": None}, "discount": None}
    assert answer_problems(schema, near, ()) == ()
    strange = {**schema, RULES: [{"sum": 3}, "x"]}
    assert all("cannot be applied" in text for text in answer_problems(strange, ANSWER, ()))


@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("equals: total.amount, tol", "equals: toal, tol", r":12: rules.0.equals: 'toal' leads to no number"),
        ('"items[].amount"', "items.amount", r":12: rules.0.sum: 'items.amount' leads to no number"),
        ("[de, en_GB]", "[xx]", r":2: locales: locale 'xx': not known"),
        ("discount: decimal?", "discount: {type: string, locales: [de]}", r"locales apply only to decimal"),
        ("tolerance: 0.01", "tolerance: -1", r":12: rules.0.tolerance: .* greater than or equal to 0"),
        ("decimal?", "price", r"unknown type 'price'.*did you mean 'money'"),
        ("locales: [de, en_GB]", "locale: [de]", r"did you mean locales"),
    ],
)
def test_mistakes_name_their_line_and_what_was_expected(
    tmp_path: Path, right: str, wrong: str, error: str
) -> None:
    with pytest.raises(ConfigurationError, match=error):
        _load(tmp_path, WHOLE.replace(right, wrong, 1))
