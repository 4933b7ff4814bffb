"""The paper that the examples read: ``survey.md`` as a PDF, its chunks, and the schema of its citations."""

from __future__ import annotations

import html
import io
import re
import unicodedata
import warnings
from pathlib import Path

import pymupdf
from llama_index.core import Document
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode
from llama_index.readers.file import PyMuPDFReader
from pydantic import BaseModel, Field

from llama_index_finetune_structured import FinetuneDataset

warnings.filterwarnings("ignore", "The `fitz` API", FutureWarning)  # PyMuPDFReader still imports ``fitz``

SOURCE = Path(__file__).with_name("survey.md")


class Citation(BaseModel):
    """A work that the text cites."""

    author: str = Field(description="Last name of the first author")
    year: int = Field(description="Year of the work")
    desc: str = Field(description="What the text says about the work")


class Response(BaseModel):
    """List of author citations, extracted from text."""

    citations: list[Citation] = Field(description="Author, year and description of each cited work")


def build_pdf(path: Path) -> Path:
    """Write the survey as a PDF of A4 pages to ``path``, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    story = pymupdf.Story(html=_html(SOURCE.read_text(encoding="utf-8")))
    page = pymupdf.paper_rect("a4")
    inside = pymupdf.Rect(60, 60, page.width - 60, page.height - 60)
    written = io.BytesIO()
    writer = pymupdf.DocumentWriter(written)
    more = True
    while more:
        device = writer.begin_page(page)
        more, _ = story.place(inside)
        story.draw(device)
        writer.end_page()
    writer.close()
    path.write_bytes(written.getvalue())
    return path


def _html(markdown: str) -> str:
    parts = []
    for block in markdown.strip().split("\n\n"):
        marks, _, text = block.partition(" ")
        tag = {"#": "h1", "##": "h2"}.get(marks)
        parts.append(f"<{tag}>{html.escape(text)}.</{tag}>" if tag else f"<p>{html.escape(block)}</p>")
    return "\n".join(parts)


def read_chunks(pdf: Path, chunk_size: int) -> list[BaseNode]:
    """The PDF's text in chunks of whole sentences with at most ``chunk_size`` tokens each."""
    pages = PyMuPDFReader().load(file_path=pdf)
    text = "\n\n".join(page.get_content() for page in pages)
    document = Document(text=unicodedata.normalize("NFKC", text), id_=pdf.stem)  # NFKC splits "fi" ligatures
    splitter = SentenceSplitter(
        chunk_size=chunk_size,
        chunk_overlap=0,
        chunking_tokenizer_fn=_sentences_with_spaces,
        id_func=lambda number, paper: f"{paper.id_}-{number}",  # fixed ids, so that every run splits alike
    )
    return splitter.get_nodes_from_documents([document])


def _sentences_with_spaces(text: str) -> list[str]:
    """The sentences of a text, spaces included; LlamaIndex's own splitter ends one at each "et al."."""
    return re.split(r"(?<=\.\s)(?<!al\.\s)(?=[A-Z])", text)


def by_chunk(data: FinetuneDataset) -> FinetuneDataset:
    """The examples with their first retrieved chunk as document, since all are about one paper."""
    return FinetuneDataset(
        example.model_copy(update={"document_id": example.sources[0].node_id}) for example in data
    )


if __name__ == "__main__":
    print(build_pdf(Path("survey.pdf")))
