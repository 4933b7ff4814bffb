"""``label_documents``: one row a document from labels or a teacher, and a reason for whatever gives none."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import Document, NodeWithScore
from pydantic import BaseModel, RootModel

from llama_index_finetune_structured import (
    AsWritten,
    CallPolicy,
    DocumentText,
    LabelledDocuments,
    ServingRecipe,
    alabel_documents,
    label_documents,
    read_documents,
    read_nodes,
)
from llama_index_finetune_structured.dataset.generate.document_names import DocumentNames
from llama_index_finetune_structured.dataset.generate.labels_file import read_labels, typed_cells
from llama_index_finetune_structured.dataset.generate.readers import document_of_pages
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from tests.dataset import invoices
from tests.dataset.invoices import Invoice, MaybeInvoice
from tests.dataset.loopback_teacher import Teacher


def _kinds(found: LabelledDocuments) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for problem in found.problems:
        kinds.setdefault(problem.kind, []).append(problem.where.rpartition("/")[2])
    return kinds


def test_a_folder_and_labels_become_one_row_a_document_as_the_class_writes_it(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in")
    labels = invoices.write_labels(tmp_path / "labels.jsonl", range(6))
    found = label_documents(folder, Invoice, labels=labels)
    assert found.problems == ()
    assert (len(found.data), found.documents, found.paid) == (6, 6, 0)
    for number, row in enumerate(found.data):
        assert (row.document_id or "").startswith(f"{number}.")
        assert row.answer_object() == invoices.answer(number)
        (message,) = row.messages
        assert str(message.content).startswith("Fill Invoice from this document.\n\nInvoice R-")
        assert row.query is None
    again = label_documents(folder, Invoice, labels=labels)
    assert [row.id for row in again.data] == [row.id for row in found.data]


def test_the_prompt_of_serving_is_that_of_the_rows(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in")
    labels = invoices.write_labels(tmp_path / "labels.jsonl", range(6))
    found = label_documents(
        folder, Invoice, labels=labels, instruction='Read {"this"}:', system_prompt="Be exact."
    )
    recipe = ServingRecipe.of(found.data)
    assert recipe == found.recipe
    for document, row in zip(read_documents(folder), found.data, strict=True):
        asked = recipe.prompt().format_messages(context_str=document.text)
        assert [m.content for m in asked] == [m.content for m in row.messages]


def test_every_label_that_is_no_use_is_named_with_its_line_and_nothing_else_is_lost(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in")
    (folder / "empty.txt").write_text(" \n")
    invoices.write_pdf(folder / "scan.pdf", "")
    lines = [
        {"document": "0.txt", "answer": invoices.answer(0)},
        {"document": "1", **invoices.answer(1)},
        {"document": "2.pdf", "answer": {"number": "R-2"}},
        {"document": "nine.txt", "answer": invoices.answer(0)},
        '{"document": "3.txt", ',
        {"name": "3.txt"},
        {"document": "3.txt", "answer": None},
        {"document": "0.txt", "answer": {**invoices.answer(0), "currency": "€"}},
        {"document": "1.html", "answer": invoices.answer(2)},
        {"document": "4.html"},
        {"document": "scan", "answer": invoices.answer(2)},
        [1],
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    found = label_documents(folder, Invoice, labels=path)
    assert [row.document_id for row in found.data] == ["0.txt"]
    assert found.duplicates == 1
    assert _kinds(found) == {
        "unreadable": ["empty.txt", "scan.pdf"],
        "invalid_label": [f"labels.jsonl:{n}" for n in (3, 5, 6, 7, 10, 12)],
        "no_document": ["labels.jsonl:4"],
        "conflict": ["labels.jsonl:9"],
        "no_label": ["5.pdf"],
    }
    said = {problem.where.rpartition("/")[2]: problem.message for problem in found.problems}
    assert said["labels.jsonl:3"].startswith("total: Field required; correct")
    assert "RootModel[Invoice | None]" in said["labels.jsonl:7"]
    assert "labels.jsonl:2" in said["labels.jsonl:9"]
    assert "run OCR" in said["scan.pdf"]
    assert "5.pdf" in str(found)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_row_is_an_object_with_the_types_of_its_schema(separator: str, tmp_path: Path) -> None:
    class Seller(BaseModel):
        name: str
        vat: int | None = None

    class Bill(BaseModel):
        number: str
        total: Decimal
        paid: bool
        seller: Seller
        tags: list[str] = []

    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.txt").write_text(name)
    rows = [
        ["document", "number", "total", "paid", "seller.name", "seller.vat", "tags"],
        ["a.txt", "007", "1.50", "True", f'"M{separator} ""x""\nGmbH"', "12", '"[""x"",""y""]"'],
        ["b.txt", "8", "2", "false", "N", "", ""],
        ["c.txt", "8", "2", "false"],
        ["d.txt", "", "", "", "", "", ""],
    ]
    path = tmp_path / "labels.csv"
    path.write_text("\ufeff" + "\n".join(separator.join(row) for row in rows), encoding="utf-8")
    found = label_documents(tmp_path, Bill, labels=path)
    assert [row.answer_object() for row in found.data] == [
        {
            "number": "007", "total": "1.50", "paid": True,
            "seller": {"name": f'M{separator} "x"\nGmbH', "vat": 12}, "tags": ["x", "y"],
        },
        {"number": "8", "total": "2", "paid": False, "seller": {"name": "N"}},
    ]  # fmt: skip
    assert _kinds(found) == {"invalid_label": ["labels.csv:5", "labels.csv:6"]}
    by_schema = label_documents(tmp_path, schema=Bill.model_json_schema(), labels=path)
    assert [row.answer_object()["seller"] for row in by_schema.data] == [
        {"name": f'M{separator} "x"\nGmbH', "vat": 12},
        {"name": "N"},
    ]


def test_a_folder_of_json_files_and_a_mapping_are_labels_too(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in")
    labels = tmp_path / "labels"
    labels.mkdir()
    for number in range(3):
        (labels / f"{number}.json").write_text(json.dumps(invoices.answer(number)))
    (labels / "3.txt.json").write_text(json.dumps(invoices.answer(3)))
    (labels / "4.json").write_text("{")
    found = label_documents(folder, Invoice, labels=labels)
    assert len(found.data) == 4
    assert _kinds(found) == {"invalid_label": ["4.json"], "no_label": ["5.pdf"]}
    named = {"0.txt": Invoice(**invoices.answer(0)), "1.html": invoices.answer(1)}
    assert [row.id for row in label_documents(folder, Invoice, labels=named).data] == [
        row.id for row in list(found.data)[:2]
    ]


NAMES = ["üb.txt", "deep/a.pdf", "b.txt", "B.TXT", "x.y.md", "1/c.txt", "2/c.txt", "d.txt"]


@pytest.mark.parametrize(
    ("label", "document"),
    [
        ("Üb.TXT", "üb.txt"),
        (unicodedata.normalize("NFD", "üb.txt"), "üb.txt"),
        ("in\\deep\\a.pdf", "deep/a.pdf"),
        ("./deep/a.pdf", "deep/a.pdf"),
        ("/data/in/deep/a.pdf", "deep/a.pdf"),
        ("a", "deep/a.pdf"),
        ("deep/a", "deep/a.pdf"),
        ("b.txt", "b.txt"),
        ("B.TXT", "B.TXT"),
        ("x.y", "x.y.md"),
    ],
)
def test_a_label_may_write_the_name_otherwise_where_it_is_clear(label: str, document: str) -> None:
    names = DocumentNames(NAMES, Path("/data/in"))
    assert names.find(label) == document


@pytest.mark.parametrize(
    "label", ["c.txt", "B.txt", "3/c.txt", "deep/b.pdf", "x.z", "", "other/d.txt", "/in/d.txt", "b.pdf"]
)
def test_a_name_that_fits_no_document_or_several_is_refused(label: str) -> None:
    names = DocumentNames(NAMES, Path("/data/in"))
    with pytest.raises(ValueError, match=r"whole path|no document"):
        names.find(label)


@given(
    st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=6)
)
def test_every_document_is_found_by_its_own_name(names: set[str]) -> None:
    known = DocumentNames(names)
    assert all(known.find(name) == name for name in names)


@settings(max_examples=30)
@given(
    st.recursive(
        st.text(max_size=5),
        lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )
)
def test_cells_of_any_row_are_typed_without_an_error(value: Any) -> None:
    schema = Invoice.model_json_schema()
    typed_cells(value, schema)


def test_a_teacher_fills_what_has_no_label_and_is_paid_once(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in")
    store = tmp_path / "teacher.jsonl"
    with Teacher(invoices.reply).running() as teacher:

        def label(**options: Any) -> LabelledDocuments:
            return label_documents(
                folder, Invoice, teacher=teacher.llm(), path=store, show_progress=False, **options
            )

        first = label(labels=invoices.write_labels(tmp_path / "labels.jsonl", range(2)))
        assert (first.paid, first.reused, len(teacher.requests)) == (4, 0, 4)
        assert [row.answer_object() for row in first.data] == [invoices.answer(n) for n in range(6)]
        assert [row.model for row in first.data] == [None, None, *["gpt-4o-mini"] * 4]
        again = label()
        assert (again.paid, again.reused) == (2, 4)
        assert [row.id for row in again.data] == [row.id for row in first.data]
        (folder / "3.txt").write_text(invoices.text(7))
        (folder / "6.txt").write_text(invoices.text(8))
        (folder / "0.txt").unlink()
        changed = label()
        assert (changed.paid, changed.reused, changed.changed) == (2, 4, ("3.txt",))
        found = {row.document_id: row.answer_object() for row in changed.data}
        assert found["3.txt"] == invoices.answer(7)
        assert "0.txt" not in found
        assert label().paid == 0


def test_a_kill_in_between_loses_no_paid_answer(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in")
    store = tmp_path / "teacher.jsonl"
    with Teacher(invoices.reply, latency_s=0.05).running() as teacher:

        async def cancelled() -> None:
            work = alabel_documents(
                folder, Invoice, teacher=teacher.llm(), path=store, calls=CallPolicy(concurrency=1)
            )
            task = asyncio.ensure_future(work)
            while not store.exists() or store.read_bytes().count(b"\n") < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        kept = store.read_bytes()
        done = kept.count(b"\n")
        store.write_bytes(kept + b'{"key": "torn')
        found = label_documents(folder, Invoice, teacher=teacher.llm(), path=store, show_progress=False)
        assert (found.reused, found.paid, len(found.data)) == (done, 6 - done, 6)


def test_what_the_teacher_cannot_fill_is_told_and_asked_again_on_request(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in", 2)
    (folder / "letter.txt").write_text("Dear all")
    with Teacher(invoices.reply).running() as teacher:

        def label(cls: type[BaseModel], **options: Any) -> LabelledDocuments:
            return label_documents(
                folder, cls, teacher=teacher.llm(), path=tmp_path / "t.jsonl", show_progress=False, **options
            )

        found = label(Invoice)
        assert _kinds(found) == {"failed": ["letter.txt"]}
        assert "Field required" in found.problems[0].message
        assert len(found.data) == 2
        assert label(Invoice).paid == 0
        assert label(Invoice, retry_failed=True).paid == 1
        maybe = label(MaybeInvoice)
        assert maybe.problems == ()
        assert [row.answer_text() for row in maybe.data][-1] == "null"
        assert maybe.negatives == 1


def test_documents_of_another_kind_are_rows_whose_answer_is_none(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in", 3)
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "0.txt").write_text("Dear all")
    (letters / "b.txt").write_text("Dear you")
    labels = invoices.write_labels(tmp_path / "labels.jsonl", range(2), **{"2": None})
    found = label_documents(folder, MaybeInvoice, labels=labels, negatives=letters)
    assert [row.document_id for row in found.data][2:] == ["2.pdf", "letters/0.txt", "b.txt"]
    assert [row.answer_text() for row in found.data][2:] == ["null"] * 3
    assert found.negatives == 3

    class Empty(BaseModel):
        number: str | None = None
        items: list[str] = []

    named = {"0": {"number": "1"}, "1": None}
    assert [row.answer_text() for row in label_documents(folder, Empty, labels=named).data] == [
        '{"number":"1"}',
        '{"number":null,"items":[]}',
    ]
    with pytest.raises(DatasetError, match=r"negatives: .* RootModel\[Invoice \| None\]"):
        label_documents(folder, Invoice, labels=labels, negatives=letters)


def test_pages_are_kept_for_the_places_of_values(tmp_path: Path) -> None:
    invoices.write_pdf(tmp_path / "a.pdf", "First page", "", "Total 12.50")
    (document,) = read_documents(tmp_path)
    assert document.text == "First page\n\nTotal 12.50"
    assert [page.label for page in document.pages] == ["1", "3"]
    assert document.page_at(document.text.index("12.50")) == "3"
    assert document.page_at(len("First page")) is None
    (row,) = label_documents(tmp_path, RootModel[str], labels={"a": "12.50"}).data
    assert [source.node_id for source in row.sources] == ["a.pdf#page=1", "a.pdf#page=3"]
    assert row.metadata["pages"] == [["1", 0, 10], ["3", 12, 23]]
    nodes = document.nodes()
    assert [(node.node_id, node.metadata["page_label"], node.ref_doc_id) for node in nodes] == [
        ("a.pdf#page=1", "1", "a.pdf"),
        ("a.pdf#page=3", "3", "a.pdf"),
    ]


def test_a_synthesizer_over_the_pages_sends_the_prompt_of_the_rows(tmp_path: Path) -> None:
    invoices.write_pdf(tmp_path / "a.pdf", "Invoice R-001\nfor Müller", "Total: 11.50 EUR")
    found = label_documents(tmp_path, Invoice, labels={"a": invoices.answer(1)})
    with Teacher(invoices.reply).running() as teacher:
        (document,) = read_documents(tmp_path)
        synthesizer = get_response_synthesizer(
            llm=teacher.llm(), text_qa_template=found.recipe.prompt(), output_cls=Invoice
        )
        synthesizer.synthesize("any", [NodeWithScore(node=node) for node in document.nodes()])
        assert teacher.requests[0]["messages"][0]["content"] == found.data[0].messages[0].content


def test_documents_of_llama_index_and_their_pages_are_read_in_memory() -> None:
    pages = [
        Document(text=f"Page {n}", metadata={"file_name": "a.pdf", "page_label": str(n)}) for n in (1, 2)
    ]
    found = label_documents([*pages, Document(text="B", id_="b"), DocumentText("c", "C")], RootModel[str],
                            labels={"a.pdf": "x", "b": "y", "c": "z"})  # fmt: skip
    assert [row.document_id for row in found.data] == ["b", "c", "a.pdf"]
    assert str(found.data[2].messages[0].content).endswith("Page 1\n\nPage 2")
    with pytest.raises(DatasetError, match="two documents are called 'b'"):
        label_documents([Document(text="B", id_="b")] * 2, RootModel[str], labels={"b": "y"})
    with pytest.raises(ConfigurationError, match="found str"):
        label_documents(["text"], RootModel[str], labels={"b": "y"})  # type: ignore[list-item]


class Cited(BaseModel):
    author: str
    year: int


class Citations(BaseModel):
    citations: list[Cited]


def _papers(count: int) -> tuple[list[DocumentText], dict[str, Any]]:
    documents, labels = [], {}
    for paper in range(count):
        own = [{"author": f"Author{paper}x{n}", "year": 1950 + n} for n in range(4)]
        lines = [
            f"As {item['author']} ({item['year']}) showed, number {n} holds." for n, item in enumerate(own)
        ]
        documents.append(DocumentText(f"{paper}.txt", "\n\n".join(lines)))
        labels[f"{paper}.txt"] = {"citations": own}
    return documents, labels


def test_a_long_document_of_lists_is_cut_into_parts_with_the_items_inside() -> None:
    documents, labels = _papers(8)
    whole = documents[7].text
    found = label_documents(documents, Citations, labels=labels, max_characters=len(whole) // 2)
    assert found.problems == ()
    assert len(found.data) > 8
    rows = [row for row in found.data if row.document_id == "7.txt"]
    assert [item for row in rows for item in row.answer_object()["citations"]] == labels["7.txt"]["citations"]
    for row in rows:
        span: Any = row.metadata["characters"]
        assert str(row.messages[0].content).endswith(whole[slice(*span)])


def test_a_long_document_of_another_schema_is_told_and_gives_no_cut_row(tmp_path: Path) -> None:
    folder = invoices.write_folder(tmp_path / "in", 3)
    (folder / "long.txt").write_text(invoices.text(1) + "\n\nmore words." * 50)
    labels = {
        "0": invoices.answer(0),
        "long": invoices.answer(1),
        "1": invoices.answer(1),
        "2": invoices.answer(2),
    }
    found = label_documents(folder, Invoice, labels=labels, max_characters=100)
    assert _kinds(found) == {"too_long": ["long.txt"]}
    assert len(found.data) == 3
    with Teacher(invoices.reply).running() as teacher:
        asked = label_documents(
            folder, Invoice, teacher=teacher.llm(), max_characters=100, show_progress=False
        )
        assert _kinds(asked) == {"too_long": ["long.txt"]}
        assert len(teacher.requests) == 3


def test_a_teacher_is_asked_for_each_part_of_a_long_list() -> None:
    documents, labels = _papers(1)

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        text = str(request["messages"][-1]["content"])
        own = [item for item in labels["0.txt"]["citations"] if item["author"] in text]
        return invoices.formatted(request, {"citations": own})

    with Teacher(reply).running() as teacher:
        found = label_documents(
            documents, Citations, teacher=teacher.llm(), max_characters=120, show_progress=False
        )
        assert len(found.data) == len(teacher.requests) >= 2
    items = [item for row in found.data for item in row.answer_object()["citations"]]
    assert items == labels["0.txt"]["citations"]


def test_wrong_arguments_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    labels: dict[str, Any] = {"a": {}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"output_cls": Invoice}, "no source of answers"),
        ({"labels": labels}, "output_cls or schema"),
        ({"output_cls": Invoice, "labels": labels, "max_characters": 0}, "max_characters"),
        ({"output_cls": Invoice, "labels": labels, "instruction": "{context_str}"}, "plain text"),
        ({"output_cls": Invoice, "schema": {}, "labels": labels}, "not both"),
    ]
    for arguments, reason in cases:
        with pytest.raises(ConfigurationError, match=reason):
            label_documents(tmp_path / "none", **arguments)
    with pytest.raises(ConfigurationError, match="no such folder"):
        label_documents(tmp_path / "none", Invoice, labels=labels)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DatasetError, match=r"no row: none of 1 documents has an answer\n.*Field required"):
        label_documents(tmp_path, Invoice, labels=labels)
    with pytest.raises(DatasetError, match="cannot be read"):
        list(read_labels(tmp_path / "none.jsonl"))
    for name, text in (("a.csv", "x,y\n"), ("b.csv", ""), ("c.csv", "document,a,a\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DatasetError, match=rf"{name}:1: "):
            list(read_labels(tmp_path / name))


def test_html_is_the_text_that_a_browser_shows(tmp_path: Path) -> None:
    (tmp_path / "a.htm").write_text(
        "<!doctype html><html><head><title>Bill</title><style>p {}</style><script>x = '<p>'</script></head><body>"
        "<h1>Invoice</h1><p>For  <b>M&uuml;ller</b>,\nBonn<br>Germany</p><table><tr><th>Item</th><th>Price</th></tr>"
        "<tr><td>Screws</td><td>1,50&nbsp;&euro;</td></tr></table><pre>a\n\n  b</pre></body></html>",
        encoding="utf-8",
    )
    (document,) = read_documents(tmp_path)
    assert document.text == (
        "Bill\n\nInvoice\n\nFor Müller, Bonn\nGermany\n\nItem\tPrice\nScrews\t1,50 €\n\na\n\n b"
    )
    assert len(read_nodes(tmp_path)) == 1


def test_blank_pages_do_not_count_and_pictures_are_told() -> None:
    document = document_of_pages("a", [("i", " x "), ("ii", " "), ("iii", "y")], ["ii"])
    assert (document.text, document.pages_without_text) == ("x\n\ny", ("ii",))
    found = label_documents([document], RootModel[str], labels={"a": "x"})
    assert [problem.kind for problem in found.problems] == ["page_without_text"]
    assert len(found.data) == 1


def test_labels_get_the_spelling_of_their_own_document(tmp_path: Path) -> None:
    class Bill(BaseModel):
        day: Annotated[date, AsWritten("en", "de")]
        total: Annotated[Decimal, AsWritten("en", "de")]

    documents = [
        Document(text="Rechnung vom 02.03.2025, Summe 1.834,40 €", id_="a"),
        Document(text="Invoice of March 2, 2025, total $1,834.40", id_="b"),
    ]
    label = Bill(day=date(2025, 3, 2), total=Decimal("1834.40"))
    found = label_documents(documents, Bill, labels={"a": label, "b": label.model_dump(mode="json")})
    assert [row.answer_object() for row in found.data] == [
        {"day": "02.03.2025", "total": "1.834,40"},
        {"day": "March 2, 2025", "total": "1,834.40"},
    ]
    with Teacher(lambda _: {"content": label.model_dump_json()}).running() as teacher:
        asked = label_documents(documents, Bill, teacher=teacher.llm(), path=tmp_path / "t.jsonl")
    assert [row.answer_object() for row in asked.data] == [row.answer_object() for row in found.data]
