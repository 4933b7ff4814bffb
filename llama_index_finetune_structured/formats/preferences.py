"""OpenAI's preference (DPO) lines: what was accepted against what was rejected, for the same prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import CaptureError, DatasetError
from ..example import Example, Message, content_hash
from ..jsonl import READ_ERRORS, one_line_reason, parse_line
from ..jsonl_store import read_shards
from .reading import example_from_row

__all__ = ["from_openai_preference", "preference_lines", "to_openai_preference"]


def to_openai_preference(example: Example, rejected: Message) -> dict[str, Any]:
    """One line: the example's prompt, its answer preferred, ``rejected`` not preferred."""
    asked: dict[str, Any] = {"messages": [m.wire() for m in example.messages]}
    if example.tools:
        asked |= {"tools": example.tools, "parallel_tool_calls": example.parallel_tool_calls is not False}
    return {
        "input": asked,
        "preferred_output": [_output(example.answer)],
        "non_preferred_output": [_output(rejected)],
    }


def _output(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.wire().items() if key != "weight"}


def from_openai_preference(row: dict[str, Any]) -> tuple[Example, Message]:
    """(the preferred example, the answer that is not preferred). Raises ValueError."""
    asked, better, worse = (row.get(k) for k in ("input", "preferred_output", "non_preferred_output"))
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise ValueError("input: expected an object with 'messages'")
    if not (isinstance(better, list) and isinstance(worse, list) and len(better) == len(worse) == 1):
        raise ValueError("preferred_output and non_preferred_output: expected a list of one message each")
    chat = {"messages": [*asked["messages"], better[0]], "tools": asked.get("tools")}
    example = example_from_row(chat | {"parallel_tool_calls": asked.get("parallel_tool_calls")})
    return example, Message.model_validate(worse[0])


def preference_lines(examples: Iterable[Example], rejects: str | Path | Iterable[Example]) -> Iterator[str]:
    """A line for each rejected answer whose prompt has an accepted one; equal answers make no line.

    Raises DatasetError when there is not one.
    """
    accepted = {_prompt(example): example for example in examples}
    refused = _read_rejects(Path(rejects)) if isinstance(rejects, str | Path) else rejects
    empty = True
    for reject in refused:
        example = accepted.get(_prompt(reject))
        if example is not None and example.answer_text() != reject.answer_text():
            empty = False
            yield json.dumps(to_openai_preference(example, reject.answer), ensure_ascii=False)
    if empty:
        raise DatasetError(
            "no rejected answer has an accepted one to the same prompt; ask the rejected questions again"
        )


def _prompt(example: Example) -> str:
    return content_hash([[m.wire() for m in example.messages], example.tools])


def _read_rejects(path: Path) -> Iterator[Example]:
    """The Examples of a capture's rejects, whose rows are ``{"reason", "detail", "example"}``."""
    try:
        for line in read_shards(path):
            try:
                row = parse_line(line.raw)
                yield example_from_row(row["example"] if isinstance(row, dict) and "example" in row else row)
            except READ_ERRORS as error:
                raise DatasetError(f"{line.where}: {one_line_reason(error)}") from error
    except CaptureError as error:
        raise DatasetError(f"{error}; expected rejects") from error
