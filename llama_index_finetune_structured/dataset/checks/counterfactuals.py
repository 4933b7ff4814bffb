"""Rows that teach when to fill a field and when to leave it out: they differ in the lines with its value alone.

As counterfactually augmented data (https://arxiv.org/abs/1909.12434): rows without these lines leave the field out, and
other rows with them fill it. Such a line has a label, then values of the field, and nothing else that answers say.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import takewhile
from random import Random
from typing import Any, NamedTuple

from ...answer_classes import class_of
from ...example import Example, Message, compact_json, content_hash
from ...json_schema import find_error, is_number
from ...local.schema.bounds import schema_key
from ...local.schema.message_texts import caller_texts, system_texts
from ...local.schema.placed_items import leaves
from ...written_values.answers import absent_values, read_answer, spelled_answer
from ...written_values.kinds import stands_in
from ...written_values.readings import DocumentTexts
from .values import value_faults

__all__ = ["MOST_EXAMPLES", "counterfactual_rows", "rows_with", "rows_without"]

# Chosen: fewer rows may have a field by chance; where it can seldom be cut out, what can be is not typical.
_LEAST_ROWS, _NEARLY_ALL = 5, 0.8
_LEAST_OF_A_LABEL = 2  # rows; chosen: a line that only one text has may say more than the field
_MARKUP = frozenset('|<>{}[]"?？')  # of tables, pages and data, of which a line is a part; and of questions
_LEADS_ON = (":", "：", "?", "？")  # at the end of a line: the next one belongs to it
_ABSENT = object()
_YEARS = range(1900, 2100)
MOST_EXAMPLES = 1000
"""Most examples of which rows are made; chosen: of more, training takes long enough."""


class _Row(NamedTuple):
    """An example that answers a text with an object. ``answer``: written values as the text has them."""

    example: Example
    answer: dict[str, Any]
    lines: list[str]


class _Lines(NamedTuple):
    """The lines of a text with all values of a field. ``labels``: what they begin with; ``at``: index of the first."""

    lines: tuple[str, ...]
    labels: tuple[str, ...]
    at: int
    rest: tuple[str, ...]

    def place_in(self, lines: Sequence[str]) -> int:
        """The index that is as far from begin or end of other lines, whichever is nearer, as theirs in their own."""
        from_end = len(lines) - (len(self.rest) - self.at)
        return self.at if 2 * self.at < len(self.rest) else max(from_end, 0)

    def within(self, lines: Sequence[str], at: int) -> str:
        """The text of other lines with these at an index."""
        before, after = lines[:at], lines[at:]
        # Beside a blank line they are a paragraph of their own, as all of such a text are.
        if before and not before[-1].strip():
            after = ["", *after]
        elif before and after and not after[0].strip():
            before = [*before, ""]
        return "\n".join([*before, *self.lines, *after])


def counterfactual_rows(examples: Sequence[Example]) -> list[Example]:
    """At most one row for each example: without an optional field that it fills, or with that of another one.

    Of fields that some examples fill and others leave out, whose lines can be cut out of nearly all texts; which of
    them, and whose, by hash: the order of examples decides nothing but that of the rows. Only of examples whose answers
    are copied from their texts: what is concluded from a field would not change with it. None for more than 1,000
    examples, which differ enough among themselves.
    """
    groups = dict[str, list[_Row]]()
    for example in examples if len(examples) <= MOST_EXAMPLES else ():
        if (row := _read(example)) is not None:
            groups.setdefault(schema_key(example.answer_schema or {}), []).append(row)
    known, made = {example.id for example in examples}, list[Example]()
    for rows in groups.values():
        group = _Group(filter(_is_copied, rows))
        fields = _told_fields(group) if len(group.rows) >= _NEARLY_ALL * len(rows) else {}
        for row in group.rows:
            changed = next((each for each in _changes(group, row, fields) if each.id not in known), None)
            if changed is not None:
                known.add(changed.id)
                made.append(changed)
    return made


def rows_without(examples: Iterable[Example], fields: Collection[str]) -> list[Example]:
    """For each example and each of the named fields that it fills, a row without it, where one can be made.

    That is where the schema lets the field be left out or null, and all of its values stand in lines of the last
    message that have a label beside them and nothing else of the answer. Rows with a fault are left out.
    """
    group = _Group(row for example in examples if (row := _read(example)) is not None)
    cut = (group.without(row, name) for row in group.rows for name in fields)
    return [row for row in cut if row is not None]


def rows_with(
    examples: Iterable[Example], fields: Collection[str], others: Iterable[Example]
) -> list[Example]:
    """Each of ``others`` with the lines of an example in which one of the named fields stands, and with its value.

    Two of them with those of each example, while there are so many: one where the lines stood in their own text; then
    one between any two lines, from the first that has a value of the answer to the last, since lines that stand at few
    places are read there as what else stands there, such as one more item of a list. Of each example as of
    ``rows_without``; another one has the same schema, and leaves the field out.
    """
    own, waiting = [_read(example) for example in examples], [_read(other) for other in others]
    group = _Group(row for row in (*own, *waiting) if row is not None)
    known = ((row, name) for row in own if row is not None for name in fields)
    filled = [(row, name) for row, name in known if group.without(row, name) is not None]
    turns = [(*each, anywhere) for anywhere in (False, True) for each in filled]
    made = (
        group.filled(other, *turn) for turn, other in zip(turns, waiting, strict=False) if other is not None
    )
    return [row for row in made if row is not None]


class _Group:
    """Rows of which others are made. What all texts begin and end with is a prompt's, and stays as it is."""

    def __init__(self, rows: Iterable[_Row]) -> None:
        self.rows = list(rows)
        texts = [*{tuple(row.lines): row.lines for row in self.rows}.values()]
        self._head, self._tail = _shared(texts), _shared([text[::-1] for text in texts])
        self._lines = dict[str, dict[str, _Lines]]()

    def lines(self, row: _Row, name: str) -> _Lines | None:
        """The lines with a field's values and labels alone; None where they do not all stand in such lines.

        No other line of any row may begin so: it would be unclear whose label that is.
        """
        if name not in self._lines:
            found = {row.example.id: lines for row in self.rows if (lines := self._own_lines(row, name))}
            labels = {label for lines in found.values() for label in lines.labels}
            others = {line.strip().casefold() for row in self.rows for line in _others(row, name)}
            unclear = {label for label in labels if any(line.startswith(label) for line in others)}
            self._lines[name] = {key: each for key, each in found.items() if not unclear & {*each.labels}}
        return self._lines[name].get(row.example.id)

    def _own_lines(self, row: _Row, name: str) -> _Lines | None:
        value = row.answer.get(name)
        if not (values := _texts(value)):
            return None
        own = _with_values(row.lines, value)
        removed = tuple(row.lines[at] for at in own)
        if not own or own[0] < self._head or own[-1] >= len(row.lines) - self._tail:
            return None
        if any(sum(stands_in(each, (line,)) for line in removed) != 1 for each in values):
            return None
        others = [*_words({key: each for key, each in row.answer.items() if key != name})]
        before = "".join(row.lines[own[0] - 1 : own[0]]).strip()
        if before.startswith("#") or before.endswith(_LEADS_ON):
            return None
        if any(each.casefold() in other for each in values for other in others):
            return None
        labels = tuple(_label(line, values, others) for line in removed)
        return None if "" in labels else _Lines(removed, labels, own[0], tuple(_cut(row.lines, own)))

    def without(self, row: _Row, name: str) -> Example | None:
        """The row without a field; None where it cannot be made."""
        lines, schema = self.lines(row, name), row.example.answer_schema or {}
        if lines is None or not "".join(lines.rest).strip():
            return None
        left = _left_out(schema, row.answer, name, self._left_out_as(name))
        rest, messages = "\n".join(lines.rest), row.example.messages[:-1]
        texts = [rest, *caller_texts(messages), *system_texts(messages)]
        field = {name: row.answer[name]}
        meant = read_answer(schema, field, ["\n".join(row.lines)]).value
        if left is None or _is_told(schema, field, texts, meant):
            return None
        return _changed(row, rest, left)

    def _left_out_as(self, name: str) -> Any:
        """How most rows without a field say that: by no key, null, or an empty value."""
        values = [row.answer.get(name, _ABSENT) for row in self.rows]
        empty = [value for value in values if value is _ABSENT or _is_empty(value)]
        return max(empty, key=empty.count, default=_ABSENT)

    def filled(self, other: _Row, row: _Row, name: str, anywhere: bool) -> Example | None:
        """Another row with the lines and the value of a field of this one; None where it cannot be made.

        They stand between lines with values of its answer, if there are any, or beside them: elsewhere they may be of
        something else.
        """
        lines, valued = self.lines(row, name), _with_values(other.lines, other.answer)
        if lines is None or not _is_empty(other.answer.get(name)):
            return None
        if other.example.answer_schema != row.example.answer_schema:
            return None
        at = lines.place_in(other.lines)
        if anywhere and valued:
            draw = Random(content_hash([row.example.id, other.example.id]))
            at = draw.randint(valued[0], valued[-1] + 1)
        first, last = (valued[0], valued[-1] + 1) if valued else (0, len(other.lines))
        at = max(self._head, first, min(at, len(other.lines) - self._tail, last))
        if "".join(other.lines[at - 1 : at]).strip().endswith(_LEADS_ON):
            return None
        return _changed(other, lines.within(other.lines, at), {**other.answer, name: row.answer[name]})


