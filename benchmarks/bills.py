"""How well a student reads bills in four layouts, English and French: default settings, 40 unseen bills a draw.

    python benchmarks/bills.py [--draws 0 1 2] [--minutes N] [--output FOLDER] [--json FILE]

Ten fields, one of which is optional (60% of the bills say when they are due) and one a list. No layout, firm or word
is one of examples/documents.py. Each draw writes 140 bills as text, trains on 100 labelled ones of which a fifth is
held out, and compares the answers of the other 40 with the truth. About 20 to 40 minutes a draw.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from llama_index_finetune_structured import AsWritten, compare, label_documents, tune

BILLS, LABELLED = 140, 100
Amount = Annotated[Decimal, AsWritten("en", "fr")]
Day = Annotated[date, AsWritten("en", "fr")]


class Position(BaseModel):
    """A line of the bill."""

    description: str
    quantity: int
    price: Amount = Field(description="Of one, without tax.")


class Bill(BaseModel):
    """A bill."""

    number: str
    issued: Day
    due: Day | None = Field(None, description="Until when it is to be paid.")
    supplier: str
    customer: str
    currency: Literal["EUR", "USD", "CHF"]
    items: list[Position]
    net: Amount
    tax: Amount
    total: Amount


_GOODS = {
    "en": ["Garden hose 20 m", "Copper pipe", "Web hosting", "Office chair", "Cable ties", "Espresso beans 1 kg",
           "Wall paint white", "Bicycle repair", "Safety gloves", "Monitor arm", "Train ticket", "Paper cups"],
    "fr": ["Tuyau d'arrosage", "Tube de cuivre", "Hébergement web", "Chaise de bureau", "Colliers de serrage",
           "Café en grains 1 kg", "Peinture murale", "Réparation de vélo", "Gants de travail", "Bras d'écran",
           "Billet de train", "Gobelets en carton"],
}  # fmt: skip
_NAMES = {
    "en": (["Ash", "Brook", "Carter", "Dale", "Elm", "Ford", "Grant", "Hale"],
           ["Supplies", "Works Ltd", "& Partners", "Traders", "Services plc", "Stores"]),
    "fr": (["Aubert", "Besson", "Chevalier", "Dupré", "Étoile", "Fabre", "Garnier", "Hervé"],
           ["et Fils", "SARL", "Distribution", "Atelier", "SA", "Frères"]),
}  # fmt: skip
_MONTHS = ["janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre",
           "novembre", "décembre"]  # fmt: skip
_UNTIL = {"en": ["Pay before {}", "Due {}"], "fr": ["À régler avant le {}", "Échéance : {}"]}


def write_bills(folder: Path, numbers: range) -> dict[str, dict[str, Any]]:
    """Write bills by their numbers as text; returns what each says, by the name of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = dict[str, dict[str, Any]]()
    for number in numbers:
        draw = random.Random(number)
        language = "fr" if number % 2 else "en"
        bill = _bill(draw, number, language)
        layout = _LAYOUTS[draw.randrange(len(_LAYOUTS))]
        (folder / f"bill-{number}.txt").write_text(layout(bill, language, draw), encoding="utf-8")
        truth[f"bill-{number}.txt"] = bill.model_dump(mode="json", exclude_none=True)
    return truth


def _bill(draw: random.Random, number: int, language: str) -> Bill:
    items = [
        Position(
            description=name, quantity=draw.randint(1, 60), price=Decimal(draw.randint(150, 400_000)) / 100
        )
        for name in draw.sample(_GOODS[language], draw.randint(1, 4))
    ]
    issued = date(2024, 1, 1) + timedelta(days=draw.randint(0, 700))
    net = sum((item.quantity * item.price for item in items), Decimal(0))
    tax = (net * Decimal("0.2")).quantize(Decimal("0.01"))
    first, second = _NAMES[language]
    supplier, customer = (f"{name} {draw.choice(second)}" for name in draw.sample(first, 2))
    return Bill(
        number=f"{draw.choice(['B', 'F', 'BL'])}{issued:%y}/{3 * number + draw.randint(0, 2)}",
        issued=issued,
        due=issued + timedelta(days=draw.choice([10, 21, 30, 60])) if draw.random() < 0.6 else None,
        supplier=supplier,
        customer=customer,
        currency=draw.choice(["EUR", "CHF"] if language == "fr" else ["USD", "EUR", "CHF"]),
        items=items,
        net=net,
        tax=tax,
        total=net + tax,
    )


def _money(value: Decimal, language: str) -> str:
    text = f"{value:,.2f}"
    return text.translate(str.maketrans(",.", " ,")) if language == "fr" else text


def _day(value: date, language: str, draw: random.Random) -> str:
    if language == "fr":
        return draw.choice([f"{value:%d/%m/%Y}", f"{value.day} {_MONTHS[value.month - 1]} {value.year}"])
    return draw.choice([f"{value:%b} {value.day}, {value.year}", f"{value.day} {value:%B} {value.year}"])


def _until(bill: Bill, language: str, draw: random.Random) -> list[str]:
    return [draw.choice(_UNTIL[language]).format(_day(bill.due, language, draw))] if bill.due else []


def _message(bill: Bill, language: str, draw: random.Random) -> str:
    hello, of, sums = {
        "en": ("Dear {}, here is our bill {} dated {}.", "{} {} at {} each",
               "Net {}, tax {}: please transfer {} {}."),
        "fr": ("Bonjour {}, voici notre facture {} du {}.", "{} {} à {} pièce",
               "Net {}, taxe {} : merci de virer {} {}."),
    }[language]  # fmt: skip
    lines = [hello.format(bill.customer, bill.number, _day(bill.issued, language, draw)), ""]
    lines += [of.format(i.quantity, i.description, _money(i.price, language)) for i in bill.items]
    amounts = [_money(value, language) for value in (bill.net, bill.tax, bill.total)]
    return "\n".join(
        [*lines, "", sums.format(*amounts, bill.currency), *_until(bill, language, draw), bill.supplier]
    )


