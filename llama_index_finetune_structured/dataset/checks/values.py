"""Faults of the values of an answer: those that its class refuses, written values, broken rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ...answer_values import class_schema
from ...errors import MissingDependencyError
from ...example import Example, compact_json
from ...jsonl import READ_ERRORS, one_line_reason, parse_line
from ...local.schema.message_texts import caller_texts, without_schema_text
from ...stated_rules import answer_problems
from ...written_values.answers import absent_values, read_answer
from .lines import structured_texts
from .problems import Fault

__all__ = ["value_faults"]


def value_faults(example: Example, output_cls: type[BaseModel] | None) -> list[Fault]:
    """The faults of an example whose answer fits its JSON schema; ``output_cls``: the class that must accept it."""
    schema = example.answer_schema if output_cls is None else class_schema(output_cls)
    if schema is None:
        return []
    texts = caller_texts(without_schema_text(example))
    return [fault for text in structured_texts(example) for fault in _faults(text, schema, texts, output_cls)]


def _faults(
    text: str, schema: Mapping[str, Any], texts: list[str], output_cls: type[BaseModel] | None
) -> Iterator[Fault]:
    try:
        value = parse_line(text.encode("utf-8", "surrogatepass"))
    except READ_ERRORS as error:
        yield Fault("answer_not_in_schema", f"the answer is not one JSON value: {one_line_reason(error)}")
        return
    read = read_answer(schema, value, texts)
    answer = None
    if output_cls is not None:
        try:
            answer = output_cls.model_validate_json(text if read.value == value else compact_json(read.value))
        except MissingDependencyError:
            raise
        except Exception as error:  # a validator of the user's class may raise anything
            yield Fault("answer_not_in_schema", f"{output_cls.__name__} refuses it: {one_line_reason(error)}")
            return
    if read.unreadable:
        yield Fault("answer_not_in_schema", read.unreadable[0])
        return
    yield from (Fault("unsure_value", reason) for reason in read.unsure)
    yield from (Fault("value_not_in_text", reason) for reason in absent_values(schema, value, texts))
    yield from (Fault("rule_broken", reason) for reason in answer_problems(schema, read.value, (), answer))