def _others(row: _Row, name: str) -> list[str]:
    """The lines of a row in which no value of a field stands."""
    own = {*_with_values(row.lines, row.answer.get(name))}
    return [line for at, line in enumerate(row.lines) if at not in own]


def _shared(texts: Sequence[Sequence[str]]) -> int:
    """How many lines several texts all begin with."""
    alike = takewhile(lambda lines: len({*lines}) == 1, zip(*texts, strict=False))
    return sum(1 for _ in alike) if len(texts) > 1 else 0


def _told_fields(group: _Group) -> dict[str, dict[str, tuple[_Row, Example]]]:
    """Fields that some rows fill and others leave out: these rows with the same without it, by their ids."""
    told = dict[str, dict[str, tuple[_Row, Example]]]()
    for name in sorted({name for row in group.rows for name in row.answer}):
        filled = [row for row in group.rows if not _is_empty(row.answer.get(name))]
        if len(group.rows) - len(filled) < _LEAST_ROWS:
            continue
        cut = {
            row.example.id: (row, each) for row in filled if (each := group.without(row, name)) is not None
        }
        lines = {key: group.lines(row, name) for key, (row, _) in cut.items()}
        labels = Counter(label for found in lines.values() if found is not None for label in found.labels)
        rare = {label for label, count in labels.items() if count < _LEAST_OF_A_LABEL}
        kept = {key: cut[key] for key, found in sorted(lines.items()) if found and not rare & {*found.labels}}
        if len(kept) >= max(_LEAST_ROWS, _NEARLY_ALL * len(filled)):
            told[name] = kept
    return told


