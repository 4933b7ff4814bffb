"""Values are found in the messages however these spell them, as whole words, with the right offsets."""

from __future__ import annotations

import calendar
import json
import random
import time
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured import Evidence, Trust
from llama_index_finetune_structured.trust.answer_trust import trust_in_tokens
from llama_index_finetune_structured.trust.evidence import with_evidence
from llama_index_finetune_structured.trust.spellings import number_spots


def _found(value: Any, *contents: str | None, copied: bool = False) -> list[Evidence | None]:
    """The evidence of each value of an answer."""
    trust = trust_in_tokens(json.dumps(value))
    assert trust is not None
    paths = {field.path for field in trust.fields} if copied else set()
    return [field.evidence for field in with_evidence(trust, contents, paths).fields]


def _texts(value: Any, *contents: str | None, copied: bool = False) -> list[str | None]:
    return [None if spot is None else spot.text for spot in _found(value, *contents, copied=copied)]


@pytest.mark.parametrize(
    ("value", "content", "text"),
    [
        ("Rain", "train Rain rain", "Rain"),
        ("Rain", "the rain", "rain"),
        ("New York", "in new\n  york, they", "new\n  york"),
        ('the "best" of 1990-95', "“the ‘x’ “THE “Best” of 1990–95", "THE “Best” of 1990–95"),
        ("it's", "IT’S here", "IT’S"),
        ("İzmir", "to izmir", "izmir"),
        ("日本", "彼は日本人です", "日本"),
        ("café", "un cafés", None),
        ("cafe", "un cafe\u0301", None),
        ("rain", "trains brain rainy", None),
        (7, "B7 and 27.5 or 7", "7"),
        (5, "27.5", None),
        (1834.4, "EUR 1,834.40 net", "1,834.40"),
        (1834.4, "EUR 1.834,40 netto", "1.834,40"),
        (1834.4, "EUR 1 834,40 net", "1 834,40"),
        (1834.4, "CHF 1’834.40", "1’834.40"),
        (1234567, "1,234,567 and 12,34,567", "1,234,567"),
        (1234567, "12,34,567 rupees", "12,34,567"),
        (1.5, "a factor of 1,5.", "1,5"),
        (0.05, "p < .05", ".05"),
        (-3.5, "it was \u22123.5 °C", "\u22123.5"),
        (5, "minus: -5", None),
        (5, "2000-5", "5"),
        (2024, "on 3.4.2024", "2024"),
        (300, "page 12 300 people", "300"),
        (12300, "all 12 300 people", "12 300"),
        ("1834.40", "total 1.834,40", "1.834,40"),
        ("0042", "number 42", None),
        ("2024-03-03", "on March 3, 2024.", "March 3, 2024"),
        ("2024-03-03", "on the 3rd of March 2024", "3rd of March 2024"),
        ("2024-03-03", "am 3.3.2024", "3.3.2024"),
        ("2024-09-13", "9/13/24 or later", "9/13/24"),
        ("2024-09-13", "13 Sept. 2024", "13 Sept. 2024"),
        ("2024-09-13T10:00:00Z", "13-Sep-2024", "13-Sep-2024"),
        ("2024-09-03", "13.9.2024", None),
        ("2024-13-40", "2024/13/40", None),
        (True, "true", None),
        (None, "null", None),
        ("", "anything", None),
        (" ", "a b", None),
    ],
)
def test_a_value_is_found_in_other_spellings(value: Any, content: str, text: str | None) -> None:
    assert _texts([value], content) == [text]


def test_instructions_are_not_searched_and_empty_lists_neither() -> None:
    assert _found({"a": "Rain", "b": [], "c": {}}, None, "[] {} nothing") == [None, None, None]
    [spot, *_] = _found({"a": "Rain"}, None, "Snow", "Rain")
    assert spot is not None
    assert (spot.message, spot.start, spot.end, spot.node_id) == (2, 0, 4, None)


def test_items_follow_the_text_each_field_on_its_own() -> None:
    content = "Leeds, Lee (2019) and Lee (2019); again Lee"
    found = _found([{"name": "Lee", "year": 2019}] * 2 + [{"name": "Lee", "year": 2019}], content)
    assert [spot and spot.start for spot in found] == [7, 12, 22, 27, 40, 12]
    assert [spot and spot.start for spot in _found(["Lee", "Lee", "none"], "Lee", "Lee")] == [0, 0, None]
    assert [spot and spot.message for spot in _found(["Lee", "Lee", "none"], "Lee", "Lee")] == [0, 1, None]


def test_parts_of_words_count_for_copied_values_alone_and_only_where_nothing_else_does() -> None:
    assert _texts(["ain", 98], "Rain 1998") == [None, None]
    assert _texts(["ain", 98], "Rain 1998", copied=True) == ["ain", "98"]
    assert [spot and spot.start for spot in _found(["ain"], "Rain ain", copied=True)] == [5]


_ANY = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=200)


