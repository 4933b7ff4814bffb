"""A folder of made-up invoices, in three layouts, English and German, as PDF, HTML and text, and their labels."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal

from fpdf import FPDF
from pydantic import BaseModel, Field, field_validator

from llama_index_finetune_structured import AsWritten, answer_rules

_GOODS = {
    "en": ["Steel screws M8", "Consulting", "Oak table", "Potting soil 40 l", "Printer paper", "Desk lamp"],
    "de": [
        "Stahlschrauben M8",
        "Beratung",
        "Tisch Eiche",
        "Blumenerde 40 l",
        "Druckerpapier",
        "Schreibtischlampe",
    ],
}
_FIRMS = {
    "en": ["Miller & Sons", "Northgate Ltd", "Hill Trading"],
    "de": ["Müller & Söhne", "Nordtor GmbH", "Gebr. Weiß"],
}
_UNTIL = {"en": ["Payment due:", "Please pay by"], "de": ["Zahlbar bis", "Fällig am:"]}
_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}


class Item(BaseModel):
    """A line of the invoice; subtotals are none."""

    description: str
    quantity: int = Field(gt=0)
    price: Annotated[Decimal, AsWritten("en", "de")] = Field(description="Of one.")


def adds_up(invoice: Invoice) -> list[str] | None:
    """The rule of all invoices here: the items make the total."""
    found = sum((item.quantity * item.price for item in invoice.items), Decimal(0))
    return None if found == invoice.total else [f"the items make {found}, the total is {invoice.total}"]


@answer_rules(adds_up)
class Invoice(BaseModel):
    """An invoice."""

    number: str
    issued: Annotated[date, AsWritten("en", "de")]
    seller: str
    currency: Literal["EUR", "USD", "GBP"]
    items: list[Item] = Field(min_length=1)
    total: Annotated[Decimal, AsWritten("en", "de")]

    @field_validator("currency", mode="before")
    @classmethod
    def _code(cls, value: Any) -> Any:
        return {sign: code for code, sign in _SIGNS.items()}.get(value, value)


class DueInvoice(Invoice):
    """An invoice, with the day until which it is to be paid, where it says so."""

    due: Annotated[date, AsWritten("en", "de")] | None = None


def write_folder(folder: Path, numbers: Iterable[int], *, due: bool = False) -> dict[str, DueInvoice]:
    """Write invoices by their numbers. Returns what each says, by the name of its file.

    ``due``: whether they say until when they are to be paid. Equal numbers give equal invoices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return dict(_written(folder, number, due=due) for number in numbers)


def write_labels(path: Path, labels: Mapping[str, Invoice]) -> Path:
    """Labels as JSON Lines. A day that is not given is left out."""
    rows = (
        {"document": name, "answer": label.model_dump(mode="json", exclude_none=True)}
        for name, label in labels.items()
    )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _written(folder: Path, number: int, *, due: bool) -> tuple[str, DueInvoice]:
    draw = random.Random(number)
    language = "de" if number % 2 else "en"
    invoice = _invoice(draw, number, language)
    text = _LAYOUTS[draw.randrange(len(_LAYOUTS))](invoice, language)
    if due:
        invoice.due = invoice.issued + timedelta(days=draw.choice([14, 30, 45]))
        line = f"{draw.choice(_UNTIL[language])} {_day(invoice.due, language)}"
        lines = text.split("\n")
        lines.insert(draw.choice([len(lines) - 1, len(lines)]), line)
        text = "\n".join(lines)
    name = f"{number:03}-{invoice.seller.split()[0].lower().strip('.')}"
    if number % 3 == 0:
        _write_pdf(folder / f"{name}.pdf", text)
        return f"{name}.pdf", invoice
    if number % 3 == 1:
        rows = "".join(f"<p>{escape(line)}</p>" for line in text.split("\n"))
        (folder / f"{name}.html").write_text(f"<html><body>{rows}</body></html>", encoding="utf-8")
        return f"{name}.html", invoice
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return f"{name}.txt", invoice


def _invoice(draw: random.Random, number: int, language: str) -> DueInvoice:
    items = [
        Item(description=name, quantity=draw.randint(1, 40), price=Decimal(draw.randint(100, 90_000)) / 100)
        for name in draw.sample(_GOODS[language], draw.randint(1, 3))
    ]
    return DueInvoice(
        number=f"{'RE' if language == 'de' else 'INV'}-{2000 + 7 * number}",
        issued=date(2025, 1, 1) + timedelta(days=draw.randint(0, 300)),
        seller=draw.choice(_FIRMS[language]),
        currency=draw.choice(["EUR", "EUR", "USD", "GBP"]) if language == "en" else "EUR",
        items=items,
        total=sum((item.quantity * item.price for item in items), Decimal(0)),
    )


def _money(value: Decimal, language: str) -> str:
    text = f"{value:,.2f}"
    return text.translate(str.maketrans(",.", ".,")) if language == "de" else text


def _day(value: date, language: str) -> str:
    return f"{value:%d.%m.%Y}" if language == "de" else f"{value:%B} {value.day}, {value.year}"


def _letter(invoice: Invoice, language: str) -> str:
    words = ("Rechnung", "vom", "Summe") if language == "de" else ("Invoice", "of", "Total")
    lines = [
        f"{invoice.seller}",
        "",
        f"{words[0]} {invoice.number} {words[1]} {_day(invoice.issued, language)}",
        "",
    ]
    lines += [f"{i.quantity} x {i.description}: {_money(i.price, language)}" for i in invoice.items]
    return "\n".join([*lines, "", f"{words[2]}: {_money(invoice.total, language)} {invoice.currency}"])


def _columns(invoice: Invoice, language: str) -> str:
    head = ["Pos", "Artikel", "Menge", "Preis"] if language == "de" else ["No", "Item", "Qty", "Price"]
    rows = [
        [str(at), item.description, str(item.quantity), _money(item.price, language)]
        for at, item in enumerate(invoice.items, start=1)
    ]
    table = [" | ".join(row) for row in [head, *rows]]
    sign = _SIGNS[invoice.currency]
    total = f"{'Gesamt' if language == 'de' else 'Amount due'} {sign} {_money(invoice.total, language)}"
    return "\n".join([f"{invoice.number}   {_day(invoice.issued, language)}", invoice.seller, *table, total])


def _fields(invoice: Invoice, language: str) -> str:
    names = (
        ["Nummer", "Datum", "Verkäufer", "Währung", "Endbetrag"]
        if language == "de"
        else ["Number", "Date", "Seller", "Currency", "Grand total"]
    )
    values = [
        invoice.number,
        _day(invoice.issued, language),
        invoice.seller,
        invoice.currency,
        _money(invoice.total, language),
    ]
    lines = [f"- {i.description} ({i.quantity} @ {_money(i.price, language)})" for i in invoice.items]
    pairs = [f"{name}: {value}" for name, value in zip(names, values, strict=True)]
    return "\n".join([*pairs[:4], *lines, pairs[4]])


_LAYOUTS: list[Callable[[Invoice, str], str]] = [_letter, _columns, _fields]


def _write_pdf(path: Path, text: str) -> None:
    document = FPDF()
    document.add_page()
    document.set_font("helvetica", size=11)
    document.multi_cell(0, 7, text.replace("€", "EUR"))  # which the built-in fonts of PDF lack
    document.output(str(path))
