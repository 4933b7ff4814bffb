"""Rows that teach a new field: a text with or without the lines of its value, an answer with or without the field."""

from __future__ import annotations

import json
from datetime import date
from itertools import pairwise
from typing import Annotated, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, model_validator

from llama_index_finetune_structured import AsWritten, FinetuneDataset
from llama_index_finetune_structured.dataset.checks.counterfactuals import (
    MOST_EXAMPLES,
    counterfactual_rows,
    rows_with,
    rows_without,
)
from llama_index_finetune_structured.example import Example


class Bill(BaseModel):
    number: str
    total: str
    due: str | None = None
    status: str = ""
    express: bool = False
    parcels: float = 0
    items: list[str] = []


class Strict(BaseModel):
    number: str
    due: str | None


def _row(text: str, answer: BaseModel | dict[str, Any], output_cls: type[BaseModel] = Bill) -> Example:
    said = answer if isinstance(answer, dict) else answer.model_dump(exclude_unset=True)
    schema = {"title": output_cls.__name__, **output_cls.model_json_schema()}
    [row] = FinetuneDataset.from_pairs([(text, said)], schema=schema)
    return row


def _made(text: str, answer: BaseModel | dict[str, Any], output_cls: type[BaseModel] = Bill) -> list[Any]:
    found = rows_without([_row(text, answer, output_cls)], ["due"])
    return [(row.messages[-1].content, json.loads(row.answer_text())) for row in found]


def test_the_line_of_the_value_goes_and_so_does_the_field() -> None:
    made = _made("Bill A-1\nPay by 3 May\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May"))
    assert made == [("Bill A-1\nTotal 7.50", {"number": "A-1", "total": "7.50"})]


def test_no_gap_tells_that_something_was_left_out() -> None:
    made = _made("Bill A-1\n\nPay by 3 May\n\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May"))
    assert made[0][0] == "Bill A-1\n\nTotal 7.50"
    made = _made("Bill A-1\n\nTotal 7.50\n\nPay by 3 May", Bill(number="A-1", total="7.50", due="3 May"))
    assert made[0][0] == "Bill A-1\n\nTotal 7.50"


def test_a_field_that_the_schema_wants_becomes_null() -> None:
    made = _made("Bill A-1\nPay by 3 May", Strict(number="A-1", due="3 May"), Strict)
    assert made == [("Bill A-1", {"number": "A-1", "due": None})]


def test_no_row_is_made_where_more_than_the_field_would_go() -> None:
    shared = "Bill A-1, pay 7.50 by 3 May"
    assert not _made(shared, Bill(number="A-1", total="7.50", due="3 May"))
    assert not _made("Pay by 3 May", {"due": "3 May", "number": "none", "total": "none"})
    assert not _made("Bill A-1\nPay soon\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May"))
    assert not _made("Bill A-1\nTotal 7.50", Bill(number="A-1", total="7.50"))
    assert not _made("Bill A-1\nTotal 7.50\n3 May", Bill(number="A-1", total="3 May", due="3 May"))


def test_a_value_inside_of_a_longer_word_or_number_is_another_one() -> None:
    made = _made(
        "Bill A-1\nPay by 3 May\nWritten 13 May\nTotal 7.50", Bill(number="A-1", total="7.50", due="3 May")
    )
    assert made == [("Bill A-1\nWritten 13 May\nTotal 7.50", {"number": "A-1", "total": "7.50"})]


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("A-1: pay by 3 May\nBill A-1\nTotal 7.50", {}),
        ("Bill A-1\nPay by 3 May (12 days)\nTotal 7.50", {}),
        ("Bill A-1\n3 May\nTotal 7.50", {}),
        ("Bill A-1\nIs it due 3 May?\nTotal 7.50", {}),
        ("Bill A-1\nPay by 3 May\nReally, 3 May\nTotal 7.50", {}),
        ("Bill A-1\nPay by 3 May\nReally, 3\nMAY\nTotal 7.50", {}),
        ("Bill A-1\nPaid by 3 May\nTotal 7.50", {"status": "PAID"}),
        ("Bill A-1\nExpress delivery 3 May\nTotal 7.50", {"express": True}),
        ("Bill A-1\nPay 8 by 3 May\nTotal 7.50", {"parcels": 8.0}),
    ],
)
def test_a_line_that_may_tell_more_than_the_field_stays(text: str, more: dict[str, Any]) -> None:
    answer = {"number": "A-1", "total": "7.50", "due": "3 May", **more}
    assert not _made(text, answer)
    other = {"number": "B-2", "total": "9.00"}
    assert not rows_with([_row(text, answer)], ["due"], [_row("Bill B-2\nTotal 9.00", other)])


