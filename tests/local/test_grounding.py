"""Values that training copied from its prompts are copied from the prompt in answers, whatever a model prefers."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.example import Example, Message
from llama_index_finetune_structured.local.generate.grammar import AnswerGrammar, GrammarCache
from llama_index_finetune_structured.local.generate.prompt_texts import PromptTexts, VocabularyTree
from llama_index_finetune_structured.local.model.prompts import trained_text
from llama_index_finetune_structured.local.schema.bounds import (
    AnswerBounds,
    bounded_schema,
    learn_bounds,
    schema_key,
)
from llama_index_finetune_structured.local.schema.grounding import (
    GroundedPlace,
    GroundedRule,
    GroundedSchema,
    Grounding,
    grounded_leaves,
    occurrences,
)
from llama_index_finetune_structured.local.schema.prompt_values import number_parts, values_alone
from llama_index_finetune_structured.written_values.kinds import WrittenKind, stands_in
from llama_index_finetune_structured.written_values.numbers import read_number
from llama_index_finetune_structured.written_values.readings import DocumentTexts
from tests import tiny

STOP = 1
WHOLE = GroundedRule(starts=True, ends=True)
NUMBERS = GroundedRule(starts=True, ends=True, numbers=True)
INTEGERS = NUMBERS.model_copy(update={"integers": True})
# Unions, references, a list, a map, an enum and a number.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {
        "person": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "born": {"type": ["integer", "null"]}},
            "required": ["name", "born"],
        }
    },
    "properties": {
        "people": {"type": "array", "items": {"$ref": "#/$defs/person"}},
        "place": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "notes": {"type": "object", "additionalProperties": {"type": "string"}},
        "kind": {"enum": ["short", "long"]},
    },
    "required": ["people", "place", "notes", "kind"],
}
WORDS = [
    "Åse",
    "naïve",
    "日本",
    'a "quoted" word',
    "back\\slash",
    "two\nlines",
    "x\x7fy",
    "O'Neil",
    "1998",
    "-12",
    "é",
    "𝕏",
]


def _example(messages: list[tuple[str, str]], answer: Any, schema: dict[str, Any] = SCHEMA) -> Example:
    return Example(
        messages=tuple(Message(role=role, content=text) for role, text in messages),
        answer=Message(role="assistant", content=json.dumps(answer, ensure_ascii=False)),
        answer_schema=schema,
    )


def _row(draw: random.Random, strange: float) -> Example:
    """A row whose answer is copied from its text, but for a share of strange values."""
    words = [draw.choice(WORDS) for _ in range(12)] + [str(draw.randrange(1900, 2030)) for _ in range(3)]
    draw.shuffle(words)
    text = draw.choice([" ", ", ", "-", ""]).join(words)

    def copied() -> str:
        if draw.random() < strange:
            return draw.choice(["unknown", f"strange {draw.randrange(999)}", ""])
        begin = draw.randrange(len(text))
        return draw.choice([draw.choice(words), text[begin : begin + draw.randrange(1, 9)]])

    answer = {
        "people": [
            {"name": copied(), "born": draw.choice([None, *(int(w) for w in words if w.isdecimal())])}
            for _ in range(draw.randrange(4))
        ],
        "place": draw.choice([copied(), [copied(), copied()]]),
        "notes": {f"key {n}": copied() for n in range(draw.randrange(3))},
        "kind": draw.choice(["short", "long"]),
    }
    return _example([("system", "Extract."), ("user", text)], answer)


def _grammar(schema: dict[str, Any], bounds: AnswerBounds) -> AnswerGrammar:
    cache = GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=STOP)
    return cache.get(bounded_schema(schema, schema_key(schema), bounds))


def _texts(example: Example) -> tuple[str, ...]:
    return tuple(str(message.content) for message in example.messages if message.role != "system")


def _ids(text: str) -> list[int]:
    ids: list[int] = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def _drawn(grammar: AnswerGrammar, prompt: PromptTexts, draw: random.Random, limit: int) -> tuple[str, bool]:
    """An answer of random tokens, and whether it was ended for its limit. Each token is judged alike both ways."""
    state, tokens = grammar.start(limit, prompt), list[int]()
    while len(tokens) <= limit:
        mask = state.mask()
        for token in draw.sample(range(258), 20):
            if not state._closing:
                assert state.allows(token) <= bool(mask[token])
        token = draw.choice(mask.nonzero()[:, 0].tolist())
        token = state.within_limit(token)
        if token == STOP:
            return str(tiny.tokenizer().decode(tokens)), state._closing
        tokens.append(token)
        state.append(token)
    raise AssertionError("the answer does not end inside its limit")


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.02, 0.3]))
def test_every_training_answer_may_be_written(seed: int, strange: float) -> None:
    draw = random.Random(seed)
    rows = [_row(draw, strange) for _ in range(60)]
    bounds = learn_bounds(rows)
    grammar, rules = _grammar(SCHEMA, bounds), bounds.grounded.get(schema_key(SCHEMA))
    assert rules is not None or strange > 0
    for row in rows:
        if rules is None:
            break
        prompt = PromptTexts(Grounding(rules, _texts(row)))
        assert grammar.refused_at(_ids(trained_text(row)), prompt) is None


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_random_answers_hold_nothing_but_copies(seed: int) -> None:
    draw = random.Random(seed)
    rows = [_row(draw, 0) for _ in range(60)]
    bounds = learn_bounds(rows)
    rules, grammar = bounds.grounded[schema_key(SCHEMA)], _grammar(SCHEMA, bounds)
    texts = _texts(_row(draw, 0))
    text, was_closed = _drawn(grammar, PromptTexts(Grounding(rules, texts)), draw, 1200)
    answer = json.loads(text)
    for leaf, rule in grounded_leaves(rules.answer, answer):
        # A value that reached the length limit, or the last ones of an answer that did, may be cut.
        is_copied = any(leaf.text in text for text in texts)
        assert is_copied or leaf.text in rule.others or was_closed or len(leaf.text) >= 80


def test_an_answer_ends_inside_its_limit_although_values_must_be_copied_whole() -> None:
    place = GroundedPlace(properties={"title": GroundedPlace(string=WHOLE)})
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    grammar = _grammar(schema, AnswerBounds())
    prompt = PromptTexts(Grounding(GroundedSchema(answer=place), ("a" * 500,)))
    for limit in (14, 20, 60):
        state, tokens = grammar.start(limit, prompt), list[int]()
        while (token := state.within_limit(state.mask().nonzero()[:, 0].tolist()[-1])) != STOP:
            tokens.append(token)
            state.append(token)
        assert len(tokens) <= limit
        json.loads(str(tiny.tokenizer().decode(tokens)))


def _learned(rows: list[tuple[str, Any]], kind: dict[str, Any], **place: Any) -> GroundedPlace | None:
    schema = {"type": "object", "properties": {"value": kind}, "required": ["value"], **place}
    examples = [_example([("user", text)], {"value": value}, schema) for text, value in rows]
    grounded = learn_bounds(examples).grounded.get(schema_key(schema))
    return None if grounded is None else grounded.answer.properties.get("value")


def test_a_place_is_grounded_where_values_are_copied_and_not_where_they_are_made_up() -> None:
    text = {"type": "string"}
    copies: list[tuple[str, Any]] = [(f"order number {n}.", f"number {n}") for n in range(40)]
    learned = _learned(copies, text)
    assert learned == GroundedPlace(string=WHOLE)
    assert _learned(copies[:19], text) is None  # too few
    assert _learned([(text, f"n. {n}") for n, (text, _) in enumerate(copies)], text) is None
    new = [("an order", f"made up {n}") for n in range(3)]
    assert _learned([*copies, *new], text) is None
    repeated = [("an order", "unknown")] * 8 + [("an order", "")]
    learned = _learned([*copies, *repeated], text)
    assert learned is not None
    assert learned.string == WHOLE.model_copy(update={"others": ("", "unknown")})


def test_what_the_grammar_lists_is_not_grounded() -> None:
    rows: list[tuple[str, Any]] = [("2026-01-31", "2026-01-31")] * 30
    for kind in ({"enum": ["2026-01-31"]}, {"const": "2026-01-31"}, {"type": "string", "format": "date"}):
        assert _learned(rows, kind) is None


def test_parts_of_words_are_kept_where_training_had_them_and_numbers_end_before_another_digit() -> None:
    parts = _learned([(f"prefix{n}", f"fix{n}") for n in range(30)], {"type": "string"})
    assert parts == GroundedPlace(string=GroundedRule(starts=False, ends=True))
    years = _learned([(f"Smith, {n}a", n) for n in range(1990, 2020)], {"type": "integer"})
    assert years == GroundedPlace(number=INTEGERS)


@pytest.mark.parametrize("amount", ["1.834,40", "17", "€ 2,50", "-3.00", "12.50 EUR", "1'000"])
@pytest.mark.parametrize("day", ["09.05.2025", "2025-05-09", "5/9/25", "12:30"])
def test_numbers_that_training_never_took_from_dates_or_longer_numbers_are_not_taken_from_them(
    amount: str, day: str
) -> None:
    def text(number: object) -> str:
        return f"Due {day}. Total {number}, paid {day}, order 12.345.678"

    rows: list[tuple[str, Any]] = [(text(f"{n},10 EUR"), f"{n},10") for n in range(100, 130)]
    learned = _learned(rows, {"type": "string"})
    assert learned == GroundedPlace(string=NUMBERS)
    prompt = PromptTexts(Grounding(GroundedSchema(answer=GroundedPlace(items=learned)), (text(amount),)))

    def is_allowed(value: str) -> bool:
        return (
            _LIST.refused_at(_ids(json.dumps([value], ensure_ascii=False, separators=(",", ":"))), prompt)
            is None
        )

    assert is_allowed(amount)
    assert is_allowed("12.345.678")
    parts = {day, day[:5], day[:2], day[-2:], "12", "345", "12.345", "678", "345.678"} - {amount}
    assert not [part for part in parts if is_allowed(part)]


_WRITTEN = {"type": "string", "x-written": {"type": "decimal", "locales": ["fr", "en"]}}
ALONE = NUMBERS.model_copy(update={"alone": WrittenKind("number", ())})
_OTHERS = [
    "x",
    "€",
    "09.05.2025",
    "é",
    '"',
    "-",
    "(ca.",
    "12kg",
    "1 850kg",
    "2x3",
    "7th",
    "5²",
    "12:30h",
    "-x1",
    "- Qty",
]
_AMOUNTS = ["17", "1 850,71", "54 761,07", "1,834.40", "-3.00", "0,5", "2 345 678,00"]


def test_a_written_number_is_copied_alone_where_training_had_nothing_else() -> None:
    rows: list[tuple[str, Any]] = [(f"{n} x 1 {n},50 EUR", f"1 {n},50") for n in range(100, 130)]
    assert _learned(rows, _WRITTEN) == GroundedPlace(string=ALONE)
    assert _learned(rows, {"anyOf": [_WRITTEN, {"type": "null"}]}) == GroundedPlace(string=ALONE)
    assert _learned(rows, {"type": "string"}) == GroundedPlace(string=NUMBERS)
    with_currency: list[tuple[str, Any]] = [(f"{n} x {n},50 EUR", f"{n},50 EUR") for n in range(100, 130)]
    assert _learned(with_currency, _WRITTEN) == GroundedPlace(string=NUMBERS)
    negative = (
        ("7 x -1 850,71 EUR", "-1 850,71"),
        ("7 x (1 850,71) EUR", "(1 850,71)"),
        ("-850,71", "-850,71"),
    )
    assert _learned([*rows, *negative], _WRITTEN) == GroundedPlace(string=ALONE)
    assert _learned(rows, _DAY_SCHEMA) == GroundedPlace(string=NUMBERS)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from([*_AMOUNTS, *_OTHERS]), min_size=1, max_size=8),
    st.sampled_from([" ", "; ", "  "]),
)
def test_a_written_number_is_nothing_but_a_number_of_the_text(
    seed: int, words: list[str], between: str
) -> None:
    text = between.join([*words, _AMOUNTS[seed % len(_AMOUNTS)]])
    rules = GroundedSchema(answer=GroundedPlace(items=GroundedPlace(string=ALONE)))
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3}
    prompt = PromptTexts(Grounding(rules, ("Read é 3,5.", text)))
    answer, was_closed = _drawn(_grammar(schema, AnswerBounds()), prompt, random.Random(seed), 120)
    assert not was_closed
    document = DocumentTexts(["Read é 3,5.", text])
    numbers = {number for number, _ in document.numbers}
    for value in json.loads(answer):
        assert value in numbers, (value, text)
        assert read_number(value, ["fr", "en"], document)
        assert stands_in(value, document.texts), (value, text)


_DAYS = WrittenKind("date", ("fr", "en"))
_DAY_SCHEMA = {"type": "string", "x-written": _DAYS.keyword}
_DAYS_WRITTEN = [
    "09/07/2025", "9 juillet 2025", "Jun 13, 2024", "13 June 2024", "2024-06-13", "1er mai 2024", "Sept. 3, 2024",
    "3 janv. 24", "2024年6月13日", "the 3rd of May, 2024", "2. 5. 2024",
]  # fmt: skip
_NO_DAYS = [
    *["11 098,77", "216 375,61", "17 1 850,71", "12.50", "2024", "B24/17", "1.2.3.4", "mai", "Due", "x", "(", "3 x 4"],
    *["10-12 pcs", "é", "12:30", "5 Maps"],
]  # fmt: skip


def test_a_written_day_is_copied_alone_where_training_had_nothing_else() -> None:
    days = [f"{day} juillet 2025" for day in range(1, 31)]
    rows: list[tuple[str, Any]] = [(f"du {day}, {n} x 1 {n},50 EUR", day) for n, day in enumerate(days, 200)]
    alone = GroundedPlace(string=WHOLE.model_copy(update={"alone": _DAYS}))
    assert _learned(rows, _DAY_SCHEMA) == alone
    assert _learned([*rows, ("du 3/7/25", "3/7/25")], {"anyOf": [_DAY_SCHEMA, {"type": "null"}]}) == alone
    assert _learned(rows, {"type": "string"}) == GroundedPlace(string=WHOLE)
    more: list[tuple[str, Any]] = [*rows, ("samedi 3 juillet 2025", "samedi 3 juillet 2025")]
    assert _learned(more, _DAY_SCHEMA) == GroundedPlace(string=WHOLE), "with the day of the week it is more"


def test_times_are_held_to_no_form() -> None:
    times = {"type": "string", "x-written": {"type": "time", "locales": ["en"]}}
    rows: list[tuple[str, Any]] = [(f"{n} pcs: 12:30", "12:30") for n in range(30)]
    assert _learned(rows, times) == GroundedPlace(string=WHOLE)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from([*_DAYS_WRITTEN, *_NO_DAYS]), min_size=1, max_size=8),
    st.sampled_from(["; ", "\n", " | "]),
)
def test_a_written_day_is_nothing_but_a_day_of_the_text(seed: int, words: list[str], between: str) -> None:
    text = between.join([*words, _DAYS_WRITTEN[seed % len(_DAYS_WRITTEN)]])
    rules = GroundedSchema(
        answer=GroundedPlace(items=GroundedPlace(string=WHOLE.model_copy(update={"alone": _DAYS})))
    )
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3}
    answer, was_closed = _drawn(
        _grammar(schema, AnswerBounds()), PromptTexts(Grounding(rules, (text,))), random.Random(seed), 160
    )
    assert not was_closed
    for value in json.loads(answer):
        assert stands_in(value, (text,))
        assert any(day in value for day in ("24", "25")), (value, text)
        assert value not in _NO_DAYS


@pytest.mark.parametrize("day", _DAYS_WRITTEN)
@pytest.mark.parametrize(
    "text", ["No 17 1 850,71 of {} | 3 pcs", "until {}.", "({}), then", "Due...{}", "{}"]
)
def test_any_form_of_a_day_is_a_day_alone(day: str, text: str) -> None:
    bare = day.removeprefix("the ")
    whole = text.format(day)
    at = whole.index(bare)
    assert at + len(bare) in values_alone(whole, _DAYS).get(at, frozenset())


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("01.06.2024-30.06.2024", ["01.06.2024", "30.06.2024"]),
        ("06/03/2024 - 06/30/2024", ["06/03/2024", "06/30/2024"]),
        ("06/03/2024-06/30/2024", ["06/03/2024", "06/30/2024"]),
        ("2024-06-03/2024-06-30", ["2024-06-03", "2024-06-30"]),
        ("3 June 2024-5 July 2024", ["3 June 2024", "5 July 2024"]),
        ("June 3, 2024-July 5, 2024", ["June 3, 2024", "July 5, 2024"]),
        ("___06/03/2024__", ["06/03/2024"]),
        ("_June 3, 2024_; invoice_2024-06-03.pdf", ["June 3, 2024", "2024-06-03"]),
        ("06/03/24-07/02/24", ["06/03/24", "07/02/24"]),
        ("01.06.24-30.06.24", ["01.06.24", "30.06.24"]),
        ("3 Jun 24-9 Jun 24", ["3 Jun 24", "9 Jun 24"]),
        ("03.06.2024/15.06.2024", ["03.06.2024", "15.06.2024"]),
        ("01-06-2024/30-06-2024", ["01-06-2024", "30-06-2024"]),
        ("3.6. 2024, 3. 6.2024, 03/06/ 2024", ["3.6. 2024", "3. 6.2024", "03/06/ 2024"]),
        ("06  /  03  /  2024", ["06  /  03  /  2024"]),
        ("v.03.06.2024", ["03.06.2024"]),
        ("03 06 2024", ["03 06 2024"]),
        ("24.6.3", ["24.6.3"]),
        ("3. Jänner 2024, 4. Mrz 2024", ["3. Jänner 2024", "4. Mrz 2024"]),
        ("3 AOUT 2024; 4 fevrier 2024", ["3 AOUT 2024", "4 fevrier 2024"]),
        ("3 de setiembre de 2024", ["3 de setiembre de 2024"]),
        ("10 pazdziernika 2024", ["10 pazdziernika 2024"]),
        ("03JUN2024", ["03JUN2024"]),
        ("3. Juni\n2024", ["3. Juni\n2024"]),
    ],
)
def test_days_are_found_in_ranges_and_as_people_write_them(text: str, days: list[str]) -> None:
    spots = values_alone(text, _DAYS)
    for day in days:
        at = text.index(day)
        assert at + len(day) in spots.get(at, frozenset()), day


def test_no_part_of_a_day_is_a_day() -> None:
    for day in ("10.12.2024", "2024-06-13", "06/03/2024", "1.2.3.4"):
        spots = values_alone(f"on {day}.", _DAYS)
        assert {f"on {day}."[at:end] for at, ends in spots.items() for end in ends} <= {day}


_INTEGERS_ALONE = {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}
_DECIMALS = ["211.25", "555,38", "1.834,40", "-0.5", "12,345.67", "7.5%", "9.05.2025", "12:30"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(_DECIMALS), min_size=1, max_size=6))
def test_an_integer_is_no_beginning_of_a_number_with_decimals(seed: int, others: list[str]) -> None:
    draw = random.Random(seed)
    rows: list[tuple[str, Any]] = [(f"{n} pieces at {n},10 EUR", n) for n in range(100, 130)]
    learned = _learned(rows, {"type": "integer"})
    assert learned == GroundedPlace(number=INTEGERS)
    whole = [str(draw.choice([2, 21, 211, -3, 55])) for _ in range(2)]
    words = [*others, *(f"{number} pieces" for number in whole)]
    draw.shuffle(words)
    rules = GroundedSchema(answer=GroundedPlace(items=learned))
    prompt = PromptTexts(Grounding(rules, ("; ".join(words),)))
    text, was_closed = _drawn(_grammar(_INTEGERS_ALONE, AnswerBounds()), prompt, draw, 60)
    assert not was_closed
    written = {str(number) for number in json.loads(text)}
    assert written <= {*whole, *(number.lstrip("-") for number in whole)}


def test_an_integer_may_begin_at_a_number_with_separators_of_thousands() -> None:
    rules = GroundedSchema(answer=GroundedPlace(items=GroundedPlace(number=INTEGERS)))
    grammar = _grammar(_INTEGERS_ALONE, AnswerBounds())
    for text in ("1,250 pieces of 3 kinds", "1.250 Stück von 3 Arten", "1'250'000 pieces of 3 kinds"):
        prompt = PromptTexts(Grounding(rules, (text,)))
        integer = int("".join(filter(str.isdigit, text.split()[0])))
        state = grammar.start(60, prompt)
        for token in _ids(
            json.dumps([integer])
        ):  # what stands nowhere as it is written is free after its beginning
            assert state.mask()[token]
            state.append(token)


@pytest.mark.parametrize("kind", ["string", "integer"])
def test_numbers_that_training_took_from_dates_are_taken_from_them(kind: str) -> None:
    years = [str(n) if kind == "string" else n for n in range(1990, 2020)]
    learned = _learned([(f"born 1.2.{n}", n) for n in years], {"type": kind})
    assert learned == GroundedPlace(**{"string" if kind == "string" else "number": WHOLE})


def test_system_messages_are_texts_only_where_they_differ_between_rows() -> None:
    schema = {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]}

    def grounded(rows: list[tuple[str, str]]) -> GroundedSchema | None:
        examples = [
            _example([("system", system), ("user", "Which?")], {"value": value}, schema)
            for system, value in rows
        ]
        return learn_bounds(examples).grounded.get(schema_key(schema))

    assert grounded([("Say red.", "red")] * 30) is None
    differing = grounded([(f"Say {n}.", str(n)) for n in range(30)])
    assert differing is not None
    assert differing.system_messages


def test_the_schema_text_of_a_transport_is_no_text_of_the_prompt() -> None:
    schema = {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]}
    rows = [
        _example([("user", f"Which? {json.dumps(schema)}")], {"value": "required"}, schema).model_copy(
            update={"schema_text": json.dumps(schema)}
        )
        for _ in range(30)
    ]
    assert learn_bounds(rows).grounded == {}


def test_bounds_with_grounded_places_survive_the_card() -> None:
    bounds = learn_bounds([_row(random.Random(n), 0) for n in range(60)])
    assert bounds.grounded
    assert AnswerBounds.model_validate_json(bounds.model_dump_json()) == bounds


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.text(min_size=1, max_size=60), st.text("0123456789.,-:/ é", min_size=1, max_size=30)),
    st.data(),
)
def test_positions_in_bytes_are_those_of_characters(text: str, data: st.DataObject) -> None:
    """A part of any text may be written, whole words exactly where ``occurrences`` has them."""
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        return
    begin = data.draw(st.integers(0, len(text) - 1))
    value = text[begin : data.draw(st.integers(begin + 1, len(text)))]
    text += " x"  # so that a value can end: the rule gives way where none could
    begins, ends_at, _ = number_parts(text)

    def cuts(at: int) -> bool:
        return at in begins or at + len(value) in ends_at

    for rule in (GroundedRule(), WHOLE, NUMBERS):
        rules = GroundedSchema(answer=GroundedPlace(items=GroundedPlace(string=rule)))
        [(leaf, _)] = grounded_leaves(rules.answer, [value])
        fits = any(
            (starts or not rule.starts) and (ends or not rule.ends) and not (rule.numbers and cuts(at))
            for at, starts, ends in occurrences(text, leaf)
        )
        schema = {"type": "array", "items": {"type": "string"}}
        example = _example([("user", text)], [value], schema)
        refused = _LIST.refused_at(_ids(trained_text(example)), PromptTexts(Grounding(rules, (text,))))
        assert (refused is None) == fits


_LIST = _grammar({"type": "array", "items": {"type": "string"}}, AnswerBounds())


def test_masks_of_long_texts_take_milliseconds() -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randrange(2, 9))) for _ in range(4000)]
    cache = GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=STOP)
    tree = VocabularyTree(cache.engine, 258)
    rules = GroundedSchema(answer=GroundedPlace(string=WHOLE))
    for characters, most_s in ((8_000, 0.1), (200_000, 2.0)):
        text = " ".join(draw.choices(words, k=characters // 5))[:characters]
        began = time.perf_counter()
        prompt = PromptTexts(Grounding(rules, (text,)))
        prompt.first_tokens("string", WHOLE, tree)
        assert time.perf_counter() - began < most_s


@pytest.mark.parametrize("text", ["a" * 20_000, "ab" * 10_000])
def test_repetitive_texts_are_no_slower(text: str) -> None:
    place = GroundedSchema(answer=GroundedPlace(items=GroundedPlace(string=GroundedRule())))
    state = _LIST.start(400, PromptTexts(Grounding(place, (text,))))
    for token in _ids('["' + text[:60]):
        assert bool(state.mask()[token])
        state.append(token)


@pytest.mark.parametrize("texts", [(), ("",), ("", " ")])
def test_without_a_text_to_copy_from_the_schema_decides(texts: tuple[str, ...]) -> None:
    rules = GroundedSchema(answer=GroundedPlace(items=GroundedPlace(string=WHOLE)))
    text, _ = _drawn(_LIST, PromptTexts(Grounding(rules, texts)), random.Random(1), 300)
    assert isinstance(json.loads(text), list)


def test_a_value_with_one_continuation_is_drafted_from_the_text() -> None:
    rules = GroundedSchema(answer=GroundedPlace(items=GroundedPlace(string=WHOLE)))
    state = _LIST.start(100, PromptTexts(Grounding(rules, ("Marie Curie and Marie Mayer", "Pierre"))))
    drafts = {}
    for token in _ids('["Marie C","P'):
        state.append(token)
        drafts[str(tiny.tokenizer().decode(state._tokens))] = str(tiny.tokenizer().decode(state.copied()))
    assert drafts['["'] == ""  # anything may begin here
    assert drafts['["Ma'] == ""  # of Marie and Mayer
    assert drafts['["Mar'] == "ie"
    assert drafts['["Marie C'] == "uri"
    assert drafts['["Marie C","'] == ""
    assert drafts['["Marie C","P'] == "ier"


def test_places_with_few_values_are_copied_where_nearly_all_others_are() -> None:
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("name", "dish", "mood")},
        "required": ["name"],
    }
    pairs = [(f"call Bo{n} now", {"name": f"Bo{n}"}) for n in range(40)]
    rare = [(f"Bo{n} eats pie{n}", {"name": f"Bo{n}", "dish": f"pie{n}"}) for n in range(3)]
    sad = [("Bo5 cries", {"name": "Bo5", "mood": "sad"})]
    learned = learn_bounds(FinetuneDataset.from_pairs([*pairs, *rare, *sad], schema=schema)).grounded
    (rules,) = learned.values()
    assert rules.answer.properties["dish"].string == GroundedRule(starts=True, ends=True)
    assert set(rules.answer.properties) == {"name", "dish"}  # "sad" stands in no text
    free = [(f"call Bo{n} now", {"name": f"Bo{n}", "mood": f"mood {n}"}) for n in range(40)]
    (rules,) = learn_bounds(FinetuneDataset.from_pairs([*free, *rare], schema=schema)).grounded.values()
    assert set(rules.answer.properties) == {"name"}
