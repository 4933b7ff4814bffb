"""Read a folder of documents, whole or cut into chunks whose ids are the same in every run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document, MetadataMode

from ...errors import ConfigurationError, DatasetError, MissingDependencyError
from ...example import content_hash
from ...printable import one_line, package_logger
from .readers import READERS, DocumentText, read_document

__all__ = ["UnreadFile", "document_hashes", "read_documents", "read_folder", "read_nodes"]

_MIN_CHUNK_TOKENS = 128  # chosen: below, a chunk is mostly its file's name and overlap
_SHOWN = 5  # chosen: unreadable or skipped files that a message lists
_log = package_logger(__name__)


def read_nodes(
    folder: str | Path, *, chunk_size: int = 512, chunk_overlap: int | None = None
) -> list[BaseNode]:
    """The PDF, HTML, text and Markdown files under ``folder``, cut into chunks; hidden files are left out.

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
    documents = [Document(id_=document.name, text=document.text) for document in read_documents(folder)]
    nodes = splitter.get_nodes_from_documents(documents)
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


@dataclass(frozen=True)
class UnreadFile:
    """A file that is no document: ``name`` inside its folder, its path and the reason."""

    name: str
    path: Path
    reason: str


def read_documents(folder: str | Path) -> list[DocumentText]:
    """The PDF, HTML, text and Markdown files under ``folder`` as whole texts, chosen as by ``read_nodes``.

    Args:
        folder: Folder that is searched with all folders in it.

    Raises:
        ConfigurationError: There is no such folder.
        DatasetError: There are no documents, or some cannot be read or have no text; the message names them.
        MissingDependencyError: There are PDFs, and the extra ``pdf`` is not installed.
    """
    documents, unread = read_folder(Path(folder))
    if unread:
        more = f"\nand {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
        raise DatasetError(
            f"{len(unread)} of {len(documents) + len(unread)} documents cannot be read; fix them or move them out of "
            "the folder:\n"
            + "\n".join(one_line(f"{file.path}: {file.reason}") for file in unread[:_SHOWN])
            + more
        )
    return documents


def read_folder(folder: Path) -> tuple[list[DocumentText], list[UnreadFile]]:
    """The documents of a folder, and the files that are none.

    Raises ConfigurationError where there is no such folder, DatasetError where it holds no documents.
    """
    if not os.path.isdir(folder):
        what = "is a file" if folder.is_file() else "no such folder"
        raise ConfigurationError(f"{folder}: {what}; give the folder that holds the documents")
    names = {path: path.relative_to(folder) for path in _documents_in(folder, READERS)}
    if not names:
        raise DatasetError(f"{folder}: no documents in it; expected {', '.join(READERS)} files")
    documents, unread = list[DocumentText](), list[UnreadFile]()
    for path, name in names.items():
        try:
            documents.append(read_document(path, _utf8_name(name)))
        except MissingDependencyError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            unread.append(UnreadFile(one_line(name.as_posix()), path, str(reason)))
    return documents, unread


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
