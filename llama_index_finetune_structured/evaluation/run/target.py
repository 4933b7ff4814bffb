"""Answer targets: the schema and gold answer of an example; raw answers are parsed and validated against them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, RootModel, ValidationError, model_validator
from pydantic_core import from_json

from ...answer_classes import class_of
from ...answer_values import answer_value, class_schema, readable_value
from ...errors import DatasetError, StructuredAnswerError
from ...example import Example, canonical_json, compact_json, json_span
from ...json_schema import first_error
from ...local.schema.message_texts import caller_texts, without_schema_text
from ...stated_rules import answer_problems
from ...written_values.answers import has_written_values, read_answer

__all__ = ["ERROR_CHARACTERS", "JSON_SCHEMA", "AnswerTarget", "open_target", "target_of"]

ERROR_CHARACTERS = 500
"""Errors are stored cut to this length (chosen: a whole message of most providers, without a dumped prompt)."""
_PARSE_ERROR_CHARACTERS = 300  # chosen: a parser's or jsonschema's message may repeat the whole answer
_SHOWN_ERRORS = 3  # chosen: of one answer's validation errors
JSON_SCHEMA = "JSON schema"
"""The judge of answers to a schema whose class is not there."""
EMPTY_RESPONSE = "Empty Response"
"""The answer of LlamaIndex's query engines where parsing failed; they do not raise the error."""


@dataclass(frozen=True)
class AnswerTarget:
    """What is expected of the answers to one example.

    ``output_cls`` and ``schema``: the Pydantic class and its JSON schema that an answer must fit (None: any JSON).
    ``gold``: the example's own answer as a JSON value. ``is_text``: any text that is not empty is valid.
    """

    example: Example
    output_cls: type[BaseModel] | None
    schema: dict[str, Any] | None
    gold: Any
    is_text: bool = False

    @property
    def judge(self) -> str:
        """What decides which answers are valid, for readers."""
        if self.is_text:
            return "text"
        if self.output_cls is None:
            return "JSON"
        return JSON_SCHEMA if issubclass(self.output_cls, _SchemaAnswer) else self.output_cls.__name__

    def read(self, answer: Any) -> Any:
        """The valid answer as a JSON value, from a Pydantic object, a JSON value or text.

        Text is parsed as LlamaIndex's own parser does: the span from the first ``{`` to the last ``}``.
        Raises StructuredAnswerError with what did not fit.
        """
        if self.is_text:
            return _present(answer if isinstance(answer, str) else canonical_json(answer))
        if isinstance(answer, BaseModel):
            return self.fitted(readable_value(answer, self.output_cls or type(answer)))
        if isinstance(answer, str):
            text = _json_in(answer)
            return self.fitted(_parse(text), text)
        return self.fitted(answer)

    def problems(self, answer: Any) -> tuple[str, ...]:
        """The problems of an answer that ``read`` takes: values with two meanings, and broken rules."""
        if self.output_cls is None or self.is_text:
            return ()
        value = _parse(_json_in(answer)) if isinstance(answer, str) else answer
        read = read_answer(self.schema, value, self._texts)
        found = _read(self.output_cls, read.value, None)
        return (*read.unsure, *answer_problems(self.schema, read.value, (), found))

    @property
    def _texts(self) -> list[str]:
        return caller_texts(without_schema_text(self.example))

    def fitted(self, value: Any, text: str | None = None) -> Any:
        """The JSON value as ``output_cls`` reads and writes it. Raises StructuredAnswerError where it does not fit.

        ``text``: the JSON that it was parsed from, which the class reads: a parsed number has lost digits of a Decimal.
        """
        if self.output_cls is None:
            return value
        if has_written_values(self.schema):
            read = read_answer(self.schema, value, self._texts)
            if read.unreadable:
                raise StructuredAnswerError(f"does not fit the schema: {read.unreadable[0]}")
            value, text = read.value, None
        try:
            valid = answer_value(_read(self.output_cls, value, text))
            canonical_json(valid)  # a float field may still hold NaN
        except ValidationError as error:
            raise StructuredAnswerError(_first_errors(error)) from error
        except (ValueError, RecursionError) as error:
            raise StructuredAnswerError(f"not JSON: {error}") from error
        return valid


class _SchemaAnswer(RootModel[Any]):
    """A class made of a JSON schema alone."""


def _read(output_cls: type[BaseModel], value: Any, text: str | None) -> BaseModel:
    """The value read as JSON is, so that a strict class takes a date from text."""
    try:
        return output_cls.model_validate_json((compact_json(value) if text is None else text).encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which Pydantic's parser refuses
        return output_cls.model_validate(value)


def target_of(example: Example, output_cls: type[BaseModel] | None) -> AnswerTarget:
    """The target of one example: ``output_cls``, else the example's class or JSON schema, else any JSON.

    Raises DatasetError where the gold answer is not JSON, or is not valid by them.
    """
    try:
        gold = example.answer_object()
        target = open_target(example, output_cls)
        return replace(target, gold=target.fitted(gold, example.answer_text()))
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"example {example.id[:12]}: its answer cannot be scored field by field: {error}. "
            "Expected a JSON object that fits output_cls (or the example's answer_schema)."
        ) from error


def open_target(example: Example, output_cls: type[BaseModel] | None) -> AnswerTarget:
    """As ``target_of``, without a gold answer."""
    model = output_cls or class_of(example) or _schema_class(example)
    return AnswerTarget(example, model, None if model is None else class_schema(model), None)


def _schema_class(example: Example) -> type[BaseModel] | None:
    if example.answer_schema is None:
        return None
    # not canonical JSON: the prompt and the grammar equal training's only with the schema's own key order
    schema_json = json.dumps(example.answer_schema, ensure_ascii=False)
    return _model_for(schema_json, example.schema_name or "Answer")


@lru_cache(maxsize=64)
def _model_for(schema_json: str, name: str) -> type[BaseModel]:
    """A Pydantic class whose JSON schema is exactly this one, judged as Pydantic judges."""
    schema: dict[str, Any] = json.loads(schema_json)

    class SchemaAnswer(_SchemaAnswer):
        @classmethod
        def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
            schema: dict[str, Any] = json.loads(schema_json)
            return {"title": name} | schema

        @model_validator(mode="before")
        @classmethod
        def _fits(cls, value: Any) -> Any:
            if error := first_error(schema, value):
                raise ValueError(error[:_PARSE_ERROR_CHARACTERS])
            return value

    SchemaAnswer.__name__ = SchemaAnswer.__qualname__ = re.sub(r"\W", "_", name) or "Answer"
    return SchemaAnswer


def _json_in(text: str) -> str:
    """The JSON of the text: all of it, else the object within it; raises StructuredAnswerError."""
    try:
        return json_span(_present(text))
    except ValueError:
        raise StructuredAnswerError("not JSON: no complete {...} in the answer") from None


def _parse(text: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise StructuredAnswerError(f"not JSON: {str(error)[:_PARSE_ERROR_CHARACTERS]}") from error


def _present(text: str) -> str:
    """The stripped text; raises StructuredAnswerError where it stands for no answer."""
    stripped = text.strip()
    if stripped in ("", "None", EMPTY_RESPONSE):
        raise StructuredAnswerError(f"no answer: {stripped!r} (LlamaIndex returns this where parsing failed)")
    return stripped


def _first_errors(error: ValidationError) -> str:
    lines = [f"{'.'.join(map(str, e['loc'])) or '$'}: {e['msg']}" for e in error.errors()[:_SHOWN_ERRORS]]
    return "does not fit the schema: " + "; ".join(lines)[:ERROR_CHARACTERS]
