"""Why answers failed: calls that raised and answers that do not fit, counted by cause."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ...errors import ConfigurationError, StructuredAnswerError
from ...printable import one_line

__all__ = ["INVALID", "Failure", "failure_sentence", "failure_sentences", "group_failures"]

INVALID = "invalid"
"""``error_kind`` of an answer that does not fit its schema."""

_REASONS = {INVALID, StructuredAnswerError.__name__, ConfigurationError.__name__}
_SHOWN = 3  # chosen: causes named in a sentence; the JSON has all
_MESSAGE_CHARACTERS = 300  # chosen: of each cause in a sentence
# What differs between messages of one cause: the value that was found, numbers, ids, quoted values.
_VARYING = re.compile(
    r"\{.*\}|'[^']*'|\"[^\"]*\"|[-+]?\d+(?:[.,]\d+)*(?![\w-])|\b(?=\w*\d)[\w-]+|\d+", re.DOTALL
)


class Failure(BaseModel):
    """Answers of one system that failed for one cause.

    Attributes:
        kind: Class name of the call's error; "invalid" for an answer that does not fit the schema.
        message: The first error's text; secrets are redacted.
        count: Number of answers with this cause; messages that differ only in numbers and quoted values are one.
        call_failed: Whether the call itself failed, so that there is no answer.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    message: str
    count: int
    call_failed: bool


def group_failures(errors: Sequence[tuple[bool, str, str]]) -> tuple[Failure, ...]:
    """The causes of (whether the call failed, kind, message), most frequent first; equal counts in order."""
    first: dict[tuple[bool, str, str], str] = {}
    counts: Counter[tuple[bool, str, str]] = Counter()
    for call_failed, kind, message in errors:
        cause = (call_failed, kind, _VARYING.sub("#", message))
        first.setdefault(cause, message)
        counts[cause] += 1
    return tuple(
        Failure(kind=cause[1], message=first[cause], count=count, call_failed=cause[0])
        for cause, count in counts.most_common()
    )


def failure_sentences(failures: Sequence[Failure], n: int) -> list[str]:
    """What failed of ``n`` answers and why: one sentence on failed calls, one on answers that do not fit."""
    found = (
        failure_sentence(failures, n, "calls failed", call_failed=True),
        failure_sentence(failures, n, "answers are not valid", call_failed=False),
    )
    return [sentence for sentence in found if sentence]


def failure_sentence(failures: Sequence[Failure], n: int, what: str, *, call_failed: bool) -> str:
    """``3 of 40 calls failed: ConnectionError: refused (2); TimeoutError: no answer (1)``; empty for none."""
    own = [failure for failure in failures if failure.call_failed == call_failed]
    total = sum(failure.count for failure in own)
    if not total:
        return ""
    number = f"all {n}" if total == n > 1 else f"{total} of {n}"
    causes = [_cause(failure, len(own) > 1) for failure in own[:_SHOWN]]
    more = sum(failure.count for failure in own[_SHOWN:])
    return f"{number} {what}: " + "; ".join([*causes, *([f"other causes ({more})"] if more else [])])


def _cause(failure: Failure, counted: bool) -> str:
    message = one_line(failure.message)
    if len(message) > _MESSAGE_CHARACTERS:
        message = f"{message[:_MESSAGE_CHARACTERS]}…"
    is_reason = failure.kind in _REASONS  # the message alone says what does not fit
    kind = "" if is_reason else f"{one_line(failure.kind)}: "
    return f"{kind}{message}" + (f" ({failure.count})" if counted else "")
