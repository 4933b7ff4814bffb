"""Documents with labels, or a teacher that fills a schema from each, to one training row a document."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.schema import Document
from pydantic import BaseModel

from ...background import blocking
from ...errors import ConfigurationError, DatasetError
from ...example import Example, content_hash, loads
from ...jsonl import one_line_reason
from ...local.schema.list_items import learn_list_rules
from ...local.schema.text_frames import TextFrame
from ...printable import package_logger
from ..finetune_dataset import FinetuneDataset
from ..labels import AnswerShape, says_none
from ..windows import bare_examples, part_rows
from .document_names import DocumentNames
from .document_rows import DocumentRows, document_texts, length_reason, placed_row, recipe_of
from .documents import UnreadFile, read_folder
from .labelled_documents import DocumentProblem, LabelledDocuments, ProblemKind, listed_problems
from .labels_file import Label, LabelSource, read_labels, typed_cells
from .llm_calls import CallPolicy
from .readers import DocumentText
from .teacher_labels import TeacherLabels
from .unknown_fields import UnknownFields

__all__ = ["DocumentSource", "alabel_documents", "label_documents"]

_log = package_logger(__name__)
DocumentSource = str | Path | Iterable[DocumentText | Document]
"""A folder, or documents in memory."""


async def alabel_documents(
    documents: DocumentSource,
    output_cls: type[BaseModel] | None = None,
    *,
    schema: Mapping[str, Any] | None = None,
    labels: LabelSource | None = None,
    teacher: LLM | None = None,
    path: str | os.PathLike[str] | None = None,
    negatives: DocumentSource | None = None,
    instruction: str | None = None,
    system_prompt: str | None = None,
    max_characters: int | None = None,
    calls: CallPolicy | None = None,
    retry_failed: bool = False,
    show_progress: bool = True,
) -> LabelledDocuments:
    """Make one training row a document: its text and the object that is to be read from it.

    Labels come first; the teacher, if there is one, is asked for the documents without. Each answer is validated, and
    written as the class writes it. What gives no row is in ``problems``; nothing is left out without a reason. The
    teacher's answers are kept in ``path`` by the hash of the prompt: the same call again asks for what is new or has
    changed, and a killed run loses no paid answer.

    Args:
        documents: A folder of PDF, HTML, Markdown and text files; or documents of ``read_documents`` or of
            LlamaIndex's readers, whose pages are joined.
        output_cls: Class of the answers.
        schema: JSON schema of the answers, instead of ``output_cls``.
        labels: JSON Lines of ``{"document": name, "answer": {...}}`` (or the fields beside the document's name), or
            a list of these as JSON; a CSV file with a column ``document`` and one a field (``seller.name`` inside of
            an object; lists as JSON); a folder of JSON files named like the documents; or answers by name. An answer
            of null: the document is of another kind. Names may differ in case, Unicode form, suffix and folders where
            that is clear.
        teacher: LLM that reads each document whole.
        path: File of the teacher's answers. None: they are kept in memory.
        negatives: More documents, all of which are of another kind.
        instruction: Text before each document. None: ``Fill NAME from this document.``
        system_prompt: System message of every row. None: there is none.
        max_characters: A longer document is cut into parts of whole sentences, where the answers are lists alone: a
            part's answer has the items that stand in it. Any other longer document is a problem. None: no limit.
        calls: Concurrency and retries of the teacher. None: CallPolicy's defaults.
        retry_failed: Whether to ask again where the teacher failed in an earlier run.
        show_progress: Whether to show a progress bar.

    Raises:
        ConfigurationError: An argument is wrong, there is no such folder, or neither labels nor teacher are given.
        DatasetError: There are no documents or labels, or no row; the message says why.
        CaptureError: ``path`` cannot be written.
        MissingDependencyError: There are PDFs, and the extra ``pdf`` is not installed.
    """
    if labels is None and teacher is None:
        raise ConfigurationError("no source of answers: give labels= or teacher=")
    if teacher is not None and output_cls is None:
        raise ConfigurationError("teacher= needs output_cls=, the class that it fills")
    if max_characters is not None and max_characters < 1:
        raise ConfigurationError(f"max_characters: {max_characters!r}, expected 1 or more, or None")
    shape = AnswerShape(output_cls, schema)
    if shape.schema is None:
        raise ConfigurationError("give output_cls or schema, which says what is read from a document")
    rows = DocumentRows(shape, recipe_of(instruction, shape.name, system_prompt), output_cls)
    work = _Labelling.of(rows, documents, negatives)
    if labels is not None:
        work.label(read_labels(labels))
    asked = TeacherLabels(rows, path, calls or CallPolicy(), max_characters)
    if teacher is not None:
        await asked.ask(teacher, work.unlabelled(), retry_failed=retry_failed, show_progress=show_progress)
        work.take(asked)
    work.add_negatives()
    work.settle_copies()
    work.cut(max_characters)
    return work.result(asked)


label_documents = blocking(alabel_documents)


class _Labelling:
    """The documents of one call, with the rows and problems found so far."""

    def __init__(
        self,
        rows: DocumentRows,
        documents: list[DocumentText],
        unread: list[UnreadFile],
        folder: Path | None,
    ) -> None:
        self._rows, self._documents = rows, {document.name: document for document in documents}
        self._unread = {file.name: file for file in unread}
        self._names = DocumentNames([*self._documents, *self._unread], folder)
        self._negatives: list[DocumentText] = []
        self._labels: dict[str, tuple[str, str]] = {}  # by document: place and answer
        self._settled: set[str] = set()  # documents whose label was no use, which nothing else must answer
        self._made: dict[str, list[Example]] = {}
        self._problems: list[DocumentProblem] = []
        self._duplicates = 0
        self._unknown = UnknownFields(rows.shape.schema or {})

    @classmethod
    def of(
        cls, rows: DocumentRows, documents: DocumentSource, negatives: DocumentSource | None
    ) -> _Labelling:
        found, unread = _read(documents)
        work = cls(rows, found, unread, Path(documents) if isinstance(documents, str | Path) else None)
        work._note_unread(found, unread)
        if negatives is not None:
            others, more = _read(negatives)
            work._negatives = [work._apart(document, negatives) for document in others]
            work._note_unread(work._negatives, more)
        return work

    def _apart(self, document: DocumentText, source: DocumentSource) -> DocumentText:
        """A document of another kind, under a name that none of the others has."""
        folder = Path(source).name if isinstance(source, str | Path) else "negatives"
        taken = self._documents.keys() | self._unread.keys()
        name = f"{folder}/{document.name}" if document.name in taken else document.name
        if name in taken:
            raise DatasetError(f"{name!r} is a document of both kinds; rename one")
        return replace(document, name=name)

    def _note_unread(self, documents: Iterable[DocumentText], unread: Iterable[UnreadFile]) -> None:
        for file in unread:
            self._add_problem("unreadable", str(file.path), file.reason, file.name)
        for document in documents:
            if not document.text:
                self._add_problem("unreadable", document.name, "no text in it; leave it out", document.name)

    def _add_problem(self, kind: ProblemKind, where: str, message: str, document: str | None = None) -> None:
        self._problems.append(DocumentProblem(kind, where, message, document))

    def label(self, labels: Iterable[Label]) -> None:
        """Take the labels, each checked by the schema."""
        for label in labels:
            self._take_label(label)
        for name, (_, text) in self._labels.items():
            if name not in self._settled:
                self._make(name, text)

    def _take_label(self, label: Label) -> None:
        try:
            name = self._names.find(label.document) if label.document else ""
        except ValueError as error:
            self._add_problem("no_document", label.where, str(error))
            return
        try:
            if label.fault is not None:
                raise ValueError(label.fault)
            document = self._documents.get(name)
            answer, content = self._typed(label), document.text if document else ""
            text = self._rows.answer_text(answer, content)
            self._unknown.note(
                answer, label.where, lambda other: self._rows.answer_text(other, content) == text
            )
        except Exception as error:  # the user's validators may raise anything
            self._add_problem("invalid_label", label.where, _reason(error), name or None)
            if label.fault is None:
                self._unknown.note(self._typed(label), label.where, lambda _: True)
            if name not in self._labels:
                self._settled.add(name)
            return
        if name in self._unread or name in self._labels:
            self._take_twice(name, label.where, text)
            return
        self._labels[name] = label.where, text
        self._settled.discard(name)

    def _take_twice(self, name: str, where: str, text: str) -> None:
        """A label of a document that has one, or that cannot be read (of which the files were told already)."""
        if name in self._unread:
            return
        first, known = self._labels[name]
        if loads(known) == loads(text):
            self._duplicates += 1
            return
        self._settled.add(name)
        message = f"{name!r} has another label in {first}; keep one of them (the document gives no row)"
        self._add_problem("conflict", where, message, name)

    def _typed(self, label: Label) -> Any:
        schema = self._rows.shape.schema
        return typed_cells(label.answer, schema) if label.is_flat and schema else label.answer

    def unlabelled(self) -> list[DocumentText]:
        """The documents that have neither a row nor a label that was no use."""
        return [
            document
            for name, document in self._documents.items()
            if name not in self._made and name not in self._settled and document.text
        ]

    def take(self, asked: TeacherLabels) -> None:
        """Take the teacher's rows, and its problems."""
        self._made |= asked.made
        for name, message in asked.too_long.items():
            self._settled.add(name)
            self._add_problem("too_long", name, message, name)
        for name, message in asked.failed.items():
            self._settled.add(name)
            self._add_problem("failed", name, message, name)

    def add_negatives(self) -> None:
        """Rows of the documents that are all of another kind. Raises DatasetError where no answer says so."""
        if not self._negatives:
            return
        try:
            text = self._rows.none_text()
        except ValueError as error:
            raise DatasetError(f"negatives: their answer would be {error}") from error
        for document in self._negatives:
            if document.text:
                self._documents[document.name] = document
                self._make(document.name, text)

    def _make(self, name: str, text: str) -> None:
        document = self._documents[name]
        if document.text:
            self._made[name] = [self._rows.row(document, text)]

    def settle_copies(self) -> None:
        """Keep one row of documents with the same text, which a split would divide; none where answers differ."""
        first: dict[str, str] = {}
        for name, document in self._documents.items():
            other = first.setdefault(content_hash(document.text), name)
            if other == name or not document.text or name in self._settled or other in self._settled:
                continue
            own, known = self._made.pop(name, None), self._made.get(other)
            self._settled.add(name)
            if known is None and own is not None:
                self._made[other] = [self._rows.row(self._documents[other], own[0].answer_text())]
            elif own is not None and known is not None and own[0].answer_text() != known[0].answer_text():
                del self._made[other]
                self._settled.add(other)
                message = (
                    f"its text is that of {other!r}, and its answer another; keep one (neither gives a row)"
                )
                self._add_problem("conflict", name, message, name)
                continue
            if own is not None or known is not None:
                message = f"its text is that of {other!r}, whose row stands for both; remove one"
                self._add_problem("copy", name, message, name)

    def cut(self, most: int | None) -> None:
        """Divide the rows of long documents into those of their parts, where the answers allow it."""
        long = {
            name
            for name, rows in self._made.items()
            if most is not None and len(rows) == 1 and "characters" not in rows[0].metadata
            if len(self._documents[name].text) > most
        }
        if most is None or not long:
            return
        whole = bare_examples(row for rows in self._made.values() for row in rows)
        frame = TextFrame(start=(self._rows.recipe.qa_template or "").partition("{context_str}")[0])
        rules = {
            key: found.model_copy(update={"frame": frame}) for key, found in learn_list_rules(whole).items()
        }
        parts = part_rows(whole, rules, lambda row: row.document_id in long, most)
        for name in sorted(long):
            if rows := parts.get(bare_examples(self._made[name])[0].id):
                document = self._documents[name]
                self._made[name] = [placed_row(row, document, _span(row)) for row in rows]
                continue
            del self._made[name]
            self._settled.add(name)
            self._add_problem("too_long", name, length_reason(len(self._documents[name].text), most), name)

    def result(self, asked: TeacherLabels) -> LabelledDocuments:
        """The rows in the order of the documents. Raises DatasetError where there are none."""
        for where, message in self._unknown.problems(self._rows.shape.name or "the schema"):
            self._add_problem("unknown_field", where, message)
        for document in self.unlabelled():
            message = "no label names it; add one, or give a teacher"
            self._add_problem("no_label", document.name, message, document.name)
        for name in self._made:
            if blank := self._documents[name].pages_without_text:
                shown = ", ".join(blank)
                message = f"no text on page {shown}, which the row lacks; if it is a scan, run OCR first"
                self._add_problem("page_without_text", name, message, name)
        rows = [row for name in self._documents for row in self._made.get(name, ())]
        if not rows:
            raise DatasetError(
                f"no row: none of {len(self._documents)} documents has an answer\n{listed_problems(self._problems)}"
            )
        if self._problems:
            kinds = Counter(problem.kind for problem in self._problems)
            counts = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
            _log.warning("%d documents or labels gave no whole row: %s; the first: %s", len(self._problems), counts,
                         self._problems[0])  # fmt: skip
        return LabelledDocuments(
            data=FinetuneDataset(rows),
            recipe=self._rows.recipe,
            problems=tuple(self._problems),
            documents=sum(bool(document.text) for document in self._documents.values()),
            negatives=sum(says_none(loads(row.answer_text())) for row in rows),
            duplicates=self._duplicates,
            paid=asked.paid,
            reused=asked.reused,
            changed=asked.changed,
            hashes={name: content_hash(document.text) for name, document in self._documents.items()},
        )


def _reason(error: Exception) -> str:
    reason = one_line_reason(error)
    return reason if ";" in reason else f"{reason}; correct the answer there"


def _span(row: Example) -> tuple[int, int]:
    """Where the part of a text stands that ``part_rows`` made a row of."""
    span: Any = row.metadata["characters"]
    return span[0], span[1]


def _read(source: DocumentSource) -> tuple[list[DocumentText], list[UnreadFile]]:
    if isinstance(source, str | Path):
        return read_folder(Path(source))
    found = document_texts(source)
    if not found:
        raise DatasetError("documents: there are none; give at least one")
    return found, []
