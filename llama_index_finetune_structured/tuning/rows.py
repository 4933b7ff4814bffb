"""The rows of a run: read with their places, divided into those to train on and those held out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel

from ..dataset import FinetuneDataset
from ..dataset.checks.problems import listing, refuse_errors
from ..dataset.checks.rows import CheckSource, SourceRow, as_source, parsed_rows, source_name
from ..dataset.checks.run import SourceCheck
from ..dataset.checks.targets import TrainingTarget, target_named
from ..dataset.leakage import find_leaks
from ..dataset.splits import GroupBy, document_of, unit_hash
from ..errors import DatasetError
from ..example import Example
from ..local.model.prompts import prompt_form_of
from ..local.train.settings import LoraSettings
from ..printable import package_logger

__all__ = ["FEW_ROWS", "DividedRows", "RowSource", "Rows", "precision_of", "require_schemas", "rows_text"]

_log = package_logger(__name__)

Rows = FinetuneDataset | str | Path | Iterable[Example]
FEW_ROWS = 50
"""Chosen: some dozens of rows teach no more than the form of an answer."""
_TRAIN_SHARE = 0.8  # chosen: of the documents or questions; the share of the guides
_MOST_SCORED = 200
"""Chosen: a rate of so many rows is known to within 7 points; on a CPU each row takes seconds, for two models."""
_ODD_SHARES = (0.05, 0.4)  # chosen: a held-out share below or above leaves too little to score or to train on
_MANY_POINTS = 25  # chosen: what training often gains
_POINTS_OF_ONE = 98  # half the width of a rate's 95% interval at one row, in points, where the rate is 50%


@dataclass(frozen=True)
class RowSource:
    """Data as it was given, and its rows with their places; with a class, as the class writes them."""

    name: str
    source: CheckSource
    rows: tuple[SourceRow, ...]

    @classmethod
    def of(cls, data: Rows, output_cls: type[BaseModel] | None) -> RowSource:
        """Read the rows. Raises DatasetError with every line that cannot be read, or that the class refuses."""
        source = as_source(data)
        rows = parsed_rows(source)
        return cls(source_name(source), source, rows if output_cls is None else _as_written(rows, output_cls))

    @property
    def examples(self) -> list[Example]:
        return [row.content for row in self.rows if isinstance(row.content, Example)]

    def check(self, target: TrainingTarget) -> None:
        """Log what ``check`` warns of. Raises DatasetError with its errors."""
        done = SourceCheck(target)
        done.run(self.source, self.rows)
        refuse_errors(done.problems)
        if done.problems:
            _log.warning("%s", "\n".join(listing(done.problems)))


def _as_written(rows: tuple[SourceRow, ...], output_cls: type[BaseModel]) -> tuple[SourceRow, ...]:
    """The rows as a class writes their answers. Raises DatasetError for those that it refuses, with their places."""
    found = FinetuneDataset(row.content for row in rows if isinstance(row.content, Example)).revalidate(
        output_cls
    )
    if found.lost:
        place, reason = rows[found.lost[0].row], found.lost[0].reason
        raise DatasetError(
            f"{place.file}:{place.number}: {output_cls.__name__} refuses the answer: {reason}. It refuses "
            f"{len(found.lost)} of {len(rows)} rows: check(data, output_cls={output_cls.__name__}) lists them, and "
            "its fix(path) writes the others to a new file"
        )
    return tuple(row._replace(content=example) for row, example in zip(rows, found.examples, strict=True))


@dataclass
class DividedRows:
    """The rows to train on and those held out.

    ``by``: how they were divided; None where the held-out rows were given.
    """

    name: str
    train: FinetuneDataset
    held_out: FinetuneDataset
    by: str | None
    seed: int
    sources: tuple[RowSource, ...]
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, data: Rows, validation: Rows | None, output_cls: type[BaseModel] | None, seed: int
    ) -> DividedRows:
        """Read and divide. Raises DatasetError where rows cannot be read, divided or scored."""
        source = RowSource.of(data, output_cls)
        name = Path(source.name).name
        if validation is None:
            parts = cls(name, *_divided(source.examples, seed), seed, (source,))
            parts._remark_on_split(len(source.rows))
        else:
            try:
                held_out = RowSource.of(validation, output_cls)
            except DatasetError as error:
                raise DatasetError(f"validation: {error}") from error
            train = FinetuneDataset(source.examples)
            parts = cls(name, train, _with_documents(held_out.examples), None, seed, (source, held_out))
            parts._remark_on_documents()
        parts._require_schemas()
        return parts

    def check(self, base_model: str, settings: LoraSettings) -> None:
        """Log what ``check`` warns of. Raises DatasetError with its errors."""
        form = prompt_form_of(self.train, *settings.prompts)
        target = target_named("local", base_model, settings.max_length, form)
        self.sources[0].check(target)
        for source in self.sources[1:]:
            try:
                source.check(replace(target, reasons=False))
            except DatasetError as error:
                raise DatasetError(f"validation: {error}") from error

    def scored(self) -> list[Example]:
        """The held-out rows to score. Those that are not scored are told in ``remarks``."""
        rows = [example for example in self.held_out if example.answer_schema is not None]
        if more := len(self.held_out) - len(rows):
            self.remarks.append(f"{rows_text(more)} held out without a schema, which are not scored")
        rows = self._without_leaks(rows)
        if self.by is None or len(rows) <= _MOST_SCORED:
            return rows
        drawn = sorted(rows, key=lambda example: (unit_hash(self.seed, example.id), example.id))[
            :_MOST_SCORED
        ]
        chosen = set(map(id, drawn))
        self.remarks.append(f"{_MOST_SCORED} of {len(rows)} held-out rows are scored, drawn at random")
        return [example for example in rows if id(example) in chosen]

    def _without_leaks(self, rows: list[Example]) -> list[Example]:
        report = find_leaks(list(self.train), rows)
        if not report.leaks:
            return rows
        leaking = {leak.validation_row for leak in report.leaks}
        kept = [example for row, example in enumerate(rows) if row not in leaking]
        if self.by is None or not kept:
            self.remarks.append(f"{report}. The figures are better than on new questions")
            return rows
        self.remarks.append(
            f"{rows_text(len(leaking))} held out and not scored: near-duplicates of training rows"
        )
        return kept

    def _remark_on_split(self, total: int) -> None:
        share, (low, high) = len(self.held_out) / total, _ODD_SHARES
        if total >= FEW_ROWS and not low <= share <= high:
            self.remarks.append(
                f"{share:.0%} of the rows are held out, since {self.by}s differ in size; another seed= or "
                "validation= divides them otherwise"
            )
        named = [document for e in (*self.train, *self.held_out) if (document := document_of(e)) is not None]
        if self.by == "document" or not named:
            return
        if len(set(named)) == 1 and len(named) == total:
            self.remarks.append("all rows are of one document: the figures say nothing about other documents")
        else:
            self.remarks.append(
                f"{total - len(named)} of {total} rows name no document, so that a document may be on both sides, "
                "which flatters the figures; set document_id of every row"
            )

    def _remark_on_documents(self) -> None:
        trained = {document_of(example) for example in self.train} - {None}
        if shared := sum(example.document_id in trained for example in self.held_out):
            self.remarks.append(
                f"{rows_text(shared)} held out are of documents that are trained on, which flatters the figures"
            )

    def _require_schemas(self) -> None:
        for part, rows in (("rows to train on", self.train), ("held-out rows", self.held_out)):
            require_schemas(self.name, part, list(rows))


def _divided(examples: list[Example], seed: int) -> tuple[FinetuneDataset, FinetuneDataset, str]:
    """Training rows, held-out rows, and by what they were divided. Raises DatasetError where that is impossible."""
    documents = {document_of(example) for example in examples}
    by_document = None not in documents and len(documents) > 1
    group_by: GroupBy = "document" if by_document else None
    try:
        train, held_out = FinetuneDataset(examples).split(_TRAIN_SHARE, group_by, seed, check_leakage=False)
    except DatasetError as error:
        raise DatasetError(f"{error}; or pass held-out rows as validation=") from error
    return train, _with_documents(held_out), "document" if by_document else "question"


def _with_documents(rows: Iterable[Example]) -> FinetuneDataset:
    """The rows with the document of their first source where they name none, for intervals over documents."""
    return FinetuneDataset(e.model_copy(update={"document_id": document_of(e)}) for e in rows)


def require_schemas(name: str, part: str, rows: Collection[Example]) -> None:
    """Raise DatasetError where no row has a schema."""
    if all(example.answer_schema is None for example in rows):
        raise DatasetError(
            f"{name}: none of the {len(rows)} {part} has a schema of its answer, by which structured answers are made "
            "and scored; pass output_cls= (--schema), or capture with output_cls"
        )


def rows_text(number: int) -> str:
    """``1 row``, ``2 rows``."""
    return "1 row" if number == 1 else f"{number} rows"


def precision_of(scored: list[Example]) -> str:
    """How well rates on these rows are known: half their 95% interval, where rows of one document count as one."""
    documents = {example.document_id for example in scored}
    units = len(scored) if None in documents else len(documents)
    of = "" if None in documents else f" of {units} document{'s'[: units > 1]}"
    points = _POINTS_OF_ONE / units**0.5
    few = ": too few to see any but a large difference" if points > _MANY_POINTS else ""
    return f"A rate on {rows_text(len(scored))}{of} is known to within about {points:.0f} points{few}."
