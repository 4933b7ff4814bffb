"""A folder of documents -> chunks whose ids are the same in every run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document

from ...errors import ConfigurationError, DatasetError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["read_nodes"]

_TEXTS = (".txt", ".md", ".markdown")
_SHOWN = 5


def read_nodes(
    folder: str | Path, *, chunk_size: int = 512, chunk_overlap: int | None = None
) -> list[BaseNode]:
    """The PDF, text and Markdown files under ``folder``, cut into chunks; hidden files are left out.

    Sizes are in tokens; the overlap is an eighth of the chunk where none is given. A document's id is its path
    inside the folder, a chunk's that and its number: what was built on them finds them again. Chunks show
    their file's name to retriever and model. PDFs need the extra ``pdf``.
    Raises DatasetError naming every file that cannot be read or has no text.
    """
    overlap = chunk_size // 8 if chunk_overlap is None else chunk_overlap
    if chunk_size < 128 or not 0 <= overlap < chunk_size:
        raise ConfigurationError(
            f"chunk_size {chunk_size}, chunk_overlap {overlap}: expected 128 tokens or more, and less overlap"
        )
    splitter = SentenceSplitter(
        chunk_size=chunk_size,
        chunk_overlap=overlap,
        id_func=lambda number, document: f"{document.id_}#{number}",
    )
    return splitter.get_nodes_from_documents(_documents(Path(folder)))


def _documents(folder: Path) -> list[Document]:
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "no such folder"
        raise ConfigurationError(f"{folder}: {what}; give the folder that holds the documents")
    readers: dict[str, Callable[[Path], str]] = {".pdf": _pdf_text, **dict.fromkeys(_TEXTS, _plain_text)}
    names = {
        path: name
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix.lower() in readers and not _hidden(name := path.relative_to(folder))
    }
    if not names:
        raise DatasetError(f"{folder}: no documents in it; expected {', '.join(readers)} files")
    texts, faults = {}, []
    for path, name in names.items():
        try:
            texts[name.as_posix()] = _present(readers[path.suffix.lower()](path))
        except MissingDependencyError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            faults.append(f"{path}: {' '.join(str(error).split())}")
    if faults:
        more = f"\nand {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DatasetError(
            f"{len(faults)} of {len(names)} documents cannot be used; mend them or move them away:\n"
            + "\n".join(faults[:_SHOWN])
            + more
        )
    return [Document(id_=name, text=text, metadata={"file_name": name}) for name, text in texts.items()]


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _present(text: str) -> str:
    if not text.strip():
        raise ValueError("no text in it; run OCR first if it is a scan")
    return text


def _plain_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error


def _pdf_text(path: Path) -> str:
    """The pages' text. LlamaIndex's PyMuPDFReader would make every page a document of its own."""
    try:
        import pymupdf
    except ImportError as error:
        raise MissingDependencyError("pymupdf", "pdf", f"Reading {path.name}") from error
    reader: Any = pymupdf  # typed in part only
    reader.TOOLS.mupdf_display_errors(False)
    with reader.open(path) as document:
        if document.needs_pass:
            raise ValueError("needs a password; save it without one")
        text: str = "\n\n".join(page.get_text() for page in document)
        return text
