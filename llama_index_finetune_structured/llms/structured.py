"""Structured calls: schemas in ``response_format``, parsing of answers, and the second attempt."""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms.llm import LLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.base import SelectorPromptTemplate
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, RootModel, ValidationError

from ..answer_values import class_schema
from ..errors import ConfigurationError, StructuredAnswerError
from ..example import compact_json, json_span, loads, refuse_constant
from ..formats.wire import schema_format
from ..local.schema.bounds import AnswerBounds, bounds_hit, schema_key
from ..local.schema.grammar_schema import grammar_schema
from ..stated_rules import answer_problems
from ..trust.answer_trust import Trust, trust_in_rest
from ..trust.calibration import Calibration
from ..trust.lookup import trust_in_raw
from ..written_values.answers import has_written_values, read_answer
from .synthesized_answers import keep_trust

__all__ = [
    "SECOND_ATTEMPT",
    "StructuredAnswerEvent",
    "StructuredCall",
    "bare_prompt",
    "parse_answer",
    "parse_response",
    "request_schema",
    "source_texts",
    "with_problems",
    "with_schema",
    "without_last_repetition",
]

dispatcher = get_dispatcher(__name__)
_INSTRUCTIONS = (MessageRole.SYSTEM, MessageRole.DEVELOPER)
_SHOWN_CHARACTERS = 200
_SHOWN_PROBLEMS = 5  # chosen: an error message that can be read
SECOND_ATTEMPT = {
    "temperature": 0.7,
    "seed": 0,
    "answers": 1,
}  # chosen: another answer than the greedy one, which votes would choose again, and repeatable
"""Keywords of the second attempt at an answer that validators refuse."""


class StructuredAnswerEvent(BaseEvent):
    """Event at the end of a structured call, successful or not.

    Attributes:
        bound_hits: JSON pointers into the schema at which a bound may have cut the answer.
        retries: Further attempts because the answer did not fit, 0 or 1.
        trust: How sure the answer is; None where the call failed, or that is not known.
        problems: Values of the answer with two meanings, and the rules that it breaks.
    """

    bound_hits: list[str]
    retries: int = 0
    trust: Trust | None = None
    problems: tuple[str, ...] = ()

    @classmethod
    def class_name(cls) -> str:
        """The event's name in LlamaIndex's dumps."""
        return "StructuredAnswerEvent"


