"""What a valid answer to an example is, and how an answer is read: parsed, validated, made canonical."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, RootModel, ValidationError, model_validator
from pydantic_core import from_json

from ...errors import DatasetError, StructuredAnswerError
from ...example import Example, answer_value, canonical_json, json_span
from ...json_schema import first_error

__all__ = ["Target", "target_of"]

_SHOWN_CHARACTERS = 300
EMPTY_RESPONSE = "Empty Response"
"""What LlamaIndex's query engines answer when they swallowed a parse failure."""


@dataclass(frozen=True)
class Target:
    """The Pydantic class and JSON schema an answer must fit, and the gold answer in canonical form.

    ``is_text``: any text but an empty one is an answer.
    """

    output_cls: type[BaseModel] | None
    schema: dict[str, Any] | None
    gold: Any
    is_text: bool = False

    def read(self, answer: Any) -> Any:
        """A Pydantic object, JSON value or text -> the valid answer as a JSON value.

        Text is read as LlamaIndex's own parser reads it: the span from the first ``{`` to the last ``}``.
        Raises StructuredAnswerError, whose text says what did not fit.
        """
        if self.is_text:
            return _present(answer if isinstance(answer, str) else canonical_json(answer))
        value = answer_value(answer) if isinstance(answer, BaseModel) else answer
        if isinstance(value, str):
            value = _parse(value)
        if self.output_cls is None:
            return value
        try:
            valid = answer_value(self.output_cls.model_validate(value))
            canonical_json(valid)  # a float field may still hold NaN
        except ValidationError as error:
            raise StructuredAnswerError(_first_errors(error)) from error
        except ValueError as error:
            raise StructuredAnswerError(f"not JSON: {error}") from error
        return valid


def target_of(example: Example, output_cls: type[BaseModel] | None) -> Target:
    """The target of one example: ``output_cls``, else the example's own JSON schema, else any JSON.

    Raises DatasetError where the gold answer is not JSON or does not fit.
    """
    model = output_cls
    if model is None and example.answer_schema is not None:
        # In the schema's own order: the prompt and the grammar are as in training only with it.
        schema_json = json.dumps(example.answer_schema, ensure_ascii=False)
        model = _model_for(schema_json, example.schema_name or "Answer")
    schema = None if model is None else model.model_json_schema()
    try:
        gold = Target(model, schema, None).read(example.answer_object())
    except ValueError as error:
        raise DatasetError(
            f"example {example.id[:12]}: its answer cannot be scored field by field: {error}. "
            "Expected a JSON object that fits output_cls (or the example's answer_schema)."
        ) from error
    return Target(model, schema, gold)


@lru_cache(maxsize=64)
def _model_for(schema_json: str, name: str) -> type[BaseModel]:
    """A Pydantic class that shows exactly this JSON schema and validates with jsonschema."""
    schema: dict[str, Any] = json.loads(schema_json)

    class SchemaAnswer(RootModel[Any]):
        @classmethod
        def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
            schema: dict[str, Any] = json.loads(schema_json)
            return {"title": name} | schema

        @model_validator(mode="before")
        @classmethod
        def _fits(cls, value: Any) -> Any:
            if error := first_error(schema, value):
                raise ValueError(error[:_SHOWN_CHARACTERS])
            return value

    SchemaAnswer.__name__ = SchemaAnswer.__qualname__ = re.sub(r"\W", "_", name) or "Answer"
    return SchemaAnswer


def _parse(text: str) -> Any:
    stripped = _present(text)
    try:
        return from_json(stripped, allow_inf_nan=False)
    except ValueError:
        pass
    try:
        span = json_span(stripped)
    except ValueError:
        raise StructuredAnswerError("not JSON: no complete {...} in the answer") from None
    try:
        return from_json(span, allow_inf_nan=False)
    except ValueError as error:
        raise StructuredAnswerError(f"not JSON: {str(error)[:_SHOWN_CHARACTERS]}") from error


def _present(text: str) -> str:
    stripped = text.strip()
    if stripped in ("", "None", EMPTY_RESPONSE):
        raise StructuredAnswerError(f"no answer: {stripped!r} (LlamaIndex hides a parse failure this way)")
    return stripped


def _first_errors(error: ValidationError) -> str:
    found = [f"{'.'.join(map(str, e['loc'])) or '$'}: {e['msg']}" for e in error.errors()[:3]]
    return "does not fit the schema: " + "; ".join(found)[:500]
