"""Small invoices in several layouts, as texts, HTML and PDFs, with their labels, and a teacher that reads them."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from fpdf import FPDF
from pydantic import BaseModel, Field, RootModel, field_validator


class Invoice(BaseModel):
    """An invoice."""

    number: str
    total: Decimal = Field(gt=0, decimal_places=2)
    currency: str = "EUR"
    customer: str | None = None

    @field_validator("currency", mode="before")
    @classmethod
    def _code(cls, value: Any) -> Any:
        return {"€": "EUR"}.get(value, value)


class MaybeInvoice(RootModel[Invoice | None]):
    """An invoice, or null for another kind of document."""


def answer(number: int) -> dict[str, Any]:
    return {"number": f"R-{number:03}", "total": f"{number + 10}.50", "currency": "EUR", "customer": "Müller"}


def text(number: int, pages: int = 1) -> str:
    label = answer(number)
    return f"Invoice {label['number']}\nfor {label['customer']}\nTotal: {label['total']} EUR"


def write_pdf(path: Path, *pages: str) -> None:
    document = FPDF()
    document.set_font("helvetica", size=12)
    for page in pages:
        document.add_page()
        if page:
            document.multi_cell(0, 8, page)
    document.output(str(path))


def write_folder(folder: Path, count: int = 6) -> Path:
    """Invoices 0, 3, ... as text, 1, 4, ... as HTML, 2, 5, ... as PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        if number % 3 == 0:
            (folder / f"{number}.txt").write_text(text(number), encoding="utf-8")
        elif number % 3 == 1:
            lines = "".join(f"<p>{line}</p>" for line in text(number).split("\n"))
            (folder / f"{number}.html").write_text(f"<html><body>{lines}</body></html>", encoding="utf-8")
        else:
            write_pdf(folder / f"{number}.pdf", text(number))
    return folder


def write_labels(path: Path, numbers: range, **others: Any) -> Path:
    rows = [{"document": str(number), "answer": answer(number)} for number in numbers]
    rows += [{"document": name, "answer": value} for name, value in others.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """The invoice in the prompt, by tool or response format; null inside of ``answer`` for other documents."""
    prompt = "\n".join(str(message["content"]) for message in request["messages"])
    found = re.search(r"Invoice (R-\d+)\s+for (\S+)\s+Total: ([\d.]+)", prompt)
    value = found and {"number": found[1], "customer": found[2], "total": found[3], "currency": "€"}
    wrapped = "MaybeInvoice" in json.dumps(request.get("tools") or request.get("response_format"))
    return formatted(request, {"answer": value} if wrapped else value or {})


def formatted(request: dict[str, Any], value: Any) -> dict[str, Any]:
    """The value as the request asks for it: a tool call, or text."""
    content = json.dumps(value)
    if request.get("tools"):
        function = {"name": request["tools"][0]["function"]["name"], "arguments": content}
        return {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
    return {"content": content}
