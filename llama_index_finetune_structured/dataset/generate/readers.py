"""Texts of documents, from PDF, HTML, Markdown and text files, with the places of their pages."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

from ...descriptors import read_text_file
from ...errors import MissingDependencyError

__all__ = ["READERS", "DocumentText", "Page", "document_of_pages", "read_document"]

_MAX_TEXT_BYTES = 100_000_000  # chosen: some fifty times the longest novels
_BETWEEN_PAGES = "\n\n"  # as LlamaIndex's synthesizers join nodes: prompts of page nodes equal those of texts
_BLOCK, _PARAGRAPH = "\v", "\f"  # breaks of HTML, which its text cannot hold outside of pre
_SPACES = re.compile(r"[^\S\n\t\v\f]+")
_BREAKS = re.compile(r"[ \t]*[\v\f][ \t\v\f]*")
_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "dl", "title"})
_UNSHOWN = frozenset({"script", "style", "template", "noscript", "svg", "select"})
_CELLS = frozenset({"td", "th"})
_INLINE = frozenset(
    {
        "a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "input",
        "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "td", "th",
        "time", "tt", "u", "var", "wbr",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """Where a page stands in the text of its document: the characters from ``start`` up to ``end``.

    Attributes:
        label: The page's label, as the document prints it, or its number.
        start: Offset of its first character.
        end: Offset after its last character.
    """

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class DocumentText:
    """A document as text.

    Attributes:
        name: Its path inside the folder, or another name of its own.
        text: All of its text, without spaces around it.
        pages: The pages that have text, in order; empty where the document has none.
        pages_without_text: Labels of the pages that are pictures alone.
    """

    name: str
    text: str
    pages: tuple[Page, ...] = ()
    pages_without_text: tuple[str, ...] = ()

    def page_at(self, offset: int) -> str | None:
        """The label of the page on which a character stands; None outside of all pages.

        Args:
            offset: Of the character in ``text``, such as ``start`` of an Evidence less the prompt before the text.
        """
        return next((page.label for page in self.pages if page.start <= offset < page.end), None)

    def nodes(self) -> list[TextNode]:
        """One node a page, or one of the whole text, for synthesizers: their prompts equal those of ``text``.

        Ids are ``name#page=label``; a model sees the text alone.
        """
        places = self.pages or (Page("", 0, len(self.text)),)
        return [self._node(page) for page in places]

    def _node(self, page: Page) -> TextNode:
        facts = {"file_name": self.name} | ({"page_label": page.label} if page.label else {})
        return TextNode(
            id_=self.node_id(page),
            text=self.text[page.start : page.end],
            metadata=facts,
            excluded_llm_metadata_keys=list(facts),
            excluded_embed_metadata_keys=list(facts),
            start_char_idx=page.start,
            end_char_idx=page.end,
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=self.name)},
        )

    def node_id(self, page: Page) -> str:
        """The id of a page's node.

        Args:
            page: One of ``pages``; without a label it stands for the whole document.
        """
        return f"{self.name}#page={page.label}" if page.label else self.name


def document_of_pages(
    name: str, pages: Iterable[tuple[str, str]], without_text: Iterable[str] = ()
) -> DocumentText:
    """A document of (label, text) of its pages; blank ones are left out."""
    text, places = "", list[Page]()
    for label, page in pages:
        if bare := page.strip():
            text += _BETWEEN_PAGES if text else ""
            places.append(Page(label, len(text), len(text) + len(bare)))
            text += bare
    return DocumentText(name, text, tuple(places), tuple(without_text))


def read_document(path: Path, name: str) -> DocumentText:
    """The document in a file whose suffix is in ``READERS``.

    Raises OSError, ValueError or RuntimeError for one that cannot be read or has no text, and
    MissingDependencyError where a package is needed.
    """
    found = READERS[path.suffix.lower()](path, name)
    if not found.text:
        raise ValueError("no text in it; if it is a scan, run OCR first")
    return found


def _from_text(path: Path, name: str) -> DocumentText:
    return DocumentText(name, _plain_text(path).strip())


def _plain_text(path: Path) -> str:
    try:
        text = read_text_file(path, max_bytes=_MAX_TEXT_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ValueError(f"{error.strerror}; split it into several files") from error
        raise
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"not UTF-8 text (line {line}, byte {error.start + 1}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("binary content, not text")
    return text


class _ShownText(HTMLParser):
    """The text that a browser would show: a line for each block, tabs between the cells of a table."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unshown = 0
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unshown += tag in _UNSHOWN
        self._preformatted += tag == "pre"
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._unshown = max(0, self._unshown - (tag in _UNSHOWN))
        self._preformatted = max(0, self._preformatted - (tag == "pre"))
        self.parts.append("\t" if tag in _CELLS else "")
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._unshown:
            self.parts.append(data if self._preformatted else " ".join(re.split(r"\s+", data)))

    def _break(self, tag: str) -> None:
        if tag not in _INLINE:
            self.parts.append(_PARAGRAPH if tag in _PARAGRAPHS else _BLOCK)


def _from_html(path: Path, name: str) -> DocumentText:
    parser = _ShownText()
    parser.feed(_plain_text(path))
    parser.close()
    text = _SPACES.sub(" ", "".join(parser.parts))
    broken = _BREAKS.sub(lambda found: "\n\n" if _PARAGRAPH in found[0] else "\n", text)
    return DocumentText(name, broken.strip())


def _from_pdf(path: Path, name: str) -> DocumentText:
    """All pages as one document.

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
        pages = [(page.get_label() or str(number), page) for number, page in enumerate(document, start=1)]
        texts = [(label, str(page.get_text())) for label, page in pages]
        pictures = [
            label
            for (label, page), (_, text) in zip(pages, texts, strict=True)
            if not text.strip() and page.get_images()
        ]
        return document_of_pages(name, texts, pictures)


READERS: dict[str, Callable[[Path, str], DocumentText]] = {
    ".pdf": _from_pdf,
    **dict.fromkeys((".txt", ".md", ".markdown"), _from_text),
    **dict.fromkeys((".html", ".htm"), _from_html),
}
"""Readers by the suffix of a file, in lower case."""
