"""OpenAI preference (DPO) lines: an accepted and a rejected answer to the same prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import CaptureError, DatasetError
from ..example import Example, Message, content_hash
from ..jsonl import READ_ERRORS, Line, one_line_reason, parse_line, read_lines
from ..jsonl_store import read_shards
from .openai import from_openai, sent_tools
from .reading import example_from_row

__all__ = [
    "from_openai_preference",
    "preference_lines",
    "preference_pairs",
    "preference_rows",
    "read_preferences",
    "read_rejects",
    "to_openai_preference",
]


def to_openai_preference(example: Example, rejected: Message) -> dict[str, Any]:
    """Make a line with the example's answer as the preferred one and ``rejected`` as the other.

    Args:
        example: The prompt, its tools and the preferred answer.
        rejected: The answer that is not preferred, an assistant's message.

    Returns:
        ``{"input", "preferred_output", "non_preferred_output"}``.
    """
    return {
        "input": {"messages": [m.wire() for m in example.messages], **sent_tools(example)},
        "preferred_output": [_output(example.answer)],
        "non_preferred_output": [_output(rejected)],
    }


def _output(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.wire().items() if key != "weight"}


def from_openai_preference(row: dict[str, Any]) -> tuple[Example, Message]:
    """Read a line of ``to_openai_preference``.

    Args:
        row: The parsed line.

    Returns:
        The example with the preferred answer, and the other answer.

    Raises:
        ValueError: The line is malformed; the message names the field.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    prompt, better, worse = (row.get(k) for k in ("input", "preferred_output", "non_preferred_output"))
    if not isinstance(prompt, dict) or not isinstance(prompt.get("messages"), list):
        raise ValueError("input: expected an object with 'messages'")
    if not (isinstance(better, list) and isinstance(worse, list) and len(better) == len(worse) == 1):
        raise ValueError("preferred_output and non_preferred_output: expected a list of one message each")
    chat = {"messages": [*prompt["messages"], better[0]], "tools": prompt.get("tools")}
    example = from_openai(chat | {"parallel_tool_calls": prompt.get("parallel_tool_calls")})
    return example, Message.model_validate(worse[0])


def preference_lines(examples: Iterable[Example], rejects: str | Path | Iterable[Example]) -> Iterator[str]:
    """Yield a line for each rejected answer whose prompt has an accepted answer that differs from it.

    Args:
        examples: Examples with accepted answers; of those with the same prompt the last one counts.
        rejects: Examples with rejected answers, or the path of a capture's rejects (``*.rejects.jsonl``).

    Yields:
        JSON lines of ``to_openai_preference``, without line endings.

    Raises:
        DatasetError: No line can be made, or the file cannot be read or has an invalid line (``file:line``).
    """
    rejected = read_rejects(Path(rejects)) if isinstance(rejects, str | Path) else rejects
    for example, reject in preference_pairs(examples, rejected):
        yield json.dumps(to_openai_preference(example, reject.answer), ensure_ascii=False)


def preference_pairs(
    examples: Iterable[Example], rejects: Iterable[Example]
) -> Iterator[tuple[Example, Example]]:
    """Yield each rejected answer behind the accepted answer to the same prompt that differs from it.

    Args:
        examples: Examples with accepted answers; of those with the same prompt the last one counts.
        rejects: Examples with rejected answers.

    Yields:
        The accepted and the rejected Example.

    Raises:
        DatasetError: There is no pair.
    """
    accepted = {_prompt_hash(example): example for example in examples}
    empty = True
    for reject in rejects:
        example = accepted.get(_prompt_hash(reject))
        if example is not None and _said(example) != _said(reject):
            empty = False
            yield example, reject
    if empty:
        raise DatasetError(
            "no rejected answer has an accepted answer to the same prompt; ask the rejected questions again"
        )


def read_preferences(path: str | Path) -> tuple[list[Example], list[Example]]:
    """Read a file of OpenAI's preference (DPO) lines.

    Args:
        path: The file, of lines as ``to_openai_preference`` makes them.

    Returns:
        The Examples with the preferred answers, and as many with the others.

    Raises:
        DatasetError: The file cannot be read or is empty, or lines are invalid (each as ``file:line``).
    """
    preferred: list[Example] = []
    others: list[Example] = []
    wrong: list[str] = []
    try:
        for line, found in preference_rows(Path(path)):
            if isinstance(found, str):
                wrong.append(f"{line.where}: {found}")
            else:
                example, other = found
                preferred.append(example)
                others.append(example.model_copy(update={"answer": other}))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    if wrong:
        raise DatasetError("\n".join(wrong))
    if not preferred:
        raise DatasetError(f"{path}: holds no line; expected preference lines of OpenAI's form")
    return preferred, others


def preference_rows(path: Path) -> Iterator[tuple[Line, tuple[Example, Message] | str]]:
    """Yield each line that is not blank, with what ``from_openai_preference`` reads, or the reason why it cannot.

    Args:
        path: The file. Raises OSError where it cannot be read.
    """
    for line in read_lines(path, torn_from=None):
        try:
            yield line, from_openai_preference(parse_line(line.raw))
        except READ_ERRORS as error:
            yield line, one_line_reason(error)


def _said(example: Example) -> Any:
    """What an answer says, without the ids of its calls, which are random."""
    calls = example.answer.tool_calls or ()
    return example.answer_texts(), [call["function"]["name"] for call in calls]  # type: ignore[index, call-overload]


def _prompt_hash(example: Example) -> str:
    return content_hash([[m.wire() for m in example.messages], example.tools])


def read_rejects(path: Path) -> Iterator[Example]:
    """Yield the Examples of a capture's rejects, whose rows are ``{"reason", "detail", "example"}``.

    Args:
        path: The file; its shards are read too.

    Raises:
        DatasetError: It cannot be read or has an invalid line (``file:line``).
    """
    try:
        for line in read_shards(path):
            try:
                row = parse_line(line.raw)
                yield example_from_row(row["example"] if isinstance(row, dict) and "example" in row else row)
            except READ_ERRORS as error:
                raise DatasetError(f"{line.where}: {one_line_reason(error)}") from error
    except CaptureError as error:
        raise DatasetError(f"{error}'s rejects") from error