def _changes(
    group: _Group, row: _Row, fields: Mapping[str, Mapping[str, tuple[_Row, Example]]]
) -> Iterator[Example]:
    """The rows that can be made of a row, in an order by hash."""
    key = row.example.id
    for name in sorted(fields, key=lambda name: content_hash([key, name])):
        if key in fields[name]:
            yield fields[name][key][1]
            continue
        draw = Random(content_hash([key, name]))
        other, _ = draw.choice([*fields[name].values()])
        changed = group.filled(row, other, name, anywhere=draw.random() < 1 / 2)
        if changed is not None:
            yield changed


def _changed(row: _Row, text: str, answer: Mapping[str, Any]) -> Example | None:
    """The row with another text and answer; None where its schema or class refuses that."""
    example = row.example
    if find_error(example.answer_schema or {}, answer) is not None:
        return None
    messages = (*example.messages[:-1], example.messages[-1].model_copy(update={"content": text}))
    said = Message(role="assistant", content=compact_json(answer))
    made = Example(**{**dict(example), "messages": messages, "answer": said})
    return None if value_faults(made, class_of(made)) else made


def _read(example: Example) -> _Row | None:
    """The row of an example that answers a text with an object; None for another kind."""
    text = example.messages[-1].content
    if example.answer_schema is None or example.transport != "json_schema" or not isinstance(text, str):
        return None
    try:
        answer = spelled_answer(example.answer_schema, example.answer_object(), [text])
    except ValueError:
        return None
    return _Row(example, answer, text.split("\n")) if isinstance(answer, dict) else None


def _is_copied(row: _Row) -> bool:
    """Whether all values of an answer stand in its text."""
    text = "\n".join(row.lines)
    values = (value for _, value in _scalars(row.answer) if value not in (None, ""))
    return all(not isinstance(value, bool) and stands_in(str(value), (text,)) for value in values)


