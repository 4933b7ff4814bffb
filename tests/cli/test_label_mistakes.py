"""``build --labels`` as a newcomer uses it: mistakes are told with file and line, and no value is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import FinetuneDataset
from tests.cli.conftest import Call

SCHEMA = """\
name: Bill
fields:
  number: string
  total: decimal
  customer: string?
  paid: boolean?
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bills/2024").mkdir(parents=True)
    for number in range(4):
        text = f"Bill A-{number}\r\nfor Müller\r\nTotal: {number + 1}.50 EUR\r\n"
        Path(f"bills/{number}.txt").write_bytes(text.encode())
    Path("bills/2024/1.txt").write_text("Bill B-1\nTotal: 7.00 EUR")
    Path("schema.yaml").write_bytes(b"\xef\xbb\xbf" + SCHEMA.replace("\n", "\r\n").encode())


def _build(call: Call, name: str, content: str, encoding: str = "utf-8", code: int = 0) -> dict[str, Any]:
    Path(name).write_bytes(content.encode(encoding))
    return call("build", "bills", "--schema", "schema.yaml", "--labels", name, "--validation", "0", code=code)


def _answers() -> dict[str, Any]:
    return {str(row.document_id): row.answer_object() for row in FinetuneDataset.load("data.jsonl")}


def _told(found: dict[str, Any]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for problem in found["problems"]:
        kinds.setdefault(problem["kind"], []).append(f"{problem['where']}: {problem['message']}")
    return kinds


def test_a_spreadsheet_of_windows_is_read(call: Call) -> None:
    """A separator line, semicolons, a byte order mark, other names of the column, and an unnamed last column."""
    lines = [
        "\ufeffsep=;",
        "File Name;number;total;customer;paid;",
        "0;A-0;1.50;Müller;TRUE;",
        "2024\\1.txt;B-1;7;;;",
    ]
    found = _build(call, "labels.csv", "\r\n".join(lines) + "\r\n")
    assert _answers() == {
        "0.txt": {"number": "A-0", "total": "1.50", "customer": "Müller", "paid": True},
        "2024/1.txt": {"number": "B-1", "total": "7"},
    }
    assert _told(found).keys() == {"no_label"}


def test_each_mistake_of_a_csv_file_is_told_with_its_line(call: Call) -> None:
    Path("bills/latin.txt").write_bytes("Bill L\nMüller".encode("latin-1"))
    Path("bills/copy.txt").write_bytes(Path("bills/0.txt").read_bytes())
    lines = [
        "document,number,total,custmer,",
        "0.txt,A-0,1.50,Müller,",
        'copy.txt,A-0,1.50,"x\ny",',
        "2.txt,A-2,free,,",
        "nine.txt,A-9,1,,",
        "3.txt,A-3",
        "1.txt,A-1,2.50,,note",
    ]
    told = _told(_build(call, "labels.csv", "\n".join(lines)))
    assert {kind: [text.partition(": ")[0] for text in texts] for kind, texts in told.items()} == {
        "unreadable": ["bills/latin.txt"],
        "invalid_label": ["labels.csv:5", "labels.csv:7", "labels.csv:8"],
        "no_document": ["labels.csv:6"],
        "copy": ["copy.txt"],
        "unknown_field": ["labels.csv:2"],
        "no_label": ["2024/1.txt"],
    }
    assert "line 2, byte 9" in told["unreadable"][0]
    [unknown] = told["unknown_field"]
    assert "'custmer' is no field of Bill, and was not read (2 labels); did you mean 'customer'?" in unknown


@pytest.mark.parametrize(
    ("name", "content", "encoding", "error"),
    [
        ("l.csv", "document,number\n0.txt,ä\n", "latin-1", "l.csv:2: not UTF-8 text (byte 23)"),
        ("l.csv", "number,total\nA,1\n", "utf-8", "l.csv:1: the line of the columns: names no document"),
        ("l.csv", "0.txt,A-0,1.50\n", "utf-8", "expected a column 'document', found 0.txt, 1.50, A-0"),
        ("l.csv", "", "utf-8", "l.csv:1: the line of the columns"),
        ("l.xlsx", "PK", "utf-8", "a spreadsheet, which cannot be read; save it as CSV"),
        ("l.csv", 'document,number\n0.txt,"A\n', "utf-8", "l.csv:2: no CSV (unexpected end of data)"),
        ("l.jsonl", '{"document": "0.txt" "x"}\r\n', "utf-8", "l.jsonl:1: not valid JSON"),
        ("l.json", '[{"document": "0.txt"}]', "utf-8", "l.json[0]: no answer beside the document"),
    ],
)  # fmt: skip
def test_a_file_without_any_use_is_refused_with_the_reason(
    call: Call, name: str, content: str, encoding: str, error: str
) -> None:
    assert error in _build(call, name, content, encoding, code=1)["error"]
    assert not Path("data.jsonl").exists()


def test_json_files_are_lists_of_rows_or_answers_by_document(call: Call) -> None:
    rows = [
        {"file": "0.txt", "answer": {"number": "A-0", "total": 1.5}, "note": "checked"},
        {"document": "2.txt", "number": "A-2", "total": "3.50"},
    ]
    _build(call, "labels.json", json.dumps(rows, indent=1))
    assert _answers() == {
        "0.txt": {"number": "A-0", "total": "1.5"},
        "2.txt": {"number": "A-2", "total": "3.50"},
    }
    _build(call, "labels.json", json.dumps({"3": {"number": "A-3", "total": "4.50"}}))
    assert _answers() == {"3.txt": {"number": "A-3", "total": "4.50"}}


def test_one_row_alone_cannot_be_divided_and_every_problem_is_still_listed(call: Call) -> None:
    Path("labels.csv").write_text("document,number,total\n0.txt,A-0,1.50\n1.txt,A-1,free\n")
    error = call("build", "bills", "--schema", "schema.yaml", "--labels", "labels.csv", code=1)["error"]
    assert "only one document gave a row" in error
    assert "invalid_label: labels.csv:3: total: Input should be a valid decimal" in error


def test_of_documents_with_the_same_text_one_gives_a_row_and_a_label_of_either_counts(call: Call) -> None:
    Path("bills/copy.txt").write_bytes(Path("bills/0.txt").read_bytes())
    for labelled in ("0.txt", "copy.txt"):
        found = _build(call, "labels.csv", f"document,number,total\n{labelled},A-0,1.50\n2.txt,A-2,3.50\n")
        assert _answers().keys() == {"0.txt", "2.txt"}
        assert _told(found)["copy"] == [
            "copy.txt: its text is that of '0.txt', whose row stands for both; remove one"
        ]
