"""Values, schemas and references nested without end: every public function works or says so, none overflows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel

from llama_index_finetune_structured import (
    Example,
    FinetuneDataset,
    FinetuneStructuredError,
    LoraLLM,
    Message,
    Scorecard,
    check,
    compare,
    load_schema,
)
from llama_index_finetune_structured.capture.redaction import redact_record, redact_secrets
from llama_index_finetune_structured.example import LINE_LEVELS, MOST_LEVELS, is_too_deep, loads
from llama_index_finetune_structured.json_schema import refers_deeper_than
from llama_index_finetune_structured.jsonl import READ_ERRORS, parse_line

DEPTHS = [MOST_LEVELS // 2, 150, 240, 400, 900, 10_000]
CHAINS = [20, 99, 200, 3_000]


class Free(BaseModel):
    a: Any = None


def nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return {"a": value}


def nested_text(depth: int) -> str:
    return '{"a":' + '[{"a":' * (depth // 2) + '"x"' + "}]" * (depth // 2) + "}"


def nested_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth // 2):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return {"type": "object", "properties": {"a": schema}}


def chained_schema(length: int) -> dict[str, Any]:
    """Definitions of which each refers to the next: flat as JSON, deep where references are followed."""
    definitions: dict[str, Any] = {
        f"D{n}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/D{n + 1}"}}} for n in range(length)
    }
    definitions[f"D{length}"] = {"type": "string"}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}, "$defs": definitions}


def row(answer: str = '{"a": "x"}', schema: dict[str, Any] | None = None, n: int = 0) -> Example:
    return Example(
        messages=(Message(role="user", content=f"question {n}"),),
        answer=Message(role="assistant", content=answer),
        answer_schema=schema,
        query=f"question {n}",
    )


def schema_text(depth: int) -> str:
    return '{"properties":{"a":' * (depth // 2) + '{"type":"string"}' + "}}" * (depth // 2)


def _lines(path: Path, answer: str, schema: str = "") -> Path:
    """Twelve chat lines, written without Python's encoder, which ends at its recursion limit."""
    asked = (
        f'"response_format": {{"type": "json_schema", "json_schema": {{"name": "A", "schema": {schema}}}}}, '
    )
    rows = [
        f'{{{asked if schema else ""}"messages": [{{"role": "user", "content": "q{n}"}}, '
        f'{{"role": "assistant", "content": {json.dumps(answer)}}}]}}'
        for n in range(12)
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def _compared(answer: Any, gold: str = '{"a": "x"}', schema: dict[str, Any] | None = None) -> Scorecard:
    return compare({"it": lambda _: answer}, [row(gold, schema)], show_progress=False)


def _shown(card: Scorecard, folder: Path) -> None:
    card.to_html(folder / "page.html")
    card.to_svg(folder / "picture.svg")
    Scorecard.from_json(card.to_json(folder / "card.json")).to_html(folder / "page.html")


def _card_file(folder: Path, depth: int) -> None:
    path = _compared({"a": "x"}).to_json(folder / "card.json")
    text = path.read_text(encoding="utf-8")
    assert '"x"' in text
    path.write_text(text.replace('"x"', nested_text(depth)), encoding="utf-8")
    Scorecard.from_json(path).to_html(folder / "page.html")


VALUES: dict[str, Callable[[int, Path], Any]] = {
    "Example with a schema": lambda depth, _: row(schema=nested_schema(depth)).to_json(),
    "Example with metadata": lambda depth, _: Example(
        **row().model_dump() | {"metadata": nested(depth)}
    ),
    "Example with content parts": lambda depth, _: Message(role="user", content=[nested(depth)]),
    "answer_object": lambda depth, _: row(nested_text(depth)).answer_object(),
    "from_json": lambda depth, _: Example.from_json('{"messages": ' + nested_text(depth) + "}"),
    "loads": lambda depth, _: loads(nested_text(depth)),
    "from_pairs of text": lambda depth, _: FinetuneDataset.from_pairs([("q", nested_text(depth))]),
    "from_pairs of values": lambda depth, _: FinetuneDataset.from_pairs([("q", nested(depth))]),
    "from_pairs with a class": lambda depth, _: FinetuneDataset.from_pairs(
        [("q", nested(depth))], output_cls=Free
    ),
    "from_pairs of an answer": lambda depth, _: FinetuneDataset.from_pairs([("q", Free(a=nested(depth)))]),
    "load": lambda depth, folder: FinetuneDataset.load(_lines(folder / "d.jsonl", nested_text(depth))),
    "load of schemas": lambda depth, folder: FinetuneDataset.load(
        _lines(folder / "d.jsonl", "{}", schema_text(depth))
    ),
    "check openai": lambda depth, folder: str(check(_lines(folder / "d.jsonl", nested_text(depth)), target="openai")),
    "check openai's schemas": lambda depth, folder: str(
        check(_lines(folder / "d.jsonl", "{}", schema_text(depth)), target="openai")
    ),
    "check gradient": lambda depth, folder: str(
        check(_lines(folder / "d.jsonl", nested_text(depth)), target="gradient")
    ),
    "split": lambda depth, _: FinetuneDataset([row(nested_text(depth), n=n) for n in range(9)]).split(0.5),
    "revalidate": lambda depth, _: str(FinetuneDataset([row(nested_text(depth))]).revalidate(Free)),
    "compare with a gold answer": lambda depth, folder: _shown(_compared({"a": 1}, nested_text(depth)), folder),
    "compare with an answer": lambda depth, folder: _shown(_compared(nested(depth)), folder),
    "compare with a text": lambda depth, folder: _shown(_compared(nested_text(depth)), folder),
    "compare with a schema": lambda depth, folder: _shown(
        _compared(nested(depth), schema={"properties": {"a": {}}}), folder
    ),
    "compare without fields": lambda depth, folder: _shown(_compared(nested(depth), "[1]"), folder),
    "a scorecard's file": lambda depth, folder: _card_file(folder, depth),
    "redact_secrets": lambda depth, _: redact_secrets(nested_text(depth)),
    "redact_record": lambda depth, _: redact_record({"answer": {"content": nested_text(depth)}}, redact_secrets),
    "load_schema": lambda depth, folder: _schema_file(folder, nested_text(depth)),
    "load_schema with lists": lambda depth, folder: _schema_file(
        folder, '{"name": "A", "fields": {"a": "' + "list of " * depth + 'string"}}'
    ),
    "load_schema with types": lambda depth, folder: _schema_file(
        folder,
        json.dumps(
            {
                "name": "A",
                "fields": {"a": "T0"},
                "types": {f"T{n}": {"fields": {"a": f"T{n + 1}"}} for n in range(depth)},
            }
        ),
    ),
}  # fmt: skip


def _schema_file(folder: Path, text: str) -> Any:
    path = folder / "schema.yaml"
    path.write_text(text, encoding="utf-8")
    return load_schema(path)


@pytest.mark.parametrize("depth", DEPTHS[1:])
@pytest.mark.parametrize("name", VALUES)
def test_a_deep_value_is_taken_or_refused_clearly(name: str, depth: int, tmp_path: Path) -> None:
    refusals = (FinetuneStructuredError, ValueError)  # an overflow, RecursionError, is none
    with contextlib.suppress(*refusals):
        VALUES[name](depth, tmp_path)


def test_half_of_the_levels_are_taken_everywhere(tmp_path: Path) -> None:
    for name, use in VALUES.items():
        if "load_schema" not in name and name not in (
            "Example with content parts",
            "from_json",
            "Example with metadata",
        ):
            use(MOST_LEVELS // 2, tmp_path)


def test_a_deep_line_is_refused_as_the_other_errors_of_reading() -> None:
    assert parse_line(nested_text(LINE_LEVELS - 2).encode())
    for depth in (LINE_LEVELS + 2, 900, 10_000, 200_000):
        with pytest.raises(READ_ERRORS):
            parse_line(nested_text(depth).encode())


def test_levels_are_counted_in_values_that_contain_themselves() -> None:
    assert not is_too_deep(nested(MOST_LEVELS - 1))
    assert is_too_deep(nested(MOST_LEVELS))
    around: list[Any] = []
    around += [around, around]
    assert is_too_deep(around)


CHAINED: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "Example": lambda schema, _: row(schema=schema).id,
    "compare": lambda schema, folder: _shown(_compared({"a": {}}, '{"a": {}}', schema), folder),
    "revalidate": lambda schema, _: str(FinetuneDataset([row(schema=schema)]).revalidate(Free)),
    "check openai": lambda schema, folder: str(
        check(_lines(folder / "d.jsonl", "{}", json.dumps(schema)), target="openai")
    ),
    "check trl": lambda schema, folder: str(
        check(
            _lines(folder / "d.jsonl", "{}", json.dumps(schema)),
            target="trl",
            base_model=str(folder / "base"),
        )
    ),
    "check local": lambda schema, folder: str(
        check(
            _lines(folder / "d.jsonl", "{}", json.dumps(schema)),
            target="local",
            base_model=str(folder / "base"),
        )
    ),
    "LoraLLM": lambda schema, folder: LoraLLM(base_model=str(folder / "base"), max_new_tokens=4).chat(
        [ChatMessage(content="?")],
        response_format={"type": "json_schema", "json_schema": {"name": "A", "schema": schema}},
    ),
}
SCHEMAS = {f"{length} references": chained_schema(length) for length in CHAINS} | {
    f"{depth} levels": nested_schema(depth) for depth in DEPTHS
}
SCHEMAS["a deep pattern"] = {
    "properties": {"a": {"type": "string", "pattern": "(" * 5_000 + "x" + ")" * 5_000}}
}


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("name", CHAINED)
def test_a_deep_schema_is_taken_or_refused_clearly(
    name: str, kind: str, tmp_path: Path, tiny_llama: Path
) -> None:
    (tmp_path / "base").symlink_to(tiny_llama)
    if "levels" in kind and "check" in name:
        pytest.skip("above, with the text of the schema")
    with contextlib.suppress(FinetuneStructuredError, ValueError):
        CHAINED[name](SCHEMAS[kind], tmp_path)


def test_references_are_followed_as_deep_as_they_lead() -> None:
    chain = chained_schema(150)  # the first of 151 references is the schema's own
    assert not refers_deeper_than(chain, 151)
    assert refers_deeper_than(chain, 150)
    every = {"properties": {f"p{n}": {"$ref": f"#/$defs/D{n}"} for n in (0, *range(149, 0, -1))}}
    assert refers_deeper_than(chain | every, 140)
    loop = {"$ref": "#/$defs/N", "$defs": {"N": {"properties": {"left": {"$ref": "#/$defs/N"}}}}}
    assert not refers_deeper_than(loop, 1)