def test_a_number_or_day_that_is_told_in_another_form_is_told() -> None:
    class Parcels(BaseModel):
        number: str
        count: int | None = None
        due: Annotated[date, AsWritten("de")] | None = None

    def made(text: str, **answer: Any) -> int:
        rows = FinetuneDataset.from_pairs([(text, {"number": "A-1", **answer})], output_cls=Parcels)
        return len(rows_without(list(rows), list(answer)))

    assert made("Bill A-1\nParcels: 1200\nThanks", count=1200) == 1
    assert made("Bill A-1\nParcels: 1200\nAll 1,200.00 are here", count=1200) == 0
    assert made("Bill A-1\nZahlbar bis 03.06.2024\nDanke", due="03.06.2024") == 1
    assert made("Bill A-1\nZahlbar bis 03.06.2024\nDanke", due="2024-06-03") == 1
    assert made("Bill A-1\nZahlbar bis 03.06.2024\nWie gesagt am 3. Juni 2024", due="03.06.2024") == 0


def test_a_plain_day_or_a_word_without_spaces_that_is_told_again_is_told() -> None:
    def made(text: str, **answer: str) -> int:
        return len(rows_without([_row(text, {"number": "A-1", "total": "7", **answer})], ["due", "status"]))

    assert made("A-1\nDue: 02.06.2024\nsum 7", due="02.06.2024") == 1
    assert made("A-1\nDue: 02.06.2024\nPay until 2 June 2024\nsum 7", due="02.06.2024") == 0
    assert made("A-1\n担当：田中\nsum 7", due="田中") == 1
    assert made("A-1\n担当：田中\n田中様\nsum 7", due="田中") == 0


def test_no_heading_is_left_without_its_line_or_gets_one() -> None:
    own = {"number": "A-1", "total": "7", "due": "noon"}
    for before in ("Payment:", "## Payment", "When?"):
        assert not rows_without([_row(f"A-1\nsum 7\n{before}\nuntil noon", own)], ["due"]), before
    row = _row("A-1\nuntil noon\nsum 7", own)
    assert rows_with([row], ["due"], [_row("B-2\nfor\nsum 8", {"number": "B-2", "total": "8"})])
    assert not rows_with([row], ["due"], [_row("B-2\nfor:\nsum 8", {"number": "B-2", "total": "8"})])


def test_an_empty_value_is_left_out_as_in_other_rows() -> None:
    empty = [_row(f"No{n}\nsum {n}", {"number": f"No{n}", "total": f"{n}", "items": []}) for n in range(3)]
    [made] = rows_without(
        [*empty, _row("No7\nsum 8\nfor tea", {"number": "No7", "total": "8", "items": ["tea"]})], ["items"]
    )
    assert json.loads(made.answer_text()) == {"number": "No7", "total": "8", "items": []}


def test_the_lines_of_a_prompt_stay_as_they_are() -> None:
    def row(n: int, due: str | None) -> Example:
        said = f"No{n}\nsum {n}.50" + (f"\nuntil {due}" if due else "")
        answer = {"number": f"No{n}", "total": f"{n}.50", **({"due": due} if due else {})}
        return _row(f"A bill, due soon or May 5:\n---\n{said}\n---\nFill the form.", answer)

    rows = [row(n, f"May {n}" if n % 2 else None) for n in range(20, 40)]
    made = counterfactual_rows(rows)
    assert len(made) == 20
    for each in made:
        lines = str(each.messages[-1].content).split("\n")
        assert lines[:2] == ["A bill, due soon or May 5:", "---"]
        assert lines[-2:] == ["---", "Fill the form."]
    told = rows_without([*rows, row(41, "soon")], ["due"])
    assert [json.loads(each.answer_text())["number"] for each in told] == [f"No{n}" for n in range(21, 40, 2)]


def test_what_is_left_out_is_left_out_as_in_other_rows() -> None:
    nulls = [_row(f"No{n}\nsum {n}", {"number": f"No{n}", "total": f"{n}", "due": None}) for n in range(3)]
    due = _row("No7\nsum 8\nuntil noon", {"number": "No7", "total": "8", "due": "noon"})
    [made] = rows_without([*nulls, due], ["due"])
    assert json.loads(made.answer_text()) == {"number": "No7", "total": "8", "due": None}
    [made] = rows_without([due], ["due"])
    assert json.loads(made.answer_text()) == {"number": "No7", "total": "8"}