class StructuredCall:
    """One structured call for an object of ``output_cls``: its attempts and its outcome.

    A grammar cannot express what validators check. An answer that they refuse gets one more attempt, with the same
    prompt, since that is the one trained on, but sampled with a fixed seed instead of greedily.
    A list that the grammar ended at a repeated object is returned without the repetition.
    """

    def __init__(
        self,
        output_cls: type[BaseModel],
        llm_kwargs: Mapping[str, Any] | None,
        bounds: AnswerBounds | None,
        messages: Sequence[ChatMessage] = (),
        calibration: Calibration | None = None,
    ) -> None:
        """``bounds``: those of the grammar; None: no grammar, and one attempt only. ``messages``: of the call.

        ``calibration``: of the trust in the answer.
        """
        self._output_cls, self._bounds, self._messages = output_cls, bounds, messages
        self._texts, self._calibration = source_texts(messages), calibration
        self._problems: tuple[str, ...] = ()
        self._kwargs = with_schema(output_cls, llm_kwargs)
        self._distinct = bounds is not None and (schema_key(class_schema(output_cls)) in bounds.distinct)
        self._text, self._attempts = "", 0
        self._outcome: BaseModel | StructuredAnswerError | None = None
        self._trust: Trust | None = None

    def attempts(self) -> Iterator[dict[str, Any]]:
        """Keyword arguments of each chat call. Pass its response to ``record`` before the next iteration."""
        yield self._kwargs
        if self._bounds is not None and not isinstance(self._outcome, self._output_cls):
            yield {**self._kwargs, **SECOND_ATTEMPT}

    def record(self, response: ChatResponse | None) -> None:
        """Parse the response of an attempt; None, a stream without a chunk, is an empty answer."""
        self._attempts += 1
        self._text = "" if response is None else response.message.content or ""
        self._trust = None if response is None else trust_in_raw(response.raw)
        self._problems = ()
        try:
            self._outcome = self._parsed(response)
        except StructuredAnswerError as error:
            self._outcome, self._trust = error, None
            return
        self._trust = self._trust and with_problems(self._trust, self._problems, self._calibration)

    def _parsed(self, response: ChatResponse | None) -> BaseModel:
        answer = parse_response(self._output_cls, response, self._texts)
        value = loads(json_span(self._text))
        if self._distinct and (distinct := without_last_repetition(value)) != value:
            with contextlib.suppress(StructuredAnswerError):  # the schema requires this many items
                answer = parse_answer(self._output_cls, json.dumps(distinct), self._texts)
                value = distinct
                self._trust = self._trust and trust_in_rest(self._trust, distinct)
        self._problems = answer_problems(class_schema(self._output_cls), value, self._texts, answer)
        return answer

    def result(self) -> BaseModel:
        """The object, after a ``StructuredAnswerEvent``. Raises StructuredAnswerError where no answer fits."""
        hits = [] if self._bounds is None else _bound_hits(self._output_cls, self._text, self._bounds)
        retries = max(0, self._attempts - 1)
        if isinstance(self._outcome, BaseModel) and self._trust is not None:
            keep_trust(self._outcome, self._trust, self._messages)
        dispatcher.event(
            StructuredAnswerEvent(
                bound_hits=hits, retries=retries, trust=self._trust, problems=self._problems
            )
        )
        if isinstance(self._outcome, BaseModel):
            return self._outcome
        attempts = " (asked twice)" if self._attempts > 1 else ""
        raise StructuredAnswerError(f"{self._outcome}{attempts}") from self._outcome


def bare_prompt(prompt: BasePromptTemplate, llm: LLM | None) -> BasePromptTemplate:
    """The prompt that a selector chooses for ``llm``, without a schema text of its own.

    LlamaIndex leaves its output parser, which appends that text, on a prompt that a model of the text transport was
    asked with.
    """
    chosen = prompt.select(llm) if isinstance(prompt, SelectorPromptTemplate) else prompt
    appends = isinstance(chosen.output_parser, PydanticOutputParser)
    return chosen.model_copy(update={"output_parser": None}) if appends else chosen


