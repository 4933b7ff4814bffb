"""``load_schema``: a YAML file or a Pydantic class, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from llama_index_finetune_structured import load_schema
from llama_index_finetune_structured.errors import ConfigurationError

WHOLE = """\
name: Paper
description: A paper and what it cites.
fields:
  title: {type: string, description: As printed.}
  year: integer?
  open: boolean
  score: number
  seen: date?
  kind: {enum: [article, book, no]}
  tags: list of Tag
  citations:
    type: list of Citation
    description: In their order.
types:
  Citation:
    description: One cited work.
    fields:
      author: string
      years: list of list of integer
  Tag: {enum: [new, old]}
"""


def _load(tmp_path: Path, text: str) -> type[BaseModel]:
    path = tmp_path / "schema.yaml"
    path.write_text(text, encoding="utf-8")
    return load_schema(path)


def test_every_kind_of_field_becomes_pydantics(tmp_path: Path) -> None:
    paper = _load(tmp_path, WHOLE)
    answer = {
        "title": "T", "open": True, "score": 0.5, "seen": "2024-01-31", "kind": "no", "tags": ["new"],
        "citations": [{"author": "A", "years": [[1999], []]}],
    }  # fmt: skip
    found = paper.model_validate(answer)
    assert found.model_dump(mode="json", exclude_unset=True) == answer
    assert found.model_dump()["year"] is None
    for wrong in ({"kind": "film"}, {"tags": ["older"]}, {"citations": [{"author": 1}]}, {"year": "soon"}):
        with pytest.raises(ValidationError):
            paper.model_validate(answer | wrong)


def test_the_json_schema_is_that_of_the_class_one_would_write(tmp_path: Path) -> None:
    class Song(BaseModel):
        """A song."""

        title: str
        year: int | None = None

    text = "name: Song\ndescription: A song.\nfields:\n  title: string\n  year: integer?\n"
    assert _load(tmp_path, text).model_json_schema() == Song.model_json_schema()


def test_min_and_max_limit_values_characters_and_items(tmp_path: Path) -> None:
    text = """\
name: A
fields:
  year: {type: integer, min: 1900, max: 2100}
  share: {type: number, optional: true, min: 0, max: 0.5}
  code: {type: string, min: 2, max: 4}
  tags: {type: list of string, max: 2}