def test_a_filled_object_without_words_is_not_overwritten() -> None:
    class Ship(BaseModel):
        number: str
        delivery: dict[str, Any] | None = None

    own = _row("A-1\nby noon\nsum", {"number": "A-1", "delivery": {"at": "noon"}}, Ship)
    other = _row("B-2\nExpress please", {"number": "B-2", "delivery": {"express": True}}, Ship)
    assert rows_with([own], ["delivery"], [other]) == []


_WORDS = st.text("abcdefgh", min_size=3, max_size=6)


@given(st.lists(_WORDS, min_size=3, max_size=8, unique=True), st.data())
def test_what_is_made_has_no_value_of_the_field_and_every_other_line(
    words: list[str], data: st.DataObject
) -> None:
    due, number, total, *others = words
    assume(not any(due in word for word in words[1:]))
    lines = data.draw(st.permutations([f"due {due}", f"no {number}", f"sum {total}", *others]))
    for text, answer in _made("\n".join(lines), Bill(number=number, total=total, due=due)):
        assert answer == {"number": number, "total": total}
        assert text.split("\n") == [line for line in lines if line != f"due {due}"]


def _filled(text: str, own: Bill, other: str, answer: Bill, output_cls: type[BaseModel] = Bill) -> list[Any]:
    made = rows_with([_row(text, own, output_cls)], ["due"], [_row(other, answer, output_cls)])
    return [(row.messages[-1].content, json.loads(row.answer_text())) for row in made]


OWN, OTHER = Bill(number="A-1", total="7.50", due="3 May"), Bill(number="B-2", total="9.00")


@pytest.mark.parametrize(
    ("text", "other", "made"),
    [
        ("Bill A-1\nPay by 3 May\nTotal 7.50", "Bill B-2\nTotal 9.00", "Bill B-2\nPay by 3 May\nTotal 9.00"),
        ("Pay by 3 May\nBill A-1\nTotal 7.50", "B-2\n9.00", "Pay by 3 May\nB-2\n9.00"),
        ("Bill A-1\nTotal 7.50\nPay by 3 May", "B-2\nx\ny\nz\n9.00", "B-2\nx\ny\nz\n9.00\nPay by 3 May"),
        ("A-1\na\nb\nc\nPay by 3 May\n7.50", "B-2\n9.00", "B-2\nPay by 3 May\n9.00"),
        ("A-1\nPay by 3 May\n7.50", "B-2\n\nx\n\n9.00", "B-2\n\nx\n\nPay by 3 May\n\n9.00"),
        ("A-1\n7.50\nPay by 3 May", "B-2\n\n9.00", "B-2\n\n9.00\nPay by 3 May"),
    ],
)
def test_another_text_gets_the_lines_where_they_stood_in_their_own(text: str, other: str, made: str) -> None:
    assert _filled(text, OWN, other, OTHER) == [(made, {"number": "B-2", "total": "9.00", "due": "3 May"})]


def test_no_other_text_is_filled_that_has_the_field_or_could_not_be_told_from_it() -> None:
    text, other = "Bill A-1\nPay by 3 May\nTotal 7.50", "Bill B-2\nTotal 9.00"
    assert not _filled(text, OWN, f"{other}\nDue 4 May", OTHER.model_copy(update={"due": "4 May"}))
    assert not _filled("Bill A-1, pay 7.50 by 3 May", OWN, other, OTHER)
    assert not rows_with([_row(text, OWN)], ["due"], [_row(other, {"number": "B-2"}, Open)])
    assert not rows_with([_row(text, OWN)], ["total"], [_row(other, OTHER)])
    assert not rows_with([_row(text, OWN)], ["due"], [])


class Open(BaseModel):
    number: str
    total: str | None = None


class Dated(BaseModel):
    """A bill that is never due before it is written."""

    number: str
    written: int
    due: int | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Dated:
        if self.due is not None and self.due < self.written:
            raise ValueError("due before it is written")
        return self


def test_what_the_class_refuses_is_not_made() -> None:
    def row(text: str, answer: Dated) -> Example:
        [made] = FinetuneDataset.from_pairs([(text, answer)], output_cls=Dated)
        return made

    new = row("Bill A-1\nof 2001\ndue 2003", Dated(number="A-1", written=2001, due=2003))
    before, after = (row(f"Bill B-2\nof {year}", Dated(number="B-2", written=year)) for year in (2002, 2004))
    assert [json.loads(each.answer_text())["due"] for each in rows_with([new], ["due"], [before])] == [2003]
    assert rows_with([new], ["due"], [after]) == []
    never = row("Bill C-3\nof 0", Dated(number="C-3", written=0, due=0))
    assert rows_with([new], ["due"], [never]) == []  # 0 is a value


