"""Structured calls of a local model: how the schema travels, and what counts as an answer."""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from ..errors import ConfigurationError, StructuredAnswerError
from ..example import json_span
from ..local.schema.bounds import AnswerBounds, bounded_schema, bounds_hit, schema_key
from ..local.schema.grammar_schema import grammar_schema

__all__ = ["StructuredAnswerEvent", "StructuredCall", "parse_answer", "schema_of", "with_schema"]

dispatcher = get_dispatcher(__name__)
_SHOWN_PROBLEMS = 5
_SECOND_TRY = {"temperature": 0.7, "seed": 0}


class StructuredAnswerEvent(BaseEvent):
    """A structured call has ended, well or not.

    ``bound_hits`` are the schema places at which its answer may have been cut, ``retries`` how often it was asked
    again because the answer did not fit.
    """

    bound_hits: list[str]
    retries: int = 0

    @classmethod
    def class_name(cls) -> str:
        return "StructuredAnswerEvent"


class StructuredCall:
    """One call for an object of ``output_cls``: how it is asked, and asked again, and what came of it.

    A grammar cannot say what validators check. An answer that they refuse is asked for once more with the same
    prompt, which is the one that was trained on, drawn at random from a fixed seed instead of greedily.
    A list that the grammar ended at an object that it held already is without the second one.
    """

    def __init__(
        self, output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None, bounds: AnswerBounds | None
    ) -> None:
        """``bounds``: those of the grammar; None where the model answers without one, and is asked once."""
        self._output_cls, self._bounds = output_cls, bounds
        self._kwargs = {
            **with_schema(output_cls, llm_kwargs),
            "grammar_schema": grammar_schema(output_cls),
        }
        self._distinct = bounds is not None and (
            schema_key(output_cls.model_json_schema()) in bounds.distinct
        )
        self._text, self._asked = "", 0
        self._outcome: BaseModel | StructuredAnswerError | None = None

    def tries(self) -> Iterator[dict[str, Any]]:
        """The keywords of each chat call; its response goes to :meth:`judge` before the next is asked for."""
        yield self._kwargs
        if self._bounds is not None and not isinstance(self._outcome, self._output_cls):
            yield {**self._kwargs, **_SECOND_TRY}

    def judge(self, response: ChatResponse | None) -> None:
        """Take a response as the answer, if it is one."""
        self._asked += 1
        self._text = "" if response is None else response.message.content or ""
        try:
            self._outcome = self._parsed()
        except StructuredAnswerError as error:
            self._outcome = error

    def _parsed(self) -> BaseModel:
        answer = parse_answer(self._output_cls, self._text)
        value = json.loads(json_span(self._text)) if self._distinct else None
        if (distinct := _without_last_repetition(value)) != value:
            with contextlib.suppress(StructuredAnswerError):  # a list that must be this long keeps it
                return parse_answer(self._output_cls, json.dumps(distinct))
        return answer

    def result(self) -> BaseModel:
        """The object; tells listeners how it was had. Raises StructuredAnswerError where no answer fitted."""
        hits = [] if self._bounds is None else _bound_hits(self._output_cls, self._text, self._bounds)
        dispatcher.event(StructuredAnswerEvent(bound_hits=hits, retries=max(0, self._asked - 1)))
        if isinstance(self._outcome, BaseModel):
            return self._outcome
        again = " (asked twice)" if self._asked > 1 else ""
        raise StructuredAnswerError(f"{self._outcome}{again}") from self._outcome


def with_schema(output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keywords of a chat call that asks for ``output_cls``, in OpenAI's form."""
    schema = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
    return {
        **(llm_kwargs or {}),
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


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
    """The JSON in a text as ``output_cls``. Raises StructuredAnswerError where there is none that fits."""
    try:
        return output_cls.model_validate_json(json_span(text))
    except ValidationError as error:
        raise StructuredAnswerError(
            f"the answer does not fit {output_cls.__name__}: {_problems(error)}"
        ) from error
    except ValueError as error:
        raise StructuredAnswerError(f"the answer holds no JSON object: {text[:200]!r}") from error


def _without_last_repetition(value: Any) -> Any:
    """The value with every list less its last object where that stands in it before."""
    if isinstance(value, dict):
        return {name: _without_last_repetition(item) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [_without_last_repetition(item) for item in value]
    return items[:-1] if items and isinstance(items[-1], dict) and items[-1] in items[:-1] else items


def _bound_hits(output_cls: type[BaseModel], text: str, bounds: AnswerBounds) -> list[str]:
    """Places at which an answer is as long as the grammar let it be; none where it is not even JSON."""
    schema = output_cls.model_json_schema()
    bounded = bounded_schema(schema, schema_key(schema), bounds)
    try:
        answer = json.loads(json_span(text))
    except ValueError:
        return []
    return bounds_hit(bounded, schema, answer)


def _problems(error: ValidationError) -> str:
    """Field, reason and what was found, for the first few problems."""
    problems = error.errors(include_url=False, include_context=False)
    told = [
        f"{'.'.join(map(str, problem['loc'])) or 'the object'}: {problem['msg']}, "
        f"found {reprlib.repr(problem['input'])}"
        for problem in problems[:_SHOWN_PROBLEMS]
    ]
    more = len(problems) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")
