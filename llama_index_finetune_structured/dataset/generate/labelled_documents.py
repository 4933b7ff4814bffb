"""The result of labelling documents: rows, and what gave none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...printable import one_line, printable
from ..finetune_dataset import FinetuneDataset
from .recipe import ServingRecipe

__all__ = ["DocumentProblem", "LabelledDocuments", "ProblemKind", "listed_problems"]

ProblemKind = Literal[
    "unreadable",
    "no_label",
    "no_document",
    "invalid_label",
    "conflict",
    "too_long",
    "failed",
    "page_without_text",
    "copy",
    "unknown_field",
]


@dataclass(frozen=True)
class DocumentProblem:
    """A document or a label that gave no row, or not all of one.

    Attributes:
        kind: "unreadable": a file without text, or that cannot be read. "no_label": nothing says its answer.
            "no_document": a label's document is not there. "invalid_label": a label that cannot be read, or whose
            answer the schema refuses. "conflict": two labels of one document differ. "too_long": it has more than
            ``max_characters`` and cannot be cut. "failed": the teacher gave no valid answer. "page_without_text": the
            document has a row, but pages of it are pictures. "copy": its text is that of another document, whose row
            stands for both. "unknown_field": labels have a field that the schema does not, and which was not read.
        where: The place: ``file:line`` of a label, else the document.
        message: What is wrong, and what to do about it.
        document: Name of the document. None: it is not known.
    """

    kind: ProblemKind
    where: str
    message: str
    document: str | None = None

    def __str__(self) -> str:
        return one_line(f"{self.where}: {self.message}")


@dataclass(frozen=True)
class LabelledDocuments:
    """The result of ``label_documents``.

    Attributes:
        data: One row a document, or one a part of a long one, in the order of the documents.
        recipe: The prompts of the rows, and the settings that serve the same ones.
        problems: Documents and labels that gave no row, each with its place and the reason.
        documents: Documents with text.
        negatives: Rows whose answer is that the document is of another kind.
        duplicates: Labels that repeat an equal one.
        paid: Calls of the teacher, all attempts included.
        reused: Answers of the teacher that were stored already.
        changed: Documents that the teacher answered earlier with another text, and was asked again.
        hashes: Hash of each document's text, by its name.
    """

    data: FinetuneDataset
    recipe: ServingRecipe
    problems: tuple[DocumentProblem, ...]
    documents: int
    negatives: int
    duplicates: int
    paid: int = 0
    reused: int = 0
    changed: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        teacher = (
            f"; teacher: {self.paid} calls, {self.reused} answers reused" if self.paid or self.reused else ""
        )
        changed = f", {len(self.changed)} changed documents asked again" if self.changed else ""
        duplicates = f"; {self.duplicates} labels twice" if self.duplicates else ""
        counts = f"{len(self.data)} rows of {self.documents} documents, {self.negatives} of another kind"
        listed = [f"  {problem.kind}: {problem}" for problem in self.problems]
        return printable("\n".join([f"{counts}{duplicates}{teacher}{changed}", *listed]))


_SHOWN = 3  # chosen: problems of each kind that an error lists


def listed_problems(problems: Iterable[DocumentProblem]) -> str:
    """The first problems of each kind, a line each, and how many more there are."""
    kinds: dict[str, list[DocumentProblem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, own in kinds.items():
        lines += [f"  {kind}: {problem}" for problem in own[:_SHOWN]]
        lines += [f"  {kind}: and {len(own) - _SHOWN} more"] if len(own) > _SHOWN else []
    return "\n".join(lines)