@given(st.lists(_WORDS, min_size=6, max_size=12, unique=True), st.data())
def test_what_is_filled_has_all_lines_of_both_in_order(words: list[str], data: st.DataObject) -> None:
    due, number, total, second, sum_, *others = words
    assume(not any(due in word for word in words[1:]))
    place = data.draw(st.integers(0, len(others)))
    own = data.draw(st.permutations([f"due {due}", f"no {number}", f"sum {total}", *others[:place]]))
    lines = data.draw(st.permutations([f"no {second}", f"sum {sum_}", *others[place:]]))
    [(text, answer)] = _filled(
        "\n".join(own),
        Bill(number=number, total=total, due=due),
        "\n".join(lines),
        Bill(number=second, total=sum_),
    )
    assert answer == {"number": second, "total": sum_, "due": due}
    assert [line for line in text.split("\n") if line != f"due {due}"] == lines
    assert text.split("\n").count(f"due {due}") == 1


@given(st.lists(_WORDS, min_size=7, max_size=12, unique=True), st.data())
def test_a_second_text_gets_them_between_any_of_its_lines_with_values(
    words: list[str], data: st.DataObject
) -> None:
    due, number, total, second, sum_, head, *others = words
    assume(not any(due in word for word in words[1:]))
    own = _row(f"no {number}\ndue {due}\nsum {total}", Bill(number=number, total=total, due=due))
    lines = data.draw(st.permutations([f"no {second}", f"sum {sum_}", *others]))
    other = _row("\n".join([head, *lines, head]), Bill(number=second, total=sum_))
    made = rows_with([own], ["due"], [other, other, other])
    assert [json.loads(row.answer_text())["due"] for row in made] == [due, due], "two for each example"
    text = str(made[1].messages[-1].content).split("\n")
    at = text.index(f"due {due}")
    assert [*text[:at], *text[at + 1 :]] == [head, *lines, head]
    assert min(map(text.index, (f"no {second}", f"sum {sum_}"))) <= at + 1
    assert at <= max(map(text.index, (f"no {second}", f"sum {sum_}"))) + 1


def test_the_places_differ() -> None:
    own = _row("A-1\nPay by 3 May\n7.50", OWN)
    others = [_row(f"B-{n}\na\nb\nc\n9.00", Bill(number=f"B-{n}", total="9.00")) for n in range(40)]
    made = rows_with([own] * 20, ["due"], others)
    places = {str(row.messages[-1].content).split("\n").index("Pay by 3 May") for row in made[20:]}
    assert places == set(range(6))


def _bill(n: int) -> Example:
    """Every other one is due, every third has rules between its lines, every fourth a note."""
    bill: dict[str, Any] = {"number": f"No{n}", "total": f"{n}.50"}
    lines = [f"Bill No{n}", f"sum {n}.50", "Thank you"]
    if n % 2:
        bill["due"] = f"{n % 28 + 1} May"
        lines.insert(1 + n % 3, f"until {bill['due']}")
    return _row(("\n---\n" if n % 3 == 0 else "\n").join(lines), bill)


def _answers(examples: list[Example]) -> list[dict[str, Any]]:
    return [json.loads(example.answer_text()) for example in examples]


def test_each_row_gets_one_that_differs_in_one_field() -> None:
    bills = [_bill(n) for n in range(40)]
    made = counterfactual_rows(bills)
    assert len(made) == 40
    for bill, row, own, answer in zip(bills, made, _answers(bills), _answers(made), strict=True):
        assert ("due" in own) != ("due" in answer)
        assert {**own, "due": None} == {**answer, "due": None}
        lines, others = (str(each.messages[-1].content).split("\n") for each in (bill, row))
        longer, shorter = (lines, others) if "due" in own else (others, lines)
        assert {*longer} - {*shorter} == {f"until {own.get('due') or answer['due']}"}
        if "due" in own:
            assert ("---", "---") not in pairwise(others)
    places = [str(row.messages[-1].content).split("\n").index(f"until {answer['due']}")
              for row, answer in zip(made, _answers(made), strict=True) if "due" in answer]  # fmt: skip
    assert len(set(places)) > 2


