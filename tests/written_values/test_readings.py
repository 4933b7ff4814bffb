"""Numbers, dates and currencies are read as they are written: rightly, or not surely, never off by a power of ten."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from babel.dates import format_date
from babel.numbers import format_currency, format_decimal
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured import ConfigurationError
from llama_index_finetune_structured.written_values.dates import read_date
from llama_index_finetune_structured.written_values.kinds import WrittenKind, stands_in
from llama_index_finetune_structured.written_values.numbers import (
    number_text,
    read_currency,
    read_number,
)
from llama_index_finetune_structured.written_values.readings import DocumentTexts, Reading, locale_of

LOCALES = [
    "de",
    "de_CH",
    "en_US",
    "en_GB",
    "en_IN",
    "fr",
    "es",
    "pt_BR",
    "pl",
    "sv",
    "it",
    "nl",
    "ja",
    "ar_EG",
]
CURRENCIES = ["EUR", "USD", "CHF", "PLN", "JPY"]
NO_TEXTS = DocumentTexts()
AMOUNTS = st.decimals(-9_999_999, 9_999_999, places=2)
DAYS = st.dates(date(1970, 1, 1), date(2060, 12, 31))


def _spellings(amount: Decimal, locale: str) -> list[str]:
    """How texts of a locale usually write an amount."""
    found = [
        format_decimal(amount, "#,##0.00", locale),
        format_decimal(amount, "0.00", locale),
        f"{amount:.2f}",
    ]
    found += [
        format_currency(amount, currency, locale=locale, currency_digits=False) for currency in CURRENCIES
    ]
    found.append(format_decimal(amount, "#,##0.00", locale).replace("\u202f", " ").replace("\xa0", " "))
    if amount % 1 == 0:
        found.append(format_decimal(amount, "#,##0", locale))
    return found


@given(AMOUNTS, st.sampled_from(LOCALES))
@settings(max_examples=50)
def test_an_amount_in_a_usual_spelling_of_its_locale_is_read_as_it_was_meant(
    amount: Decimal, locale: str
) -> None:
    for text in _spellings(amount, locale):
        assert read_number(text, [locale], NO_TEXTS) == Reading(amount), text


@given(
    st.decimals(-9_999_999, 9_999_999, places=3),
    st.sampled_from(LOCALES),
    st.lists(st.sampled_from(LOCALES), max_size=3),
    st.sampled_from(["#,##0.00", "#,##0", "#,##0.###", "0.00", "0.###"]),
)
@settings(max_examples=50)
def test_an_amount_is_right_or_unsure_whatever_locales_are_named_and_never_another_one_for_sure(
    amount: Decimal, written_in: str, others: list[str], pattern: str
) -> None:
    text = format_decimal(amount, pattern, written_in)
    meant = read_number(text, [written_in], NO_TEXTS)
    for locales in ([*others, written_in], []):
        value, unsure = read_number(text, locales, NO_TEXTS)
        assert meant.value in (value, *unsure)


@given(AMOUNTS)
@settings(max_examples=30)
def test_the_canonical_text_of_a_number_is_read_the_same_in_all_locales(amount: Decimal) -> None:
    for value in (amount, amount / 10, amount / 100_000, amount.to_integral_value()):
        for locale in LOCALES:
            assert read_number(number_text(value), [locale], NO_TEXTS) == Reading(value)


@given(DAYS, st.sampled_from(LOCALES[:-1]), st.sampled_from(["short", "medium", "long"]))
@settings(max_examples=40)
def test_a_date_in_a_usual_spelling_of_its_locale_is_read_as_it_was_meant(
    day: date, locale: str, form: str
) -> None:
    text = format_date(day, form, locale)
    assert read_date(text, [locale], NO_TEXTS) == Reading(day), text


@given(DAYS, st.sampled_from(LOCALES[:-1]), st.lists(st.sampled_from(LOCALES[:-1]), max_size=3))
@settings(max_examples=40)
def test_a_numeric_date_is_right_or_unsure_whatever_other_locales_are_named(
    day: date, locale: str, others: list[str]
) -> None:
    value, unsure = read_date(format_date(day, "dd/MM/y", locale), [*others, "en_GB"], NO_TEXTS)
    assert day in (value, *unsure)


@given(AMOUNTS, DAYS, st.sampled_from(LOCALES[:-1]))
@settings(max_examples=25)
def test_the_spelling_found_in_a_text_is_read_back_as_the_value(
    amount: Decimal, day: date, locale: str
) -> None:
    written = format_decimal(amount, "#,##0.00", locale)
    document = DocumentTexts([f"No. 4711 of {format_date(day, 'medium', locale)}: {written}; 12 x 3"])
    for kind, value in ((WrittenKind("decimal", (locale,)), amount), (WrittenKind("date", (locale,)), day)):
        spelled = kind.spelling(kind.text(value), document)
        assert spelled in document.texts[0]
        assert kind.read(spelled, document) == Reading(value)


_OF_ONE_YEAR = st.dates(date(2024, 1, 1), date(2024, 12, 31))
_FORMS = st.sampled_from(["short", "medium", "long"])


@given(
    st.lists(st.tuples(_OF_ONE_YEAR, _FORMS), min_size=2, max_size=3),
    st.sampled_from(LOCALES[:-1]),
    st.sampled_from([" ", ", ", "; ", " - ", "; pay by ", " bis "]),
)
@example([(date(2024, 6, 13), "medium"), (date(2024, 8, 12), "medium")], "en_US", "; pay by ")
@settings(max_examples=150)
def test_each_of_several_dates_in_a_line_is_found(
    dates: list[tuple[date, str]], locale: str, between: str
) -> None:
    document = DocumentTexts([between.join(format_date(day, form, locale) for day, form in dates)])
    kind = WrittenKind("date", (locale,))
    for day, _ in dates:
        spelled = kind.spelling(day.isoformat(), document)
        assert kind.read(spelled, document) == Reading(day), document.texts
        assert spelled in document.texts[0], (spelled, document.texts)


_COUNTS = st.integers(1, 999)


@given(
    _COUNTS, st.lists(AMOUNTS.map(abs).filter(bool), min_size=1, max_size=3), st.sampled_from(LOCALES[:-1])
)
@example(54, [Decimal("761.07"), Decimal("41097.78")], "fr")
@example(2, [Decimal("345.00")], "de")
@example(1, [Decimal("100000.00")], "de")
@example(7, [Decimal("1234567890123456.00")], "fr")
@settings(max_examples=150)
def test_each_of_several_numbers_in_a_line_is_found(count: int, amounts: list[Decimal], locale: str) -> None:
    """Columns of a table are a space apart once a document is text, and so are the groups of a number."""
    forms = [format_decimal(amount, "#,##0.00", locale) for amount in amounts]
    document = DocumentTexts([" ".join([str(count), *forms]).replace("\u202f", " ").replace("\xa0", " ")])
    kind = WrittenKind("decimal", (locale,))
    for amount in (Decimal(count), *amounts):
        spelled = kind.spelling(kind.text(amount), document)
        assert kind.read(spelled, document) == Reading(amount), document.texts
        assert stands_in(spelled, document.texts), (spelled, document.texts)


@pytest.mark.parametrize(
    ("text", "locales", "value"),
    [
        ("1.834,40", ["de"], "1834.40"),
        ("1.834", ["de"], "1834"),
        ("1.834", ["en"], "1.834"),
        ("1'834.40", ["de_CH"], "1834.40"),
        ("(12,50)", ["de"], "-12.50"),
        ("12,50-", ["de"], "-12.50"),
        ("1.834,-", ["de"], "1834"),
        ("12,34,567.80", ["en_IN"], "1234567.80"),
        ("١٬٢٣٤٫٥", ["ar_EG"], "1234.5"),
        ("१२३४.५", ["hi"], "1234.5"),
        ("19 %", ["de"], "19"),
        ("1.834,40 Euro", ["de"], "1834.40"),
        ("0,834", ["en"], "0.834"),
    ],
)
def test_signs_digits_and_symbols_of_many_scripts_are_read(text: str, locales: list[str], value: str) -> None:
    assert read_number(text, locales, NO_TEXTS) == Reading(Decimal(value))


@pytest.mark.parametrize(
    "text", ["1,5 Mio", "12 Stück", "12 34", "1e5", "12²", "", "x", "3.4.2026", "1.83.4"]
)
def test_what_is_more_or_less_than_one_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        read_number(text, ["de"], NO_TEXTS)


@pytest.mark.parametrize("text", ["tomorrow", "March 2026", "31/02/2026", "2026-13-45", "12:30 3", "", "3"])
def test_what_is_no_whole_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no date"):
        read_date(text, ["en_GB"], NO_TEXTS)


def test_the_other_numbers_of_a_document_decide_where_locales_do_not() -> None:
    german, english = DocumentTexts(["7,50 and 1.834,40"]), DocumentTexts(["7.50 and 1,834.40"])
    assert read_number("1.834", [], german) == Reading(Decimal(1834))
    assert read_number("1.834", ["de", "en"], english) == Reading(Decimal("1.834"))
    for unclear in (NO_TEXTS, DocumentTexts(["7.50 and 1.834,40"]), DocumentTexts(["at 12.30"])):
        assert read_number("1.834", [], unclear).others
    assert read_number("1.834", ["en"], german) == Reading(Decimal("1.834"), (Decimal(1834),)), (
        "they disagree"
    )


def test_the_other_dates_of_a_document_decide_where_locales_do_not() -> None:
    british = DocumentTexts(["25/03/2026"])
    assert read_date("03/04/2026", [], british) == Reading(date(2026, 4, 3))
    assert read_date("03/04/2026", [], NO_TEXTS).others
    assert read_date("03/04/2026", ["en_US", "en_GB"], NO_TEXTS) == Reading(
        date(2026, 3, 4), (date(2026, 4, 3),)
    )
    assert read_date("03/04/2026", ["en_US"], british).others == (date(2026, 4, 3),)


@given(DAYS, st.lists(AMOUNTS, min_size=2, max_size=4), st.sampled_from(LOCALES[:-1]), st.data())
@settings(max_examples=150)
def test_amounts_tell_which_of_the_named_locales_wrote_a_date(
    day: date, amounts: list[Decimal], locale: str, data: st.DataObject
) -> None:
    named = data.draw(
        st.permutations([locale, *data.draw(st.lists(st.sampled_from(LOCALES[:-1]), max_size=2))])
    )
    written = format_date(day, "short", locale)
    document = DocumentTexts([written, *(format_decimal(amount, "#,##0.00", locale) for amount in amounts)])
    reading = read_date(written, named, document)
    assert day in (reading.value, *reading.others)


def test_the_decimals_of_many_amounts_tell_month_and_day_apart() -> None:
    def read(amounts: str, *locales: str, text: str = "09/07/2025") -> Reading:
        return read_date(text, locales, DocumentTexts([f"{text} {amounts}"]))

    assert read("1 190,76 34,50 1,00 7,25", "en", "fr") == Reading(date(2025, 7, 9))
    assert read("1.190,76", "en", "it") == Reading(date(2025, 7, 9))
    assert read("1,190.76", "en", "fr") == Reading(date(2025, 9, 7))
    assert read("1,190.76", "en", "en_GB").others
    assert read("of sections 2,10 and 3,12", "en", "fr").others
    assert read("", "en", "fr").others


def test_the_decimals_never_outweigh_dates_or_what_is_a_date_at_all() -> None:
    told = DocumentTexts(["09/07/2025 25/07/2025 1,190.76"])
    assert read_date("09/07/2025", ["en", "fr"], told) == Reading(date(2025, 7, 9))
    differing = DocumentTexts(["31/12/2024 12/31/2024 1.234,50"])
    assert read_date("05/06/2024", ["en_US", "fr"], differing).others
    english = DocumentTexts(["1,234.50"])
    assert read_date("13.02.03", ["en_US", "sv"], english) == Reading(date(2013, 2, 3))


@pytest.mark.parametrize(
    ("text", "locales", "code"),
    [("€", ["de"], "EUR"), ("$", ["en_CA"], "CAD"), ("$", ["fr"], "USD"), ("US$", ["en_US"], "USD"),
     ("Fr.", ["de_CH"], "CHF"), ("zł", ["pl"], "PLN"), ("euros", ["fr"], "EUR"), ("EUR", [], "EUR")],
)  # fmt: skip
def test_symbols_and_names_of_currencies_become_codes(text: str, locales: list[str], code: str) -> None:
    assert read_currency(text, locales) == Reading(code)


def test_an_unknown_locale_is_named() -> None:
    with pytest.raises(ConfigurationError, match="locale 'xx_nowhere'"):
        locale_of("xx_nowhere")


def test_the_mark_between_the_numbers_of_a_date_tells_of_which_locale_it_is() -> None:
    both = ("en", "de")
    assert read_date("02.03.2025", both, DocumentTexts([])) == Reading(date(2025, 3, 2))
    assert read_date("02/03/2025", both, DocumentTexts([])) == Reading(date(2025, 2, 3))
    assert read_date("02-03-2025", both, DocumentTexts([])).others, "neither writes it so"
