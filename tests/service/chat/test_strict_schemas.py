"""The schema of a class is recognised in the form in which OpenAI's SDK sends it."""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, Field

from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.json_schema import schema_validator, without_titles
from llama_index_finetune_structured.service.strict_schemas import all_required, trained_schema
from tests.exporting import Colour


class Kind(enum.Enum):
    STUDIO = "studio"
    LIVE = "live"


class Song(BaseModel):
    """A song."""

    title: str = Field(description="Its title.")
    seconds: int | None = Field(default=None, ge=0)
    price: Decimal = Decimal(1)


class Album(BaseModel):
    """An album."""

    kind: Kind = Kind.STUDIO
    best: Song = Field(description="The song that sold most.")
    other: Song | None = Field(default=None, description="Another one.")
    songs: list[Song] = []
    labels: dict[str, int] = {}
    parts: Annotated[list[Song | Colour], Field(max_length=3)] = []
    rating: Literal[1, 2, 3] = 1


class Node(BaseModel):
    """A tree."""

    name: str
    children: list[Node] = []


@pytest.mark.parametrize("output_cls", [Colour, Song, Album, Node])
def test_the_strict_form_of_a_trained_schema_is_that_schema(output_cls: type[BaseModel]) -> None:
    trained = [without_titles(class_schema(one)) for one in (Node, Album, Song, Colour)]
    expected: Any = without_titles(class_schema(output_cls))
    assert trained_schema(to_strict_json_schema(output_cls), trained) == expected
    assert without_titles(trained_schema(class_schema(output_cls), trained)) == expected


@pytest.mark.parametrize("output_cls", [Colour, Song, Album, Node])
def test_with_all_keys_required_a_trained_schema_takes_what_the_strict_one_takes(
    output_cls: type[BaseModel],
) -> None:
    schema = all_required(class_schema(output_cls))
    validator, strict = schema_validator(schema), schema_validator(to_strict_json_schema(output_cls))
    song = {"title": "Echoes", "seconds": None, "price": "1"}
    album = {
        "kind": "live",
        "best": song,
        "other": None,
        "songs": [song],
        "labels": {},
        "parts": [song],
        "rating": 1,
    }
    tree = {"name": "a", "children": [{"name": "b", "children": []}]}
    values: list[Any] = [song, album, tree, {"name": "red", "warm": True}]
    values += [
        {key: value for key, value in one.items() if key != missing} for one in values for missing in one
    ]
    for value in values:
        assert validator.is_valid(value) == strict.is_valid(value), value


def test_another_schema_stays_what_it_is() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert trained_schema(schema, [without_titles(class_schema(Colour))]) is schema
