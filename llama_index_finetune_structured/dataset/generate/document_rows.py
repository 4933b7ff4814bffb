"""One training row a document: the instruction, the document's text, and its answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import Document
from pydantic import BaseModel

from ...errors import ConfigurationError, DatasetError
from ...example import Example, Message, Source, compact_json
from ...json_schema import find_error, resolve_pointer
from ...jsonl import one_line_reason, require_utf8
from ..labels import AnswerShape
from .readers import DocumentText, Page, document_of_pages
from .recipe import ServingRecipe

__all__ = ["DocumentRows", "document_texts", "is_lists_alone", "length_reason", "placed_row", "recipe_of"]

_PLACES = ("{context_str}", "{query_str}")


def recipe_of(instruction: str | None, name: str | None, system_prompt: str | None) -> ServingRecipe:
    """The recipe of prompts that hold a whole document. Raises ConfigurationError for a placeholder in one."""
    told = f"Fill {name or 'the schema'} from this document." if instruction is None else instruction.strip()
    if any(place in f"{told} {system_prompt or ''}" for place in _PLACES):
        raise ConfigurationError(
            "instruction: holds {context_str} or {query_str}, expected plain text; the document follows it"
        )
    return ServingRecipe(qa_template=f"{told}\n\n{{context_str}}".lstrip(), system_prompt=system_prompt)


@dataclass(frozen=True)
class DocumentRows:
    """Makes the rows of one data set, whose answers have ``shape``."""

    shape: AnswerShape
    recipe: ServingRecipe
    output_cls: type[BaseModel] | None

    def messages(self, text: str) -> tuple[Message, ...]:
        """The prompt of a text."""
        return self.recipe.messages("", text)

    def none_text(self) -> str:
        """The answer to documents of another kind: null where the schema allows it, else every field empty.

        Raises ValueError where the schema has no such answer.
        """
        try:
            return self.shape.answer_text(None)
        except (ValueError, TypeError):
            pass
        try:
            return self.shape.answer_text({} if self.output_cls is None else self.output_cls())
        except (ValueError, TypeError):
            name = self.shape.name or "the schema"
            raise ValueError(
                f"null, and {name} has no answer for a document of another kind: make the class "
                f"RootModel[{self.shape.name or 'Answer'} | None], or give every field a default of None"
            ) from None

    def answer_text(self, answer: Any, text: str) -> str:
        """The answer to ``text`` as its class writes it, or ``none_text`` for None.

        Raises ValueError where it does not fit.
        """
        messages = self.messages(text)
        if answer is None:
            return self.none_text()
        if isinstance(answer, str):  # as a value, or else as the JSON text of one
            with contextlib.suppress(ValueError):
                return self.shape.answer_text(compact_json(answer), messages)
        try:
            return self.shape.answer_text(answer, messages)
        except TypeError as error:
            raise ValueError(one_line_reason(error)) from error

    def row(
        self,
        document: DocumentText,
        text: str,
        *,
        model: str | None = None,
        span: tuple[int, int] | None = None,
    ) -> Example:
        """The row of a document whose answer is ``text``; with ``span`` of that part of it alone.

        Raises ValueError for text that UTF-8 cannot encode.
        """
        first, last = span or (0, len(document.text))
        content = document.text[first:last].strip()
        for part in (content, text):
            require_utf8(part)
        whole = Example(
            messages=self.messages(content),
            answer=Message(role="assistant", content=text),
            transport="text" if self.shape.schema is None else "json_schema",
            answer_schema=self.shape.schema,
            schema_name=self.shape.name,
            answer_class=self.shape.class_path,
            document_id=document.name,
            model=model,
            metadata=self.recipe.metadata(),
        )
        return placed_row(whole, document, span)


def placed_row(row: Example, document: DocumentText, span: tuple[int, int] | None) -> Example:
    """The row with the pages of its text as sources; ``span``: of a part of the document."""
    first, last = span or (0, len(document.text))
    pages = [page for page in document.pages if page.start < last and page.end > first]
    places = pages or [Page("", 0, len(document.text))]
    facts: dict[str, Any] = {"characters": [first, last]} if span else {}
    facts |= {"pages": [[page.label, page.start, page.end] for page in pages]} if pages else {}
    sources = tuple(Source(node_id=document.node_id(page), document_id=document.name) for page in places)
    return row.model_copy(update={"sources": sources, "metadata": {**row.metadata, **facts}})


def is_lists_alone(schema: dict[str, Any]) -> bool:
    """Whether answers are nothing but lists that may be empty, so that those to parts of a text can be joined."""
    top: Any = schema
    while isinstance(top, dict) and isinstance(top.get("$ref"), str):
        top = resolve_pointer(schema, top["$ref"])
    if not isinstance(top, dict):
        return False
    if top.get("type") == "array":
        return find_error(schema, []) is None
    properties = top.get("properties")
    if not isinstance(properties, dict) or not properties:
        return False
    are_lists = all(isinstance(inner, dict) and inner.get("type") == "array" for inner in properties.values())
    return are_lists and find_error(schema, {name: [] for name in properties}) is None


def document_texts(documents: Iterable[DocumentText | Document]) -> list[DocumentText]:
    """Documents in memory as texts. Documents of LlamaIndex that are pages of the same file are joined.

    Raises ConfigurationError for what is no document, DatasetError where two have the same name.
    """
    found: dict[str, DocumentText] = {}
    pages: dict[str, list[tuple[str, str]]] = {}
    for document in documents:
        if isinstance(document, DocumentText):
            _add(found, document)
        elif isinstance(document, Document):
            name, label = _name_of(document), document.metadata.get("page_label")
            if label is None:
                _add(found, DocumentText(name, document.text.strip()))
            else:
                pages.setdefault(name, []).append((str(label), document.text))
        else:
            raise ConfigurationError(
                f"documents: expected a folder, or documents of read_documents() or of LlamaIndex, found "
                f"{type(document).__name__}"
            )
    for name, own in pages.items():
        _add(found, document_of_pages(name, own))
    return list(found.values())


def _name_of(document: Document) -> str:
    """The file's name of a page, whose own id is random; else the id."""
    if "page_label" not in document.metadata:
        return str(document.id_)
    return str(document.metadata.get("file_path") or document.metadata.get("file_name") or document.id_)


def _add(found: dict[str, DocumentText], document: DocumentText) -> None:
    if document.name in found:
        raise DatasetError(f"two documents are called {document.name!r}; give each a name (id_) of its own")
    found[document.name] = document


def length_reason(found: int, most: int) -> str:
    """Why a long document gave no row."""
    return (
        f"{found:,} characters, more than max_characters={most:,}, and it cannot be cut: only answers that are lists "
        "alone, of items whose values stand in the text, can be joined from parts; raise the limit, or shorten it"
    )
