"""A mistake in a schema file: one error with the line, what was found and how to fix it, in bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llama_index_finetune_structured import load_schema
from llama_index_finetune_structured.errors import ConfigurationError

HEAD = "name: A\nfields:\n"

# (the line after "fields:", what was found, what to do); all are on line 3
FIELDS = [
    ("a: {type: string?, description: d}", "got '?'", "optional: true"),
    ("a: {description: d, type: string?}", "got '?'", "optional: true"),
    ("a: {enum: [x]}?", "mapping keys", "optional: true"),
    ("a: {type: string[], description: d}", "got '['", "list of string"),
    ("a: string[]", "unknown type 'string[]'", "did you mean 'list of string'?"),
    ("a: list[str]", "unknown type 'list[str]'", "did you mean 'list of string'?"),
    ("a: array of int", "unknown type 'array of int'", "did you mean 'list of integer'?"),
    ("a: list", "unknown type 'list'", "did you mean 'list of string'?"),
    ("a: str", "unknown type 'str'", "did you mean 'string'?"),
    ("a: int", "unknown type 'int'", "did you mean 'integer'?"),
    ("a: float", "unknown type 'float'", "did you mean 'number'?"),
    ("a: Boolean", "unknown type 'Boolean'", "did you mean 'boolean'?"),
    ("a: strinng", "unknown type 'strinng'", "did you mean 'string'?"),
    ("a: Worrk\ntypes: {Work: {enum: [x]}}", "unknown type 'Worrk'", "did you mean 'Work'?"),
    ("a: dict", "unknown type 'dict'", "describe an inner object under types"),
    ("a: string | integer", "unknown type 'string | integer'", "one type; optional: true"),
    ("a: {type: [string, integer]}", "fields.a.type: expected a single one, found a list", "list of string"),
    ("\ta: string", "character '\\t'", "use spaces"),
    ("a: @x", "character '@'", "quote a text that begins with this"),
    ("a: {type: string, type: integer}", "fields.a.type", "duplicate key"),
    ("1: string", "1: expected a text as key", "write it in quotes"),
    ("true: string", "true: expected a text as key", "write it in quotes"),
    ("? [a]\n  : string", "a sequence: expected a text as key", "choose another name"),
    ("a: *other", "aliases (*name)", "write the value out"),
    ("a: !!python/object:os.system x", "tags (tag:yaml.org,2002:python/object:os.system)", "remove it"),
    ("a: !!int x", "tags (tag:yaml.org,2002:int)", "remove it"),
    ("a: !!timestamp x", "tags (", "remove it"),
    ("a: {type: string, description: one, two}", "fields.a.two: unknown key", "needs quotes"),
    ("a: {type: string, description: e.g.: two}", "got ':'", "quote a text with a colon"),
    ("a: {type: string, required: false}", "fields.a.required: unknown key", "optional: true"),
    ("a: {type: string, optionl: true}", "fields.a.optionl: unknown key", "did you mean optional?"),
    ("a: {type: string, maxLength: 3}", "fields.a.maxLength: unknown key", "did you mean max?"),
    ("a: {type: string, choices: [x]}", "fields.a.choices: unknown key", "did you mean enum?"),
    ("a: {type: string, pattern: x}", "fields.a.pattern: unknown key", "write a class and give file.py:Class"),
    ("a: {type: string, optional: maybe}", "found 'maybe'", "expected true or false"),
    ("a: {enum: x}", "fields.a.enum", "expected a list, such as [article, book]"),
    ("a: {enum: []}", "fields.a.enum: empty", "at least one"),
    ("a: {enum: [x, null]}", "fields.a.enum.1: expected a text or an integer", "quotes"),
    ("a: {type: integer, min: '1'}", "fields.a.min", "expected a number without quotes"),
    ("a: {type: number, min: .nan}", "fields.a.min", "expected a number"),
    (f"a: {{type: integer, min: {'9' * 5000}}}", "fields.a.min", "expected a number"),
    ("a:", "fields.a", "expected a type, or a mapping of type"),
    ("first-name: string", "'first-name' cannot be the name of a field", "choose another"),
]  # fmt: skip

FILES = [
    ("name: A\nfields:\n  - a: string\n", 2, "fields: ", "expected a mapping, such as title: string"),
    ("name: A\nfields:\n  a:string\n", 2, "fields: ", "with a space after the colon"),
    ("hello", 1, "the file: ", "expected a mapping"),
    ("name: A\n", 1, "fields: missing", "expected name and fields"),
    ("name: A\nname: B\nfields: {a: string}\n", 2, "name", "duplicate key"),
    ("name: A\nfields: {a: string}\nfieldz: {b: string}\n", 3, "fieldz: unknown key", "did you mean fields?"),
    ("name: 3\nfields: {a: string}\n", 1, "name: expected a text, found int", "quotes"),
    ("name: A\nfields:\n  a: string\n   b: integer\n", 4, "not valid YAML", "correct the indentation"),
    ("name: A\nfields:\n   a: string\n  b: integer\n", 4, "not valid YAML", "same number of spaces"),
    ("name: A\nfields: {a: string}\n---\nname: B\n", 3, "another document", "remove the line ---"),
    ("name: A\ndescription: \"x\nfields: {a: string}\n", 4, "end of stream", "close the quotes"),
    ("name: A\n\x00fields: {a: string}\n", 2, "unacceptable character #x0000", "remove it"),
    ("name: A\nfields: {a: string}\ntypes: {string: {enum: [x]}}\n", 3, "types.string", "choose another"),
    ("name: A\nfields: {a: A}\ntypes: {A: {enum: [x]}}\n", 3, "the answer itself has this name", "choose another"),
]  # fmt: skip


def _error(text: str, tmp_path: Path) -> str:
    path = tmp_path / "schema.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_schema(path)
    return str(caught.value)


@pytest.mark.parametrize(("line", "found", "fix"), FIELDS)
def test_a_mistake_in_a_field_is_named_with_its_line_and_the_fix(
    line: str, found: str, fix: str, tmp_path: Path
) -> None:
    message = _error(f"{HEAD}  {line}\n", tmp_path)
    assert "schema.yaml:3: " in message
    assert found in message
    assert fix in message
    assert len(message) < 500


@pytest.mark.parametrize(("text", "line", "found", "fix"), FILES)
def test_a_mistake_around_the_fields_is_named_with_its_line_and_the_fix(
    text: str, line: int, found: str, fix: str, tmp_path: Path
) -> None:
    message = _error(text, tmp_path)
    assert f"schema.yaml:{line}: " in message
    assert found in message
    assert fix in message


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{" * 100_000,
        "- " * 50_000,
        "{a: " * 30_000,
        "a:\n" + "".join(f"{' ' * depth}b:\n" for depth in range(1, 1_000)),
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "a: " + "x" * 2_000_000,
    ],
    ids=["brackets", "braces", "dashes", "mappings", "indentation", "aliases", "size"],
)
def test_a_file_made_to_exhaust_the_reader_is_refused_at_once(text: str, tmp_path: Path) -> None:
    began = time.monotonic()
    message = _error(text, tmp_path)
    assert time.monotonic() - began < 5
    assert len(message) < 300


def test_codes_times_and_dates_of_an_enum_stay_the_text_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(f"{HEAD}  a: {{enum: [01234, 12:30, 1_000, 0x1F, 2024-01-01, no, 7]}}\n")
    schema = load_schema(path).model_json_schema()
    assert schema["properties"]["a"]["enum"] == ["01234", "12:30", "1_000", "0x1F", "2024-01-01", "no", 7]
