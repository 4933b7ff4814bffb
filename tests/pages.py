"""Reads and compiles the documentation's Python blocks, and defines the names that the README's blocks use.

The README shows the middle of a user's program; the index, teacher and classes that come before it are defined
here. The pages in ``docs/`` define all their names themselves.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.llms.openai import OpenAI
from markdown_it import MarkdownIt
from pydantic import BaseModel

NOT_RUN = "# Not run by the tests: "


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """(line above it, code) of each Python block, in the page's order."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info == "python" and token.map is not None:
            yield token.map[0] + 1, token.content


def compiled(page: Path, line: int, code: str) -> CodeType:
    """The block with the page's own line numbers; ``await`` is allowed, as in a notebook."""
    source = "\n" * line + code
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    block: CodeType = compile(source, str(page), "exec", flags=flags, dont_inherit=True)
    return block


class Song(BaseModel):
    """A song."""

    title: str
    seconds: int


class Album(BaseModel):
    """An album."""

    title: str
    songs: list[Song]


class Citation(BaseModel):
    """A citation."""

    author: str
    year: int


class Response(BaseModel):
    """All citations of a text."""

    citations: list[Citation]


class FirstLetters(BaseEmbedding):
    """Counts of the words by hash: enough to retrieve the one document that a question names."""

    def _get_text_embedding(self, text: str) -> list[float]:
        vector = [0.0] * 64
        for word in re.findall(r"\w+", text.lower()):
            vector[hashlib.sha256(word.encode()).digest()[0] % 64] += 1.0
        return vector

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def search(query: str) -> str:
    """Search for an album."""
    return "Meddle"


def readme_names() -> dict[str, Any]:
    """The names that the README's blocks use but do not define."""
    works = ["attention", "dropout", "adam", "perceptron", "backpropagation", "bootstrap"]
    documents = [Document(text=f"A work on {work} (1990).", id_=work) for work in works]
    index = VectorStoreIndex.from_documents(documents, embed_model=FirstLetters())
    llm = OpenAI(model="gpt-4.1")
    return {
        "Album": Album,
        "FunctionAgent": FunctionAgent,
        "PromptTemplate": PromptTemplate,
        "Response": Response,
        "Song": Song,
        "index": index,
        "llm": llm,
        "questions": [f"Who worked on {work}?" for work in works],
        "search": search,
        "teacher_engine": index.as_query_engine(llm=llm, output_cls=Response, similarity_top_k=1),
    }