def _receipt(bill: Bill, language: str, draw: random.Random) -> str:
    words = ["Sub-total", "VAT 20%", "To pay"] if language == "en" else ["Sous-total", "TVA 20 %", "À payer"]
    lines = [bill.supplier, f"{bill.number}  {bill.currency}"]
    lines += [_day(bill.issued, language, draw), *_until(bill, language, draw), f"> {bill.customer}"]
    for item in bill.items:
        line = f"{item.description:<22}{item.quantity:>4}{_money(item.price, language):>11}"
        lines.append(f"{line}{_money(item.quantity * item.price, language):>13}")
    amounts = zip(words, (bill.net, bill.tax, bill.total), strict=True)
    return "\n".join([*lines, *(f"{word:<37}{_money(value, language):>13}" for word, value in amounts)])


def _table(bill: Bill, language: str, draw: random.Random) -> str:
    head, words = {
        "en": (
            "| Qty | Description | Unit price |",
            ["Bill to", "From", "Without tax", "Tax", "Total with tax"],
        ),
        "fr": (
            "| Qté | Désignation | Prix unitaire |",
            ["Client", "Émetteur", "Total HT", "TVA", "Total TTC"],
        ),
    }[language]
    lines = [f"# {bill.number}", f"{words[1]}: {bill.supplier}", f"{words[0]}: {bill.customer}"]
    lines += [_day(bill.issued, language, draw), "", head, "|---|---|---|"]
    lines += [f"| {i.quantity} | {i.description} | {_money(i.price, language)} |" for i in bill.items]
    amounts = zip(words[2:], (bill.net, bill.tax, bill.total), strict=True)
    lines += ["", *(f"**{word}**: {_money(value, language)} {bill.currency}" for word, value in amounts)]
    return "\n".join([*lines, *_until(bill, language, draw)])


def _record(bill: Bill, language: str, draw: random.Random) -> str:
    words = {
        "en": ["ref", "date", "vendor", "buyer", "currency", "article", "count", "unit", "net", "vat", "gross"],
        "fr": ["réf", "date", "vendeur", "acheteur", "devise", "article", "nombre", "unité", "ht", "tva", "ttc"],
    }[language]  # fmt: skip
    head = [bill.number, _day(bill.issued, language, draw), bill.supplier, bill.customer, bill.currency]
    lines = [f"{word} = {value}" for word, value in zip(words, head, strict=False)]
    lines += _until(bill, language, draw)
    for item in bill.items:
        values = [item.description, str(item.quantity), _money(item.price, language)]
        lines += ["--", *(f"{word} = {value}" for word, value in zip(words[5:], values, strict=False))]
    amounts = zip(words[8:], (bill.net, bill.tax, bill.total), strict=True)
    return "\n".join([*lines, "--", *(f"{word} = {_money(value, language)}" for word, value in amounts)])


_LAYOUTS: list[Callable[[Bill, str, random.Random], str]] = [_message, _receipt, _table, _record]


def measure(draw: int, folder: Path, minutes: float | None) -> dict[str, Any]:
    """Train a draw's student and score it on the bills that it has not seen."""
    truth = write_bills(folder / "bills", range(1000 * draw, 1000 * draw + BILLS))
    labels, unseen = dict(list(truth.items())[:LABELLED]), dict(list(truth.items())[LABELLED:])
    made = label_documents(folder / "bills", Bill, labels=_written(folder / "labels.jsonl", labels))
    train, held_out = made.data.split(0.8, group_by="document")
    began = time.monotonic()
    student = tune(train, validation=held_out, output_cls=Bill, minutes=minutes, output_dir=folder / "run")
    trained = time.monotonic() - began
    known = label_documents(folder / "bills", Bill, labels=_written(folder / "unseen.jsonl", unseen))
    card = compare({"student": student}, known.data)
    card.print()
    card.to_html(folder / "unseen.html")
    card.to_json(folder / "unseen.json")
    answers = [(row.gold, row.answers["student"].value) for row in card.rows]
    off = sum(off_by_tens(gold, answer) for gold, answer in answers if isinstance(answer, dict))
    print(
        f"{off} amounts are off by a power of ten; trained on {len(train)} bills in {trained / 60:.0f} minutes"
    )
    figures = card.systems["student"].model_dump(mode="json")
    return {"draw": draw, "rows": len(train), "seconds": trained, "off_by_tens": off, "figures": figures}


def off_by_tens(gold: dict[str, Any], answer: dict[str, Any]) -> int:
    """How many amounts have the digits of the right one, and another size. Of lists of as many items."""
    pairs = [(gold[name], answer.get(name)) for name in ("net", "tax", "total")]
    if len(gold["items"]) == len(found := answer.get("items", [])):
        pairs += [(one["price"], other["price"]) for one, other in zip(gold["items"], found, strict=True)]
    values = [(Decimal(str(one)), Decimal(str(other))) for one, other in pairs if other is not None]
    return sum(one != other and _digits(one) == _digits(other) for one, other in values)


def _digits(value: Decimal) -> str:
    return "".join(map(str, value.as_tuple().digits)).strip("0")


def _written(path: Path, labels: dict[str, dict[str, Any]]) -> Path:
    rows = ({"document": name, "answer": label} for name, label in labels.items())
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    """Measure each draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, help="of training; no limit by default")
    parser.add_argument("--output", type=Path, default=Path("benchmark-output/bills"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = [measure(draw, args.output / str(draw), args.minutes) for draw in args.draws]
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
