"""Parts of long documents keep their pages, their places in the text and the items that stand there."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured import AsWritten, label_documents, read_documents
from llama_index_finetune_structured.dataset.generate.readers import DocumentText, document_of_pages
from tests.dataset import invoices


class Item(BaseModel):
    name: str
    amount: Annotated[Decimal, AsWritten("de")]


class Items(BaseModel):
    """The items of a document."""

    items: list[Item]


NAMES = [
    "Schrauben",
    "Beratung",
    "Muttern",
    "Erde",
    "Nägel",
    "Holz",
    "Leim",
    "Farbe",
    "Glas",
    "Draht",
    "Sand",
    "Kies",
]


def _german(amount: Decimal) -> str:
    return f"{amount:,.2f}".translate(str.maketrans(",.", ".,"))


def _label(amounts: list[Decimal]) -> Items:
    return Items(items=[Item(name=name, amount=amount) for name, amount in zip(NAMES, amounts, strict=False)])


def _lines(amounts: list[Decimal]) -> list[str]:
    return [f"{name} kosten {_german(amount)} €." for name, amount in zip(NAMES, amounts, strict=False)]


def _paged(lines: list[str], per_page: int) -> list[str]:
    pages = ["\n".join(lines[n : n + per_page]) for n in range(0, len(lines), per_page)]
    return [f"Seite {number} der Rechnung.\n{page}" for number, page in enumerate(pages, start=1)]


@given(
    st.lists(st.decimals(1, 99_999, places=2), min_size=6, max_size=12, unique=True),
    st.integers(1, 4),
    st.data(),
)
@settings(max_examples=12)
def test_each_part_has_its_pages_its_place_and_its_items(
    amounts: list[Decimal], per_page: int, data: st.DataObject
) -> None:
    pages = _paged(_lines(amounts), per_page)
    document = document_of_pages("long.pdf", [(f"p{n}", page) for n, page in enumerate(pages)])
    others = [DocumentText(f"{n}.txt", "\n".join(_lines(amounts[n:]))) for n in range(4)]
    labels = {other.name: _label(amounts[n:]) for n, other in enumerate(others)}
    most = data.draw(st.integers(80, max(81, len(document.text) - 1)))
    made = label_documents(
        [*others, document], Items, labels={**labels, "long.pdf": _label(amounts)}, max_characters=most
    )
    rows = [row for row in made.data if row.document_id == "long.pdf"]
    for row in rows:
        span: Any = row.metadata.get("characters", [0, len(document.text)])
        first, last = span
        content = str(row.messages[-1].content).partition("\n\n")[2]
        assert document.text[first:last].strip() == content
        inside = [page for page in document.pages if page.start < last and page.end > first]
        assert [source.node_id for source in row.sources] == [document.node_id(page) for page in inside]
        assert row.metadata["pages"] == [[page.label, page.start, page.end] for page in inside]
        for item in row.answer_object()["items"]:
            assert f"{item['name']} kosten {item['amount']} €" in content
    found = [item["name"] for row in rows for item in row.answer_object()["items"]]
    assert found == [name for name in NAMES if name in found], "each once, in the order of the text"


def test_a_pdf_of_several_pages_keeps_the_page_of_each_value(tmp_path: Path) -> None:
    amounts = [Decimal(100 * n) + Decimal("0.5") for n in range(1, 13)]
    pages = _paged(_lines(amounts), 4)
    invoices.write_pdf(tmp_path / "long.pdf", *(page.replace("€", "EUR") for page in pages))
    [document] = read_documents(tmp_path)
    made = label_documents([document], Items, labels={"long.pdf": _label(amounts)})
    [row] = made.data
    for number, item in enumerate(row.answer_object()["items"]):
        assert item["amount"] == _german(amounts[number])
        assert document.page_at(document.text.index(item["name"])) == str(number // 4 + 1)
    assert [source.node_id for source in row.sources] == [f"long.pdf#page={n}" for n in (1, 2, 3)]