def _scalars(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The texts, numbers, booleans and nulls of a value, with the names of their fields."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else ((name, item) for item in value):
            yield from _scalars(item, str(key))
    else:
        yield name, value


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _label(line: str, values: Iterable[str], others: Iterable[str]) -> str:
    """What a line has before values of a field; empty where that is nothing, or the line may have more than a label."""
    label, begin = line, min(line.find(value) for value in values if value in line)
    for value in sorted(values, key=len, reverse=True):
        label = label.replace(value, " ")
    beginning, label = line[:begin].strip().casefold(), " ".join(label.casefold().split())
    if line[:1].isspace() or _MARKUP & {*line} or not any(map(str.isalpha, beginning)):
        return ""
    is_label = not any(map(str.isdigit, label)) and not any(stands_in(other, (label,)) for other in others)
    return beginning if is_label else ""


def _words(value: Any) -> Iterator[str]:
    """The texts of a value, and the names of its booleans, which stand in no text."""
    for name, each in _scalars(value):
        if isinstance(each, bool | str):
            yield (name if isinstance(each, bool) else each.strip()).casefold()


def _is_told(
    schema: Mapping[str, Any], answer: Mapping[str, Any], texts: Sequence[str], meant: Mapping[str, Any]
) -> bool:
    """Whether texts have a value of an answer in any case, any spacing, as any number or in any written form.

    ``meant``: the answer with its written values as they were read in their own text.
    """
    found = [value for _, value in leaves(answer)]
    numbers = {Decimal(str(value)) for value in found if is_number(value)}
    if numbers and any(numbers & values for _, values in DocumentTexts(texts).numbers):
        return True
    words = [value for value in found if isinstance(value, str)]
    if any(pattern.search(text) for pattern in map(_loosely, words) for text in texts):
        return True
    written = len(absent_values(schema, meant, ()))
    if not written and any(_has_day_of(value, texts) for value in words):
        return True
    return len(absent_values(schema, meant, texts)) < written


def _has_day_of(value: str, texts: Sequence[str]) -> bool:
    """Whether a line may have the day that a text writes: its year, and its day or month."""
    numbers = _whole_numbers(value)
    years = {number for number in numbers if number in _YEARS}
    lines = [_whole_numbers(line) for text in texts for line in text.split("\n")] if years else []
    return any(years & line and (numbers - years) & line for line in lines)


def _whole_numbers(text: str) -> set[int]:
    return {*map(int, re.findall(r"(?<!\d)\d{1,4}(?!\d)", text))}


def _loosely(value: str) -> re.Pattern[str]:
    """A text with any spaces in it, as whole words where its script has spaces between words."""
    words = value.split()
    before, after = (
        "" if unicodedata.category(each) == "Lo" else border
        for each, border in ((words[0][0], r"(?<!\w)"), (words[-1][-1], r"(?!\w)"))
    )
    return re.compile(before + r"\s*".join(map(re.escape, words)) + after, re.IGNORECASE)


def _cut(lines: Sequence[str], own: Sequence[int]) -> list[str]:
    """The other lines, with one of two equal blank or ruled ones around what is cut: both would tell of it."""
    rest = list(lines)
    for at in reversed(own):
        before, after = "".join(rest[max(0, at - 1) : at]).strip(), "".join(rest[at + 1 : at + 2]).strip()
        is_ruled = at > 0 and before == after and not any(map(str.isalnum, before))
        del rest[at - is_ruled : at + 1]
    return rest


def _with_values(lines: Sequence[str], value: Any) -> list[int]:
    """The indices of the lines in which parts of a value stand."""
    texts = _texts(value)
    return [
        at
        for at, line in enumerate(lines)
        if any(text in line and stands_in(text, (line,)) for text in texts)
    ]


def _texts(value: Any) -> list[str]:
    return [str(found) for _, found in leaves(value)]


def _left_out(
    schema: Mapping[str, Any], answer: Mapping[str, Any], name: str, empty: Any
) -> dict[str, Any] | None:
    """The answer without a field: as others have it, by no key, or null; None where the schema wants a value."""
    without = {key: value for key, value in answer.items() if key != name}
    choices = [] if empty is _ABSENT else [{**answer, name: empty}]
    for left in (*choices, without, {**answer, name: None}):
        if find_error(schema, left) is None:
            return left
    return None