@given(_ANY, st.data())
def test_offsets_are_those_of_the_text_whatever_is_in_it(content: str, data: st.DataObject) -> None:
    """A copied part of any text is found, and everything that is found stands where it is said to."""
    begin = data.draw(st.integers(0, len(content) - 1))
    value = content[begin : data.draw(st.integers(begin + 1, len(content)))]
    [spot] = _found([value], None, content, copied=True)
    if value.strip():
        assert spot is not None
        assert content[spot.start : spot.end] == spot.text
    [spot] = _found([f" {value.swapcase()} "], content)
    if spot is not None:
        assert content[spot.start : spot.end] == spot.text


_WORDS = st.lists(st.sampled_from(["rain", "Öre", "日本", "“x”", "it’s", "ΟΔΟΣ", "3,5"]), min_size=1)
_GAPS = st.sampled_from([" ", "\n", " \t ", "\u00a0", "\u2003\n"])


@given(_WORDS, _WORDS, _WORDS, st.data())
def test_words_are_found_with_other_white_space_and_case(
    before: list[str], words: list[str], after: list[str], data: st.DataObject
) -> None:
    value = " ".join(words).replace("“", '"').replace("”", '"').replace("’", "'").lower()
    content = "".join(word + data.draw(_GAPS) for word in [*before, *words, *after])
    [spot] = _found([value], content)
    assert spot is not None
    assert content[spot.start : spot.end] == spot.text
    assert len(spot.text.split()) == len(words)


_PLAIN = st.decimals(min_value=0, max_value=10**9, places=2, allow_nan=False)


@given(_PLAIN, st.sampled_from([",.", ".,", " ,", "’.", "_."]))
def test_every_number_is_found_in_every_spelling(number: Decimal, separators: str) -> None:
    thousands, point = separators.replace("_", "")[:-1], separators[-1]
    spelled = f"{number:,.2f}".replace(",", "T").replace(".", point).replace("T", thousands)
    content = f"a {spelled} b"
    [spot] = _found([float(number)], content)
    assert spot is not None
    assert spot.text == spelled
    assert (spot.start, spot.end) == (2, 2 + len(spelled))


@given(
    st.integers(1, 999),
    st.lists(_PLAIN, min_size=1, max_size=3),
    st.sampled_from([",.", ".,", " ,", "’.", "_."]),
)
@example(54, [Decimal("761.07"), Decimal("41097.78")], " ,")
def test_each_of_several_numbers_in_a_line_is_found(
    count: int, numbers: list[Decimal], separators: str
) -> None:
    """Columns of a table are a space apart once a document is text, and so are the groups of a number."""
    thousands, point = separators.replace("_", "")[:-1], separators[-1]
    spelled = [
        f"{number:,.2f}".replace(",", "T").replace(".", point).replace("T", thousands) for number in numbers
    ]
    values = [count, *map(float, numbers)]
    for value, spot in zip(values, _found(values, " ".join([str(count), *spelled])), strict=True):
        assert spot is not None, (value, spelled)
        assert Decimal(str(value)) in number_spots(spot.text)


def test_the_sign_of_a_number_is_that_of_its_groups() -> None:
    assert _texts([-1850.71, -1, 850.71], "a -1 850,71") == ["-1 850,71", "-1", "850,71"]
    assert _texts([1850.71], "a -1 850,71") == [None]


@given(st.dates(min_value=date(1000, 1, 1)), st.integers(1, 400))
def test_a_date_is_found_in_its_spellings_and_no_other_date(day: date, days: int) -> None:
    month = calendar.month_name[day.month]
    for spelled in (
        f"{month} {day.day}, {day.year}",
        f"{day.day} {month[:3]} {day.year}",
        f"{day.day:02}/{day.month:02}/{day.year}",
        f"{day.year}.{day.month}.{day.day}",
    ):
        [spot] = _found([day.isoformat()], f"on {spelled}!")
        assert spot is not None
        assert spot.text == spelled
        assert (spot.start, spot.end) == (3, 3 + len(spelled))
    other = day + timedelta(days=days) if day.year < 9000 else day - timedelta(days=days)
    assert _texts([other.isoformat()], f"on {month} {day.day}, {day.year}!") == [None]


@given(st.text("0123456789.,'’ -\u2212\u00a0a", max_size=40))
def test_the_numbers_of_any_text_stand_where_they_are_said_to(text: str) -> None:
    for spots in number_spots(text).values():
        assert spots == sorted(spots)
        for start, end in spots:
            assert any(character.isdecimal() for character in text[start:end])
            assert not text[end : end + 1].isdecimal()


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_searching_a_long_prompt_for_an_answer_is_no_slow_part_of_a_call(seed: int) -> None:
    """Measured on a quiet machine: 0.2 ms for ten values in 4,000 characters."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(700)]
    answer = {f"v{n}": draw.choice([draw.choice(words), n * 1.5, f"none{n}", None]) for n in range(10)}
    trust = trust_in_tokens(json.dumps(answer))
    assert isinstance(trust, Trust)
    content, times = " ".join(words), list[float]()
    for _ in range(5):
        begin = time.process_time()
        with_evidence(trust, [None, content])
        times.append(time.process_time() - begin)
    assert min(times) < 0.02
