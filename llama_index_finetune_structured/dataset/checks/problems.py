"""Problems of a training file: their codes, suggested fixes, and which of them are only warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import DatasetError
from ...printable import printable

__all__ = ["FIXES", "WARNINGS", "Fault", "Problem", "first_of", "listing", "refuse_errors"]

_SHOWN = 5  # chosen: problems of one kind that a list names; of the others it names the lines
_SHOWN_NAMES = 6  # chosen: names that one problem names
_SHOWN_RANGES = 8  # chosen: ranges of lines, as 8-12, that one line of a list names

FIXES = {
    "cannot_read": "give the path of a file that exists and can be read",
    "no_examples": "capture or label examples first",
    "not_utf8": "save the file as UTF-8",
    "not_json": "write one complete JSON object a line; a line cut short by a crash can be deleted",
    "torn_line": "nothing: the line is left out; end the file with a line ending if it is complete",
    "too_deep": "reduce the nesting of the value",
    "not_an_object": "write one JSON object a line",
    "unknown_format": "write Examples, or chat lines with 'messages', answer last",
    "wrong_format": "save the data set again in this target's format",
    "wrong_method": "make the job with that method, or choose a file for this one",
    "not_a_preference": "write 'input' with messages, and one each in 'preferred_output', 'non_preferred_output'",
    "bad_message": "give every message a known role and text, or parts with a type",
    "unknown_keys": "leave the keys out; some providers refuse a line for them",
    "zero_trained": "give the answer weight 1, or leave the row out",
    "empty_answer": "leave the row out, or answer it",
    "tool_arguments": "write tool arguments as JSON text, e.g. \"arguments\": \"{\\\"a\\\": 1}\"",
    "unknown_tool": "list the called tool under 'tools'",
    "orphan_tool_message": "put the assistant's tool call before its result, with the same id",
    "unanswered_call": "put a tool message with the call's id after each tool call, before the next turn",
    "bad_name": "use letters, digits, _ and -, at most 64 of them",
    "bad_tool": "write each tool as {'type': 'function', 'function': {'name', 'parameters'}}, as many as allowed",
    "bad_part": "keep to the parts that the provider trains on, or leave the row out",
    "bad_weight": "leave the weight out; only an assistant message has one",
    "answer_not_in_schema": "generate the answer again, or revalidate the data set against the current model",
    "duplicate": "call deduplicate(); a repeated row only gets more weight",
    "cannot_render": "see the reason; leave the row out or change its messages",
    "tools_not_rendered": "render the data as 'text', or use a base model whose chat template renders tools",
    "no_reasoning": "capture a model that gives its reasoning, or train with thinking='drop'",
    "answer_not_sayable": "change the answer, or allow it in the schema: the grammar never lets the model write it",
    "no_grammar": "simplify the schema, or serve the model with constrained=False: answers are validated only",
    "not_enforced": "check answers for it yourself; a class's own validation refuses such answers after they are made",
    "unsure_value": "name the locale of the documents in AsWritten, or under locales of a YAML schema",
    "value_not_in_text": "correct the answer or the text: a value that is not there teaches the model to invent",
    "rule_broken": "correct the answer, leave the row out, or keep it if its document is wrong itself",
    "field_untaught": "add rows that fill it, or leave it out of the schema: the model learns to leave it empty",
    "field_new": "fill it in every row that has a value for it: rows of this schema without it teach to leave it empty",
    "answer_cut": "raise the length limit, shorten the context, or leave the row out",
    "stop_token_untrained": "use a chat template that ends the answer with the stop token",
    "prompt_not_prefix": "end the prompt on a token boundary: the template merges it with the answer",
    "too_few_examples": "capture more examples",
    "file_too_large": "split the file, or train on a sample",
    "internal": "report this line as a bug of this package",
}  # fmt: skip
"""The suggested fix of each problem code."""
WARNINGS = frozenset(
    {
        "unknown_keys",
        "duplicate",
        "prompt_not_prefix",
        "torn_line",
        "no_grammar",
        "not_enforced",
        "field_untaught",
        "field_new",
        "unsure_value",
        "value_not_in_text",
        "rule_broken",
    }
)
"""Codes of problems that keep no complete line out of training."""


class Fault(NamedTuple):
    """A problem before its file and line are added: a key of ``FIXES`` and the reason."""

    code: str
    message: str


@dataclass(frozen=True)
class Problem:
    """One problem of a training file.

    Attributes:
        code: Short name of the kind of problem, such as "not_json"; each has a suggested ``fix``.
        message: What is wrong with this line.
        file: The file, or "dataset" for Examples in memory.
        line: Line of the file, from 1 (in a data set: the example). 0: the whole file.
    """

    code: str
    message: str
    file: str
    line: int = 0

    @property
    def fix(self) -> str:
        """The suggested fix."""
        return FIXES[self.code]

    @property
    def is_warning(self) -> bool:
        """Whether the line can still be trained on."""
        return self.code in WARNINGS

    @property
    def finding(self) -> str:
        """The problem without its fix."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        kind = "warning" if self.is_warning else "error"
        return f"{where}: {kind} [{self.code}] {self.message}"

    def __str__(self) -> str:
        return printable(f"{self.finding}; {self.fix}")


def listing(problems: Iterable[Problem]) -> Iterator[str]:
    """The problems as lines of text: errors first, by kind, each kind's fix once.

    Of many problems of one kind the first five are shown, of the others the numbers of their lines.
    """
    kinds: dict[str, list[Problem]] = {}
    for problem in sorted(problems, key=lambda problem: problem.is_warning):
        kinds.setdefault(problem.code, []).append(problem)
    for code, found in kinds.items():
        yield str(found[0])
        yield from (problem.finding for problem in found[1:_SHOWN])
        if more := found[_SHOWN:]:
            files = {problem.file for problem in more}
            numbers = sorted({problem.line for problem in more} - {0})
            where = f": lines {_ranges(numbers)}" if len(files) == 1 and numbers else ""
            yield f"... and {len(more)} more [{code}]{where}"


def first_of(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers with their ranges, as ``4, 8-12``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_SHOWN_RANGES]]
    return ", ".join(shown) + (", ..." if len(ranges) > _SHOWN_RANGES else "")


def refuse_errors(problems: Iterable[Problem]) -> None:
    """Raise DatasetError that lists every error among the problems; warnings alone raise nothing."""
    errors = [problem for problem in problems if not problem.is_warning]
    if errors:
        raise DatasetError("\n".join(listing(errors)))
