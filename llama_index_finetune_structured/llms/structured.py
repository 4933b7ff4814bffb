"""Structured calls of a local model: how the schema travels, and what counts as an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.output_parsers.utils import extract_json_str
from pydantic import BaseModel, ValidationError

from ..errors import ConfigurationError, StructuredAnswerError
from ..example import content_hash
from ..lora.bounds import AnswerBounds, bounded_schema, bounds_hit

__all__ = ["StructuredAnswerEvent", "bound_hits", "parse_answer", "schema_of", "with_schema"]


class StructuredAnswerEvent(BaseEvent):
    """A structured answer was given; ``bound_hits`` are the schema places at which it may have been cut."""

    bound_hits: list[str]

    @classmethod
    def class_name(cls) -> str:
        return "StructuredAnswerEvent"


def with_schema(output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keywords of a chat call that asks for ``output_cls``, in OpenAI's form."""
    schema = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
    return {**(llm_kwargs or {}), "response_format": {"type": "json_schema", "json_schema": schema}}


def schema_of(response_format: Any) -> dict[str, Any] | None:
    """The JSON schema in a ``response_format``; None without one. Raises ConfigurationError for other forms."""
    if response_format is None:
        return None
    try:
        schema = response_format["json_schema"]["schema"]
    except (KeyError, TypeError) as error:
        raise ConfigurationError(
            "response_format: expected {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}, "
            f"found {response_format!r}"
        ) from error
    return dict(schema)


def parse_answer(output_cls: type[BaseModel], text: str) -> BaseModel:
    """The JSON object in a text as ``output_cls``. Raises StructuredAnswerError where there is none that fits."""
    try:
        return output_cls.model_validate_json(extract_json_str(text))
    except ValidationError as error:
        raise StructuredAnswerError(f"the answer does not fit {output_cls.__name__}: {error}") from error
    except ValueError as error:
        raise StructuredAnswerError(f"the answer holds no JSON object: {text[:200]!r}") from error


def bound_hits(output_cls: type[BaseModel], text: str, bounds: AnswerBounds) -> list[str]:
    """Places at which an answer is as long as the grammar let it be."""
    schema = output_cls.model_json_schema()
    bounded = bounded_schema(schema, content_hash(schema), bounds)
    return bounds_hit(bounded, schema, json.loads(extract_json_str(text)))
