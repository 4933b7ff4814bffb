"""Counts over a data set, worth a look before paying for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..example import Example
from .splits import document_of

__all__ = ["DatasetSummary", "summarise"]


@dataclass(frozen=True)
class DatasetSummary:
    """Counts over a data set. Lengths are characters; ``documents`` counts the named ones."""

    examples: int
    with_schema: int
    schemas: int
    transports: dict[str, int]
    documents: int
    duplicates: int
    duplicates_removed: int
    prompt_chars: tuple[int, int, int]
    answer_chars: tuple[int, int, int]

    def __str__(self) -> str:
        ways = ", ".join(f"{name} {count}" for name, count in sorted(self.transports.items())) or "none"
        rows = [
            ("examples", f"{self.examples} ({ways})"),
            ("with a schema", f"{self.with_schema} ({self.schemas} different)"),
            ("documents", str(self.documents)),
            ("duplicates", f"{self.duplicates} in it, {self.duplicates_removed} removed"),
            ("prompt", "{} / {} / {} characters (least, median, most)".format(*self.prompt_chars)),
            ("answer", "{} / {} / {} characters".format(*self.answer_chars)),
        ]
        return "\n".join(f"{name:<14} {value}" for name, value in rows)


def summarise(examples: Sequence[Example], duplicates_removed: int) -> DatasetSummary:
    """Counts over ``examples``."""
    return DatasetSummary(
        examples=len(examples),
        with_schema=sum(e.answer_schema is not None for e in examples),
        schemas=len({e.schema_hash for e in examples if e.answer_schema is not None}),
        transports=dict(Counter(e.transport for e in examples)),
        documents=len({document_of(e) for e in examples} - {None}),
        duplicates=len(examples) - len({e.id for e in examples}),
        duplicates_removed=duplicates_removed,
        prompt_chars=_spread([_prompt_chars(e) for e in examples]),
        answer_chars=_spread([len(e.answer_text()) for e in examples]),
    )


def _spread(lengths: list[int]) -> tuple[int, int, int]:
    return (min(lengths), round(median(lengths)), max(lengths)) if lengths else (0, 0, 0)


def _prompt_chars(example: Example) -> int:
    contents = [m.content or "" for m in example.messages]
    return sum(len(text) if isinstance(text, str) else len(str(text)) for text in contents)
