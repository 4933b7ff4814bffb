"""Rows that teach when to fill a field and when to leave it out: they differ in the lines with its value alone.

As counterfactually augmented data (https://arxiv.org/abs/1909.12434): rows without these lines leave the field out, and
other rows with them fill it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from ...answer_classes import class_of
from ...example import Example, Message, compact_json, content_hash
from ...json_schema import find_error
from ...local.schema.bounds import schema_key
from ...local.schema.placed_items import leaves
from ...written_values.kinds import stands_in
from .values import value_faults

__all__ = ["MOST_EXAMPLES", "counterfactual_rows", "rows_with", "rows_without"]

# Chosen: fewer rows may have a field by chance; where it can seldom be cut out, what can be is not typical.
_LEAST_ROWS, _NEARLY_ALL = 5, 0.8
MOST_EXAMPLES = 1000
"""Most examples of which rows are made; chosen: of more, training takes long enough."""


class _Lines(NamedTuple):
    """The lines of an example with all values of a field. ``at``: index of the first; ``rest``: the other lines."""

    lines: tuple[str, ...]
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
    them, and whose, by hash: the order of examples decides nothing but that of the rows. None for more than 1,000
    examples, which differ enough among themselves.
    """
    groups = dict[str, list[Example]]()
    for example in examples if len(examples) <= MOST_EXAMPLES else ():
        if example.answer_schema is not None and _answer(example) is not None:
            groups.setdefault(schema_key(example.answer_schema), []).append(example)
    known, made = {example.id for example in examples}, list[Example]()
    for group in groups.values():
        fields = _told_fields(group)
        for example in group:
            row = next((row for row in _changes(example, fields) if row.id not in known), None)
            if row is not None:
                known.add(row.id)
                made.append(row)
    return made


def _told_fields(group: Sequence[Example]) -> dict[str, dict[str, tuple[Example, Example]]]:
    """Fields that some examples fill and others leave out: these examples with the same without it, by their ids."""
    answers = {example.id: _answer(example) or {} for example in group}
    told = dict[str, dict[str, tuple[Example, Example]]]()
    for name in sorted({name for answer in answers.values() for name in answer}):
        filled = [example for example in group if _texts(answers[example.id].get(name))]
        cut = {each.id: (each, row) for each in filled if (row := _without(each, name)) is not None}
        if len(group) - len(filled) >= _LEAST_ROWS and len(cut) >= max(
            _LEAST_ROWS, _NEARLY_ALL * len(filled)
        ):
            told[name] = dict(sorted(cut.items()))
    return told


def _changes(
    example: Example, fields: Mapping[str, Mapping[str, tuple[Example, Example]]]
) -> Iterator[Example]:
    """The rows that can be made of an example, in an order by hash."""
    for name in sorted(fields, key=lambda name: content_hash([example.id, name])):
        filled = fields[name]
        if example.id in filled:
            yield filled[example.id][1]
            continue
        draw = Random(content_hash([example.id, name]))
        other, _ = draw.choice([*filled.values()])
        if (row := _with(example, other, name, anywhere=draw.random() < 1 / 2)) is not None:
            yield row


def rows_without(examples: Iterable[Example], fields: Collection[str]) -> list[Example]:
    """For each example and each of the named fields that it fills, a row without it, where one can be made.

    That is where the schema lets the field be left out or null, and all of its values stand in lines of the last
    message in which no other value of the answer stands alone. Rows with a fault are left out.
    """
    return [row for example in examples for name in fields if (row := _without(example, name)) is not None]


def rows_with(
    examples: Iterable[Example], fields: Collection[str], others: Iterable[Example]
) -> list[Example]:
    """Each of ``others`` with the lines of an example in which one of the named fields stands, and with its value.

    Two of them with those of each example, while there are so many: one where the lines stood in their own text; then
    one between any two lines, from the first that has a value of the answer to the last, since lines that stand at few
    places are read there as what else stands there, such as one more item of a list. Of each example as of
    ``rows_without``; another one has the same schema, and leaves the field out.
    """
    known = ((example, name) for example in examples for name in fields)
    filled = [(example, name) for example, name in known if _without(example, name) is not None]
    turns = [(*each, anywhere) for anywhere in (False, True) for each in filled]
    made = [_with(other, *turn) for turn, other in zip(turns, others, strict=False)]
    return [row for row in made if row is not None]


def _with(other: Example, example: Example, name: str, anywhere: bool) -> Example | None:
    lines, answer, own = _lines(example, name), _answer(example), _answer(other)
    if lines is None or answer is None or own is None or _texts(own.get(name)):
        return None
    if other.answer_schema != example.answer_schema:
        return None
    others = _text(other).split("\n")
    at = lines.place_in(others)
    if anywhere and (valued := _with_values(others, own)):
        at = Random(content_hash([example.id, other.id])).randint(valued[0], valued[-1] + 1)
    return _changed(other, lines.within(others, at), {**own, name: answer[name]})


def _without(example: Example, name: str) -> Example | None:
    answer, lines = _answer(example), _lines(example, name)
    if answer is None or lines is None:
        return None
    left, rest = _left_out(example.answer_schema or {}, answer, name), "\n".join(lines.rest)
    if left is None or not rest.strip():
        return None
    if any(stands_in(value, lines.lines) and not stands_in(value, (rest,)) for value in _texts(left)):
        return None
    return _changed(example, rest, left)


def _changed(example: Example, text: str, answer: Mapping[str, Any]) -> Example | None:
    """The example with another text and answer; None where its schema or class refuses that."""
    if find_error(example.answer_schema or {}, answer) is not None:
        return None
    messages = (*example.messages[:-1], example.messages[-1].model_copy(update={"content": text}))
    said = Message(role="assistant", content=compact_json(answer))
    made = Example(**{**dict(example), "messages": messages, "answer": said})
    return None if value_faults(made, class_of(made)) else made


def _answer(example: Example) -> dict[str, Any] | None:
    """The object that an example answers with after a text; None for another kind of row."""
    asked = example.messages[-1]
    if (
        example.answer_schema is None
        or example.transport != "json_schema"
        or not isinstance(asked.content, str)
    ):
        return None
    try:
        answer = example.answer_object()
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _lines(example: Example, name: str) -> _Lines | None:
    """The lines of the last message with a field's values; None where they do not all stand in lines."""
    answer = _answer(example)
    if answer is None or not (values := _texts(answer.get(name))):
        return None
    lines = _text(example).split("\n")
    own = _with_values(lines, answer.get(name))
    removed = tuple(lines[at] for at in own)
    if not all(stands_in(value, removed) for value in values):
        return None
    return _Lines(removed, own[0], tuple(_cut(lines, own)))


def _text(example: Example) -> str:
    """The last message's text, of an example that has an ``_answer``."""
    return str(example.messages[-1].content)


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
    return [at for at, line in enumerate(lines) if any(stands_in(text, (line,)) for text in texts)]


def _texts(value: Any) -> list[str]:
    return [str(found) for _, found in leaves(value)]


def _left_out(schema: Mapping[str, Any], answer: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The answer without a field, or with null for it; None where the schema wants a value."""
    without = {key: value for key, value in answer.items() if key != name}
    for left in (without, {**answer, name: None}):
        if find_error(schema, left) is None:
            return left
    return None
