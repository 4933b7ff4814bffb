"""The Python blocks of the documentation, what they print, and the names that ``docs/index.md`` takes for granted.

That page shows the middle of a user's program; what its reader has already (an index, a teacher, classes)
is defined here. All other pages define their names themselves.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.llms.openai import OpenAI
from markdown_it import MarkdownIt
from pydantic import BaseModel

FRONT_DOORS = ["capture", "dataset", "evaluation", "formats", "llms"]  # sub-packages that users import from
NOT_RUN = "# Not run by the tests: "


@dataclass(frozen=True)
class Block:
    """A Python block, the number of the line above it, and its output where a ``text`` block follows at once."""

    line: int
    code: str
    output: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The Python blocks of a page, in their order."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    for token, following in pairwise([*tokens, None]):
        if token is not None and token.type == "fence" and token.info == "python" and token.map is not None:
            is_output = following is not None and following.type == "fence" and following.info == "text"
            yield Block(
                token.map[0] + 1, token.content, following.content if following and is_output else None
            )


def compiled(page: Path, block: Block) -> CodeType:
    """The block with the page's own line numbers; ``await`` is allowed, as in a notebook."""
    source = "\n" * block.line + block.code
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: CodeType = compile(source, str(page), "exec", flags=flags, dont_inherit=True)
    return code


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

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def names_of_the_loop() -> dict[str, Any]:
    """What the reader of ``docs/index.md`` has before its first block."""
    works = ["attention", "dropout", "adam", "perceptron", "backpropagation", "bootstrap"]
    documents = [Document(text=f"A work on {work} (1990).", id_=work) for work in works]
    index = VectorStoreIndex.from_documents(documents, embed_model=FirstLetters())
    llm = OpenAI(model="gpt-4.1")
    return {
        "Response": Response,
        "index": index,
        "questions": [f"Who worked on {work}?" for work in works],
        "teacher_engine": index.as_query_engine(llm=llm, output_cls=Response, similarity_top_k=1),
    }
