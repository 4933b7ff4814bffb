"""Numbers and currencies as texts write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

from .readings import TOKEN, DocumentTexts, Reading, locale_of, number_values, western_digits, without_marks

__all__ = ["currency_spellings", "locale_symbols", "number_text", "read_currency", "read_number"]

_NO_CENTS = re.compile(r"(?<=\d)[.,][-–—]{1,2}")
_AMBIGUOUS = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")
_MINUS = "-−–"
_SIGNS = f"{_MINUS}+ "
_ARABIC = str.maketrans({"٬": "'", "٫": "."})
_OTHER_LOCALES = (
    "en",
    "en_GB",
)  # for symbols that a locale lacks: "$" of French texts, "US$" of American ones
_SWISS = {"Fr.": "CHF", "SFr.": "CHF", "sFr.": "CHF"}


def number_text(value: Decimal) -> str:
    """A decimal as every locale reads it: with a point, and not three digits after it where those could be a group."""
    text = f"{value:f}"
    return f"{text}0" if _AMBIGUOUS.fullmatch(text.lstrip("-")) else text


def read_number(text: str, locales: Sequence[str], document: DocumentTexts) -> Reading:
    """The number that a text writes, alone or with its sign, currency or percent sign.

    Where the separator may be that of thousands or of decimals, the locales decide; without any, or where they
    disagree, the document's other numbers. Raises ValueError for other texts.
    """
    plain = without_marks(western_digits(text)).strip()
    cents = _NO_CENTS.search(plain)
    token, sign = _token(_NO_CENTS.sub("", plain.translate(_ARABIC)), text, locales)
    by_symbol = number_values(token)
    if cents is not None and cents[0][0] in by_symbol:  # "1.834,-" tells which one is that of decimals
        by_symbol = {cents[0][0]: by_symbol[cents[0][0]]}
    if "٫" in plain:  # which is no separator of thousands
        by_symbol.pop(",", None)
    if not by_symbol:
        raise ValueError(f"{text!r} is no number")
    values = {symbol: sign * value for symbol, value in by_symbol.items()}
    if len({*values.values()}) == 1:
        return Reading(values.popitem()[1])
    return _decided(values, re.sub(r"\d", "", token), locales, document.decimal_symbol)


def _decided(values: dict[str, Decimal], separator: str, locales: Sequence[str], here: str | None) -> Reading:
    """``values``: by decimal symbol, two; ``here``: the document's symbol."""
    known = [locale_symbols(name) for name in locales]
    symbols = list(dict.fromkeys(decimal for decimal, group in known if separator in (decimal, group)))
    if len(symbols) == 1:
        symbol, is_sure = symbols[0], here in (None, symbols[0])
    elif here is not None:
        symbol, is_sure = here, True
    else:
        symbol, is_sure = symbols[0] if symbols else known[0][0] if known else ".", False
    other = next(value for key, value in values.items() if key != symbol)
    return Reading(values[symbol], () if is_sure else (other,))


@lru_cache(maxsize=256)
def locale_symbols(name: str) -> tuple[str, str]:
    """A locale's decimal symbol and that of groups."""
    from babel.numbers import get_decimal_symbol, get_group_symbol

    locale = locale_of(name)
    decimal = get_decimal_symbol(locale).translate(_ARABIC)
    return ("," if decimal == "," else "."), get_group_symbol(locale)


def _token(plain: str, text: str, locales: Sequence[str]) -> tuple[str, int]:
    """The digits of the only number, and 1 or -1. Raises ValueError where anything else stands there."""
    found = list(TOKEN.finditer(plain))
    if len(found) != 1:
        raise ValueError(f"{text!r} is no number" if not found else f"{text!r} is more than one number")
    before, after = plain[: found[0].start()].strip(), plain[found[0].end() :].strip()
    is_negative = False
    if before.startswith("(") and after.endswith(")"):
        before, after, is_negative = before[1:].strip(), after[:-1].strip(), True
    is_negative |= any(side[at] in _MINUS for side in (before, after) if side for at in (0, -1))
    for rest in (before.strip(_SIGNS), after.strip(_SIGNS)):
        if rest not in ("", "%") and not _is_currency(rest, locales):
            raise ValueError(f"{text!r} is more than a number")
    return found[0].group(), -1 if is_negative else 1


def _is_currency(text: str, locales: Sequence[str]) -> bool:
    try:
        read_currency(text, locales)
    except ValueError:
        return False
    return True


def read_currency(text: str, locales: Sequence[str]) -> Reading:
    """The ISO 4217 code of a currency's code, symbol or name. Raises ValueError for other texts."""
    plain = " ".join(without_marks(text).split())
    if plain in _codes():
        return Reading(plain)
    found = [code for name in locales if (code := _spellings(name).get(plain.casefold()))]
    if not found:
        others = (_spellings(name).get(plain.casefold()) for name in _OTHER_LOCALES)
        found = [code for code in (_SWISS.get(plain), *others) if code]
    if not found:
        raise ValueError(f"{text!r} is no currency")
    first, *rest = dict.fromkeys(found) if locales else found[:1]
    return Reading(first, tuple(rest))


def currency_spellings(code: str, locales: Sequence[str]) -> list[str]:
    """How texts may write a currency, casefolded but for the code, which is the first."""
    names = [*locales, *_OTHER_LOCALES]
    found = [text for name in names for text, other in _spellings(name).items() if other == code]
    found += [text.casefold() for text, other in _SWISS.items() if other == code]
    return list(dict.fromkeys([code, *found]))


@lru_cache(maxsize=1)
def _codes() -> frozenset[str]:
    return frozenset(locale_of("en").currencies)


@lru_cache(maxsize=64)
def _spellings(name: str) -> dict[str, str]:
    """The symbols and names of currencies in a locale, casefolded; of equal ones, that of the locale's territory."""
    from babel.numbers import get_currency_name, get_territory_currencies

    locale = locale_of(name)
    own = get_territory_currencies(locale.territory) if locale.territory else []
    found: dict[str, str] = {}
    for code in (*own, *locale.currencies):
        plurals = (get_currency_name(code, count, locale) for count in (1, 2, 5))
        for text in (locale.currency_symbols.get(code), locale.currencies.get(code), *plurals):
            if text:
                found.setdefault(text.casefold(), code)
    return found
