"""Rules that a user states on whole answers, and the problems of an answer: broken rules, values with two meanings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from pydantic import BaseModel

from .answer_values import walk_values
from .errors import ConfigurationError
from .written_values.answers import read_answer

__all__ = ["RULES", "AnswerRule", "answer_problems", "answer_rules", "broken_rules", "sum_rule"]

AnswerRule = Callable[[Any], "list[str] | None"]
"""From an object to what is wrong with it; None or an empty list where nothing is."""
RULES = "x-rules"
"""Keyword of a JSON schema, at its top: rules on sums, which travel with the data set."""

_ATTRIBUTE = "__answer_rules__"
_TOLERANCE = "0"
_Class = TypeVar("_Class", bound=type[BaseModel])


def answer_rules(*rules: AnswerRule) -> Callable[[_Class], _Class]:
    """A decorator of a class of answers that states rules on its objects.

    A validator makes an answer that breaks it invalid; a rule does not. A broken rule is a warning of ``check``,
    stands in ``Trust.problems`` and the scorecard, lowers the probability of the answer, and makes a ``Cascade`` ask
    its teacher. Objects inside an answer keep their own rules, and sub-classes those of their bases. A rule that raises
    is a broken one, with the error's text.

    Args:
        *rules: Functions from an object to a list of what is wrong with it, or None.

    Raises:
        ConfigurationError: A rule cannot be called.
    """
    for rule in rules:
        if not callable(rule):
            raise ConfigurationError(
                f"answer_rules: found {rule!r}, expected functions from an object to a list of texts, or None"
            )

    def stated(cls: _Class) -> _Class:
        setattr(cls, _ATTRIBUTE, (*getattr(cls, _ATTRIBUTE, ()), *rules))
        return cls

    return stated


def broken_rules(answer: BaseModel) -> list[str]:
    """What the rules of its class, and of the classes of objects inside it, find wrong with an answer."""
    found = []
    for path, value in walk_values(answer):
        for rule in getattr(type(value), _ATTRIBUTE, ()):
            found += [f"{path}: {text}" if path else text for text in _found_by(rule, value)]
    return found


def _found_by(rule: AnswerRule, value: Any) -> list[str]:
    name = getattr(rule, "__name__", type(rule).__name__)
    try:
        found = rule(value)
        if found is None or isinstance(found, list | tuple):
            return [str(text) for text in found or ()]
    except Exception as error:  # the user's function may raise anything
        return [f"the rule {name} raised {type(error).__name__}: {error}"]
    return [
        str(found)
        if isinstance(found, str)
        else f"the rule {name} returned {found!r}, expected a list of texts"
    ]


def answer_problems(
    schema: Mapping[str, Any] | None, value: Any, texts: Sequence[str | None], answer: BaseModel | None = None
) -> tuple[str, ...]:
    """The problems of an answer that fits its schema: values with two meanings, then broken rules.

    ``value``: the answer as JSON has it; ``texts``: those that it is from; ``answer``: its object, where there is one.
    """
    read = read_answer(schema, value, texts)
    rules = (schema or {}).get(RULES)
    sums = (
        [text for rule in rules for text in _broken_sum(rule, read.value)] if isinstance(rules, list) else []
    )
    own = [] if answer is None else broken_rules(answer)
    return tuple(dict.fromkeys([*read.unsure, *sums, *own]))


def sum_rule(parts: Sequence[str], total: str, tolerance: Decimal) -> dict[str, Any]:
    """The rule that values add up to another, as the keyword has it. Paths such as ``items[].amount``."""
    return {"sum": list(parts), "equals": total, "tolerance": str(tolerance)}


def _broken_sum(rule: Any, value: Any) -> Iterator[str]:
    """What is wrong with a sum; nothing where one of its values is not there."""
    try:
        parts, total = rule["sum"], rule["equals"]
        tolerance = Decimal(str(rule.get("tolerance", _TOLERANCE)))
        wanted, added = _numbers(value, total), [_numbers(value, part) for part in parts]
    except (TypeError, KeyError, ValueError, AttributeError, InvalidOperation) as error:
        yield f"the rule {rule!r} cannot be applied: {type(error).__name__}: {error}"
        return
    if not wanted or not all(added):
        return
    found, right = sum((sum(part, Decimal()) for part in added), Decimal()), sum(wanted, Decimal())
    if abs(found - right) > tolerance:
        yield f"{' + '.join(parts)} is {found}, and {total} is {right}"


def _numbers(value: Any, path: str) -> list[Decimal]:
    """The numbers at a path, in all items of the lists that it leads through."""
    found = [value]
    for name, brackets in re.findall(r"([^.\[\]]+)((?:\[\])*)", path):
        found = [item[name] for item in found if isinstance(item, dict) and item.get(name) is not None]
        for _ in range(len(brackets) // 2):
            found = [inner for item in found if isinstance(item, list) for inner in item]
    return [Decimal(str(item)) for item in found if not isinstance(item, bool)]