@given(st.permutations(range(24)))
def test_the_order_of_rows_decides_nothing_but_that_of_the_made_ones(places: list[int]) -> None:
    bills = [_bill(n) for n in range(24)]
    made = counterfactual_rows([bills[n] for n in places])
    assert [made[places.index(n)] for n in range(24)] == counterfactual_rows(bills)


def _contact(n: int, *, phone: bool, label: str = "Phone:", between: str = " ") -> tuple[str, dict[str, Any]]:
    """A text with a name, a city and perhaps a phone number."""
    answer: dict[str, Any] = {"name": f"Person {n}", "city": f"Town {n}"}
    lines = ["Contact", f"Name: Person {n}", f"City: Town {n}", "Bye"]
    if phone:
        answer["phone"] = f"0151 20{n}"
        lines.insert(3, f"{label}{between}0151 20{n}")
    return "\n".join(lines), answer


_CONTACT = {
    "title": "Contact",
    "type": "object",
    "properties": {
        name: {} for name in ("name", "city", "phone", "doctor", "has_phone", "summary", "missing")
    },
}


def _made_of(rows: list[tuple[str, dict[str, Any]]]) -> int:
    return len(counterfactual_rows(list(FinetuneDataset.from_pairs(rows, schema=_CONTACT))))


def test_rows_are_made_of_plain_lines_alone() -> None:
    plain = [_contact(n, phone=n % 2 > 0) for n in range(100, 130)]
    assert _made_of(plain) == 30
    derived = [(text, {**answer, "has_phone": "phone" in answer}) for text, answer in plain]
    assert _made_of(derived) == 0, "what is concluded from the field would be wrong"
    listed = [(text, {**answer, "missing": [] if "phone" in answer else ["phone"]}) for text, answer in plain]
    assert _made_of(listed) == 0
    said = [
        (
            text.replace("Bye", f"Call {a.get('phone', 'me')}!"),
            {**a, "summary": f"Call {a.get('phone', 'me')}!"},
        )
        for text, a in plain
    ]
    assert _made_of(said) == 0, "another field has the value too"
    for label, between in (
        ("Phone:", "\n"),
        ("<td>Phone</td><td>", ""),
        ("  Phone:", " "),
        ("| Phone |", " "),
    ):
        odd = [_contact(n, phone=n % 2 > 0, label=label, between=between) for n in range(100, 130)]
        assert _made_of(odd) == 0, label
    asked = [(text.replace("\nPhone", "\nYour number?\nPhone"), answer) for text, answer in plain]
    assert _made_of(asked) == 0, "a question would be left without its answer"
    shared = [
        (f"{text}\nDoctor: D{n}\nPhone: 030 7{n}", {**a, "doctor": f"030 7{n}"})
        for n, (text, a) in enumerate(plain)
    ]
    assert _made_of(shared) == 0, "one label for two fields"
    printed = [(text if "phone" in a else text.replace("Bye", "Phone: -\nBye"), a) for text, a in plain]
    assert _made_of(printed) == 0, "the label is always there"


def test_no_rows_are_made_of_what_tells_too_little() -> None:
    assert counterfactual_rows([]) == []
    assert counterfactual_rows([_bill(n) for n in range(1, 40, 2)]) == [], "all are due"
    few = [_bill(n) for n in [*range(1, 40, 2), 2, 4]]
    assert counterfactual_rows(few) == [], "two rows without it may be slips"
    one_line = [
        _row(str(bill.messages[-1].content).replace("\n", " "), answer)
        for bill, answer in zip(map(_bill, range(40)), _answers(list(map(_bill, range(40)))), strict=True)
    ]
    assert counterfactual_rows(one_line) == []
    assert counterfactual_rows([_bill(n) for n in range(MOST_EXAMPLES + 1)]) == []


class Early(BaseModel):
    """A bill whose day it is due is no later than its number."""

    number: int
    due: int | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Early:
        if self.due is not None and self.due > self.number:
            raise ValueError("due too late")
        return self


def test_no_row_is_made_that_a_class_refuses() -> None:
    answers = [Early(number=n, due=n - 1 if n % 2 else None) for n in range(100, 140)]
    pairs = [(f"Bill {a.number}\n{f'until {a.due}' if a.due else 'paid'}\nsum 7", a) for a in answers]
    made = counterfactual_rows(list(FinetuneDataset.from_pairs(pairs, output_cls=Early)))
    assert 20 < len(made) < 40, "some days of others are too late"
    assert all(Early(**answer) for answer in _answers(made))
