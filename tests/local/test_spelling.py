"""An answer is trained with the numbers, constants and texts that its grammar can write, equal to those given."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, Field, IPvAnyAddress

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.local.model.prompts import trained_text
from llama_index_finetune_structured.local.schema.bounds import learn_bounds, schema_key
from llama_index_finetune_structured.local.schema.grammar_schema import grammar_schema
from tests.local.grammar_walks import compiled, refused_from

INTEGER, NUMBER = {"type": "integer"}, {"type": "number"}
ROWS: list[tuple[dict[str, Any], str, str]] = [
    (INTEGER, "2.0", "2"),
    (INTEGER, "2e3", "2000"),
    (NUMBER, "2.0", "2.0"),
    ({"anyOf": [{"type": "string"}, INTEGER]}, "2.0", "2"),
    ({"anyOf": [INTEGER, NUMBER]}, "2.5", "2.5"),
    ({"type": ["integer", "null"]}, "-3.0", "-3"),
    (NUMBER | {"maximum": 0}, "0.0", "0"),
    (NUMBER | {"minimum": 0}, "-0.0", "0"),
    ({"const": 1.0}, "1.0", "1"),
    ({"const": 1}, "1.0", "1"),
    ({"enum": [True, 1, 2.5]}, "1.0", "1"),
    ({"enum": [True, 1, 2.5]}, "true", "true"),
    ({"enum": [[1.0, "a"], [3]]}, "[3.0]", "[3]"),
    ({"enum": [{"b": 1.0, "a": 2}, {"a": 1, "b": 2.5}]}, '{"a":2.0,"b":1}', '{"b":1,"a":2}'),
    ({"type": "string", "pattern": r"^\w+ [\w.]+$"}, '"größe Łódź."', '"größe Łódź."'),
    ({"type": "string", "pattern": r"(\w+\.)+[0-9]+"}, '"a.ö.1"', '"a.ö.1"'),
    ({"enum": ["never", "2026-01-01"], "format": "date"}, '"never"', '"never"'),
    (NUMBER | {"minimum": 0, "maximum": 1e300}, "7.5", "7.5"),
]


@pytest.mark.parametrize(("schema", "given", "trained"), ROWS)
def test_a_value_is_trained_as_its_grammar_writes_it(
    schema: dict[str, Any], given: str, trained: str
) -> None:
    whole = {"type": "object", "properties": {"v": schema}, "required": ["v"]}
    (row,) = FinetuneDataset.from_pairs([("q", f'{{"v":{given}}}')], schema=whole)
    assert trained_text(row) == f'{{"v":{trained}}}'
    assert json.loads(trained_text(row)) == json.loads(f'{{"v":{given}}}')
    grammar = compiled(whole, schema_key(whole), learn_bounds([row]))
    assert grammar is not None
    assert refused_from(grammar, trained_text(row)) is None


@pytest.mark.parametrize("highest", [{"maximum": 0.5}, {"exclusiveMaximum": 0.9}, {"maximum": 1}])
def test_a_number_that_must_exceed_0_does(highest: dict[str, float]) -> None:
    grammar = compiled(NUMBER | {"exclusiveMinimum": 0} | highest)
    assert grammar is not None
    assert refused_from(grammar, "0") is not None
    assert refused_from(grammar, "0.25") is None
    assert refused_from(grammar, "0.000000001") is None


class Amounts(BaseModel):
    above: Decimal = Field(gt=0)
    between: Decimal = Field(ge=-1, le=1000)
    large: Decimal = Field(lt=Decimal("1e24"))
    free: Decimal


@pytest.mark.parametrize("text", ["1E+2", "1E-8", "0E-3", "25", "-0.10"])
def test_a_decimal_is_trained_without_exponent(text: str) -> None:
    value = Decimal(text)
    answer = Amounts(above=max(value, Decimal("1E-9")), between=value, large=value, free=value)
    (row,) = FinetuneDataset.from_pairs([("q", answer)])
    assert row.answer_schema is not None
    assert Amounts.model_validate_json(trained_text(row)) == answer
    grammar = compiled(grammar_schema(Amounts), schema_key(row.answer_schema), learn_bounds([row]))
    assert grammar is not None
    assert refused_from(grammar, trained_text(row)) is None


def test_an_address_of_either_version_is_one() -> None:
    class Host(BaseModel):
        address: IPvAnyAddress

    grammar = compiled(grammar_schema(Host))
    assert grammar is not None
    for text, allowed in [("10.0.0.7", True), ("2001:db8::7", True), ("10.0.0", False), ("host", False)]:
        assert (
            refused_from(grammar, json.dumps({"address": text}, separators=(",", ":"))) is None
        ) is allowed
