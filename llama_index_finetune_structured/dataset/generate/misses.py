"""Retrieval misses: answers that were given without the chunk that supports them, and what to do with such rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from ...errors import ConfigurationError
from ...example import Example

__all__ = ["CONTEXT_KEY", "ContextKind", "RetrievalMisses", "check_misses", "is_miss", "settle_misses"]

ContextKind = Literal["with_support", "support_missed", "distractor", "without_support", "without_context"]
"""What a row's context contains.

"support_missed": the retriever did not return the supporting chunk. "distractor": it did, and this row, of a question's
rows with one chunk each, has another one. "without_support": it was removed to train that case.
"""

RetrievalMisses = Literal["drop", "keep", "abstain"]
"""What becomes of such a row: it is left out, kept with an answer from memory, or answered by the abstention."""

CONTEXT_KEY = "context"  # of an Example's metadata; its value is a ContextKind


def check_misses(retrieval_misses: str, abstention: object) -> None:
    """Raises ConfigurationError for another value, and for "abstain" without an abstention."""
    if retrieval_misses not in ("drop", "keep", "abstain"):
        raise ConfigurationError(f"retrieval_misses: {retrieval_misses!r}, expected drop, keep or abstain")
    if retrieval_misses == "abstain" and abstention is None:
        raise ConfigurationError(
            "retrieval_misses='abstain': give the abstention as well, the answer that says that the context lacks it"
        )


def is_miss(example: Example) -> bool:
    """Whether the supporting chunk is known and the row lacks it, unless that was asked for by a share."""
    return example.metadata.get(CONTEXT_KEY) in ("support_missed", "distractor")


def settle_misses(
    examples: Iterable[Example], retrieval_misses: RetrievalMisses, abstention: str | None = None
) -> Iterator[Example]:
    """The examples, with their retrieval misses left out, kept, or answered by ``abstention``."""
    check_misses(retrieval_misses, abstention)
    for example in examples:
        if not is_miss(example) or retrieval_misses == "keep":
            yield example
        elif abstention is not None and retrieval_misses == "abstain":
            yield _with_answer(example, abstention)


def _with_answer(example: Example, text: str) -> Example:
    """The example with another answer, given in the same way: as content or as the arguments of its tool call."""
    calls = example.answer.tool_calls
    if calls:
        function = calls[0]["function"]
        named = {**function, "arguments": text} if isinstance(function, dict) else function
        change = {"tool_calls": [{**calls[0], "function": named}]}
    else:
        change = {"content": text}  # type: ignore[dict-item]
    return example.model_copy(
        update={
            "answer": example.answer.model_copy(update=change),
            "metadata": {**example.metadata, "answer_as_sent": example.answer_text()},
        }
    )