"""
    limited = _load(tmp_path, text)
    right = {"year": 1999, "share": 0.5, "code": "ab", "tags": ["x", "y"]}
    assert limited.model_validate(right).model_dump() == right
    assert limited.model_validate(right | {"share": None})
    for wrong in ({"year": 1899}, {"share": 0.6}, {"code": "a"}, {"code": "abcde"}, {"tags": ["x"] * 3}):
        with pytest.raises(ValidationError):
            limited.model_validate(right | wrong)
    assert limited.model_json_schema()["properties"]["year"]["maximum"] == 2100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: A\nfields:\n  a: {type: boolean, min: 1}\n", ":3: fields.a: min and max apply only to integer, number"),
        ("name: A\nfields:\n  a: {enum: [x], max: 1}\n", ":3: fields.a: min and max apply only to integer, number"),
        ("name: A\nfields:\n  a: {type: string, max: 1.5}\n", ":3: fields.a.max: expected an integer"),
        ("name: A\nfields:\n  a: {type: string, min: -1}\n", ":3: fields.a.min: expected an integer"),
        ("name: A\nfields:\n  a: {type: integer, min: 3, max: 2}\n", ":3: fields.a.min: 3 is greater than max, 2"),
        ("name: A\nfields:\n  a: {type: integer, min: soon}\n", ":3: fields.a.min"),
        ("name: A\nfields:\n  year: interger\n", ":3: fields.year: unknown type 'interger', expected one of: string"),
        ("name: A\nfields:\n  year: {type: list of B}\n", ":3: fields.year.type: unknown type 'B'"),
        ("fields:\n  year: integer\n", ":1: the file.name: missing; expected name"),
        ("name: A\nfields: {}\n", ":2: fields: "),
        ("name: A\nfields:\n  a: {type: string, optionl: true}\n", ":3: fields.a.optionl: unknown key; expected"),
        ("name: A\nfields:\n  a: {description: d}\n", ":3: fields.a: expected either 'type' or 'enum'"),
        ("name: A\nfields:\n  a:\n    enum:\n      - x\n      - 1.5\n", ":6: fields.a.enum.1: "),
        ("name: A\nfields:\n  a: string\n  a: integer\n", ":4: fields.a: duplicate key"),
        ("name: A\nfields:\n  json: string\n", ":3: fields.json: 'json' cannot be the name of a field"),
        ("name: A\nfields:\n  from: string\n", ":3: fields.from: 'from' cannot be the name of a field"),
        ("name: A b\nfields:\n  a: string\n", ":1: name: 'A b' cannot be the name of a class"),
        ("name: A\nfields:\n  a: B\ntypes:\n  B:\n    fields:\n      b: list of B\n", ":7: types.B.fields.b: 'B'"),
        ("name: A\nfields:\n  a: B\ntypes:\n  B: {description: x}\n", ":5: types.B: expected either 'fields'"),
        ("name: A\nfields:\n  a: [string\n", "not valid YAML"),
        ("name: A\nfields: &f\n  a: string\ntypes: {B: {fields: *f}}\n", "aliases"),
        ("", "schema.yaml:1: the file: "),
        ('{"type": "object", "properties": {"a": {"type": "string"}}}', "is a JSON Schema"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_field(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"schema\.yaml") as caught:
        _load(tmp_path, text)
    assert expected in str(caught.value)


_WORDS = [*WHOLE.split(), ":", "- ", "[", "}", "&a", "*a", "\n", "\n  ", "?", "!!python/none", "\t"]
_TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(_WORDS)).map(" ".join),
    st.integers(0, len(WHOLE)).map(lambda n: WHOLE[:n] + WHOLE[n + 3 :]),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: A\nfields:\n  a: {type: string, optionl: true}\n  b: {type: string, maxi: 3}\n",
            [":3: fields.a.optionl: unknown key; expected", ":4: fields.b.maxi: unknown key; expected"],
        ),
        (
            "name: A\nfields:\n  a: interger\n  b: B\n  c: B\ntypes:\n  B:\n    fields:\n      d: txt\n",
            [":9: types.B.fields.d: unknown type 'txt'", ":3: fields.a: unknown type 'interger'"],
        ),
    ],
)
def test_all_mistakes_of_a_kind_are_named_at_once(text: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load_schema(str(tmp_path / "s.yaml"))
    lines = str(error.value).splitlines()
    assert len(lines) == len(expected)
    assert all(part in line for part, line in zip(expected, lines, strict=True))


@settings(max_examples=100, deadline=None)
@given(text=_TEXTS)
def test_no_text_makes_it_raise_anything_else(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        found = _load(tmp_path_factory.getbasetemp(), text)
    except ConfigurationError:
        return
    assert issubclass(found, BaseModel)


MODULE = """\
from __future__ import annotations
from pydantic import BaseModel
from song_parts import Singer

class Song(BaseModel):
    title: str
    singer: Singer
    covers: list[Song] = []

number = 3
"""


@pytest.fixture
def song_file(tmp_path: Path) -> Path:
    (tmp_path / "song_parts.py").write_text(
        "from pydantic import BaseModel\nclass Singer(BaseModel):\n    name: str\n"
    )
    path = tmp_path / "songs.py"
    path.write_text(MODULE)
    return path


def test_a_class_in_a_file_is_taken_with_what_it_imports_and_refers_to(song_file: Path) -> None:
    song = load_schema(f"{song_file}:Song")
    song.model_validate(
        {"title": "T", "singer": {"name": "S"}, "covers": [{"title": "U", "singer": {"name": "V"}}]}
    )


def test_a_class_in_a_module_is_taken() -> None:
    assert load_schema("llama_index_finetune_structured.demo.corpus:ApiCard").__name__ == "ApiCard"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (":Singe", "no class of that name in"),
        (":number", "not a Pydantic class"),
        ("", "classes there: Song; name one"),
    ],
)
def test_a_wrong_class_name_lists_those_there(name: str, expected: str, song_file: Path) -> None:
    with pytest.raises(ConfigurationError, match="Song") as caught:
        load_schema(f"{song_file}{name}")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "code", ["class Song(\n", "x = 1\nraise OSError('no')\n", "x = 1\nimport nowhere_at_all\n"]
)
def test_a_file_that_cannot_be_imported_is_named_with_its_line(code: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(ConfigurationError, match=r"broken\.py:[12]: cannot be imported"):
        load_schema(f"{path}:Song")


@pytest.mark.parametrize("source", ["nowhere.py:Song", "nowhere_at_all:Song", "schema", "schema.toml"])
def test_what_is_no_schema_says_what_was_expected(source: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected schema\.yaml, schema\.py:Class"):
        load_schema(source)
