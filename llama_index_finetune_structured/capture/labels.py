"""Facts about the calls of a block of code that the calls themselves do not carry: ``document`` and ``labelled``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigurationError

__all__ = ["Labels", "current_labels", "document", "labelled"]


@dataclass(frozen=True)
class Labels:
    """What is written into the rows of a block's calls: the document, and entries of ``metadata``."""

    document_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


_labels: ContextVar[Labels | None] = ContextVar("finetune_structured_labels", default=None)


def current_labels() -> Labels | None:
    """The labels of the running code; None outside of every block."""
    return _labels.get()


@contextmanager
def document(document_id: str) -> Iterator[None]:
    """Name the document of every call made in the block; ``capture.document`` describes it."""
    if not isinstance(document_id, str) or not document_id:
        raise ConfigurationError(
            f"document_id: {document_id!r}, expected the document's name as a text that is not empty"
        )
    with labelled(document_id=document_id):
        yield


@contextmanager
def labelled(*, document_id: str | None = None, **metadata: Any) -> Iterator[None]:
    """Label the calls of the block; what is not given here stays as the block around this one has it."""
    before = _labels.get()
    around = before or Labels()
    _labels.set(Labels(document_id or around.document_id, {**around.metadata, **metadata}))
    try:
        yield
    finally:
        _labels.set(before)  # not reset(token): a fixture's end may run in another context than its start
