"""Documents of many layouts, with amounts in the spellings of several countries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from hypothesis import strategies as st

NARROW, WIDE = "\u202f", "\u00a0"


@dataclass(frozen=True)
class Style:
    """How the numbers of a document are written: the symbols of groups and decimals, and locales that know them."""

    group: str
    decimal: str
    locales: tuple[str, ...]

    def number(self, value: Decimal, *, grouped: bool = True) -> str:
        text = f"{abs(value):,.2f}" if grouped else f"{abs(value):.2f}"
        return "".join({",": self.group, ".": self.decimal}.get(symbol, symbol) for symbol in text)


STYLES = [
    Style(".", ",", ("de", "es", "it", "pt_BR", "nl")),
    Style(NARROW, ",", ("fr", "sv", "es", "pl")),
    Style(WIDE, ",", ("fr", "sv", "pl", "pt")),
    Style(" ", ",", ("fr", "sv", "de", "cs")),
    Style("'", ".", ("de_CH", "it_CH", "en")),
    Style("\u2019", ".", ("de_CH", "fr_CH", "en_GB")),
    Style(",", ".", ("en_US", "en_GB", "ja", "es_MX")),
]
PLUS: list[Callable[[str], str]] = [
    lambda text: text,
    lambda text: f"€ {text}",
    lambda text: f"€{text}",
    lambda text: f"{text} €",
    lambda text: f"{text}{WIDE}€",
    lambda text: f"EUR {text}",
    lambda text: f"{text} EUR",
    lambda text: f"CHF{NARROW}{text}",
]
MINUS: list[Callable[[str], str]] = [
    lambda text: f"-{text}",
    lambda text: f"\u2212{text}",
    lambda text: f"({text})",
    lambda text: f"{text}-",
    lambda text: f"-{text} €",
    lambda text: f"€ -{text}",
    lambda text: f"-€{text}",
    lambda text: f"({text} €)",
    lambda text: f"EUR -{text}",
]


@dataclass(frozen=True)
class Bill:
    """The amounts of a document, in the order of its text."""

    amounts: tuple[Decimal, ...]
    text: str
    style: Style


def _table(rows: list[str], total: str) -> str:
    lines = [f"{n}\tArticle {n * 7}\t{n} pcs.\t{row}\t19 %" for n, row in enumerate(rows, start=1)]
    return "\n".join(["Pos.\tItem\tQuantity\tAmount\tVAT", *lines, f"Total\t\t\t{total}"])


def _columns(rows: list[str], total: str) -> str:
    lines = [f"Invoice no. 2026-04{n:02}      Item {n}    {row}" for n, row in enumerate(rows, start=1)]
    return "\n".join([*lines, f"Customer 4711            TOTAL     {total}"])


def _letter(rows: list[str], total: str) -> str:
    said = ", then ".join(f"{row} for the work of day {n}" for n, row in enumerate(rows, start=1))
    return (
        f"Dear all,\n\nour letter of 3 April 2026 named {said}. Please pay {total} until the 30th.\n\nYours"
    )


def _in_words(rows: list[str], total: str) -> str:
    lines = "\n".join(f"Item: {row}" for row in rows)
    return f"{lines}\nin words: one thousand and some\nin figures: {total}\nIBAN DE02 1203 0000 0000 2020 51"


LAYOUTS = [_table, _columns, _letter, _in_words]
AMOUNTS = st.decimals(Decimal("0.01"), 9_999_999, places=2)


@st.composite
def bills(draw: st.DrawFn) -> Bill:
    """A document in one style and layout; the total may lack the separators that the items have."""
    style = draw(st.sampled_from(STYLES))
    amounts = draw(st.lists(st.tuples(AMOUNTS, st.booleans()), min_size=1, max_size=4))
    plus, minus = draw(st.sampled_from(PLUS)), draw(st.sampled_from(MINUS))
    written = [(minus if less else plus)(style.number(amount)) for amount, less in amounts]
    values = [-amount if less else amount for amount, less in amounts]
    total = draw(AMOUNTS)
    last = plus(style.number(total, grouped=draw(st.booleans())))
    text = draw(st.sampled_from(LAYOUTS))(written, last)
    return Bill((*values, total), text, style)


def scanned(text: str, seed: int) -> str:
    """The text as OCR may read it: spaces inside of numbers, letters for digits, marks that are lost."""
    changes = [
        (",", ", "),
        (".", " ."),
        ("1", "l"),
        ("0", "O"),
        ("5", "S"),
        (",", ""),
        ("\t", " "),
        ("8", "B"),
    ]
    for number, (old, new) in enumerate(changes):
        if (seed >> number) & 1:
            at = text.find(old, (seed * 31) % max(1, len(text)))
            text = text if at < 0 else text[:at] + new + text[at + len(old) :]
    return text