def with_schema(output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keyword arguments of a chat call that requests ``output_cls``, by OpenAI's ``response_format``.

    That schema stands in the prompt, as in training; ``grammar_schema`` is the stricter one for the grammar.
    """
    schema = class_schema(output_cls)
    return {
        **(llm_kwargs or {}),
        "response_format": schema_format(output_cls.__name__, schema),
        "grammar_schema": grammar_schema(output_cls),
    }


def request_schema(response_format: Any) -> dict[str, Any] | None:
    """The JSON schema in a ``response_format``, as JSON has it; None for None.

    Raises ConfigurationError for other forms, and for a schema that JSON cannot have.
    """
    if response_format is None:
        return None
    schema: Any = response_format
    for key in ("json_schema", "schema"):
        schema = schema.get(key) if isinstance(schema, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ConfigurationError(
            "response_format: expected {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}, "
            f"found {response_format!r}"
        )
    try:
        return dict(loads(compact_json(schema)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"response_format: its schema cannot be used: {error}; pass what "
            "model_json_schema() returns, with deep inner objects under $defs"
        ) from error


def source_texts(messages: Sequence[ChatMessage]) -> list[str | None]:
    """The contents of the messages that are no instructions."""
    return [message.content for message in messages if message.role not in _INSTRUCTIONS]


def with_problems(trust: Trust, problems: Iterable[str], calibration: Calibration | None) -> Trust:
    """The trust with these problems, and with the probability that they leave to it."""
    every = tuple(dict.fromkeys(problems))
    if every == trust.problems:
        return trust
    found = trust.model_copy(update={"problems": every})
    return found if trust.tokens is None else (calibration or Calibration()).applied(found)


def parse_response(
    output_cls: type[BaseModel], response: ChatResponse | None, texts: Sequence[str | None] = ()
) -> BaseModel:
    """Parse the answer in a response. Raises StructuredAnswerError, which says so where the answer was cut."""
    try:
        return parse_answer(output_cls, "" if response is None else response.message.content or "", texts)
    except StructuredAnswerError as error:
        if (tokens := _cut_after(response)) is None:
            raise
        raise StructuredAnswerError(
            f"the answer was cut at the limit of {tokens} tokens, raise max_new_tokens (of a server, max_tokens): "
            f"{error}"
        ) from error


def parse_answer(output_cls: type[BaseModel], text: str, texts: Sequence[str | None] = ()) -> BaseModel:
    """Parse the JSON in ``text`` as ``output_cls``, its written values in the light of the ``texts`` it is from.

    Raises StructuredAnswerError where it is missing or invalid.
    """
    try:
        span, schema = json_span(text), class_schema(output_cls)
        # Pydantic reads NaN, which evaluation and JSON refuse.
        value = json.loads(span, parse_constant=refuse_constant)
        if has_written_values(schema):
            span = compact_json(read_answer(schema, value, texts).value)
        return _validated(output_cls, span)
    except ValidationError as error:
        raise StructuredAnswerError(
            f"the answer does not fit {output_cls.__name__}: {_problems(error)}"
        ) from error
    except ValueError as error:
        expected = "value" if issubclass(output_cls, RootModel) else "object"
        raise StructuredAnswerError(
            f"the answer holds no JSON {expected}: {text[:_SHOWN_CHARACTERS]!r}"
        ) from error


def _validated(output_cls: type[BaseModel], text: str) -> BaseModel:
    try:
        return output_cls.model_validate_json(text)
    except ValueError:
        raise
    except Exception as error:  # the user's validators may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise StructuredAnswerError(f"a validator of {output_cls.__name__} raised {reason}") from error


def _cut_after(response: ChatResponse | None) -> int | None:
    """Tokens after which the token limit ended an answer; None where something else did, or it is not known."""
    raw = None if response is None else response.raw
    raw = raw.model_dump() if isinstance(raw, BaseModel) else raw
    if not isinstance(raw, Mapping):
        return None
    choices = raw.get("choices")
    reasons = [raw.get("finish_reason"), *(choice.get("finish_reason") for choice in choices or ())]
    usage = raw.get("usage") or {}
    tokens = usage.get("completion_tokens")
    if isinstance(tokens, int):  # reasoning has a limit of its own
        tokens -= (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return tokens if "length" in reasons and isinstance(tokens, int) else None


def without_last_repetition(value: Any) -> Any:
    """The value, each list without its last object if an equal one stands before it."""
    if isinstance(value, dict):
        return {name: without_last_repetition(item) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [without_last_repetition(item) for item in value]
    return items[:-1] if items and isinstance(items[-1], dict) and items[-1] in items[:-1] else items


def _bound_hits(output_cls: type[BaseModel], text: str, bounds: AnswerBounds) -> list[str]:
    """JSON pointers into the schema at which the answer reaches a bound of the grammar; none if it is no JSON."""
    schema = class_schema(output_cls)
    try:
        answer = loads(json_span(text))
    except ValueError:
        return []
    return bounds_hit(schema, schema_key(schema), bounds, answer)


def _problems(error: ValidationError) -> str:
    """Field, reason and value of the first few validation errors."""
    problems = error.errors(include_url=False, include_context=False)
    shown = [
        f"{'.'.join(map(str, problem['loc'])) or 'the object'}: {problem['msg']}, "
        f"found {reprlib.repr(problem['input'])}"
        for problem in problems[:_SHOWN_PROBLEMS]
    ]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
