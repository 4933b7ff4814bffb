"""Rows of whole documents for the ``build`` command: labels, or a teacher that fills the schema."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..answer_values import class_schema
from ..dataset import CallPolicy, label_documents
from ..dataset.generate.labelled_documents import LabelledDocuments, listed_problems
from ..dataset.schema.load import load_schema
from ..errors import DatasetError
from ..example import content_hash
from .build_folder import BuildSettings, DocumentChanges, build_folder
from .build_output import listed, save_rows, summary_lines
from .command import Result, counted
from .schema_option import remember_schema
from .teacher import hosted_teacher

__all__ = ["DocumentOptions", "build_documents"]

_ANSWERS = "documents.jsonl"
_TEACHER_TOKENS = (
    32_768  # chosen: of the window of a model that LlamaIndex does not know; nothing is cut to it
)
_MEANINGS = {
    "unreadable": "documents without text, or that cannot be read",
    "no_label": "documents without a label",
    "no_document": "labels of no document",
    "invalid_label": "labels that are not valid",
    "conflict": "labels that differ from another one of the same document",
    "too_long": "documents that are too long",
    "failed": "documents without a valid answer of the teacher (--retry-failed asks again)",
    "page_without_text": "documents with pages without text",
    "copy": "documents with the text of another one",
    "unknown_field": "fields of labels that the schema does not have",
}


@dataclass(frozen=True)
class DocumentOptions:
    """The options of rows that hold whole documents, as in ``label_documents``."""

    labels: Path | None
    teacher: str | None
    api_base: str | None
    instruction: str | None
    negatives: Path | None
    max_characters: int | None


def build_documents(
    folder: Path,
    schema: str,
    output: Path,
    options: DocumentOptions,
    *,
    validation: float,
    seed: int,
    calls: CallPolicy,
    retry_failed: bool,
) -> Result:
    """Write the training file of one row a document, and the one of the rows held out."""
    output_cls = load_schema(schema)
    llm = (
        None
        if options.teacher is None
        else hosted_teacher(options.teacher, options.api_base, _TEACHER_TOKENS)
    )
    settings = BuildSettings(
        answer_schema=class_schema(output_cls), teacher=None, instruction=options.instruction or ""
    )
    with build_folder(output, settings) as kept:
        remember_schema(kept, schema, output_cls)
        made = label_documents(
            folder,
            output_cls,
            labels=options.labels,
            teacher=llm,
            path=kept / _ANSWERS,
            negatives=options.negatives,
            instruction=options.instruction,
            max_characters=options.max_characters,
            calls=calls,
            retry_failed=retry_failed,
        )
        answers = _answers(made)
        if validation and len(answers) < 2:
            raise DatasetError(
                "only one document gave a row, so none can be held out: add labels, or give --validation 0\n"
                + listed_problems(made.problems)
            )
        documents = DocumentChanges(kept, made.hashes, answers)
        stale = documents.same_answer() if options.labels else []
        data = {
            **save_rows(list(made.data), output, validation, seed, documents),
            "negatives": made.negatives,
            "paid": made.paid,
            "reused": made.reused,
            "asked_again": len(made.changed),
            "labels_of_changed": stale,
            "problems": [asdict(problem) for problem in made.problems],
        }
    again = f"{counted(len(made.changed), 'document')} asked again"
    lines = [*summary_lines(data, validation, again), *_notes(made, stale)]
    return Result(data, ("\n".join(lines),))


def _answers(made: LabelledDocuments) -> dict[str, str]:
    """Hash of the answers in each document's rows."""
    texts = defaultdict[str, list[str]](list)
    for row in made.data:
        texts[row.document_id or ""].append(row.answer_text())
    return {name: content_hash(answers) for name, answers in texts.items()}


def _notes(made: LabelledDocuments, stale: Sequence[str]) -> list[str]:
    lines = []
    if stale:
        lines.append(
            f"{counted(len(stale), 'document')} changed, and the labels did not; check these labels:"
        )
        lines += listed(stale)
    if made.duplicates:
        lines.append(f"{counted(made.duplicates, 'label')} equal to another one of the same document")
    counts = Counter(problem.kind for problem in made.problems)
    for kind, number in counts.items():
        lines.append(f"{number} {_MEANINGS[kind]}:")
        lines += listed([str(problem) for problem in made.problems if problem.kind == kind])
    return lines
