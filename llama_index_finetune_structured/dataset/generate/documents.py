"""Read a folder of documents into chunks whose ids are the same in every run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document, MetadataMode

from ...descriptors import read_text_file
from ...errors import ConfigurationError, DatasetError, MissingDependencyError
from ...example import content_hash
from ...printable import one_line, package_logger

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["document_hashes", "read_nodes"]

_TEXT_SUFFIXES = (".txt", ".md", ".markdown")
_MIN_CHUNK_TOKENS = 128  # chosen: below, a chunk is mostly its file's name and overlap
_MAX_TEXT_BYTES = 100_000_000  # chosen: some fifty times the longest novels
_SHOWN = 5  # chosen: unreadable or skipped files that a message lists
_log = package_logger(__name__)


def read_nodes(
    folder: str | Path, *, chunk_size: int = 512, chunk_overlap: int | None = None
) -> list[BaseNode]:
    """The PDF, text and Markdown files under ``folder``, cut into chunks; hidden files are left out.

    Links that lead out of the folder, pipes and devices are left out too, with a logged warning that names them. A
    document that a link repeats is read once.
    A document's id is its path inside the folder, a chunk's id that and its number, so that later runs recognise
    both. Retriever and model see a chunk with its file's name; where it is cut depends on the text alone, so that a
    renamed document has the same chunks.

    Args:
        folder: Folder that is searched with all folders in it.
        chunk_size: Tokens of a chunk, 128 or more; the file's name is not counted.
        chunk_overlap: Tokens that a chunk repeats of the one before. None: an eighth of the chunk.

    Raises:
        ConfigurationError: The folder or a size is wrong.
        DatasetError: There are no documents, or some cannot be read or have no text; the message names them.
        MissingDependencyError: There are PDFs, and the extra ``pdf`` is not installed.
    """
    for size in (chunk_size, 0 if chunk_overlap is None else chunk_overlap):
        if not isinstance(size, int):
            raise ConfigurationError(f"chunk_size and chunk_overlap: {size!r}, expected a number of tokens")
    overlap = chunk_size // 8 if chunk_overlap is None else chunk_overlap
    if chunk_size < _MIN_CHUNK_TOKENS or not 0 <= overlap < chunk_size:
        raise ConfigurationError(
            f"chunk_size {chunk_size}, chunk_overlap {overlap}: expected a chunk_size of at least "
            f"{_MIN_CHUNK_TOKENS} tokens and a smaller overlap"
        )
    splitter = SentenceSplitter(
        chunk_size=chunk_size,
        chunk_overlap=overlap,
        id_func=lambda number, document: f"{document.id_}#{number}",
    )
    nodes = splitter.get_nodes_from_documents(_documents(Path(folder)))
    for node in nodes:
        node.metadata = {"file_name": node.ref_doc_id}  # after cutting: the splitter makes room for metadata
    return nodes


def document_hashes(nodes: Iterable[BaseNode]) -> dict[str, str]:
    """A hash of each document's text, by the document's id; names and metadata do not enter into it.

    Args:
        nodes: All chunks of the documents, such as those of ``read_nodes``.
    """
    texts: dict[str, list[str]] = {}
    for node in nodes:
        if node.ref_doc_id is not None:
            texts.setdefault(node.ref_doc_id, []).append(node.get_content(metadata_mode=MetadataMode.NONE))
    return {document: content_hash(chunks) for document, chunks in texts.items()}


def _documents(folder: Path) -> list[Document]:
    if not os.path.isdir(folder):
        what = "is a file" if folder.is_file() else "no such folder"
        raise ConfigurationError(f"{folder}: {what}; give the folder that holds the documents")
    readers: dict[str, Callable[[Path], str]] = {
        ".pdf": _pdf_text,
        **dict.fromkeys(_TEXT_SUFFIXES, _plain_text),
    }
    names = {path: path.relative_to(folder) for path in _documents_in(folder, readers)}
    if not names:
        raise DatasetError(f"{folder}: no documents in it; expected {', '.join(readers)} files")
    texts, unreadable = {}, []
    for path, name in names.items():
        try:
            texts[_utf8_name(name)] = _not_empty(readers[path.suffix.lower()](path))
        except MissingDependencyError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            unreadable.append(one_line(f"{path}: {reason}"))
    if unreadable:
        more = f"\nand {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
        raise DatasetError(
            f"{len(unreadable)} of {len(names)} documents cannot be read; fix them or move them out of the "
            "folder:\n" + "\n".join(unreadable[:_SHOWN]) + more
        )
    return [Document(id_=name, text=text) for name, text in texts.items()]


def _visible_files(folder: Path) -> list[Path]:
    """The files that are not hidden, and links to folders, sorted. Raises DatasetError for an unreadable folder."""
    found = []
    try:
        for parent, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            found += [Path(parent, name) for name in (*files, *links) if not name.startswith(".")]
    except OSError as error:
        raise DatasetError(
            f"{error.filename}: cannot be listed ({error.strerror}), and its documents would be missing; make it "
            "readable, or move it out of the folder"
        ) from error
    return sorted(found)


def _documents_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The documents, each once: links count where they lead to a file inside ``folder`` that is not read anyway.

    What is left out for another reason is logged: links out of the folder, broken ones, pipes and devices.
    """
    root = Path(os.path.realpath(folder))
    own: dict[Path, Path] = {}
    left_out = []
    for path in sorted(_visible_files(folder), key=os.path.islink):  # a file before the links to it
        real = Path(os.path.realpath(path))
        inside = real.is_relative_to(root)
        if inside and path.is_dir():
            continue  # a link to a folder whose documents are found there
        if path.suffix.lower() not in suffixes and not path.is_dir():
            continue
        if not inside:
            left_out.append(f"{path} (a link out of the folder)")
        elif not path.is_file():
            left_out.append(f"{path} (no regular file)")
        else:
            own.setdefault(real, path)
    if left_out:
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        shown = one_line(", ".join(left_out[:_SHOWN])) + more
        _log.warning("%s: left out: %s; copy what belongs to the documents into it", folder, shown)
    return sorted(own.values())


def _raise(error: OSError) -> None:
    raise error


def _utf8_name(name: Path) -> str:
    try:
        name.as_posix().encode()
    except UnicodeEncodeError:
        raise ValueError("its name is not UTF-8; rename it") from None
    return name.as_posix()


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("no text in it; if it is a scan, run OCR first")
    return text


def _plain_text(path: Path) -> str:
    try:
        text = read_text_file(path, max_bytes=_MAX_TEXT_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ValueError(f"{error.strerror}; split it into several files") from error
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("binary content, not text")
    return text


def _pdf_text(path: Path) -> str:
    """The text of all pages as one document.

    LlamaIndex's PyMuPDFReader makes a document of every page, and a split by document would separate them.
    """
    try:
        import pymupdf
    except ImportError as error:
        raise MissingDependencyError("pymupdf", "pdf", f"Reading {path.name}") from error
    reader: Any = pymupdf  # its type annotations are incomplete
    reader.TOOLS.mupdf_display_errors(False)
    with reader.open(path) as document:
        if document.needs_pass:
            raise ValueError("needs a password; save a copy without one")
        text: str = "\n\n".join(page.get_text() for page in document)
        return text
