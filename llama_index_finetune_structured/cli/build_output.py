"""The files that a build writes, and its summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..dataset import FinetuneDataset
from ..dataset.labels import says_none
from ..dataset.splits import document_of
from ..example import Example
from ..tuning.rows import FEW_ROWS
from .build_folder import DocumentChanges, save_held_out
from .command import counted, say

__all__ = ["listed", "save_rows", "split_rows", "summary_lines"]

_SHOWN = 5  # chosen: failures listed in full; the rest are counted
_FAR_OFF = 0.1  # chosen: difference from --validation above which the summary names the real share


def save_rows(
    examples: Sequence[Example], output: Path, validation: float, seed: int, documents: DocumentChanges
) -> dict[str, Any]:
    """Write the training and the held-out file and the record of the documents; counts for the result."""
    changes = documents.counts()
    train, held_out = split_rows(examples, validation, seed, documents.split_name)
    path = save_held_out(output, held_out)
    train.save(output)
    documents.save()
    return {
        "data": str(output),
        "examples": len(train),
        "validation": path and str(path),
        "validation_examples": len(held_out or ()),
        "documents": _documents(train),
        "validation_documents": _documents(held_out or ()),
        "mixed": _mixed(train, held_out or ()),
        "empty": sum(says_none(example.answer_object()) for example in [*train, *(held_out or ())]),
        "changes": changes,
    }


def split_rows(
    examples: Sequence[Example], validation: float, seed: int, split_name: Callable[[str], str]
) -> tuple[FinetuneDataset, FinetuneDataset | None]:
    """Split by document, under the name that ``split_name`` gives it, or by question where there is a single one."""
    whole = FinetuneDataset(examples)
    if validation == 0:
        return whole, None
    documents = {document_of(example) for example in examples}
    groups = {split_name(document) for document in documents if document is not None}
    by_document = None not in documents and len(groups) > 1
    if not by_document:
        say(
            "the questions do not name several documents: rows are held out by question, so the score will be too "
            "high"
        )
    parts: tuple[FinetuneDataset, FinetuneDataset] = whole.split(
        1 - validation,
        group_by=(lambda example: split_name(document_of(example) or "")) if by_document else None,
        seed=seed,
    )
    return parts


def _documents(examples: Sequence[Example] | FinetuneDataset) -> int:
    return len({document_of(example) for example in examples} - {None})


def _mixed(train: FinetuneDataset, held_out: Sequence[Example] | FinetuneDataset) -> int:
    """Number of training prompts that contain a chunk of a held-out document."""
    documents = {document_of(example) for example in held_out} - {None}
    return sum(any(source.document_id in documents for source in example.sources) for example in train)


def summary_lines(data: dict[str, Any], requested: float, asked_again: str) -> list[str]:
    """What ``save_rows`` has written, in words. ``asked_again``: what was done about changed documents."""
    train, held_out = data["examples"], data["validation_examples"]
    lines = [f"{counted(train, 'example')} of {counted(data['documents'], 'document')} -> {data['data']}"]
    if data["validation"]:
        documents = counted(data["validation_documents"], "document")
        lines.append(f"{held_out} held out, of {documents} -> {data['validation']}")
        share = held_out / (held_out + train)
        if abs(share - requested) > _FAR_OFF:
            lines.append(
                f"that is {share:.0%}, not {requested:.0%}: whole documents are held out; more documents, or "
                "another --seed, come closer"
            )
    if train < FEW_ROWS:
        lines.append(
            f"{train} examples are few: some dozens teach the form of an answer, some hundreds the task"
        )
    if any(data["changes"].values()):
        changes = ", ".join(f"{number} {what}" for what, number in data["changes"].items() if number)
        lines.append(f"documents since the last build: {changes}; {asked_again}")
    if data["mixed"]:
        lines.append(
            f"{data['mixed']} training prompts also contain a chunk of a held-out document, so the score may be too "
            "high; more documents or a smaller --top-k make that rarer"
        )
    if data["empty"]:
        lines.append(f"{data['empty']} of {train + held_out} answers are empty: every field is null or blank")
    return lines


def listed(items: Sequence[str]) -> list[str]:
    """The first of them, indented, and how many more there are."""
    more = [f"  and {len(items) - _SHOWN} more; --json lists all"] if len(items) > _SHOWN else []
    return [f"  {item}" for item in items[:_SHOWN]] + more
