"""What an object of any Pydantic class is trained as can be said, and what can be said validates at the first try."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.local.model.prompts import trained_text
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, learn_bounds, schema_key
from llama_index_finetune_structured.local.schema.grammar_schema import grammar_schema
from tests.local.grammar_walks import compiled, drawn, refused_from
from tests.local.random_models import KEYS, LEAVES, Kind, random_model

# Pydantic's, for an IntEnum's member in a union with int.
pytestmark = pytest.mark.filterwarnings("ignore:__int__ returned non-int:DeprecationWarning")
SHORT = AnswerBounds(default_items=3, default_characters=60)


def _unsayable(kind: Kind, seed: int) -> str | None:
    """The text that a random object is trained as and the rest that the grammar refuses; None where it is sayable."""
    (row,) = FinetuneDataset.from_pairs([("q", kind.value(random.Random(seed)))])
    assert row.answer_schema is not None
    grammar = compiled(grammar_schema(kind.annotation), schema_key(row.answer_schema), learn_bounds([row]))
    assert grammar is not None
    text = trained_text(row)
    rest = refused_from(grammar, text)
    return None if rest is None else f"{text} refused from {rest}"


def _invalid(model: type[BaseModel], seeds: range) -> list[str]:
    """Random texts of the class's grammar that the class refuses, with its reason."""
    grammar = compiled(grammar_schema(model), bounds=SHORT)
    assert grammar is not None
    found = []
    for text in filter(None, (drawn(grammar, seed) for seed in seeds)):
        try:
            model.model_validate_json(text)
        except ValidationError as error:
            found.append(f"{text}: {error}")
    return found


def _holder(kind: Kind, *, by_key: bool = False) -> Kind:
    annotation: Any = kind.annotation
    held: Any = dict[annotation, int] if by_key else annotation
    model = create_model("Holder", value=(held, ...), __config__=ConfigDict(ser_json_bytes="utf8"))
    return Kind(model, lambda d: model(value={kind.value(d): 1} if by_key else kind.value(d)))


@pytest.mark.parametrize("name", LEAVES)
def test_every_type_is_sayable_as_trained_and_valid_as_said(name: str) -> None:
    holder = _holder(LEAVES[name])
    assert _invalid(holder.annotation, range(3)) == []
    assert list(filter(None, (_unsayable(holder, seed) for seed in range(8)))) == []


@pytest.mark.parametrize("number", range(len(KEYS)))
def test_every_type_of_key_is_sayable_as_trained_and_valid_as_said(number: int) -> None:
    holder = _holder(KEYS[number], by_key=True)
    assert _invalid(holder.annotation, range(3)) == []
    assert list(filter(None, (_unsayable(holder, seed) for seed in range(3)))) == []


def _check(seeds: range) -> None:
    refused = []
    for seed in seeds:
        kind = random_model(random.Random(seed), depth=2)
        assert _invalid(kind.annotation, range(seed, seed + 1)) == [], seed
        try:
            assert _unsayable(kind, seed) is None, seed
        except DatasetError as error:
            refused.append(str(error))
    # A random union may read a value as another of its types: that is refused by its field's name.
    assert all(
        re.search(r"pairs\[0\]: field_\d.*: is a \w+ and is read as a \w+; give", text) for text in refused
    )
    assert len(refused) <= 1 + len(seeds) // 50


@pytest.mark.parametrize("start", range(0, 100, 10))
def test_answers_of_random_classes_are_sayable_as_trained_and_valid_as_said(start: int) -> None:
    _check(range(start, start + 10))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 3000, 100))
def test_answers_of_many_random_classes_are_sayable_as_trained_and_valid_as_said(start: int) -> None:
    _check(range(start, start + 100))
