"""Training-file formats by name; each line is a pure function of an Example."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from ..errors import ConfigurationError, DatasetError
from ..example import Example
from ..jsonl import require_utf8
from .gradient import to_gradient
from .openai import to_openai
from .trl import to_trl_messages, to_trl_prompt_completion

__all__ = ["to_query_response", "training_lines"]


_CONVERTERS: dict[str, Callable[[Example], dict[str, Any]]] = {
    "openai": to_openai,
    "openai-functions": partial(to_openai, functions=True),
    "gradient": to_gradient,
    "gradient-structured": partial(to_gradient, structured=True),
    "trl-messages": to_trl_messages,
    "trl-prompt-completion": to_trl_prompt_completion,
}


def training_lines(examples: Iterable[Example], format: str) -> Iterator[str]:
    """Convert examples to the lines of a training file, without line endings.

    Args:
        examples: The examples; they are read one by one, except for "query-response".
        format: "openai", "openai-functions", "gradient", "gradient-structured", "trl-messages",
            "trl-prompt-completion" (one JSON line an example) or "query-response" (one JSON object in all).

    Returns:
        An iterator over the lines.

    Raises:
        ConfigurationError: The format is unknown.
        DatasetError: The format cannot express an example, which the message names.
    """
    if format == "query-response":
        return iter([_dumped(to_query_response(examples))])
    if format not in _CONVERTERS:
        known = ", ".join(sorted([*_CONVERTERS, "query-response"]))
        raise ConfigurationError(f"format: {format!r}, expected None (canonical Examples) or one of {known}")
    return _lines(examples, _CONVERTERS[format], format)


def _lines(
    examples: Iterable[Example], to_line: Callable[[Example], dict[str, Any]], name: str
) -> Iterator[str]:
    for row, example in enumerate(examples):
        try:
            yield _dumped(to_line(example))
        except ValueError as error:
            raise DatasetError(f"example {row} ({example.id[:12]}) has no {name} form: {error}") from error


def _dumped(value: dict[str, Any]) -> str:
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    require_utf8(line)
    return line


def to_query_response(examples: Iterable[Example]) -> dict[str, Any]:
    """Convert examples to LlamaIndex's QueryResponseDataset: the questions before retrieval and their answers.

    Args:
        examples: Examples with a ``query``.

    Returns:
        ``{"queries": {id: text}, "responses": {id: text}}`` with the ids "0", "1", and so on.

    Raises:
        DatasetError: An example has no ``query``, its answer is not one text, or UTF-8 cannot encode it.
    """
    queries, responses = {}, {}
    for row, example in enumerate(examples):
        if example.query is None:
            raise DatasetError(f"example {row} ({example.id[:12]}) has no 'query', the question it answers")
        try:
            answer = example.answer_text()
            require_utf8(example.query + answer)
        except ValueError as error:
            raise DatasetError(
                f"example {row} ({example.id[:12]}) has no query-response form: {error}"
            ) from error
        queries[str(row)], responses[str(row)] = example.query, answer
    return {"queries": queries, "responses": responses}
