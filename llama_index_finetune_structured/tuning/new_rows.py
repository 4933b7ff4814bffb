"""The rows of a capture that a run can learn from: neither trained on already, nor held out in any form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..dataset.leakage import find_leaks
from ..dataset.splits import document_of, group_names
from ..example import Example
from .rows import rows_text

__all__ = ["NewRows"]


@dataclass(frozen=True)
class NewRows:
    """The number of captured rows that are trained on, and of the others by reason.

    ``left_out``: in the words of a sentence, such as ``trained on already``. ``rows``: those that are trained on.
    """

    taken: int
    left_out: Mapping[str, int]
    rows: tuple[Example, ...] = ()

    @classmethod
    def of(
        cls, captured: Sequence[Example], train: Sequence[Example], held_out: Sequence[Example]
    ) -> NewRows:
        """Sort captured rows; each that is left out is counted once, by the first reason that holds.

        Documents and questions are held out where no training row has them: a run that is divided by document asks
        the same question about many, one that is divided by question has rows of a document on both sides.
        """
        rows, reasons = list(captured), dict[str, int]()
        for reason, is_left_out in _filters(train, held_out):
            left_out = is_left_out(rows)
            if number := sum(left_out):
                reasons[reason] = number
            rows = [row for row, out in zip(rows, left_out, strict=True) if not out]
        return cls(len(rows), reasons, tuple(rows))

    def __str__(self) -> str:
        total = self.taken + sum(self.left_out.values())
        left_out = ", ".join(f"{number} {reason}" for reason, number in self.left_out.items())
        return f"{self.taken} of {rows_text(total)} are new" + (f"; left out: {left_out}" if left_out else "")


_Filter = Callable[[list[Example]], list[bool]]


def _filters(train: Sequence[Example], held_out: Sequence[Example]) -> Iterator[tuple[str, _Filter]]:
    """Each reason with its rule: whether to leave out each of the rows that are left."""
    trained, held = ({row.id for row in rows} for rows in (train, held_out))
    documents = _only(map(document_of, held_out), map(document_of, train))
    questions = _only(group_names(held_out, None), group_names(train, None))
    yield "repeated in the capture", _repeated
    yield "held out", lambda rows: [row.id in held for row in rows]
    yield "of held-out documents", lambda rows: [document_of(row) in documents for row in rows]
    yield (
        "with held-out questions",
        lambda rows: [name in questions for name in group_names(rows, None)],
    )
    yield "near-duplicates of held-out rows", lambda rows: _alike(rows, held_out)
    yield "trained on already", lambda rows: [row.id in trained for row in rows]
    yield "near-duplicates of training rows", lambda rows: _alike(rows, train)


def _only(names: Iterable[str | None], others: Iterable[str | None]) -> set[str | None]:
    return {*names} - {*others, None}


def _repeated(rows: list[Example]) -> list[bool]:
    first = {row.id: at for at, row in reversed(list(enumerate(rows)))}
    return [first[row.id] != at for at, row in enumerate(rows)]


def _alike(rows: list[Example], others: Sequence[Example]) -> list[bool]:
    """Whether each row is a near-duplicate of one of the others, in question and answer, and in its messages too.

    Where one question is asked about many texts, those with the same answer, such as an empty list, are no repetition.
    """
    found = {leak.validation_row for leak in find_leaks(others, rows).leaks}
    suspects = sorted(at for at in found if rows[at].query is not None)
    by_messages = find_leaks([*map(_without_query, others)], [_without_query(rows[at]) for at in suspects])
    repeated = {suspects[leak.validation_row] for leak in by_messages.leaks}
    return [at in found and (rows[at].query is None or at in repeated) for at in range(len(rows))]


def _without_query(row: Example) -> Example:
    return row.model_copy(update={"query": None})
